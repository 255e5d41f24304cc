"""`featviz kernels`."""

from __future__ import annotations


def kernels() -> None:
    """In preparation."""
