"""How each method of `from_picture` optimizes: what differs from the settings of `maximize`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from featviz.maximization.parametrizations import Fourier, for_channels
from featviz.maximization.settings import Settings, settings_for
from featviz.maximization.transforms import Transforms
from featviz.models.first_layer import first_stride

if TYPE_CHECKING:
    from featviz.models.model import Model
    from featviz.types import AutoPrecision

MethodName = Literal["invert", "caricature", "deepdream", "accentuate"]
STEPS: dict[MethodName, int] = {
    "invert": 200,
    "caricature": 256,
    "deepdream": 40,
    "accentuate": 128,
}


def method_settings(
    method: MethodName,
    model: Model,
    layer: str,
    *,
    height: int,
    width: int,
    steps: int | None = None,
    precision: AutoPrecision = "auto",
) -> Settings:
    """The default settings of a method, to be changed with `dataclasses.replace`.

    Args:
        method: "invert", "caricature", "deepdream" or "accentuate".
        model: The model.
        layer: The layer that is inverted, or that has the unit.
        height: Of the pictures.
        width: Of the pictures.
        steps: Default: 200, 256, 40 (an octave) or 128.
        precision: Of the network in the steps.

    Raises:
        UserError: The layer or the precision is unknown, or `steps` is below 1.
    """
    steps = STEPS[method] if steps is None else steps
    base = settings_for(model, layer, steps=steps, size=max(height, width), precision=precision)
    stride = first_stride(model)
    from_noise: dict[str, Any] = {
        "roughness_weight": 2.0 * stride,
        "contrast_weight": 0.02,
        "saturation_weight": 0.2,
        "coarse_to_fine": 0.25,
    }
    from_picture: dict[str, Any] = {
        "roughness_weight": 0.5 * stride,
        "contrast_weight": 0.0,
        "saturation_weight": 0.0,
        "coarse_to_fine": 0.0,
        "lr": 0.03,
    }
    changes: dict[MethodName, dict[str, Any]] = {
        # Activations at every position count alike, so the gradient is not normalized locally.
        "invert": from_noise | {"transforms": Transforms(), "local_normalization": 0.0},
        # A few pixels only: activations are compared position by position.
        "caricature": from_noise
        | {
            "transforms": Transforms(shift=max(1.0, width / 56), rotate=3.0, scale=0.03),
            "local_normalization": 0.9,
        },
        "deepdream": from_picture
        | {"transforms": Transforms(shift=max(2.0, width / 28)), "checks": 1},
        "accentuate": from_picture
        | {
            "transforms": Transforms(shift=max(2.0, width / 28), rotate=5.0, scale=0.05),
            "local_normalization": 0.0,
        },
    }
    form = for_channels(Fourier(height, width), model.preprocessing.channels)
    return replace(base, parametrization=form, **changes[method])
