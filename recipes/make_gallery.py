"""The committed gallery: the tour with the bundled model and our own pictures, as a site.

    python recipes/make_gallery.py [--out gallery] [--work FOLDER]

The results are made in --work (default: a temporary folder), the site replaces --out. It holds only
pictures that the project made or may redistribute, and stays under 10 MB: figures above 100 kB are
kept in 256 colors (those that `featviz demo` makes are not).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from PIL import Image

import featviz
from featviz.gallery.build import build_gallery
from featviz.tour import Budget, Outcome, run_tour

LIMIT, LARGE = 10_000_000, 100_000  # bytes
UNITS, PICTURES = 4, 6  # of a layer and of a kind: as many as the limit allows
ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "gallery")
    parser.add_argument("--work", type=Path, help="keep the results here, and go on from them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch) / "tour"
        tour = run_tour(
            featviz.load("alexnet-mini", device="cpu"),
            featviz.sample_pictures(PICTURES),
            work,
            budget=Budget(units=UNITS),
            announce=show,
        )
        build_gallery(work, arguments.out, overwrite=True)
    for figure in arguments.out.rglob("*.png"):
        if figure.stat().st_size > LARGE:
            Image.open(figure).convert("RGB").quantize(256).save(figure, optimize=True)
    size = sum(p.stat().st_size for p in arguments.out.rglob("*") if p.is_file())
    print(f"{arguments.out}: {size / 1e6:.1f} MB, made in {tour.seconds:.0f} s")
    if size > LIMIT:
        sys.exit(f"the gallery has {size / 1e6:.1f} MB, more than {LIMIT / 1e6:.0f}")


def show(outcome: Outcome) -> None:
    state = outcome.refused or ("kept" if outcome.kept else f"{outcome.seconds:.1f} s")
    print(f"  {outcome.folder.name:<20} {state}", flush=True)


if __name__ == "__main__":
    main()
