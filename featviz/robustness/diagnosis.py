"""What changes inside: a clean and an adversarial picture, followed through the network.

In: a model, pictures, what an attack made of them, and reference pictures with their classes. Out:
`Inside`, drawn by `inside`. Four questions, each beside what noise and a natural corruption of the
same L2 size do:

- how far does each layer's activation move? (`compare`: relative length, cosine, switched ReLUs)
- where does the false class take over? (`nearness`: mean activations of the two classes)
- which units carry the change of the margin? (`margin_shares`: a first-order account of each unit,
  with what it leaves unexplained; in the last layer before the logits nothing is left)
- which way does the picture go through the space before the logits? (`follow`: its nearest
  reference pictures at points between clean and adversarial)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from featviz.attacks import projections
from featviz.corruptions.apply import corrupt
from featviz.embedding.extract import default_layer, embed_batch
from featviz.embedding.pieces import pool
from featviz.errors import UserError
from featviz.models.frozen import frozen
from featviz.models.layers import activations, tap

if TYPE_CHECKING:
    from featviz.models.model import Model

KINDS = ("adversarial", "noise", "blur")
CORRUPTION = ("gaussian_blur", 3)
"""what "blur" is, before it is brought to the size of the adversarial change"""
MOST_LAYERS = 20
POINTS = 9
"""on the way from the clean to the adversarial picture"""
Progress = Callable[[int, int, str], None]


class Reference(NamedTuple):
    """Pictures that say what classes look like inside; none of those that are diagnosed."""

    pictures: Tensor
    """(M, 3, S, S) in [0, 1]"""
    labels: Tensor
    """(M,)"""


@dataclass(frozen=True)
class Comparison:
    """One kind of change, layer by layer; rows are pictures, columns layers."""

    relative: Tensor
    """(N, L) length of the activation's change over its own length"""
    cosine: Tensor
    """(N, L) between the activations before and after"""
    switched: Tensor
    """(N, L) share of ReLU units that went on or off; nan for layers that are no ReLU"""
    input_relative: Tensor
    """(N,) the same as `relative`, of the picture"""
    nearer: Tensor
    """(N, L) from -1 (at the false class's mean) to 1 (at the own): nan without reference"""


@dataclass(frozen=True)
class UnitShare:
    """What one unit adds to the change of the margin."""

    unit: int
    logits: float
    """its part of the change of z_false - z_own"""
    before: Tensor
    """its activation on the clean picture: (H, W), or ()"""
    after: Tensor
    image: Tensor | None = None
    """(3, h, w) synthetic image that the unit likes most"""


@dataclass(frozen=True)
class Account:
    """The change of the margin z_false - z_own, divided among the units of one layer."""

    layer: str
    named: str
    """the layer by whose name its units go: a ReLU's are those of the layer before it"""
    change: float
    """of the margin, in logits"""
    explained: float
    """the sum over all units of the layer"""
    units: int
    share: float
    """what the units listed add up to, over what all that push the same way add up to"""
    top: tuple[UnitShare, ...]


@dataclass(frozen=True)
class Path:
    """The picture's way through the space of the last layer before the logits."""

    layer: str
    points: Tensor
    """(P,) from 0 (clean) to 1 (adversarial)"""
    xy: Tensor
    """(P, 2): along own mean (0) to false mean (1), and across, in the same unit"""
    reference_xy: Tensor
    """(M, 2) of the reference pictures"""
    neighbors: Tensor
    """(P, k) rows of the reference, nearest first"""
    answers: Tensor
    """(P,) the model's class"""


@dataclass(frozen=True)
class Portrait:
    """One picture, shown in full."""

    row: int
    original: Tensor
    adversarial: Tensor
    label: int
    predicted: int
    accounts: tuple[Account, ...]
    path: Path | None
    attributions: Mapping[str, Tensor]
    """class -> (2, H, W): evidence on the clean and on the adversarial picture"""
    flip: str | None
    """the first layer that is nearer to the false class and stays so; None where none is"""


def shown_layers(model: Model) -> list[str]:
    """The layers that are compared: those with names of their own, else some spread over the net.

    Containers, dropout and reshaping are left out.
    """
    passive = ("Dropout", "Flatten", "Sequential", "Identity")
    useful = [la for la in model.layers.values() if la.path and not la.kind.startswith(passive)]
    named = [la.name for la in useful if la.name in model.aliases]
    names = named if len(named) >= 4 else [la.name for la in useful]
    if len(names) > MOST_LAYERS:
        names = [names[round(i * (len(names) - 1) / (MOST_LAYERS - 1))] for i in range(MOST_LAYERS)]
    return names


def equal_changes(pictures: Tensor, adversarial: Tensor, *, seed: int = 0) -> dict[str, Tensor]:
    """Noise and a blur of the same L2 length as the adversarial change, picture by picture.

    pictures, adversarial: (N, 3, S, S). What leaves [0, 1] is cut and the rest lengthened, so that
    lengths agree within a per mille unless the corruption cannot reach it (a flat picture).
    """
    wanted = projections.l2_distance(pictures, adversarial)
    noise = torch.stack(
        [
            torch.randn(
                p.shape, generator=projections.generator(projections.picture_key(p.cpu(), seed), 5)
            )
            for p in pictures
        ]
    ).to(pictures)
    blurred = corrupt(pictures, *CORRUPTION, seed=seed) - pictures
    return {
        name: _to_length(pictures, change, wanted)
        for name, change in (("noise", noise), ("blur", blurred))
    }


def _to_length(pictures: Tensor, change: Tensor, wanted: Tensor) -> Tensor:
    moved, factor = pictures, torch.ones_like(wanted)
    for _ in range(8):
        moved = (pictures + projections.column(factor).to(pictures.dtype) * change).clamp(0, 1)
        length = projections.l2_distance(pictures, moved)
        factor = factor * torch.where(length > 0, wanted / length.clamp(min=1e-300), 1.0)
    return moved


def compare(
    model: Model,
    pictures: Tensor,
    changed: Tensor,
    layers: Sequence[str],
    *,
    own: Mapping[str, Tensor] | None = None,
    false: Mapping[str, Tensor] | None = None,
    batch_size: int = 16,
) -> Comparison:
    """How a change of pictures (N, 3, S, S) moves the activations of each layer.

    own, false: for each layer the mean pooled activations of the right and the false class of each
        picture, (N, units); see `class_means`
    """
    relative: list[Tensor] = []
    cosine: list[Tensor] = []
    switched: list[Tensor] = []
    nearer: list[Tensor] = []
    for start in range(0, len(pictures), batch_size):
        cut = slice(start, start + batch_size)
        with torch.no_grad():
            before = activations(model, pictures[cut], layers)
            after = activations(model, changed[cut], layers)
        rows: list[list[Tensor]] = [[], [], [], []]
        for name in layers:
            h, g = before[name].double().flatten(1), after[name].double().flatten(1)
            length = h.norm(dim=1)
            rows[0].append((g - h).norm(dim=1) / length.clamp(min=1e-300))
            rows[1].append((h * g).sum(1) / (length * g.norm(dim=1)).clamp(min=1e-300))
            relu = model.layer(name).kind == "ReLU"
            on = ((h > 0) != (g > 0)).double().mean(1)
            rows[2].append(on if relu else torch.full_like(on, math.nan))
            if own is None or false is None:
                rows[3].append(torch.full_like(on, math.nan))
            else:
                rows[3].append(
                    nearness(pool(after[name], model.layer(name)), own[name][cut], false[name][cut])
                )
        for kept, made in zip((relative, cosine, switched, nearer), rows, strict=True):
            kept.append(torch.stack(made, 1).cpu())
    length = pictures.double().flatten(1).norm(dim=1)
    size = projections.l2_distance(pictures, changed) / length.clamp(min=1e-300)
    return Comparison(
        torch.cat(relative), torch.cat(cosine), torch.cat(switched), size.cpu(), torch.cat(nearer)
    )


def nearness(values: Tensor, own: Tensor, false: Tensor) -> Tensor:
    """(N,) where values (N, units) lie between two means: 1 at `own`, -1 at `false`, 0 halfway.

    It is (distance to false - distance to own) / (their sum), in float64.
    """
    to_own = (values.double() - own.double().to(values.device)).norm(dim=1)
    to_false = (values.double() - false.double().to(values.device)).norm(dim=1)
    place: Tensor = (to_false - to_own) / (to_false + to_own).clamp(min=1e-300)
    return place


def class_means(
    model: Model, reference: Reference, layers: Sequence[str], *, batch_size: int = 16
) -> dict[str, Tensor]:
    """For each layer the mean pooled activation of every class, (classes, units); nan without."""
    count = len(model.classes)
    sums = {
        name: torch.zeros(count, model.layer(name).units, dtype=torch.float64) for name in layers
    }
    for start in range(0, len(reference.pictures), batch_size):
        cut = slice(start, start + batch_size)
        with torch.no_grad():
            found = activations(model, reference.pictures[cut].to(model.device), layers)
        for name in layers:
            values = pool(found[name], model.layer(name)).double().cpu()
            sums[name].index_add_(0, reference.labels[cut], values)
    counts = torch.bincount(reference.labels, minlength=count).double()
    return {name: total / counts[:, None] for name, total in sums.items()}


def first_flips(clean: Tensor, adversarial: Tensor, layers: Sequence[str]) -> list[str | None]:
    """For each picture the layer from which on it is nearer to the false class, and was not before.

    clean, adversarial: (N, L) nearness. The layer is the first of the unbroken run, up to the end,
    in which the clean picture is nearer to its own class and the adversarial one to the false.
    """
    flipped = (clean > 0) & (adversarial < 0)
    found: list[str | None] = []
    for row in flipped.tolist():
        at = len(row)
        while at and row[at - 1]:
            at -= 1
        found.append(layers[at] if at < len(row) else None)
    return found


def margin_shares(
    model: Model, clean: Tensor, adversarial: Tensor, label: int, predicted: int, layer: str
) -> tuple[Tensor, float, dict[str, Tensor]]:
    """Each unit's part of the change of z_predicted - z_label between two pictures (3, S, S).

    With h and h' the activations of the layer and g, g' the gradients of the margin there, a unit's
    part is the sum over its positions of (h' - h) (g + g') / 2. The parts add up to the change
    where the net behind the layer is linear or quadratic on the way; what they leave is told.

    Returns ((units,) parts in float64, the change in logits, {"before", "after"} activations).
    """
    place = model.layer(layer)
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
    if len(place.shape) == 3:
        parts = parts.sum((1, 2))
    elif len(place.shape) == 2:
        parts = parts.sum(0)
    return parts.cpu(), after - before, {"before": h.cpu(), "after": h2.cpu()}


def account(
    model: Model,
    clean: Tensor,
    adversarial: Tensor,
    label: int,
    predicted: int,
    layer: str,
    count: int,
) -> Account:
    """The units of a layer that carry most of the change of the margin."""
    parts, change, maps = margin_shares(model, clean, adversarial, label, predicted, layer)
    same = parts * math.copysign(1.0, change)
    top = same.argsort(descending=True, stable=True)[:count].tolist()
    pushing = float(same.clamp(min=0).sum())
    spatial = len(model.layer(layer).shape) == 3
    return Account(
        layer=layer,
        named=behind_relu(model, layer),
        change=change,
        explained=float(parts.sum()),
        units=len(parts),
        share=float(same[top].clamp(min=0).sum()) / pushing if pushing else 0.0,
        top=tuple(
            UnitShare(
                unit,
                float(parts[unit]),
                maps["before"][unit] if spatial else maps["before"][..., unit],
                maps["after"][unit] if spatial else maps["after"][..., unit],
            )
            for unit in top
        ),
    )


def behind_relu(model: Model, layer: str) -> str:
    """The layer whose values a ReLU cuts off, which shares its units; any other layer is itself."""
    order = list(model.layers.values())
    at = next(i for i, la in enumerate(order) if la.name == model.layer(layer).name)
    place = order[at]
    if place.kind != "ReLU" or at == 0:
        return place.name
    before = order[at - 1]
    same = before.shape == place.shape and before.kind in {"Conv2d", "Linear", "BatchNorm2d"}
    return before.name if same else place.name


def account_layers(model: Model) -> list[str]:
    """Where units are called to account: behind the last convolution, and before the logits."""
    order = [la for la in model.layers.values() if la.path]
    last = default_layer(model)
    spatial = [i for i, la in enumerate(order) if la.kind == "Conv2d" and la.spatial]
    found = []
    if spatial:
        at = spatial[-1]
        behind = order[at + 1] if at + 1 < len(order) else order[at]
        same = behind.kind == "ReLU" and behind.shape == order[at].shape
        found.append((behind if same else order[at]).name)
    return list(dict.fromkeys([*found, last]))


def follow(
    model: Model,
    clean: Tensor,
    adversarial: Tensor,
    label: int,
    predicted: int,
    reference: Reference,
    *,
    k: int = 5,
) -> Path:
    """The way from a clean to an adversarial picture (3, S, S) through the space before the logits.

    Neighbours are the reference pictures of highest cosine there. The plane of `xy` has the mean of
    the own class at (0, 0) and that of the false one at (1, 0); across is the direction in which
    the two classes vary most besides.
    """
    layer = default_layer(model)
    vectors = _embedded(model, reference.pictures, layer)
    points = torch.linspace(0, 1, POINTS)
    way = torch.stack([clean + float(t) * (adversarial - clean) for t in points])
    space = _embedded(model, way, layer)
    with torch.no_grad():
        answers = model(way.to(model.device)).argmax(1).cpu()
    cosines = F.normalize(space.double(), dim=1) @ F.normalize(vectors.double(), dim=1).T
    rows = cosines.argsort(dim=1, descending=True, stable=True)[:, :k]
    own, false = reference.labels == label, reference.labels == predicted
    start = vectors[own].double().mean(0)
    axis = vectors[false].double().mean(0) - start
    length = axis.norm().clamp(min=1e-12)
    axis = axis / length

    def along(values: Tensor) -> Tensor:
        return torch.mv(values.double() - start, axis)

    def off(values: Tensor) -> Tensor:
        return (values.double() - start).sub(torch.outer(along(values), axis))

    both = off(vectors[own | false])
    both = both - both.mean(0)
    _, _, directions = torch.linalg.svd(both, full_matrices=False)
    across = directions[0]
    across = across * torch.sign(across[across.abs().argmax()])  # the sign of an SVD is arbitrary

    def plane(values: Tensor) -> Tensor:
        return torch.stack([along(values), torch.mv(off(values), across)], 1).div(length)

    return Path(layer, points, plane(space), plane(vectors), rows, answers)


def _embedded(model: Model, pictures: Tensor, layer: str, batch_size: int = 16) -> Tensor:
    """Pictures in the space of a layer, (N, units), in batches."""
    return torch.cat([embed_batch(model, part, layer) for part in pictures.split(batch_size)])


def check_reference(reference: Reference | None, classes: Sequence[int]) -> bool:
    """Whether the reference shows every one of the classes."""
    return reference is not None and set(classes) <= set(reference.labels.tolist())


@dataclass(frozen=True)
class Diagnosis:
    """The numbers behind `Inside`: all pictures, layer by layer."""

    layers: tuple[str, ...]
    comparisons: Mapping[str, Comparison]
    clean_nearer: Tensor
    """(N, L) nearness of the clean pictures"""
    flips: tuple[str | None, ...]


def diagnose(
    model: Model,
    pictures: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    predicted: Tensor,
    reference: Reference | None = None,
    *,
    seed: int = 0,
    batch_size: int = 16,
) -> Diagnosis:
    """Follow pictures and their adversarial copies (N, 3, S, S) through every layer shown.

    labels, predicted: (N,) the class each picture left and the one it reached
    reference: pictures of these classes, for the question where the false class takes over; a
        picture of which it lacks a class has nan there

    Raises UserError if there is nothing to compare.
    """
    if not len(pictures):
        raise UserError("no picture was fooled, so there is nothing to follow through the net")
    layers = shown_layers(model)
    x, moved = pictures.to(model.device), adversarial.to(model.device)
    with frozen(model):
        own = false = None
        if reference is not None:
            means = class_means(model, reference, layers, batch_size=batch_size)
            own = {name: means[name][labels] for name in layers}
            false = {name: means[name][predicted] for name in layers}
        changes = {"adversarial": moved} | equal_changes(x, moved, seed=seed)
        comparisons = {
            kind: compare(
                model, x, changes[kind], layers, own=own, false=false, batch_size=batch_size
            )
            for kind in KINDS
        }
        still = compare(model, x, x, layers, own=own, false=false, batch_size=batch_size)
    flips = first_flips(still.nearer, comparisons["adversarial"].nearer, layers)
    return Diagnosis(tuple(layers), comparisons, still.nearer, tuple(flips))
