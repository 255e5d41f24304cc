"""What silencing all units of a layer one by one costs, against the rest of the net run for each.

    python benchmarks/ablation.py [--quick] [--model NAME] [--weights FILE] [--data FOLDER]
        [--layer conv5] [--count 500]

"the rest alone" is the least that plain torch needs once the activations are there: a copy of them
with one unit at 0 and the layers behind, called as modules, for each unit and batch. Pictures are
read and the layers before the layer run once in "ablate" and not at all in "the rest alone".
"""

from __future__ import annotations

import statistics

import _rounds
import torch

import featviz
from featviz.data.datasets import batches
from featviz.models.frozen import frozen
from featviz.models.rest import recorded_pass

BATCH = 64


def main() -> None:
    given = _rounds.arguments(
        __doc__.splitlines()[0],
        model="alexnet-mini",
        weights="",
        data="",
        layer="conv5",
        count=500,
    )
    model = featviz.load(given.model, weights=given.weights or None)
    pictures = featviz.open_pictures(given.data) if given.data else featviz.sample_pictures()
    count = 64 if given.quick else given.count
    known = [row for row, label in enumerate(pictures.labels(model)) if label is not None]
    data = pictures.select([known[i % len(known)] for i in range(count)])
    net = model.net
    stages = [net.get_submodule(name) for name in ("features", "classifier")]
    features, classifier = (list(stage.children()) for stage in stages)
    behind = [*features, net.get_submodule("avgpool"), torch.nn.Flatten(), *classifier]

    module = net.get_submodule(model.layer(given.layer).path)
    start = next(i for i, one in enumerate(behind) if one is module) + 1
    rest = torch.nn.Sequential(*behind[start:]).eval()
    parts = [
        featviz.models.layers.activations(model, batch.images, [given.layer])[given.layer]
        for batch in batches(data, model.preprocessing, batch_size=BATCH)
    ]
    units = model.layer(given.layer).units

    def bare() -> None:
        with torch.inference_mode():
            for values in parts:
                for unit in range(units):
                    changed = values.clone()
                    changed[:, unit] = 0
                    rest(changed).argmax(1)

    def ablate() -> None:
        featviz.ablate(model, given.layer, data, batch_size=BATCH)

    def whole_layer() -> None:
        """`Recorded.run`, which serves any graph, without following the unit alone."""
        with frozen(model), torch.no_grad():
            for batch in batches(data, model.preprocessing, batch_size=BATCH):
                recorded = recorded_pass(model, given.layer, batch.images)
                for unit in range(units):
                    changed = recorded.values.clone()
                    changed[:, unit] = 0
                    recorded.run(changed).argmax(1)

    seconds = _rounds.measure(
        {"the rest alone": bare, "ablate": ablate, "recorded, any graph": whole_layer},
        rounds=1 if given.quick else 3,
    )
    median = {name: statistics.median(values) for name, values in seconds.items()}
    _rounds.report(
        "ablation",
        [_rounds.row(name, "s", values) for name, values in seconds.items()],
        {
            f"{name}/the rest alone": median[name] / median["the rest alone"]
            for name in ("ablate", "recorded, any graph")
        },
    )


if __name__ == "__main__":
    main()
