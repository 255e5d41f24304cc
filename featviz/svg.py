"""SVG files of plots: shown in the colors of a light or a dark page, and small.

An SVG, such as matplotlib's, comes in; the same with a style sheet for dark pages goes out. On
these every gray of lines, words and ground is turned into its opposite; colors and pictures stay.
Programs that know no style sheets show the light form. Coordinates have two decimals (a hundredth
of a point), pictures inside the form that takes the fewest bytes.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

_DARK, _LIGHT = 0x15, 0xEE
"""grays of the ground and of the darkest ink on a dark page"""
_GRAY = re.compile(r'(fill|stroke)(: |=")#([0-9a-f]{2})\3\3\b')
_PICTURE = re.compile(r'data:image/png;base64,\s*([A-Za-z0-9+/=\s]+)"')
_STYLE = "</style>"
_EMPTY = re.compile(r'\n? *<metadata>.*?</metadata>| transform="rotate\(-?0 [^"]*"', re.DOTALL)
_FAMILY = re.compile(r" font-family: ([^;\"]*);")
"""of words: the same nearly everywhere, so it stands once at the top"""
_PLACE = re.compile(r'\b(d|x|y)="([^"]*)"')
_DECIMALS = re.compile(r"-?\d+\.\d+")
_QUALITY, _WORTHWHILE, _LARGE = 88, 0.4, 4096
"""of JPEG, which replaces a PNG of photographs or of textures from this many bytes, at less than
this share of them"""


def finish(svg: str) -> str:
    """The SVG of a plot with colors for dark pages, and in fewer bytes."""
    if _STYLE not in svg:
        svg = re.sub("<svg[^>]*>", rf"\g<0><style>{_STYLE}", svg, count=1)
    found = sorted(set(_GRAY.findall(svg)))
    rules = "".join(_rules(found))
    light = "svg{color-scheme: light dark}"
    style = f"{light}@media (prefers-color-scheme: dark){{{rules}}}{_STYLE}"
    short = _PLACE.sub(_rounded, _EMPTY.sub("", svg.replace(_STYLE, style, 1)))
    if (family := _FAMILY.search(short)) is not None:
        short = short.replace(family[0], "").replace("<svg", f'<svg font-family="{family[1]}"', 1)
    return _PICTURE.sub(_smaller, re.sub(r"\n\s+<", "\n<", short))


def _rules(grays: list[tuple[str, str, str]]) -> Iterator[str]:
    """Of the grays that occur, as (property, how it is stated, two hexadecimal digits)."""
    yield f"svg{{fill: {_opposite(0)}}}"  # words and shapes of no stated color are black
    for name, stated, digits in grays:
        where = f'style*="{name}: #{digits * 3}"' if stated == ": " else f'{name}="#{digits * 3}"'
        yield f"[{where}]{{{name}: {_opposite(int(digits, 16))} !important}}"


def _opposite(gray: int) -> str:
    dark = round(_DARK + (255 - gray) / 255 * (_LIGHT - _DARK))
    return f"#{dark:02x}{dark:02x}{dark + (dark < 0x30) * 2:02x}"


def _rounded(found: re.Match[str]) -> str:
    """An attribute of coordinates: "M 0 1.0004 \\nL 2 3" as "M0 1L2 3"."""
    name, places = found.groups()
    short = _DECIMALS.sub(_two_decimals, places)
    if name == "d":
        short = re.sub(r"\s*([A-Za-z])\s*", r"\1", short).rstrip()
    return f'{name}="{short}"'


def _two_decimals(number: re.Match[str]) -> str:
    return f"{float(number[0]):z.2f}".rstrip("0").rstrip(".")


def _smaller(found: re.Match[str]) -> str:
    """A PNG inside: with a palette if it has few colors, else as a JPEG where worthwhile."""
    from PIL import Image

    content = base64.b64decode(found[1])
    with Image.open(io.BytesIO(content)) as picture:
        if picture.mode == "RGBA" and picture.getchannel("A").getextrema() != (255, 255):
            return found[0]
        shown = picture.convert("RGB")
    buffer, kind = io.BytesIO(), "png"
    if shown.getcolors(256):
        _with_palette(shown).save(buffer, kind)
    elif len(content) >= _LARGE:
        kind = "jpeg"
        shown.save(buffer, kind, quality=_QUALITY, optimize=True)
    share = _WORTHWHILE if kind == "jpeg" else 1
    if not 0 < buffer.tell() < share * len(content):
        return found[0]
    return f'data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"'


def _with_palette(picture: Image) -> Image:
    import numpy as np
    from PIL import Image

    pixels = np.asarray(picture).astype(np.int32)
    numbers, rows = np.unique(pixels @ (65536, 256, 1), return_inverse=True)
    shown = Image.fromarray(rows.reshape(pixels.shape[:2]).astype(np.uint8), "P")
    shown.putpalette([byte for number in numbers.tolist() for byte in number.to_bytes(3, "big")])
    return shown
