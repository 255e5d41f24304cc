"""`attribute`: which pixels the logit of a class depends on, by four methods of captum.

In: pictures (N, 3, H, W). Out: one map (N, H, W) a method (see `methods`). Each picture is worked
on by itself, at most `batch_size` views of it at once, so memory is bounded.

A map is a claim, not a fact. The deletion check gives a number for it: the class's probability
after the fifth of the picture with the highest values is replaced by the baseline, against the
same area, in the same pieces, moved to random positions.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

from featviz import results
from featviz.arguments import Bounds
from featviz.attribution import methods as captum_methods
from featviz.attribution.grad_cam import grad_cam, grad_cam_layer
from featviz.attribution.methods import METHODS
from featviz.attribution.result import Attributed
from featviz.checkpoints import Arrays, Checkpoint, open_checkpoint
from featviz.data.from_python import Data
from featviz.data.labeled import read_batch
from featviz.engine import Piece, map_pieces
from featviz.errors import UserError, nearest, public
from featviz.indices import all_items
from featviz.models.frozen import frozen
from featviz.models.layers import need_gradients
from featviz.types import BatchSize, Engine, Progress, Seed, Steps
from featviz.wording import counted, not_one_each

if TYPE_CHECKING:
    from featviz.models.model import Model

BASELINES = {"mean": "the mean color", "black": "black", "white": "white"}
LARGE_ERROR = 0.05
"""relative completeness error of integrated gradients above which a result warns"""


@public
def attribute(
    model: Model,
    pictures: Data,
    *,
    target: int | str | Sequence[int | str] | None = None,
    methods: Sequence[str] = tuple(METHODS),
    layer: str | None = None,
    baseline: str | float = "mean",
    steps: Steps = 64,
    window: Annotated[float, Bounds(0, 1, above=True)] = 1 / 8,
    stride: Annotated[float, Bounds(0, 1, above=True)] = 1 / 16,
    batch_size: BatchSize = 32,
    names: Sequence[str] | None = None,
    seed: Seed = 0,
    checkpoint: str | Path | Checkpoint | None = None,
    engine: Engine = "here",
    progress: Progress | None = None,
) -> Attributed:
    """Maps of what a class's logit depends on, one a method and picture.

    Only the logit of the class is explained, not the competition with other classes.

    Args:
        model: A classifier.
        pictures: What `as_pictures` takes; float tensors (N, C, H, W) or (C, H, W) keep their size.
        target: A class (index or name) for all pictures, or one for each; default: the model's
            prediction.
        methods: Any of "saliency", "integrated_gradients", "grad_cam", "occlusion".
        layer: Of Grad-CAM; default: the last place where the whole signal is a map, or tokens that
            are one (the result names it).
        baseline: "mean" (the color that the network sees as 0), "black", "white" or a gray value
            in [0, 1]: start of integrated gradients, cover of occlusion and of deleted areas. What
            has the baseline's color gets nothing from integrated gradients, so try another where
            that matters.
        steps: Of integrated gradients; more make the completeness error smaller.
        window: Side of occlusion's square, as a fraction of the picture's side, above 0 to 1.
        stride: Step of the square, as such a fraction; smaller ones show more detail and take
            more passes, (1 / stride)^2 a picture.
        batch_size: Views of a picture at once.
        names: Of the pictures, for captions.
        seed: Of the random areas in the deletion check.
        checkpoint: A folder that keeps finished pictures; the same call goes on from there.
        engine: "here", or "ray": a Ray cluster works on several pictures at a time.
        progress: Called with maps done, maps in all and what is being done.

    Returns:
        The maps, the completeness error of integrated gradients and the deletion check.

    Raises:
        UserError: A method, class, layer or baseline is unknown, or a number out of range.

    Example:
        picture = featviz.read_picture("cat.jpg", model.preprocessing)
        featviz.attribute(model, picture, target="tabby").save("run/cat")
    """
    started = time.perf_counter()
    given = read_batch(model, pictures)
    batch, names = given.pictures, tuple(names or given.names)
    methods = check_methods(methods)
    model.need_classes()
    if set(methods) != {"occlusion"}:
        need_gradients(model, ["logits"])
    side = max(1, round(window * batch.shape[-1]))
    maker = _Maker(
        model,
        methods,
        layer=grad_cam_layer(model, layer) if "grad_cam" in methods else None,
        cover=baseline_color(model, baseline).expand_as(batch[:1]),
        steps=steps,
        window=side,
        stride=min(max(1, round(stride * batch.shape[-1])), side),
        batch_size=batch_size,
        seed=seed,
    )
    with frozen(model), torch.no_grad():
        logits = torch.cat([model(picture[None]) for picture in batch])
        base = model(maker.cover)[0]
    targets = _targets(model, target, logits)
    parameters = {
        "pictures": list(names),
        "targets": targets,
        "methods": list(methods),
        "layer": maker.layer,
        "baseline": baseline,
        "steps": steps,
        "window": maker.window,
        "stride": maker.stride,
        "batch_size": batch_size,
    }
    digest = hashlib.sha256(batch.cpu().numpy().tobytes()).hexdigest()
    job = parameters | {"model": model.record(), "pictures": digest, "seed": seed}
    pieces = [
        Piece(f"picture-{i:05}", (batch[i : i + 1].clone(), c), len(methods))
        for i, c in enumerate(targets)
    ]
    total, device = len(methods) * len(batch), model.device.type
    with open_checkpoint(checkpoint, job, total=total, unit="maps", engine=engine) as kept:
        text = "attributions"
        made = [*map_pieces(maker, pieces, kept, device=device, progress=progress, text=text)]
    maps, checks = (
        torch.stack([torch.from_numpy(one[name]) for one in made], 1) for name in ("maps", "checks")
    )
    by_method = dict(zip(methods, maps, strict=True))
    left, moved = checks.unbind(2)
    gain = (logits - base)[torch.arange(len(batch)), torch.tensor(targets)].cpu()
    relative, error = _completeness(by_method.get("integrated_gradients"), gain)
    result = Attributed(
        origin=results.origin(model, parameters=parameters, started=started, seed=seed),
        model_name=model.name,
        classes=model.class_names,
        names=names,
        pictures=batch.cpu(),
        targets=tuple(targets),
        probabilities=logits.softmax(1).cpu(),
        maps=by_method,
        layer=maker.layer,
        baseline=BASELINES.get(str(baseline), f"gray {baseline}"),
        completeness=relative,
        completeness_logits=error,
        deletion=dict(zip(methods, left, strict=True)),
        deletion_random=dict(zip(methods, moved, strict=True)),
    )
    return replace(result, warnings=tuple(_warnings(result)))


@dataclass(frozen=True)
class _Maker:
    """What is done with each picture: its map by every method, and the deletion check of each."""

    model: Model
    methods: tuple[str, ...]
    layer: str | None
    cover: Tensor
    """(1, C, H, W) of the baseline's color"""
    steps: int
    window: int
    """pixels of the side of occlusion's square"""
    stride: int
    batch_size: int
    seed: int

    def __call__(self, work: tuple[Tensor, int], report: Callable[[int], None]) -> Arrays:
        x, target = work
        maps, checks = [], []
        with frozen(self.model):
            for done, method in enumerate(self.methods):
                report(done)
                maps.append(self._map(method, x, target).detach().cpu())
                checks.append(
                    captum_methods.deletion(
                        self.model,
                        x,
                        target,
                        self.cover,
                        maps[-1],
                        seed=self.seed,
                        batch_size=self.batch_size,
                    )
                )
        return {"maps": torch.stack(maps).numpy(), "checks": torch.tensor(checks).numpy()}

    def _map(self, method: str, x: Tensor, target: int) -> Tensor:
        """(H, W)."""
        model, cover, views = self.model, self.cover, self.batch_size
        if method == "integrated_gradients":
            return captum_methods.integrated_gradients(model, x, target, cover, self.steps, views)
        if method == "saliency":
            return captum_methods.saliency(model, x, target)
        if method == "grad_cam":
            assert self.layer is not None
            return grad_cam(model, x, target, self.layer)
        return captum_methods.occlusion(model, x, target, cover, self.window, self.stride, views)


def _completeness(maps: Tensor | None, gain: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """By how much maps (N, H, W) miss the gain (N,) that they must add up to: by it, and in logits.

    Where nothing is to be gained, any error is infinitely large.
    """
    if maps is None:
        return None, None
    error = maps.sum((1, 2)) - gain
    return torch.where(error == 0, 0.0, error.abs() / gain.abs()), error


def check_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods without doubles. Raises UserError that names every unknown one."""
    wanted = tuple(dict.fromkeys(m.strip().replace("-", "_") for m in methods))
    unknown = [m for m in wanted if m not in METHODS]
    if unknown or not wanted:
        hint = nearest(unknown[0], METHODS) if unknown else ""
        named = f"unknown method {', '.join(unknown)}{hint}" if unknown else "no method was named"
        raise UserError(f"{named} (there are {', '.join(METHODS)})")
    return wanted


def baseline_color(model: Model, baseline: str | float) -> Tensor:
    """(1, C, 1, 1) in [0, 1]. Raises UserError for an unknown word or a value out of range."""
    if baseline == "mean":
        return model.mean.clamp(0, 1)[None]
    gray = {"black": 0.0, "white": 1.0}.get(str(baseline))
    if gray is None:
        try:
            gray = float(baseline)
        except ValueError:
            hint = nearest(str(baseline), BASELINES)
            raise UserError(
                f"unknown baseline {baseline!r}{hint} (mean, black, white or 0 to 1)"
            ) from None
    if not 0 <= gray <= 1:
        raise UserError(f"baseline {gray:g} is out of range; a gray value is 0 to 1")
    return torch.full((1, model.preprocessing.channels, 1, 1), gray, device=model.device)


def _targets(
    model: Model, target: int | str | Sequence[int | str] | None, logits: Tensor
) -> list[int]:
    if target is None:
        return [int(c) for c in logits.argmax(1)]
    wanted = [model.class_index(one) for one in all_items(target, "class")]
    if len(wanted) == 1:
        return wanted * len(logits)
    if len(wanted) != len(logits):
        raise UserError(not_one_each(len(wanted), "target", len(logits)))
    return wanted


def _warnings(result: Attributed) -> list[str]:
    found = []
    count = len(result.names)
    all_of = counted(count, "picture")
    if result.completeness is not None and result.completeness_logits is not None:
        bad = int((result.completeness > LARGE_ERROR).sum())
        worst = int(result.completeness.argmax())
        if bad:
            found.append(
                f"integrated gradients are incomplete for {bad} of {all_of}: for "
                f"{result.names[worst]} the map misses its sum by "
                f"{100 * float(result.completeness[worst]):.0f}% "
                f"({float(result.completeness_logits[worst]):+.2g} logits); take more steps or "
                "another baseline"
            )
    unlikely = int((result.target_probabilities < 0.01).sum())
    if unlikely:
        found.append(
            f"the explained class has a probability below 1% in {unlikely} of {all_of}: "
            "there is little for the maps to explain"
        )
    for method, values in result.maps.items():
        title = METHODS[method].title
        empty = int((values.flatten(1).abs().amax(1) == 0).sum())
        if empty:
            found.append(f"{title} is zero everywhere in {counted(empty, 'picture')}")
        worse = int((result.deletion[method] > result.deletion_random[method]).sum())
        if 2 * worse > count:
            found.append(
                f"{title} highlights areas that matter less than the same areas elsewhere in "
                f"{worse} of {all_of} (deletion check)"
            )
    return found
