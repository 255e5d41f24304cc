"""Settings under a name: featviz' own, those that others publish, and none.

    featviz.maximize(model, "conv5", units=[3], preset="lucid")

A preset is the whole of parametrisation, transforms, rule and restraints, in others' numbers where
others have published them, so that a picture can be compared with theirs. Two things are always
ours: the objective that the caller asked for, and that of a picture's stages the one with the best
clean score is kept.

    featviz       our own, found by measurement
    none          pixels, plain Adam: what a net answers to when nothing holds it back
    lucid         Olah, Mordvintsev and Schubert 2017, "Feature Visualization" (Distill)
    distill       Carter et al. 2019, "Activation Atlas" (Distill): many more jitters
    maco          Fel et al. 2023, "Unlocking feature visualization": phases alone, seen in windows
    yosinski-1 to yosinski-4
                  Yosinski et al. 2015, "Understanding neural networks through deep visualization",
                  the four settings of table 1, for AlexNet; yosinski-3 made most of its pictures.
                  They change a picture by a few grey levels: theirs were printed stretched round
                  the mean (saveimagescc in image_misc.py), ours are as the model sees them
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from featviz.errors import UserError, nearest
from featviz.maximization.colours import LUCID, Colours
from featviz.maximization.cppn import CPPN
from featviz.maximization.image_statistics import Spectrum, Statistics, bundled, load_statistics
from featviz.maximization.loop import Settings
from featviz.maximization.maco import MACO
from featviz.maximization.optimizers import Adam, PlainAscent
from featviz.maximization.parametrizations import (
    Fourier,
    LaplacianPyramid,
    Parametrization,
    Pixels,
    RawPixels,
)
from featviz.maximization.transforms import Crop, Transforms

if TYPE_CHECKING:
    from featviz.models.model import Layer, Model

OWN = "featviz"
"""the name of our own settings, which `optimize.settings_for` chooses for each layer"""


@dataclass(frozen=True)
class Preset:
    """A name's advice about what `settings` cannot hold."""

    steps: int
    """as many as were published"""
    size: int | None = None
    """side of the picture, for layers that do not see the whole; None: the model's input"""


# Lucid, optvis/render.py (thresholds=(512,), Adam 0.05; size 128 in optvis/param/images.py).
# Its activation atlas: recipes/activation_atlas/render.py (128 steps).
# MACO: xplique/features_visualizations/maco.py (nb_steps=256) and horama/maco_fv.py.
# Yosinski: doc/running-optimize-image.md of deep-visualization-toolbox, four example commands.
_PRESETS = {
    OWN: Preset(256),
    "none": Preset(256),
    "lucid": Preset(512, size=128),
    "distill": Preset(128),
    "maco": Preset(256),
    "yosinski-1": Preset(500),
    "yosinski-2": Preset(750),
    "yosinski-3": Preset(1000),
    "yosinski-4": Preset(1000),
}
NAMES = tuple(_PRESETS)
"""all presets"""

# optvis/transform.py of Lucid, standard_transforms: a grey margin of 12, jitter 8, scale 0.9 to 1.1
# in steps of 0.02, rotate by whole degrees up to 10 and five times 0, jitter 4. A jitter of d is a
# random crop that takes d pixels away: d / 2 to each side.
_LUCID = Transforms(
    jitter=(4.0,),
    scale=tuple(1 + (i - 5) / 50 for i in range(11)),
    rotate=(*(float(a) for a in range(-10, 11)), *[0.0] * 5),
    shift=2.0,
    border="grey",
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
    border="grey",
)

# xplique/features_visualizations/maco.py: centre N(0.5, 0.15), side N(box, 0.05) within [0.05, 1],
# box from 0.5 to 0.05, noise N(0, 0.08) + U(-0.04, 0.04), NAdam 1.0, 32 windows a step. We take the
# 6 windows of horama/maco_fv.py: 32 passes a step cost five times as much for the same look.
_WINDOWS = 6
_MACO = Transforms(
    crop=Crop(first=0.5, last=0.05, spread=0.05, middle=0.15), noise=0.08, uniform=0.04
)

# doc/running-optimize-image.md of deep-visualization-toolbox; pixels from 0 to 255. "Progress" is
# the policy that aims at a rise of 2 a step. Constant rates of 100 are 100 / 255^2 in our pixels,
# which rules.PlainAscent sees to.
_YOSINSKI = {
    "yosinski-1": PlainAscent(
        rate=100.0, desired=2.0, blur=0.5, blur_every=4, norm_percentile=50.0
    ),
    "yosinski-2": PlainAscent(rate=100.0, decay=0.3, norm_percentile=20.0),
    "yosinski-3": PlainAscent(rate=100.0, decay=0.0001, blur=1.0, blur_every=4),
    "yosinski-4": PlainAscent(
        rate=1e8, desired=2.0, blur=0.5, blur_every=4, contribution_percentile=90.0
    ),
}

# Lucid's Adam: tf.train.AdamOptimizer(0.05), whose means keep 0.9 and 0.999, at a constant rate.
_PLAIN_ADAM = Adam(rate=0.05, short=0.9, long=0.999, least=1.0, steered=False)


def preset(name: str) -> Preset:
    """What goes with a preset beside its settings. Raises UserError for an unknown name."""
    if name not in _PRESETS:
        raise UserError(
            f"unknown preset {name!r}{nearest(name, NAMES)} (there are {', '.join(NAMES)})"
        )
    return _PRESETS[name]


def settings(
    name: str,
    model: Model,
    layer: Layer,
    side: int,
    steps: int,
    *,
    colours: Colours | None = None,
    spectrum: Spectrum | None = None,
) -> Settings:
    """The settings of a preset for pictures of `side` pixels of a layer.

    colours, spectrum: measured ones in place of Lucid's colours and the bundled spectrum; presets
        without such take no notice

    Raises UserError for an unknown name.
    """
    preset(name)
    if name == OWN:
        from featviz.maximization.maximize import settings_for

        options = {"parametrization": Fourier(side, side, colours=colours)} if colours else {}
        return settings_for(model, layer, steps, side, "float32", options)
    bare = Settings(
        steps=steps,
        parametrization=Fourier(side, side, colours=colours or LUCID),
        transforms=Transforms(),
        rule=_PLAIN_ADAM,
        coarse=0.0,
    )
    if name == "none":
        return replace(bare, parametrization=Pixels(side, side, colours=colours or LUCID))
    if name in {"lucid", "distill"}:
        return replace(bare, transforms=_LUCID if name == "lucid" else _DISTILL)
    if name == "maco":
        form = MACO(side, side, spectrum=spectrum or bundled().spectrum, standardised=True)
        rule = Adam(rate=1.0, short=0.9, long=0.999, least=1.0, nesterov=True, steered=False)
        # A window is seen at the model's own size, however large the picture is.
        seen = model.input_size if side > model.input_size else None
        return replace(
            bare,
            parametrization=form,
            transforms=replace(_MACO, size=seen),
            rule=rule,
            views=_WINDOWS,
            transparency=True,
        )
    return replace(bare, parametrization=RawPixels(side, side), rule=_YOSINSKI[name])


class Measured(TypedDict, total=False):
    """What `settings` and `parametrization` take of statistics."""

    colours: Colours
    spectrum: Spectrum


def measured(statistics: Statistics | str | Path | None) -> Measured:
    """Colours and spectrum of statistics, or of the file that holds them; nothing of None.

    Raises UserError for a file that holds none.
    """
    if statistics is None:
        return {}
    if not isinstance(statistics, Statistics):
        statistics = load_statistics(statistics)
    return {"colours": statistics.colours, "spectrum": statistics.spectrum}


RATES = {
    "fourier": 0.1,
    "pixels": 0.1,
    "raw-pixels": 0.02,
    "pyramid": 0.1,
    "cppn": 0.005,
    "maco": 0.3,
}
"""of our own Adam, for each parametrisation: its parameters' units are not those of another"""
PARAMETRIZATIONS = tuple(RATES)
"""what `parametrization` understands"""


def parametrization(
    name: str,
    height: int,
    width: int,
    *,
    colours: Colours | None = None,
    spectrum: Spectrum | None = None,
) -> Parametrization:
    """A parametrisation by name, with measured colours or spectrum where it has such.

    Raises UserError for an unknown name.
    """
    colours = colours or LUCID
    match name:
        case "fourier":
            return Fourier(height, width, colours=colours)
        case "pixels":
            return Pixels(height, width, colours=colours)
        case "raw-pixels":
            return RawPixels(height, width)
        case "pyramid":
            return LaplacianPyramid(height, width, colours=colours)
        case "cppn":
            return CPPN(height, width, colours=colours)
        case "maco":
            # Amplitudes as measured, with random phases, are too much black and white to start in.
            return MACO(height, width, spectrum=spectrum or bundled().spectrum, contrast=0.6)
    raise UserError(
        f"unknown parametrization {name!r}{nearest(name, PARAMETRIZATIONS)} "
        f"(there are {', '.join(PARAMETRIZATIONS)})"
    )
