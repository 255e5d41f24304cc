"""From activations to one score per picture, (N,), higher is better.

An objective aims each picture at its own target (a unit, a neuron, a direction): target `i` of the
objective belongs to row `i` of what is maximized. Scores are gathered picture by picture and never
averaged over the batch, so neither its size nor its other pictures change a gradient.

    objective = channel("conv5", [3, 12])       # two pictures, one unit each
    objective = objective - 0.5 * channel("conv4", [7, 7]) - 0.1 * total_variation()
    scores = objective(activations)             # (2,)

Three kinds, by what they need for each target:

    a unit        channel, center, neuron, logit, direction
    a reference   caricature, distance, style_distance: the activations of a picture to compare with
    nothing       deepdream, total_variation, l1, l2, diversity, alignment: fit any other objective

Each value is what its name says. Of a distance or a variation less is better, so it is subtracted.
`diversity` and `alignment` are the only two that compare pictures: rows of one group, which the
loop keeps together, and no others.

Names of layers are where the value is read, as it leaves that module: `conv5` of an AlexNet is the
convolution's output before its ReLU, so a unit that is silent at first still has a gradient to
follow; `relu5` is the same after it. `PICTURE` is the picture itself, before transforms.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import lcm
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from featviz.errors import UserError, nearest
from featviz.indices import index_below, whole_numbers

if TYPE_CHECKING:
    from featviz.models.model import Model

PICTURE = "picture"
"""the name under which objectives find the picture itself, (N, 3, H, W) in [0, 1]"""

SLOPE = 0.1
"""of a ReLU below zero, where the direction of what it lets through is optimized"""

Activations = Mapping[str, Tensor]
"""the values of each layer that is read, (N, ...), by its name"""
Targets = Sequence[int]
"""of each picture the index of its target"""
Score = Callable[[Activations, Targets], Tensor]
"""from activations and targets to the score of each picture, (N,)"""


@dataclass(frozen=True)
class Objective:
    """A score per picture. `+`, `-` and `*` make new objectives and change nothing."""

    layers: tuple[str, ...]
    """which activations it reads; may hold PICTURE"""
    count: int | None
    """how many targets it has; None: any number, it is the same for all"""
    text: str
    score: Score
    width: int | None = None
    """how many positions a side of the map it looks at, where it does not look at all of them"""
    group: int = 1
    """targets k * group to k * group + group - 1 are compared with one another, so they must be
    optimized together; 1: every picture is on its own"""
    addends: tuple[Objective, ...] = ()
    """of a sum its parts, so that long sums stay flat"""
    units: tuple[int, ...] | None = None
    """the one unit of its one layer that each target reads; None: it may read more"""
    own: Callable[[Tensor, Targets], Tensor] | None = None
    """scores (N,) of the values (N, ...) of each picture's own unit, for its target"""

    def __call__(self, activations: Activations, targets: Targets | None = None) -> Tensor:
        """Scores (N,) of activations (N, ...); `targets` default to 0 ... N-1."""
        if targets is None:
            rows = len(activations[self.layers[0]]) if self.count is None else self.count
            targets = range(rows)
        return self.score(activations, targets)

    def __add__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        return _joined((*(self.addends or (self,)), *(other.addends or (other,))))

    def __radd__(self, other: object) -> Objective:
        return self if other == 0 else NotImplemented  # so that sum() works

    def __mul__(self, factor: float | Objective) -> Objective:
        if isinstance(factor, Objective):
            return _multiplied(self, factor)
        if not isinstance(factor, int | float):
            return NotImplemented
        score, own = self.score, self.own
        inside = f"({self.text})" if self.addends else self.text
        return replace(
            self,
            text=f"{factor:g} * {inside}",
            score=lambda acts, targets: factor * score(acts, targets),
            width=None,
            addends=(),
            own=None if own is None else lambda values, targets: factor * own(values, targets),
        )

    __rmul__ = __mul__

    def __neg__(self) -> Objective:
        return self * -1.0

    def __sub__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        return self + other * -1.0


def _joined(parts: tuple[Objective, ...]) -> Objective:
    def score(acts: Activations, targets: Targets) -> Tensor:
        first, *rest = (part.score(acts, targets) for part in parts)
        return sum(rest, start=first)

    def own(values: Tensor, targets: Targets) -> Tensor:
        first, *rest = (part.own(values, targets) for part in parts if part.own is not None)
        return sum(rest, start=first)

    units = common_units(parts)
    text = parts[0].text
    for part in parts[1:]:
        minus = re.match(r"-(1 \* )?", part.text)
        text += f" - {part.text[minus.end() :]}" if minus else f" + {part.text}"
    return Objective(
        layers=layers_of(parts),
        count=_count(parts),
        text=text,
        score=score,
        group=lcm(*(part.group for part in parts)),
        addends=parts,
        units=units,
        own=own if units is not None else None,
    )


def common_units(parts: Sequence[Objective]) -> tuple[int, ...] | None:
    """The units that all of some objectives read in one layer, each target one, if that is all."""
    first, *rest = parts
    same = all((part.layers, part.units) == (first.layers, first.units) for part in rest)
    return first.units if same and len(first.layers) == 1 else None


def _multiplied(one: Objective, two: Objective) -> Objective:
    return Objective(
        layers=layers_of((one, two)),
        count=_count((one, two)),
        text=" * ".join(f"({part.text})" if part.addends else part.text for part in (one, two)),
        score=lambda acts, targets: one.score(acts, targets) * two.score(acts, targets),
        group=lcm(one.group, two.group),
    )


def layers_of(parts: Sequence[Objective]) -> tuple[str, ...]:
    """All layers that some objectives read."""
    return tuple(dict.fromkeys(name for part in parts for name in part.layers))


def _count(parts: Sequence[Objective]) -> int | None:
    counts = sorted({part.count for part in parts if part.count is not None})
    if len(counts) > 1:
        raise UserError(
            f"cannot join objectives of {counts[0]} and {counts[1]} targets; "
            "give both one target for each picture"
        )
    return counts[0] if counts else None


def of_layer(
    layer: str,
    text: str,
    score: Callable[[Tensor, Targets], Tensor],
    *,
    count: int | None = None,
    width: int | None = None,
    group: int = 1,
) -> Objective:
    """An objective that reads one layer: `score(values, targets)` of its values (N, ...)."""

    def read(acts: Activations, targets: Targets) -> Tensor:
        return score(acts[layer], targets)

    return Objective((layer,), count, text, read, width, group)


# Objectives with a unit for each target.


def channel(
    layer: str, units: Sequence[int], *, over: str = "mean", tokens: str | int = "all"
) -> Objective:
    """The mean of a unit over all positions; its value where the layer has no positions.

    over: "mean", or "max" for the highest position alone
    tokens: of a transformer's layer (N, tokens, C), which are positions: "all", "class" (the
        first), "patches" (all but the first) or the number of one
    """
    units, reduce = whole_numbers(units, "unit"), _REDUCE.get(over)
    if reduce is None:
        raise UserError(f"unknown reduction {over!r}; take {' or '.join(_REDUCE)}")
    if isinstance(tokens, str) and tokens not in _TOKENS:
        raise UserError(
            f"unknown tokens {tokens!r}; take {', '.join(_TOKENS)} or the number of one"
        )

    def score(values: Tensor, targets: Targets) -> Tensor:
        if values.dim() == 3:
            values = _chosen(values, tokens)
        return reduce(_gathered(values, units, targets))

    of = "" if tokens == "all" else f" at token {tokens}" if isinstance(tokens, int) else ""
    of = f" at the {tokens} token{'s' * (tokens == 'patches')}" if tokens in _TOKENS[1:] else of
    goal = of_layer(layer, f"{over} of {layer}{of}", score, count=len(units))
    return replace(goal, units=units, own=lambda v, _: reduce(v)) if tokens == "all" else goal


def center(layer: str, units: Sequence[int], width: int = 2) -> Objective:
    """The mean of a unit over the `width` x `width` positions nearest to the map's middle.

    In a map of odd size an even width is made one smaller, so that the middle stays the middle.
    """
    units = whole_numbers(units, "unit")

    def own(values: Tensor, targets: Targets) -> Tensor:
        return _mean(_middle(values, width))

    def score(values: Tensor, targets: Targets) -> Tensor:
        return own(_gathered(values, units, targets), targets)

    goal = of_layer(layer, f"middle of {layer}", score, count=len(units), width=width)
    return replace(goal, units=units, own=own)


def neuron(layer: str, units: Sequence[int], positions: Sequence[tuple[int, int]]) -> Objective:
    """A unit at one (row, column) of its map."""
    units = whole_numbers(units, "unit")
    rows, columns = (whole_numbers(axis, "position") for axis in zip(*positions, strict=True))

    def own(values: Tensor, targets: Targets) -> Tensor:
        places = [tuple(of[t] for t in targets) for of in (rows, columns)]
        for axis, (places_of, what) in enumerate(zip(places, ("row", "column"), strict=True), 1):
            for place in places_of:
                index_below(place, values.shape[axis], what)
        at = (tuple(range(len(targets))), *places)
        return values[*(index(which, values.device) for which in at)]

    def score(values: Tensor, targets: Targets) -> Tensor:
        return own(_gathered(values, units, targets), targets)

    goal = of_layer(layer, f"one position of {layer}", score, count=len(units), width=1)
    return replace(goal, units=units, own=own)


def logit(model: Model, classes: Sequence[int | str]) -> Objective:
    """The logit of a class, given by index, synset or name. Raises UserError for unknown ones."""
    goal = channel("logits", [model.class_index(name) for name in classes])
    return replace(goal, text="logits")


def direction(
    layer: str,
    directions: Tensor,
    *,
    power: float = 2.0,
    width: int | None = None,
    rectified: bool = False,
) -> Objective:
    """How far activations go along a direction, and how straight: dot * max(.1, cosine)^power.

    directions: (K, C), one target each; only their direction counts, not their length
    power: 0 rewards the projection alone, more rewards pointing nowhere else
    width: only the `width` x `width` positions in the middle; default all positions
    rectified: the layer is a ReLU: before it, values below 0 count as a tenth of themselves, since
        they turn no direction behind it

    The floor of .1 keeps a gradient where the cosine is zero or less, and keeps the product of two
    negative values from being a reward (Carter et al. 2019, "Activation Atlas", Distill).
    """
    unit = directions.detach() / directions.detach().norm(dim=1, keepdim=True).clamp(min=1e-12)
    aims = _held(unit)

    def score(values: Tensor, targets: Targets) -> Tensor:
        values = _positions(values, width)  # (N, C, P)
        if rectified:
            values = F.leaky_relu(values, SLOPE)
        dot = (values * aims(targets, values)[:, :, None]).sum(1)  # (N, P)
        cos = dot / values.norm(dim=1).clamp(min=1e-6)
        return _mean(dot * cos.clamp(min=0.1) ** power)

    return of_layer(layer, f"directions in {layer}", score, count=len(directions))


# Objectives with a reference for each target: activations (K, ...) of a picture at the same layer.


def caricature(layer: str, references: Tensor, *, power: float = 1.0) -> Objective:
    """How far the whole activation goes along that of another picture: dot * max(.1, cosine)^power.

    references: (K, ...) activations at the layer, one target each; their length does not count, so
        the score is in units of activation
    power: more keeps closer to the reference, 0 exaggerates what is strong in it

    Olah, Mordvintsev and Schubert 2017 call the result a caricature; Mahendran and Vedaldi 2016,
    "Visualizing deep convolutional neural networks using natural pre-images".
    """
    wanted = references.detach().clone()
    unit = _held(wanted / _shaped(_total(wanted.square()).sqrt().clamp(min=1e-12), wanted))

    def score(values: Tensor, targets: Targets) -> Tensor:
        dot = _total(values * unit(targets, values))
        if not power:
            return dot
        cos = dot / _total(values.square()).clamp(min=1e-12).sqrt()
        return dot * cos.clamp(min=0.1) ** power

    return of_layer(layer, f"caricature in {layer}", score, count=len(references))


def distance(layer: str, references: Tensor) -> Objective:
    """The squared distance to another picture's activation, as a share of its squared length.

    references: (K, ...) activations at the layer, one target each. 0 is the same activation, 1 as
    far away as silence. Mahendran and Vedaldi 2015, "Understanding deep image representations by
    inverting them", equation 2.
    """
    wanted = references.detach().clone()
    rows, lengths = _held(wanted), _held(_total(wanted.square()).clamp(min=1e-12))

    def score(values: Tensor, targets: Targets) -> Tensor:
        apart = _total((values - rows(targets, values)).square())
        return apart / lengths(targets, values)

    return of_layer(layer, f"distance in {layer}", score, count=len(references))


def style_distance(layer: str, references: Tensor, *, power: int = 1) -> Objective:
    """How unlike the textures are: mean |difference|^power of the Gram matrices of channels.

    references: (K, C, H, W) activations at the layer, one target each; H and W may differ from
        those of the pictures, as a Gram matrix is a mean over positions
    power: 1 as in Lucid (optvis/style.py), 2 as in Gatys, Ecker and Bethge 2016
    """
    wanted = _held(_grams(references.detach()))

    def score(values: Tensor, targets: Targets) -> Tensor:
        apart = (_grams(values) - wanted(targets, values)).abs()
        return _mean(apart if power == 1 else apart**power)

    return of_layer(layer, f"style distance in {layer}", score, count=len(references))


# Objectives that are the same for every target.


def deepdream(layer: str) -> Objective:
    """The mean square of all units at all positions: more of whatever is there."""
    return of_layer(layer, f"deepdream of {layer}", lambda values, _: _mean(values.square()))


def total_variation(layer: str = PICTURE, *, beta: float = 1.0) -> Objective:
    """The mean of (dy^2 + dx^2)^(beta / 2) over pixels and channels; dy, dx to the next pixel.

    A cost: subtract it. beta 1 keeps edges, 2 is smoother (Mahendran and Vedaldi 2015, equation 4).
    """

    def score(values: Tensor, targets: Targets) -> Tensor:
        down = values[..., 1:, :-1] - values[..., :-1, :-1]
        right = values[..., :-1, 1:] - values[..., :-1, :-1]
        # The small number keeps the root's gradient finite on plain areas.
        return _mean((down.square() + right.square() + 1e-8) ** (beta / 2))

    return of_layer(layer, f"total variation of {layer}", score)


def l1(layer: str = PICTURE, *, around: float = 0.0) -> Objective:
    """The mean distance |value - around|. A cost: subtract it; 0.5 is a picture's middle gray."""
    return of_layer(layer, f"L1 of {layer}", lambda values, _: _mean((values - around).abs()))


def l2(layer: str = PICTURE, *, around: float = 0.0) -> Objective:
    """The root of the mean square of value - around. A cost: subtract it."""

    def score(values: Tensor, targets: Targets) -> Tensor:
        return (_mean((values - around).square()) + 1e-12).sqrt()

    return of_layer(layer, f"L2 of {layer}", score)


# Objectives that compare the pictures of a group.


def diversity(layer: str, group: int) -> Objective:
    """How unlike a picture's texture is to those of its group: 1 - mean cosine of Gram matrices.

    group: so many consecutive targets are compared, each with all others; 0 is all alike, 1
    nothing in common, for activations after a ReLU. Add it with a weight to draw the different
    faces of a unit: give the unit `group` times.

    Olah, Mordvintsev and Schubert 2017, "Diversity"; here a mean over pairs instead of a sum, so
    that a weight means the same for any size of group.
    """

    def grams(values: Tensor) -> Tensor:
        flat = _grams(values).flatten(1)
        return F.normalize(flat, dim=1)

    def unlike(own: Tensor) -> Tensor:
        # the sum of a picture's cosines with all, less the 1 with itself
        others = (own * own.sum(0)).sum(1) - own.square().sum(1)
        return 1 - others / (group - 1)

    return _compared(layer, f"diversity in {layer}", group, unlike, grams)


def alignment(layer: str, group: int, *, reach: int = 4, decay: float = 2.0) -> Objective:
    """How alike a picture is to its neighbors in its group, position by position: at most 0.

    group: so many consecutive targets are a series, such as the steps between two units
    reach: neighbors up to so many steps away count
    decay: each step further away counts so many times less

    Minus the mean squared difference of activations, over both sides. Add it with a weight to keep
    things in place along the series (Lucid's `alignment`; there the batch is the series).
    """

    def alike(own: Tensor) -> Tensor:
        total = own.new_zeros(group)
        for d in range(1, min(reach, group - 1) + 1):
            apart = _mean((own[d:] - own[:-d]).square()) / decay**d
            total = total - F.pad(apart, (d, 0)) - F.pad(apart, (0, d))
        return total / 2

    return _compared(layer, f"alignment in {layer}", group, alike)


def _compared(
    layer: str,
    text: str,
    group: int,
    compare: Callable[[Tensor], Tensor],
    prepare: Callable[[Tensor], Tensor] = lambda values: values,
) -> Objective:
    """An objective that compares the prepared values (group, ...) of each group."""
    if group < 2:
        raise UserError(f"a group of {group} has nothing to compare; take 2 or more")

    def score(values: Tensor, targets: Targets) -> Tensor:
        whole = len(targets) % group == 0 and all(
            t // group == targets[i - i % group] // group for i, t in enumerate(targets)
        )
        if not whole:
            raise ValueError(f"targets {list(targets)} are not whole groups of {group}")
        return torch.cat([compare(own) for own in prepare(values).split(group)])

    return of_layer(layer, text, score, group=group)


# A text for the command line.

_NUMBER = r"\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+"
_TERM = re.compile(
    rf"(?:(?P<factor>{_NUMBER})\s*\*\s*)?(?:(?P<name>\w+)\((?P<inside>.*)\)|(?P<unit>.+))"
)
_OF_UNITS = ("mean", "max", "center", "class", "patches")
_OF_LAYERS: dict[str, Callable[[str], Objective]] = {
    "deepdream": deepdream,
    "total_variation": total_variation,
    "l1": l1,
    "l2": l2,
}


def parse_objective(model: Model, text: str) -> Objective:
    """The objective of one picture that a text such as "conv5:12 - 0.5*conv4:7" describes.

    Terms are joined by " + " and " - " with spaces round them, each with a factor in front if
    wanted: `3 * `. A term is a unit ("conv5:12", "logits:tabby"; its mean over the map), a neuron
    ("conv5:12@6,6"), `max(conv5:12)`, `center(conv5:12)`, of a transformer's layer
    `class(layer:12)` or `patches(layer:12)`, `deepdream(conv4)`, or `total_variation(picture)`,
    `l1(picture)`, `l2(picture)`.

    Raises UserError for anything else.
    """
    signed = re.sub(r"^-\s*", " - ", text.strip())
    words = re.split(r"\s([+-])\s", signed if signed.startswith(" - ") else f" + {signed}")
    terms = [
        part if sign == "+" else -part
        for sign, term in zip(words[1::2], words[2::2], strict=True)
        for part in [_parse_term(model, term.strip(), text)]
    ]
    return replace(sum(terms[1:], start=terms[0]), text=text.strip())


def parse_objectives(model: Model, texts: Sequence[str]) -> Objective:
    """One objective with a target for each text, as `parse_objective` reads it."""
    if not texts:
        raise UserError("no objective was given; write for example conv5:12 - 0.5*conv4:7")
    goals = [parse_objective(model, text) for text in texts]
    if len(goals) == 1:
        return replace(goals[0], count=1)

    def score(acts: Activations, targets: Targets) -> Tensor:
        rows = [
            goals[t].score({name: values[i : i + 1] for name, values in acts.items()}, [0])
            for i, t in enumerate(targets)
        ]
        return torch.cat(rows)

    return Objective(layers_of(goals), len(goals), "; ".join(texts), score)


def _parse_term(model: Model, term: str, text: str) -> Objective:
    from featviz.models.units import parse_unit

    match = _TERM.fullmatch(term)
    if match is None:
        raise UserError(
            f"{text!r} is no objective: a term is empty; write for example conv5:12 - 0.5*conv4:7"
        )
    name, inside = match["name"], (match["inside"] or "").strip()
    if name in _OF_LAYERS:
        goal = _OF_LAYERS[name](inside if inside == PICTURE else model.layer(inside).name)
    elif name is not None and name not in _OF_UNITS:
        known = (*_OF_UNITS, *_OF_LAYERS)
        raise UserError(
            f"{name!r} in {text!r} is no objective{nearest(name, known)} (there are "
            f"{', '.join(known)})"
        )
    else:
        unit = parse_unit(model, inside if name else match["unit"].strip())
        if unit.position is not None:
            goal = neuron(unit.layer, [unit.index], [unit.position])
        elif name == "center":
            goal = center(unit.layer, [unit.index])
        elif name in _TOKENS:
            if len(model.layer(unit.layer).shape) != 2:
                raise UserError(f"{term!r}: {unit.layer} has no tokens; leave {name}() out")
            goal = channel(unit.layer, [unit.index], tokens=name)
        else:
            goal = channel(unit.layer, [unit.index], over=name or "mean")
    return goal if match["factor"] is None else float(match["factor"]) * goal


# Reading activations.


def _gathered(values: Tensor, units: tuple[int, ...], targets: Targets) -> Tensor:
    """Each picture's own unit: (N, H, W) of (N, C, H, W), (N,) of (N, C), (N, T) of (N, T, C)."""
    own = tuple(units[t] for t in targets)
    for unit in own:
        index_below(unit, values.shape[-1 if values.dim() == 3 else 1], "unit")
    rows = index(tuple(range(len(targets))), values.device)
    which = index(own, values.device)
    return values[rows, :, which] if values.dim() == 3 else values[rows, which]


@lru_cache(maxsize=256)
def index(items: tuple[int, ...], device: torch.device) -> Tensor:
    """Kept, so that a step of the loop sends nothing to the device."""
    with torch.inference_mode(False):  # what is kept must serve autograd later
        return torch.tensor(items, device=device)


def _held(items: Tensor) -> Callable[[Targets, Tensor], Tensor]:
    """Rows of a constant by target, where and as the activations are; moved there once."""
    places: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def rows(targets: Targets, like: Tensor) -> Tensor:
        place = (like.device, like.dtype)
        if place not in places:
            places[place] = items.to(*place)
        return places[place][index(tuple(targets), like.device)]

    return rows


def _shaped(values: Tensor, like: Tensor) -> Tensor:
    """(N,) as (N, 1, ...), to be multiplied with (N, ...)."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _mean(values: Tensor) -> Tensor:
    """The mean of each picture's values, (N,), the same for any N: rounded once, from float64."""
    if values.dim() == 1:
        return values
    return values.flatten(1).mean(1, dtype=torch.float64).to(values.dtype)


def _total(values: Tensor) -> Tensor:
    """The sum of each picture's values, (N,), the same for any N: rounded once, from float64."""
    if values.dim() == 1:
        return values
    return values.flatten(1).sum(1, dtype=torch.float64).to(values.dtype)


def _highest(values: Tensor) -> Tensor:
    return values.flatten(1).amax(1) if values.dim() > 1 else values


_REDUCE: dict[str, Callable[[Tensor], Tensor]] = {"mean": _mean, "max": _highest}
_TOKENS = ("all", "class", "patches")


def _chosen(values: Tensor, tokens: str | int) -> Tensor:
    """The tokens of (N, T, C) that count as positions."""
    if tokens == "all":
        return values
    if tokens == "patches":
        return values[:, 1:]
    token = 0 if tokens == "class" else int(tokens)
    if not 0 <= token < values.shape[1]:
        raise UserError(f"there is no token {token}; the layer has 0 to {values.shape[1] - 1}")
    return values[:, token : token + 1]


def _middle(values: Tensor, width: int) -> Tensor:
    """The middle positions of (N, ..., H, W); values without a map as they are."""
    if values.dim() < 3:
        return values
    for axis in (-2, -1):
        size = values.shape[axis]
        count = min(size, width if (size - width) % 2 == 0 else max(1, width - 1))
        values = values.narrow(axis, (size - count) // 2, count)
    return values


def _positions(values: Tensor, width: int | None) -> Tensor:
    """Activations as (N, C, positions), contiguous."""
    if values.dim() == 2:
        return values[:, :, None]
    if values.dim() == 3:
        return values.transpose(1, 2).contiguous()
    return (values if width is None else _middle(values, width)).flatten(2).contiguous()


def _grams(values: Tensor) -> Tensor:
    """The mean over positions of products of channels, (N, C, C), of each picture on its own."""
    rows = _positions(values, None)
    return rows @ rows.transpose(1, 2) / rows.shape[2]
