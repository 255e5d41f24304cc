"""How fast PGD walks, against the same steps in a bare torch loop, and what leaving early saves.

    python benchmarks/audit.py [--quick] [--model NAME] [--weights FILE] [--count N]

Three measurements, interleaved, in one process: featviz's `pgd` with an eps so small that no
picture is fooled (every walk is full length); a bare torch loop of the same steps on the same
batches; both again with an eps at which pictures fall after a few steps, where featviz gives their
places to others and the bare loop goes on. Ends with one JSON line.
"""

from __future__ import annotations

import functools
import platform
import statistics

import _rounds
import torch
import torch.nn.functional as F
from torch import Tensor

import featviz
from featviz.adversarial.attacks import pgd
from featviz.models.load import Model


def bare(model: Model, pictures: Tensor, labels: Tensor, eps: float, steps: int, slots: int) -> int:
    """PGD as one writes it by hand; returns how many pictures end fooled."""
    fooled = 0
    for start in range(0, len(pictures), slots):
        x0, y = pictures[start : start + slots], labels[start : start + slots]
        x = (x0 + eps * (2 * torch.rand_like(x0) - 1)).clamp(0, 1)
        for _ in range(steps):
            leaf = x.requires_grad_(True)
            loss = F.cross_entropy(model(leaf), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, leaf)
            x = x.detach() + 2.5 / steps * eps * gradient.sign()
            x = (x0 + (x - x0).clamp(-eps, eps)).clamp(0, 1)
        with torch.no_grad():
            fooled += int((model(x).argmax(1) != y).sum())
    return fooled


def main() -> None:
    options = _rounds.arguments(__doc__.splitlines()[0], model="alexnet-mini", weights="", count=0)
    count = options.count or (32 if options.quick else 96)
    steps, slots = 10, 16
    model = featviz.load(options.model, weights=options.weights or None)
    samples = featviz.sample_pictures().spread(count)
    squares = [samples.read(i, model.resize, model.input_size) for i in range(len(samples))]
    pictures = torch.stack(squares).to(model.device)
    with torch.no_grad():
        labels = model(pictures).argmax(1)
    gradients: dict[str, int] = {}

    def ours(kind: str, eps: float) -> None:
        found = pgd(model, pictures, labels, eps=eps, steps=steps, slots=slots)
        gradients[f"featviz, {kind}"] = int(found.backwards.sum())

    def theirs(kind: str, eps: float) -> None:
        bare(model, pictures, labels, eps, steps, slots)
        gradients[f"bare, {kind}"] = steps * len(pictures)

    works = {}
    for kind, eps in (("none falls", 1e-6), ("most fall", 16 / 255)):
        works[f"featviz, {kind}"] = functools.partial(ours, kind, eps)
        works[f"bare, {kind}"] = functools.partial(theirs, kind, eps)
    seconds = _rounds.measure(works, rounds=2 if options.quick else 5)
    asked = steps * len(pictures)
    rows = [
        _rounds.row(f"PGD {name}", "image-steps/s asked for", [asked / s for s in values])
        for name, values in seconds.items()
    ]
    for name, computed in gradients.items():
        print(f"{name}: {computed} of {asked} gradients computed")
    ratios = {
        f"featviz/bare speed, {kind}": statistics.median(
            b / a
            for a, b in zip(seconds[f"featviz, {kind}"], seconds[f"bare, {kind}"], strict=True)
        )
        for kind in ("none falls", "most fall")
    }
    device = f"cpu ({platform.machine()}), {torch.get_num_threads()} threads"
    if model.device.type == "cuda":
        device = torch.cuda.get_device_name(model.device)
    _rounds.report("audit", rows, ratios, f"{device}, {model.name}")


if __name__ == "__main__":
    main()
