"""`featviz audit`."""

from __future__ import annotations


def audit() -> None:
    """In preparation."""
