"""Aliases that the signatures of all analyses share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Progress = Callable[[int, int, str], None]
"""progress(done, total, text), called now and then by long work"""

Precision = Literal["float32", "bfloat16"]
"""number format in which a network computes"""

AutoPrecision = Literal["auto", "float32", "bfloat16"]
""""auto": bfloat16 where the processor computes in it and the model's operations exist in it"""
