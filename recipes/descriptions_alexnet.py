"""Which classes, groups and pairs describe the units of a late layer, and how many by chance.

    python recipes/descriptions_alexnet.py --data tiny-imagenet/val [--model alexnet --weights FILE]
        [--layer relu5] [--per-class 10] [--out FILE]

Describes all units of the layer (maximum over positions) on the first pictures of each class folder
and prints a table in Markdown: how many units have a best class, group or pair above 95% of the
searches under shuffled labels, how many are described (q below 5%), how many detect what describes
them, and the ten most selective. docs/descriptions.md has the results.
"""

from __future__ import annotations

import sys
from collections import Counter

from _tables import read_arguments, show, table

import featviz
from featviz.descriptions.result import Descriptions


def main() -> None:
    options, model, pictures = read_arguments(
        __doc__, model="alexnet-mini", layer="relu5", per_class=10
    )
    seen: Counter[str] = Counter()
    rows = []
    for row, folder in enumerate(pictures.folders):
        seen[folder] += 1
        if seen[folder] <= options.per_class:
            rows.append(row)
    found = featviz.describe_units(
        model, pictures.select(rows), options.layer, tuning=False, progress=progress
    )
    assert isinstance(found, Descriptions)
    show(summary(found), options.out)


def summary(found: Descriptions) -> str:
    numbers = found.numbers()
    names = ("class above chance", "group above chance", "pair above chance", "detectors")
    rows = [(name, numbers[name].value) for name in names if name in numbers]
    rows.append(("described", f"{len(found.described)} of {len(found.units)}"))
    lines = [f"{found.subject}, {found.pictures:,} pictures", "", table(("", "units"), rows), ""]
    lines += [f"- {one.unit}: {one.sentence}" for one in found.described[:10]]
    return "\n".join(lines)


def progress(done: int, total: int, text: str) -> None:
    if done == total or done % 100 == 0:
        print(f"{done}/{total} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
