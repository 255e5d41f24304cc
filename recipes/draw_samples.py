"""Draw the sample pictures that come with featviz: small pictures of things, from seeds.

python recipes/draw_samples.py [--out featviz/assets/samples]

Each kind becomes one JPEG sheet of 16 pictures (rows from left to right). Picture 3 of "goldfish"
is drawn from the kind's name and the number 3, the same on every machine. The kinds have names of
Tiny ImageNet's classes, so alexnet-mini can classify them; "checks", "dots" and "stripes" are plain
patterns, for which the activations of first-layer kernels can be foreseen.
"""

from __future__ import annotations

import argparse
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from featviz.data.samples import COLUMNS, PER_KIND, SIDE

_FINE = 2  # drawn this much larger and shrunk, for smooth edges
QUALITY = 90  # of the JPEG files, without subsampling of color

Color = tuple[int, int, int]
Point = tuple[float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parents[1] / "featviz" / "assets" / "samples"
    parser.add_argument("--out", type=Path, default=default)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for kind in DRAWINGS:
        path = out / f"{kind}.jpg"
        draw_sheet(kind).save(path, quality=QUALITY, subsampling=0, optimize=True)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def draw_sheet(kind: str) -> Image.Image:
    """All pictures of a kind in one."""
    sheet = Image.new("RGB", (COLUMNS * SIDE, -(-PER_KIND // COLUMNS) * SIDE))
    for number in range(PER_KIND):
        sheet.paste(draw(kind, number), (number % COLUMNS * SIDE, number // COLUMNS * SIDE))
    return sheet


def draw(kind: str, number: int) -> Image.Image:
    """Picture `number` of a drawn kind, SIDE pixels a side, always the same."""
    rng = _random(kind, number)
    sheet = _Sheet(rng)
    DRAWINGS[kind](sheet, rng)
    pixels = np.asarray(sheet.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.float64)
    # A little light from one side and a little grain, as in a photograph.
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    light = 1 + 0.12 * (x * math.cos(angle) + y * math.sin(angle))
    grain = rng.normal(0, 1.5, (SIDE, SIDE, 1))
    return Image.fromarray((pixels * light[..., None] + grain).clip(0, 255).astype(np.uint8))


def _random(kind: str, number: int) -> np.random.Generator:
    """A generator of its own for each picture."""
    return np.random.default_rng([zlib.crc32(kind.encode()), number])


class _Sheet:
    """A canvas with coordinates from 0 to 1, y downwards."""

    def __init__(self, rng: np.random.Generator):
        from PIL import Image

        self.side = SIDE * _FINE
        self.rng = rng
        self.image = Image.new("RGB", (self.side, self.side))

    def _pixels(self, points: list[Point]) -> list[Point]:
        return [(x * self.side, y * self.side) for x, y in points]

    def backdrop(self, *colors: Color, rough: float = 14.0) -> None:
        """A soft gradient from the first color at the top to the last, with cloudy patches."""
        from PIL import Image

        rows = np.linspace(0, len(colors) - 1, 48)
        ramp = np.stack(
            [np.interp(rows, range(len(colors)), [c[i] for c in colors]) for i in range(3)], 1
        )
        clouds = self.rng.normal(0, rough, (7, 7, 1)) + self.rng.normal(0, rough / 2, (7, 7, 3))
        soft = np.stack(
            [
                np.asarray(
                    Image.fromarray(clouds[..., i].astype(np.float32)).resize(
                        (48, 48), Image.Resampling.BICUBIC
                    )
                )
                for i in range(3)
            ],
            -1,
        )
        small = (ramp[:, None, :] + soft).clip(0, 255).astype(np.uint8)
        self.image = Image.fromarray(small).resize((self.side, self.side), Image.Resampling.BICUBIC)

    def polygon(self, points: list[Point], color: Color) -> None:
        self._draw().polygon(self._pixels(points), fill=color)

    def line(self, points: list[Point], color: Color, width: float) -> None:
        self._draw().line(
            self._pixels(points), fill=color, width=max(1, round(width * self.side)), joint="curve"
        )

    def disc(self, x: float, y: float, rx: float, ry: float, color: Color) -> None:
        box = self._pixels([(x - rx, y - ry), (x + rx, y + ry)])
        self._draw().ellipse([*box[0], *box[1]], fill=color)

    def box(self, x0: float, y0: float, x1: float, y1: float, color: Color, r: float = 0) -> None:
        box = self._pixels([(x0, y0), (x1, y1)])
        self._draw().rounded_rectangle([*box[0], *box[1]], radius=r * self.side, fill=color)

    def arc(
        self, x: float, y: float, rx: float, ry: float, angles: Point, color: Color, width: float
    ) -> None:
        box = self._pixels([(x - rx, y - ry), (x + rx, y + ry)])
        self._draw().arc(
            [*box[0], *box[1]], *angles, fill=color, width=max(1, round(width * self.side))
        )

    def ball(self, x: float, y: float, rx: float, ry: float, color: Color) -> None:
        """An ellipse shaded like a lit sphere, with a soft shadow on the ground."""
        from PIL import Image

        self.shadow(x, y + ry * 0.93, rx * 0.95, ry * 0.18)
        px, py = math.ceil(rx * self.side), math.ceil(ry * self.side)
        v, u = np.mgrid[-1 : 1 : 2 * py * 1j, -1 : 1 : 2 * px * 1j]
        z = np.sqrt(np.clip(1 - u**2 - v**2, 0, 1))
        bright = 0.45 + 0.6 * np.clip(-0.45 * u - 0.55 * v + 0.7 * z, 0, 1)
        gloss = 150 * np.clip(-0.42 * u - 0.5 * v + 0.757 * z, 0, 1) ** 40
        shaded = (np.array(color) * bright[..., None] + gloss[..., None]).clip(0, 255)
        mask = Image.fromarray(((u**2 + v**2 <= 1) * 255).astype(np.uint8))
        corner = (round(x * self.side) - px, round(y * self.side) - py)
        self.image.paste(Image.fromarray(shaded.astype(np.uint8)), corner, mask)

    def shadow(self, x: float, y: float, rx: float, ry: float) -> None:
        """A soft dark ellipse."""
        from PIL import Image, ImageDraw

        mask = Image.new("L", (self.side // 4, self.side // 4))
        side = self.side / 4
        box = ((x - rx) * side, (y - ry) * side, (x + rx) * side, (y + ry) * side)
        ImageDraw.Draw(mask).ellipse(box, fill=130)
        mask = mask.filter(ImageFilter.GaussianBlur(side * 0.02)).resize(self.image.size)
        self.image.paste((20, 20, 25), (0, 0), mask)

    def turn(self, degrees: float) -> None:
        """Turn all that was drawn, corners filled with what is nearest inside."""
        from PIL import Image

        big = Image.fromarray(
            np.pad(np.asarray(self.image), ((self.side // 4,) * 2,) * 2 + ((0, 0),), "reflect")
        )
        turned = big.rotate(degrees, resample=Image.Resampling.BICUBIC)
        margin = (turned.width - self.side) // 2
        self.image = turned.crop((margin, margin, margin + self.side, margin + self.side))

    def _draw(self):  # type: ignore[no-untyped-def]  # pillow's ImageDraw has no public type
        return ImageDraw.Draw(self.image)


def _vary(rng: np.random.Generator, color: Color, by: float = 18.0) -> Color:
    r, g, b = (int(np.clip(c + rng.normal(0, by), 0, 255)) for c in color)
    return r, g, b


def _place(rng: np.random.Generator, slack: float = 0.07) -> tuple[float, float, float]:
    """Centre and size of the thing drawn."""
    return (
        0.5 + rng.uniform(-slack, slack),
        0.5 + rng.uniform(-slack, slack),
        rng.uniform(0.85, 1.15),
    )


_WOOD, _TABLE, _LEAF, _SKY = (146, 98, 58), (196, 176, 150), (70, 120, 48), (150, 190, 226)
_WATER, _DEEP, _WALL, _INK = (60, 150, 170), (12, 26, 74), (222, 216, 205), (28, 24, 26)


def _goldfish(s: _Sheet, rng: np.random.Generator) -> None:
    s.backdrop(_vary(rng, (120, 200, 210)), _vary(rng, _WATER), _vary(rng, (24, 84, 92)))
    for _ in range(3):
        weed = rng.uniform(0, 1)
        points = [(weed + 0.03 * math.sin(k), 1.02 - 0.07 * k) for k in range(rng.integers(4, 9))]
        s.line(points, _vary(rng, (36, 110, 60)), 0.018)
    x, y, k = _place(rng)
    orange, deep = _vary(rng, (250, 132, 24), 12), _vary(rng, (214, 74, 10), 12)
    tail = [
        (x + 0.2 * k, y),
        (x + 0.44 * k, y - 0.2 * k),
        (x + 0.36 * k, y),
        (x + 0.44 * k, y + 0.19 * k),
    ]
    s.polygon(tail, deep)
    s.polygon(
        [(x - 0.08 * k, y - 0.13 * k), (x + 0.05 * k, y - 0.28 * k), (x + 0.17 * k, y - 0.07 * k)],
        deep,
    )
    s.polygon(
        [(x - 0.02 * k, y + 0.12 * k), (x + 0.06 * k, y + 0.26 * k), (x + 0.13 * k, y + 0.08 * k)],
        deep,
    )
    body = [
        (x + k * 0.3 * math.cos(t), y + k * 0.17 * math.sin(t)) for t in np.linspace(0, 6.28, 60)
    ]
    s.polygon(body, orange)
    s.disc(x - 0.03 * k, y + 0.06 * k, 0.18 * k, 0.07 * k, _vary(rng, (255, 184, 92), 8))
    for row in range(3):
        for column in range(4):
            cx, cy = x + (0.05 * column - 0.06) * k, y + (0.06 * row - 0.06) * k
            s.arc(cx, cy, 0.035 * k, 0.035 * k, (-70, 70), deep, 0.006)
    s.arc(x - 0.1 * k, y, 0.05 * k, 0.11 * k, (-80, 80), deep, 0.01)
    s.disc(x - 0.2 * k, y - 0.04 * k, 0.032 * k, 0.032 * k, (250, 246, 230))
    s.disc(x - 0.205 * k, y - 0.04 * k, 0.018 * k, 0.018 * k, _INK)
    for _ in range(5):
        r = rng.uniform(0.008, 0.02)
        s.arc(
            rng.uniform(0.05, 0.4), rng.uniform(0.05, 0.5), r, r, (0, 360), (225, 244, 246), 0.006
        )
    s.turn(rng.uniform(-25, 25))
    _mirror(s, rng)


def _jellyfish(s: _Sheet, rng: np.random.Generator) -> None:
    s.backdrop(_vary(rng, (24, 70, 160)), _vary(rng, (16, 40, 120)), _vary(rng, _DEEP, 10))
    x, y, k = _place(rng)
    glow = _vary(rng, (240, 168, 214), 24)
    pale = tuple(min(255, c + 40) for c in glow)
    for i in range(9):
        start = x + (i - 4) * 0.052 * k
        sway = rng.uniform(-0.05, 0.05)
        length = rng.uniform(0.25, 0.48) * k
        points = [
            (start + sway * t + 0.018 * math.sin(9 * t + i), y - 0.02 * k + length * t)
            for t in np.linspace(0, 1, 24)
        ]
        s.line(points, _vary(rng, glow, 14), 0.008 if i % 2 else 0.016)
    dome = [
        (x + 0.27 * k * math.cos(t), y - 0.04 * k + 0.24 * k * math.sin(t))
        for t in np.linspace(math.pi, 2 * math.pi, 50)
    ]
    frill = [
        (x + 0.27 * k * math.cos(t), y - 0.04 * k + 0.025 * k * math.sin(11 * t) + 0.03 * k)
        for t in np.linspace(0, math.pi, 60)
    ]
    s.polygon(dome + frill, glow)
    s.disc(x - 0.07 * k, y - 0.15 * k, 0.1 * k, 0.06 * k, pale)  # type: ignore[arg-type]
    for i in range(-2, 3):
        s.line(
            [(x + 0.01 * i, y - 0.26 * k), (x + 0.1 * i * k, y - 0.03 * k)],
            _vary(rng, (196, 110, 190), 12),
            0.006,
        )
    s.turn(rng.uniform(-30, 30))


def _ladybug(s: _Sheet, rng: np.random.Generator) -> None:
    s.backdrop(_vary(rng, (120, 170, 70)), _vary(rng, _LEAF), _vary(rng, (40, 90, 40)))
    angle = rng.uniform(-0.5, 0.5)
    s.line([(0, 0.5 - angle), (1, 0.5 + angle)], _vary(rng, (150, 190, 96)), 0.02)
    for i in range(6):
        u = i / 5
        s.line(
            [(u, 0.5 + angle * (2 * u - 1)), (u + 0.15, 0.5 + angle * (2 * u - 1) - 0.5)],
            _vary(rng, (140, 184, 90), 6),
            0.008,
        )
    x, y, k = _place(rng)
    for side in (-1, 1):
        for i in (-1, 0, 1):
            s.line(
                [(x + side * 0.2 * k, y + 0.1 * i * k), (x + side * 0.31 * k, y + 0.15 * i * k)],
                _INK,
                0.016,
            )
    s.ball(x, y - 0.22 * k, 0.12 * k, 0.1 * k, (52, 46, 48))
    s.disc(x - 0.06 * k, y - 0.26 * k, 0.025 * k, 0.02 * k, (240, 238, 230))
    s.disc(x + 0.06 * k, y - 0.26 * k, 0.025 * k, 0.02 * k, (240, 238, 230))
    s.ball(x, y, 0.25 * k, 0.25 * k, _vary(rng, (228, 34, 20), 14))
    s.line([(x, y - 0.24 * k), (x, y + 0.24 * k)], _INK, 0.012)
    for side in (-1, 1):
        for dx, dy, r in ((0.1, -0.1, 0.042), (0.15, 0.04, 0.04), (0.07, 0.13, 0.036)):
            s.disc(x + side * dx * k, y + dy * k, r * k, r * k, _INK)
    s.turn(rng.uniform(-70, 70))


def _basketball(s: _Sheet, rng: np.random.Generator) -> None:
    s.backdrop(_vary(rng, (120, 128, 140), 25), _vary(rng, (168, 150, 130), 20), _vary(rng, _WOOD))
    for i in range(7):
        s.line([(-0.1 + 0.2 * i, 1), (0.2 + 0.1 * i, 0.62)], _vary(rng, (120, 76, 42), 6), 0.006)
    x, y, k = _place(rng)
    r = 0.29 * k
    s.ball(x, y, r, r, _vary(rng, (232, 112, 40), 12))
    s.line([(x - r, y), (x + r, y)], _INK, 0.014)
    s.line([(x, y - r), (x, y + r)], _INK, 0.014)
    s.arc(x - 1.25 * r, y, r, r, (-53, 53), _INK, 0.014)
    s.arc(x + 1.25 * r, y, r, r, (127, 233), _INK, 0.014)
    s.turn(rng.uniform(-25, 25))


def _beacon(s: _Sheet, rng: np.random.Generator) -> None:
    s.backdrop(_vary(rng, _SKY, 25), _vary(rng, (206, 220, 232)), _vary(rng, (70, 124, 160)))
    s.box(0, 0.74, 1, 1, _vary(rng, (40, 96, 138)))
    for _ in range(14):
        u, v = rng.uniform(0, 1), rng.uniform(0.77, 0.98)
        s.line([(u, v), (u + 0.08, v)], _vary(rng, (120, 168, 196)), 0.005)
    x, y, k = _place(rng, 0.12)
    base, top = y + 0.3, y - 0.2 * k
    s.polygon(
        [
            (x - 0.36, base + 0.1),
            (x - 0.2, base - 0.05),
            (x + 0.24, base - 0.07),
            (x + 0.38, base + 0.1),
        ],
        _vary(rng, (92, 88, 78)),
    )
    stripe = _vary(rng, (206, 34, 34), 15)
    for i in range(6):
        a, b = i / 6, (i + 1) / 6
        wide = [0.1 - 0.045 * (1 - t) for t in (a, b)]
        ya, yb = (top + (base - 0.05 - top) * t for t in (a, b))
        s.polygon(
            [(x - wide[0], ya), (x + wide[0], ya), (x + wide[1], yb), (x - wide[1], yb)],
            stripe if i % 2 else (244, 242, 236),
        )
    s.box(x - 0.075, top - 0.02, x + 0.075, top, _INK)
    s.box(x - 0.04, top - 0.09, x + 0.04, top - 0.02, (255, 236, 150))
    s.polygon([(x - 0.06, top - 0.09), (x, top - 0.16), (x + 0.06, top - 0.09)], stripe)


def _school_bus(s: _Sheet, rng: np.random.Generator) -> None:
    s.backdrop(_vary(rng, _SKY), _vary(rng, (200, 210, 210)), _vary(rng, (120, 140, 96)))
    s.box(0, 0.72, 1, 1, _vary(rng, (96, 96, 100), 10))
    x, y, k = _place(rng, 0.04)
    yellow = _vary(rng, (252, 186, 22), 10)
    left, right, top, low = x - 0.38 * k, x + 0.38 * k, y - 0.2 * k, y + 0.2 * k
    s.shadow(x, low + 0.05, 0.4 * k, 0.03)
    s.box(left, top, right - 0.13 * k, low, yellow, 0.03)
    s.box(right - 0.2 * k, y - 0.01 * k, right, low, yellow, 0.03)
    for i in range(4):
        u = left + (0.04 + 0.125 * i) * k
        s.box(u, top + 0.06 * k, u + 0.1 * k, top + 0.17 * k, _vary(rng, (70, 96, 120), 10), 0.01)
    s.box(right - 0.145 * k, top + 0.06 * k, right - 0.135 * k, y, _INK)
    for v in (0.02, 0.09):
        s.line([(left, y + v * k), (right - 0.01, y + v * k)], _INK, 0.012)
    for u in (left + 0.15 * k, right - 0.13 * k):
        s.disc(u, low, 0.075 * k, 0.075 * k, _INK)
        s.disc(u, low, 0.035 * k, 0.035 * k, (168, 168, 172))
    s.disc(right - 0.02 * k, y + 0.13 * k, 0.02 * k, 0.02 * k, (255, 250, 214))
    s.turn(rng.uniform(-6, 6))
    _mirror(s, rng)


def _spider_web(s: _Sheet, rng: np.random.Generator) -> None:
    s.backdrop(_vary(rng, (44, 62, 44), 20), _vary(rng, (26, 40, 34), 12))
    x, y, k = _place(rng, 0.12)
    arms = int(rng.integers(11, 17))
    turn = rng.uniform(0, 6)
    silk = _vary(rng, (222, 228, 230), 10)
    angles = [turn + 2 * math.pi * i / arms + rng.normal(0, 0.05) for i in range(arms)]
    for a in angles:
        s.line([(x, y), (x + math.cos(a), y + math.sin(a))], silk, 0.005)
    for ring in range(1, 11):
        r = 0.055 * ring * k
        points: list[Point] = []
        for i, a in enumerate(angles):
            b = angles[(i + 1) % arms] + (2 * math.pi if i == arms - 1 else 0)
            middle, sag = (a + b) / 2, 0.9 * r
            points.append((x + r * math.cos(a), y + r * math.sin(a)))
            points.append((x + sag * math.cos(middle), y + sag * math.sin(middle)))
        s.line([*points, points[0]], silk, 0.004)
    s.disc(x, y, 0.035 * k, 0.05 * k, (60, 40, 30))


def _teapot(s: _Sheet, rng: np.random.Generator) -> None:
    s.backdrop(_vary(rng, _WALL, 22), _vary(rng, (206, 198, 186), 15), _vary(rng, _TABLE))
    x, y, k = _place(rng)
    china = _vary(
        rng,
        [(226, 226, 222), (70, 110, 168), (186, 74, 58), (90, 130, 100)][int(rng.integers(4))],
        16,
    )
    dark: Color = (china[0] * 3 // 4, china[1] * 3 // 4, china[2] * 3 // 4)
    s.arc(x + 0.24 * k, y + 0.01 * k, 0.14 * k, 0.15 * k, (-110, 110), dark, 0.04 * k)
    s.polygon(
        [
            (x - 0.18 * k, y + 0.11 * k),
            (x - 0.42 * k, y - 0.14 * k),
            (x - 0.36 * k, y - 0.17 * k),
            (x - 0.15 * k, y - 0.04 * k),
        ],
        dark,
    )
    s.ball(x, y + 0.04 * k, 0.27 * k, 0.22 * k, china)
    s.disc(x, y - 0.15 * k, 0.13 * k, 0.035 * k, dark)
    s.ball(x, y - 0.175 * k, 0.11 * k, 0.055 * k, china)
    s.ball(x, y - 0.245 * k, 0.03 * k, 0.03 * k, china)
    s.box(x - 0.13 * k, y + 0.24 * k, x + 0.13 * k, y + 0.27 * k, dark, 0.01)
    if rng.uniform() < 0.6:
        band = _vary(rng, (40, 70, 150), 30)
        for i in range(-3, 4):
            s.disc(x + 0.07 * i * k, y + 0.05 * k, 0.02 * k, 0.028 * k, band)
    _mirror(s, rng)


def _umbrella(s: _Sheet, rng: np.random.Generator) -> None:
    s.backdrop(_vary(rng, (150, 160, 176), 20), _vary(rng, (196, 200, 206)), _vary(rng, _TABLE))
    x, y, k = _place(rng)
    a, b = _vary(rng, (214, 40, 56), 50), _vary(rng, (240, 214, 90), 50)
    s.line([(x, y - 0.1 * k), (x, y + 0.33 * k)], _INK, 0.02)
    s.arc(x - 0.05 * k, y + 0.33 * k, 0.05 * k, 0.05 * k, (0, 180), _INK, 0.02)
    panels = 6
    ribs = []
    for i in range(panels + 1):
        foot = 0.4 * k * (-1 + 2 * i / panels)
        bend = [t * math.pi / 2 for t in np.linspace(0, 1, 16)]
        ribs.append([(x + foot * math.sin(t), y - 0.36 * k * math.cos(t)) for t in bend])
    for i in range(panels):
        left, right = ribs[i], ribs[i + 1]
        middle = ((left[-1][0] + right[-1][0]) / 2, y - 0.05 * k)
        s.polygon([*left, middle, *reversed(right)], b if i % 2 else a)
    for rib in ribs:
        s.line(rib, _INK, 0.004)
    s.line([(x, y - 0.36 * k), (x, y - 0.41 * k)], _INK, 0.014)
    s.turn(rng.uniform(-25, 25))


def _mushroom(s: _Sheet, rng: np.random.Generator) -> None:
    s.backdrop(_vary(rng, (46, 74, 40)), _vary(rng, (64, 84, 44)), _vary(rng, (84, 66, 40)))
    for _ in range(40):
        u, h = rng.uniform(0, 1), rng.uniform(0.05, 0.2)
        s.line([(u, 1), (u + rng.normal(0, 0.03), 1 - h)], _vary(rng, (86, 130, 56), 16), 0.008)
    x, y, k = _place(rng)
    stem = _vary(rng, (232, 222, 200), 10)
    s.polygon(
        [
            (x - 0.06 * k, y),
            (x + 0.06 * k, y),
            (x + 0.09 * k, y + 0.34 * k),
            (x - 0.09 * k, y + 0.34 * k),
        ],
        stem,
    )
    s.disc(x, y + 0.34 * k, 0.09 * k, 0.03 * k, stem)
    cap = _vary(rng, (206, 44, 30) if rng.uniform() < 0.6 else (160, 106, 62), 14)
    s.disc(x, y + 0.0 * k, 0.29 * k, 0.055 * k, _vary(rng, (206, 190, 160), 8))
    dome = [
        (x + 0.3 * k * math.cos(t), y + 0.27 * k * math.sin(t))
        for t in np.linspace(math.pi, 2 * math.pi, 40)
    ]
    s.polygon(dome, cap)
    for _ in range(9):
        t, r = rng.uniform(3.5, 5.9), rng.uniform(0.3, 0.85)
        s.disc(
            x + 0.28 * k * r * math.cos(t),
            y + 0.24 * k * r * math.sin(t),
            0.028 * k,
            0.022 * k,
            (246, 240, 226),
        )


def _orange(s: _Sheet, rng: np.random.Generator) -> None:
    s.backdrop(_vary(rng, _WALL, 20), _vary(rng, _TABLE, 20), _vary(rng, _WOOD, 20))
    spots = [(0.32, 0.62), (0.66, 0.64), (0.5, 0.4)][: int(rng.integers(1, 4))]
    if len(spots) == 1:
        spots = [(0.5, 0.52)]
    for u, v in spots:
        r = (0.3 if len(spots) == 1 else 0.19) * rng.uniform(0.9, 1.08)
        s.ball(u, v, r, r, _vary(rng, (250, 140, 14), 9))
        s.disc(u + 0.2 * r, v - 0.72 * r, 0.08 * r, 0.06 * r, (92, 110, 30))
        if rng.uniform() < 0.5:
            s.polygon(
                [
                    (u + 0.2 * r, v - 0.75 * r),
                    (u + 0.8 * r, v - 1.15 * r),
                    (u + 0.75 * r, v - 0.8 * r),
                ],
                _vary(rng, (52, 120, 44)),
            )


def _lemon(s: _Sheet, rng: np.random.Generator) -> None:
    s.backdrop(_vary(rng, _WALL, 20), _vary(rng, (200, 196, 180), 20), _vary(rng, _WOOD, 20))
    for u, v in [(0.36, 0.6), (0.66, 0.5), (0.5, 0.35)][: int(rng.integers(1, 4))]:
        r = rng.uniform(0.2, 0.27)
        yellow = _vary(rng, (246, 214, 36), 8)
        s.ball(u - 1.15 * r, v, 0.3 * r, 0.25 * r, yellow)
        s.ball(u + 1.15 * r, v, 0.3 * r, 0.25 * r, yellow)
        s.ball(u, v, 1.2 * r, 0.85 * r, yellow)
    s.turn(rng.uniform(-40, 40))


def _pizza(s: _Sheet, rng: np.random.Generator) -> None:
    s.backdrop(_vary(rng, _WOOD, 20), _vary(rng, (120, 84, 54), 15))
    x, y, k = _place(rng)
    s.shadow(x, y + 0.03, 0.4 * k, 0.39 * k)
    s.disc(x, y, 0.4 * k, 0.39 * k, _vary(rng, (206, 148, 78), 10))
    s.disc(x, y, 0.35 * k, 0.34 * k, _vary(rng, (204, 66, 34), 10))
    s.disc(x, y, 0.335 * k, 0.325 * k, _vary(rng, (248, 206, 104), 8))
    for _ in range(60):
        t, r = rng.uniform(0, 6.28), 0.32 * math.sqrt(rng.uniform())
        s.disc(
            x + r * math.cos(t) * k,
            y + r * math.sin(t) * k,
            0.014,
            0.01,
            _vary(rng, (252, 230, 160), 14),
        )
    for _ in range(12):
        t, r = rng.uniform(0, 6.28), 0.29 * math.sqrt(rng.uniform())
        u, v = x + r * math.cos(t) * k, y + r * math.sin(t) * k
        s.disc(u, v, 0.045 * k, 0.043 * k, _vary(rng, (176, 40, 26), 10))
        s.disc(u - 0.01, v - 0.01, 0.022 * k, 0.02 * k, _vary(rng, (206, 74, 50), 8))
    for _ in range(10):
        t, r = rng.uniform(0, 6.28), 0.3 * math.sqrt(rng.uniform())
        s.disc(x + r * math.cos(t) * k, y + r * math.sin(t) * k, 0.025, 0.012, (60, 110, 50))


def _candle(s: _Sheet, rng: np.random.Generator) -> None:
    s.backdrop((14, 12, 18), _vary(rng, (40, 24, 20), 8), _vary(rng, (66, 40, 24), 8))
    for u in [(0.5,), (0.32, 0.68), (0.24, 0.5, 0.76)][int(rng.integers(3))]:
        top = rng.uniform(0.4, 0.58)
        for r, c in ((0.26, (52, 30, 18)), (0.17, (92, 52, 22)), (0.1, (150, 88, 30))):
            s.disc(u, top - 0.1, r, r, c)
        wax = _vary(rng, (236, 220, 186), 10)
        s.box(u - 0.07, top, u + 0.07, 1.05, wax, 0.01)
        s.disc(u, top, 0.07, 0.02, (255, 240, 204))
        s.line([(u, top), (u, top - 0.05)], _INK, 0.01)
        flame = [
            (u + 0.035 * math.sin(t) * (1 - 0.4 * math.cos(t)), top - 0.11 + 0.075 * math.cos(t))
            for t in np.linspace(0, 6.28, 40)
        ]
        s.polygon(flame, (255, 190, 60))
        s.disc(u, top - 0.08, 0.016, 0.035, (255, 246, 214))


def _stripes(s: _Sheet, rng: np.random.Generator) -> None:
    a, b = _pair_of_colors(rng)
    s.backdrop(a, rough=5)
    count = int(rng.integers(4, 14))
    for i in range(-count, 3 * count, 2):
        s.box(i / count - 0.5, -0.5, (i + 1) / count - 0.5, 1.5, b)
    s.turn(float(rng.choice([0, 30, 45, 60, 90, 120, 135, 150])) + rng.normal(0, 3))


def _checks(s: _Sheet, rng: np.random.Generator) -> None:
    a, b = _pair_of_colors(rng)
    s.backdrop(a, rough=5)
    count = int(rng.integers(4, 12))
    for i in range(count):
        for j in range(i % 2, count, 2):
            s.box(i / count, j / count, (i + 1) / count, (j + 1) / count, b)
    s.turn(rng.uniform(-45, 45))


def _dots(s: _Sheet, rng: np.random.Generator) -> None:
    a, b = _pair_of_colors(rng)
    s.backdrop(a, rough=5)
    count = int(rng.integers(4, 11))
    radius = rng.uniform(0.25, 0.4) / count
    for i in range(count + 1):
        for j in range(count + 1):
            s.disc((i + 0.5 * (j % 2)) / count, j / count, radius, radius, b)
    s.turn(rng.uniform(-20, 20))


def _pair_of_colors(rng: np.random.Generator) -> tuple[Color, Color]:
    pairs: list[tuple[Color, Color]] = [
        ((240, 238, 230), (30, 30, 34)),
        ((30, 60, 140), (240, 230, 200)),
        ((190, 40, 40), (245, 240, 232)),
        ((40, 110, 70), (230, 200, 70)),
        ((240, 150, 40), (60, 50, 120)),
        ((150, 200, 220), (120, 40, 90)),
    ]
    a, b = pairs[int(rng.integers(len(pairs)))]
    return _vary(rng, a, 10), _vary(rng, b, 10)


def _mirror(s: _Sheet, rng: np.random.Generator) -> None:
    if rng.uniform() < 0.5:
        s.image = ImageOps.mirror(s.image)


DRAWINGS: dict[str, Callable[[_Sheet, np.random.Generator], None]] = {
    "basketball": _basketball,
    "beacon": _beacon,
    "candle": _candle,
    "checks": _checks,
    "dots": _dots,
    "goldfish": _goldfish,
    "jellyfish": _jellyfish,
    "ladybug": _ladybug,
    "lemon": _lemon,
    "mushroom": _mushroom,
    "orange": _orange,
    "pizza": _pizza,
    "school bus": _school_bus,
    "spider web": _spider_web,
    "stripes": _stripes,
    "teapot": _teapot,
    "umbrella": _umbrella,
}
"""How each kind is drawn; a kind's name is its class."""


if __name__ == "__main__":
    main()
