"""How long a whole default audit takes, and what a fixed large eps costs when every picture falls.

    python benchmarks/audit_whole.py [--quick] [--model NAME] [--weights FILE] [--data FOLDER]
                                     [--count N]

The first row is `featviz.audit` with its default settings: two norms, checks, doubts and all four
sections. The second counts the passes of the suite at 16/255, where the walks are short: what it
takes to find that a picture falls. Without --data the bundled sample pictures are used. Ends with
one JSON line.
"""

from __future__ import annotations

import time
from typing import Any

import _rounds
import torch

import featviz
from featviz.attacks.ensemble import ensemble
from featviz.data.datasets import read_all


def main() -> None:
    options = _rounds.arguments(
        __doc__.splitlines()[0], model="alexnet-mini", weights="", data="", count=0
    )
    count = options.count or (24 if options.quick else 200)
    model = featviz.load(options.model, weights=options.weights or None)
    pictures = featviz.open_pictures(options.data) if options.data else featviz.sample_pictures()
    quick: dict[str, Any] = {"steps": 20, "check_steps": 10, "queries": 20, "parts": ()}
    started = time.perf_counter()
    found = featviz.audit(model, pictures, count=count, **(quick if options.quick else {}))
    seconds = time.perf_counter() - started
    n = len(found.names)
    right = int(found.clean_correct.sum())
    print(f"{found.title}: {right} of {n} right when clean")
    for warning in found.warnings:
        print(f"  note: {warning}")

    _, batch, _ = read_all(pictures.spread(count), model.preprocessing)
    with torch.no_grad():
        labels = torch.cat([model(part.to(model.device)).argmax(1) for part in batch.split(32)])
    attacked = ensemble(model, batch.to(model.device), labels, eps=16 / 255, steps=20, queries=0)
    print(f"ensemble at 16/255: {int(attacked.success.sum())} of {len(batch)} are fooled")
    rows = [
        _rounds.row(f"default audit, {n} pictures", "s", [seconds]),
        _rounds.row("audit, forward passes a picture", "", [found.forwards / n]),
        _rounds.row("audit, backward passes a picture", "", [found.backwards / n]),
        _rounds.row(
            "ensemble at 16/255, forward passes a picture",
            "",
            [float(attacked.forwards.double().mean())],
        ),
    ]
    device = f"{model.device.type}, {torch.get_num_threads()} threads, {model.name}"
    ratios = {"share fooled at 16/255": float(attacked.success.double().mean())}
    _rounds.report("audit_whole", rows, ratios, device)


if __name__ == "__main__":
    main()
