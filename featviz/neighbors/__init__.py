"""Nearest neighbors: exact and approximate search, queries, and their quality."""
