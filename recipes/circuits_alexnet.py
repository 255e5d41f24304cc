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

from collections.abc import Callable, Sequence

import torch
from _tables import read_arguments, show, table

import featviz
from featviz.circuits.connections import Followed

KEPT = (8, 32, 64, 128)
RANKINGS: dict[str, Callable[[Followed], float]] = {
    "by contribution": lambda one: one.correlation,
    "by weight norm": lambda one: one.by_weight,
    "at random": lambda one: one.random,
}


def main() -> None:
    options, model, pictures = read_arguments(__doc__, layer="conv4", units=24, count=150)
    pictures = pictures.spread(options.count)
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
    show(followed(found, len(circuits[0].inputs.names)), options.out)


def followed(found: Sequence[dict[int, Followed]], inputs: int) -> str:
    """Median over units and range, a row a ranking, a column a number of inputs."""
    kept = [k for k in KEPT if all(k in one for one in found)]
    rows = []
    for name, value in RANKINGS.items():
        cells = []
        for k in kept:
            values = torch.tensor([value(one[k]) for one in found])
            middle = float(values.quantile(0.5))
            cells.append(f"{middle:.2f} ({float(values.min()):.2f} to {float(values.max()):.2f})")
        rows.append([name, *cells])
    return table((f"inputs kept of {inputs}", *map(str, kept)), rows)


if __name__ == "__main__":
    main()
