"""Where and why a picture moves a unit: activation maps, and one position worked out by hand.

Comes in: a model, one picture, a layer or a unit. Goes out: `ActivationMaps`, the maps as they lie
on the picture (by receptive-field geometry), or `PatchTimesKernel`, the products of one patch with
one kernel, whose sum plus bias is the activation and is held against the model's own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featviz import images, plotting, results
from featviz.errors import UserError, nearest
from featviz.models.first_layer import carried_kernels
from featviz.models.layers import activations
from featviz.models.model import Layer, Model
from featviz.models.receptive_field import ReceptiveField
from featviz.models.units import Unit, parse_unit, parse_units
from featviz.plotting import signed_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOLERANCE = 1e-4
"""Larger differences between a sum by hand and the model's activation are warned of."""

COLOURS = ("red", "green", "blue")


def open_picture(model: Model, picture: Tensor | str | Path) -> Tensor:
    """(3, H, W) on the CPU: a tensor as it is, a file resized and cropped as the model wants it.

    Raises UserError for another shape, BadPicture for a file that cannot be read.
    """
    if not isinstance(picture, Tensor):
        return images.read_square(picture, model.resize, model.input_size)
    single = picture[0] if picture.dim() == 4 and len(picture) == 1 else picture
    if single.dim() != 3 or single.shape[0] != 3 or not single.is_floating_point():
        raise UserError(
            f"one picture (3, H, W) in [0, 1] is needed, got {tuple(picture.shape)} of "
            f"{picture.dtype}"
        )
    return single.detach().cpu().float()


# --- maps ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, repr=False)
class ActivationMaps(results.Result):
    """The maps of some units of one layer for one picture."""

    kind: ClassVar[str] = "maps"

    model_name: str
    layer: str
    picture: Tensor
    """(3, H, W) in [0, 1]"""
    units: tuple[int, ...]
    """which units, strongest first unless they were chosen"""
    maps: Tensor
    """(U, h, w)"""
    field: ReceptiveField | None
    chosen: bool
    """the units were asked for; else they are the strongest ones"""
    kernels: Tensor | None
    """(U, 3, k, k) in [0, 1]: their first-layer kernels, where the channels are still theirs"""

    @property
    def positions(self) -> tuple[tuple[int, int], ...]:
        """(row, column) of each unit's strongest position."""
        width = self.maps.shape[2]
        return tuple((int(i) // width, int(i) % width) for i in self.maps.flatten(1).argmax(1))

    @property
    def limits(self) -> tuple[float, float]:
        """What the colours of all maps share: symmetric about 0 if anything is below it."""
        low, high = float(self.maps.min()), float(self.maps.max())
        reach = max(abs(low), abs(high)) or 1.0
        return (-reach, reach) if low < 0 else (0.0, high or 1.0)

    @property
    def title(self) -> str:
        return f"Maps of {self.layer} in {self.model_name}"

    def numbers(self) -> dict[str, results.Number]:
        flat = self.maps.flatten(1)
        best = int(flat.max(1).values.argmax())
        height, width = self.maps.shape[1:]
        found = {
            "maps": results.Number(len(self.units), "", f"of {height} x {width} positions"),
            "largest": results.Number(
                float(flat.max()),
                "",
                f"{self.layer}:{self.units[best]} at row, column "
                f"{self.positions[best][0]}, {self.positions[best][1]}",
            ),
            "above zero": results.Number(
                float((flat > 0).float().mean()), "fraction", "of the positions shown"
            ),
        }
        if self.field is not None:
            size = "x".join(map(str, self.field.size))
            step = self.field.stride[0]
            found["receptive field"] = results.Number(size, "", f"pixels, one every {step} pixels")
        return found

    def overlay(self, row: int) -> Tensor:
        """(3, H, W): the picture in colour where the unit answers, dark where it does not.

        Full colour at the unit's largest activation, none at 0 and below, by the square root in
        between. Every position lights the pixels nearest to the centre of its receptive field.
        """
        height, width = self.picture.shape[-2:]
        strength = self.maps[row].clamp(min=0)
        strength = (strength / strength.max().clamp(min=1e-30)).sqrt()
        lit = _spread(strength, self.field, height, width)
        dark = 0.3 * self.picture.mean(0, keepdim=True) + 0.08
        return lit * self.picture + (1 - lit) * dark

    def box(self, row: int) -> tuple[int, int, int, int] | None:
        """(top, left, bottom, right) of what the strongest position sees, not cut at the border."""
        return None if self.field is None else self.field.box(*self.positions[row])

    def write(self, folder: results.Folder) -> None:
        low, high = self.limits
        scale = f"All maps share the colours from {low:.3g} to {high:.3g}."
        folder.figure(
            "maps.png",
            self.plot(),
            caption=f"{self.layer} of {self.model_name}. Above, the picture lit where a unit "
            "answers: by the square root, full at the unit's own largest value; the box is what "
            f"its strongest position sees. Below, its map. {scale} {self._choice}".rstrip(),
            alt=f"Activation maps of {len(self.units)} units of {self.layer} beside the picture",
        )
        folder.figure(
            "picture.png",
            self.picture,
            caption="The picture as the model gets it.",
            alt="The picture",
        )
        for row, unit in enumerate(self.units):
            name = f"{self.layer}:{unit}"
            y, x = self.positions[row]
            value = float(self.maps[row].max())
            folder.figure(
                f"units/{_file(name)}.png",
                self._unit_picture(row),
                caption=f"{name}: the picture lit where it answers, its map ({scale[9:-1]}), and "
                f"what the strongest position (row {y}, column {x}: {value:.3g}) sees.",
                alt=f"Map of {name} on the picture, strongest at row {y}, column {x}",
                units=[name],
                pixelated=True,
            )
        folder.table(
            "maps.csv",
            ("unit", "largest", "mean", "above_zero", "y", "x", "top", "left", "bottom", "right"),
            [
                (
                    unit,
                    f"{float(m.max()):.6g}",
                    f"{float(m.mean()):.6g}",
                    f"{float((m > 0).float().mean()):.4f}",
                    *self.positions[i],
                    *(self.box(i) or ("",) * 4),
                )
                for i, (unit, m) in enumerate(zip(self.units, self.maps, strict=True))
            ],
            caption="Each unit's strongest position and the pixels that it sees (half open, not "
            "cut at the border).",
        )
        folder.arrays(
            "maps.npz",
            {"maps": self.maps.numpy(), "units": torch.tensor(self.units).numpy()},
            caption="maps (U, h, w) and their units.",
        )

    @property
    def _choice(self) -> str:
        return "" if self.chosen else "Shown are the units with the largest activations."

    def _unit_picture(self, row: int) -> Tensor:
        """(3, S, W): overlay with box, map and the strongest patch, side by side."""
        factor = max(1, round(320 / self.picture.shape[-1]))
        shown = _draw_box(images.enlarge(self.overlay(row), factor), self.box(row), factor)
        side = shown.shape[-2]
        coloured = _coloured(self.maps[row], *self.limits)
        panels = [shown, _fit(coloured, side)]
        box = self.box(row)
        if box is not None:
            panels.append(_fit(images.crop_box(self.picture, box), side))
        gap = shown.new_ones(3, side, max(4, side // 40))
        parts = [part for panel in panels for part in (panel, gap)][:-1]
        return torch.cat(parts, dim=2)

    def plot(self) -> Figure:
        """The picture, and for each unit the lit picture above its map."""
        columns = min(6, len(self.units))
        rows = -(-len(self.units) // columns)
        cell, gap, left, top = 1.5, 0.08, 2.5, 0.72
        row_height = 2 * cell + 0.3
        page = plotting.Page(
            max(5.4, left + columns * (cell + gap) + 0.65), top + rows * row_height - 0.12
        )
        page.text(0.12, 0.24, self.title, fontsize=12, weight="bold")
        low, high = self.limits
        ax = page.axes(0.12, top, left - 0.34, left - 0.34)
        plotting.show_image(ax, self.picture)
        page.text(0.12, top - 0.12, "the picture", fontsize=8)
        page.text(
            0.12,
            top + left - 0.22,
            self._legend(),
            fontsize=7.5,
            color="#555555",
            va="top",
            linespacing=1.5,
        )
        for i, unit in enumerate(self.units):
            x, y = left + i % columns * (cell + gap), top + i // columns * row_height
            value = float(self.maps[i].max())
            page.text(x, y - 0.12, f"{self.layer}:{unit}", fontsize=8)
            page.text(x + cell, y - 0.12, f"{value:.3g}", fontsize=8, ha="right", color="#555555")
            ax = page.axes(x, y, cell, cell)
            plotting.show_image(ax, self.overlay(i))
            box = self.box(i)
            if box is not None:
                plotting.mark_box(ax, box, self.picture)
            if self.kernels is not None:
                inset = page.axes(x + cell - 0.4, y, 0.4, 0.4)
                plotting.show_image(inset, self.kernels[i], pixelated=True)
                plotting.frame(inset, "white", 1.2)
            ax = page.axes(x, y + cell + 0.04, cell, cell)
            shown = ax.imshow(
                self.maps[i].numpy(),
                vmin=low,
                vmax=high,
                interpolation="nearest",
                cmap=plotting.DIVERGING if low < 0 else plotting.SEQUENTIAL,
            )
            plotting.bare(ax)
            plotting.frame(ax)
        bar = page.color_bar(shown, left + columns * (cell + gap) + 0.02, top, 2 * cell + 0.04)
        bar.set_title("activation", fontsize=7, pad=5, loc="left")
        return page.figure

    def _legend(self) -> str:
        """What the panels of the overview are, for somebody who sees it first."""
        lines = ["Above: lit where the unit answers,", "full colour at its largest value."]
        if self.field is not None:
            size = " × ".join(map(str, self.field.size))
            lines += [f"Box: the {size} pixels that its", "strongest position sees."]
        if self.kernels is not None:
            lines += ["Corner: the kernel itself."]
        return "\n".join([*lines, "Below: the map, one square a", "position; all share one scale."])


def activation_maps(
    model: Model,
    picture: Tensor | str | Path,
    layer: str,
    *,
    units: str | Sequence[int | str] | None = None,
    count: int = 12,
) -> ActivationMaps:
    """Maps of a layer's units for one picture, as they lie on it.

    picture: (3, H, W) in [0, 1], or a file that is resized and cropped for the model
    units: "0-7", "3,12" or a sequence; default: the `count` units with the largest activations

    Raises UserError for an unknown layer or unit, and for a layer without positions (fc6, logits).

        featviz.activation_maps(model, "zebra.jpg", "conv1").save("run/maps-conv1")
    """
    started = time.perf_counter()
    place = model.layer(layer)
    if not place.spatial:
        with_maps = [la.name for la in model.layers.values() if la.spatial and la.path]
        raise UserError(
            f"{place.name} has no map of positions; take one of {', '.join(with_maps[:8])}"
        )
    shown = open_picture(model, picture)
    with torch.inference_mode():
        maps = activations(model, shown[None].to(model.device), [place.name])[place.name]
    maps = maps[0].cpu().float()
    if units is None:
        strongest = maps.flatten(1).max(1).values.argsort(descending=True, stable=True)
        rows = tuple(strongest[:count].tolist())
    else:
        rows = tuple(u.index for u in parse_units(model, place.name, units))
    kernels = carried_kernels(model, place.name)
    return ActivationMaps(
        origin=results.origin(
            model,
            started=started,
            parameters={"picture": _source(picture), "layer": place.name, "units": rows},
        ),
        warnings=() if place.receptive_field else (_NO_FIELD.format(place.name),),
        model_name=model.name,
        layer=place.name,
        picture=shown,
        units=rows,
        maps=maps[list(rows)].clone(),
        field=place.receptive_field,
        chosen=units is not None,
        kernels=None if kernels is None else images.around_gray(kernels[list(rows)]),
    )


_NO_FIELD = (
    "the receptive field of {} is not known: its maps are stretched over the picture, and no box "
    "is drawn"
)


def _source(picture: Tensor | str | Path) -> str:
    return f"tensor {tuple(picture.shape)}" if isinstance(picture, Tensor) else str(picture)


def _spread(values: Tensor, field: ReceptiveField | None, height: int, width: int) -> Tensor:
    """(height, width) from a map (h, w): each pixel takes the position whose centre is nearest."""
    axes, inside = [], []
    for axis, (pixels, positions) in enumerate(zip((height, width), values.shape, strict=True)):
        middles = torch.arange(pixels) + 0.5
        if field is None:
            index = (middles * positions / pixels).long()
        else:
            first = field.offset[axis] + field.size[axis] / 2
            # Not round(), which gives ties to even positions and so cells of unequal widths.
            index = ((middles - first) / field.stride[axis] + 0.5).floor().long()
        axes.append(index.clamp(0, positions - 1))
        inside.append((index >= 0) & (index < positions))
    spread = values[axes[0][:, None], axes[1]]
    return spread * (inside[0][:, None] & inside[1])


def _draw_box(picture: Tensor, box: tuple[int, int, int, int] | None, factor: int) -> Tensor:
    """The picture with an orange frame, where `factor` pixels stand for one of the box."""
    if box is None:
        return picture
    height, width = picture.shape[-2:]
    thick = max(2, round(height / 130))
    top, left = (max(0, v * factor) for v in box[:2])
    bottom, right = min(height, box[2] * factor), min(width, box[3] * factor)
    framed = picture.clone()
    orange = torch.tensor([0.902, 0.624, 0.0])[:, None, None]
    inner = (slice(None), slice(top + thick, bottom - thick), slice(left + thick, right - thick))
    framed[:, top:bottom, left:right] = orange
    framed[inner] = picture[inner]
    return framed


def _coloured(values: Tensor, low: float, high: float) -> Tensor:
    """(3, h, w) of a map (h, w) in the colours of its kind."""
    import matplotlib

    shades = matplotlib.colormaps[plotting.DIVERGING if low < 0 else plotting.SEQUENTIAL]
    scaled = ((values - low) / (high - low)).clamp(0, 1).numpy()
    return torch.from_numpy(shades(scaled)[..., :3]).permute(2, 0, 1).float()


def _fit(picture: Tensor, side: int) -> Tensor:
    """A picture as high as `side`, pixels kept hard."""
    wide = max(1, round(side * picture.shape[-1] / picture.shape[-2]))
    return F.interpolate(picture[None], (side, wide), mode="nearest-exact")[0]


def _file(name: str) -> str:
    return name.replace(":", "-").replace("/", "-")


# --- patch times kernel ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, repr=False)
class PatchTimesKernel(results.Result):
    """One position of one convolution worked out: patch, kernel, product, sum."""

    kind: ClassVar[str] = "patch"

    model_name: str
    unit: Unit
    """with its position"""
    picture: Tensor
    """(3, H, W) in [0, 1]"""
    box: tuple[int, int, int, int] | None
    """(top, left, bottom, right): the pixels that the position sees, not cut at the border"""
    patch: Tensor
    """(C, k, k) float64: what the convolution is given there; 0 where it is padded"""
    kernel: Tensor
    """(C, k, k) float64"""
    outside: Tensor
    """(k, k) bool: in the padding"""
    bias: float
    activation: float
    """the model's own value"""
    map: Tensor
    """(h, w): the unit at all positions of this picture"""
    first: bool
    """the convolution sees the picture itself: channels are red, green and blue"""
    look: Tensor | None
    """(3, k, k) in [0, 1]: the patch as a picture, padding as the mean colour; first layer only"""
    channels: tuple[str, ...]
    """what each input channel is: "red", or a unit below such as "pool1:23" """
    below: Tensor | None
    """(C, 3, h, w) in [0, 1]: first-layer kernels that the channels carry, where they do"""

    @property
    def product(self) -> Tensor:
        """(C, k, k): patch times kernel."""
        return self.patch * self.kernel

    @property
    def contributions(self) -> Tensor:
        """(C,): what each input channel adds."""
        return self.product.sum((1, 2))

    @property
    def total(self) -> float:
        """The sum of all products plus the bias, in float64."""
        return float(self.product.sum()) + self.bias

    @property
    def difference(self) -> float:
        """Between the sum by hand and the model's activation, relative to it if that is above 1."""
        return abs(self.total - self.activation) / max(1.0, abs(self.activation))

    @property
    def likeness(self) -> float:
        """Cosine of the angle between patch and kernel."""
        length = float(self.patch.norm() * self.kernel.norm())
        return float(self.product.sum()) / length if length else 0.0

    @property
    def rank(self) -> int:
        """1 for the strongest position of this picture."""
        assert self.unit.position is not None
        return 1 + int((self.map > self.map[self.unit.position]).sum())

    @property
    def title(self) -> str:
        return f"Why {self.unit} answers {self.activation:.3g} in {self.model_name}"

    def numbers(self) -> dict[str, results.Number]:
        product = self.product
        return {
            "activation": results.Number(self.activation, "", "the model's own value"),
            "sum by hand": results.Number(
                self.total, "", f"of {product.numel():,} products, plus the bias"
            ),
            "difference": results.Number(
                self.difference, "", "between the two, relative to the activation if above 1"
            ),
            "for": results.Number(float(product.clamp(min=0).sum()), "", "products above zero"),
            "against": results.Number(float(product.clamp(max=0).sum()), "", "those below zero"),
            "bias": results.Number(self.bias),
            "likeness": results.Number(
                self.likeness, "", "cosine of patch and kernel: 1 is the same pattern"
            ),
            "length of the patch": results.Number(
                float(self.patch.norm()), "", "its contrast, as the convolution gets it"
            ),
            "length of the kernel": results.Number(float(self.kernel.norm())),
            "rank": results.Number(
                self.rank, "", f"among the {self.map.numel():,} positions of this picture"
            ),
        }

    def in_words(self) -> str:
        """The sum as one sentence."""
        product = self.product
        up, down = float(product.clamp(min=0).sum()), float(product.clamp(max=0).sum())
        return (
            f"{product.numel():,} products: those above zero add up to {up:.4g}, those below to "
            f"{signed_text(down, '.4g')}; with the bias of {signed_text(self.bias, '+.3g')} the "
            f"sum is {signed_text(self.total, '.5g')}. The model itself says "
            f"{signed_text(self.activation, '.5g')}."
        )

    def as_lengths(self) -> str:
        """The same sum as length times length times likeness."""
        return (
            f"The same sum again: {float(self.patch.norm()):.3g} (length of the patch, its "
            f"contrast) × {float(self.kernel.norm()):.3g} (length of the kernel) × "
            f"{signed_text(self.likeness, '.2f')} (how alike they are, at most 1) "
            f"{signed_text(self.bias, '+.3g')} (bias)."
        )

    def write(self, folder: results.Folder) -> None:
        name = f"{self.unit.layer}:{self.unit.index}"
        folder.figure(
            "patch-times-kernel.png",
            self.plot(),
            units=[name],
            caption=f"{self.unit}, number {self.rank} of {self.map.numel():,} positions. "
            f"{self.in_words()} Patch values are as the convolution gets them"
            + (" (normalised)" if self.first else "")
            + "; each colour bar is symmetric about zero and shared by the panels beside it"
            + (", hatched cells are padding." if bool(self.outside.any()) else "."),
            alt=f"Patch, kernel, their product and its sum for {self.unit}",
        )
        height, width = self.patch.shape[1:]
        folder.table(
            "products.csv",
            ("channel", "row", "column", "patch", "weight", "product"),
            [
                (
                    channel,
                    y,
                    x,
                    *(f"{float(t[c, y, x]):.9g}" for t in (self.patch, self.kernel, self.product)),
                )
                for c, channel in enumerate(self.channels)
                for y in range(height)
                for x in range(width)
            ],
            caption=f"Every product; their sum plus the bias {self.bias:.9g} is the activation.",
        )
        folder.arrays(
            "patch-times-kernel.npz",
            {
                "patch": self.patch.numpy(),
                "kernel": self.kernel.numpy(),
                "outside": self.outside.numpy(),
                "map": self.map.numpy(),
            },
            caption="patch and kernel (C, k, k), padding (k, k), the unit's map (h, w).",
        )

    def plot(self) -> Figure:
        """The whole calculation as one figure."""
        from featviz.maps import patch_figure

        return patch_figure.draw(self)


def patch_times_kernel(
    model: Model,
    picture: Tensor | str | Path,
    unit: str,
    *,
    position: tuple[int, int] | None = None,
) -> PatchTimesKernel:
    """Why one unit of a convolution answers as it does at one position: patch * kernel, summed.

    unit: "conv1:12", with its position "conv1:12@20,30", or a layer alone ("conv1"), which takes
        the unit that answers this picture most strongly
    position: (row, column) in the unit's map; default: its strongest one in this picture

    The sum is computed in float64 from the convolution's input and weights and held against the
    model's activation. Channels of a first layer are red, green and blue also in models that take
    blue first.

    Raises UserError for a unit that belongs to no convolution and for a position off the map.

        featviz.patch_times_kernel(model, "zebra.jpg", "conv1:12").save("run/patch-conv1-12")
    """
    started = time.perf_counter()
    layer = unit.partition(":")[0]
    place = model.layer(layer)
    convolution = model.net.get_submodule(place.path)
    if not isinstance(convolution, nn.Conv2d):
        names = [
            la.name
            for la in model.layers.values()
            if isinstance(model.net.get_submodule(la.path), nn.Conv2d)
        ]
        hint = nearest(place.name, names) or f"; take one of {', '.join(names[:8])}"
        raise UserError(f"{place.name} is a {place.kind}, not a convolution{hint}")
    shown = open_picture(model, picture)
    batch = shown[None].to(model.device)
    given, source, maps = _input_of(model, convolution, place, batch)
    named, position = _locate(model, unit, position, maps)
    own_map = maps[named.index].cpu()
    if position is None:
        best = int(own_map.argmax())
        position = (best // own_map.shape[1], best % own_map.shape[1])
    named = Unit(place.name, named.index, position)

    patch, outside = _window(convolution, given, named.index, position)
    kernel = convolution.weight[named.index].detach().double().cpu()
    normal = model.normalize(batch)
    first = given.shape == normal.shape[1:] and bool(torch.equal(given, normal[0]))
    start = _first_channel(convolution, named.index)
    channels = tuple(f"{source}:{start + c}" for c in range(len(kernel)))
    look, below = None, None
    if first and kernel.shape[0] == 3:
        if model.blue_first:
            patch, kernel = patch.flip(0), kernel.flip(0)
        channels = COLOURS
        look = patch.float() * model.std.cpu() + model.mean.cpu()
    elif not first:
        below = _kernels_below(model, place, convolution, named.index)
    bias = 0.0 if convolution.bias is None else float(convolution.bias.detach()[named.index])
    field = place.receptive_field
    result = PatchTimesKernel(
        origin=results.origin(
            model,
            started=started,
            parameters={"picture": _source(picture), "unit": str(named), "position": position},
        ),
        model_name=model.name,
        unit=named,
        picture=shown,
        box=None if field is None else field.box(*position),
        patch=patch,
        kernel=kernel,
        outside=outside,
        bias=bias,
        activation=float(own_map[position]),
        map=own_map,
        first=look is not None,
        look=look,
        channels=channels,
        below=below,
    )
    if result.difference > TOLERANCE:
        from dataclasses import replace

        doubt = (
            f"the sum by hand ({result.total:.6g}) and the model's activation "
            f"({result.activation:.6g}) differ by {result.difference:.1e}"
        )
        return replace(result, warnings=(doubt,))
    return result


def _locate(
    model: Model, text: str, position: tuple[int, int] | None, maps: Tensor
) -> tuple[Unit, tuple[int, int] | None]:
    """The unit, and the position of its text or of the argument, checked against maps (C, h, w)."""
    shape = maps.shape[1:]
    name, at, _ = text.partition("@")
    if ":" not in name and not at:
        name = f"{name}:{int(maps.flatten(1).max(1).values.argmax())}"
    unit = parse_unit(model, name)
    if at:
        unit_at = text.partition("@")[2].split(",")
        if len(unit_at) != 2 or not all(part.strip().isdigit() for part in unit_at):
            raise UserError(f"{text!r}: a position is written @row,column, as in conv1:12@20,30")
        position = (int(unit_at[0]), int(unit_at[1]))
    if position is not None and not all(0 <= p < s for p, s in zip(position, shape, strict=True)):
        raise UserError(
            f"position {position[0]},{position[1]} is off the map: {unit.layer} has "
            f"{shape[0]} x {shape[1]} positions for this picture, counted from 0"
        )
    return unit, position


def _input_of(
    model: Model, convolution: nn.Conv2d, place: Layer, batch: Tensor
) -> tuple[Tensor, str, Tensor]:
    """A convolution's input (C, H, W), the name of the layer that made it, and its output."""
    given: list[Tensor] = []
    made: dict[int, tuple[Tensor, str]] = {}  # tensors are kept, so that an id names one alone

    def take(module: nn.Module, inputs: Any) -> None:
        given.append(inputs[0])

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                made[id(output)] = (output, name)

        return hook

    modules = dict(model.net.named_modules())
    handles = [convolution.register_forward_pre_hook(take)]
    handles += [
        modules[la.path].register_forward_hook(note(la.name)) for la in model.layers.values()
    ]
    try:
        with torch.inference_mode():
            maps = activations(model, batch, [place.name])[place.name][0].float()
    finally:
        for handle in handles:
            handle.remove()
    source = made.get(id(given[-1]), (None, "input"))[1]
    return given[-1][0].float(), source, maps


def _window(
    convolution: nn.Conv2d, given: Tensor, unit: int, position: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """(C, k, k) float64 that one position of a unit is given, and which cells are padding."""
    pads = convolution._reversed_padding_repeated_twice  # left, right, top, bottom
    mode = "constant" if convolution.padding_mode == "zeros" else convolution.padding_mode
    start = _first_channel(convolution, unit)
    stop = start + convolution.in_channels // convolution.groups
    mine = given[start:stop].double().cpu()
    padded = F.pad(mine[None], pads, mode=mode)[0]
    inner = F.pad(torch.ones_like(mine[:1]), pads)[0]
    index = [
        torch.arange(k) * d + p * s
        for k, d, s, p in zip(
            convolution.kernel_size, convolution.dilation, convolution.stride, position, strict=True
        )
    ]
    rows, columns = index[0][:, None], index[1]
    return padded[:, rows, columns].clone(), inner[rows, columns] == 0


def _first_channel(convolution: nn.Conv2d, unit: int) -> int:
    """The first input channel of the group that a unit belongs to."""
    group = unit // (convolution.out_channels // convolution.groups)
    return group * (convolution.in_channels // convolution.groups)


def _kernels_below(model: Model, place: Layer, convolution: nn.Conv2d, unit: int) -> Tensor | None:
    """(C, 3, h, w) in [0, 1]: the first-layer kernels whose channels reach this convolution."""
    kernels = carried_kernels(model, place.name, into=True)
    if kernels is None:
        return None
    start = _first_channel(convolution, unit)
    per_group = convolution.in_channels // convolution.groups
    return images.around_gray(kernels[start : start + per_group])
