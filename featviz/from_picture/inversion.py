"""`invert`: what a layer keeps of a photograph.

From noise, the picture is sought whose activation at the layer is that of the photograph: the
squared distance as a share of the photograph's squared length falls as far as it goes. What the
layer does not tell apart is free, so what comes out is what it has kept, filled in where it has
not; several tries from several seeds show what is free.

Mahendran and Vedaldi 2015, "Understanding deep image representations by inverting them" (CVPR),
equation 2. They hold the picture back by its total variation and the 6th power of its pixels; here
the restraints of `Settings` do that (ripples, contrast, colour), and steps are taken in Fourier
coefficients that fall as photographs' do, from coarse to fine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from featviz import films, results
from featviz.from_picture.driver import (
    Redrawing,
    as_batch,
    check_counts,
    chosen_layers,
    each_alone,
    picture_names,
    ranks_kept,
    read_pictures,
    stacked,
    unrelated,
)
from featviz.from_picture.result import Measure, Redrawn
from featviz.maximization import objectives
from featviz.maximization.evaluation import clean_scores
from featviz.maximization.parametrizations import Fourier
from featviz.maximization.settings import settings_for, with_changes
from featviz.maximization.transforms import Transforms
from featviz.models.frozen import frozen
from featviz.types import AutoPrecision, Progress

if TYPE_CHECKING:
    from featviz.datasets import Pictures
    from featviz.models.model import Model


@dataclass(frozen=True, kw_only=True, repr=False)
class Inverted(Redrawn):
    """Photographs, drawn again from what layers keep of them."""

    kind: ClassVar[str] = "inversion"
    measures: ClassVar[dict[str, Measure]] = {
        "distance": Measure(
            "from the photograph's activation at the layer, over that activation's length",
            label="{:.2f} away",
        ),
        "distance of others": Measure(
            "the same of unrelated pictures, median: what chance would reach", label="others {:.2f}"
        ),
        "cosine": Measure("between the two activations"),
        "pixel distance": Measure("root mean square of the pixels' differences, of 1"),
        "class rank": Measure("of the photograph's class in the picture's logits; 1 is kept"),
    }

    @property
    def title(self) -> str:
        return f"What layers of {self.model_name} keep of {self.of_what}"

    def caption(self) -> str:
        return (
            f"Each row begins with a photograph; then come pictures made from noise so that one "
            f"layer of {self.model_name} ({', '.join(self.columns)}) answers as it does to the "
            "photograph. Below each its distance from that answer, over the answer's length, and "
            "the same for unrelated pictures. Colours are not rescaled."
        )


def invert(
    model: Model,
    pictures: Tensor,
    layers: str | Sequence[str] | None = None,
    *,
    tries: int = 1,
    steps: int = 200,
    seed: int = 0,
    names: Sequence[str] | None = None,
    natural: Pictures | Tensor | None = None,
    film: int = 0,
    film_kind: str = "gif",
    batch_size: int | None = None,
    precision: AutoPrecision = "auto",
    progress: Progress | None = None,
    **options: Any,
) -> Inverted:
    """Pictures that a layer takes for the given ones: `.images` (P, K, T, 3, H, W).

    pictures: (P, 3, H, W) or (3, H, W) in [0, 1], of the model's input size
    layers: one or several; default: every convolution and fully connected layer
    tries: reconstructions of each, from seeds of their own
    steps: of the ascent; 100 for a sketch, 500 where every detail counts
    names: of the pictures, for captions
    natural: unrelated pictures, whose distances stand beside as what chance would reach; default:
        the bundled samples
    film: how many stages to keep; film_kind: "gif", or "mp4" for both
    options: see `Settings` (`smooth`, `calm`, `plain`, `coarse`, `parametrization` ...)

    A picture depends on its photograph, its layer, the seed and its try alone.

    Raises UserError for an unknown layer or option, and pictures that are none.

        featviz.invert(model, photograph, ["conv1", "conv5", "fc7"]).save("run/inversion")
    """
    started = time.perf_counter()
    given = as_batch(model, pictures)
    names = picture_names(names, len(given))
    places = [model.layer(name) for name in chosen_layers(model, layers)]
    check_counts(steps=steps, tries=tries)
    films.check_kind(film_kind)
    settings = [
        with_changes(
            settings_for(model, place, steps=steps, size=given.shape[-1], precision=precision),
            {
                "parametrization": Fourier(*given.shape[-2:]),
                "transforms": Transforms(),
                # An answer at every place counts alike, so nothing is evened out.
                "local_normalization": 0.0,
                "roughness_weight": 2.0 * clean_scores.first_stride(model),
                "contrast_weight": 0.02,
                "saturation_weight": 0.2,
                "coarse_to_fine": 0.25,
            }
            | options,
        )
        for place in places
    ]
    far = unrelated(natural)
    run = Redrawing(model, given, tries, film, batch_size, progress)
    measured: list[dict[str, Tensor]] = []
    with frozen(model):
        others = read_pictures(model, far)
        for number, (place, how) in enumerate(zip(places, settings, strict=True)):
            wanted = each_alone(model, given, place.name)  # (P, ...)
            goal = -objectives.distance(place.name, wanted.repeat_interleave(tries, 0))
            climb = run.climb(
                goal,
                how,
                [f"{place.path}/{t}" for t in range(tries)],
                seed=seed,
                text=f"inverting {place.name}",
                part=(number, len(places)),
            )
            drawn = run.keep(climb)
            measured.append(_measured(model, place.name, given, drawn, wanted, others))
    made = run.made()
    return Inverted(
        origin=results.origin(
            model,
            seed=seed,
            started=started,
            data=None if isinstance(far, Tensor) else far,
            parameters={
                "method": "invert",
                "pictures": list(names),
                "layer": [place.name for place in places],
                "size": given.shape[-1],
                "tries": tries,
                **settings[-1].record(),
            },
        ),
        model_name=model.name,
        names=names,
        columns=tuple(place.name for place in places),
        units=(),
        given=given.cpu(),
        measured=stacked(measured),
        film=film_kind,
        images=made.images,
        trace=made.trace,
        frames=made.frames,
    )


def _measured(
    model: Model, layer: str, given: Tensor, pictures: Tensor, wanted: Tensor, others: Tensor
) -> dict[str, Tensor]:
    """The numbers of pictures (P, T, 3, H, W) of one layer, (P, T) each."""
    shape = pictures.shape[:2]
    found = each_alone(model, pictures.flatten(0, 1), layer).unflatten(0, shape).flatten(2)
    aim = wanted.flatten(1)[:, None]  # (P, 1, D)
    length = aim.norm(dim=2).clamp(min=1e-12)
    far = each_alone(model, others, layer).flatten(1)
    chance = [
        ((far - one).norm(dim=1) / size).median() for one, size in zip(aim, length, strict=True)
    ]
    return {
        "distance": (found - aim).norm(dim=2) / length,
        "distance of others": torch.stack(chance)[:, None].expand(shape),
        "cosine": torch.cosine_similarity(found, aim.expand_as(found), dim=2),
        "pixel distance": (pictures - given[:, None]).square().mean((2, 3, 4)).sqrt(),
        "class rank": ranks_kept(model, given, pictures),
    }
