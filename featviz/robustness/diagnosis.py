"""What changes inside a network between clean pictures and their adversarial copies.

In: a model, pictures, their adversarial copies, and reference pictures with their classes. Out:
tensors, without figures. Four measurements:

- how far each layer's activation moves (`activation_change`), beside random noise and a Gaussian
  blur of the same L2 norm
- from which layer on it is nearer to the mean of the predicted class (`nearness`, `first_flips`)
- which units carry the change of the margin (`unit_contributions`)
- which reference pictures are nearest on the way from clean to adversarial (`feature_path`)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from featviz.attacks import projections
from featviz.corruptions.apply import corrupt
from featviz.errors import UserError
from featviz.models.frozen import frozen
from featviz.models.layers import activations, tap

if TYPE_CHECKING:
    from featviz.models.model import Layer, Model

KINDS = ("adversarial", "noise", "blur")
CORRUPTION = ("gaussian_blur", 3)
"""what "blur" is, before it is scaled to the norm of the adversarial change"""
MOST_LAYERS = 20
POINTS = 9
"""on the way from the clean to the adversarial picture"""
_PASSIVE = ("Dropout", "Flatten", "Sequential", "Identity")


class Reference(NamedTuple):
    """Pictures that represent classes; none of those that are diagnosed."""

    pictures: Tensor
    """(M, 3, S, S) in [0, 1]"""
    labels: Tensor
    """(M,)"""

    def shows(self, *classes: int) -> bool:
        """Whether there are pictures of every one of the classes."""
        return set(classes) <= set(self.labels.tolist())


class ActivationChange(NamedTuple):
    """One kind of change, layer by layer; rows are pictures, columns layers."""

    relative: Tensor
    """(N, L) norm of the activation's change over the norm of the activation"""
    cosine: Tensor
    """(N, L) between the activations before and after"""
    switched: Tensor
    """(N, L) share of ReLU units switched on or off; nan for layers that are no ReLU"""
    nearness: Tensor
    """(N, L) from -1 (at the predicted class's mean) to 1 (at the label's); nan if unknown"""
    input_relative: Tensor
    """(N,) the same as `relative`, of the picture"""

    @property
    def gain(self) -> Tensor:
        """(L,) median of the layer's relative change over the picture's."""
        return self.gains.median(0).values

    @property
    def gains(self) -> Tensor:
        """(N, L) the layer's relative change over the picture's."""
        return self.relative / self.input_relative[:, None].clamp(min=1e-300)


@dataclass(frozen=True)
class LayerDiagnosis:
    """All pictures, layer by layer."""

    layers: tuple[str, ...]
    changes: Mapping[str, ActivationChange]
    """by the kind of change, see `KINDS`"""
    clean_nearness: Tensor
    """(N, L) nearness of the clean pictures"""
    flips: tuple[str | None, ...]
    """for each picture the first layer that is nearer to the predicted class and stays so"""

    @property
    def placed(self) -> Tensor:
        """(N,) bool: the reference shows both of the picture's classes."""
        return self.clean_nearness.isfinite().all(1)


@dataclass(frozen=True)
class UnitContribution:
    """What one unit contributes to the change of the margin."""

    unit: int
    logits: float
    before: Tensor
    """its activation on the clean picture: (H, W), or ()"""
    after: Tensor
    image: Tensor | None = None
    """(3, h, w) synthetic image that activates the unit"""


@dataclass(frozen=True)
class MarginChange:
    """The change of the margin z_predicted - z_label, divided among the units of one layer."""

    layer: str
    named: str
    """the layer by which its units are named: for a ReLU the layer before it"""
    change: float
    """of the margin, in logits"""
    explained: float
    """the sum of the contributions of all units of the layer"""
    units: int
    share: float
    """the sum over `top`, over the sum of all contributions with the sign of the change"""
    top: tuple[UnitContribution, ...]

    @property
    def has_maps(self) -> bool:
        """Whether the units have maps, or one value each."""
        return all(unit.before.dim() == 2 for unit in self.top)


@dataclass(frozen=True)
class FeaturePath:
    """The straight line from clean to adversarial, seen in the last layer before the logits."""

    layer: str
    points: Tensor
    """(P,) from 0 (clean) to 1 (adversarial)"""
    xy: Tensor
    """(P, 2): from the label's mean (0) to the predicted class's (1), and across, in one unit"""
    reference_xy: Tensor
    """(M, 2) of the reference pictures"""
    neighbors: Tensor
    """(P, k) rows of the reference, nearest first"""
    predictions: Tensor
    """(P,) the model's class"""


@dataclass(frozen=True)
class PictureDiagnosis:
    """One picture in detail."""

    row: int
    original: Tensor
    adversarial: Tensor
    label: int
    predicted: int
    margins: tuple[MarginChange, ...]
    path: FeaturePath | None
    attributions: Mapping[str, Tensor]
    """class -> (2, H, W): attribution on the clean and on the adversarial picture"""
    flip: str | None


def diagnose_layers(
    model: Model,
    pictures: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    predicted: Tensor,
    reference: Reference | None = None,
    *,
    seed: int = 0,
    batch_size: int = 16,
) -> LayerDiagnosis:
    """How pictures and their adversarial copies (N, 3, S, S) differ in every compared layer.

    Args:
        model: The classifier.
        pictures: Clean pictures.
        adversarial: Their adversarial copies.
        labels: (N,) classes of the pictures.
        predicted: (N,) classes of the adversarial copies.
        reference: Pictures of these classes. Nearness is nan for a picture of which it lacks a
            class.
        seed: Of the noise.
        batch_size: Pictures that the model computes at once.

    Raises:
        UserError: There is no picture.
    """
    if not len(pictures):
        raise UserError("no picture was fooled, so there is nothing to compare")
    layers = compared_layers(model)
    x, moved = pictures.to(model.device), adversarial.to(model.device)
    changed = {"adversarial": moved} | equal_norm_changes(x, moved, seed=seed) | {"clean": x}
    with frozen(model):
        means = None
        if reference is not None:
            found = class_means(model, reference, layers, batch_size=batch_size)
            means = [{la: m[classes] for la, m in found.items()} for classes in (labels, predicted)]
        changes = {
            kind: activation_change(model, x, to, layers, means=means, batch_size=batch_size)
            for kind, to in changed.items()
        }
    clean = changes.pop("clean").nearness
    flips = first_flips(clean, changes["adversarial"].nearness, layers)
    return LayerDiagnosis(tuple(layers), changes, clean, tuple(flips))


def _computing(model: Model) -> list[Layer]:
    """The model's layers without containers, dropout and reshaping."""
    return [la for la in model.layers.values() if la.path and not la.kind.startswith(_PASSIVE)]


def compared_layers(model: Model) -> list[str]:
    """The layers that are compared: those with aliases, else at most 20 spread over the network."""
    layers = _computing(model)
    named = [la.name for la in layers if la.name in model.aliases]
    names = named if len(named) >= 4 else [la.name for la in layers]
    if len(names) > MOST_LAYERS:
        names = [names[round(i * (len(names) - 1) / (MOST_LAYERS - 1))] for i in range(MOST_LAYERS)]
    return names


def last_hidden_layer(model: Model) -> str:
    """relu7 where a model has it, else its last layer before the logits. Raises UserError."""
    if "relu7" in model.aliases:
        return "relu7"
    hidden = [la.name for la in _computing(model) if la.units != len(model.classes)]
    if not hidden:
        raise UserError(
            f"{model.name} has no layer before its logits, so there is no feature space"
        )
    return hidden[-1]


def equal_norm_changes(
    pictures: Tensor, adversarial: Tensor, *, seed: int = 0
) -> dict[str, Tensor]:
    """Pictures under noise and blur of the same L2 norm as the adversarial change of each.

    Values are clipped to [0, 1] and the rest is lengthened, so that norms agree within 0.1% unless
    the corruption cannot reach them (a uniform picture).
    """
    wanted = projections.l2_distance(pictures, adversarial)
    streams = projections.picture_streams(pictures, seed, 5)
    noise = torch.stack([torch.randn(pictures.shape[1:], generator=s) for s in streams])
    blur = corrupt(pictures, *CORRUPTION, seed=seed) - pictures
    changes = {"noise": noise.to(pictures), "blur": blur}
    return {name: _to_norm(pictures, change, wanted) for name, change in changes.items()}


def _to_norm(pictures: Tensor, change: Tensor, wanted: Tensor) -> Tensor:
    moved, factor = pictures, torch.ones_like(wanted)
    for _ in range(8):
        moved = (pictures + projections.column(factor).to(pictures.dtype) * change).clamp(0, 1)
        norm = projections.l2_distance(pictures, moved)
        factor = factor * torch.where(norm > 0, wanted / norm.clamp(min=1e-300), 1.0)
    return moved


def activation_change(
    model: Model,
    pictures: Tensor,
    changed: Tensor,
    layers: Sequence[str],
    *,
    means: Sequence[Mapping[str, Tensor]] | None = None,
    batch_size: int = 16,
) -> ActivationChange:
    """How a change of pictures (N, 3, S, S) moves the activations of each layer.

    means: for the label and for the predicted class of each picture, layer -> mean pooled
    activations (N, units), see `class_means`
    """
    batches = []
    for start in range(0, len(pictures), batch_size):
        rows = slice(start, start + batch_size)
        with torch.no_grad():
            before = activations(model, pictures[rows], layers)
            after = activations(model, changed[rows], layers)
        by_layer = []
        for name in layers:
            h, g = (values[name].double().flatten(1) for values in (before, after))
            by_layer.append(_layer_change(h, g, model.layer(name).kind == "ReLU"))
            if means is not None:
                label, predicted = (m[name][rows] for m in means)
                by_layer[-1][:, 3] = nearness(pooled(after[name]), label, predicted)
        batches.append(torch.stack(by_layer, 1).cpu())  # (n, L, 4)
    norm = pictures.double().flatten(1).norm(dim=1).clamp(min=1e-300)
    size = projections.l2_distance(pictures, changed) / norm
    relative, cosine, switched, near = torch.cat(batches).unbind(2)
    return ActivationChange(relative, cosine, switched, near, size.cpu())


def _layer_change(h: Tensor, g: Tensor, relu: bool) -> Tensor:
    """(n, 4): relative change, cosine, share of switched units, and room for the nearness."""
    norm = h.norm(dim=1)
    relative = (g - h).norm(dim=1) / norm.clamp(min=1e-300)
    cosine = (h * g).sum(1) / (norm * g.norm(dim=1)).clamp(min=1e-300)
    unknown = torch.full_like(norm, math.nan)
    switched = ((h > 0) != (g > 0)).double().mean(1) if relu else unknown
    return torch.stack([relative, cosine, switched, unknown], 1)


def pooled(values: Tensor) -> Tensor:
    """Activations (N, units): the mean over positions of (N, C, H, W) or (N, tokens, C)."""
    if values.dim() == 4:
        return values.mean((2, 3))
    return values.mean(1) if values.dim() == 3 else values


def nearness(values: Tensor, label_mean: Tensor, predicted_mean: Tensor) -> Tensor:
    """(N,) where values (N, units) lie between two means: 1 at the label's, -1 at the predicted's.

    (distance to the predicted class - distance to the label) / (their sum), in float64.
    """
    to_label, to_predicted = (
        (values.double() - mean.double().to(values.device)).norm(dim=1)
        for mean in (label_mean, predicted_mean)
    )
    place: Tensor = (to_predicted - to_label) / (to_predicted + to_label).clamp(min=1e-300)
    return place


def class_means(
    model: Model, reference: Reference, layers: Sequence[str], *, batch_size: int = 16
) -> dict[str, Tensor]:
    """For each layer the mean pooled activation of every class, (classes, units); nan without."""
    counts = torch.bincount(reference.labels, minlength=len(model.classes)).double()
    means = {}
    for name, values in _features(model, reference.pictures, layers, batch_size).items():
        sums = torch.zeros(len(counts), values.shape[1], dtype=torch.float64)
        means[name] = sums.index_add_(0, reference.labels, values) / counts[:, None]
    return means


def _features(
    model: Model, pictures: Tensor, layers: Sequence[str], batch_size: int = 16
) -> dict[str, Tensor]:
    """For each layer (N, units) float64 pooled activations on the CPU."""
    batches = []
    for batch in pictures.split(batch_size):
        with torch.no_grad():
            batches.append(activations(model, batch.to(model.device), layers))
    return {la: torch.cat([pooled(b[la].double()).cpu() for b in batches]) for la in layers}


def first_flips(clean: Tensor, adversarial: Tensor, layers: Sequence[str]) -> list[str | None]:
    """For each picture the layer from which on the adversarial copy is nearer to its prediction.

    clean, adversarial: (N, L) nearness. The layer is the first of the unbroken run, up to the last
    layer, in which the clean picture is nearer to its label and the adversarial one is not.
    """
    kept = ((clean > 0) & (adversarial < 0)).flip(1).long().cumprod(1).sum(1)
    return [layers[len(layers) - run] if run else None for run in kept.tolist()]


def unit_contributions(
    model: Model, clean: Tensor, adversarial: Tensor, label: int, predicted: int, layer: str
) -> tuple[Tensor, float, dict[str, Tensor]]:
    """Each unit's contribution to the change of the margin between two pictures (3, S, S).

    With h and h' the activations of the layer and g, g' the gradients of the margin there, a unit's
    contribution is the sum over its positions of (h' - h) (g + g') / 2. The contributions add up to
    the change where the network behind the layer is linear or quadratic on the way.

    Returns ((units,) contributions in float64, the change in logits, {"before", "after"}
    activations).
    """
    found = []
    with tap(model, [layer]) as taken:
        for picture in (clean, adversarial):
            leaf = picture[None].to(model.device).clone().requires_grad_(True)
            with torch.enable_grad():
                logits = model(leaf)
                margin = logits[0, predicted].double() - logits[0, label].double()
                h = taken[layer]
                (gradient,) = torch.autograd.grad(margin, h)
            found.append((h.detach()[0], gradient[0], float(margin.detach())))
    (h, g, before), (h2, g2, after) = found
    parts = (h2.double() - h.double()) * (g.double() + g2.double()) / 2
    if parts.dim() > 1:
        parts = parts.sum((1, 2)) if parts.dim() == 3 else parts.sum(0)
    return parts.cpu(), after - before, {"before": h.cpu(), "after": h2.cpu()}


def margin_change(
    model: Model,
    clean: Tensor,
    adversarial: Tensor,
    label: int,
    predicted: int,
    layer: str,
    count: int,
) -> MarginChange:
    """The `count` units of a layer that contribute most to the change of the margin."""
    parts, change, maps = unit_contributions(model, clean, adversarial, label, predicted, layer)
    same = parts * math.copysign(1.0, change)
    top = same.argsort(descending=True, stable=True)[:count].tolist()
    total = float(same.clamp(min=0).sum())
    if len(model.layer(layer).shape) != 3:
        maps = {key: values.movedim(-1, 0) for key, values in maps.items()}
    return MarginChange(
        layer=layer,
        named=pre_activation_layer(model, layer),
        change=change,
        explained=float(parts.sum()),
        units=len(parts),
        share=float(same[top].clamp(min=0).sum()) / total if total else 0.0,
        top=tuple(
            UnitContribution(unit, float(parts[unit]), maps["before"][unit], maps["after"][unit])
            for unit in top
        ),
    )


def pre_activation_layer(model: Model, layer: str) -> str:
    """The layer whose values a ReLU clips, which has the same units; another layer is itself."""
    order = list(model.layers.values())
    at = next(i for i, la in enumerate(order) if la.name == model.layer(layer).name)
    place, before = order[at], order[max(at - 1, 0)]
    clips = place.kind == "ReLU" and before.kind in {"Conv2d", "Linear", "BatchNorm2d"}
    return before.name if clips and before.shape == place.shape else place.name


def contribution_layers(model: Model) -> list[str]:
    """The layers whose units are listed: the last convolution (its ReLU), and before the logits."""
    order = [la for la in model.layers.values() if la.path]
    last = last_hidden_layer(model)
    spatial = [i for i, la in enumerate(order) if la.kind == "Conv2d" and la.spatial]
    if not spatial:
        return [last]
    convolution, after = order[spatial[-1]], order[min(spatial[-1] + 1, len(order) - 1)]
    relu = after.kind == "ReLU" and after.shape == convolution.shape
    return list(dict.fromkeys([(after if relu else convolution).name, last]))


def feature_path(
    model: Model,
    clean: Tensor,
    adversarial: Tensor,
    label: int,
    predicted: int,
    reference: Reference,
    *,
    k: int = 5,
) -> FeaturePath:
    """The line from a clean to an adversarial picture (3, S, S) in the last hidden layer.

    Neighbors are the reference pictures of highest cosine there. The plane of `xy` has the mean of
    the label's class at (0, 0) and that of the predicted one at (1, 0); across is the direction in
    which the two classes vary most besides.
    """
    layer = last_hidden_layer(model)
    vectors = _features(model, reference.pictures, [layer])[layer]
    points = torch.linspace(0, 1, POINTS)
    way = torch.stack([clean + float(t) * (adversarial - clean) for t in points])
    space = _features(model, way, [layer])[layer]
    with torch.no_grad():
        predictions = model(way.to(model.device)).argmax(1).cpu()
    cosines = F.normalize(space, dim=1) @ F.normalize(vectors, dim=1).T
    rows = cosines.argsort(dim=1, descending=True, stable=True)[:, :k]
    own, other = reference.labels == label, reference.labels == predicted
    start = vectors[own].mean(0)
    axis = vectors[other].mean(0) - start
    length = axis.norm().clamp(min=1e-12)
    axis = axis / length

    both = vectors[own | other] - start
    both = both - torch.outer(both @ axis, axis)
    across = torch.linalg.svd(both - both.mean(0), full_matrices=False)[2][0]
    across = across * torch.sign(across[across.abs().argmax()])  # the sign of an SVD is arbitrary
    basis = torch.stack([axis, across], 1) / length

    def plane(values: Tensor) -> Tensor:
        return torch.matmul(values - start, basis)

    return FeaturePath(layer, points, plane(space), plane(vectors), rows, predictions)
