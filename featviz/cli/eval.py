"""`featviz eval`."""

from __future__ import annotations


def eval() -> None:
    """In preparation."""
