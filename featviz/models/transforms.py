"""Preprocessing as others state it: torchvision's transforms, HuggingFace's image processors.

They are recognized by the names of their classes and fields; neither library is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featviz.errors import UserError
from featviz.pictures.preprocessing import Interpolation, Size, Stated

# Steps that give pictures in [0, 1] and change nothing else.
_PLAIN = {
    *("ToTensor", "PILToTensor", "ToImage", "ToDtype", "ConvertImageDtype", "ToImageTensor"),
    *("ConvertDtype", "ToPureTensor", "MaybeToTensor", "MaybePILToTensor", "RGB"),
}
_PILLOW: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def stated_by_transforms(given: Any) -> Stated | None:
    """What torchvision's transforms or an image processor say; None for any other callable.

    Raises:
        UserError: for a step that is no part of an evaluation.
    """
    if isinstance(given, Mapping):
        return stated_by_processor(given)
    if hasattr(given, "image_mean") and callable(getattr(given, "to_dict", None)):
        return stated_by_processor(given.to_dict())
    if hasattr(given, "crop_size") and hasattr(given, "resize_size"):  # of a weights' entry
        return Stated(
            size=_size(given.crop_size),
            resize=_size(given.resize_size),
            mean=tuple(given.mean),
            std=tuple(given.std),
            interpolation=_interpolation(given.interpolation),
        )
    steps = getattr(given, "transforms", None)
    if callable(steps) and not hasattr(given, "forward"):  # the enum entry itself
        return stated_by_transforms(steps())
    if isinstance(steps, Sequence):
        found = Stated()
        for step in steps:
            found = _with_step(found, step)
        return found
    single = Stated() if type(given).__module__.startswith("torchvision.") else None
    return None if single is None else _with_step(single, given)


def _with_step(found: Stated, step: Any) -> Stated:
    name = type(step).__name__
    if name == "Resize":
        size, way = _size(step.size), _interpolation(step.interpolation)
        # Without a crop behind it, this is the size itself.
        return Stated(size=size, resize=size, interpolation=way).over(found)
    if name == "CenterCrop":
        return Stated(size=_size(step.size)).over(found)
    if name == "Normalize":
        return Stated(mean=tuple(map(float, step.mean)), std=tuple(map(float, step.std))).over(
            found
        )
    if name == "Grayscale":
        return Stated(channels=int(step.num_output_channels)).over(found)
    if name in _PLAIN:
        return found
    hint = "take the transforms of the evaluation" if "Random" in name else "state input_size ..."
    raise UserError(f"preprocess: the transform {name} cannot be read; {hint}")


def stated_by_processor(record: Mapping[str, Any]) -> Stated:
    """What the fields of a HuggingFace image processor say (preprocessor_config.json)."""
    resized = _processor_size(record.get("size")) if record.get("do_resize", True) else None
    cropped = _processor_size(record.get("crop_size")) if record.get("do_center_crop") else None
    size: Size | None = cropped or resized
    normalizes = record.get("do_normalize", True)
    way = record.get("resample")
    return Stated(
        size=size,
        resize=resized,
        mean=tuple(record["image_mean"]) if normalizes and record.get("image_mean") else None,
        std=tuple(record["image_std"]) if normalizes and record.get("image_std") else None,
        interpolation=None if way is None else _PILLOW.get(int(way)),
    )


def _processor_size(given: Any) -> Size | None:
    if isinstance(given, Mapping):
        if given.get("shortest_edge"):
            return int(given["shortest_edge"])
        if given.get("height") and given.get("width"):
            return int(given["height"]), int(given["width"])
        return None
    return None if given is None else _size(given)


def _size(given: Any) -> Size:
    if isinstance(given, int):
        return given
    sides = [int(side) for side in given]
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _interpolation(given: Any) -> Interpolation | None:
    name = str(getattr(given, "value", given)).casefold()
    return _PILLOW.get(int(name)) if name.isdigit() else _NAMES.get(name)


_NAMES: dict[str, Interpolation] = {name: name for name in _PILLOW.values()}
