"""How fast attacks walk, against a bare torch loop and against AutoAttack's own program.

    python benchmarks/audit.py [--quick] [--model NAME] [--weights FILE] [--classes FILE]
                               [--data FOLDER] [--count N]

Interleaved, in one process:

1. featviz's `pgd` and `apgd` with an eps so small that no picture is fooled (every walk is full
   length), in float32 and with the search in bf16; a bare torch loop of PGD's steps on the same
   batches; both again with an eps at which most pictures fall after a few steps, where featviz
   gives their places to others and the bare loop goes on.
2. AutoAttack's own APGD with cross-entropy (pyautoattack, extra `verify`), of as many steps.

Whole suites are compared by suites.py.

Ends with one JSON line.
"""

from __future__ import annotations

import functools
import platform
import statistics
from collections.abc import Callable
from pathlib import Path

import _rounds
import torch
import torch.nn.functional as F
from torch import Tensor

import featviz
from featviz.attacks.apgd import apgd
from featviz.attacks.autoattack import check_installed
from featviz.attacks.options import AttackOptions
from featviz.attacks.pgd import pgd
from featviz.attacks.result import AttackResult
from featviz.data.datasets import open_pictures
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.models.precision import gains_by_bfloat16
from featviz.types import Precision


def bare(
    model: Model, pictures: Tensor, labels: Tensor, eps: float, steps: int, batch_size: int
) -> int:
    """PGD as one writes it by hand; returns how many pictures end fooled."""
    fooled = 0
    for start in range(0, len(pictures), batch_size):
        x0, y = pictures[start : start + batch_size], labels[start : start + batch_size]
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


def their_apgd(norm: str, eps: float, steps: int, batch_size: int) -> Callable[..., object]:
    """AutoAttack's APGD with cross-entropy: one restart of so many steps."""
    from pyautoattack.autopgd_base import APGDAttack

    def attack(model: Model, pictures: Tensor, labels: Tensor) -> None:
        program = APGDAttack(
            model,
            n_restarts=1,
            n_iter=steps,
            eps=eps,
            norm=norm,
            seed=0,
            device="cpu",
            verbose=False,
        )
        for start in range(0, len(pictures), batch_size):
            program.perturb(
                pictures[start : start + batch_size], labels[start : start + batch_size]
            )

    return attack


def main() -> None:
    options = _rounds.arguments(
        __doc__.splitlines()[0],
        model="alexnet-mini",
        weights="",
        classes="",
        data="",
        count=0,
    )
    count = options.count or (16 if options.quick else 64)
    steps, batch_size = 10, 8
    model = featviz.load(
        options.model,
        weights=options.weights or None,
        classes=Path(options.classes) if options.classes else None,
    )
    data = open_pictures(options.data) if options.data else featviz.sample_pictures()
    samples = data.spread(count)
    squares = [samples.read(i, model.preprocessing) for i in range(len(samples))]
    pictures = torch.stack(squares).to(model.device)
    with torch.no_grad():
        labels = torch.cat([model(part).argmax(1) for part in pictures.split(16)])
    gradients: dict[str, int] = {}

    def ours(
        attack: Callable[..., AttackResult], kind: str, eps: float, precision: Precision = "float32"
    ) -> None:
        options = AttackOptions(batch_size=batch_size, precision=precision)
        found = attack(model, pictures, labels, eps=eps, steps=steps, options=options)
        gradients[kind] = int(found.backwards.sum())

    def theirs(kind: str, eps: float) -> None:
        bare(model, pictures, labels, eps, steps, batch_size)
        gradients[kind] = steps * len(pictures)

    works: dict[str, Callable[[], object]] = {}
    for kind, eps in (("none falls", 1e-6), ("most fall", 16 / 255)):
        works[f"pgd, {kind}"] = functools.partial(ours, pgd, f"pgd, {kind}", eps)
        works[f"bare, {kind}"] = functools.partial(theirs, f"bare, {kind}", eps)
    works["apgd, none falls"] = functools.partial(ours, apgd, "apgd, none falls", 1e-6)
    works["apgd, most fall"] = functools.partial(ours, apgd, "apgd, most fall", 16 / 255)
    if gains_by_bfloat16(model, pictures):
        works["apgd bf16, none falls"] = functools.partial(
            ours, apgd, "apgd bf16, none falls", 1e-6, precision="bfloat16"
        )
    try:
        check_installed()
        for kind, eps in (("none falls", 1e-6), ("most fall", 16 / 255)):
            attack = their_apgd("Linf", eps, steps, batch_size)
            works[f"autoattack's apgd, {kind}"] = functools.partial(attack, model, pictures, labels)
    except UserError as missing:
        print(missing)
    seconds = _rounds.measure(works, rounds=2 if options.quick else 5)
    asked = steps * len(pictures)
    rows = [
        _rounds.row(name, "image-steps/s asked for", [asked / s for s in values])
        for name, values in seconds.items()
    ]
    for name, computed in gradients.items():
        print(f"{name}: {computed} of {asked} gradients computed")

    def ratio(one: str, other: str) -> float:
        return statistics.median(b / a for a, b in zip(seconds[one], seconds[other], strict=True))

    ratios = {}
    for kind in ("none falls", "most fall"):
        ratios[f"featviz/bare speed, PGD, {kind}"] = ratio(f"pgd, {kind}", f"bare, {kind}")
        if f"autoattack's apgd, {kind}" in seconds:
            ratios[f"featviz/autoattack speed, APGD, {kind}"] = ratio(
                f"apgd, {kind}", f"autoattack's apgd, {kind}"
            )
    if "apgd bf16, none falls" in seconds:
        ratios["bf16/fp32 speed, APGD, none falls"] = ratio(
            "apgd bf16, none falls", "apgd, none falls"
        )
    device = f"cpu ({platform.machine()}), {torch.get_num_threads()} threads"
    if model.device.type == "cuda":
        device = torch.cuda.get_device_name(model.device)
    _rounds.report("audit", rows, ratios, f"{device}, {model.name}")


if __name__ == "__main__":
    main()
