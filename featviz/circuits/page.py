"""`render_page(...)`: a circuit as one HTML file that needs no other and opens from file://.

The source is in `viewer`. What it shows is in the page as JSON. A gallery fills the element
"unit-pages" with the addresses of the units' pages, so that units lead there.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from featviz.circuits.connections import Edge, Graph
from featviz.circuits.layout import MAP, NODE, Layout, lay_out
from featviz.pictures import images

_LARGEST = 112  # pixels of a side of a picture
_LOSSLESS = 24  # pixels of a side up to which a picture is PNG, and not smoothed
_HELP = (
    "Drag to move, wheel or pinch to zoom. Keys: arrows go to the strongest connection or to the "
    "unit beside, Enter selects, o opens its page in a gallery, + - 0 zoom, Esc shows all. "
    "Red raises, blue (dashed) lowers; small maps are weights, white is 0."
)


def render_page(
    title: str,
    unit: str,
    graph: Graph,
    pictures: Mapping[str, Tensor],
    label: Callable[[str], str],
    words: Sequence[str],
) -> str:
    """The page of a circuit as HTML.

    Args:
        title: Its heading.
        unit: The unit that was traced.
        graph: Around it.
        pictures: Of units by name, (3, h, w) in [0, 1].
        label: A unit's name for people.
        words: Sentences about the whole.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    here = Path(__file__).parent / "viewer"
    places = lay_out(graph, unit)
    document = {
        "unit": unit,
        "width": places.width,
        "height": places.height,
        "node": NODE,
        "map": MAP,
        "words": list(words),
        "help": _HELP,
        "scale": _rounded(graph.scale),
        "scales": _scales(graph),
        "rows": _rows(graph, places),
        "nodes": [
            _node(graph, name, places, pictures.get(name), label(name)) for name in graph.units
        ],
        "edges": [
            _edge(graph, edge, place) for edge, place in zip(graph.edges, places.maps, strict=True)
        ],
    }
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    template = Environment(autoescape=True).from_string(_read(here / "page.html"))
    return template.render(
        title=title,
        count=len(graph.units),
        style=Markup(_read(here / "style.css")),
        script=Markup(_read(here / "viewer.js")),
        # In a script element "</" could end it early, and "<!--" could hide what follows.
        json=Markup(text.replace("<", "\\u003c")),
    )


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _rounded(value: float | Tensor) -> float:
    return float(f"{float(value):.4g}")


def _scales(graph: Graph) -> dict[str, float]:
    """The largest weight of the units of each layer."""
    found: dict[str, float] = {}
    for edge in graph.edges:
        layer = edge.unit.rpartition(":")[0]
        largest = _rounded(edge.weights.abs().max()) or 1.0
        found[layer] = max(found.get(layer, 0.0), largest)
    return found


def _rows(graph: Graph, places: Layout) -> list[dict[str, Any]]:
    """The layers of each level, and where it lies."""
    return [
        {
            "y": places.nodes[level[0]][1],
            "text": ", ".join(dict.fromkeys(name.rpartition(":")[0] for name in level))[:60],
        }
        for level in graph.levels
    ]


def _node(
    graph: Graph, name: str, places: Layout, picture: Tensor | None, label: str
) -> dict[str, Any]:
    x, y = places.nodes[name]
    drawn, followed, words = graph.drawn(name), graph.followed.get(name), []
    if drawn is not None:
        words.append(f"The connections drawn below it make {drawn:z.0%} of its variance.")
    if followed is not None:
        words.append(
            f"Its {followed.k} strongest inputs alone follow it at a correlation of "
            f"{followed.correlation:.2f} (95%: {followed.low:.2f} to {followed.high:.2f}): the "
            "graph is a summary."
        )
    return {
        "name": name,
        "label": label,
        "x": x,
        "y": y,
        "words": words,
        "number": "" if drawn is None else f"{drawn:z.0%} drawn",
        "picture": None if picture is None else _address(picture),
        "pixelated": picture is not None and max(picture.shape[1:]) <= _LOSSLESS,
    }


def _edge(graph: Graph, edge: Edge, place: tuple[float, float]) -> dict[str, Any]:
    measured = ("contribution", "mean", "spread", "share")
    return {
        "unit": edge.unit,
        "input": edge.input,
        "between": edge.between,
        "at": place,
        **{name: _rounded(getattr(edge, name)) for name in measured},
        "strength": round(abs(edge.contribution) / graph.largest(edge.unit), 3),
        "weights": [[_rounded(value) for value in row] for row in edge.weights.tolist()],
    }


def _address(picture: Tensor) -> str:
    """A picture as a data: address."""
    side = max(picture.shape[1:])
    if side > _LARGEST:
        picture = images.resize(picture[None], _LARGEST)[0]
    kind = "png" if side <= _LOSSLESS else "jpeg"
    buffer = io.BytesIO()
    images.to_pillow(picture).convert("RGB").save(buffer, format=kind, quality=80, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
