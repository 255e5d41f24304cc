"""Notebooks of docs/notebooks as pages: executed when the site is built, with their outputs."""

from __future__ import annotations

import functools
import html
import os
import tempfile
from pathlib import Path
from typing import Any

import nbclient
import nbformat

ROOT = Path(__file__).parents[2]


@functools.cache
def executed(text: str) -> Any:
    """The notebook with its outputs. A cell that raises an error stops the build."""
    book = nbformat.reads(text, 4)
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        client = nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources=place)
        client.execute(env=os.environ | {"PYTHONPATH": str(ROOT)})
    return book


def markdown(path: Path) -> str:
    """The page's text; a mark stands where the outputs of a code cell belong."""
    parts = []
    for number, cell in enumerate(executed(path.read_text(encoding="utf-8")).cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        else:
            parts += [f"```python\n{cell.source}\n```", mark(number)]
    parts.insert(1, f'<a href="{path.name}" download>{path.name}</a> opens in Jupyter.')
    return "\n\n".join(parts) + "\n"


def with_outputs(page: str, path: Path) -> str:
    """A page made from `markdown`, with the outputs in their places."""
    for number, cell in enumerate(executed(path.read_text(encoding="utf-8")).cells):
        shown = "\n".join(map(shown_output, cell.get("outputs", [])))
        page = page.replace(mark(number), f'<div class="notebook-output">\n{shown}\n</div>')
    return page


def mark(number: int) -> str:
    """Stands for the outputs of one cell, which Markdown need not see."""
    return f'<div id="output-{number}"></div>'


def shown_output(output: Any) -> str:
    """One output as HTML: what the object says of itself, else its text."""
    data = output.get("data", {})
    if "text/html" in data:
        return str(data["text/html"])
    if "image/png" in data:
        return f'<img alt="" src="data:image/png;base64,{data["image/png"]}">'
    return f"<pre><code>{html.escape(data.get('text/plain', output.get('text', '')))}</code></pre>"
