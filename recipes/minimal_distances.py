"""The smallest changes that fool AlexNets: a table of medians in four norms.

    python recipes/minimal_distances.py --data FOLDER [--out run/minimal] [--model alexnet-mini]
        [--weights FILE] [--classes FILE] [--count 24] [--steps 100] [--minutes 5]
        [--precision auto]

Takes `count` pictures of class folders that the model gets right, evenly spread over the classes,
and looks for the smallest change of each in L0, L1, L2 and L-infinity. One row a picture and norm
is added to rows.csv as soon as it is there, so the run may be stopped (by Ctrl-C or --minutes), and
the same command goes on; the pictures come in an order that spreads over the classes, so that the
table is a fair one at any time. Each picture's numbers are its own: neither the count nor the
stops change them. Where a processor is faster in bf16 most of a search runs in it (medians move by
less than half a per cent); what counts is judged in float32.

The table (table.csv, and on standard output in Markdown) gives for each norm the median with the
order statistics that hold it with 95% confidence, the quartiles, how many are still wrong when
rounded to 8 bits, and the median ratio to the local linear estimate. docs/minimal-distances.md has
the results.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from _tables import read_arguments, table
from torch import Tensor

from featviz.attacks.linear_estimate import linear_estimate
from featviz.attacks.minimal import NORMS, minimal
from featviz.attacks.options import AttackOptions
from featviz.attacks.sigma_zero import changed_pixels
from featviz.data.datasets import Pictures
from featviz.models.frozen import frozen
from featviz.models.model import Model
from featviz.statistics import median

COLUMNS = (
    "picture",
    "norm",
    "steps",
    "distance",
    "estimate",
    "pixels",
    "fools_8bit",
    "l2_picture",
    "forwards",
    "backwards",
    "seconds",
)
GROUP = 4  # pictures the model sees at once; part of what decides the last bits


def main() -> None:
    options, model, pictures = read_arguments(
        __doc__,
        model="alexnet-mini",
        out=Path("run/minimal"),
        count=24,
        steps=100,
        precision="auto",
        minutes=5.0,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "rows.csv"
    until = time.monotonic() + 60 * options.minutes
    done = {(row["picture"], row["norm"]) for row in rows_of(file)}
    group: list[tuple[str, Tensor, int]] = []
    for name, picture, label in right_ones(model, pictures, options.count):
        group.append((name, picture, label))
        if len(group) == GROUP:
            attack(model, group, options, file, done, until)
            group = []
    if group:
        attack(model, group, options, file, done, until)
    report(rows_of(file), options.out / "table.csv")


def right_ones(model: Model, data: Pictures, count: int) -> Iterator[tuple[str, Tensor, int]]:
    """(path, picture, label) of `count` pictures that the model gets right, one class after
    another, then each class's second picture, and so on."""
    labels = data.labels(model)
    place: dict[str, int] = {}
    order = []
    for i, folder_name in enumerate(data.folders):
        place[folder_name] = place.get(folder_name, -1) + 1
        if labels[i] is not None:
            order.append((place[folder_name], (i * 7919) % len(data), i))
    for _, _, i in sorted(order):
        if not count:
            return
        picture, label = data.read(i, model.preprocessing), labels[i]
        with torch.no_grad():
            if int(model(picture[None]).argmax()) == label:
                count -= 1
                yield data.paths[i], picture, label


def attack(
    model: Model,
    group: list[tuple[str, Tensor, int]],
    options: argparse.Namespace,
    file: Path,
    done: set[tuple[str, str]],
    until: float,
) -> None:
    """The smallest changes of a few pictures in all norms; their rows go to the file."""
    names = [name for name, _, _ in group]
    pictures = torch.stack([picture for _, picture, _ in group])
    labels = torch.tensor([label for _, _, label in group])
    steps = options.steps
    for norm in NORMS:
        if all((name, norm) in done for name in names) or time.monotonic() > until:
            continue
        started = time.perf_counter()
        found = minimal(
            model,
            pictures,
            labels,
            norm=norm,
            steps=steps,
            options=AttackOptions(batch_size=GROUP, precision=options.precision),
        )
        seconds = (time.perf_counter() - started) / len(group)
        guess = estimate(model, pictures, labels, norm)
        pixels = changed_pixels(pictures, found.adversarial)
        with file.open("a", newline="") as opened:
            writer = csv.writer(opened)
            if not opened.tell():
                writer.writerow(COLUMNS)
            for i, name in enumerate(names):
                if (name, norm) not in done:
                    writer.writerow(
                        (
                            name,
                            norm,
                            steps,
                            float(found.distance[i]),
                            float(guess[i]),
                            int(pixels[i]),
                            int(found.success_8bit[i]),
                            float(pictures[i].norm()),
                            int(found.forwards[i]),
                            int(found.backwards[i]),
                            round(seconds, 2),
                        )
                    )


def estimate(model: Model, pictures: Tensor, labels: Tensor, norm: str) -> Tensor:
    """(N,) the distance that the linearisation at the picture promises; 1 component in L0."""
    if norm == "l0":
        return torch.ones(len(pictures), dtype=torch.float64)
    with frozen(model):
        return linear_estimate(model, pictures, labels, norm=norm, batch_size=GROUP).distances[:, 0]


def rows_of(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def report(rows: list[dict[str, str]], file: Path) -> None:
    """The table, as CSV and in Markdown."""
    header = (
        "norm",
        "n",
        "median",
        "low",
        "high",
        "quarter",
        "three quarters",
        "fools in 8 bits",
        "over the estimate",
        "seconds a picture",
    )
    lines = []
    for norm in NORMS:
        own = [row for row in rows if row["norm"] == norm]
        if not own:
            continue
        lines.append(
            (
                norm,
                *middle(own, "distance"),
                sum(int(row["fools_8bit"]) for row in own),
                "" if norm == "l0" else median(ratios(own)).value or torch.inf,
                sum(float(row["seconds"]) for row in own) / len(own),
            )
        )
        if norm == "l0":
            lines.append(("l0, pixels", *middle(own, "pixels"), "", "", ""))
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([header, *lines])
    print(table(header, lines))


def middle(rows: list[dict[str, str]], column: str) -> tuple[float, ...]:
    """n, median, both ends of its interval, both quartiles."""
    values = torch.tensor([float(row[column]) for row in rows], dtype=torch.float64)
    m = median(values)
    ordered = values.sort().values
    quarters = (float(ordered[m.n // 4]), float(ordered[3 * m.n // 4]))
    return m.n, torch.inf if m.value is None else m.value, m.low, m.high, *quarters


def ratios(rows: list[dict[str, str]]) -> Tensor:
    """(N,) how much farther each picture had to go than its linearisation promised."""
    return torch.tensor([float(row["distance"]) / float(row["estimate"]) for row in rows])


if __name__ == "__main__":
    main()
