"""`render_page(page)`: one HTML file that needs no other file and opens from file://.

The source is page.html, style.css and the scripts in this folder. A page from the disk may load
neither modules nor data, so the scripts are in the page one after the other, and so is what they
show: words as JSON, arrays and pictures in base64 (see `data`).
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from featviz.atlas.viewer.data import Block, PageData, encode_page

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
"""in the order in which they are evaluated"""


def render_page(page: PageData) -> str:
    """The page of an atlas as HTML."""
    from jinja2 import Environment
    from markupsafe import Markup

    here = Path(__file__).parent
    document, blocks = encode_page(page)
    template = Environment(autoescape=True).from_string(_read(here / "page.html"))
    return template.render(
        data=document,
        style=Markup(_read(here / "style.css")),
        script=Markup("\n".join(_read(here / name) for name in SCRIPTS)),
        json=Markup(_within_script(document)),
        blocks=[_encode(name, block) for name, block in blocks.items()],
    )


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _within_script(document: dict[str, Any]) -> str:
    # In a script element "</" could end it early, and "<!--" could hide what follows.
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _encode(name: str, block: Block) -> tuple[str, str, str]:
    """(name, type, base64)."""
    if isinstance(block, bytes):
        return name, "u8", base64.b64encode(block).decode()
    kind = f"u{8 * block.dtype.itemsize}"
    return name, kind, base64.b64encode(np.ascontiguousarray(block).tobytes()).decode()
