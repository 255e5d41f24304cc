"""`featviz neighbors`."""

from __future__ import annotations


def neighbors() -> None:
    """In preparation."""
