"""The figure of `patch_times_kernel`: one activation as a sum, step by step, and in words.

A first layer is drawn in colors (patch, kernel, product, running sum), a deeper one by its
strongest input channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featviz import plotting
from featviz.maps.patch_products import PatchProducts
from featviz.pictures import images
from featviz.plotting import FAINT, Page, signed_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POSITIVE, NEGATIVE = "#b2182b", "#2166ac"  # the ends of the diverging colors
SHOWN = 8  # input channels of a deeper layer
MOST_DIGITS = 9  # cells of a map whose values are written into it


def calculation(r: PatchProducts) -> Figure:
    """The whole calculation: in colors for a first layer, else by input channels."""
    return _in_colors(r) if r.first else _by_channels(r)


def heading(r: PatchProducts) -> str:
    """The title of result and figure."""
    return f"Why {r.unit} responds with {r.activation:.3g} in {r.model_name}"


def in_words(r: PatchProducts) -> str:
    """The sum as one sentence."""
    return (
        f"{r.product.numel():,} products: those above zero add up to {r.positive:.4g}, those below "
        f"to {signed_text(r.negative, '.4g')}; with the bias of {signed_text(r.bias, '+.3g')} the "
        f"sum is {signed_text(r.total, '.5g')}. The model computes "
        f"{signed_text(r.activation, '.5g')}."
    )


def _as_lengths(r: PatchProducts) -> str:
    """The same sum as length times length times cosine."""
    return (
        f"The same sum again: {float(r.patch.norm()):.3g} (length of the patch, its contrast) × "
        f"{float(r.kernel.norm()):.3g} (length of the kernel) × {signed_text(r.likeness, '.2f')} "
        f"(cosine of the two, at most 1) {signed_text(r.bias, '+.3g')} (bias)."
    )


def _heading(page: Page, r: PatchProducts) -> None:
    page.text(0.25, 0.27, heading(r), fontsize=14, weight="bold")
    page.text(
        0.25,
        0.55,
        f"number {r.rank:,} of the {r.map.numel():,} positions of this picture",
        color=FAINT,
    )


def _ending(page: Page, r: PatchProducts) -> None:
    page.text(0.25, page.height - 0.42, in_words(r), fontsize=8.5)
    page.text(0.25, page.height - 0.2, _as_lengths(r), fontsize=8.5, color=FAINT)


def _in_colors(r: PatchProducts) -> Figure:
    """The calculation of a first layer: as pictures above, in numbers below."""
    page = Page(11.0, 8.0)
    product = r.product
    summed = product.sum(0)
    _heading(page, r)

    # First line: the picture, then patch x kernel = product.
    side, y = 2.1, 1.08
    xs = (2.95, 5.5, 8.05)
    whole = page.axes(0.25, y, side, side)
    plotting.show_image(whole, r.picture)
    patch = page.axes(xs[0], y, side, side)
    assert r.look is not None
    plotting.show_image(patch, r.look, pixelated=True)
    _hatch(patch, r.outside)
    if r.box is not None:
        plotting.mark_box(whole, r.box, r.picture)
        _zoom(page, whole, patch, r.box)
    kernel = page.axes(xs[1], y, side, side)
    plotting.show_image(kernel, images.around_gray(r.kernel.float()), pixelated=True)
    bar = _signed(page, xs[2], y, side, summed, _limit(summed), r.outside)
    page.color_bar(bar, xs[2] + side + 0.06, y, side)
    page.text(0.25, y - 0.13, "the picture")
    for x, words, note in zip(
        xs,
        ("the patch", "the kernel", "patch × kernel, summed over colors"),
        (
            "hatched: padding, 0 when normalized"
            if bool(r.outside.any())
            else f"{r.patch.shape[2]} × {r.patch.shape[1]} pixels of the picture",
            "gray is 0",
            "red: products above zero, blue: below",
        ),
        strict=True,
    ):
        page.text(x, y - 0.13, words)
        page.text(x, y + side + 0.13, note, fontsize=7.5, color=FAINT)
    for x, sign in ((xs[1] - 0.225, "×"), (xs[2] - 0.225, "=")):
        page.text(x, y + side / 2, sign, fontsize=20, ha="center")

    # Second line: the same color by color, in the numbers that are multiplied.
    cell, step, y = 0.98, 1.06, 3.98
    for x, values, words in (
        (0.85, r.patch, "values"),
        (2.55, r.kernel, "weights"),
        (4.25, product, "products"),
    ):
        page.text(x, y - 0.13, words)
        padding = None if values is r.kernel else r.outside
        for c in range(3):
            bar = _signed(page, x, y + c * step, cell, values[c], _limit(values), padding)
        page.color_bar(bar, x + cell + 0.06, y, 2 * step + cell)
    page.text(5.82, y - 0.13, "sum")
    for c, color in enumerate(r.channels):
        middle = y + c * step + cell / 2
        page.text(0.78, middle, color, fontsize=8.5, ha="right")
        page.text(2.42, middle, "×", fontsize=12, ha="center")
        page.text(4.12, middle, "=", fontsize=12, ha="center")
        page.text(5.82, middle, signed_text(float(r.contributions[c])), fontsize=9.5)

    page.text(6.95, y - 0.13, "the running sum")
    _running_sum(page.axes(6.95, y, 3.6, 1.5), summed, r)
    page.text(6.95, y + 2.1, "this unit at every position of the picture")
    _place_among(page.axes(6.95, y + 2.25, 3.6, 0.65), r)
    _ending(page, r)
    return page.figure


def _by_channels(r: PatchProducts) -> Figure:
    """The calculation of a deeper layer: which input channels made the sum, and where."""
    parts = r.contributions
    strongest = parts.abs().argsort(descending=True, stable=True)[:SHOWN]
    shown = strongest[parts[strongest].argsort(descending=True, stable=True)].tolist()
    page = Page(11.0, 8.45 if r.below is not None else 7.8)
    _heading(page, r)
    side, y = 2.3, 1.08
    whole = page.axes(0.25, y, side, side)
    plotting.show_image(whole, r.picture)
    page.text(0.25, y - 0.13, "the picture")
    if r.box is not None:
        plotting.mark_box(whole, r.box, r.picture)
        part = page.axes(2.95, y, side, side)
        plotting.show_image(part, images.crop_box(r.picture, r.box))
        page.text(2.95, y - 0.13, "its receptive field")
        _zoom(page, whole, part, images.clip_box(r.box, r.picture))
    page.text(6.55, y - 0.13, "what each input channel adds")
    _contributions(page.axes(6.55, y, 3.7, side), r, shown)

    cell, step, left = 1.0, 1.17, 1.0
    y = 3.75
    if r.below is not None:
        y += 0.65
        page.text(left - 0.12, y - 0.5, "first-layer\nkernel", fontsize=8.5, ha="right")
    for j, (words, values) in enumerate(
        (("values", r.patch), ("weights", r.kernel), ("products", r.product))
    ):
        top = y + j * (cell + 0.1)
        padding = None if values is r.kernel else r.outside
        limit = _limit(values[shown])
        for i, c in enumerate(shown):
            bar = _signed(page, left + i * step, top, cell, values[c], limit, padding)
        page.color_bar(bar, left + len(shown) * step - 0.06, top, cell)
        page.text(left - 0.12, top + cell / 2, words, fontsize=8.5, ha="right")
    bottom = y + 3 * (cell + 0.1) + 0.04
    page.text(left - 0.12, bottom, "sum", fontsize=8.5, ha="right")
    for i, c in enumerate(shown):
        middle = left + i * step + cell / 2
        page.text(middle, y - 0.11, r.channels[c], fontsize=8, ha="center")
        page.text(middle, bottom, signed_text(float(parts[c])), ha="center", weight="bold")
        if r.below is not None:
            thumb = page.axes(middle - 0.29, y - 0.82, 0.58, 0.58)
            plotting.show_image(thumb, r.below[c], pixelated=True)
    _ending(page, r)
    return page.figure


def _limit(values: Tensor) -> float:
    """The end of a color scale that is symmetric about zero."""
    return float(values.abs().max()) or 1.0


def _signed(
    page: Page,
    x: float,
    y: float,
    side: float,
    values: Tensor,
    limit: float,
    outside: Tensor | None,
) -> Any:
    """A map of signed values (k, k), with its numbers where there are few. Returns the image."""
    ax = page.axes(x, y, side, side)
    image = plotting.show_map(ax, values, -limit, limit)
    if outside is not None:
        _hatch(ax, outside)
    if values.numel() <= MOST_DIGITS:
        form = ".2f" if limit < 10 else ".1f"
        for row, line in enumerate(values.tolist()):
            for column, value in enumerate(line):
                ax.text(
                    column,
                    row,
                    signed_text(value, form),
                    ha="center",
                    va="center",
                    fontsize=min(9.0, 6.5 * side),
                    color="white" if abs(value) > 0.6 * limit else plotting.INK,
                )
    return image


def _hatch(ax: Axes, outside: Tensor) -> None:
    """Hatch the cells (k, k) that are padding."""
    from matplotlib.patches import Rectangle

    for row, column in outside.nonzero().tolist():
        style: dict[str, Any] = {"linewidth": 0, "hatch": "////", "edgecolor": "#888888"}
        ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, **style))


def _zoom(page: Page, whole: Axes, part: Axes, box: images.Box) -> None:
    """Lines from a box in the picture to the panel that enlarges it."""
    from matplotlib.patches import ConnectionPatch

    top, _, bottom, right = box
    for y, corner in ((top, 1), (bottom, 0)):
        page.figure.add_artist(
            ConnectionPatch(
                (right - 0.5, y - 0.5),
                (0, corner),
                whole.transData,
                part.transAxes,
                color=plotting.ORANGE,
                linewidth=0.8,
                alpha=0.8,
            )
        )


def _small(ax: Axes, xlabel: str, ylabel: str = "") -> None:
    plotting.lines(ax, xlabel=xlabel, ylabel=ylabel, points=8)
    ax.grid(False)


def _running_sum(ax: Axes, summed: Tensor, r: PatchProducts) -> None:
    """The sum as it grows over the pixels of the patch, with the bias as its last step."""
    cells, columns = summed.numel(), summed.shape[1]
    running = torch.cat([summed.new_zeros(1), summed.flatten().cumsum(0)]).numpy()
    end = cells * 1.03
    ax.axhline(0, color="#999999", linewidth=0.7)
    for edge in range(columns, cells, columns):
        ax.axvline(edge, color="#eeeeee", linewidth=0.6, zorder=0)
    ax.fill_between(range(cells + 1), running, 0, color=plotting.BLUE, alpha=0.12, linewidth=0)
    ax.plot(range(cells + 1), running, color=plotting.BLUE, linewidth=1.6)
    ax.plot([cells, end], [running[-1], r.total], color=plotting.ORANGE, linewidth=1.6)
    ax.plot([end], [r.total], "o", color=plotting.ORANGE, markersize=5)
    ax.annotate(
        signed_text(r.total, ".3g"),
        (end, r.total),
        xytext=(7, 0),
        textcoords="offset points",
        fontsize=10,
        weight="bold",
        va="center",
        color=plotting.INK,
        annotation_clip=False,
    )
    ax.set_xlim(0, cells * 1.18)
    ax.set_xticks([0, cells // 2, cells])
    _small(ax, "pixels of the patch in reading order, then the bias (orange)", "sum so far")


def _place_among(ax: Axes, r: PatchProducts) -> None:
    """The activation here among those at all positions of the picture."""
    ax.hist(r.map.flatten().numpy(), bins=60, color="#b5b5b5", linewidth=0, log=True)
    ax.axvline(r.activation, color=plotting.ORANGE, linewidth=1.8)
    _small(ax, "activation; orange is here (heights are logarithmic)")
    ax.yaxis.set_visible(False)
    ax.spines["left"].set_visible(False)


def _contributions(ax: Axes, r: PatchProducts, shown: list[int]) -> None:
    parts = r.contributions
    values = [float(parts[c]) for c in shown]
    rest = float(parts.sum()) - sum(values)
    others = len(parts) - len(shown)
    names = [r.channels[c] for c in shown]
    if others:
        names.append(f"{others} others")
        values.append(rest)
    names += ["bias", "sum"]
    values += [r.bias, r.total]
    colors = [POSITIVE if v > 0 else NEGATIVE for v in values[:-1]] + [plotting.INK]
    bars = ax.barh(range(len(values)), values, color=colors, height=0.68)
    ax.bar_label(bars, [signed_text(v) for v in values], fontsize=7.5, padding=2)
    ax.set_yticks(range(len(values)), names)
    ax.invert_yaxis()
    ax.axvline(0, color="#999999", linewidth=0.7)
    _small(ax, "")
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)
    ax.margins(x=0.18)
    ax.tick_params(labelsize=7.5)
