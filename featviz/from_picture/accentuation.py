"""`accentuate`: a picture, changed no more than it takes to activate a unit more strongly.

Deepdream and plain activation maximization leave the picture behind. Here the score of a unit is
maximized while the activations of an earlier layer, the anchor, must stay near those of the given
picture: their distance is subtracted from the score, view by view, both pictures under the same
transforms. What grows is what the unit detects in this very picture, where it is.

Hamblin et al. 2024, "Feature accentuation: revealing 'what' features respond to in natural images".
As there, the weight of the anchor is measured: at 1 both gradients have the same norm at the given
picture. The distance is the mean, over positions, of the norm of the difference over channels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz.checkpoints import Checkpoint
from featviz.data.from_python import Data
from featviz.data.labeled import read_batch
from featviz.errors import UserError, public
from featviz.from_picture.driver import (
    Batch,
    Column,
    Redrawing,
)
from featviz.from_picture.result import Accentuated
from featviz.from_picture.settings import STEPS
from featviz.maximization import objectives
from featviz.maximization.objectives import Activations, Objective, Targets
from featviz.models.frozen import frozen
from featviz.models.layers import activations, read_layer
from featviz.models.units import Unit, parse_unit, unit_name
from featviz.types import (
    AutoPrecision,
    BatchSize,
    Engine,
    Frames,
    Progress,
    Rate,
    Seed,
    Steps,
    Weight,
)

if TYPE_CHECKING:
    from featviz.maximization.optimized import Optimized
    from featviz.maximization.settings import Settings
    from featviz.models.model import Model

# The anchor's receptive field is at most this share of the picture's side.
_ANCHOR_FIELD = 0.46
# Noise added to the picture before the gradients are compared: at it the distance has none.
_PROBE = 0.02


@public
def accentuate(
    model: Model,
    pictures: Data,
    units: str | Sequence[str] | None = None,
    *,
    anchor: str | None = None,
    weight: Weight = 1.0,
    steps: Steps = STEPS["accentuate"],
    lr: Rate = 0.03,
    settings: Settings | None = None,
    seed: Seed = 0,
    names: Sequence[str] | None = None,
    frames: Frames = 0,
    film: str = "gif",
    batch_size: BatchSize | None = None,
    precision: AutoPrecision = "auto",
    checkpoint: str | Path | Checkpoint | None = None,
    engine: Engine = "here",
    progress: Progress | None = None,
) -> Accentuated:
    """The given pictures, changed a little so that units are more active: (P, K, 1, 3, H, W).

    Args:
        model: The model.
        pictures: What `as_pictures` takes; float tensors (P, C, H, W) or (C, H, W) keep their size.
        units: As "conv5:12", "logits:tabby", a sequence of these or "conv5:12,logits:tabby" (K);
            default: the predicted classes of the pictures, at least three.
        anchor: The layer whose activations are to stay; default: the last convolution before the
            unit's layer whose receptive field is at most 0.46 of the picture's side (conv3 of an
            AlexNet).
        weight: Of the anchor; 0 is plain maximization from the picture, 1 gives both gradients
            the same norm, more stays closer to the picture.
        steps: Of the optimization.
        lr: Of the first step.
        settings: How to optimize, in place of `steps`, `lr` and `precision`; default:
            `method_settings`.
        seed: Of the random transforms.
        names: Of the pictures, for captions and files.
        frames: Number of stages of each picture to keep.
        film: How they are saved: "gif", or "mp4" for both.
        batch_size: Pictures at a time, and in a piece of the checkpoint; default 4 on a CPU, 64 on
            CUDA.
        precision: Of the network in the steps: "auto", "float32" or "bfloat16".
        checkpoint: A folder that keeps finished pictures; the same call goes on from there.
        engine: "here", or "ray": batches of pictures are made by a Ray cluster.
        progress: Called with steps done, steps in all and what is being done.

    Returns:
        The pictures, with each unit's score before and after and the change of the anchor.

    Raises:
        UserError: A unit or layer is unknown, the anchor does not come before the unit, or the
            pictures or a number are out of range.

    Example:
        featviz.accentuate(model, picture, "logits:tabby").save("run/accentuation")
    """
    run = Redrawing(
        model=model,
        pictures=read_batch(model, pictures).pictures,
        method="accentuate",
        steps=steps,
        chosen=settings,
        precision=precision,
        seed=seed,
        named=names,
        frames=frames,
        film=film,
        batch_size=batch_size,
        checkpoint=checkpoint,
        engine=engine,
        progress=progress,
        lr=lr,
    )
    wanted = _chosen_units(model, run.pictures, units)
    anchors = [anchor_for(model, unit.layer, anchor) for unit in wanted]

    def column(unit: Unit, held: str) -> Column:
        how = run.settings(unit.layer)
        name = unit_name(model, unit)

        def draw(batch: Batch) -> Optimized:
            pull = weight * balance(model, unit, held, batch.originals, seed)
            return run.optimize(
                _held(_unit_objective(unit, len(batch.originals)), held, pull),
                how,
                batch,
                f"{unit}/{held}",
                start=batch.originals.repeat_interleave(2, 0),
            )

        def measure(originals: Tensor, drawn: Tensor) -> dict[str, Tensor]:
            objective, rows = _unit_objective(unit, len(originals)), range(len(originals))
            before, after = (
                objective({unit.layer: read_layer(model, x, unit.layer)}, rows)
                for x in (originals, drawn)
            )
            was, now = (read_layer(model, x, held) for x in (originals, drawn))
            length = distances(was, torch.zeros_like(was)).clamp(min=1e-12)
            return {
                "score before": before,
                "score": after,
                "anchor distance": distances(now, was) / length,
            }

        return Column(name, how.steps, how, draw, measure, unit=str(unit))

    parameters = {
        "units": [str(unit) for unit in wanted],
        "anchor": anchors[0] if len(set(anchors)) == 1 else None,
        "weight": weight,
    }
    columns = [column(unit, held) for unit, held in zip(wanted, anchors, strict=True)]
    made = run.result(Accentuated, columns, parameters)
    return replace(made, anchor=" or ".join(dict.fromkeys(anchors)))


def _chosen_units(model: Model, originals: Tensor, units: str | Sequence[str] | None) -> list[Unit]:
    if units is not None:
        # Not at the comma of a position, as in conv5:12@6,6.
        items = re.split(r";|,(?=[^,;]*:)", units) if isinstance(units, str) else list(units)
        found = [parse_unit(model, item.strip()) for item in items if item.strip()]
        if not found:
            raise UserError("no unit was named; give some, as in conv5:12,logits:tabby")
        return list(dict.fromkeys(found))
    with frozen(model):
        logits = read_layer(model, originals, "logits")
    classes = [*logits.argmax(1).tolist(), *logits[0].argsort(descending=True).tolist()]
    return [Unit("logits", index) for index in list(dict.fromkeys(classes))[:3]]


def anchor_for(model: Model, layer: str, named: str | None = None) -> str:
    """The layer whose activations are to stay while a unit of `layer` is accentuated.

    Raises:
        UserError: The named layer is unknown or does not come before, or none is suitable.
    """
    names = list(model.layers)
    before = [model.layers[name] for name in names[: names.index(layer)]]
    if named is not None:
        place = model.layer(named)
        if place.name not in {one.name for one in before}:
            raise UserError(
                f"{place.name} does not come before {layer}; the anchor must, or it would hold "
                "back the unit itself"
            )
        return place.name
    side = _ANCHOR_FIELD * max(model.input_size)
    suitable = [
        one.name
        for one in before
        if one.kind == "Conv2d"
        and one.spatial
        and one.receptive_field is not None
        and max(one.receptive_field.size) <= side
    ]
    if not suitable:
        raise UserError(
            f"no layer before {layer} suits as the anchor; name one (anchor), or take a unit of a "
            "later layer"
        )
    return suitable[-1]


def _unit_objective(unit: Unit, count: int) -> Objective:
    if unit.position is not None:
        return objectives.neuron(unit.layer, [unit.index] * count, [unit.position] * count)
    return objectives.channel(unit.layer, [unit.index] * count)


def distances(values: Tensor, others: Tensor) -> Tensor:
    """The norm of the difference over channels, mean over positions, (N,)."""
    squares = (values - others).square()
    squares = squares.sum(-1) if squares.dim() == 3 else squares.sum(1)
    lengths: Tensor = (squares.reshape(len(values), -1) + 1e-12).sqrt()
    return lengths.mean(1)


def _held(objective: Objective, anchor: str, pull: Tensor) -> Objective:
    """Of pairs (picture, given picture): each picture's score less the distance of its anchor.

    The given ones go through the same transforms, as both have the same seed. They have no
    gradient, so they are never changed.
    """

    def score(acts: Activations, targets: Targets) -> Tensor:
        rows = [target // 2 for target in targets[::2]]
        scores = objective.score({name: acts[name][::2] for name in objective.layers}, rows)
        moved, originals = acts[anchor][::2], acts[anchor][1::2].detach()
        scores = scores - pull[rows].to(scores) * distances(moved, originals)
        return torch.stack([scores, torch.zeros_like(scores)], 1).flatten()

    return Objective(
        tuple(dict.fromkeys((*objective.layers, anchor))),
        2 * len(pull),
        f"{objective.text}, held by {anchor}",
        score,
        group=2,
    )


def balance(model: Model, unit: Unit, anchor: str, originals: Tensor, seed: int) -> Tensor:
    """The norm of the score's gradient over that of the anchor's distance, near each picture, (P,).

    Near: with a standard deviation of 0.02 of noise, since at the picture the distance is 0.
    """
    noise = torch.randn(originals.shape[1:], generator=torch.Generator().manual_seed(seed))
    target = read_layer(model, originals, anchor)
    with torch.enable_grad():
        moved = originals + _PROBE * noise.to(originals.device)
        x = moved.clamp(0, 1).requires_grad_(True)
        acts = activations(model, x, list(dict.fromkeys((unit.layer, anchor))))
        score = _unit_objective(unit, len(originals))(acts, range(len(originals))).sum()
        (up,) = torch.autograd.grad(score, x, retain_graph=True)
        (back,) = torch.autograd.grad(distances(acts[anchor], target).sum(), x)
    norms = [gradient.flatten(1).norm(dim=1) for gradient in (up, back)]
    ratio: Tensor = norms[0] / norms[1].clamp(min=1e-12)
    return ratio
