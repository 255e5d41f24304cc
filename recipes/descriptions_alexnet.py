"""Which classes, groups and pairs describe the units of a late layer, and how many by chance.

    python recipes/descriptions_alexnet.py --data tiny-imagenet/val [--model alexnet --weights FILE]
        [--layer relu5] [--per-class 10] [--out FILE]

Describes all units of the layer (maximum over positions) on the first pictures of each class folder
and prints a table in Markdown: how many units have a best class, group or pair above 95% of the
searches under shuffled labels, how many are described (q below 5%), how many detect what describes
them, and the ten most selective. docs/descriptions.md has the results.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import featviz
from featviz.descriptions.result import Descriptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="class folders of photographs")
    parser.add_argument("--model", default="alexnet-mini")
    parser.add_argument("--weights")
    parser.add_argument("--layer", default="relu5")
    parser.add_argument("--per-class", type=int, default=10)
    parser.add_argument("--out", type=Path, help="file of the table")
    options = parser.parse_args()
    model = featviz.load(options.model, weights=options.weights)
    pictures = featviz.open_pictures(options.data)
    seen: Counter[str] = Counter()
    rows = []
    for row, folder in enumerate(pictures.folders):
        seen[folder] += 1
        if seen[folder] <= options.per_class:
            rows.append(row)
    found = featviz.describe_units(
        model, pictures.select(rows), options.layer, tuning=False, progress=show
    )
    assert isinstance(found, Descriptions)
    text = table(found)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


def table(found: Descriptions) -> str:
    numbers = found.numbers()
    names = ("class above chance", "group above chance", "pair above chance", "detectors")
    lines = [f"{found.subject}, {found.pictures:,} pictures", "", "| | units |", "|---|---|"]
    lines += [f"| {n} | {numbers[n].value} |" for n in names if n in numbers]
    lines += [f"| described | {len(found.described)} of {len(found.units)} |", ""]
    lines += [f"- {one.unit}: {one.sentence}" for one in found.described[:10]]
    return "\n".join(lines)


def show(done: int, total: int, text: str) -> None:
    if done == total or done % 100 == 0:
        print(f"{done}/{total} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
