"""Where in pictures a concept is: its top patches, each with the mask of its code map.

A data set is read once. Of each concept the k pictures with the largest code are kept, one patch a
picture; the mask is the picture's map of codes, enlarged through the receptive field and cut like
the patch. Where the receptive field is half a picture or more, patches are whole pictures. What
else the scan finds serves the other views: each picture's largest codes and its logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from featviz.concepts.parts import Encoder, code_maps
from featviz.maps.top_patches import cut_patches
from featviz.maps.top_patches_result import Place
from featviz.maximization.maximize import sees_half
from featviz.models.layers import activations
from featviz.pictures import images
from featviz.top_scores import ImageCache, TopScores, scan

if TYPE_CHECKING:
    from featviz.checkpoints import Checkpoint
    from featviz.data.datasets import Pictures
    from featviz.models.model import Layer, Model
    from featviz.models.receptive_field import ReceptiveField
    from featviz.types import Progress


@dataclass(frozen=True)
class Patches:
    """The top patches of k concepts, and what was read of every picture."""

    places: tuple[tuple[Place, ...], ...]
    """(k, n), largest code first"""
    pictures: Tensor
    """(k, n, 3, P, P) uint8, gray where the receptive field leaves the picture"""
    masks: Tensor
    """(k, n, P, P) in [0, 1]: the concept's code there, by the largest of the same picture"""
    top: TopScores
    largest: Tensor
    """(N, k): of each picture that was read, the largest code over its positions"""
    rows: Tensor
    """(N,): which row of the data set each of these is"""
    logits: Tensor
    """(N, classes); (N, 0) of a model without a head"""


def find_patches(
    model: Model,
    place: Layer,
    encoder: Encoder,
    data: Pictures,
    *,
    count: int,
    batch_size: int,
    kept: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Patches:
    """The `count` top patches of every concept, at most one a picture.

    Raises:
        UserError: None of the pictures can be read.
    """
    read = [place.name] if model.headless else [place.name, "logits"]

    def score(batch: Tensor) -> tuple[Tensor, Tensor]:
        taken = activations(model, batch.to(model.device), read)
        codes = code_maps(taken[place.name], place, encoder)
        beside = [codes.flatten(2).amax(2)] + [taken[name] for name in read[1:]]
        return codes, torch.cat(beside, 1)

    cache = ImageCache(model, data)
    top = scan(
        cache,
        score,
        k=count,
        batch_size=batch_size,
        kept=kept,
        progress=progress,
        text=f"concepts of {place.name} in pictures",
    )
    concepts = len(top.values)
    shown = replace(place, receptive_field=None) if sees_half(model, place) else place
    places, pictures, _ = cut_patches(cache, data, shown, top)
    skipped = {one.row for one in top.skipped}
    return Patches(
        places=places,
        pictures=pictures,
        masks=_cut_masks(model, place, encoder, cache, places, pictures.shape[-2:]),
        top=top,
        largest=top.beside[:, :concepts],
        rows=torch.tensor([row for row in range(len(data)) if row not in skipped]),
        logits=top.beside[:, concepts:],
    )


def _cut_masks(
    model: Model,
    layer: Layer,
    encoder: Encoder,
    cache: ImageCache,
    places: tuple[tuple[Place, ...], ...],
    size: tuple[int, ...],
) -> Tensor:
    """(k, n, P, P): masks of patches; 1 everywhere of a layer without positions."""
    found = torch.ones(len(places), len(places[0]), *size)
    if not layer.spatial:
        return found
    of_row: dict[int, list[tuple[int, int]]] = {}
    for concept, ranks in enumerate(places):
        for rank, place in enumerate(ranks):
            of_row.setdefault(place.row, []).append((concept, rank))
    for row, wanted in sorted(of_row.items()):
        picture = cache.read(row)
        with torch.no_grad():
            values = activations(model, picture[None].to(model.device), [layer.name])[layer.name]
        codes = code_maps(values, layer, encoder)[0].cpu().clamp(min=0)
        whole = enlarge_maps(codes, layer.receptive_field, (picture.shape[1], picture.shape[2]))
        for concept, rank in wanted:
            mask = whole[concept] / codes[concept].max().clamp(min=torch.finfo(torch.float32).tiny)
            cut = images.crop_box(mask[None], places[concept][rank].box, gray=0.0)
            found[concept, rank] = F.interpolate(cut[None], size, mode="area")[0, 0]
    return found


def enlarge_maps(maps: Tensor, field: ReceptiveField | None, size: tuple[int, int]) -> Tensor:
    """Maps (k, h, w) over a picture of `size` pixels, (k, H, W), by their receptive field.

    Each value is at the middle of what its position sees, with straight lines between; beyond the
    outermost positions the value of the nearest. Without a known field the map covers the picture.
    """
    if field is None:
        return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
    axes = []
    for axis, length in enumerate(maps.shape[1:]):
        middle = field.offset[axis] + (field.size[axis] - 1) / 2
        at = (torch.arange(size[axis]) - middle) / field.stride[axis]
        axes.append(at / max(1, length - 1) * 2 - 1)
    y, x = torch.meshgrid(*axes, indexing="ij")
    grid = torch.stack([x, y], 2)[None].to(maps)
    return F.grid_sample(maps[None], grid, padding_mode="border", align_corners=True)[0]


def masked(pictures: Tensor, masks: Tensor) -> Tensor:
    """Pictures (..., 3, H, W) that fade to light gray where a mask (..., H, W) is small."""
    weight = 0.2 + 0.8 * (2 * masks).clamp(max=1)[..., None, :, :]
    return pictures * weight + images.OUTSIDE * (1 - weight)
