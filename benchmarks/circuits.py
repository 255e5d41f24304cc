"""What contributions to one unit cost over 75 pictures, against a forward and a backward pass.

    python benchmarks/circuits.py [--quick] [--model NAME] [--weights FILE] [--data FOLDER]
        [--unit conv4:12]

All read the same files. "contributions" are those of every input at every position, sampled as
`trace_circuit` does; "trace_circuit" adds its statistics and random choices.
"""

from __future__ import annotations

import statistics

import _rounds
import torch

import featviz
from featviz.circuits.contributions import linear_layer
from featviz.circuits.trace import sample_contributions
from featviz.data.datasets import batches
from featviz.models.units import parse_unit

COUNT, BATCH, POSITIONS = 75, 16, 64


def main() -> None:
    given = _rounds.arguments(
        __doc__.splitlines()[0], model="alexnet-mini", weights="", data="", unit="conv4:12"
    )
    model = featviz.load(given.model, weights=given.weights or None)
    pictures = featviz.open_pictures(given.data) if given.data else featviz.sample_pictures()
    data = pictures.spread(COUNT)
    unit = parse_unit(model, given.unit)

    def passes() -> None:
        for batch in batches(data, model.preprocessing, batch_size=BATCH):
            images = batch.images.to(model.device).requires_grad_(True)
            torch.autograd.grad(model(images)[:, 0].sum(), images)

    def contributions() -> None:
        layer = linear_layer(model, unit.layer)
        sample_contributions(model, layer, [unit.index], data, POSITIONS, BATCH, 0, None)

    def whole() -> None:
        featviz.trace_circuit(model, given.unit, data, count=COUNT, icons="none")

    seconds = _rounds.measure(
        {
            "forward and backward": passes,
            "contributions": contributions,
            "trace_circuit": whole,
        },
        rounds=3 if given.quick else 5,
    )
    median = {name: statistics.median(values) for name, values in seconds.items()}
    _rounds.report(
        "circuits",
        [_rounds.row(name, "s", values) for name, values in seconds.items()],
        {
            f"{name}/forward and backward": median[name] / median["forward and backward"]
            for name in ("contributions", "trace_circuit")
        },
    )


if __name__ == "__main__":
    main()
