"""`featviz attack`."""

from __future__ import annotations


def attack() -> None:
    """In preparation."""
