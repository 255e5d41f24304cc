"""What contributions to one unit cost over 75 pictures, against a forward and a backward pass.

    python benchmarks/circuits.py [--quick] [--model NAME] [--weights FILE] [--data FOLDER]
        [--unit conv4:12]

All read the same files. "contributions" are those of every input at every position, sampled as
`trace_circuit` does; "trace_circuit" adds its statistics and random choices. "page" is the whole
command: the graph from the kernels to the classes over 150 pictures, with its page and figures.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile

import _rounds
import torch

import featviz
from featviz.circuits.contributions import linear_layer
from featviz.circuits.measure import sample_contributions
from featviz.circuits.reading import LayerInputs
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
        inputs = LayerInputs(model, data, BATCH).read([layer.layer])
        taken = (values[layer.layer] for values in inputs)
        sample_contributions(layer, [unit.index], taken, POSITIONS, 0)

    def whole() -> None:
        featviz.trace_circuit(model, given.unit, data, depth=1, height=0, count=COUNT, icons="none")

    def page() -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "featviz", "circuit", given.unit, "--quiet"]
            command += ["--model", given.model, "--out", f"{folder}/circuit"]
            command += ["--weights", given.weights] if given.weights else []
            command += ["--data", given.data] if given.data else []
            subprocess.run(command, check=True, capture_output=True)

    seconds = _rounds.measure(
        {
            "forward and backward": passes,
            "contributions": contributions,
            "trace_circuit": whole,
            "page": page,
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
