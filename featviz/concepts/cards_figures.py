"""Figures of concepts: cards, an overview, the concepts of a class, and which occur together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featviz import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from featviz.concepts.cards_measured import Change, ClassConcepts, MeasuredCards

_WIDTH, _ICON, _PATCH, _GAP = 5.0, 1.56, 0.76, 0.04  # inches
_BARS, _BAR = 3, 0.7  # logits raised and lowered on a card, inches of the longest bar
_ROWS = 10  # of the overview
_CONCEPTS = 6  # of a class


def draw_card(cards: MeasuredCards, concept: int) -> Figure:
    """One concept: its maximized picture, eight patches, and the logits that it changes most."""
    changes = cards.changes(concept)
    page = plotting.Page(_WIDTH, 2.05 + (0.22 * _BARS + 0.28 if changes else 0))
    page.text(0.1, 0.17, cards.names[concept], weight="bold", fontsize=9)
    described = _short(cards.described(concept), 24)
    page.text(0.1 + 0.088 * len(cards.names[concept]) + 0.12, 0.17, described, fontsize=8.5)
    words = f"strong in {100 * float(cards.strong[concept]):.0f}% of the pictures"
    page.text(_WIDTH - 0.1, 0.17, words, fontsize=8, ha="right", color=plotting.FAINT)
    page.picture(0.1, 0.36, _ICON, cards.icons.images[concept])
    for i, patch in enumerate(cards.shown(concept)[:8]):
        row, column = divmod(i, 4)
        x = 0.1 + _ICON + 0.1 + column * (_PATCH + _GAP)
        page.picture(x, 0.36 + row * (_PATCH + _GAP), _PATCH, patch)
    if changes:
        page.text(0.1, 2.08, "raises", fontsize=8, color=plotting.FAINT)
        page.text(0.1 + _WIDTH / 2, 2.08, "lowers", fontsize=8, color=plotting.FAINT)
        end = max(abs(end) for c in (*changes[:_BARS], *changes[-_BARS:]) for end in c[1:4]) or 1.0
        sides = (changes[:_BARS], changes[: -_BARS - 1 : -1])
        for side, shown in enumerate(sides):
            for row, change in enumerate(shown):
                x, y = 0.1 + side * _WIDTH / 2, 2.29 + 0.22 * row
                name = cards.classes[change.target]
                page.text(x, y, _short(name, 17), fontsize=8)
                _bar(page, x + 1.22, y, change, _BAR / end)
                number = plotting.signed_text(change.removal, "+.2g")
                page.text(x + 2.3, y, number, fontsize=8, ha="right")
    return page.figure


def _bar(page: plotting.Page, x: float, y: float, change: Change, scale: float) -> None:
    """The removal as a bar with its interval, the gradient as a diamond, from x to the right."""
    color = plotting.RED if change.removal > 0 else plotting.BLUE
    scale = scale if change.removal > 0 else -scale
    ax = page.ground
    ax.barh(y, scale * change.removal, 0.11, x, color=color, alpha=0.7)
    ends = [x + max(0.0, scale * end) for end in (change.low, change.high)]
    ax.plot(ends, [y, y], color=plotting.INK, linewidth=0.8)
    gradient = min(max(scale * change.gradient, 0.0), _BAR)
    ax.plot([x + gradient], [y], "D", color=plotting.INK, markersize=2.2)


def draw_overview(cards: MeasuredCards) -> Figure:
    """The first concepts, a row each: picture, six patches, the classes raised and lowered."""
    rows = range(min(_ROWS, len(cards.names)))
    side, left = 0.72, 1.2
    width = left + 7 * (side + 0.05) + 0.1 + (1.75 if cards.effects else 0)
    page = plotting.Page(width, 0.3 + len(rows) * (side + 0.06))
    page.text(left, 0.16, "maximized", fontsize=7, color=plotting.FAINT)
    words = "pictures in which it is strongest"
    page.text(left + side + 0.1, 0.16, words, fontsize=7, color=plotting.FAINT)
    for row in rows:
        y = 0.3 + row * (side + 0.06)
        page.text(left - 0.08, y + side / 2, cards.names[row], fontsize=8, ha="right")
        described = _short(cards.described(row), 22)
        page.text(left - 0.08, y + side / 2 + 0.17, described, fontsize=7, ha="right")
        page.picture(left, y, side, cards.icons.images[row])
        for i, patch in enumerate(cards.shown(row)[:6]):
            x = left + side + 0.1 + i * (side + 0.05)
            page.picture(x, y, side, patch)
        changes = cards.changes(row)
        for line, change in enumerate([*changes[:2], *changes[-1:]]):
            color = plotting.RED if change.removal > 0 else plotting.BLUE
            number = plotting.signed_text(change.removal, "+.2g")
            words = f"{number} {_short(cards.classes[change.target], 18)}"
            at = left + 7 * (side + 0.05) + 0.12
            page.text(at, y + 0.17 + 0.19 * line, words, fontsize=7.5, color=color)
    return page.figure


def draw_class(cards: MeasuredCards, found: ClassConcepts) -> Figure:
    """The most important concepts of a class: picture, two patches, index with interval."""
    order = found.order[:_CONCEPTS]
    side = 0.86
    page = plotting.Page(0.15 + len(order) * (side + 0.12), 3.2)
    end = max(float(found.indices.high[order].max()), 1e-9)
    for i, concept in enumerate(order):
        x = 0.1 + i * (side + 0.12)
        name = cards.names[concept].rpartition("/")[2]
        page.text(x + side / 2, 0.14, name, fontsize=7.5, ha="center")
        page.picture(x, 0.26, side, cards.icons.images[concept])
        for k, patch in enumerate(cards.shown(concept)[:2]):
            page.picture(x + k * (side / 2 + 0.01), 1.15, side / 2 - 0.01, patch)
        total, low, high = (float(values[concept]) for values in found.indices[:3])
        middle, scale = x + side / 2, 1.2 / end
        page.ground.bar(middle, -total * scale, 0.5, 2.9, color=plotting.BLUE, alpha=0.8)
        ends = [2.9 - low * scale, 2.9 - high * scale]
        page.ground.plot([middle, middle], ends, color=plotting.INK, linewidth=1)
        page.text(x + side / 2, 3.03, f"{total:.2f}", fontsize=8, ha="center")
    return page.figure


def draw_together(cards: MeasuredCards) -> Figure:
    """The matrix of correlations, ordered by clustering, with the concepts' pictures beside it."""
    values = cards.together.nan_to_num(0.0)
    order = _cluster(values)
    count = len(order)
    cell = min(0.34, 6.0 / count)
    page = plotting.Page(1.6 + count * cell + 0.6, 0.6 + count * cell)
    ax = page.axes(1.2 + cell, cell + 0.1, count * cell, count * cell)
    image = ax.imshow(
        values[order][:, order].numpy(), cmap=plotting.DIVERGING, vmin=-1, vmax=1, aspect="auto"
    )
    plotting.bare(ax)
    for at, concept in enumerate(order):
        icon = cards.icons.images[concept]
        y = cell + 0.1 + at * cell
        page.picture(1.2, y, 0.92 * cell, icon)
        page.picture(1.2 + (at + 1) * cell, 0.08, 0.92 * cell, icon)
        size = min(7.5, 60 * cell)
        page.text(1.15, y + cell / 2, cards.names[concept], fontsize=size, ha="right")
    page.color_bar(image, 1.3 + cell + count * cell, cell + 0.1, min(1.5, count * cell))
    return page.figure


def _cluster(values: Tensor) -> list[int]:
    """An order in which correlated rows are neighbors."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(values) < 3:
        return list(range(len(values)))
    apart = (1 - values.double()).clamp(min=0).numpy()
    apart = (apart + apart.T) / 2
    apart[range(len(apart)), range(len(apart))] = 0
    order: list[int] = leaves_list(linkage(squareform(apart), "average")).tolist()
    return order


def _short(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"
