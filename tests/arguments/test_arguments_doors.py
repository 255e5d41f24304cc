"""Every parameter of every public function and of the settings refuses what it does not accept."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
import torch

import featviz
from featviz import UserError, fgsm
from featviz.arguments import Bounds, Refused, accept, bare, bounds, parameter_types
from featviz.maximization.settings import Settings, settings_for
from featviz.models.model import Model
from featviz.training.data import Augmentation

FUNCTIONS: list[Any] = [
    value for name in featviz.__all__ if inspect.isfunction(value := getattr(featviz, name))
]
SETTINGS: list[Any] = [
    featviz.AttackOptions,
    featviz.IconSettings,
    featviz.LayoutSettings,
    featviz.TrainSettings,
    Settings,
    Augmentation,
]
PARAMETERS = [
    pytest.param(name, kind, id=f"{called.__name__}-{name}")
    for called in [*FUNCTIONS, settings_for, *SETTINGS]
    for name, kind in parameter_types(called).items()
    if name != "return"
]

_NO_NUMBER = [
    True,
    "3",
    [],
    1j,
    float("nan"),
    float("inf"),
    -float("inf"),
    torch.zeros(2),
    {},
    b"1",
]
WRONG: dict[Any, list[Any]] = {
    int: [*_NO_NUMBER, 1.5, np.float32(2), torch.tensor(1.0), np.bool_(True)],
    float: [*_NO_NUMBER, 10**400, np.float64("nan"), torch.tensor(True)],
    bool: [0, 1, "yes", np.int64(1)],
    str: [b"conv1", 3.5, {}, ["conv1"], Path("conv1")],
    Path: ["a\0b", "", " ", b"x", 3.5, {}, "/dev/null", "x" * 5000],
    torch.Tensor: [[[0.5]], np.zeros((1, 3, 8, 8)), "picture", 3.5],
}


def _members(kind: Any) -> set[Any]:
    plain = bare(kind)
    members = get_args(plain) if get_origin(plain) in {Union, UnionType} else (plain,)
    return set(members) - {NoneType}


def wrong_values(kind: Any) -> list[Any]:
    """Values of other types, and numbers below and above the bounds; none for types of our own."""
    members, limits = _members(kind), bounds(kind)
    if members == {str, Path}:
        members = {Path}
    if len(members) != 1:
        return []
    (one,) = members
    origin = get_origin(one)
    found = list(WRONG.get(one, ()))
    if origin is Literal:
        found += ["nonsense", "", 0]
    if origin in {Sequence, tuple, list}:
        found += ["text", {1: 2}, {1, 2}, iter([1]), 5, [object()]]
    if origin is Mapping:
        found += [[("a", 1)], {object(): object()}, 5]
    if limits is not None:
        found += [limits.low - 1, limits.high * 2 + 1, -(10**30)]
    return found


@pytest.mark.parametrize(("name", "kind"), PARAMETERS)
def test_what_a_parameter_does_not_accept_is_refused_in_one_line(name: str, kind: Any) -> None:
    for value in wrong_values(kind):
        with pytest.raises(Refused) as refused:
            accept(name, value, kind)
        text = str(refused.value)
        assert text.startswith(f"{name} is ")
        assert "\n" not in text
        assert len(text) < 300


def test_every_number_of_the_public_functions_and_settings_has_bounds() -> None:
    free = [
        f"{called.__name__}.{name}"
        for called in [*FUNCTIONS, *SETTINGS]
        for name, kind in parameter_types(called).items()
        if name != "return" and _members(kind) & {int, float} and bounds(kind) is None
    ]
    # Units, classes and radii have bounds that depend on the model or on the norm.
    known = {"eps", "target", "against", "units", "baseline", "keys", "icon_side", "output"}
    assert [one for one in free if one.partition(".")[2] not in known] == []


@pytest.mark.parametrize("called", FUNCTIONS, ids=lambda called: called.__name__)
def test_every_public_function_checks_its_arguments(called: Any) -> None:
    with pytest.raises(UserError, match="has no option 'unheard_of'"):
        called(unheard_of=1)


@pytest.mark.parametrize(
    ("value", "kind", "taken"),
    [
        (np.int64(3), int, 3),
        (torch.tensor(3), int, 3),
        (np.float32(0.5), float, 0.5),
        (Fraction(1, 2), float, 0.5),
        (torch.tensor([1, 2]), Sequence[int], [1, 2]),
        (np.array(["a"]), Sequence[str], ["a"]),
        ((np.int8(1), 2), tuple[int, int], (1, 2)),
        (np.int64(8), Annotated[int, Bounds(8, 9)] | None, 8),
    ],
)
def test_numbers_and_lists_of_other_libraries_are_converted(
    value: Any, kind: Any, taken: Any
) -> None:
    found = accept("x", value, kind)
    assert found == taken
    assert type(found) is type(taken)


@pytest.mark.parametrize("value", [None, "a", ("a", "b"), torch.zeros(2), {"a": 1}])
def test_a_right_value_passes_as_it_is(value: Any) -> None:
    kind = str | Sequence[str] | torch.Tensor | Mapping[str, int] | None
    assert accept("x", value, kind) is value


def test_bounds_hold_for_tensors_of_one_number_too() -> None:
    with pytest.raises(Refused, match=r"seed is tensor\(-1\); it must be"):
        accept("seed", torch.tensor(-1), Annotated[int, Bounds(0, 2**63 - 1)])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 1 GiB total)"),
        RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8000000000 bytes"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("Storage size calculation overflowed with sizes=[3, 2147483648, 1073741825]"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=lambda error: str(error)[:24],
)
def test_lack_of_memory_is_a_line_that_names_what_helps(error: Exception) -> None:
    def fails(pictures: torch.Tensor) -> torch.Tensor:
        raise error

    with pytest.raises(UserError, match=r"not enough memory.*; give") as refused:
        fgsm(fails, torch.zeros(1, 3, 8, 8), torch.tensor([0]), eps=0.1)
    assert "\n" not in str(refused.value)


def test_other_errors_pass_as_they_are() -> None:
    def fails(pictures: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        fgsm(fails, torch.zeros(1, 3, 8, 8), torch.tensor([0]), eps=0.1)


BAD_PICTURES = {
    "NaN": torch.full((1, 3, 64, 64), float("nan")),
    "0 to 255": torch.full((1, 3, 64, 64), 200.0),
    "below 0": torch.full((1, 3, 64, 64), -0.5),
    "whole numbers": torch.ones(1, 3, 64, 64, dtype=torch.int64),
    "none": torch.zeros(0, 3, 64, 64),
    "5 channels": torch.full((1, 5, 64, 64), 0.5),
    "channels last": torch.full((1, 64, 64, 3), 0.5),
    "5 axes": torch.full((1, 1, 3, 64, 64), 0.5),
    "1 axis": torch.full((64,), 0.5),
    "complex": torch.zeros(1, 3, 64, 64, dtype=torch.complex64),
}
GIVEN: dict[str, Any] = {
    "labels": torch.tensor([0]),
    "layer": "conv1",
    "layers": ["conv1"],
    "eps": 8 / 255,
    "norm": "linf",
    "unit": "conv1:0",
    "name": "fog",
    "severity": 1,
    "units": "0",
    "attack": lambda model, x, y, eps: x,
}


def _takes_pictures() -> list[Any]:
    found = []
    for called in FUNCTIONS:
        needed = {
            n for n, p in inspect.signature(called).parameters.items() if p.default is p.empty
        }
        names = needed & {"pictures", "picture"}
        if names and needed - names <= {*GIVEN, "model"} and called is not featviz.transfer_matrix:
            found.append(pytest.param(called, *names, needed, id=called.__name__))
    return found


@pytest.mark.parametrize(("called", "name", "needed"), _takes_pictures())
def test_what_is_no_picture_is_refused_at_every_door(
    called: Any, name: str, needed: set[str], mini: Model
) -> None:
    given = {one: GIVEN.get(one, mini) for one in needed if one != name}
    for title, pictures in BAD_PICTURES.items():
        if title == "none" and called in {featviz.corrupt, featviz.activations}:
            continue  # of none they make none
        if title == "5 channels" and called is featviz.corrupt:
            continue  # noise and blur have no colors
        with pytest.raises(UserError) as refused:
            called(**given, **{name: pictures})
        assert "\n" not in str(refused.value), title
