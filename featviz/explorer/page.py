"""`render_page(document, blocks)`: one HTML file that needs no other and opens from file://.

The source is page.html, style.css and the scripts in `static`. A page from the disk may load
neither modules nor data, so the scripts are in the page one after the other within one function,
words and numbers are a JSON document, and bytes (weights, pictures) are blocks of text
(`printed`).

The document: `model.name`, `classes`, `input` (channels, size, mean, std), `ops` (op, inputs,
shape, settings, indices of tensors), `layers` (name, value), `logits` (a value or None),
`tensors` (shape), `snapshots` (step, top1, tensors: index to index), `gathered` (see `gathered`),
`pictures` (the part of it by that name), and where they are known `links` (atlas, gallery:
addresses).

The engine: `Engine.start(document)` with the promises `forward(pixels, {layers, off, weights,
logits, slot})`, `gradient(pixels, {class})`, `perturb(pixels, {eps, steps, label, towards})`,
`contributions(pixels, layer, unit, y, x, {off})`, `tensor(index)` and `inputOf(picture)`; null
means that a later call took its place. `computedBy()` says what computes, and `tried` is a promise:
the graphics card has been tried. tests/small_engine.js is the smallest that does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

TEXT = Path(__file__).parent / "engine" / "text.js"

SCRIPTS = (
    "dom.js",
    "paint.js",
    "state.js",
    "network.js",
    "pixels.js",
    "kernel.js",
    "maps.js",
    "stages.js",
    "classes.js",
    "space.js",
    "units.js",
    "growth.js",
    "fooled.js",
    "picture.js",
    "story.js",
    "app.js",
)
"""in the order in which they are evaluated"""


def render_page(
    document: Mapping[str, Any], blocks: Mapping[str, bytes], *, engine: str, worker: str
) -> str:
    """The page as HTML.

    Args:
        document: What the scripts read as JSON; `document["model"]["name"]` is in the heading.
        blocks: Bytes by name.
        engine: The script that starts the network in a worker.
        worker: The script of the worker.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    static = Path(__file__).parent / "static"
    template = Environment(autoescape=True).from_string(_read(static / "page.html"))
    scripts = [_read(TEXT), engine, *(_read(static / name) for name in SCRIPTS)]
    # In a script element "</" could end it early, and "<!--" could hide what follows.
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return template.render(
        data=document,
        style=Markup(_read(static / "style.css")),
        json=Markup(text.replace("<", "\\u003c")),
        blocks=[(name, Markup(printed(block))) for name, block in blocks.items()],
        worker=Markup(worker),
        script=Markup("\n".join(scripts)),
    )


def printed(content: bytes) -> str:
    """Bytes as text of 16/13 of their length, which a script element may hold; base64 takes 4/3.

    Two of 91 characters hold 13 bits. `bytesOf` in engine/text.js reads it.
    """
    content = len(content).to_bytes(4, "little") + content
    pieces = np.frombuffer(content + bytes(-len(content) % 13), np.uint8).reshape(-1, 13)
    bits = np.pad(pieces, ((0, 0), (0, 1))).astype(np.uint32)
    words = []
    for first, shift in (divmod(13 * i, 8) for i in range(8)):
        three = bits[:, first] | bits[:, first + 1] << 8 | bits[:, first + 2] << 16
        words.append(three >> shift & 8191)
    whole = np.stack(words, 1).ravel()
    digits = np.stack((whole % 91, whole // 91), 1).ravel()
    # From "#" on without "<", which could end the element.
    return (digits + 35 + (digits >= 25)).astype(np.uint8).tobytes().decode("ascii")


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8")
