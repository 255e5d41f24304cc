"""Weights of a file into a net: every mismatch named at once, nothing taken that is no weight.

Names are found by `featviz.models.matching`; what torch and torchvision repair while loading (old
names, versions of modules) is repaired here, too. Class names come with the weights.
"""

from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from featviz.errors import UserError
from featviz.models.class_names import read_class_file
from featviz.models.matching import Match
from featviz.models.weights_file import plain

_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_SHOWN = 6  # mismatches written out before "and N more"


def fill(net: nn.Module, found: Match, source: str, name: str) -> list[str]:
    """Copy a set of weights into the net, whatever its floating point precision.

    Args:
        net: of random weights or on the meta device.
        found: the weights.
        source: their file, for errors.
        name: the model, for errors.

    Returns:
        The paths of the modules whose weights the file does not have at all.

    Raises:
        UserError: naming every missing, unknown and misshapen tensor, or each that is no weight.
    """
    wanted = net.state_dict()
    # Auxiliary heads are used in training only.
    aux = ("aux1.", "aux2.", "AuxLogits.")
    tensors = found.tensors | {n: t for n, t in found.unknown.items() if not n.startswith(aux)}
    unfit = f"{source} does not fit {name}: "
    odd = [
        f"{plain(n)} {why}"
        for n, t in found.tensors.items()
        if (why := _odd(t, wanted[n])) is not None
    ]
    if odd:
        _check_names(wanted, tensors, unfit)
        raise UserError(f"{source} holds what are no weights: {listed(odd)}; save them as float32")
    # Copies: a kernel may round in another way where a file's tensors are not aligned in memory.
    cast = {n: t.to(wanted[n].dtype, copy=True) if n in wanted else t for n, t in tensors.items()}
    infinite = [
        n for n in found.tensors if cast[n].is_floating_point() and not cast[n].isfinite().all()
    ]
    if infinite:
        raise UserError(f"{source} holds NaN or infinite weights ({listed(infinite)})")
    try:
        missing, unknown = _load(net, cast, found.versions)
    except (RuntimeError, ValueError) as error:
        _check_names(net.state_dict(), cast, unfit)
        raise UserError(f"{unfit}{plain(error)}") from None
    missing = [n for n in missing if not n.endswith("num_batches_tracked")]
    lost = _lost_modules(net, missing)
    problems = [f"{n} is missing" for n in missing if n.rpartition(".")[0] not in lost]
    _raise(problems + [f"{plain(n)} is unknown" for n in unknown], unfit)
    return lost


def _odd(tensor: Tensor, wanted: Tensor) -> str | None:
    """Why a tensor cannot be taken as the net's, beside its shape; None if it can."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_meta:
        return "has no values (meta device)"
    if tensor.is_quantized or tensor.layout is not torch.strided:
        return f"is {'quantized' if tensor.is_quantized else 'sparse'} ({kind})"
    if wanted.is_floating_point():
        return None if tensor.dtype in _FLOATS else f"is {kind}, not a floating point number"
    if wanted.dtype == torch.bool:
        return None if tensor.dtype == torch.bool else f"is {kind}, not bool"
    if tensor.dtype not in _FLOATS | _INTEGERS:
        return f"is {kind}, not a whole number"
    # Averages of weights have averaged the counters, too.
    return None if bool((tensor.to(wanted.dtype) == tensor).all()) else "is no whole number"


def _load(
    net: nn.Module, tensors: Mapping[str, Tensor], versions: Mapping[str, int]
) -> tuple[list[str], list[str]]:
    """Missing and unknown names, after what the net's modules repair by themselves."""
    state = OrderedDict(tensors)
    empty = net.state_dict()
    # Files without versions are of the present one; MNASNet refuses a net of none.
    root = {"": getattr(empty, "_metadata", {}).get("", {})}
    given = {path: {"version": version} for path, version in versions.items()}
    state._metadata = root | given  # type: ignore[attr-defined]
    on_meta = any(tensor.is_meta for tensor in empty.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = net.load_state_dict(state, strict=False, assign=on_meta)
    return result.missing_keys, result.unexpected_keys


def _lost_modules(net: nn.Module, missing: Iterable[str]) -> list[str]:
    """The modules all of whose tensors are missing."""
    absent = set(missing)
    lost = []
    for path in dict.fromkeys(name.rpartition(".")[0] for name in absent):
        module = net.get_submodule(path)
        names = {f"{path}.{name}" for name in module.state_dict()}
        if path and names - {f"{path}.num_batches_tracked"} <= absent:
            lost.append(path)
    return lost


def _check_names(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], unfit: str) -> None:
    problems = [
        f"{n} is {_shape(tensors[n])}, not {_shape(wanted[n])}"
        for n in wanted
        if n in tensors and tensors[n].shape != wanted[n].shape
    ]
    if problems:
        problems += [f"{n} is missing" for n in wanted if n not in tensors]
        problems += [f"{plain(n)} is unknown" for n in tensors if n not in wanted]
    _raise(problems, unfit)


def _raise(problems: list[str], unfit: str) -> None:
    if problems:
        raise UserError(
            f"{unfit}{listed(problems, '; ')}; give weights of this architecture, "
            "or another --model"
        )


def listed(texts: list[str], separator: str = ", ") -> str:
    """The first of many, and how many more there are."""
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return separator.join(texts[:_SHOWN]) + more


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def read_classes(
    file: str | Path | None, weights: str | Path | None, metadata: Mapping[str, str]
) -> list[tuple[str, str]] | None:
    """Class names from --classes, else from the weights' metadata, else FILE.classes.txt beside."""
    if file is not None:
        return read_class_file(file)
    if "classes" in metadata:
        return _stated_classes(metadata["classes"], str(weights))
    if weights is not None:
        beside = Path(weights).with_suffix(".classes.txt")
        if beside.is_file():
            return read_class_file(beside)
    return None


def _stated_classes(text: str, source: str) -> list[tuple[str, str]]:
    """Class names in a file's metadata: a JSON list of names or of pairs (synset, name)."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        entries = None
    pairs = (
        [("", e) if isinstance(e, str) else e for e in entries or ()]
        if isinstance(entries, list)
        else None
    )
    if pairs is None or not all(_is_pair(pair) for pair in pairs):
        raise UserError(
            f'{source}: its metadata "classes" is {plain(text)[:60]!r}, no JSON list of names or '
            "of pairs (synset, name); save the weights again, without it"
        )
    return [(synset, name) for synset, name in pairs]


def _is_pair(pair: object) -> bool:
    return (
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(p, str) for p in pair)
    )
