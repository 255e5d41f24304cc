"""A unit's figures as SVG, written directly: a layer has hundreds of them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from featviz import plotting, svg
from featviz.wording import counted

if TYPE_CHECKING:
    from featviz.descriptions.tuning_curves import Family
    from featviz.descriptions.unit_description import UnitDescription

KIND_COLORS = {"class": plotting.BLUE, "group": plotting.ORANGE, "pair": plotting.GREEN}
FAMILY_COLORS = (
    plotting.BLUE,
    plotting.GREEN,
    plotting.ORANGE,
    plotting.PURPLE,
    plotting.INK,
)
_WIDTH, _MARGIN, _HEIGHT, _PICTURE = 620, 10, 130, 64


def _svg(height: int, parts: Iterator[str]) -> bytes:
    return svg.finish(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" font-family="DejaVu Sans, sans-serif" '
        f'font-size="11">\n<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>\n'
        f"{chr(10).join(parts)}\n</svg>\n"
    ).encode()


def _text(x: float, y: float, words: str, *, anchor: str = "start", color: str = "#222222") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">'
        f"{html.escape(words)}</text>"
    )


def _area(points: list[tuple[float, float]], base: float, color: str, opacity: float) -> str:
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    first, last = points[0][0], points[-1][0]
    return (
        f'<polygon points="{first:.1f},{base:.1f} {line} {last:.1f},{base:.1f}" fill="{color}" '
        f'fill-opacity="{opacity}"/>\n<polyline points="{line}" fill="none" stroke="{color}" '
        f'stroke-width="1.4"/>'
    )


def unit_figure(one: UnitDescription, examples: Tensor | None) -> bytes:
    """Shares of pictures by value, inside and outside of the set, and the top pictures."""
    return _svg(_HEIGHT + 45 + (0 if examples is None else _PICTURE + 28), _unit(one, examples))


def _unit(one: UnitDescription, examples: Tensor | None) -> Iterator[str]:
    match = one.best
    assert match is not None
    color, base = KIND_COLORS[match.kind], _HEIGHT + 12.0
    shares = [counts / counts.sum().clamp(min=1) for counts in (one.outside, one.inside)]
    top = max(float(share.max()) for share in shares) or 1.0
    width = _WIDTH - 2 * _MARGIN
    span = (one.high - one.low) or 1.0
    for share, shade in zip(shares, ("#777777", color), strict=True):
        points = []
        for i, value in enumerate(share.tolist()):
            y = base - _HEIGHT * value / top
            points += [(_MARGIN + width * k / len(share), y) for k in (i, i + 1)]
        yield _area(points, base, shade, 0.3)
    at = _MARGIN + width * (match.threshold - one.low) / span
    yield f'<line x1="{at:.1f}" x2="{at:.1f}" y1="10" y2="{base}" stroke="{plotting.RED}"/>'
    right = at > _WIDTH / 2
    words = f"threshold {match.threshold:.3g}"
    yield _text(
        at + (-4 if right else 4), 20, words, anchor="end" if right else "start", color=plotting.RED
    )
    yield _text(_MARGIN, base + 15, f"{one.low:.3g}")
    yield _text(_WIDTH / 2, base + 15, "value of the unit", anchor="middle")
    yield _text(_WIDTH - _MARGIN, base + 15, f"{one.high:.3g}", anchor="end")
    inside = counted(match.pictures, "picture")
    yield _text(_MARGIN, base + 30, f"{inside} of {match.words}", color=color)
    others = f"{match.others:,} others (shares of pictures)"
    yield _text(_WIDTH - _MARGIN, base + 30, others, anchor="end", color="#555555")
    if examples is None:
        return
    yield _text(_MARGIN, base + 50, "highest on")
    for i, picture in enumerate(examples):
        x = _MARGIN + 75 + i * (_PICTURE + 6)
        yield (
            f'<image x="{x}" y="{base + 38:.0f}" width="{_PICTURE}" height="{_PICTURE}" '
            f'href="data:image/jpeg;base64,{_jpeg(picture)}"/>'
        )


def _jpeg(picture: Tensor) -> str:
    from featviz.pictures import images

    buffer = io.BytesIO()
    images.to_pillow(picture.float() / 255).save(buffer, format="JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


def tuning_figure(families: Sequence[Family], row: int) -> bytes:
    """A unit's curves, a panel a family; one scale for all."""
    return _svg(140, _tuning(families, row))


def _tuning(families: Sequence[Family], row: int) -> Iterator[str]:
    top = max(max(family.curve(row)) for family in families) or 1.0
    panel = _WIDTH / len(families)
    for i, family in enumerate(families):
        left, right, base = i * panel + 8, (i + 1) * panel - 8, 90.0
        curve = family.curve(row)
        step = (right - left) / (len(curve) - 1)
        points = [(left + k * step, base - 80 * v / top) for k, v in enumerate(curve)]
        yield f'<line x1="{left}" x2="{right}" y1="{base}" y2="{base}" stroke="#cccccc"/>'
        yield _area(points, base, FAMILY_COLORS[i], 0.15)
        yield _text(left, base + 14, f"{family.at[0]:.2g}", color="#555555")
        yield _text(right, base + 14, f"{family.at[-1]:.3g}", anchor="end", color="#555555")
        yield _text((left + right) / 2, base + 28, family.name, anchor="middle")
        yield _text((left + right) / 2, base + 42, family.unit, anchor="middle", color="#555555")
