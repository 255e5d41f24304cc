"""`attribute_layer`: what each unit and position of a layer adds to a logit or to a later unit.

By gradient times activation, and by integrated gradients from a layer of zeros; both are checked
against silencing each unit, and the second against completeness.

    Olah et al., "The Building Blocks of Interpretability", Distill 2018, for channel and spatial
        attribution
    Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz import results
from featviz.ablation.layer_attribution import METHODS, LayerAttribution
from featviz.data.from_python import Data
from featviz.data.labeled import read_batch
from featviz.errors import UserError, public
from featviz.models.frozen import frozen
from featviz.models.rest import Recorded, channel_axis, recorded_pass
from featviz.models.units import Unit, parse_unit
from featviz.types import BatchSize, Progress, Seed, Steps

if TYPE_CHECKING:
    from featviz.models.model import Model


@public
def attribute_layer(
    model: Model,
    pictures: Data,
    layer: str,
    *,
    target: int | str | None = None,
    steps: Steps = 64,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> LayerAttribution:
    """Attribute a logit, or a unit of a later layer, to the units and positions of a layer.

    Args:
        model: The model.
        pictures: What `as_pictures` takes; each is attributed by itself.
        layer: Alias or module path.
        target: A class by name or index; a unit as "conv5:12" (its mean over positions) or
            "conv5:12@6,6"; default: the class that the model predicts for each picture.
        steps: Of integrated gradients, along the straight line from zeros to the activations.
        batch_size: Pictures at once.
        seed: Of the interval of the rank correlation.
        progress: Called with (pictures done, all, text).

    Raises:
        UserError: An unknown layer or target, or one that is not behind the layer.

    Example:
        featviz.attribute_layer(model, "cat.jpg", "conv5", target="tabby").save("run/attribution")
    """
    started = time.perf_counter()
    place = model.layer(layer)
    unit = _unit(model, target)
    given = read_batch(model, pictures)
    parts: list[dict[str, Tensor]] = []
    done = 0
    with frozen(model):
        for images in given.pictures.to(model.device).split(batch_size):
            parts.append(_attribute(model, place.name, images, target, unit, steps))
            done += len(images)
            if progress is not None:
                progress(done, len(given.pictures), f"attribution to {place.name}")
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    names = model.class_names
    return LayerAttribution(
        origin=results.origin(
            model,
            parameters={"layer": place.name, "target": target, "steps": steps},
            started=started,
            data=given.data,
            seed=seed,
        ),
        model_name=model.name,
        layer=place.name,
        names=given.names,
        pictures=given.pictures.cpu(),
        targets=tuple(
            str(unit) if unit is not None else names[int(k)] for k in found["target"].tolist()
        ),
        maps={name: found[name] for name in METHODS},
        removed=found["removed"],
        scores=found["score"],
        zero_scores=found["zero"],
    )


def _unit(model: Model, target: int | str | None) -> Unit | None:
    """The unit of a later layer; None for a class."""
    if isinstance(target, str) and ":" in target:
        unit = parse_unit(model, target)
        return None if unit.layer == "logits" else unit
    model.need_classes()
    return None


def _attribute(
    model: Model,
    layer: str,
    images: Tensor,
    target: int | str | None,
    unit: Unit | None,
    steps: int,
) -> dict[str, Tensor]:
    """Of a batch: maps of the layer's shape, and what each unit's removal changes (N, C)."""
    recorded = recorded_pass(model, layer, images, to=None if unit is None else unit.layer)
    classes = _classes(model, recorded, target) if unit is None else torch.zeros(len(images)).long()
    index = classes[:, None].to(recorded.output.device)

    def score(output: Tensor) -> Tensor:
        """(N,) float64."""
        if unit is None:
            return output.double().gather(1, index)[:, 0]
        return _of_unit(output, unit).double()

    values = recorded.values
    found = {
        "gradient": values * _gradient(recorded, values, score),
        "integrated": values
        * sum(_gradient(recorded, values * ((step + 0.5) / steps), score) for step in range(steps))
        / steps,
    }
    with torch.no_grad():
        whole = score(recorded.output)
        nothing = torch.zeros_like(values)
        axis = channel_axis(values)
        removed = [
            score(recorded.run_unit(i, nothing.select(axis, i))) - whole
            for i in range(values.shape[axis])
        ]
        zero = score(recorded.run(nothing))
    found |= {"removed": torch.stack(removed, 1), "score": whole, "zero": zero, "target": classes}
    return {name: tensor.detach().cpu() for name, tensor in found.items()}


def _classes(model: Model, recorded: Recorded, target: int | str | None) -> Tensor:
    """(N,) the class of each picture."""
    if target is None:
        return recorded.output.argmax(1).cpu()
    name = target.partition(":")[2] or target if isinstance(target, str) else target
    return torch.full((len(recorded.values),), model.class_index(name))


def _of_unit(output: Tensor, unit: Unit) -> Tensor:
    """(N,): a unit's value at its position, or its mean over positions."""
    own = output.select(channel_axis(output), unit.index)
    if unit.position is not None:
        return own[:, unit.position[0], unit.position[1]]
    return own.flatten(1).mean(1) if own.dim() > 1 else own


def _gradient(recorded: Recorded, values: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.enable_grad():
        at = values.detach().requires_grad_(True)
        output = score(recorded.run(at)).sum()
        if not output.requires_grad:
            raise UserError("the target does not depend on the layer; take another one")
        try:
            return torch.autograd.grad(output, at)[0]
        except (RuntimeError, NotImplementedError) as error:
            if "memory" in str(error):
                raise
            raise UserError(
                "no gradient of the target reaches the layer (quantized layers have none); take "
                "a later layer, or the model before it was quantized"
            ) from None
