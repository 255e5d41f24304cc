"""Nearest neighbors: exact and approximate search, queries, and how good the answers are."""
