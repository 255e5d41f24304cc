"""Pictures a second of `train` beside its bare training step, by where the pictures come from.

    python benchmarks/train.py --data FOLDER [--quick] [--model NAME] [--batch 128] [--steps 8]

The bare step is plain torch on one batch that stays in memory, normalized already: forward, loss,
backward and update, channels-last, in bfloat16 where the processor computes in it. Beside it
`train` itself, in interleaved rounds, with pictures decoded in memory, from a pack, and from JPEG
files, and what reading alone reaches. --data holds class folders of JPEG files; default: the
bundled pictures. Each is measured twice: by the clock, and by the time that processors spent on it
in all threads, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import _rounds
import torch
from torch import nn

import featviz
from featviz.data.datasets import open_pictures
from featviz.data.samples import sample_pictures
from featviz.models.alexnet import with_batch_norm
from featviz.models.load import BUILTIN, resolve_device
from featviz.models.precision import has_bfloat16
from featviz.training.batches import ahead
from featviz.training.data import Examples, read_examples
from featviz.training.loop import TrainSettings, train


class Rate(NamedTuple):
    """Pictures a second."""

    clock: float
    processor: float
    """of processor time, of all threads"""


class Watch:
    """Measures from the first to the last of some moments."""

    def __init__(self, place: torch.device) -> None:
        self.place = place
        self.moments: list[tuple[float, float]] = []

    def __call__(self, *_: object) -> None:
        if self.place.type == "cuda":
            torch.cuda.synchronize()
        self.moments.append((time.perf_counter(), time.process_time()))

    def rate(self, pictures: int) -> Rate:
        first, last = self.moments[0], self.moments[-1]
        return Rate(pictures / (last[0] - first[0]), pictures / (last[1] - first[1]))


def bare(net: nn.Module, batch: int, steps: int, classes: int, place: torch.device) -> Rate:
    """Plain torch on one batch."""
    net = net.to(place, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    side = int(getattr(net, "input_size", 64))
    x = torch.randn(batch, 3, side, side, device=place)
    x = x.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=place) % classes
    optimizer = torch.optim.SGD(
        net.parameters(), 1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )
    watch = Watch(place)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(place.type, torch.bfloat16, enabled=has_bfloat16(place)):
            logits = net(x)
        nn.functional.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()
        optimizer.step()
        watch()
    return watch.rate(batch * (steps - 1))


def looped(net: nn.Module, examples: Examples, batch: int, place: torch.device) -> Rate:
    """`train`, from the end of its first step's forward pass to that of its last step's."""
    watch = Watch(place)
    handle = net.register_forward_hook(lambda m, i, o: watch() if m.training else None)
    train(net, examples, epochs=1, settings=TrainSettings(batch_size=batch, lr=1e-3))
    handle.remove()
    return watch.rate(batch * (len(watch.moments) - 1))


def reading(examples: Examples, batch: int) -> Rate:
    """What `train` can read while it does nothing else."""
    watch = Watch(torch.device("cpu"))
    watch()
    for _ in ahead(examples.take, torch.arange(len(examples)).split(batch)):
        pass
    watch()
    return watch.rate(len(examples))


def main(given: argparse.Namespace) -> None:
    place = resolve_device("auto")
    torch.manual_seed(0)
    form, batch, steps = BUILTIN[given.model], given.batch, given.steps
    data = open_pictures(given.data) if given.data else sample_pictures()
    batch = min(batch, len(data) // 3)
    data = data.spread(batch * steps)
    shorter = form.input_size if given.model == "alexnet-mini" else 256
    with tempfile.TemporaryDirectory(dir=given.scratch or None) as scratch:
        pack = featviz.pack(data, Path(scratch) / "pack", size=shorter)
        sources = {
            "pictures in memory": read_examples(pack.pictures, shorter),
            "pack": read_examples(pack.pictures, shorter, memory_limit=0),
            "JPEG files": read_examples(data, shorter, memory_limit=0),
        }
        classes = len(data.classes)

        def net() -> nn.Module:
            return with_batch_norm(form(classes))

        works: dict[str, Callable[[], Rate]] = {
            "bare step": lambda: bare(net(), batch, steps, classes, place),
            **{
                f"train, {name}": partial(lambda e: looped(net(), e, batch, place), examples)
                for name, examples in sources.items()
            },
            "reading alone, pack": lambda: reading(sources["pack"], batch),
            "reading alone, JPEG files": lambda: reading(sources["JPEG files"], batch),
        }
        rates: dict[str, list[Rate]] = {name: [] for name in works}
        for i in range((2 if given.quick else 5) + 1):
            for name, work in works.items():
                rate = work()
                if i:
                    rates[name].append(rate)
    kind = "bfloat16" if has_bfloat16(place) else "float32"
    what = f"{given.model}, batches of {batch}, {kind}"
    rows, ratios = [], {}
    for by in Rate._fields:
        values = {name: [getattr(rate, by) for rate in found] for name, found in rates.items()}
        for name, found in values.items():
            rows.append(_rounds.row(f"{name} ({what}; by {by})", "pictures/s", found))
            if name.startswith("train"):
                of_bare = [
                    one / whole for one, whole in zip(found, values["bare step"], strict=True)
                ]
                ratios[f"{name} / bare step, by {by}"] = statistics.median(of_bare)
    card = torch.cuda.get_device_name() if place.type == "cuda" else ""
    _rounds.report("train", rows, ratios, card)


if __name__ == "__main__":
    main(_rounds.arguments(__doc__, data="", model="alexnet-mini", batch=128, steps=8, scratch=""))
