"""How well the strongest inputs follow units of conv4, in the real AlexNet on photographs.

    python recipes/circuits_alexnet.py --weights FILE [--data FOLDER] [--model alexnet]
        [--layer conv4] [--units 24] [--count 150] [--out FILE]

Traces `--units` random units of the layer (`featviz.trace_circuits`): half of the photographs rank
the inputs, the other half measure the correlation of the unit with the sum of the first 8, 32, 64
and 128 alone. Prints the median over units and the range, as a table in Markdown.

The photographs are those of `--data`, else of the folder `imagenet_val` in FEATVIZ_SHARED_DATA.
docs/circuits.md has the results.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import featviz
from featviz.circuits.connections import Followed

KEPT = (8, 32, 64, 128)
RANKINGS: dict[str, Callable[[Followed], float]] = {
    "by contribution": lambda one: one.correlation,
    "by weight norm": lambda one: one.by_weight,
    "at random": lambda one: one.random,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = os.environ.get("FEATVIZ_SHARED_DATA")
    default = Path(shared) / "imagenet_val" if shared else None
    parser.add_argument("--data", type=Path, default=default, help="folder of photographs")
    parser.add_argument("--model", default="alexnet")
    parser.add_argument("--weights")
    parser.add_argument("--layer", default="conv4")
    parser.add_argument("--units", type=int, default=24)
    parser.add_argument("--count", type=int, default=150, help="photographs, half to choose")
    parser.add_argument("--out", type=Path, help="file of the table")
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data FOLDER, or FEATVIZ_SHARED_DATA, is needed")
    model = featviz.load(options.model, weights=options.weights)
    pictures = featviz.open_pictures(options.data).spread(options.count)
    generator = torch.Generator().manual_seed(0)
    units = torch.randperm(model.layer(options.layer).units, generator=generator)
    circuits = featviz.trace_circuits(
        model,
        [f"{options.layer}:{unit}" for unit in units[: options.units].tolist()],
        pictures,
        height=0,
        count=options.count,
    ).circuits
    found = [{one.k: one for one in circuit.followed} for circuit in circuits]
    text = table(found, len(circuits[0].inputs.names))
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


def table(found: Sequence[dict[int, Followed]], inputs: int) -> str:
    """Median over units and range, a row a ranking, a column a number of inputs."""
    kept = [k for k in KEPT if all(k in one for one in found)]
    rows = [
        [f"inputs kept of {inputs}", *map(str, kept)],
        ["---"] * (1 + len(kept)),
    ]
    for name, value in RANKINGS.items():
        cells = []
        for k in kept:
            values = torch.tensor([value(one[k]) for one in found])
            middle = float(values.quantile(0.5))
            cells.append(f"{middle:.2f} ({float(values.min()):.2f} to {float(values.max()):.2f})")
        rows.append([name, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
