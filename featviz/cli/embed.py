"""`featviz embed`."""

from __future__ import annotations


def embed() -> None:
    """In preparation."""
