"""`featviz maximize`."""

from __future__ import annotations


def maximize() -> None:
    """In preparation."""
