"""`featviz attribute`."""

from __future__ import annotations


def attribute() -> None:
    """In preparation."""
