"""Kernels as pictures: the first layer's own, and those of deeper layers through the layers below.

Comes in: a model and one of its convolutions. Goes out: one RGB picture a unit with numbers that
tell edges, colour blobs and noise apart, all from its Fourier amplitudes. A deeper kernel is the
linear composite: what a unit would weigh in the picture if every layer below were linear (as in
Erhan et al. 2009, "Visualizing higher-layer features of a deep network", section 2.2).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featviz import images, plotting, results
from featviz.errors import UserError, nearest
from featviz.kernels.growth import kernel_growth
from featviz.kernels.tuning import FAINT, GROUPS, NOISY, ORIENTED, KernelNumbers, measure_kernels
from featviz.models.first_layer import carried_kernels, first_convolution, first_kernels, leaves
from featviz.models.layers import activations
from featviz.models.model import Layer, Model
from featviz.models.units import parse_units

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Kernels", "composite_kernels", "kernel_growth", "kernel_sheet", "measure_kernels"]

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True, repr=False)
class Kernels(results.Result):
    """The kernels of one convolution as pictures."""

    kind: ClassVar[str] = "kernels"

    model_name: str
    layer: str
    units: tuple[int, ...]
    """which units, (N,)"""
    weights: Tensor
    """(N, 3, k, k): red, green, blue weights, in units of the normalised input"""
    composite: bool
    """computed through the layers below, not the layer's own weights"""
    ignored: tuple[str, ...]
    """what a composite leaves out, in words"""
    mosaics: Tensor | None
    """(N, 3, H, W) in [0, 1] for the second convolution: which first kernels excite it where"""
    measured: KernelNumbers
    shared_scale: bool

    @property
    def pictures(self) -> Tensor:
        """(N, 3, k, k) in [0, 1]; grey is 0."""
        limit = float(self.weights.abs().max()) if self.shared_scale else None
        return images.around_gray(self.weights, limit)

    @property
    def order(self) -> Tensor:
        """(N,) rows in an instructive order: by group, edges by orientation, colours by hue."""
        m = self.measured
        within = torch.where(m.group == 2, m.hue, m.orientation)
        within = torch.where(m.group == 1, m.frequency, within)
        within = torch.where(m.group == 3, -m.norm, within)
        keys = zip(m.group.tolist(), within.tolist(), strict=True)
        return torch.tensor(
            [i for i, _ in sorted(enumerate(keys), key=lambda pair: (pair[1], pair[0]))]
        )

    @property
    def title(self) -> str:
        return f"Kernels of {self.layer} in {self.model_name}"

    def numbers(self) -> dict[str, results.Number]:
        m = self.measured
        counts = torch.bincount(m.group, minlength=len(GROUPS)).tolist()
        size = "x".join(map(str, self.weights.shape[-2:]))
        found = {
            "kernels": results.Number(len(self.units), "", f"of {size} pixels"),
            "oriented": results.Number(counts[0], "", "light-dark edges and gratings"),
            "undirected": results.Number(counts[1], "", "light-dark, without a direction"),
            "coloured": results.Number(counts[2], "", "more than half of the energy is colour"),
            "faint": results.Number(
                int(m.faint.sum()), "", f"norm below {FAINT:.0%} of the median norm"
            ),
            "noisy": results.Number(
                int(m.noisy.sum()), "", f"spectrum spread above {NOISY:.0%} of white noise's"
            ),
        }
        edges = m.frequency[m.group == 0]
        if len(edges):
            found["median wavelength"] = results.Number(
                float(1 / edges.median()), "pixels", "of the oriented kernels"
            )
        return found

    @property
    def _scaling(self) -> str:
        if self.shared_scale:
            return "All share one scale: grey is 0, the largest absolute weight of all is full."
        return "Each is scaled by its own largest absolute weight; grey is 0."

    @property
    def _what(self) -> str:
        if not self.composite:
            return f"Weights of {self.layer} in the normalised picture's red, green and blue."
        return (
            f"{self.layer} through the layers below, as if they were linear: a rough guide. "
            f"Left out: {', '.join(self.ignored)}."
        )

    def write(self, folder: results.Folder) -> None:
        pictures = self.pictures
        size = max(self.weights.shape[-2:])
        about = f"{self._what} {self._scaling}"
        if self.mosaics is not None:
            folder.figure(
                "mosaics.png",
                self.plot(),
                caption=_MOSAIC,
                alt=f"For each unit of {self.layer} a mosaic of first-layer kernels",
            )
        elif not self.composite:
            folder.figure(
                "kernels-sorted.png",
                self.plot(),
                caption="Sorted: edges by orientation (under each: unit and degrees), blobs by "
                f"wavelength, colours by hue, doubtful ones last. {about}",
                alt=f"The kernels of {self.layer} in groups: " + self._groups_in_words(),
            )
        sheet = images.contact_sheet(pictures, gap=max(1, size // 11))
        folder.figure(
            "kernels.png",
            images.enlarge(sheet, max(1, min(8, 900 // sheet.shape[-1]))),
            caption=f"By unit, in reading order. {about}",
            pixelated=True,
            alt=f"Contact sheet of the {len(self.units)} kernels of {self.layer}",
        )
        for row, unit in enumerate(self.units):
            if self.mosaics is not None:
                picture, caption = self.mosaics[row], f"What excites {self.layer}:{unit}. {_MOSAIC}"
            else:
                picture = pictures[row]
                caption = f"Kernel of {self.layer}:{unit}: {self._describe(row)}. {about}"
            folder.figure(
                f"units/{_file(self.layer)}-{unit}.png",
                images.enlarge(picture, max(1, round(176 / max(picture.shape[-2:])))),
                caption=caption,
                units=[f"{self.layer}:{unit}"],
                pixelated=True,
                alt=f"Kernel of {self.layer}:{unit}, {self._describe(row)}",
            )
        m = self.measured
        columns = (
            "norm",
            "colourfulness",
            "hue",
            "orientation",
            "coherence",
            "frequency",
            "spread",
        )
        values = [getattr(m, name) for name in columns]
        folder.table(
            "kernels.csv",
            ("unit", "group", *columns, "faint", "noisy"),
            [
                (
                    unit,
                    GROUPS[int(m.group[i])],
                    *(f"{float(v[i]):.6g}" for v in values),
                    int(m.faint[i]),
                    int(m.noisy[i]),
                )
                for i, unit in enumerate(self.units)
            ],
            caption="Norm, colour, orientation, frequency and roughness of each kernel.",
        )
        folder.arrays(
            "kernels.npz",
            {
                "weights": self.weights.numpy(),
                "units": torch.tensor(self.units).numpy(),
                "order": self.order.numpy(),
            },
            caption="weights (N, 3, k, k) as red, green, blue; their units; rows in sorted order.",
        )

    def _groups_in_words(self) -> str:
        counts = torch.bincount(self.measured.group, minlength=len(GROUPS)).tolist()
        return ", ".join(f"{n} {name}" for n, name in zip(counts, GROUPS, strict=True) if n)

    def _describe(self, row: int) -> str:
        m = self.measured
        group = int(m.group[row])
        if group == 3:
            return "rough as noise" if m.noisy[row] else "faint"
        wave = f"wavelength {float(1 / m.frequency[row]):.1f} pixels"
        stripes = f"stripes at {float(m.orientation[row]):.0f}°, {wave}"
        if group == 2:
            colours = f"coloured ({float(m.colourfulness[row]):.0%} of the energy)"
            return f"{colours}, {stripes}" if m.coherence[row] >= ORIENTED else colours
        return stripes if group == 0 else f"no direction, {wave}"

    def plot(self) -> Figure:
        """The layer's own kernels sorted into groups; for deeper ones mosaics or composites."""
        m = self.measured
        names = [str(unit) for unit in self.units]
        if self.composite:
            shown = self.pictures if self.mosaics is None else self.mosaics
            return _grouped_figure(self.title, shown, [("", list(range(len(names))))], names, 12)
        order = self.order.tolist()
        blocks = [
            (f"{name.capitalize()} ({len(members)})", members)
            for g, name in enumerate(GROUPS)
            if (members := [i for i in order if m.group[i] == g])
        ]
        labels = [
            f"{name} · {float(m.orientation[i]):.0f}°" if m.group[i] == 0 else name
            for i, name in enumerate(names)
        ]
        return _grouped_figure(self.title, self.pictures, blocks, labels, 16)


_MOSAIC = (
    "At each place of the unit's window the first-layer kernel that excites it most (largest "
    "weight times the kernel's norm), as strong as that product is against the unit's largest "
    "one. What inhibits it is not shown; the tiles stand apart, in the picture they overlap."
)


def _grouped_figure(
    title: str,
    pictures: Tensor,
    blocks: Sequence[tuple[str, list[int]]],
    labels: Sequence[str],
    columns: int,
) -> Figure:
    """Labelled sheets under each other, every block of rows with its heading."""
    columns = min(columns, max(4, len(labels)))
    wide, high = 9.6, 0.45  # inches; axes are placed by hand, so that no room is left over
    cell = (wide - 0.1) / (columns * (1 + _GAP) - _GAP)
    places = []
    for name, members in blocks:
        high += 0.32 if name else 0.0
        rows = -(-len(members) // columns)
        places.append((high, rows * cell * (1 + _BELOW)))
        high += places[-1][1]
    figure = plotting.new_figure(wide, high)
    figure.set_layout_engine("none")
    figure.text(
        0.5, 1 - 0.22 / high, title, fontsize=11, ha="center", va="center", color=plotting.INK
    )
    for (name, members), (top, height) in zip(blocks, places, strict=True):
        ax = figure.add_axes(
            (0.05 / wide, 1 - (top + height) / high, 1 - 0.1 / wide, height / high)
        )
        _labelled_sheet(ax, pictures[members], [labels[i] for i in members], columns)
        if name:
            ax.set_title(name, loc="left", fontsize=9, color=plotting.INK, pad=4)
    return figure


_GAP, _BELOW = 1 / 12, 0.28  # between cells and under them, as shares of a cell


def _labelled_sheet(ax: Axes, pictures: Tensor, labels: Sequence[str], columns: int) -> None:
    """Kernels side by side with a word under each, all in one picture."""
    count, _, height, width = pictures.shape
    rows = -(-count // columns)
    # Blown up with hard pixels first, so that gaps may be finer than a kernel's pixel.
    big = images.enlarge(pictures, max(1, round(96 / max(height, width))))
    height, width = big.shape[-2:]
    gap, below = round(width * _GAP), round(height * _BELOW)
    sheet = big.new_ones(3, rows * (height + below), columns * (width + gap) - gap)
    for i, picture in enumerate(big):
        top, left = i // columns * (height + below), i % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = picture
        ax.text(
            left + width / 2,
            top + height + below * 0.42,
            labels[i],
            fontsize=6,
            ha="center",
            va="center",
            color=plotting.INK,
        )
    plotting.show_image(ax, sheet)
    ax.set_aspect("auto")


def kernel_sheet(
    model: Model,
    layer: str | None = None,
    *,
    units: str | Sequence[int | str] | None = None,
    shared_scale: bool = False,
    progress: Progress | None = None,
) -> Kernels:
    """The kernels of a convolution as pictures, with numbers for colour, direction and noise.

    layer: "conv1" shows its own weights; a deeper convolution is projected through the layers
        below as if they were linear. Default: the model's first convolution
    units: "0-7", "3,12", "all" or a sequence; default: all
    shared_scale: draw all kernels with one scale, so that faint ones look faint; default: each by
        its own largest absolute weight, which shows shapes best

    Raises UserError for a layer that is no convolution and for unknown units.

        featviz.kernel_sheet(model, "conv1").save("run/kernels-conv1")
    """
    started = time.perf_counter()
    place = find_convolution(model, layer)
    chosen = parse_units(model, place.name, "all" if units is None else units)
    rows = tuple(dict.fromkeys(u.index for u in chosen))
    own = _own_weights(model, place)
    ignored: tuple[str, ...] = ()
    if own is not None:
        weights = own[list(rows)]
    else:
        weights, ignored = composite_kernels(model, place.name, rows, progress=progress)
    measured = measure_kernels(weights)
    return Kernels(
        origin=results.origin(
            model,
            started=started,
            parameters={"layer": place.name, "units": rows, "shared_scale": shared_scale},
        ),
        warnings=tuple(_doubts(place.name, rows, measured)),
        model_name=model.name,
        layer=place.name,
        units=rows,
        weights=weights,
        composite=own is None,
        ignored=ignored,
        mosaics=_mosaics(model, place, rows),
        measured=measured,
        shared_scale=shared_scale,
    )


def find_convolution(model: Model, layer: str | None) -> Layer:
    """A convolution by name, or the model's first one. Raises UserError where there is none."""
    places = [name for name, m in leaves(model) if isinstance(m, nn.Conv2d)]
    if not places:
        raise UserError(f"{model.name} has no convolution, so there are no kernels to show")
    place = model.layer(places[0] if layer is None else layer)
    if place.name not in places:
        hint = nearest(place.name, places) or f"; take one of {', '.join(places[:8])}"
        raise UserError(f"{place.name} is a {place.kind}, kernels belong to convolutions{hint}")
    return place


def _own_weights(model: Model, place: Layer) -> Tensor | None:
    """(N, 3, k, k) in red, green, blue of a convolution that sees the picture itself, else None."""
    return first_kernels(model) if place.name == first_convolution(model) else None


def _mosaics(model: Model, place: Layer, units: Sequence[int]) -> Tensor | None:
    """(N, 3, H, W) in [0, 1]: which first kernel excites a unit of the second convolution where.

    None unless only ReLUs, pools and normalisation stand between the picture's own convolution
    and this one, so that channels keep their meaning.
    """
    here = model.net.get_submodule(place.path)
    first = carried_kernels(model, place.name, into=True)
    if first is None:
        return None
    assert isinstance(here, nn.Conv2d)
    w = here.weight.detach().cpu().float()[list(units)]  # (N, C / groups, k, k)
    per_group = here.out_channels // here.groups
    inputs = torch.tensor(units)[:, None] // per_group * w.shape[1] + torch.arange(w.shape[1])
    strength = w * first.flatten(1).norm(dim=1)[inputs][..., None, None]
    best, which = strength.max(1)  # (N, k, k)
    best = best.clamp(min=0) / best.amax((1, 2), keepdim=True).clamp(min=1e-30)
    kernel = inputs.gather(1, which.flatten(1)).view_as(which)
    shapes = first / first.abs().amax((1, 2, 3), keepdim=True)
    tiles = shapes[kernel] * best[..., None, None, None]  # (N, k, k, 3, h, w)
    whole = tiles.permute(0, 3, 1, 4, 2, 5)
    _, _, rows, height, columns, width = whole.shape
    mosaics: Tensor = 0.5 + 0.5 * whole.reshape(len(w), 3, rows * height, columns * width)
    return mosaics


def _doubts(layer: str, units: Sequence[int], measured: KernelNumbers) -> list[str]:
    found = []
    for what, mask in (
        (
            "as rough as noise (untrained weights, or units that training left alone)",
            measured.noisy,
        ),
        (
            f"faint, with a norm below {FAINT:.0%} of the median (dead, or nearly so)",
            measured.faint,
        ),
    ):
        named = [str(unit) for unit, is_so in zip(units, mask.tolist(), strict=True) if is_so]
        if named:
            more = f" and {len(named) - 8} more" if len(named) > 8 else ""
            found.append(
                f"{len(named)} of {len(units)} kernels of {layer} are {what}: "
                f"{', '.join(named[:8])}{more}"
            )
    return found


IDENTITIES = frozenset(
    {
        "relu",
        "relu_",
        "leaky_relu",
        "leaky_relu_",
        "elu",
        "elu_",
        "gelu",
        "silu",
        "relu6",
        "hardswish",
        "hardtanh",
        "hardtanh_",
        "local_response_norm",
    }
)


class _Linear(TorchFunctionMode):
    """Within it ReLUs and response normalisation pass all, a max pool takes its centre."""

    def __init__(self) -> None:
        super().__init__()
        self.ignored: dict[str, None] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in IDENTITIES:
            lrn = name == "local_response_norm"
            self.ignored["local response normalisation" if lrn else "ReLUs"] = None
            return args[0]
        if name in {"max_pool2d", "max_pool2d_with_indices"}:
            self.ignored["the choice of max pools (their centre is taken)"] = None
            return _pool_centres(*args, **kwargs)
        return func(*args, **kwargs)


def _pool_centres(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """The value in the middle of each window of a max pool."""
    windows = (kernel_size, stride or kernel_size, padding, dilation)
    with torch.no_grad():
        shape = torch.max_pool2d(x.detach(), *windows, ceil_mode).shape
    axes = []
    for axis in (0, 1):
        kernel, step, pad, wide = (v if isinstance(v, int) else v[axis] for v in windows)
        centres = torch.arange(shape[2 + axis]) * step + wide * (kernel // 2) - pad
        axes.append(centres.clamp(0, x.shape[2 + axis] - 1).to(x.device))
    return x[..., axes[0][:, None], axes[1]]


def composite_kernels(
    model: Model, layer: str, units: Sequence[int], *, progress: Progress | None = None
) -> tuple[Tensor, tuple[str, ...]]:
    """Kernels of any convolution in the picture's red, green and blue: (N, 3, S, S), and what is
    left out, in words.

    The gradient of the unit to the normalised picture in the net made linear: ReLUs and response
    normalisation pass everything, max pools take the centre of their window. Exact where all the
    layers below are linear, so for a first convolution it gives its weights.

    Raises UserError for a layer whose receptive field is not known.
    """
    place = model.layer(layer)
    field = place.receptive_field
    if field is None:
        raise UserError(f"{layer} has no receptive field, so no kernel in the picture's pixels")
    # Padding must not cut the kernel: positions are taken well inside a picture that is as large
    # as it takes.
    side = max(
        model.input_size, *(2 * s + 2 * j for s, j in zip(field.size, field.stride, strict=True))
    )
    parts = []
    with _Linear() as linear:
        per_batch = max(1, min(32, 6_000_000 // side**2))
        for start in range(0, len(units), per_batch):
            some = list(units[start : start + per_batch])
            if progress:
                progress(start, len(units), f"kernels of {layer}")
            pictures = torch.zeros(
                len(some), 3, side, side, device=model.device, requires_grad=True
            )
            with torch.enable_grad():
                maps = activations(model, pictures, [layer])[layer]
                y, x = maps.shape[2] // 2, maps.shape[3] // 2
                chosen = maps[torch.arange(len(some)), some, y, x].sum()
                (gradient,) = torch.autograd.grad(chosen, pictures)
            top, left, bottom, right = field.box(y, x)
            # By the chain rule, from pictures in [0, 1] to the normalised input.
            parts.append((gradient * model.std)[..., top:bottom, left:right].detach().cpu())
    kernels = torch.cat(parts)
    used = kernels.abs().amax((0, 1))  # windows of pools reach beyond their centres
    rows, columns = used.amax(1).nonzero()[:, 0], used.amax(0).nonzero()[:, 0]
    if len(rows):
        kernels = kernels[..., rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return kernels.contiguous(), (*linear.ignored, "biases")


def _file(layer: str) -> str:
    return layer.replace("/", "-")
