"""`featviz maps`."""

from __future__ import annotations


def maps() -> None:
    """In preparation."""
