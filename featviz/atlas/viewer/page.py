"""`render_page(atlas)`: one HTML file that needs nothing beside it and opens from file://.

The source is page.html, style.css and the scripts in this folder. A page from the disk may load
neither modules nor data, so the scripts stand in the page one after the other, and what they show
stands there too: words as JSON, arrays and pictures in base64 (see `data`).
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featviz.atlas.viewer.data import Block, carry

if TYPE_CHECKING:
    from featviz.atlas.build import Atlas

SCRIPTS = (
    "blocks.js",
    "places.js",
    "gl.js",
    "flat.js",
    "panel.js",
    "scene.js",
    "marks.js",
    "viewer.js",
)
"""in the order in which they need each other"""


def render_page(atlas: Atlas) -> str:
    """The page of an atlas as HTML."""
    from jinja2 import Environment
    from markupsafe import Markup

    here = Path(__file__).parent
    document, blocks = carry(atlas)
    page = Environment(autoescape=True).from_string(_read(here / "page.html"))
    return page.render(
        data=document,
        style=Markup(_read(here / "style.css")),
        script=Markup("\n".join(_read(here / name) for name in SCRIPTS)),
        json=Markup(_within_script(document)),
        blocks=[_encode(name, block) for name, block in blocks.items()],
    )


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _within_script(document: dict[str, Any]) -> str:
    # Within a script element only "</" could end it early; "<!--" could hide what follows.
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _encode(name: str, block: Block) -> tuple[str, str, str]:
    """(name, type, base64)."""
    if isinstance(block, bytes):
        return name, "u8", base64.b64encode(block).decode()
    kind = f"u{8 * block.dtype.itemsize}"
    return name, kind, base64.b64encode(np.ascontiguousarray(block).tobytes()).decode()
