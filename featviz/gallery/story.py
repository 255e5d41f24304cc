"""The beginning of the overview: follow one picture through the network, step by step.

Takes the results of a site; steps whose results are missing are left out.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from featviz.gallery.reader import Figure
from featviz.gallery.result_page import ResultPage
from featviz.numbers import show_number

EXPLORER = "explorer.html"
INPUT = "picture.png"
"""the file of a result that is the picture as the network gets it"""


@dataclass(frozen=True)
class Step:
    """One step: what is seen, and why it matters."""

    title: str
    why: str
    touch: str
    """what can be done there in the explorer"""
    kinds: tuple[str, ...]
    """of the results that show it; the first that is there gives figure and number"""
    place: str
    """the same step in the explorer"""
    said: tuple[tuple[str, str], ...]
    """numbers of results by name, each with what follows it in a sentence; the first there is"""
    last: bool = False
    """of several results the one of the deepest layer"""


STEPS = (
    Step(
        "A picture is a table of numbers",
        "For each pixel the network gets three numbers: how much red, green and blue.",
        "move a frame over the picture and read its numbers",
        ("maps", "classify"),
        "numbers",
        (),
    ),
    Step(
        "A small window slides over it and compares",
        "At every place the pixels are multiplied with the weights of a kernel, a small pattern, "
        "and added up: a large sum says that this place looks like the kernel.",
        "slide the window, choose another kernel",
        ("patch", "kernels"),
        "kernel",
        (
            ("activation", "is the sum at the place that is shown: of all products, and a bias"),
            ("kernels", "such patterns are in the layer"),
        ),
    ),
    Step(
        "Every kernel draws a map of the picture",
        "The sums of one kernel, at their places, are a map: bright where its pattern is.",
        "click on a point of a map to see which pixels made it",
        ("maps", "kernels"),
        "maps",
        (
            ("receptive field", "pixels of the picture decide one point of such a map"),
            ("kernels", "kernels draw as many maps"),
        ),
    ),
    Step(
        "The next layers read the maps before them",
        "They combine edges to textures, and textures to parts of things.",
        "click on a point of a deep map, and go down to the pixels",
        ("circuit", "maps", "examples"),
        "layers",
        (
            ("connected", "units of the layer before are added up in this one"),
            ("receptive field", "pixels of the picture decide one point of a map this deep"),
            ("patch", "is the piece of the picture that one unit of the layer sees"),
        ),
        last=True,
    ),
    Step(
        "In the end the picture is a list of numbers",
        "Pictures that mean the same have similar lists, even where no pixel is the same.",
        "follow one of the pictures that are most alike",
        ("neighbors", "embed"),
        "list",
        (
            ("precision@1", "of the pictures are most like one of their own class"),
            ("dim", "numbers are in the list of each picture"),
        ),
    ),
    Step(
        "Every unit responds to something of its own",
        "A unit is what draws one of these maps, or gives one of these numbers. A picture that is "
        "made to excite one unit as much as possible shows what it responds to.",
        "switch a unit off and watch the answer",
        ("maximize", "examples"),
        "units",
        (
            ("of natural", "the response to the best of the real pictures (median of the units)"),
            ("pictures", "units are shown here; each has a page of its own"),
            ("units", "units are shown here; each has a page of its own"),
        ),
    ),
    Step(
        "All pictures lie on one map",
        "Pictures with similar lists of numbers are placed side by side.",
        "fly over the map, also to your own picture",
        ("atlas",),
        "map",
        (("recall@10", "of the ten pictures most like each one are near it on the map, too"),),
    ),
    Step(
        "All this began as noise",
        "Before training the kernels are random. Only labeled pictures made them what they are.",
        "drag a slider from noise to the finished kernels",
        ("growth", "train"),
        "training",
        (("steps", "small steps of training lie between the first kernels and the last"),),
        last=True,
    ),
    Step(
        "A change that nobody sees can fool it",
        "Each pixel moves a little in the direction that hurts most, and the answer is another.",
        "drag a slider until the answer changes",
        ("attack", "audit"),
        "fooled",
        (
            ("L∞ distance", "of the way from black to white is the most a pixel changed (median)"),
            ("median L∞ distance", "of the way from black to white changes half of the answers"),
            ("fooled", "of the pictures got another answer"),
        ),
    ),
)

LISTS = {
    "fc7": "The layer fc7 is the last of AlexNet before its classes: a list of 4,096 numbers",
    "relu7": "The layer relu7 is AlexNet's fc7, the last before the classes, with negative numbers "
    "set to 0: a list of 4,096 numbers",
}
"""what the names of these layers mean"""
OF_LISTS = ("embed", "neighbors", "atlas")
"""kinds of results about the lists of a layer, the first of which says how long they are"""


@dataclass(frozen=True)
class Told:
    """A step with what the results of a site show of it."""

    step: Step
    result: ResultPage
    picture: Figure | None
    """the picture that is followed, where its numbers are drawn instead of the result's figure"""
    gloss: str
    number: tuple[str, str] | None
    """the number as it is shown, and what it means"""
    deeper: tuple[ResultPage, ...]
    """one result of each kind"""
    explorer: str
    """the step in the explorer, from the top of the site; "" where there is none"""


def tell(results: tuple[ResultPage, ...]) -> Iterator[Told]:
    """The steps that the results can show, in their order."""
    explorer = explorer_of(results)
    for step in STEPS:
        found = [r for kind in step.kinds for r in results if r.entry.kind == kind]
        shown = [r for r in found if r.thumbnail and r.entry.kind == found[0].entry.kind]
        if not shown:
            continue
        main = shown[-1 if step.last else 0]
        picture = _input(main) if step.place == "numbers" else None
        kinds = {r.entry.kind: r for r in reversed(found)} | {main.entry.kind: main}
        deeper = sorted(kinds.values(), key=lambda r: step.kinds.index(r.entry.kind))
        yield Told(
            step,
            main,
            picture,
            gloss(main, results) if step.place == "list" else "",
            _of_pixels(picture) if step.place == "numbers" else _number(step, main),
            tuple(deeper),
            f"{explorer}#{step.place}" if explorer else "",
        )


def explorer_of(results: tuple[ResultPage, ...]) -> str:
    """The page in which the network runs, from the top of the site; "" where there is none."""
    pages = (r.href(page.file) for r in results for page in r.entry.pages if page.file == EXPLORER)
    return next(pages, "")


def gloss(result: ResultPage, results: tuple[ResultPage, ...]) -> str:
    """What the layer in the title of a result is, if it is one of the lists before the classes."""
    if result.entry.kind not in OF_LISTS:
        return ""
    words = result.entry.title.split()
    layer = next((name for name in LISTS if name in words), "")
    lengths = [
        show_number(other.entry.numbers["dim"])
        for other in results
        if (other.entry.kind, other.entry.model) == (OF_LISTS[0], result.entry.model)
        and other.entry.parameters.get("layer") == layer
        and "dim" in other.entry.numbers
    ]
    here = f", and of {lengths[0]} here" if lengths and lengths[0] != "4,096" else ""
    return f"{LISTS[layer]}{here}." if layer else ""


def _input(result: ResultPage) -> Figure | None:
    return next((one for one in result.entry.figures if one.file == INPUT), None)


def _of_pixels(picture: Figure | None) -> tuple[str, str]:
    if picture is None or not picture.width or not picture.height:
        return "3", "numbers for each pixel: red, green and blue"
    count = 3 * picture.width * picture.height
    pixels = f"{picture.width} x {picture.height} pixels"
    return f"{count:,}", f"numbers are this picture: {pixels}, three for each"


def _number(step: Step, result: ResultPage) -> tuple[str, str] | None:
    numbers = result.entry.numbers
    said = ((show_number(numbers[name]), words) for name, words in step.said if name in numbers)
    return next(said, None)


CELLS, CELL, SIDE = 5, 88, 300
"""of the drawing of numbers: pixels in a row, the side of one, and the side of the picture"""
_FRAME = 'fill="none" stroke="#e69f00" stroke-width="3"'


def draw_numbers(picture: Path) -> str:
    """An SVG: the picture, and the pixels in its middle with their red, green and blue."""
    from PIL import Image

    with Image.open(picture) as opened:
        shown = opened.convert("RGB")
    columns, rows = (min(CELLS, length) for length in shown.size)
    left, top = (shown.width - columns) // 2, (shown.height - rows) // 2
    scale = SIDE / max(shown.size)
    content = base64.b64encode(picture.read_bytes()).decode()
    drawn = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 500" width="800" height="500" '
        'font-family="DejaVu Sans, Verdana, sans-serif" font-size="19" text-anchor="middle">',
        f"<image {_box(20, 100, scale * shown.width, scale * shown.height)} "
        f'style="image-rendering: pixelated" href="data:image/png;base64,{content}"/>',
        f"<rect {_box(20 + scale * left, 100 + scale * top, scale * columns, scale * rows)} "
        f"{_FRAME}/>",
    ]
    for i in range(rows * columns):
        x, y = i % columns, i // columns
        red, green, blue = shown.crop((left + x, top + y, left + x + 1, top + y + 1)).tobytes()
        drawn += _cell(350 + CELL * x, 30 + CELL * y, (red, green, blue))
    drawn.append(f"<rect {_box(350, 30, CELL * columns, CELL * rows)} {_FRAME}/></svg>")
    return "\n".join(drawn)


def _box(x: float, y: float, width: float, height: float) -> str:
    return f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'


def _cell(x: int, y: int, color: tuple[int, int, int]) -> Iterator[str]:
    """One pixel in its color, with its three numbers on it."""
    yield f'<rect {_box(x, y, CELL, CELL)} fill="rgb{color}"/>'
    red, green, blue = color
    ink = "#000" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "#fff"
    for i, value in enumerate(color):
        yield f'<text x="{x + CELL // 2}" y="{y + 27 + 23 * i}" fill="{ink}">{value}</text>'
