"""What silencing single units costs a network, overall and in single classes.

    python recipes/ablation_alexnet.py --data FOLDER [--model alexnet] [--weights FILE]
        [--layers conv5,fc7] [--count 2000] [--how zero] [--out FOLDER]

Silences every unit of each layer by itself (`featviz.ablate`) on labeled pictures and prints a
table in Markdown: the accuracy; how much of it one unit costs (median over the units, the middle
95% of them, the largest loss); the loss of the class that is hurt most, which half of the pictures
choose and the other half measure; how many units change the accuracy, and how many a class, by
McNemar's exact test, corrected. docs/ablation.md has the results.
"""

from __future__ import annotations

import sys

from _tables import line, read_arguments, table

import featviz
from featviz.ablation.result import Ablation
from featviz.numbers import show_number

HEAD = (
    "layer",
    "pictures",
    "accuracy",
    "one unit, median",
    "95% of the units",
    "largest loss (95% interval)",
    "class hurt most, held out",
    "a class on average",
    "units that change the accuracy",
    "units that hurt a class",
)


def main() -> None:
    options, model, data = read_arguments(
        __doc__, layers="conv5,fc7", count=2000, batch_size=250, how="zero"
    )
    print(table(HEAD, []))
    for layer in options.layers.split(","):
        found = featviz.ablate(
            model,
            layer,
            data,
            how=options.how,
            count=options.count,
            batch_size=options.batch_size,
            progress=lambda done, total, text: print(f"\r{done}/{total}", end="", file=sys.stderr),
        )
        print(line(row(found)), flush=True)
        if options.out:
            found.save(options.out / layer, overwrite=True)


def row(found: Ablation) -> list[str]:
    """The cells of a layer."""
    numbers = found.numbers()
    largest = numbers["largest loss"]
    assert largest.low is not None
    assert largest.high is not None
    held_out = []
    for name in ("loss of the class hurt most", "loss of a class on average"):
        one = numbers.get(name)
        held_out.append("-" if one is None else show_number(one))
    changes = [100 * (one.change.value or 0.0) for one in found.effects]
    changes.sort()
    cut = round(0.025 * (len(changes) - 1))
    return [
        found.layer,
        f"{len(found.labels):,}",
        show_number(numbers["accuracy"]),
        f"{changes[len(changes) // 2]:+.2f} points",
        f"{changes[cut]:+.2f} to {changes[-1 - cut]:+.2f}",
        f"{changes[0]:+.2f} ({100 * largest.low:+.2f} to {100 * largest.high:+.2f})",
        *held_out,
        f"{numbers['change accuracy'].value} of {len(changes):,}",
        f"{numbers['hurt a class'].value} of {len(changes):,}",
    ]


if __name__ == "__main__":
    main()
