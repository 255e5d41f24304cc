"""What is measured for a circuit, as pieces of work that can be made in any order and anywhere.

A piece belongs to some units of one layer: their inputs, the units that they feed, their effects
on the logits, or their pictures. `Measurements` asks for pieces (`engine.map_pieces`), which may be
kept in a checkpoint, and turns their arrays into `Connections`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from featviz.checkpoints import Arrays, Checkpoint
from featviz.circuits.connections import Connections, Followed
from featviz.circuits.contributions import Linear, Wiring
from featviz.circuits.icons import Icons, first_named, unit_pictures
from featviz.circuits.reading import LayerInputs
from featviz.data.datasets import Pictures, batches
from featviz.engine import Piece, map_pieces
from featviz.errors import UserError
from featviz.models.frozen import frozen
from featviz.models.receptive_field import hookable
from featviz.statistics import percentiles
from featviz.types import Progress
from featviz.wording import counted

if TYPE_CHECKING:
    from featviz.models.model import Model

KEPT = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""numbers of inputs whose sum is compared with the unit"""
_DRAWS = 20  # random choices of inputs
_RESAMPLES = 200
_AT_ONCE = 8  # units of a piece
Work = tuple[str, dict[str, list[int]]]
"""what is measured, and units by layer"""
_MEASURED = ("mean", "spread", "share", "top_mean")


@dataclass
class Task:
    """How pieces are made; sent to the workers of a cluster."""

    model: Model
    data: Pictures
    positions: int
    batch_size: int
    seed: int
    icons: Icons
    keeping: bool = False
    """whether what one pass reads is kept in memory for the next pieces"""

    def __getstate__(self) -> dict[str, Any]:
        made_here = {"wiring", "inputs"}
        return {name: value for name, value in vars(self).items() if name not in made_here}

    @cached_property
    def wiring(self) -> Wiring:
        return Wiring(self.model)

    @cached_property
    def inputs(self) -> LayerInputs:
        keep = self.wiring.layers if self.keeping else ()
        return LayerInputs(self.model, self.data, self.batch_size, keep=keep)

    def __call__(self, work: Work, report: Callable[[int], None]) -> Arrays:
        what, units = work
        if what == "pictures":
            return self._pictures(units, report)
        make = {"inputs": self._inputs, "outputs": self._outputs, "effects": self._effects}[what]
        ((layer, which),) = units.items()
        return make(layer, which, report)

    def _inputs(self, layer: str, units: list[int], report: Callable[[int], None]) -> Arrays:
        linear = self.wiring.linear(layer)
        inputs = (taken[linear.layer] for taken in self.inputs.read([linear.layer]))
        values, owner = sample_contributions(
            linear, units, inputs, self.positions, self.seed, report
        )
        if int(owner.max()) < 3:
            raise UserError(
                f"{counted(len(self.data), 'picture')}: too few to choose and to measure; give 4 "
                "or more"
            )
        found: list[Arrays] = []
        while values:
            own = values.pop(0)
            norms = linear.weights(units[len(found)]).cpu().flatten(1).norm(dim=1)
            followed = [tuple(vars(one).values()) for one in _follow(own, owner, norms, self.seed)]
            whole = own.sum(1, keepdim=True)
            measured = _measured(own, whole, _strong(whole))
            found.append(measured | {"followed": np.array(followed)})
        together = {name: np.stack([one[name] for one in found]) for name in found[0]}
        return together | {"samples": np.array(len(owner))}

    def _outputs(self, layer: str, units: list[int], report: Callable[[int], None]) -> Arrays:
        fed = self.wiring.consumers(layer)
        names = [linear.layer for linear in fed]
        generator = torch.Generator().manual_seed(self.seed)
        added: list[list[list[Tensor]]] = [[[] for _ in units] for _ in fed]
        whole: list[list[Tensor]] = [[] for _ in fed]
        done = 0
        with torch.no_grad():
            for taken in self.inputs.read(names) if names else ():
                for linear, values, sums in zip(fed, added, whole, strict=True):
                    x = taken[linear.layer]
                    out = linear.output(x)
                    chosen = _positions(out, self.positions, generator)
                    sums.append(_taken(out, chosen))
                    for unit, kept in zip(units, values, strict=True):
                        channel = linear.channel(layer, unit)
                        kept.append(_taken(linear.contributions_from(x, channel), chosen))
                done += len(out)
                report(done)
        made: Arrays = {"layers": np.array(names)}
        for linear, values, sums in zip(fed, added, whole, strict=True):
            total = torch.cat(sums).double()
            strong = _strong(total)
            for i in range(len(units)):
                measured = _measured(torch.cat(values[i]).double(), total, strong)
                made |= {f"{linear.layer}/{i}/{key}": value for key, value in measured.items()}
        return made

    def _effects(self, layer: str, units: list[int], report: Callable[[int], None]) -> Arrays:
        """What each unit adds to each logit: their mean less their mean with its value at 0."""
        module = hookable(self.model.net)[self.model.layer(layer).path]
        differences: list[list[Tensor]] = [[] for _ in units]
        done = 0
        with frozen(self.model), torch.no_grad():
            for batch in batches(self.data, self.model.preprocessing, batch_size=self.batch_size):
                images = batch.images.to(self.model.device)
                whole = self.model(images)
                for unit, kept in zip(units, differences, strict=True):
                    handle = module.register_forward_hook(_Silence(unit))
                    try:
                        kept.append((whole - self.model(images)).double().cpu())
                    finally:
                        handle.remove()
                done += len(images)
                report(done)
        return {"effects": torch.stack([torch.cat(d).mean(0) for d in differences]).numpy()}

    def _pictures(self, units: dict[str, list[int]], report: Callable[[int], None]) -> Arrays:
        found = unit_pictures(
            self.model,
            units,
            self.data,
            self.icons,
            seed=self.seed,
            progress=lambda done, total, _: report(done * len(self.data) // max(1, total)),
        )
        return {layer: pictures.numpy() for layer, pictures in found.items()}


class _Silence:
    """A hook that puts one unit of a layer to 0."""

    def __init__(self, unit: int):
        self.unit = unit

    def __call__(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, self.unit] = 0
        return output


class Measurements:
    """Pieces of a circuit by what they are of, each made once."""

    def __init__(self, task: Task, kept: Checkpoint, progress: Progress | None):
        self.task, self.kept, self.progress = task, kept, progress
        self.wiring = task.wiring

    def inputs(self, names: Sequence[str]) -> dict[str, tuple[Connections, list[Followed], int]]:
        """Of units by name: their inputs, how well these follow them, on how many positions."""
        found = {}
        for layer, units, arrays in self._of_layers("inputs", names):
            linear = self.wiring.linear(layer)
            inputs = tuple(linear.name(c) for c in range(linear.channels))
            for row, (unit, name) in enumerate(units.items()):
                connections = Connections(
                    inputs,
                    linear.weights(unit).cpu(),
                    between=linear.between,
                    **{key: torch.from_numpy(arrays[key][row]) for key in _MEASURED},
                )
                followed = [
                    Followed(int(k), *rest) for k, *rest in arrays["followed"][row].tolist()
                ]
                found[name] = connections, followed, int(arrays["samples"])
        return found

    def outputs(self, names: Sequence[str]) -> dict[str, tuple[Connections, ...]]:
        """Of units by name: the units of each layer that they feed."""
        found = {}
        for layer, units, arrays in self._of_layers("outputs", names):
            fed = [self.wiring.linear(one) for one in arrays["layers"].tolist()]
            for row, (unit, name) in enumerate(units.items()):
                found[name] = tuple(
                    Connections(
                        tuple(self.wiring.unit(one.layer, i) for i in range(one.units)),
                        one.weights_from(one.channel(layer, unit)).cpu(),
                        between=one.between,
                        **{
                            key: torch.from_numpy(arrays[f"{one.layer}/{row}/{key}"])
                            for key in _MEASURED
                        },
                    )
                    for one in fed
                )
        return found

    def effects(self, names: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Of units by name: on each logit."""
        found = {}
        for _, units, arrays in self._of_layers("effects", names):
            for name, row in zip(units.values(), arrays["effects"], strict=True):
                found[name] = tuple(row.tolist())
        return found

    def pictures(self, names: Sequence[str]) -> dict[str, Tensor]:
        """(3, h, w) in [0, 1] of units by name; channels of the input have none."""
        by_layer = self._by_layer(names) if self.task.icons != "none" else {}
        if self.task.icons == "patches" and by_layer:  # all layers in one pass
            pieces = [by_layer]
        else:
            pieces = [{layer: named} for layer, named in by_layer.items()]
        made = self._made("pictures", [{k: sorted(v) for k, v in p.items()} for p in pieces])
        return {
            by_layer[layer][unit]: torch.from_numpy(row)
            for units, arrays in made
            for layer, which in units.items()
            for unit, row in zip(which, arrays[layer], strict=True)
        }

    def _of_layers(
        self, what: str, names: Sequence[str]
    ) -> Iterator[tuple[str, dict[int, str], Arrays]]:
        """Layer, index -> name, and arrays of each piece."""
        by_layer = self._by_layer(names)
        pieces = [
            {layer: indices[start : start + _AT_ONCE]}
            for layer, named in by_layer.items()
            for indices in [sorted(named)]
            for start in range(0, len(indices), _AT_ONCE)
        ]
        for units, arrays in self._made(what, pieces):
            ((layer, which),) = units.items()
            yield layer, {unit: by_layer[layer][unit] for unit in which}, arrays

    def _by_layer(self, names: Sequence[str]) -> dict[str, dict[int, str]]:
        """Layer -> index -> name; channels of the input are left out."""
        found: dict[str, dict[int, str]] = {}
        for name in names:
            layer, _, index = first_named(name).rpartition(":")
            if layer != "input":
                found.setdefault(self.wiring.linear(layer).layer, {})[int(index)] = name
        return found

    def _made(
        self, what: str, units: Sequence[dict[str, list[int]]]
    ) -> Iterator[tuple[dict[str, list[int]], Arrays]]:
        """The units of each piece, and its arrays."""
        pieces = []
        for own in units:
            digest = hashlib.sha256(repr(own).encode()).hexdigest()[:16]
            pieces.append(Piece(f"{what}-{digest}", (what, own), len(self.task.data)))
        made = map_pieces(
            self.task,
            pieces,
            self.kept,
            device=self.task.model.device.type,
            progress=self.progress,
            text=f"{what} of {', '.join(dict.fromkeys(n for o in units for n in o))}",
        )
        yield from zip(units, made, strict=True)


def sample_contributions(
    layer: Linear,
    units: Sequence[int],
    inputs: Iterable[Tensor],
    positions: int,
    seed: int,
    report: Callable[[int], None] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Contributions (S, C) of each unit in float64 at random positions, and their pictures (S,).

    Args:
        layer: Whose units.
        units: Which.
        inputs: Of the layer, batch by batch.
        positions: Of a map at most so many.
        seed: Of the positions.
        report: Called with pictures done.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[] for _ in units]
    owners: list[Tensor] = []
    done = 0
    with torch.no_grad():
        for x in inputs:
            chosen: Tensor | None = None
            for unit, kept in zip(units, parts, strict=True):
                found = layer.contributions(x, unit)
                if chosen is None:
                    chosen = _positions(found, positions, generator)
                    owners.append(
                        torch.arange(done, done + len(x)).repeat_interleave(chosen.shape[1])
                    )
                kept.append(_taken(found, chosen).double())
            done += len(x)
            if report:
                report(done)
    return [torch.cat(kept) for kept in parts], torch.cat(owners)


def _positions(maps: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """At most so many random positions of each map of (N, C, H, W): (N, P), on their device."""
    count = maps[0, 0].numel()
    drawn = [torch.randperm(count, generator=generator)[:most] for _ in range(len(maps))]
    return torch.stack(drawn).to(maps.device)


def _taken(maps: Tensor, chosen: Tensor) -> Tensor:
    """The values (N * P, C) of maps (N, C, H, W) at positions (N, P), on the CPU."""
    flat = maps.flatten(2)
    found = flat.gather(2, chosen[:, None].expand(-1, flat.shape[1], -1))
    return found.transpose(1, 2).flatten(0, 1).cpu()


def _strong(whole: Tensor) -> Tensor:
    """1 where units (S, C) are among the top 1% of their values, else 0."""
    ends = [part.quantile(0.99, dim=0) for part in whole.split(256, dim=1)]
    return (whole >= torch.cat(ends)).double()


def _measured(added: Tensor, whole: Tensor, strong: Tensor) -> Arrays:
    """Statistics (C,) of contributions (S, C) to units (S, C), or to one unit (S, 1)."""
    mean, centered = added.mean(0), whole - whole.mean(0)
    variance = centered.square().mean(0).clamp(min=torch.finfo(torch.double).tiny)
    values = (
        mean,
        added.std(0),
        (added - mean).mul(centered).mean(0) / variance,
        added.mul(strong).sum(0) / strong.sum(0),
    )
    return {name: value.numpy() for name, value in zip(_MEASURED, values, strict=True)}


def _follow(values: Tensor, owner: Tensor, norms: Tensor, seed: int) -> Iterator[Followed]:
    """Choose inputs on the even pictures, measure on the odd ones."""
    fit, test = values[owner % 2 == 0], values[owner % 2 == 1]
    rows = owner[owner % 2 == 1]
    whole, channels = test.sum(1), values.shape[1]
    orders = {"spread": fit.std(0), "weight": norms.double()}
    ranked = {name: v.argsort(descending=True, stable=True) for name, v in orders.items()}
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(channels, generator=generator) for _ in range(_DRAWS)]
    for k in [k for k in KEPT if k < channels] + [channels]:
        kept = test[:, ranked["spread"][:k]].sum(1)
        residual = (whole - kept) - (whole - kept).mean()
        low, high = _interval(kept, whole, rows, seed)
        yield Followed(
            k,
            _correlation(kept, whole),
            low,
            high,
            float(1 - residual.square().sum() / (whole - whole.mean()).square().sum()),
            _correlation(test[:, ranked["weight"][:k]].sum(1), whole),
            sum(_correlation(test[:, order[:k]].sum(1), whole) for order in drawn) / _DRAWS,
        )


def _correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's; 0 where one does not vary."""
    a, b = one - one.mean(), other - other.mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0 else 0.0


def _interval(one: Tensor, other: Tensor, rows: Tensor, seed: int) -> tuple[float, float]:
    """95% interval of the correlation over resampled pictures."""
    pictures, owner = rows.unique(return_inverse=True)
    a, b = one, other
    products = torch.stack([torch.ones_like(a), a, b, a * a, b * b, a * b], 1)
    sums = products.new_zeros(len(pictures), 6).index_add_(0, owner, products)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(pictures), (_RESAMPLES, len(pictures)), generator=generator)
    n, a, b, aa, bb, ab = sums[drawn].sum(1).unbind(1)
    scale = ((aa - a * a / n) * (bb - b * b / n)).clamp(min=0).sqrt()
    found = torch.where(scale > 0, (ab - a * b / n) / scale, 0.0)
    return percentiles(found)
