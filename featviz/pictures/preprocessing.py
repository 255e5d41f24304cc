"""`Preprocessing`: how a picture's file becomes what a network takes, as one value.

Files are resized and cropped by `images`; the `Model` normalizes. Pictures outside of a model are
always in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from featviz.errors import UserError, nearest
from featviz.types import Pixels

Interpolation = Literal["bilinear", "bicubic", "nearest", "lanczos"]
Size = Pixels | tuple[Pixels, Pixels]
"""pixels: the side of a square, or (height, width)"""


@dataclass(frozen=True)
class Stated:
    """What is known of a `Preprocessing`, with its fields; None where nobody said."""

    size: Size | None = None
    resize: Size | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: int | None = None
    interpolation: Interpolation | None = None

    def over(self, other: Stated) -> Stated:
        """These, and those of `other` where there are none."""
        return replace(other, **{n: v for n, v in vars(self).items() if v is not None})


@dataclass(frozen=True)
class Preprocessing:
    """Size, colors and normalization of the pictures that a network takes.

    Raises:
        UserError: for values that cannot be: sizes below 1, a crop larger than the resized picture,
            `mean` or `std` with another count than the channels, `std` that is not above 0.
    """

    size: tuple[int, int]
    """(height, width) of the pictures, in pixels"""
    resize: Size
    """length of the shorter side before the center crop; (height, width): resized to exactly that
    """
    mean: tuple[float, ...]
    """of each channel of pictures in [0, 1], subtracted"""
    std: tuple[float, ...]
    """of each channel, by which pictures are then divided"""
    channels: int = 3
    """1: gray, 3: RGB, 4: RGBA; pictures of other counts are arrays, not files"""
    interpolation: Interpolation = "bilinear"
    """of the resizing, with antialiasing (but "nearest")"""
    blue_first: bool = False
    """whether the network takes blue, green, red"""
    inside: bool = False
    """whether the network itself normalizes, by this mean and std"""
    assumed: tuple[str, ...] = ()
    """names of the fields that nobody stated"""

    def __post_init__(self) -> None:
        sides = (*self.size, *((self.resize,) if isinstance(self.resize, int) else self.resize))
        if min(sides) < 1:
            raise UserError(f"input size {self.size}, resize {self.resize}: sides are 1 or more")
        before = self._before_crop
        if before[0] < self.size[0] or before[1] < self.size[1]:
            raise UserError(
                f"cannot crop {shown(self.size)} pixels from a picture resized to "
                f"{shown(self.resize)}; give a larger resize"
            )
        for field, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise UserError(
                    f"{field} has {len(values)} values for {self.channels} channels; give one each"
                )
            if not all(map(math.isfinite, values)):
                raise UserError(f"{field} {values} is not finite")
        if min(self.std) <= 0:
            raise UserError(f"std {self.std}: pictures are divided by it, so give numbers above 0")
        known = get_args(Interpolation)
        if self.interpolation not in known:
            hint = nearest(self.interpolation, known)
            raise UserError(
                f"unknown interpolation {self.interpolation!r}{hint} ({', '.join(known)})"
            )

    @classmethod
    def of(
        cls,
        size: Size,
        *,
        resize: Size | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels: int = 3,
        **fields: Any,
    ) -> Preprocessing:
        """With defaults: resized to the size itself, and not normalized.

        Args:
            size: side of squares, or (height, width).
            resize: as the field; default `size`.
            mean: of each channel, or one for all; default 0.
            std: of each channel, or one for all; default 1.
            channels: how many the network takes.
            fields: the other fields.
        """
        height, width = square(size)
        if resize is None:
            resize = height if height == width else (height, width)
        return cls(
            (height, width),
            resize,
            _each(mean, 0.0, channels),
            _each(std, 1.0, channels),
            channels,
            **fields,
        )

    @property
    def _before_crop(self) -> tuple[int, int]:
        """Height and width before the crop; of a square picture where one side is given."""
        if not isinstance(self.resize, int):
            return self.resize
        longer = max(self.resize, *self.size) if self.size[0] != self.size[1] else self.resize
        return (longer, longer)

    def before_crop(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to which a picture is resized before the center crop.

        A picture that would not cover a crop that is no square is enlarged until it does.
        """
        if not isinstance(self.resize, int):
            return self.resize
        short = min(height, width)
        if self.size[0] == self.size[1]:
            resize = self.resize
        else:
            need = max(self.size[0] * short / height, self.size[1] * short / width)
            resize = max(self.resize, math.ceil(need))
        tall, wide = (
            resize if side == short else int(resize * side / short) for side in (height, width)
        )
        return tall, wide

    def resized(self, size: tuple[int, int]) -> Preprocessing:
        """The same for pictures of another size, with the same margin around the crop."""
        if size == self.size:
            return self
        height, width = (now / was for now, was in zip(size, self.size, strict=True))
        resize: Size
        if isinstance(self.resize, int):
            resize = round(self.resize * max(height, width))
        else:
            resize = (round(self.resize[0] * height), round(self.resize[1] * width))
        return replace(self, size=size, resize=resize)

    def changed(self, stated: Stated) -> Preprocessing:
        """The same with what is stated in place of its own.

        Raises:
            UserError: for another number of channels.
        """
        if stated.channels not in {None, self.channels}:
            raise UserError(
                f"the network takes pictures of {self.channels} channels, not {stated.channels}"
            )
        new = self
        if stated.size is not None:
            new = new.resized(square(stated.size))
        known: dict[str, Any] = {
            "resize": stated.resize,
            "mean": None if stated.mean is None else _each(stated.mean, 0.0, self.channels),
            "std": None if stated.std is None else _each(stated.std, 1.0, self.channels),
            "interpolation": stated.interpolation,
        }
        given = {name: value for name, value in known.items() if value is not None}
        sure = {name for name, value in vars(stated).items() if value is not None}
        assumed = tuple(name for name in self.assumed if name not in sure)
        return replace(new, **given, assumed=assumed)

    @property
    def assumption(self) -> str:
        """What was assumed, in words, and what to state; "" where nothing was."""
        texts = []
        for field in self.assumed:
            value = getattr(self, field)
            values = value if isinstance(value, tuple) else (value,)
            shortest = values[:1] if len(set(values)) == 1 else values
            texts.append(f"{field} {', '.join(f'{v:.4g}' for v in shortest)}")
        options = ", ".join("input_size" if name == "size" else name for name in self.assumed)
        return f"{'; '.join(texts)} (state {options})" if texts else ""

    def record(self) -> dict[str, Any]:
        """All fields, as result.json has them."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def reading(self) -> dict[str, Any]:
        """How files are read, without the normalization, as stores have it; see `from_reading`."""
        height, width = self.size
        record: dict[str, Any] = {
            "resize": self.resize if isinstance(self.resize, int) else list(self.resize),
            "crop": height if height == width else [height, width],
        }
        if self.channels != 3:
            record["channels"] = self.channels
        if self.interpolation != "bilinear":
            record["interpolation"] = self.interpolation
        return record


def from_reading(record: Mapping[str, Any]) -> Preprocessing:
    """The inverse of `Preprocessing.reading`."""
    resize, crop = (
        (side[0], side[1]) if isinstance(side, list) else side
        for side in (record["resize"], record["crop"])
    )
    return Preprocessing.of(
        crop,
        resize=resize,
        channels=record.get("channels", 3),
        interpolation=record.get("interpolation", "bilinear"),
    )


def square(size: Size) -> tuple[int, int]:
    """Height and width of a size."""
    return (size, size) if isinstance(size, int) else size


def shown(size: Size) -> str:
    """A size as people read it: "224", or "32 x 48" (height x width)."""
    if isinstance(size, int) or size[0] == size[1]:
        return str(size if isinstance(size, int) else size[0])
    return f"{size[0]} x {size[1]}"


def _each(values: Sequence[float] | None, default: float, channels: int) -> tuple[float, ...]:
    if values is None:
        return (default,) * channels
    return tuple(map(float, values)) * (channels if len(values) == 1 else 1)
