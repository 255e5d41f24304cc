"""What an AlexNet's fc7 space holds: neighbors by class and group, beside conv5 and raw pixels.

    python recipes/fc7_space.py --data FOLDER [--out run/fc7-space] [--model alexnet --weights FILE]
        [--classes FILE] [--folder-names FILE] [--pixels 32] [--atlas] [--icon-side 10]

Reads the pictures of class folders once, at fc7 (after its ReLU) and at conv5 (after its ReLU, the
mean over positions), and takes the raw pixels of `--pixels` squares beside them. In each space it
looks up the ten nearest of every picture, by cosine, and says how many of them are of the picture's
class, and how many of its group, with the labels shuffled over the pictures as the baseline.

Groups are ours (featviz/assets/imagenet_groups.tsv): dogs, birds, road vehicles,
buildings and 37 more, as one would sort photographs by hand. What fits none is "other object" and
is left out. Data whose folders are no synsets are judged by class alone.

It prints a table in Markdown, and writes it (table.md), the neighbors of a dog, a bird, a vehicle
and a building in both spaces (sheets to look at), and with --atlas the map of the fc7 space with
photographs and synthetic icons. docs/fc7-space.md has the results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from _tables import read_arguments, show, table
from torch import Tensor

import featviz
from featviz.cli.embed import read_class_names
from featviz.descriptions.groups import imagenet_groups
from featviz.embedding.store import Store
from featviz.neighbors.quality import Quality

SHOWN = {
    "dog": ("dog",),
    "bird": ("bird",),
    "vehicle": ("road vehicle", "train"),
    "building": ("building",),
}
SHEET_ROWS = 3
HEAD = (
    *("space", "judged by", "labels", "rows", "@1", "@10", "shuffled @10", "mAP"),
    "shuffled mAP",
)


def main() -> None:
    options, model, pictures = read_arguments(
        __doc__,
        model="alexnet-mini",
        out=Path("run/fc7-space"),
        folder_names="",
        pixels=32,
        atlas=False,
        icon_side=10,
    )
    names = read_class_names(Path(options.folder_names) if options.folder_names else None)
    stores = featviz.embed_layers(model, pictures, ("relu7", "relu5"), class_names=names)
    groups = read_groups(stores["relu7"].labels)
    options.out.mkdir(parents=True, exist_ok=True)

    rows = []
    for name, space in spaces(stores, options.pixels):
        for judged_by, labels in (("class", stores["relu7"].labels), ("group", groups)):
            quality = featviz.find_neighbors(
                space, [0], labels=labels, precision_rows=len(labels)
            ).quality
            if quality is not None:
                rows.append(cells(name, judged_by, quality))
    show(table(HEAD, rows), options.out / "table.md")

    for word, wanted in SHOWN.items():
        asked = evenly([row for row, group in enumerate(groups) if group in wanted], SHEET_ROWS)
        for layer, store in stores.items():
            if asked:
                found = featviz.find_neighbors(store, asked, precision_rows=0)
                found.save(options.out / f"{word}-{layer}", overwrite=True)
    if options.atlas:
        made = featviz.build_atlas(
            model, stores["relu7"], icons="both", icon_side=options.icon_side, seed=0
        )
        made.save(options.out / "atlas", overwrite=True)


def spaces(stores: dict[str, Store], side: int) -> Iterator[tuple[str, Store | Tensor]]:
    """The spaces to compare, by name."""
    yield "fc7", stores["relu7"]
    yield "conv5, pooled", stores["relu5"]
    yield f"pixels, {side} x {side}", raw_pixels(stores["relu7"], side)


def raw_pixels(store: Store, side: int) -> Tensor:
    """The pictures of a store as (N, 3 * side * side), less their common mean: plain colors.

    Without the mean every picture would point the same way, towards gray, and cosine tell nothing.
    """
    flat = torch.stack([store.pictures.shown(row, side).flatten() for row in range(len(store))])
    return flat - flat.mean(0)


def read_groups(labels: Sequence[str]) -> tuple[str, ...]:
    """The group of each class folder; "" for those that have none."""
    known = {synset: group for group, synsets in imagenet_groups().items() for synset in synsets}
    return tuple(known.get(label, "") for label in labels)


def cells(space: str, judged_by: str, quality: Quality) -> list[str]:
    """A row of the table."""
    k = quality.k
    return [
        space,
        judged_by,
        str(quality.classes),
        str(quality.rows),
        f"{quality.precision[1]:.3f}",
        f"{quality.precision[k]:.3f}",
        f"{quality.shuffled[k]:.3f}",
        f"{quality.average_precision:.3f}",
        f"{quality.average_precision_shuffled:.3f}",
    ]


def evenly(rows: Sequence[int], count: int) -> list[int]:
    """Some of the rows, spread over all of them."""
    if not rows:
        return []
    return [rows[int(at)] for at in np.linspace(0, len(rows) - 1, min(count, len(rows)) + 2)[1:-1]]


if __name__ == "__main__":
    main()
