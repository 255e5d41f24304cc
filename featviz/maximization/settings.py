"""How pictures are optimized: `Settings`, the choice for a layer, and the presets of others.

    settings = settings_for(model, "conv5", steps=128)
    settings = dataclasses.replace(settings, lr=0.05)
    featviz.maximize(model, "conv5", units=[3], settings=settings)

A preset is the whole of parametrization, transforms, optimizer and penalties, in others' numbers
where others have published them. Two things are always ours: the objective that the caller chose,
and that of a picture's stages the one with the best clean score is kept.

    featviz       our own, found by measurement (docs/maximize-settings.md)
    none          pixels, plain Adam, no prior at all
    lucid         Olah, Mordvintsev and Schubert 2017, "Feature Visualization" (Distill)
    distill       Carter et al. 2019, "Activation Atlas" (Distill): many more jitters
    maco          Fel et al. 2023, "Unlocking feature visualization": phases alone, seen in windows
    yosinski-1 to yosinski-4
                  Yosinski et al. 2015, "Understanding neural networks through deep visualization",
                  the four settings of table 1, for AlexNet; yosinski-3 made most of its pictures.
                  They change a picture by a few gray levels: theirs were printed stretched round
                  the mean (saveimagescc in image_misc.py), ours are as the model sees them
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from featviz.arguments import Bounds
from featviz.errors import UserError, check_fields, nearest, public
from featviz.maximization.colors import LUCID
from featviz.maximization.cppn import CPPN
from featviz.maximization.image_statistics import Statistics, bundled, load_statistics
from featviz.maximization.maco import MACO
from featviz.maximization.optimizers import Adam, Optimizer, PlainAscent
from featviz.maximization.parametrizations import (
    Fourier,
    LaplacianPyramid,
    Parametrization,
    Pixels,
    RawPixels,
    for_channels,
)
from featviz.maximization.transforms import Crop, Transforms
from featviz.models.first_layer import first_stride
from featviz.models.graphed import need_cuda
from featviz.models.layers import takes
from featviz.models.model import Layer, Model
from featviz.models.precision import choose_precision, gains_by_bfloat16
from featviz.types import AutoPrecision, Canvas, Precision, Rate, Share, Steps, Weight


@dataclass(frozen=True)
class Settings:
    """How `optimize` makes pictures."""

    steps: Steps
    """number of steps"""
    parametrization: Parametrization
    """which free parameters make a picture, and of which size"""
    transforms: Transforms
    """random changes of the picture before each step"""
    optimizer: Optimizer = Adam()  # noqa: RUF009 - frozen
    """how a gradient changes the parameters"""
    lr: Rate = 0.1
    """rate of the first step, in units of the parameters"""
    roughness_weight: Weight = 8.0
    """penalty of what a 3x3 mean removes, against a gradient of mean square 1 (`regularizers`)"""
    contrast_weight: Weight = 0.02
    """penalty of the distance from gray"""
    saturation_weight: Weight = 0.2
    """penalty of the distance from the gray of the same brightness"""
    local_normalization: Share = 0.9
    """0: one strength of the gradient for the whole picture; towards 1: everywhere the same"""
    window: Annotated[int, Bounds(1, 4096)] = 16
    """pixels to each side over which the gradient's local strength is measured"""
    coarse_to_fine: Share = 0.25
    """share of the steps in which detail is let in from coarse to fine: shapes come first"""
    precision: Precision = "float32"
    """of the network in the steps; clean scores are always of float32"""
    checks: Annotated[int, Bounds(1, 1000)] = 4
    """how often, in the last half, clean scores are taken to find the best picture"""
    views: Annotated[int, Bounds(1, 1000)] = 1
    """views of each picture, with transforms of their own, of which a step takes the mean"""
    transparency: bool = False
    """whether to add up over the steps how much each pixel mattered (`Optimized.transparency`)"""
    cuda_graph: bool = False
    """whether a step's passes are CUDA graphs (`models.graphed`): fewer launches, equal pictures"""

    def __post_init__(self) -> None:
        check_fields(self)

    def record(self) -> dict[str, Any]:
        """The settings for result.json: numbers, and dataclasses as their fields."""
        shown = {one.name: _plain(getattr(self, one.name)) for one in fields(self)}
        if not self.cuda_graph:  # which checkpoints of earlier states do not name
            del shown["cuda_graph"]
        return shown


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        shown = {f.name: getattr(value, f.name) for f in fields(value)}
        named = {name: getattr(of, "name", None) or _plain(of) for name, of in shown.items()}
        return {"name": type(value).__name__} | named
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value


@dataclass(frozen=True)
class _Preset:
    steps: int
    """as many as were published"""
    size: int | None = None
    """side of the picture, for layers that do not see the whole; None: the model's input"""


DEFAULT_PRESET = "featviz"

# Lucid, optvis/render.py (thresholds=(512,), Adam 0.05; size 128 in optvis/param/images.py).
# Its activation atlas: recipes/activation_atlas/render.py (128 steps).
# MACO: xplique/features_visualizations/maco.py (nb_steps=256) and horama/maco_fv.py.
# Yosinski: doc/running-optimize-image.md of deep-visualization-toolbox, four example commands.
_PRESETS = {
    DEFAULT_PRESET: _Preset(256),
    "none": _Preset(256),
    "lucid": _Preset(512, size=128),
    "distill": _Preset(128),
    "maco": _Preset(256),
    "yosinski-1": _Preset(500),
    "yosinski-2": _Preset(750),
    "yosinski-3": _Preset(1000),
    "yosinski-4": _Preset(1000),
}
PRESETS = tuple(_PRESETS)
"""names of all presets"""

# optvis/transform.py of Lucid, standard_transforms: a gray margin of 12, jitter 8, scale 0.9 to 1.1
# in steps of 0.02, rotate by whole degrees up to 10 and five times 0, jitter 4. A jitter of d is a
# random crop that takes d pixels away: d / 2 to each side.
_LUCID = Transforms(
    jitter=(4.0,),
    scale=tuple(1 + (i - 5) / 50 for i in range(11)),
    rotate=(*(float(a) for a in range(-10, 11)), *[0.0] * 5),
    shift=2.0,
    border="gray",
)

# recipes/activation_atlas/render.py of Lucid: pad(16), jitter 4, 4, 8, 8, 8, random_scale of
# 0.998 ** n for n in 20 ... 39, random_rotate of -20 ... 19, -10 ... 9, -5 ... 4 and five 0,
# jitter(2). Its penalty on the border, and that it takes the best of three, are left out.
_DISTILL = Transforms(
    jitter=(2.0, 2.0, 4.0, 4.0, 4.0),
    scale=tuple(0.998**n for n in range(20, 40)),
    rotate=tuple(
        float(a) for a in [*range(-20, 20), *range(-10, 10), *range(-5, 5), 0, 0, 0, 0, 0]
    ),
    shift=1.0,
    border="gray",
)

# xplique/features_visualizations/maco.py: center N(0.5, 0.15), side N(box, 0.05) within [0.05, 1],
# box from 0.5 to 0.05, noise N(0, 0.08) + U(-0.04, 0.04), NAdam 1.0, 32 windows a step. We take the
# 6 windows of horama/maco_fv.py: 32 passes a step cost five times as much for the same look.
_WINDOWS = 6
_MACO = Transforms(
    crop=Crop(first=0.5, last=0.05, spread=0.05, middle=0.15), noise=0.08, uniform=0.04
)

# doc/running-optimize-image.md of deep-visualization-toolbox; pixels from 0 to 255. "Progress" is
# the policy that aims at a rise of 2 a step.
_YOSINSKI = {
    "yosinski-1": (100.0, PlainAscent(desired=2.0, blur=0.5, blur_every=4, norm_percentile=50.0)),
    "yosinski-2": (100.0, PlainAscent(decay=0.3, norm_percentile=20.0)),
    "yosinski-3": (100.0, PlainAscent(decay=0.0001, blur=1.0, blur_every=4)),
    "yosinski-4": (
        1e8,
        PlainAscent(desired=2.0, blur=0.5, blur_every=4, contribution_percentile=90.0),
    ),
}

# Lucid's tf.train.AdamOptimizer(0.05), at a constant rate.
_PLAIN_ADAM = Adam(betas=(0.9, 0.999), final_lr=1.0, shaped=False)


@public
def settings_for(
    model: Model,
    layer: str | Layer,
    *,
    preset: str = DEFAULT_PRESET,
    steps: Steps | None = None,
    size: Canvas | None = None,
    parametrization: str | Parametrization | None = None,
    statistics: Statistics | str | Path | None = None,
    precision: AutoPrecision = "auto",
    cuda_graph: bool = False,
) -> Settings:
    """The settings of a layer: what its geometry asks for, or those of a preset.

    Args:
        layer: Its receptive field decides size and transforms.
        preset: One of `PRESETS`.
        steps: Number of steps; default: the preset's, 256 for our own.
        size: Side of the pictures in pixels, or (height, width); default: what the receptive field
            asks for (`canvas`), or the preset's.
        parametrization: In place of the preset's; by name one of `PARAMETRIZATIONS`, with a rate
            that suits it.
        statistics: Measured colors and spectrum, or their file, in place of those that come with
            featviz.
        precision: Of the network in the steps. "auto" is bfloat16 on CPUs that compute in it.
        cuda_graph: As in `Settings`.

    Raises:
        UserError: steps or size are too small, a name is unknown, or `cuda_graph` without CUDA.
    """
    if cuda_graph:
        need_cuda(model.device)
    place = model.layer(layer) if isinstance(layer, str) else layer
    advice = _PRESETS.get(preset)
    if advice is None:
        raise UserError(
            f"unknown preset {preset!r}{nearest(preset, PRESETS)} (there are {', '.join(PRESETS)})"
        )
    steps = advice.steps if steps is None else steps
    stated = size is not None
    if size is None and preset == DEFAULT_PRESET:
        size = canvas(model, place)
    elif size is None:
        size = model.input_size if advice.size is None or place.whole else advice.size
    height, width = (size, size) if isinstance(size, int) else size
    if not stated and not takes(model, (height, width), place.name):
        height, width = model.input_size
    precision = choose_precision(precision, lambda: gains_by_bfloat16(model.net, model.blank()))
    if isinstance(statistics, str | Path):
        statistics = load_statistics(statistics)
    made = _preset_settings(preset, model, place, steps, (height, width), statistics)
    if isinstance(parametrization, str):
        form = named_parametrization(parametrization, height, width, statistics=statistics)
        made = replace(made, parametrization=form, lr=_RATES[parametrization])
    elif parametrization is not None:
        made = replace(made, parametrization=parametrization)
    channels = model.preprocessing.channels
    if channels != 3 and preset in _YOSINSKI:
        raise UserError(
            f"preset {preset} is for RGB pictures, {model.name} takes {channels} channels"
        )
    form = for_channels(made.parametrization, channels)
    return replace(made, parametrization=form, precision=precision, cuda_graph=cuda_graph)


def _preset_settings(
    preset: str,
    model: Model,
    layer: Layer,
    steps: int,
    size: tuple[int, int],
    statistics: Statistics | None,
) -> Settings:
    colors = statistics.colors if statistics is not None else LUCID
    bare = Settings(
        steps=steps,
        parametrization=Fourier(*size, colors=colors),
        transforms=Transforms(),
        optimizer=_PLAIN_ADAM,
        lr=0.05,
        coarse_to_fine=0.0,
    )
    if preset == DEFAULT_PRESET:
        return _own_settings(model, layer, bare)
    if preset == "none":
        return replace(bare, parametrization=Pixels(*size, colors=colors))
    if preset in {"lucid", "distill"}:
        return replace(bare, transforms=_LUCID if preset == "lucid" else _DISTILL)
    if preset == "maco":
        spectrum = (statistics or bundled()).spectrum
        # A window is seen at the model's own size, however large the picture is.
        larger = max(now / own for now, own in zip(size, model.input_size, strict=True)) > 1
        seen = model.input_size if larger else None
        return replace(
            bare,
            parametrization=MACO(*size, spectrum=spectrum, standardized=True),
            transforms=replace(_MACO, size=seen),
            optimizer=replace(_PLAIN_ADAM, nesterov=True),
            lr=1.0,
            views=_WINDOWS,
            transparency=True,
        )
    lr, optimizer = _YOSINSKI[preset]
    return replace(bare, parametrization=RawPixels(*size), optimizer=optimizer, lr=lr)


def _own_settings(model: Model, layer: Layer, bare: Settings) -> Settings:
    side = min(bare.parametrization.height, bare.parametrization.width)
    # How fine a model looks is set by its first stride, and so is what counts as rough: a weight
    # of 8 for the 4 pixels of an AlexNet, 4 for 2 pixels.
    settings = Settings(
        steps=bare.steps,
        parametrization=bare.parametrization,
        transforms=transforms_for(layer, side),
        roughness_weight=2.0 * first_stride(model),
        window=max(2, round(side / 6.5)),
    )
    if not is_kernel(layer):
        return settings
    # A linear unit needs no prior, only a bound: its maximum is its kernel.
    return replace(
        settings,
        roughness_weight=0.0,
        saturation_weight=0.0,
        local_normalization=0.0,
        coarse_to_fine=0.0,
        contrast_weight=4.0,
    )


def canvas(model: Model, layer: Layer) -> tuple[int, int]:
    """Height and width of the picture that a layer's units are drawn on, in pixels.

    For a first layer's kernel the kernel and what centers one position on it; otherwise room for
    several receptive fields where they are small, for one and a stride where they are large, a
    multiple of 8. Never more than the model's input.
    """
    field = layer.receptive_field
    if field is None or layer.whole:
        return model.input_size
    seen, stride, start = max(field.size), max(field.stride), max(field.offset)
    if is_kernel(layer):
        side, position = 0, 0
        while side < max(seen, 8):  # position p is in the middle of seen + 2 (start + p stride)
            side = seen + 2 * (start + position * stride)
            position += 1
    else:
        side = max(seen + stride, min(4 * seen, max(64, max(model.input_size) // 2)))
        side = 8 * round(side / 8)
    height, width = model.input_size
    return min(height, side), min(width, side)


def transforms_for(layer: Layer, side: int) -> Transforms:
    """How far pictures of a layer are moved: at least its stride, but not out of sight.

    Shifts span a period of the layer's lattice (twice the stride in all, 32 pixels for an AlexNet
    at conv3 to conv5); units that see the whole picture are shifted by a fourteenth of it. Kernels
    of a first layer are not moved: of a linear unit that only blurs the maximum.
    """
    if is_kernel(layer):
        return Transforms()
    field = layer.receptive_field
    stride = max(field.stride) if field is not None and not layer.whole else side / 14
    return Transforms(shift=min(stride, side / 8), rotate=15.0, scale=0.2)


def is_kernel(layer: Layer) -> bool:
    """Whether the layer sees so little that a unit's picture is a kernel, not a texture."""
    return layer.receptive_field is not None and max(layer.receptive_field.size) < 16


# Of our own Adam, for each parametrization: its parameters' units are not those of another.
_RATES = {
    "fourier": 0.1,
    "pixels": 0.1,
    "raw-pixels": 0.02,
    "pyramid": 0.1,
    "cppn": 0.005,
    "maco": 0.3,
}
PARAMETRIZATIONS = tuple(_RATES)
"""names of all parametrizations"""


def named_parametrization(
    name: str, height: int, width: int, *, statistics: Statistics | None = None
) -> Parametrization:
    """A parametrization by name, with measured colors or spectrum where it has such.

    Raises:
        UserError: The name is unknown.
    """
    colors = statistics.colors if statistics is not None else LUCID
    match name:
        case "fourier":
            return Fourier(height, width, colors=colors)
        case "pixels":
            return Pixels(height, width, colors=colors)
        case "raw-pixels":
            return RawPixels(height, width)
        case "pyramid":
            return LaplacianPyramid(height, width, colors=colors)
        case "cppn":
            return CPPN(height, width, colors=colors)
        case "maco":
            # Amplitudes as measured, with random phases, are too much black and white to start in.
            spectrum = (statistics or bundled()).spectrum
            return MACO(height, width, spectrum=spectrum, contrast=0.6)
    raise UserError(
        f"unknown parametrization {name!r}{nearest(name, PARAMETRIZATIONS)} "
        f"(there are {', '.join(PARAMETRIZATIONS)})"
    )
