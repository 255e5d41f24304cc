"""The tensors of a file under the names that a net gives them.

A file may hold a net's names behind and between the names of wrappers ("module.", "_orig_mod.",
"student.backbone."), several sets of weights (a moving average beside the weights themselves), and
much else (the optimizer's state). Nothing here depends on a list of wrappers: both lists of names
are trees, and the net's tree is sought in the file's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch import Tensor

from featviz.models.weights_file import WeightsFile

Shape = tuple[int, ...]

CAFFE_LAYERS = {
    "conv1": "features.0",
    "conv2": "features.4",
    "conv3": "features.8",
    "conv4": "features.10",
    "conv5": "features.12",
    "fc6": "classifier.1",
    "fc7": "classifier.4",
    "fc8": "classifier.6",
}
"""Caffe's names in alexnet-2012's terms."""

_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")
"""torchvision's files of DenseNet have names from before dots were forbidden: "norm.1" is norm1"""

_DEEPEST = 100  # parts of a name; no net has more


@dataclass(frozen=True)
class Match:
    """One set of weights of a file, by the net's names."""

    tensors: dict[str, Tensor]
    """by the net's names"""
    unknown: dict[str, Tensor]
    """those of this set that the net does not have, by their names behind `place`"""
    versions: dict[str, int]
    """torch's versions of modules, by the net's paths, where the file has them"""
    place: str = ""
    """what the names of this set begin with in the file; "" for nothing"""
    wrappers: tuple[str, ...] = ()
    """parts of the file's names that the net's names do not have"""
    others: tuple[str, ...] = ()
    """the places of sets with other weights in the file"""


@dataclass
class _Node:
    children: dict[str, _Node] = field(default_factory=dict)
    name: str | None = None  # the whole name, where a tensor is
    tensors: int = 0  # at this node and below


def match(file: WeightsFile, wanted: Mapping[str, Shape]) -> Match:
    """Find the tensors of `wanted` (name to shape) in a file.

    Of several sets the first that is no moving average (no "ema" in its name) is taken.
    """
    tensors = {_replaced(key, wanted): tensor for key, tensor in file.tensors.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    sets: list[dict[str, str]] = []
    rest = dict(tensors)
    while rest:
        found = _Search(shapes, wanted).find(_tree(rest), _tree(wanted))
        if not found or (sets and 2 * len(found) < len(sets[0])):
            break
        sets.append(found)
        for theirs in found.values():
            del rest[theirs]
    if not sets:
        return Match({}, tensors, {})
    chosen = _first(sets, list(tensors))
    place = _place(chosen)
    start = f"{place}." if place else ""
    chosen_tensors = {ours: tensors[theirs] for ours, theirs in chosen.items()}
    others = [
        _place(other)
        for other in sets
        if other is not chosen
        and not all(o in chosen and _same(tensors[t], chosen_tensors[o]) for o, t in other.items())
    ]
    return Match(
        tensors=chosen_tensors,
        unknown={n.removeprefix(start): t for n, t in rest.items() if n.startswith(start)},
        versions=_versions(file.versions, chosen, place),
        place=place,
        wrappers=tuple({part: None for n, s in chosen.items() for part in _wrappers(s, n)}),
        others=tuple(others),
    )


def _versions(given: Mapping[str, int], found: Mapping[str, str], place: str) -> dict[str, int]:
    versions = {"": given[place]} if place in given else {}
    for ours, theirs in found.items() if given else ():
        names, parts = ours.split("."), theirs.split(".")
        for end, at in enumerate(_positions(theirs, ours), start=1):
            path = ".".join(parts[: at + 1])
            if path in given:
                versions[".".join(names[:end])] = given[path]
    return versions


def _first(sets: list[dict[str, str]], names: list[str]) -> dict[str, str]:
    """Of the largest sets the first in the file that is no moving average, else the first."""
    order = {name: position for position, name in enumerate(names)}
    largest = [s for s in sets if len(s) == max(map(len, sets))]
    largest.sort(key=lambda found: min(order[name] for name in found.values()))
    plain = (s for s in largest if "ema" not in re.split(r"[._]", _place(s).casefold()))
    return next(plain, largest[0])


def _same(one: Tensor, two: Tensor) -> bool:
    if one is two:
        return True
    try:
        return one.dtype == two.dtype and torch.equal(one, two)
    except (RuntimeError, NotImplementedError):  # kinds of tensors that `fill` refuses
        return False


class _Search:
    """Where a net's tree lies in a file's tree, with wrappers at any depth."""

    def __init__(self, shapes: Mapping[str, Shape], wanted: Mapping[str, Shape]):
        self.shapes, self.wanted = shapes, wanted
        self.found: dict[tuple[int, int], dict[str, str]] = {}

    def find(self, file: _Node, net: _Node) -> dict[str, str]:
        """The net's names below `net` to the file's below `file`: the most that fit."""
        key = id(file), id(net)
        if key not in self.found:
            self.found[key] = self._find(file, net)
        return self.found[key]

    def _find(self, file: _Node, net: _Node) -> dict[str, str]:
        if net.name is not None:
            return {} if file.name is None else {net.name: file.name}
        direct: dict[str, str] = {}
        for part, child in net.children.items():
            if part in file.children:
                direct |= self.find(file.children[part], child)
        if self.fitting(direct)[0] == net.tensors:
            return direct
        # A wrapper's name is mostly none of the net's: some tensors may be inside, some beside it.
        pieces = [direct]
        pieces += [
            self.find(c, net) for part, c in file.children.items() if part not in net.children
        ]
        pieces.sort(key=self.fitting, reverse=True)
        joined = dict(pieces[0])
        for piece in pieces[1:]:
            if joined.keys().isdisjoint(piece):
                joined |= piece
        inner = [self.find(c, net) for part, c in file.children.items() if part in net.children]
        return max([joined, *inner], key=self.fitting)

    def fitting(self, found: dict[str, str]) -> tuple[int, int]:
        """How many have the right shape, and how many there are."""
        right = sum(self.shapes[spelled] == self.wanted[name] for name, spelled in found.items())
        return right, len(found)


def _tree(names: Iterable[str]) -> _Node:
    root = _Node()
    for name in names:
        parts = name.split(".")
        if len(parts) > _DEEPEST:
            continue
        node = root
        node.tensors += 1
        for part in parts:
            node = node.children.setdefault(part, _Node())
            node.tensors += 1
        node.name = name
    return root


def _replaced(key: str, wanted: Mapping[str, Shape]) -> str:
    """A name of the file, old spellings replaced by the net's."""
    start, _, leaf = key.rpartition(".")
    before, _, layer = start.rpartition(".")
    ours = f"{CAFFE_LAYERS.get(layer)}.{leaf}"
    if ours in wanted and key not in wanted:
        return f"{before}.{ours}" if before else ours
    return _DENSENET.sub(r"\1", key)


def _positions(spelled: str, name: str) -> list[int]:
    """Which parts of a name in the file are the net's: the last ones of each."""
    parts = spelled.split(".")
    at = len(parts)
    found = []
    for part in reversed(name.split(".")):
        at -= 1
        while parts[at] != part:
            at -= 1
        found.append(at)
    return found[::-1]


def _wrappers(spelled: str, name: str) -> list[str]:
    if spelled == name:
        return []
    ours = set(_positions(spelled, name))
    return [part for at, part in enumerate(spelled.split(".")) if at not in ours]


def _place(found: Mapping[str, str]) -> str:
    """What comes before the net's own names in all of a set's names."""
    starts = [s.split(".")[: _positions(s, name)[0]] for name, s in found.items()]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*starts, strict=False))
    return ".".join(parts[0] for parts in shared)
