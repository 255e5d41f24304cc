"""`accentuate`: a photograph, changed no more than it takes to answer a unit more strongly.

Deepdream and plain ascent leave the photograph behind. Here the score of a unit is climbed while an
earlier layer, the anchor, must go on answering nearly as it did to the photograph: how far its
answer has moved is taken away from the score, view by view, both pictures moved alike. What grows
is what the unit finds in this very photograph, where it finds it.

Hamblin et al. 2024, "Feature accentuation: revealing 'what' features respond to in natural images".
As there, the weight of the anchor is measured and not guessed: at 1 the two pull equally hard at
the photograph. The distance is the mean, over positions, of the length of the difference.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from featviz import films, results
from featviz.errors import UserError
from featviz.from_picture.driver import (
    Redrawing,
    as_batch,
    check_counts,
    each_alone,
    picture_names,
    ranks_kept,
    stacked,
)
from featviz.from_picture.result import Measure, Redrawn
from featviz.maximization import objectives
from featviz.maximization.evaluation import clean_scores
from featviz.maximization.loop import reading
from featviz.maximization.objectives import Objective
from featviz.maximization.optimizers import Adam
from featviz.maximization.parametrizations import Fourier
from featviz.maximization.settings import settings_for, with_changes
from featviz.maximization.transforms import Transforms
from featviz.models.frozen import frozen
from featviz.models.model import Layer
from featviz.models.units import Unit, parse_unit, unit_name
from featviz.types import AutoPrecision, Progress

if TYPE_CHECKING:
    from featviz.models.model import Model


# The anchor sees at most this share of the picture's side.
_ANCHOR_SEES = 0.46
# The photograph with this much noise: where it lies itself, the distance has no gradient.
_PROBE = 0.02


@dataclass(frozen=True, kw_only=True, repr=False)
class Accentuated(Redrawn):
    """Photographs, changed a little so that units answer more strongly."""

    kind: ClassVar[str] = "accentuation"
    measures: ClassVar[dict[str, Measure]] = {
        "score before": Measure("of the unit on the photograph", label="from {:.1f}"),
        "score": Measure("of the unit on the picture", label="to {:.1f}"),
        "anchor distance": Measure(
            "how far the anchor's answer has moved, over the length of that to the photograph",
            label="anchor {:.2f}",
        ),
        "pixel distance": Measure(
            "root mean square of the pixels' differences from the photograph, of 1"
        ),
        "class rank": Measure("of the photograph's class in the picture's logits; 1 is kept"),
    }

    anchor: str

    @property
    def title(self) -> str:
        return f"What units of {self.model_name} find in {self.of_what}"

    def caption(self) -> str:
        return (
            "Each row begins with a photograph; then come copies of it, changed so that one unit "
            f"({', '.join(self.columns)}) answers more strongly while {self.anchor} goes on "
            "answering nearly as before. Below each the unit's score before and after, and how "
            f"far the answer of {self.anchor} has moved, over its length. Colours are not rescaled."
        )


def accentuate(
    model: Model,
    pictures: Tensor,
    units: str | Sequence[str] | None = None,
    *,
    anchor: str | None = None,
    weight: float = 1.0,
    steps: int = 128,
    rate: float = 0.03,
    seed: int = 0,
    names: Sequence[str] | None = None,
    film: int = 0,
    film_kind: str = "gif",
    batch_size: int | None = None,
    precision: AutoPrecision = "auto",
    progress: Progress | None = None,
    **options: Any,
) -> Accentuated:
    """The given pictures, changed a little so that units answer more strongly: (P, K, 1, 3, H, W).

    pictures: (P, 3, H, W) or (3, H, W) in [0, 1]
    units: as "conv5:12", "logits:tabby", a sequence of these or "conv5:12,logits:tabby"; default:
        the classes that the pictures are taken for, three at most
    anchor: the layer whose answer is to stay; default: the last one before the unit's that sees
        no more than 0.46 of the picture's side (conv3 of an AlexNet)
    weight: of the anchor; 0 is plain ascent from the photograph, 1 lets both pull equally hard,
        more keeps closer to the photograph
    options: see `Settings`

    A picture depends on its photograph, its unit and the seed alone.

    Raises UserError for an unknown unit, layer or option, an anchor that does not come before the
    unit, and pictures that are none.

        featviz.accentuate(model, photograph, "logits:tabby").save("run/accentuation")
    """
    started = time.perf_counter()
    given = as_batch(model, pictures)
    names = picture_names(names, len(given))
    check_counts(steps=steps)
    films.check_kind(film_kind)
    if "optimizer" in options:
        raise UserError(
            "accentuate has an optimizer of its own, which lets the photographs stand still"
        )
    if weight < 0:
        raise UserError(f"weight is {weight:g}; the anchor's weight is 0 or more")
    wanted = _chosen_units(model, given, units)
    anchors = [_anchor(model, model.layer(unit.layer), anchor) for unit in wanted]
    own = {
        "parametrization": Fourier(*given.shape[-2:]),
        "transforms": Transforms(shift=max(2.0, given.shape[-1] / 28), rotate=5.0, scale=0.05),
        "optimizer": _FirstOfPairs(),
        "lr": rate,
        "contrast_weight": 0.0,
        "saturation_weight": 0.0,
        "coarse_to_fine": 0.0,
        "local_normalization": 0.0,
        "roughness_weight": 0.5 * clean_scores.first_stride(model),
    } | options
    settings = [
        with_changes(
            settings_for(model, unit.layer, steps=steps, size=given.shape[-1], precision=precision),
            own,
        )
        for unit in wanted
    ]
    run = Redrawing(model, given, 1, film, batch_size, progress)
    measured = []
    with frozen(model):
        for number, (unit, held, how) in enumerate(zip(wanted, anchors, settings, strict=True)):
            goal = _unit_goal(unit, len(given))
            pull = weight * _balance(model, goal, held, given, seed)  # (P,)
            climb = run.climb(
                _accented(goal, held, pull),
                how,
                [f"{unit}/{held}"],
                seed=seed,
                start=given.repeat_interleave(2, 0),
                group=2,
                text=f"accentuating {unit_name(model, unit)}",
                part=(number, len(wanted)),
            )
            drawn = run.keep(climb)
            measured.append(_measured(model, goal, held, given, drawn))
    made = run.made()
    return Accentuated(
        origin=results.origin(
            model,
            seed=seed,
            started=started,
            parameters={
                "method": "accentuate",
                "pictures": list(names),
                "units": [str(unit) for unit in wanted],
                "anchor": anchors[0] if len(set(anchors)) == 1 else None,
                "weight": weight,
                "size": given.shape[-1],
                **settings[-1].record(),
            },
        ),
        model_name=model.name,
        anchor=" or ".join(dict.fromkeys(anchors)),
        names=names,
        columns=tuple(unit_name(model, unit) for unit in wanted),
        units=tuple(map(str, wanted)),
        given=given.cpu(),
        measured=stacked(measured),
        film=film_kind,
        images=made.images,
        trace=made.trace,
        frames=made.frames,
    )


def _chosen_units(model: Model, given: Tensor, units: str | Sequence[str] | None) -> list[Unit]:
    if units is not None:
        # Not at the comma of a position, as in conv5:12@6,6.
        items = re.split(r";|,(?=[^,;]*:)", units) if isinstance(units, str) else list(units)
        found = [parse_unit(model, item.strip()) for item in items if item.strip()]
        if not found:
            raise UserError("no unit was named; give some, as in conv5:12,logits:tabby")
        return list(dict.fromkeys(found))
    logits = each_alone(model, given, "logits")
    answers = [*logits.argmax(1).tolist(), *logits[0].argsort(descending=True).tolist()]
    return [Unit("logits", index) for index in list(dict.fromkeys(answers))[:3]]


def _anchor(model: Model, layer: Layer, named: str | None) -> str:
    """The layer whose answer is to stay."""
    order = list(model.layers)
    before = [model.layers[name] for name in order[: order.index(layer.name)]]
    if named is not None:
        place = model.layer(named)
        if place.name not in {one.name for one in before}:
            raise UserError(
                f"{place.name} does not come before {layer.name}; the anchor must, or it would "
                "hold back the unit itself"
            )
        return place.name
    side = _ANCHOR_SEES * model.input_size
    seeing = [
        one
        for one in before
        if one.kind == "Conv2d"
        and one.spatial
        and one.receptive_field is not None
        and max(one.receptive_field.size) <= side
    ]
    if not seeing:
        raise UserError(
            f"no layer before {layer.name} suits as the anchor; name one (anchor), or take a unit "
            "of a later layer"
        )
    return seeing[-1].name


def _unit_goal(unit: Unit, count: int) -> Objective:
    if unit.position is not None:
        return objectives.neuron(unit.layer, [unit.index] * count, [unit.position] * count)
    return objectives.channel(unit.layer, [unit.index] * count)


def _apart(values: Tensor, others: Tensor) -> Tensor:
    """The length of the difference over channels, mean over positions, (N,)."""
    squares = (values - others).square()
    squares = squares.sum(-1) if squares.dim() == 3 else squares.sum(1)
    lengths = (squares.reshape(len(values), -1) + 1e-12).sqrt()
    return torch.stack([one.mean() for one in lengths])  # no sum over the batch: it may round


def _accented(goal: Objective, anchor: str, pull: Tensor) -> Objective:
    """Of pairs (picture, photograph, picture, photograph ...): each picture's goal less its pull.

    The photographs stand still (`_FirstOfPairs`), but go through the same moves as their pictures,
    as both have the same seed: like is compared with like.
    """

    def score(acts: Mapping[str, Tensor], targets: Sequence[int]) -> Tensor:
        pairs = [target // 2 for target in targets[::2]]
        pictures = {name: acts[name][::2] for name in goal.layers}
        moved, still = acts[anchor][::2], acts[anchor][1::2]
        scores = goal.score(pictures, pairs)
        scores = scores - pull[pairs].to(scores) * _apart(moved, still.detach())
        # A gradient of their own, or the loop would take the photographs for dead.
        standing = -_apart(moved.detach(), still)
        return torch.stack([scores, standing], 1).flatten()

    return Objective(
        tuple(dict.fromkeys((*goal.layers, anchor))),
        2 * len(pull),
        f"{goal.text}, held by {anchor}",
        score,
        group=2,
    )


@dataclass(frozen=True)
class _FirstOfPairs(Adam):
    """Adam for the first picture of each pair; the second stands still."""

    def build(
        self, parameters: Tensor, lr: float, steps: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        optimizer, scheduler = super().build(parameters, lr, steps)

        def keep_photographs(*_: Any) -> None:
            assert parameters.grad is not None
            parameters.grad[1::2] = 0

        optimizer.register_step_pre_hook(keep_photographs)
        return optimizer, scheduler


def _balance(model: Model, goal: Objective, anchor: str, given: Tensor, seed: int) -> Tensor:
    """How much harder the goal pulls at each photograph than the anchor, (P,)."""
    noise = torch.randn(given.shape[1:], generator=torch.Generator().manual_seed(seed))
    ratios = []
    layers = tuple(dict.fromkeys((*goal.layers, anchor)))
    with reading(model, layers, "float32") as read:
        for row, one in enumerate(given[:, None]):
            with torch.no_grad():
                still = read(one)[anchor]
            x = (one + _PROBE * noise.to(one.device)).requires_grad_(True)
            acts = read(x)
            score = goal.score(acts, [row]).sum()
            (up,) = torch.autograd.grad(score, x, retain_graph=True)
            (back,) = torch.autograd.grad(_apart(acts[anchor], still).sum(), x)
            ratios.append(up.norm() / back.norm().clamp(min=1e-12))
    return torch.stack(ratios)


def _measured(
    model: Model, goal: Objective, anchor: str, given: Tensor, drawn: Tensor
) -> dict[str, Tensor]:
    (layer,) = goal.layers
    rows = range(len(given))
    before = goal({layer: each_alone(model, given, layer)}, rows)
    after = goal({layer: each_alone(model, drawn[:, 0], layer)}, rows)
    was, now = each_alone(model, given, anchor), each_alone(model, drawn[:, 0], anchor)
    moved = _apart(now, was) / _apart(was, torch.zeros_like(was)).clamp(min=1e-12)
    return {
        "score before": before[:, None],
        "score": after[:, None],
        "anchor distance": moved[:, None],
        "pixel distance": (drawn - given[:, None]).square().mean((2, 3, 4)).sqrt(),
        "class rank": ranks_kept(model, given, drawn),
    }
