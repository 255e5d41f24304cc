"""The beginning of the overview: follow one picture through the network, step by step.

Takes the results of a site; steps whose results are missing are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featviz.numbers import Number

if TYPE_CHECKING:
    from featviz.gallery.site import ResultPage

EXPLORER = "explorer.html"


@dataclass(frozen=True)
class Step:
    """One step: what is seen, and why it matters."""

    title: str
    why: str
    kinds: tuple[str, ...]
    """of the results that show it; the first that is there gives figure and number"""
    place: str
    """the same step in the explorer"""
    last: bool = False
    """of several results the one of the deepest layer"""
    fixed: tuple[str, Number] | None = None
    """what is counted here, where no result says it"""


STEPS = (
    Step(
        "A picture is a table of numbers",
        "For each pixel the network gets three numbers: how much red, green and blue.",
        ("classify",),
        "numbers",
        fixed=("numbers for each pixel", Number(3, "", "red, green and blue, from 0 to 1")),
    ),
    Step(
        "A small window slides over it and compares",
        "At every place the pixels are multiplied with the weights of a kernel and added up: a "
        "large sum says that this place looks like the kernel.",
        ("patch", "kernels"),
        "kernel",
    ),
    Step(
        "Every kernel draws a map of the picture",
        "The sums of one kernel, at their places, are a map: bright where its pattern is.",
        ("maps", "kernels"),
        "maps",
    ),
    Step(
        "The next layers read the maps before them",
        "They combine edges to textures, and textures to parts of things.",
        ("circuit", "maps", "examples"),
        "layers",
        last=True,
    ),
    Step(
        "In the end the picture is a list of numbers",
        "Pictures that mean the same have similar lists, even where no pixel is the same. In "
        "AlexNet the last such list, layer fc7, has 4,096 numbers; smaller networks have fewer.",
        ("neighbors", "embed"),
        "list",
    ),
    Step(
        "Every unit responds to something of its own",
        "A picture that is made to excite one unit as much as possible shows what that is.",
        ("maximize", "examples"),
        "units",
    ),
    Step(
        "All pictures lie on one map",
        "Pictures with similar lists of numbers are placed side by side.",
        ("atlas",),
        "map",
    ),
    Step(
        "All this began as noise",
        "Before training the kernels are random. Only labeled pictures made them what they are.",
        ("growth", "train"),
        "training",
        last=True,
    ),
    Step(
        "A change that nobody sees can fool it",
        "Each pixel moves a little in the direction that hurts most, and the answer is another.",
        ("attack", "audit"),
        "fooled",
    ),
)


@dataclass(frozen=True)
class Told:
    """A step with what the results of a site show of it."""

    step: Step
    result: ResultPage
    number: tuple[str, Number] | None
    deeper: tuple[ResultPage, ...]
    explorer: str
    """the step in the explorer, from the top of the site; "" where there is none"""


def tell(results: tuple[ResultPage, ...]) -> Iterator[Told]:
    """The steps that the results can show, in their order."""
    pages = [
        result.href(page.file)
        for result in results
        for page in result.entry.pages
        if page.file == EXPLORER
    ]
    for step in STEPS:
        found = [r for kind in step.kinds for r in results if r.entry.kind == kind]
        shown = [r for r in found if r.thumbnail and r.entry.kind == found[0].entry.kind]
        if not shown:
            continue
        main = shown[-1 if step.last else 0]
        number = step.fixed or next(iter(main.entry.numbers.items()), None)
        explorer = f"{pages[0]}#{step.place}" if pages else ""
        yield Told(step, main, number, tuple(r for r in found if r is not main)[:4], explorer)
