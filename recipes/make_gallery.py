"""The committed gallery: the tour with the bundled model and our own pictures, as a site.

    python recipes/make_gallery.py [--out gallery] [--work FOLDER] [--alexnet FILE --classes FILE]

The results are made in --work (default: a temporary folder), the site replaces --out. It holds only
pictures that the project made or may redistribute, and stays under 12 MB: figures above 20 kB are
kept in 256 colors, and photographs within plots as JPEG of at most 160 pixels (those that
`featviz demo` makes are not).

With --alexnet, weights of AlexNet itself, its layers, kernels and maximized pictures are shown too,
in results that name it. These pictures are our own; its weights are not part of the site. Results
that are in --work are kept, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image

import featviz
from featviz.gallery.build import build_gallery
from featviz.tour import Budget, Outcome, run_tour

LIMIT, LARGE = 12_000_000, 20_000  # bytes
SHARP, WIDEST = 48, 160  # pixels: smaller pictures within figures stay exact, larger ones shrink
PICTURE = re.compile(r"data:image/png;base64,\s*([A-Za-z0-9+/=\s]+)")
UNITS, PICTURES = 4, 6  # of a layer and of a kind: as many as the limit allows
ALEXNET_STEPS, ALEXNET_CLASSES = 128, (0, 36, 60, 100, 145, 189)
ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "gallery")
    parser.add_argument("--work", type=Path, help="keep the results here, and go on from them")
    parser.add_argument("--alexnet", type=Path, help="weights of AlexNet itself")
    parser.add_argument("--classes", type=Path, help="names of its classes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch) / "tour"
        tour = run_tour(
            featviz.load("alexnet-mini", device="cpu"),
            featviz.sample_pictures(PICTURES),
            work,
            budget=Budget(units=UNITS, explorer="int8"),
            announce=show,
        )
        first = "AlexNet" if arguments.alexnet is not None else None
        if arguments.alexnet is not None:
            add_alexnet(work, arguments.alexnet, arguments.classes)
        build_gallery(work, arguments.out, first=first, overwrite=True)
    for figure in arguments.out.rglob("*.png"):
        if figure.stat().st_size > LARGE:
            Image.open(figure).convert("RGB").quantize(256).save(figure, optimize=True)
    for figure in (*arguments.out.rglob("*.svg"), *arguments.out.rglob("*.html")):
        text = figure.read_text(encoding="utf-8")
        figure.write_text(PICTURE.sub(smaller, text), encoding="utf-8")
    size = sum(p.stat().st_size for p in arguments.out.rglob("*") if p.is_file())
    print(f"{arguments.out}: {size / 1e6:.1f} MB, made in {tour.seconds:.0f} s")
    if size > LIMIT:
        sys.exit(f"the gallery has {size / 1e6:.1f} MB, more than {LIMIT / 1e6:.0f}")


def smaller(picture: re.Match[str]) -> str:
    """A picture within a figure as a JPEG, where that is much smaller."""
    content = base64.b64decode(picture[1])
    shown = Image.open(io.BytesIO(content))
    if min(shown.size) < SHARP or min(shown.convert("RGBA").getchannel("A").tobytes()) < 255:
        return picture[0]
    shown.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shown.convert("RGB").save(buffer, "JPEG", quality=80, optimize=True)
    if 2 * len(buffer.getvalue()) > len(content):
        return picture[0]
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def add_alexnet(work: Path, weights: Path, classes: Path | None) -> None:
    """Layers, kernels and maximized pictures of AlexNet itself, without pictures of others."""
    model = featviz.load("alexnet", weights=weights, classes=classes, device="cpu", name="AlexNet")
    count = len(ALEXNET_CLASSES)
    units = {layer: tuple(range(count)) for layer in ("conv2", "conv3", "conv5")}
    units["logits"] = ALEXNET_CLASSES
    steps: dict[str, Callable[[], featviz.results.Result]] = {
        "layers": lambda: featviz.summarize(model),
        "kernels-conv1": lambda: featviz.kernel_sheet(model, "conv1"),
        **{
            f"maximize-{layer}": partial(
                featviz.maximize, model, layer, units=list(chosen), steps=ALEXNET_STEPS
            )
            for layer, chosen in units.items()
        },
    }
    for name, make in steps.items():
        folder = work / f"alexnet-{name}"
        if not (folder / "result.json").is_file():
            make().save(folder)
            print(f"  {folder.name}", flush=True)


def show(outcome: Outcome) -> None:
    state = outcome.refused or ("kept" if outcome.kept else f"{outcome.seconds:.1f} s")
    print(f"  {outcome.folder.name:<20} {state}", flush=True)


if __name__ == "__main__":
    main()
