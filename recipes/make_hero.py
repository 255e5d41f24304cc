"""The pictures at the top of the README: what the units of each layer look for, from a tour.

    python recipes/make_hero.py RUN OUT.png [--columns 12] [--side 96]

RUN is what `featviz demo --out RUN` left. A row a layer, conv1 (its kernels) to conv5 and the
classes; the first that the tour shows of each, none picked out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from featviz import results
from featviz.pictures import images
from featviz.pictures.preprocessing import Preprocessing

ROWS = (
    "kernels-conv1",
    "maximize-conv2",
    "maximize-conv3",
    "maximize-conv4",
    "maximize-conv5",
    "maximize-logits",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--columns", type=int, default=12)
    parser.add_argument("--side", type=int, default=96, help="pixels of one picture")
    given = parser.parse_args()
    write_hero(given.run, given.out, given.columns, given.side)


def write_hero(run: Path, out: Path, columns: int = 12, side: int = 96) -> None:
    """One picture of the unit pictures of a tour, as PNG or (smaller) JPEG."""
    cells = []
    for name in ROWS:
        listed = results.read_result(run / name)["figures"]
        files = [
            figure["file"]
            for figure in listed
            if len(figure["units"]) == 1 and figure["file"].startswith(("units/", "kernels/"))
        ]
        cells += [
            images.read_picture(run / name / file, Preprocessing.of(side))
            for file in files[:columns]
        ]
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet = images.to_pillow(images.contact_sheet(torch.stack(cells), columns, gap=4))
    sheet.save(out, quality=88)


if __name__ == "__main__":
    main()
