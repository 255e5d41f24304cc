"""SVG files of plots: shown in the colors of a light or a dark page, with small pictures inside.

matplotlib's SVG comes in; the same with a style sheet for dark pages goes out. On these every gray
of lines, words and ground is turned into its opposite; colors and pictures stay as they are.
Programs that know no style sheets show the light form.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator

_DARK, _LIGHT = 0x15, 0xEE
"""grays of the ground and of the darkest ink on a dark page"""
_GRAY = re.compile(r"(fill|stroke): #([0-9a-f]{2})\2\2\b")
_PICTURE = re.compile(r'data:image/png;base64,\s*([A-Za-z0-9+/=\s]+)"')
_STYLE = "</style>"
_QUALITY, _WORTHWHILE = 88, 0.4
"""of JPEG, which replaces a PNG of photographs or of textures at less than this share of it"""


def finish(svg: str) -> str:
    """The SVG of a plot with colors for dark pages, and with JPEG in place of large PNG."""
    found = sorted(set(_GRAY.findall(svg)))
    rules = "".join(_rules(found))
    light = "svg{color-scheme: light dark}"
    style = f"{light}@media (prefers-color-scheme: dark){{{rules}}}{_STYLE}"
    return _PICTURE.sub(_smaller, svg.replace(_STYLE, style, 1))


def _rules(grays: list[tuple[str, str]]) -> Iterator[str]:
    """Of the grays that occur, as (property, two hexadecimal digits)."""
    yield f"svg{{fill: {_opposite(0)}}}"  # words and shapes of no stated color are black
    for name, digits in grays:
        color = _opposite(int(digits, 16))
        yield f'[style*="{name}: #{digits * 3}"]{{{name}: {color} !important}}'


def _opposite(gray: int) -> str:
    dark = round(_DARK + (255 - gray) / 255 * (_LIGHT - _DARK))
    return f"#{dark:02x}{dark:02x}{dark + (dark < 0x30) * 2:02x}"


def _smaller(found: re.Match[str]) -> str:
    from PIL import Image

    content = base64.b64decode(found[1])
    with Image.open(io.BytesIO(content)) as picture:
        opaque = picture.mode != "RGBA" or picture.getchannel("A").getextrema() == (255, 255)
        if not opaque or len(content) < 4096:
            return found[0]
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    if buffer.tell() > _WORTHWHILE * len(content):
        return found[0]
    return f'data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"'
