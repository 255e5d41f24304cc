"""`patch_activations`: activations of one picture put into another's run, a part at a time.

What changes a logit, or the difference of two, when one position of a layer, or one unit, has the
values that it has on another picture?

    Geiger, Lu, Icard, Potts, "Causal Abstractions of Neural Networks", 2021 (interchange
        interventions, with a source and a base)
    Zhang and Nanda, "Towards Best Practices of Activation Patching", ICLR 2024 (difference of two
        logits)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz import results
from featviz.ablation.patched import Patched, PatchedLayer
from featviz.data.from_python import Data
from featviz.data.labeled import read_batch
from featviz.errors import UserError, public
from featviz.models.frozen import frozen
from featviz.models.layers import activations
from featviz.models.rest import channel_axis, rest_of
from featviz.types import BatchSize, Progress
from featviz.wording import counted

if TYPE_CHECKING:
    from featviz.models.model import Layer, Model


@public
def patch_activations(
    model: Model,
    source: Data,
    base: Data,
    *,
    layers: Sequence[str] | None = None,
    target: int | str | None = None,
    against: int | str | None = None,
    batch_size: BatchSize = 32,
    progress: Progress | None = None,
) -> Patched:
    """Put activations of one picture into another's run, position by position and unit by unit.

    Args:
        model: A classifier.
        source: The picture whose activations are put.
        base: The picture whose run they are put into.
        layers: Aliases or module paths; default: the last convolution.
        target: The class whose logit is followed; default: what the model predicts for `source`.
        against: The class whose logit is subtracted; default: what it predicts for `base`. The
            target's logit alone is followed where both are the same.
        batch_size: Versions that the model computes at once.
        progress: Called with (versions done, all, text).

    Raises:
        UserError: Not one picture each, an unknown layer or class.

    Example:
        featviz.patch_activations(model, "cat.jpg", "dog.jpg", layers=["conv3", "conv5"])
    """
    started = time.perf_counter()
    model.need_classes()
    pair, names = [], []
    for what, given in (("source", source), ("base", base)):
        read = read_batch(model, given)
        if len(read.pictures) != 1:
            raise UserError(f"{what} names {counted(len(read.pictures), 'picture')}; give one")
        pair.append(read.pictures.to(model.device))
        names.append(read.names[0])
    places = [model.layer(name) for name in layers or [_default(model)]]
    with frozen(model), torch.no_grad():
        logits = torch.cat([model(picture) for picture in pair]).cpu()
        wanted, other = (
            int(logits[i].argmax()) if given is None else model.class_index(given)
            for i, given in enumerate((target, against))
        )
        total = sum(_versions(place) for place in places)
        done, found = 0, []
        for place in places:

            def report(more: int, before: int = done) -> None:
                if progress is not None:
                    progress(before + more, total, "patched versions")

            found.append(_patch(model, place, pair, (wanted, other), batch_size, report))
            done += _versions(place)
    return Patched(
        origin=results.origin(
            model,
            parameters={
                "source": names[0],
                "base": names[1],
                "layers": [place.name for place in places],
                "target": wanted,
                "against": other,
                "batch_size": batch_size,
            },
            started=started,
        ),
        model_name=model.name,
        names=(names[0], names[1]),
        pictures=torch.cat(pair).cpu(),
        logits=logits,
        target=wanted,
        against=other,
        classes=model.class_names,
        layers=tuple(found),
    )


def _default(model: Model) -> str:
    convolutions = [one.name for one in model.layers.values() if one.kind == "Conv2d"]
    if not convolutions:
        raise UserError(f"{model.name} has no convolution; name layers (featviz layers lists them)")
    return convolutions[-1]


def _positions(place: Layer) -> tuple[int, ...]:
    """(H, W), (tokens,), or () for a vector."""
    return place.shape[1:] if len(place.shape) == 3 else place.shape[:-1]


def _versions(place: Layer) -> int:
    """How many versions of the base a layer has: all, each unit, each position."""
    return 1 + place.units + (torch.Size(_positions(place)).numel() if _positions(place) else 0)


def _patch(
    model: Model,
    place: Layer,
    pair: Sequence[Tensor],
    classes: tuple[int, int],
    batch_size: int,
    report: Callable[[int], None],
) -> PatchedLayer:
    """The change of the score by each part of a layer."""
    source, base = (activations(model, picture, [place.name])[place.name] for picture in pair)
    rest, axis, shape = rest_of(model, place, pair[1]), channel_axis(base), _positions(place)
    target, against = classes

    def scores(versions: Tensor) -> Tensor:
        logits = rest(versions).double().cpu()
        return logits[:, target] - (logits[:, against] if against != target else 0)

    def changes(parts: Tensor, done: int) -> Tensor:
        """Of versions whose part is the source's; parts (M, ...) bool, broadcast to the values."""
        found = []
        for some in parts.split(batch_size):
            found.append(scores(torch.where(some, source, base)))
            done += len(some)
            report(done)
        return torch.cat(found) - whole

    whole = scores(base)
    units = torch.eye(place.units, dtype=torch.bool, device=base.device)
    form = [place.units, *[1] * (base.dim() - 1)]
    form[axis] = place.units
    by_unit = changes(units.view(form), 1)
    by_position = None
    if shape:
        n = torch.Size(shape).numel()
        at = torch.eye(n, dtype=torch.bool, device=base.device)
        at = at.view(n, 1, *shape) if axis == 1 else at.view(n, *shape, 1)
        by_position = changes(at, 1 + place.units).view(shape)
    every = float(scores(source) - whole)
    return PatchedLayer(place.name, by_position, by_unit, every)
