"""Torch's flags of float32 arithmetic: plain within featviz, as they were afterwards."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from featviz.models.frozen import plain_float32

CUDNN: Any = torch.backends.cudnn
MATMUL: Any = torch.backends.cuda.matmul

SETTINGS: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "convolutions, newer": lambda: setattr(CUDNN.conv, "fp32_precision", "ieee"),
    "cudnn, newer": lambda: setattr(CUDNN, "fp32_precision", "tf32"),
    "everything, newer": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "products, newer": lambda: setattr(MATMUL, "fp32_precision", "tf32"),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "products, older": lambda: setattr(MATMUL, "allow_tf32", True),
    "cudnn, older": lambda: setattr(CUDNN, "allow_tf32", False),
    "benchmark": lambda: setattr(CUDNN, "benchmark", True),
}


def read(flag: Callable[[], object]) -> object:
    """A flag; where torch refuses to tell it, the kind of its error."""
    try:
        return flag()
    except RuntimeError as error:
        return type(error)


def flags() -> list[object]:
    return [
        *(p.fp32_precision for p in (torch.backends, CUDNN, CUDNN.conv, CUDNN.rnn, MATMUL)),
        read(torch.get_float32_matmul_precision),
        *(read(partial(getattr, p, "allow_tf32")) for p in (CUDNN, MATMUL)),
        (CUDNN.enabled, CUDNN.benchmark, CUDNN.deterministic),
    ]


def check(change: Callable[[], object]) -> None:
    change()
    before = flags()
    with plain_float32():
        assert {p.fp32_precision for p in (CUDNN.conv, CUDNN.rnn, MATMUL)} == {"ieee"}
        # What the older names say agrees, otherwise torch refuses to compute on CUDA.
        assert not CUDNN.allow_tf32
        assert not MATMUL.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
        assert CUDNN.deterministic
        assert not CUDNN.benchmark
    assert flags() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes of their own")
@pytest.mark.parametrize("name", SETTINGS)
def test_arithmetic_is_plain_within_and_flags_are_put_back(name: str) -> None:
    # A process of its own: some settings cannot be undone by torch's own functions.
    child = os.fork()
    if child == 0:
        try:
            check(SETTINGS[name])
        except BaseException:  # noqa: BLE001 - pytest must not go on in the child
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
