"""`featviz gallery`."""

from __future__ import annotations


def gallery() -> None:
    """In preparation."""
