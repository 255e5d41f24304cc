"""Training and testing a classifier on class folders: one loop, one file of state.

Comes in: a net that takes normalised pictures, and a folder of class folders. Goes out: the net,
trained, and a `TrainResult` with its history and with the first layer's kernels as they grew from
noise to edges. `evaluate` counts top-1 and top-5 with their confidence intervals.

Pictures stay 8-bit until they are a batch. Crop, flip and brightness of a picture are drawn for
that picture alone and done in two small matrix products (`augment`). Everything random is drawn
from (seed, epoch), so a run that was stopped goes on to the same weights.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, astuple, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from featviz import films, images, plotting, results
from featviz.datasets import Pictures, Skipped, batches, open_pictures
from featviz.errors import BadPicture, UserError, nearest
from featviz.models.alexnet import AlexNet, AlexNet2012, AlexNetMini, fold_batch_norm, folded_weight
from featviz.models.load import resolve_device
from featviz.models.model import Model
from featviz.models.precision import choose_precision, has_bfloat16
from featviz.models.weights import read_weights
from featviz.statistics import Share, share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Progress = Callable[[int, int, str], None]
Schedule = Callable[[float], float]

MEMORY_LIMIT = 4 << 30
"""Decoded pictures are kept in memory up to this many bytes, above it they are read each epoch."""

FORMS: dict[str, type[AlexNet] | type[AlexNet2012] | type[AlexNetMini]] = {
    "alexnet-mini": AlexNetMini,
    "alexnet": AlexNet,
    "alexnet-2012": AlexNet2012,
}
"""What can be trained, by the names that `featviz.load` knows."""

CHECK_EVERY = 20  # steps between two looks at the loss, each of which waits for the device


@dataclass(frozen=True)
class Augmentation:
    """How a training picture is changed; every picture draws for itself.

    area: share of the picture's area that the crop keeps, smallest and largest
    aspect: a crop's sides are in a ratio between e^-aspect and e^aspect
    brightness: values are multiplied by 1 - brightness to 1 + brightness
    flip: mirror every second picture
    """

    area: tuple[float, float] = (0.5, 1.0)
    aspect: float = 0.15
    brightness: float = 0.2
    flip: bool = True


@dataclass
class Examples:
    """Pictures of class folders with their labels, 8-bit, in memory or read when asked for."""

    pictures: Pictures
    labels: Tensor
    """(N,) int64: index of the picture's folder in `classes`"""
    classes: tuple[str, ...]
    size: int
    """pictures are squares of this side"""
    resize: int
    """the shorter side before the centre was cut out"""
    decoded: Tensor | None
    """(N, 3, S, S) uint8, or None where that would exceed the memory limit"""
    skipped: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pictures)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(uint8 pictures (B, 3, S, S), their rows); what cannot be read is left out and listed."""
        if self.decoded is not None:
            return self.decoded[rows], rows
        decoded, good, bad = _decode(self.pictures, rows.tolist(), self.resize, self.size)
        known = {s.row for s in self.skipped}
        self.skipped += [s for s in bad if s.row not in known]
        return decoded, torch.tensor(good)


def read_examples(
    data: str | Path | Pictures,
    size: int,
    *,
    resize: int | None = None,
    classes: Sequence[str] | None = None,
    memory_limit: int = MEMORY_LIMIT,
    progress: Progress | None = None,
) -> Examples:
    """Pictures of class folders, shorter side to `resize`, the centre square of `size` cut out.

    resize: default: `size`
    classes: the folders in label order; default: those that occur, sorted
    memory_limit: bytes; larger data is read from disk in every epoch

    Broken pictures are left out and listed in `skipped`.
    Raises UserError without class folders, or where a folder is none of `classes`.
    """
    pictures = data if isinstance(data, Pictures) else open_pictures(data)
    names = tuple(classes) if classes is not None else pictures.classes
    unknown = [c for c in dict.fromkeys(pictures.folders) if c not in set(names)]
    if unknown or not names:
        raise UserError(
            f"{pictures.root} has pictures outside the known classes ({unknown[0] or '.'!r}); "
            "training needs one folder a class, the same ones in --data and --validation"
            if unknown
            else f"{pictures.root} has no class folders; put the pictures of a class in one folder"
        )
    index = {name: i for i, name in enumerate(names)}
    labels = torch.tensor([index[c] for c in pictures.folders])
    shorter = resize or size
    if len(pictures) * 3 * size * size > memory_limit:
        return Examples(pictures, labels, names, size, shorter, None)
    parts, rows, skipped = [], [], []
    for start in range(0, len(pictures), 1024):
        block = range(start, min(start + 1024, len(pictures)))
        decoded, good, bad = _decode(pictures, block, shorter, size)
        parts.append(decoded)
        rows += good
        skipped += bad
        if progress:
            progress(block.stop, len(pictures), "reading pictures")
    if not rows:
        raise UserError(
            f"none of the {len(pictures)} pictures of {pictures.root} could be read; "
            f"the first: {skipped[0].reason}"
        )
    kept = pictures.select(rows) if skipped else pictures
    return Examples(kept, labels[rows], names, size, shorter, torch.cat(parts), skipped)


def _decode(
    pictures: Pictures, rows: Sequence[int], resize: int, size: int
) -> tuple[Tensor, list[int], list[Skipped]]:
    def one(row: int) -> Tensor | Skipped:
        try:
            square = images.square(pictures.open(row), resize, size)
        except BadPicture as error:
            return Skipped(row, pictures.paths[row], str(error))
        return torch.from_numpy(np.array(square)).permute(2, 0, 1)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(pool.map(one, rows))
    good = [row for row, f in zip(rows, found, strict=True) if isinstance(f, Tensor)]
    decoded = [f for f in found if isinstance(f, Tensor)]
    empty = torch.empty(0, 3, size, size, dtype=torch.uint8)
    bad = [f for f in found if isinstance(f, Skipped)]
    return (torch.stack(decoded) if decoded else empty), good, bad


def augment(pictures: Tensor, size: int, settings: Augmentation, draws: Tensor) -> Tensor:
    """Random crops, resized, mirrored and brightened: (B, 3, size, size) float32 in [0, 1].

    pictures: (B, 3, H, W) uint8
    draws: (B, 6) uniform in [0, 1): each picture's own luck (area, aspect, left, top, flip, gain)

    Crop, flip and gain are separable, so a picture X becomes gain * R X C^T with its own row and
    column matrices R (size, H) and C (size, W). Their weights are a triangle, as wide as the
    reduction: bilinear, antialiased where the crop is made smaller. Values above 1 are clipped.
    """
    height, width = pictures.shape[-2:]
    u = draws.to(pictures.device)
    low, high = settings.area
    side = (low + (high - low) * u[:, 0]).sqrt()
    stretch = torch.exp(settings.aspect * (u[:, 1] - 0.5))
    wide = (side * stretch).clamp(max=1.0) * width
    tall = (side / stretch).clamp(max=1.0) * height
    left, top = u[:, 2] * (width - wide), u[:, 3] * (height - tall)
    gain = 1 + settings.brightness * (2 * u[:, 5] - 1)
    columns = _resampling(left, wide, width, size)  # (B, size, W)
    if settings.flip:
        columns = torch.where((u[:, 4] < 0.5)[:, None, None], columns.flip(1), columns)
    rows = _resampling(top, tall, height, size) * (gain / 255)[:, None, None]  # (B, size, H)
    x = torch.matmul(pictures.float(), columns.transpose(1, 2)[:, None])  # (B, 3, H, size)
    return torch.matmul(rows[:, None], x).clamp_(max=1.0)


def _resampling(start: Tensor, length: Tensor, pixels: int, size: int) -> Tensor:
    """(B, size, pixels): weights that resample [start, start + length) to `size` values."""
    step = length / size
    places = torch.arange(size, device=start.device) + 0.5
    centres = start[:, None] + places * step[:, None]  # (B, size), in pixels
    pixel = torch.arange(pixels, device=start.device) + 0.5
    away = (centres[:, :, None] - pixel).abs() / step.clamp(min=1.0)[:, None, None]
    weights = (1 - away).clamp_(min=0)
    return weights / weights.sum(2, keepdim=True)


def cosine(t: float) -> float:
    """Half a cosine from 1 at t = 0 to 0 at t = 1."""
    return 0.5 * (1 + math.cos(math.pi * t))


def linear(t: float) -> float:
    """A straight line from 1 at t = 0 to 0 at t = 1."""
    return 1 - t


def hold_then_decay(hold: float) -> Schedule:
    """1 for the first share `hold` of a run, then a straight line to 0.

    While it holds, the number of epochs may still be changed: stop, and resume with another.
    """
    return lambda t: 1.0 if t < hold else (1 - t) / (1 - hold)


SCHEDULES: dict[str, Schedule] = {
    "cosine": cosine,
    "linear": linear,
    "hold": hold_then_decay(0.5),
    "constant": lambda t: 1.0,
}


def moments(steps: int) -> tuple[int, ...]:
    """Good `snapshot_steps` for a run: 0, 10, 20, 50, 100, 200, 500 ... below `steps`."""
    powers = [m * 10**p for p in range(1, 8) for m in (1, 2, 5)]
    return (0, *(step for step in powers if step < steps))


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to."""

    epoch: int
    """counted from 1"""
    step: int
    loss: float
    """mean training loss"""
    lr: float
    """learning rate at its end"""
    top1: float | None
    """validation accuracy, a fraction; None without validation pictures"""
    top5: float | None
    seconds: float
    pictures_per_second: float


@dataclass
class _State:
    """All that a run needs to go on."""

    epoch: int = 0
    history: list[Epoch] = field(default_factory=list)
    kernels: list[Tensor] = field(default_factory=list)
    kernel_steps: list[int] = field(default_factory=list)
    kernel_top1: list[float | None] = field(default_factory=list)


def train(
    net: nn.Module,
    data: str | Path | Examples,
    *,
    validation: str | Path | Examples | None = None,
    out: str | Path | None = None,
    epochs: int = 30,
    batch_size: int = 128,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    label_smoothing: float = 0.1,
    schedule: str | Schedule = "cosine",
    warmup: float = 0.05,
    sizes: Mapping[int, int] | None = None,
    augmentation: Augmentation = Augmentation(),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    teacher_logits: Tensor | None = None,
    teacher_weight: float = 0.7,
    temperature: float = 2.0,
    snapshot_steps: Sequence[int] = (),
    precision: str = "auto",
    device: str = "auto",
    workers: int = 1,
    seed: int = 0,
    resume: bool = True,
    name: str | None = None,
    class_names: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train the net in place by stochastic gradient descent and leave it in eval mode.

    net: takes normalised pictures (N, 3, S, S), gives logits (N, classes)
    data, validation: folders of class folders, or what `read_examples` made of them
    out: folder for `checkpoint.safetensors`, written whole after each epoch; None keeps none
    lr: the highest learning rate; it is reached after the share `warmup` of all steps and then
        follows `schedule`: a name of SCHEDULES, or a function from [0, 1] to a factor
    momentum: Nesterov's; weight_decay: of weights, not of biases and normalisations
    label_smoothing: share of the target given to all classes alike
    sizes: {first epoch, counted from 0: side in pixels}; small pictures first train faster.
        Default: the net's `input_size` throughout (64 if it has none)
    mean, std: normalisation of pictures in [0, 1]; default: the net's own
    teacher_logits: (N, classes), one row a picture of `data`: the loss becomes teacher_weight *
        T^2 * KL(teacher || net) at temperature T + (1 - teacher_weight) * cross-entropy
        (Hinton, Vinyals, Dean 2015, arXiv:1503.02531)
    snapshot_steps: keep the first layer's kernels before these steps (and at the end)
    precision: "bf16", "float32", or "auto": bf16 where the processor computes in it
    workers: threads that each work on a part of every batch (normalised by itself), with one core.
        On a processor that has other work too this is several times faster than torch's own
        threads, which wait for each other within every operation. 1 leaves it to torch
    resume: go on from the checkpoint in `out`. On a CPU the weights come out bit for bit as
        without the stop (dropout with `workers` above 1 excepted: threads draw in any order).
        `epochs` may differ from the first time, all other settings not
    name: what the model is to be called; default: "alexnet-mini" for an AlexNetMini, and so on
    class_names: a name for people for each folder ({"n01443537": "goldfish"})
    progress: called with (steps done, all steps, text)

    Example: featviz.train(AlexNetMini(10), "flowers/train", validation="flowers/val", epochs=5)

    Raises UserError for data without classes, a checkpoint of another run, or a loss that is no
    number. Ctrl-C loses at most the epoch that was under way.
    """
    started = time.perf_counter()
    place = resolve_device(device)
    final_size = int(getattr(net, "input_size", 64))
    side = dict(sizes or {0: final_size})
    examples = read_examples(data, final_size) if not isinstance(data, Examples) else data
    tested = validation
    if isinstance(tested, str | Path):
        tested = read_examples(tested, final_size, classes=examples.classes)
    factor = SCHEDULES.get(schedule) if isinstance(schedule, str) else schedule
    if factor is None:
        raise UserError(f"unknown schedule {schedule!r}{nearest(str(schedule), SCHEDULES)}")
    _check(net, examples, teacher_logits, batch_size, epochs)
    shift = torch.tensor(mean or getattr(net, "mean", (0.0, 0.0, 0.0)), device=place).view(3, 1, 1)
    scale = torch.tensor(std or getattr(net, "std", (1.0, 1.0, 1.0)), device=place).view(3, 1, 1)
    bf16 = _bf16(precision, place)
    settings = {
        "batch_size": batch_size,
        "lr": lr,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
        "warmup": warmup,
        "schedule": schedule if isinstance(schedule, str) else [factor(t / 8) for t in range(9)],
        "sizes": {str(k): v for k, v in side.items()},
        "augmentation": asdict(augmentation),
        "mean": shift.flatten().tolist(),
        "std": scale.flatten().tolist(),
        "taught": teacher_logits is not None,
        "teacher_weight": teacher_weight,
        "temperature": temperature,
        "precision": "bfloat16" if bf16 else "float32",
        "seed": seed,
        "pictures": examples.pictures.sha256,
    }

    net.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        _groups(net, weight_decay), lr=lr, momentum=momentum, nesterov=momentum > 0
    )
    state = _State()
    file = Path(out) / "checkpoint.safetensors" if out is not None else None
    if file is not None and resume and file.exists():
        state = _read_state(file, net, optimizer, settings)
    steps_per_epoch = max(1, len(examples) // batch_size)
    total = epochs * steps_per_epoch
    warm = max(1, round(warmup * total))

    def rate(step: int) -> float:
        if step < warm:
            return lr * (step + 1) / warm
        return lr * factor((step - warm) / max(1, total - warm))

    def measure() -> tuple[float | None, float | None]:
        if tested is None:
            return None, None
        top1, top5 = _ranks(net, tested, shift, scale, bf16)
        return top1, top5

    def snapshot(step: int) -> None:
        state.kernels.append(_first_kernels(net))
        state.kernel_steps.append(step)
        state.kernel_top1.append(measure()[0])

    def gradients(part: nn.Module, rows: Tensor, draws: Tensor, size: int, share: float) -> Tensor:
        """Add the gradients of some rows to a net's; returns their summed loss."""
        raw, kept = examples.take(rows)
        if not len(kept):
            return torch.zeros((), device=place)
        x = augment(raw.to(place), size, augmentation, draws[: len(kept)])
        x = ((x - shift) / scale).contiguous(memory_format=torch.channels_last)
        labels = examples.labels[kept].to(place)
        with torch.autocast(place.type, torch.bfloat16, enabled=bf16):
            logits = part(x)
        logits = logits.float()
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        if teacher_logits is not None:
            taught = _divergence(logits, teacher_logits[kept].to(place), temperature)
            loss = (1 - teacher_weight) * loss + teacher_weight * taught
        (loss * share).backward()
        return loss.detach() * len(kept)

    with _own_randomness(), _Parts(net, workers) as parts:
        for epoch in range(state.epoch, epochs):
            began = time.perf_counter()
            # What is random in an epoch follows from (seed, epoch): a resumed run draws alike.
            generator = torch.Generator().manual_seed(_epoch_seed(seed, epoch))
            torch.manual_seed(_epoch_seed(seed, epoch))
            order = torch.randperm(len(examples), generator=generator)
            size = side[max(first for first in side if first <= epoch)]
            running, seen, mean_loss, step = torch.zeros((), device=place), 0, 0.0, 0
            for i in range(steps_per_epoch):
                step = epoch * steps_per_epoch + i
                if step in snapshot_steps:
                    snapshot(step)
                for group in optimizer.param_groups:
                    group["lr"] = rate(step)
                rows = order[i * batch_size : (i + 1) * batch_size]
                draws = torch.rand(len(rows), 6, generator=generator)
                running += parts.run(gradients, rows, draws, size)
                optimizer.step()
                seen += len(rows)
                if (i + 1) % CHECK_EVERY == 0 or i + 1 == steps_per_epoch:
                    mean_loss = float(running) / seen
                    if not math.isfinite(mean_loss):
                        raise _no_number(epoch, step, rate(step), file, state)
                    if progress:
                        speed = seen / (time.perf_counter() - began)
                        progress(step + 1, total, _text(epoch, epochs, mean_loss, speed, state))
            trained = time.perf_counter() - began
            top1, top5 = measure()
            state.epoch = epoch + 1
            state.history.append(
                Epoch(
                    epoch + 1,
                    (epoch + 1) * steps_per_epoch,
                    mean_loss,
                    rate(step),
                    top1,
                    top5,
                    time.perf_counter() - began,
                    seen / trained,
                )
            )
            if epoch + 1 == epochs:
                snapshot(total)
            if file is not None:
                _write_state(file, net, optimizer, settings, state)
    net.eval()
    model = as_model(net, examples.classes, name=name, class_names=class_names)
    return TrainResult(
        origin=results.origin(
            model,
            parameters=settings | {"epochs": epochs, "workers": workers},
            started=started,
            data=examples.pictures,
            seed=seed,
        ),
        warnings=_doubts(examples, tested),
        model=model,
        epochs=tuple(state.history),
        kernels=torch.stack(state.kernels),
        kernel_steps=tuple(state.kernel_steps),
        kernel_top1=tuple(state.kernel_top1),
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainResult(results.Result):
    """A trained model, how it got there, and its first kernels on the way."""

    kind: ClassVar[str] = "train"

    model: Model
    """batch normalisation folded in; in eval mode, ready for every analysis"""
    epochs: tuple[Epoch, ...]
    kernels: Tensor
    """(S, N, 3, k, k): the first layer's kernels at S moments, the last at the end"""
    kernel_steps: tuple[int, ...]
    """training steps done at each moment"""
    kernel_top1: tuple[float | None, ...]
    """validation accuracy (a fraction) at each moment"""

    @property
    def title(self) -> str:
        return f"Training of {self.model.name}"

    def numbers(self) -> dict[str, results.Number]:
        last = self.epochs[-1]
        speed = sum(e.pictures_per_second for e in self.epochs) / len(self.epochs)
        of = "of the validation pictures, after the last epoch"
        return {
            "top-1": results.Number(last.top1, "fraction", of),
            "top-5": results.Number(last.top5, "fraction", of),
            "loss": results.Number(last.loss, "", "of the training pictures in the last epoch"),
            "epochs": results.Number(last.epoch, "", f"{last.step:,} steps"),
            "speed": results.Number(round(speed), "pictures/s", "mean over epochs"),
            "time": results.Number(round(sum(e.seconds for e in self.epochs)), "s", "all epochs"),
        }

    def write(self, folder: results.Folder) -> None:
        save_weights(self.model, folder.path / "weights.safetensors")
        save_growth(
            folder.path / "kernels.safetensors", self.kernels, self.kernel_steps, self.kernel_top1
        )
        folder.figure(
            "history.svg",
            self.plot(),
            caption="Training loss (left) and validation accuracy (right) after each epoch. The "
            "loss holds what the training adds: smoothing, a teacher, changed pictures.",
            alt="Two line plots over epochs: the loss falls, the accuracy rises",
        )
        scaling = "Each kernel is scaled by its own largest absolute weight; grey is 0."
        frames = [images.contact_sheet(images.around_gray(k), gap=1) for k in self.kernels]
        larger = max(1, 440 // frames[0].shape[-1])
        folder.figure(
            "kernels.png",
            images.enlarge(frames[-1], larger),
            pixelated=True,
            caption=f"All {self.kernels.shape[1]} kernels of the first layer at the end. {scaling}",
            alt="Contact sheet of the first layer's kernels",
        )
        if len(frames) > 1:
            films.write_gif(
                [images.enlarge(frame, larger) for frame in frames],
                folder.path / "kernels.gif",
                seconds_per_frame=0.25,
            )
            steps = ", ".join(f"{step:,}" for step in self.kernel_steps)
            folder.figure(
                "kernels.gif",
                None,
                pixelated=True,
                caption=f"The kernels of the first layer after {steps} steps. {scaling}",
                alt="Film of the first layer's kernels growing out of noise",
            )
        folder.table(
            "history.csv",
            [f.name for f in fields(Epoch)],
            [astuple(e) for e in self.epochs],
            caption="One line an epoch.",
        )

    def plot(self) -> Figure:
        figure = plotting.new_figure(7.5, 2.8)
        left, right = figure.subplots(1, 2)
        epochs = [e.epoch for e in self.epochs]
        style: dict[str, Any] = {"linewidth": 1.6, "marker": "o", "markersize": 3}
        left.plot(epochs, [e.loss for e in self.epochs], color=plotting.BLUE, **style)
        plotting.lines(left, xlabel="epoch", ylabel="training loss")
        for values, colour, label in (
            ([e.top5 for e in self.epochs], plotting.SKY, "top-5"),
            ([e.top1 for e in self.epochs], plotting.BLUE, "top-1"),
        ):
            shares = [math.nan if v is None else 100 * v for v in values]
            right.plot(epochs, shares, color=colour, label=label, **style)
        right.set_ylim(0, 100)
        right.legend(fontsize=8, frameon=False)
        plotting.lines(right, xlabel="epoch", ylabel="validation accuracy (%)")
        for ax in (left, right):
            ax.xaxis.get_major_locator().set_params(integer=True)
        return figure


def as_model(
    net: nn.Module,
    folders: Sequence[str],
    *,
    name: str | None = None,
    class_names: Mapping[str, str] | None = None,
) -> Model:
    """A copy of a trained net as `featviz.load` would give it: normalised inside, folded, frozen.

    folders: the class folders in label order; class_names: a name for people for each
    """
    names = class_names or {}
    names_of: dict[type, str] = {form: known for known, form in FORMS.items()}
    plain = fold_batch_norm(deepcopy(net).cpu())
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    plain.eval().requires_grad_(False)
    return Model(
        plain,
        name=name or names_of.get(type(net), type(net).__name__),
        input_size=int(getattr(net, "input_size", 64)),
        mean=tuple(getattr(net, "mean", (0.0, 0.0, 0.0))),
        std=tuple(getattr(net, "std", (1.0, 1.0, 1.0))),
        aliases=getattr(net, "aliases", None),
        classes=[(f, names[f]) if f in names else ("", f) for f in folders],
    )


def save_weights(
    model: Model, path: str | Path, *, dtype: torch.dtype = torch.float32, **facts: str
) -> None:
    """Write a model's weights as one safetensors file that `featviz.load` takes, whole or not.

    The file's metadata say what it is: architecture, classes (JSON pairs of synset and name), mean,
    std, input_size, and `facts` in words. With torch.float16 the file is half as large.
    """
    pairs = list(zip(model.synsets, model.classes, strict=True))
    metadata = {
        "architecture": model.name,
        "classes": json.dumps(pairs, ensure_ascii=False),
        "mean": json.dumps([round(v, 6) for v in model.mean.flatten().tolist()]),
        "std": json.dumps([round(v, 6) for v in model.std.flatten().tolist()]),
        "input_size": str(model.input_size),
        **facts,
    }
    tensors = {k: t.detach().to("cpu", dtype) for k, t in model.net.state_dict().items()}
    _save(tensors, Path(path), metadata)


def save_growth(
    path: str | Path,
    kernels: Tensor,
    steps: Sequence[int],
    top1: Sequence[float | None],
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write snapshots of first-layer kernels for `featviz.kernel_growth`.

    kernels: (S, N, 3, k, k); steps: training steps done at each; top1: accuracy, None if unknown
    """
    tensors = {
        "kernels": kernels.to(dtype),
        "steps": torch.tensor(steps),
        "top1": torch.tensor([math.nan if t is None else t for t in top1]),
    }
    _save(tensors, Path(path), {})


def _save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """A safetensors file, whole or as it was before."""
    beside = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: t.contiguous() for name, t in tensors.items()}, beside, metadata=metadata)
        beside.chmod(0o644)  # safetensors keeps its files to their owner
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error}); choose another place") from None


def _doubts(examples: Examples, tested: Examples | None) -> tuple[str, ...]:
    doubts = []
    if tested is None:
        doubts.append("no validation pictures were given, so nothing says how good the model is")
    for words, what in (("training", examples), ("validation", tested)):
        if what is not None and what.skipped:
            first = what.skipped[0]
            doubts.append(
                f"{len(what.skipped)} {words} pictures could not be read and were left out; "
                f"the first: {first.reason}"
            )
    return tuple(doubts)


def _epoch_seed(seed: int, epoch: int) -> int:
    """One seed for each epoch of each run."""
    return seed * 1_000_003 + epoch


class _Parts:
    """The net and its copies, one for each worker; they share weights and add up gradients."""

    def __init__(self, net: nn.Module, workers: int):
        self.nets = [net]
        for _ in range(workers - 1):
            copy = deepcopy(net)
            for mine, theirs in zip(copy.parameters(), net.parameters(), strict=True):
                mine.data = theirs.data
            self.nets.append(copy)
        self.threads = torch.get_num_threads()
        self.pool: ThreadPoolExecutor | None = None
        if workers > 1:
            self.pool = ThreadPoolExecutor(
                workers, initializer=torch.set_num_threads, initargs=(1,)
            )

    def __enter__(self) -> Self:
        if self.pool is not None:
            torch.set_num_threads(1)
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown()
            torch.set_num_threads(self.threads)

    def run(
        self, gradients: Callable[..., Tensor], rows: Tensor, draws: Tensor, size: int
    ) -> Tensor:
        """Leave the batch's gradients in the first net; returns its summed loss."""
        for net in self.nets:
            net.train().zero_grad(set_to_none=True)
        if self.pool is None:
            return gradients(self.nets[0], rows, draws, size, 1.0)
        shares = zip(
            self.nets, rows.chunk(len(self.nets)), draws.chunk(len(self.nets)), strict=False
        )
        jobs = [
            self.pool.submit(gradients, net, r, d, size, len(r) / len(rows)) for net, r, d in shares
        ]
        losses = [job.result() for job in jobs]
        for same in zip(*(net.parameters() for net in self.nets[: len(jobs)]), strict=True):
            for other in same[1:]:
                if other.grad is not None and same[0].grad is not None:
                    same[0].grad += other.grad
        return torch.stack(losses).sum()


@contextmanager
def _own_randomness() -> Iterator[None]:
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=cuda):
        yield


def _check(
    net: nn.Module, examples: Examples, teacher: Tensor | None, batch_size: int, epochs: int
) -> None:
    if epochs < 1 or batch_size < 2:
        raise UserError(f"epochs {epochs} and batch size {batch_size}: need at least 1 and 2")
    outputs = [m.out_features for m in net.modules() if isinstance(m, nn.Linear)]
    if outputs and outputs[-1] != len(examples.classes):
        raise UserError(
            f"the data has {len(examples.classes)} classes, the net gives {outputs[-1]} logits; "
            "build it with num_classes of the data"
        )
    if teacher is not None and tuple(teacher.shape) != (len(examples), len(examples.classes)):
        raise UserError(
            f"the teacher's logits are {tuple(teacher.shape)}, the data needs "
            f"{(len(examples), len(examples.classes))}: one row a picture, in the data's order"
        )


def _groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    weights = [p for p in net.parameters() if p.dim() > 1]
    others = [p for p in net.parameters() if p.dim() <= 1]
    return [
        {"params": weights, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _bf16(precision: str, place: torch.device) -> bool:
    return choose_precision(precision, lambda: has_bfloat16(place)) == "bfloat16"


def _divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || net) at temperature T, mean over pictures."""
    mine = (logits / temperature).log_softmax(1)
    theirs = (teacher.float() / temperature).log_softmax(1)
    divergence = nn.functional.kl_div(mine, theirs, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


@torch.inference_mode()
def _ranks(
    net: nn.Module, examples: Examples, shift: Tensor, scale: Tensor, bf16: bool
) -> tuple[float, float]:
    """Top-1 and top-5 of a net in training, quickly."""
    net.eval()
    hits = torch.zeros(2)
    seen = 0
    for rows in torch.arange(len(examples)).split(250):
        raw, rows = examples.take(rows)
        x = (raw.to(shift.device).float() / 255 - shift) / scale
        with torch.autocast(shift.device.type, torch.bfloat16, enabled=bf16):
            logits = net(x.contiguous(memory_format=torch.channels_last))
        hits += _hits(logits.float().cpu(), examples.labels[rows]).float().sum(0)
        seen += len(rows)
    return float(hits[0]) / seen, float(hits[1]) / seen


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    """(N, 2) bool: the label is the best class, is among the best five."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([best[:, 0], best.any(1)], dim=1)


def _first_kernels(net: nn.Module) -> Tensor:
    """(out, 3, k, k) of the first convolution, batch normalisation multiplied in."""
    for module in net.modules():
        inner = getattr(module, "layer", module)
        if isinstance(inner, nn.Conv2d):
            return folded_weight(module).cpu().clone()
    raise UserError("the net has no convolution whose kernels could be kept")


def _text(epoch: int, epochs: int, loss: float, speed: float, state: _State) -> str:
    last = state.history[-1].top1 if state.history else None
    known = "" if last is None else f", top-1 {100 * last:.1f}%"
    return f"epoch {epoch + 1}/{epochs}, loss {loss:.3f}{known}, {speed:.0f} pictures/s"


def _no_number(epoch: int, step: int, rate: float, file: Path | None, state: _State) -> UserError:
    kept = f"; {file} still has epoch {state.epoch}" if file and state.epoch else ""
    return UserError(
        f"the loss is no number in epoch {epoch + 1} before step {step + 1} (learning rate "
        f"{rate:.3g}): training diverged{kept}; try a lower lr or precision='float32'"
    )


def _write_state(
    file: Path,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    state: _State,
) -> None:
    tensors = {f"net.{name}": t.detach().cpu().contiguous() for name, t in net.state_dict().items()}
    for name, parameter in net.named_parameters():
        buffer = optimizer.state[parameter].get("momentum_buffer")
        if buffer is not None:
            tensors[f"momentum.{name}"] = buffer.detach().cpu().contiguous()
    if state.kernels:
        tensors["kernels"] = torch.stack(state.kernels)
    record = {
        "epoch": state.epoch,
        "settings": settings,
        "history": [asdict(e) for e in state.history],
        "kernel_steps": state.kernel_steps,
        "kernel_top1": state.kernel_top1,
    }
    _save(tensors, file, {"featviz": json.dumps(record)})


def _read_state(
    file: Path, net: nn.Module, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]
) -> _State:
    found = read_weights(file)
    record = json.loads(found.metadata.get("featviz", "{}"))
    theirs = record.get("settings")
    if theirs is None:
        raise UserError(f"{file} is no checkpoint of featviz; choose another folder")
    mine = json.loads(json.dumps(settings))
    other = [f"{k} {theirs.get(k)} there, {mine[k]} now" for k in mine if theirs.get(k) != mine[k]]
    if other:
        raise UserError(
            f"{file} belongs to a run with other settings ({'; '.join(other)}); "
            "give the same, or choose another folder, or resume=False"
        )
    tensors = found.tensors
    weights = {k.removeprefix("net."): t for k, t in tensors.items() if k.startswith("net.")}
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{file} holds another net ({reason}); choose another folder") from None
    for name, parameter in net.named_parameters():
        if f"momentum.{name}" in tensors:
            buffer = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
            optimizer.state[parameter]["momentum_buffer"] = buffer
    return _State(
        epoch=record["epoch"],
        history=[Epoch(**e) for e in record["history"]],
        kernels=list(tensors["kernels"]) if "kernels" in tensors else [],
        kernel_steps=record["kernel_steps"],
        kernel_top1=record["kernel_top1"],
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class EvalResult(results.Result):
    """How often a model is right on labelled pictures."""

    kind: ClassVar[str] = "eval"

    model_name: str
    classes: tuple[str, ...]
    """names of the model's classes"""
    labels: Tensor
    """(N,): the right class of each picture that counts"""
    predictions: Tensor
    """(N, 5): the likeliest classes, best first"""

    @cached_property
    def hits(self) -> Tensor:
        """(N, 2) bool: right at once, right within five."""
        found = self.predictions == self.labels[:, None]
        return torch.stack([found[:, 0], found.any(1)], dim=1)

    @property
    def top1(self) -> Share:
        """Pictures whose likeliest class is the right one."""
        return share(int(self.hits[:, 0].sum()), len(self.labels))

    @property
    def top5(self) -> Share:
        """Pictures whose right class is among the five likeliest."""
        return share(int(self.hits[:, 1].sum()), len(self.labels))

    @cached_property
    def per_class(self) -> dict[int, tuple[Share, Share]]:
        """Top-1 and top-5 of each class that occurs, by its index."""
        table = {}
        for label in self.labels.unique().tolist():
            mine = self.hits[self.labels == label]
            once, within = mine.sum(0).tolist()
            table[label] = (share(once, len(mine)), share(within, len(mine)))
        return table

    def mistaken_for(self, label: int) -> tuple[int, int] | None:
        """The class that pictures of `label` are most often taken for, and how often; or None."""
        mine = self.predictions[self.labels == label, 0]
        counts = torch.bincount(mine[mine != label], minlength=len(self.classes))
        return (int(counts.argmax()), int(counts.max())) if int(counts.sum()) else None

    @property
    def title(self) -> str:
        return f"Accuracy of {self.model_name}"

    def numbers(self) -> dict[str, results.Number]:
        return {
            "top-1": self.top1.number("the likeliest class is right"),
            "top-5": self.top5.number("the right class is among the five likeliest"),
            "pictures": results.Number(len(self.labels), "", "that counted"),
            "classes": results.Number(
                len(self.per_class), "", f"that occur, of {len(self.classes)}"
            ),
        }

    def write(self, folder: results.Folder) -> None:
        folder.figure(
            "classes.svg",
            self.plot(),
            caption="Left: top-1 of every class, best first. Right: the classes right most often "
            "and least often. Both with Wilson's 95% interval.",
            alt="Falling curve of accuracy by class, and the best and worst classes by name",
        )
        folder.table(
            "classes.csv",
            ("class", "pictures", "top1", "low", "high", "top5", "mistaken_for", "times"),
            [self._row(label) for label in self.per_class],
            caption="Each class: share right at once with its 95% interval, within five, and the "
            "class it is most often taken for.",
        )

    def _row(self, label: int) -> tuple[Any, ...]:
        once, within = self.per_class[label]
        other = self.mistaken_for(label)
        wrong = (self.classes[other[0]], other[1]) if other else ("", 0)
        shares = [
            round(v, 4) for v in (once.hits / once.n, once.low, once.high, within.hits / within.n)
        ]
        return self.classes[label], once.n, *shares, *wrong

    def plot(self) -> Figure:
        ranked = sorted(self.per_class.items(), key=lambda item: -(item[1][0].value or 0))
        many = len(ranked) > 16
        named = ranked[:8] + ranked[-8:] if many else ranked
        figure = plotting.new_figure(8.5, 1.0 + 0.2 * max(8, len(named)))
        left, right = figure.subplots(1, 2)
        places = range(1, len(ranked) + 1)
        bounds = [(once.low, once.high) for _, (once, _) in ranked]
        left.fill_between(
            places,
            [100 * low for low, _ in bounds],
            [100 * high for _, high in bounds],
            color=plotting.SKY,
            alpha=0.35,
            linewidth=0,
            step="mid",
            label="95% interval",
        )
        shares = [100 * once.hits / once.n for _, (once, _) in ranked]
        left.step(places, shares, where="mid", color=plotting.BLUE, linewidth=1.6, label="a class")
        left.axhline(
            100 * self.top1.hits / self.top1.n,
            color=plotting.ORANGE,
            linewidth=1.6,
            label="all pictures",
        )
        left.set_ylim(0, 100)
        left.legend(fontsize=8, frameon=False)
        plotting.lines(left, xlabel="classes, best first", ylabel="top-1 (%)")
        # Best and worst stand apart where classes between them are left out.
        heights = [row + (1 if many and row >= 8 else 0) for row in range(len(named))]
        for height, (_, (once, _)) in zip(heights, named, strict=True):
            right.plot(
                [100 * once.low, 100 * once.high], [height, height], color=plotting.SKY, linewidth=2
            )
            right.plot(100 * once.hits / once.n, height, "o", color=plotting.BLUE, markersize=4)
        words = [self.classes[label].partition(",")[0] for label, _ in named]
        plotting.lines(right, xlabel="top-1 (%)", ylabel="")
        right.set_yticks(heights, words, fontsize=8)
        right.set_xlim(-2, 102)
        right.invert_yaxis()
        return figure


@torch.inference_mode()
def evaluate(
    model: Model,
    data: str | Path | Pictures,
    *,
    batch_size: int = 64,
    precision: str = "float32",
    progress: Progress | None = None,
) -> EvalResult:
    """Top-1 and top-5 of a model on pictures in class folders, with 95% confidence intervals.

    data: folders named by synset or class name; each picture is resized and cropped as the model
        wants it
    precision: "float32", "bf16", or "auto" as in `train`

    Pictures that cannot be read, or whose folder is no class of the model, do not count and are
    named in the warnings. Raises UserError if nothing is left.
    """
    started = time.perf_counter()
    pictures = data if isinstance(data, Pictures) else open_pictures(data)
    known = pictures.labels(model)
    rows = [row for row, label in enumerate(known) if label is not None]
    strange = sorted({f for f, k in zip(pictures.folders, known, strict=True) if k is None})
    if not rows:
        raise UserError(
            f"no folder of {pictures.root} is named after a class of {model.name} (the first: "
            f"{strange[0] or '.'!r}); name them by synset or class name, or give --classes"
        )
    bf16 = _bf16(precision, model.device)
    chosen = pictures.select(rows)
    truth = torch.tensor([known[row] for row in rows])
    skipped: list[Skipped] = []
    labels, predictions, done = [], [], 0
    for batch in batches(
        chosen, resize=model.resize, crop=model.input_size, batch_size=batch_size, skipped=skipped
    ):
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            logits = model(batch.images.to(model.device)).float().cpu()
        predictions.append(logits.topk(min(5, logits.shape[1]), dim=1).indices)
        labels.append(truth[list(batch.rows)])
        done += len(batch.rows)
        if progress:
            progress(done, len(chosen), "classifying")
    warnings = []
    if len(rows) < len(pictures):
        warnings.append(
            f"{len(pictures) - len(rows)} pictures do not count: their folders are no classes of "
            f"the model ({', '.join(strange[:3])}{' ...' if len(strange) > 3 else ''})"
        )
    if skipped:
        warnings.append(
            f"{len(skipped)} pictures could not be read and do not count; the first: "
            f"{skipped[0].reason}"
        )
    return EvalResult(
        origin=results.origin(
            model,
            parameters={"batch_size": batch_size, "precision": precision},
            started=started,
            data=pictures,
        ),
        warnings=tuple(warnings),
        model_name=model.name,
        classes=model.classes,
        labels=torch.cat(labels),
        predictions=torch.cat(predictions),
    )
