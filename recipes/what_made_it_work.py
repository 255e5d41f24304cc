"""Which of AlexNet's ingredients help the bundled network's shape, and by how much?

    python recipes/what_made_it_work.py --data tiny-imagenet/train --out run/ingredients
        [--full] [--classes N] [--pictures N] [--epochs N] [--seeds N] [--figure FILE]

Trains alexnet-mini from random weights with one ingredient of Krizhevsky, Sutskever and Hinton's
paper (2012) changed at a time, every run on the same pictures, with the same number of steps and
the same seeds, and prints two tables in Markdown:

- ReLU against tanh without dropout and augmentation, as in the paper's figure 1: epochs until a
  quarter of the training pictures is wrong. Each has the learning rate of `RATES` that is fastest.
- dropout, augmentation, local response normalization, overlapping pooling, two groups, tanh:
  accuracy on pictures that no run was trained on, and the difference from the unchanged network
  with the 95% t interval over seeds.

--data holds class folders; every class gives `--pictures` training pictures and 100 others for the
test. Stopped anywhere, the same command goes on. The short form, 20 classes and 5,000 pictures of
48 pixels, takes about 80 minutes on one core with bfloat16 instructions; --full takes 50 classes,
20,000 pictures and 15 epochs, about five times as long. docs/what-made-it-work.md has the result.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from _tables import table
from matplotlib.figure import Figure
from scipy import stats
from torch import nn

import featviz
from featviz import plotting
from featviz.checkpoints import remove_checkpoint
from featviz.errors import UserError
from featviz.models.alexnet import AlexNetMini
from featviz.results import figure_bytes
from featviz.training.data import Augmentation, Examples, read_examples
from featviz.training.loop import TrainSettings, train

SIDE = 48  # pixels: half the work of the model's own 64
TESTED = 100  # pictures a class
RATES = (0.00125, 0.0025, 0.005, 0.01, 0.02)
WRONG = 0.25
"""the paper's training error"""
NONE = Augmentation(area=(1.0, 1.0), aspect=0.0, brightness=0.0, flip=False)


@dataclass(frozen=True)
class Variant:
    """A network and its training with one ingredient changed."""

    name: str
    change: Callable[[nn.Sequential], None] = lambda features: None
    """works on the convolutional part in place"""
    activation: Literal["relu", "tanh"] = "relu"
    dropout: float = 0.5
    augmentation: Augmentation = field(default_factory=Augmentation)


def with_normalization(features: nn.Sequential) -> None:
    """The paper's local response normalization behind relu1 and relu2."""
    for place in (1, 4):
        normalization = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
        features[place] = nn.Sequential(features[place], normalization)


def without_overlap(features: nn.Sequential) -> None:
    """Pools of 2 x 2 in place of 3 x 3, at the same stride of 2; maps keep their sizes."""
    for place in (2, 5, 12):
        features[place] = nn.MaxPool2d(2, 2)


def in_two_groups(features: nn.Sequential) -> None:
    """conv2, conv4 and conv5 in two groups, as the paper cut them for two GPUs."""
    for place in (3, 8, 10):
        old = features[place]
        assert isinstance(old, nn.Conv2d)
        features[place] = nn.Conv2d(
            old.in_channels, old.out_channels, old.kernel_size[0], padding=old.padding[0], groups=2
        )


PLAIN = Variant("alexnet-mini as it is")
VARIANTS = (
    PLAIN,
    Variant("tanh in place of ReLU", activation="tanh"),
    Variant("without dropout", dropout=0.0),
    Variant("without augmentation", augmentation=NONE),
    Variant("with local response normalization", with_normalization),
    Variant("pooling without overlap", without_overlap),
    Variant("two groups", in_two_groups),
)


def build(variant: Variant, classes: int) -> AlexNetMini:
    """The variant's network, its weights drawn for its activation (He 2015; 5/3 for tanh)."""
    net = AlexNetMini(classes, dropout=variant.dropout)
    variant.change(net.features)
    for module in list(net.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity=variant.activation)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ReLU) and variant.activation == "tanh":
                setattr(module, name, nn.Tanh())
    return net


@dataclass(frozen=True)
class Bench:
    """What every run has in common."""

    learned: Examples
    tested: Examples
    seen: Examples
    """2,000 of the training pictures, on which the training error is measured"""
    epochs: int
    out: Path

    def run(
        self, variant: Variant, rate: float, seed: int, *, of_training: bool = False
    ) -> list[float]:
        """Accuracy after each epoch on the test pictures, or on 2,000 training pictures.

        Finished runs are read from their folders. A run whose loss is no number has the accuracy 0
        throughout.
        """
        kind = "learning" if of_training else "test"
        folder = self.out / f"{variant.name.replace(' ', '-')}-{kind}-{rate:g}-{seed}"
        if not (folder / "result.json").exists():
            torch.manual_seed(seed)
            net = build(variant, len(self.learned.classes))
            settings = TrainSettings(
                batch_size=64,
                lr=rate,
                label_smoothing=0.0,
                schedule="constant" if of_training else "cosine",
                sizes={0: SIDE},
                augmentation=variant.augmentation,
            )
            checkpoint = folder.parent / f"{folder.name}.partial"
            try:
                result = train(
                    net,
                    self.learned,
                    validation=self.seen if of_training else self.tested,
                    epochs=self.epochs,
                    settings=settings,
                    seed=seed,
                    checkpoint=checkpoint,
                    name=variant.name,
                )
            except UserError as error:
                print(error, file=sys.stderr)
                return [0.0] * self.epochs
            result.save(folder)
            remove_checkpoint(checkpoint)
            print(f"{folder.name}: {100 * (result.epochs[-1].top1 or 0):.1f}%", file=sys.stderr)
        with (folder / "history.csv").open(newline="") as file:
            return [float(row["top1"]) for row in csv.DictReader(file)]


@dataclass(frozen=True)
class Learning:
    """How fast an activation learns the training pictures without regularization."""

    name: str
    rate: float
    errors: np.ndarray
    """(seeds, epochs) on training pictures"""

    @property
    def epochs(self) -> list[float]:
        """Of each seed: when a quarter of the pictures was wrong, in epochs (between two of them
        by interpolation); infinite if never."""
        return [crossing(one) for one in self.errors]


def crossing(errors: Sequence[float]) -> float:
    """Epochs until the error, 1 at the start, falls to WRONG."""
    before = 1.0
    for epoch, error in enumerate(errors):
        if error <= WRONG:
            return epoch + (before - WRONG) / (before - error)
        before = error
    return math.inf


def learning(bench: Bench, activation: Literal["relu", "tanh"], seeds: int) -> Learning:
    """Try all rates with the first seed, the fastest with the others."""
    variant = Variant(f"plain {activation}", activation=activation, dropout=0.0, augmentation=NONE)

    def errors(rate: float, seed: int) -> list[float]:
        return [1 - a for a in bench.run(variant, rate, seed, of_training=True)]

    first = {rate: errors(rate, 0) for rate in RATES}
    rate = min(RATES, key=lambda r: (crossing(first[r]), first[r][-1]))
    runs = [first[rate], *(errors(rate, seed) for seed in range(1, seeds))]
    return Learning({"relu": "ReLU"}.get(activation, activation), rate, np.array(runs))


def interval(values: np.ndarray) -> tuple[float, float]:
    """95% t interval of the mean of a few values."""
    if len(values) < 2:
        return -math.inf, math.inf
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return values.mean() - half, values.mean() + half


def learning_table(found: Sequence[Learning]) -> str:
    rows = []
    for one in found:
        epochs = ", ".join("not reached" if math.isinf(e) else f"{e:.1f}" for e in one.epochs)
        rows.append((one.name, f"{one.rate:g}", epochs))
    return table(("activation", "learning rate", "epochs to 25% training error, by seed"), rows)


def variant_table(accuracy: dict[str, np.ndarray]) -> str:
    rows = []
    for name, values in accuracy.items():
        seeds = ", ".join(f"{100 * v:.1f}" for v in values)
        if name == PLAIN.name:
            rows.append((name, seeds, "", ""))
            continue
        change = 100 * (values - accuracy[PLAIN.name])
        low, high = interval(change)
        rows.append((name, seeds, f"{change.mean():+.1f}", f"{low:+.1f} to {high:+.1f}"))
    return table(("network", "top-1 (%), by seed", "difference (points)", "95% interval"), rows)


def draw(found: Sequence[Learning], accuracy: dict[str, np.ndarray]) -> Figure:
    """Left: training error over epochs. Right: differences with their intervals."""
    figure = plotting.new_figure(9.5, 3.2)
    left, right = figure.subplots(1, 2)
    for one, color in zip(found, (plotting.BLUE, plotting.ORANGE), strict=True):
        epochs = range(1, one.errors.shape[1] + 1)
        for i, errors in enumerate(one.errors):
            label = one.name if i == 0 else None
            left.plot(epochs, 100 * errors, color=color, linewidth=1.4, label=label)
    left.axhline(100 * WRONG, color=plotting.FAINT, linewidth=0.8, linestyle=":")
    left.set_ylim(0, 100)
    left.legend(fontsize=8, frameon=False)
    plotting.lines(left, xlabel="epoch", ylabel="training error (%)")
    names = [name for name in accuracy if name != PLAIN.name]
    for row, name in enumerate(names):
        change = 100 * (accuracy[name] - accuracy[PLAIN.name])
        right.plot(interval(change), [row, row], color=plotting.SKY, linewidth=2)
        right.plot(change, [row] * len(change), ".", color=plotting.FAINT, markersize=4)
        right.plot(change.mean(), row, "o", color=plotting.BLUE, markersize=5)
    right.axvline(0, color=plotting.INK, linewidth=0.8)
    plotting.lines(right, xlabel="top-1 beside the unchanged network (points)", ylabel="")
    right.set_yticks(range(len(names)), names, fontsize=8)
    right.invert_yaxis()
    return figure


def read(data: Path, classes: int, pictures: int) -> tuple[Examples, Examples]:
    """Training and test pictures of `classes` classes, evenly spread over those of the folder."""
    found = featviz.open_pictures(data)
    chosen = set(found.classes[:: max(1, len(found.classes) // classes)][:classes])
    learned, tested = [], []
    seen: Counter[str] = Counter()
    for row, name in enumerate(found.folders):
        if name in chosen:
            seen[name] += 1
            if seen[name] <= pictures:
                learned.append(row)
            elif seen[name] <= pictures + TESTED:
                tested.append(row)
    if min(seen.values(), default=0) < pictures + TESTED:
        raise UserError(f"{data} has classes of fewer than {pictures + TESTED} pictures")
    examples = read_examples(found.select(learned), SIDE)
    return examples, read_examples(found.select(tested), SIDE, classes=examples.classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--classes", type=int)
    parser.add_argument("--pictures", type=int, help="of each class, for training")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--figure", type=Path, metavar="FILE")
    options = parser.parse_args()
    # One thread: on a machine with other work, threads wait for each other within every operation.
    torch.set_num_threads(1)
    classes, pictures, epochs = (50, 400, 15) if options.full else (20, 250, 12)
    learned, tested = read(options.data, options.classes or classes, options.pictures or pictures)
    some = learned.pictures.spread(2000)
    seen = read_examples(some, SIDE, classes=learned.classes)
    bench = Bench(learned, tested, seen, options.epochs or epochs, options.out)
    found = [learning(bench, "relu", options.seeds), learning(bench, "tanh", options.seeds)]
    rates = dict(zip(("relu", "tanh"), (one.rate for one in found), strict=True))
    accuracy = {
        v.name: np.array(
            [bench.run(v, rates[v.activation], seed)[-1] for seed in range(options.seeds)]
        )
        for v in VARIANTS
    }
    print(learning_table(found), variant_table(accuracy), sep="\n\n")
    if options.figure:
        options.figure.write_bytes(figure_bytes(draw(found, accuracy), "svg"))


if __name__ == "__main__":
    main()
