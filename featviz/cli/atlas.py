"""`featviz atlas`."""

from __future__ import annotations


def atlas() -> None:
    """In preparation."""
