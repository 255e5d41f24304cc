"""`train(net, pictures)`: stochastic gradient descent on class folders, and one piece of state.

Comes in: a net that takes normalized pictures, and a folder of class folders. Goes out: the net,
trained, and a `TrainResult`. All that is random is drawn from (seed, epoch) for each picture, so a
run that was stopped goes on to the same weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from featviz import results
from featviz.arguments import Bounds
from featviz.checkpoints import Checkpoint, Interrupted, open_checkpoint
from featviz.errors import UserError, check_fields, nearest, public
from featviz.models.alexnet import folded_weight
from featviz.models.precision import choose_precision, has_bfloat16
from featviz.training.batches import Batch, ahead
from featviz.training.data import DRAWS, Augmentation, Examples, augment, color_axes, read_examples
from featviz.training.evaluation import hits, predict
from featviz.training.forward import SharedBatch
from featviz.training.parallel import Workers
from featviz.training.processes import Processes, joined
from featviz.training.result import Epoch, TrainResult, as_model
from featviz.training.state import Elsewhere, State, read_state, write_state
from featviz.types import (
    AutoPrecision,
    Epochs,
    LearningRate,
    Progress,
    Seed,
    Share,
    Side,
    TrainBatch,
    WeightDecay,
    WorkerCount,
)
from featviz.wording import unread

Schedule = Callable[[float], float]
"""from the share of the run that is done, in [0, 1], to a factor of the learning rate"""

_CHECK_EVERY = 20  # steps between two reads of the loss, each of which waits for the device


def cosine(t: float) -> float:
    """Half a cosine from 1 at t = 0 to 0 at t = 1."""
    return 0.5 * (1 + math.cos(math.pi * t))


def linear(t: float) -> float:
    """A straight line from 1 at t = 0 to 0 at t = 1."""
    return 1 - t


def hold_then_decay(hold: float) -> Schedule:
    """1 for the first share `hold` of a run, then a straight line to 0.

    Until then the number of epochs may still be changed: stop, and resume with another.
    """
    return lambda t: 1.0 if t < hold else (1 - t) / (1 - hold)


SCHEDULES: dict[str, Schedule] = {
    "cosine": cosine,
    "linear": linear,
    "hold": hold_then_decay(0.5),
    "constant": lambda t: 1.0,
    "plateau": lambda t: 1.0,
}


def lowered(top1: Sequence[float | None], patience: int) -> int:
    """How often the accuracy has stopped improving: `patience` epochs without a new best."""
    best, since, times = -1.0, 0, 0
    for accuracy in top1:
        since += 1
        if (accuracy or 0.0) > best:
            best, since = accuracy or 0.0, 0
        elif since == patience:
            times, since = times + 1, 0
    return times


def snapshot_schedule(steps: int) -> tuple[int, ...]:
    """Good `snapshot_steps` for a run: 0, 10, 20, 50, 100, 200, 500 ... below `steps`."""
    powers = [m * 10**p for p in range(1, 8) for m in (1, 2, 5)]
    return (0, *(step for step in powers if step < steps))


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a net is trained.

    Attributes:
        batch_size: Pictures a step.
        lr: The highest learning rate, reached after the share `warmup` of all steps.
        momentum: Of the mean of past steps.
        nesterov: Momentum as Nesterov has it: the gradient counts at once.
        weight_decay: Of weights, not of biases and normalizations.
        label_smoothing: Share of each target that is given to all classes equally.
        schedule: Of the learning rate after warmup: a name of `SCHEDULES`, or a function from
            [0, 1] to a factor. "plateau": divided by 10 whenever the validation top-1 has not
            improved for `patience` epochs.
        patience: See `schedule`.
        warmup: Share of all steps during which the learning rate rises linearly from 0.
        sizes: {first epoch, counted from 0: side in pixels}; small pictures first train faster.
            Default: the net's `input_size` throughout (64 if it has none).
        augmentation: Random changes of the pictures.
        teacher_weight: With a teacher the loss is teacher_weight * T^2 * KL(teacher || net) at
            temperature T + (1 - teacher_weight) * cross-entropy (Hinton, Vinyals, Dean 2015,
            arXiv:1503.02531).
        temperature: T.
        precision: "float32", "bfloat16", or "auto": bfloat16 where the processor computes in it.
    """

    batch_size: TrainBatch = 128
    lr: LearningRate = 0.1
    momentum: Annotated[float, Bounds(0, 0.999)] = 0.9
    nesterov: bool = True
    weight_decay: WeightDecay = 5e-4
    label_smoothing: Share = 0.1
    schedule: str | Schedule = "cosine"
    patience: Epochs = 5
    warmup: Share = 0.05
    sizes: Mapping[Annotated[int, Bounds(0, 100_000)], Side] | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)
    teacher_weight: Share = 0.7
    temperature: Annotated[float, Bounds(0, 1000, above=True)] = 2.0
    precision: AutoPrecision = "auto"

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def factor(self) -> Schedule:
        """The schedule as a function. Raises UserError for an unknown name."""
        if not isinstance(self.schedule, str):
            return self.schedule
        if self.schedule not in SCHEDULES:
            hint = nearest(self.schedule, SCHEDULES) or f"; take {', '.join(SCHEDULES)}"
            raise UserError(f"unknown schedule {self.schedule!r}{hint}")
        return SCHEDULES[self.schedule]


@public
def train(
    net: nn.Module,
    data: str | Path | Examples,
    *,
    validation: str | Path | Examples | None = None,
    epochs: Epochs = 30,
    settings: TrainSettings = TrainSettings(),
    teacher_logits: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    snapshot_steps: Sequence[int] = (),
    device: str = "auto",
    workers: WorkerCount = 1,
    seed: Seed = 0,
    checkpoint: str | Path | Checkpoint | None = None,
    resume: bool = True,
    name: str | None = None,
    class_names: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train the net in place by stochastic gradient descent and leave it in eval mode.

    Started by torchrun, each process computes its part of every batch, with batch normalization
    over the whole batch, so that the weights do not depend on their number; only the first writes.

    Args:
        net: Takes normalized pictures (N, 3, S, S), gives logits (N, classes).
        data: A folder of class folders, or what `read_examples` made of one.
        validation: Pictures on which accuracy is measured after each epoch.
        epochs: Passes over `data`.
        settings: Learning rate, augmentation and the rest.
        teacher_logits: (N, classes), one row a picture of `data`, to learn from.
        mean: Of red, green and blue in [0, 1], subtracted from pictures. Default: the net's own.
        std: Of red, green and blue, by which pictures are divided. Default: the net's own.
        snapshot_steps: Keep the first layer's kernels before these steps (and at the end).
        device: "auto", "cpu", "cuda" or "cuda:N".
        workers: Threads that each work on a part of every batch (normalized by itself), with one
            core. On a processor that has other work too this is several times faster than torch's
            own threads, which wait for each other within every operation. 1 leaves it to torch.
        seed: Of order, changes of pictures and dropout.
        checkpoint: Folder for the state, which is replaced after each epoch; None keeps none.
            Ctrl-C loses at most the epoch that was under way. On a CPU the weights come out bit for
            bit as without the stop. `epochs` may differ from the first time, all other settings
            not.
        resume: Go on from the state in `checkpoint`; False begins anew and replaces it.
        name: Of the model. Default: "alexnet-mini" for an AlexNetMini, and so on.
        class_names: A readable name for each folder ({"n01443537": "goldfish"}).
        progress: Called with (steps done, all steps, text).

    Raises:
        UserError: Data without classes, a checkpoint of another run, or a loss that is no number.

    Example:
        >>> featviz.train(AlexNetMini(10), "flowers/train", validation="flowers/val", epochs=5)
    """
    started = time.perf_counter()
    size = int(getattr(net, "input_size", 64))
    examples = data if isinstance(data, Examples) else read_examples(data, size)
    tested = validation
    if isinstance(tested, str | Path):
        tested = read_examples(tested, size, classes=examples.classes)
    _check(net, examples, teacher_logits, settings)
    if settings.schedule == "plateau" and tested is None:
        raise UserError("schedule plateau follows the validation top-1; give validation pictures")
    mean = mean or getattr(net, "mean", (0.0, 0.0, 0.0))
    std = std or getattr(net, "std", (1.0, 1.0, 1.0))
    with joined(device) as processes:
        _check_processes(processes, workers, settings)
        shift, scale = (torch.tensor(v, device=processes.device).view(3, 1, 1) for v in (mean, std))
        run = _Run(
            net, examples, tested, settings, teacher_logits, shift, scale, epochs, seed, processes
        )
        with (
            _checkpoint(checkpoint, run) as kept,
            torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        ):
            if resume:
                run.state = read_state(kept, net, run.optimizer, processes) or run.state
            run.train_epochs(workers, snapshot_steps, kept, progress)
    net.eval()
    model = as_model(net, examples.classes, name=name, class_names=class_names)
    return TrainResult(
        origin=results.origin(
            model,
            parameters=run.parameters()
            | {"epochs": epochs, "workers": workers, "processes": run.processes.count},
            started=started,
            data=examples.pictures,
            seed=seed,
        ),
        warnings=(*_warnings(examples, tested), *examples.pictures.left_out.notes),
        model=model,
        epochs=tuple(run.state.history),
        validation_pictures=0 if tested is None else len(tested),
        kernels=torch.stack(run.state.kernels),
        kernel_steps=tuple(run.state.kernel_steps),
        kernel_top1=tuple(run.state.kernel_top1),
    )


@contextmanager
def _checkpoint(folder: str | Path | Checkpoint | None, run: _Run) -> Iterator[Checkpoint]:
    """The first process's checkpoint; that another process has ended is said in one line."""
    first = run.processes.rank == 0
    elsewhere = Elsewhere(None, total=run.epochs, unit="epochs")
    opened = open_checkpoint(
        folder if first else elsewhere, run.job(), total=run.epochs, unit="epochs"
    )
    with opened as kept:
        go_on = "give the same command again"

        def text() -> str:
            known = folder is not None and run.state.epoch
            return f"{kept.summary}; {go_on} to go on" if known else go_on

        try:
            yield kept
        except RuntimeError as error:
            if not run.processes.is_loss(error):
                raise
            raise UserError(f"another process of the training has ended; {text()}") from error
        except KeyboardInterrupt:
            if first or not kept.done:
                raise
            raise Interrupted(text()) from None


class _Drawn(NamedTuple):
    """What is drawn for an epoch."""

    order: Tensor
    """(N,): rows of the pictures"""
    draws: Tensor
    """(N, DRAWS): how each is changed"""
    keys: Tensor
    """(N,): of each one's dropout"""


@dataclass
class _Run:
    """The net in training, with all that a step needs."""

    net: nn.Module
    examples: Examples
    tested: Examples | None
    settings: TrainSettings
    teacher: Tensor | None
    mean: Tensor
    std: Tensor
    """(3, 1, 1)"""
    epochs: int
    seed: int
    processes: Processes
    state: State = field(default_factory=State)

    def __post_init__(self) -> None:
        settings, self.device = self.settings, self.mean.device
        self.factor = settings.factor
        self.precision = choose_precision(settings.precision, lambda: has_bfloat16(self.device))
        self.sizes = dict(settings.sizes or {0: int(getattr(self.net, "input_size", 64))})
        self.batch_size = min(settings.batch_size, len(self.examples))
        self.steps = len(self.examples) // self.batch_size
        """of an epoch"""
        self.net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        groups = (
            [p for p in self.net.parameters() if (p.dim() > 1) == big] for big in (True, False)
        )
        self.dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        self.axes = (
            color_axes(self.examples).to(self.device) if settings.augmentation.color else None
        )
        self.optimizer = torch.optim.SGD(
            [
                {"params": params, "weight_decay": decay}
                for params, decay in zip(groups, (settings.weight_decay, 0.0), strict=True)
            ],
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov and settings.momentum > 0,
            fused=True,
        )

    def parameters(self) -> dict[str, Any]:
        """The settings, resolved."""
        values = {
            "schedule": self.settings.schedule
            if isinstance(self.settings.schedule, str)
            else [self.factor(t / 8) for t in range(9)],
            "sizes": {str(k): v for k, v in self.sizes.items()},
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
            "teacher": self.teacher is not None,
            "precision": self.precision,
            "seed": self.seed,
        }
        return vars(self.settings) | {"augmentation": asdict(self.settings.augmentation)} | values

    def job(self) -> dict[str, Any]:
        """Everything that the state depends on, but for the number of epochs."""
        shapes = {name: list(t.shape) for name, t in self.net.state_dict().items()}
        return self.parameters() | {"pictures": self.examples.pictures.sha256, "net": shapes}

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        if self.settings.schedule == "plateau":
            known = [epoch.top1 for epoch in self.state.history]
            return self.settings.lr * 0.1 ** lowered(known, self.settings.patience)
        total = self.epochs * self.steps
        warm = max(1, round(self.settings.warmup * total))
        if step < warm:
            return self.settings.lr * (step + 1) / warm
        return self.settings.lr * self.factor((step - warm) / max(1, total - warm))

    def train_epochs(
        self,
        workers: int,
        snapshot_steps: Sequence[int],
        kept: Checkpoint,
        progress: Progress | None,
    ) -> None:
        """All epochs that are left; the state is kept after each."""
        with Workers(self.processes.shared(self.net), workers) as parts:
            for epoch in range(self.state.epoch, self.epochs):
                self.train_epoch(epoch, parts, snapshot_steps, kept, progress)
                if epoch + 1 == self.epochs:
                    self.snapshot(self.epochs * self.steps)
                write_state(kept, self.net, self.optimizer, self.state)

    def train_epoch(
        self,
        epoch: int,
        parts: Workers,
        snapshot_steps: Sequence[int],
        kept: Checkpoint,
        progress: Progress | None,
    ) -> None:
        """One pass over the pictures, and its line of the history."""
        began = time.perf_counter()
        drawn = self.drawn(epoch)
        size = self.sizes[max(first for first in self.sizes if first <= epoch)]
        gradients = partial(self.gradients, size=size, count=self.batch_size)
        running = torch.zeros(2, device=self.device)  # summed loss, pictures
        loss, rate = 0.0, 0.0
        with closing(ahead(partial(self.batch, drawn), range(self.steps))) as batches:
            for i, batch in enumerate(batches):
                step = epoch * self.steps + i
                if step in snapshot_steps:
                    self.snapshot(step)
                rate = self.rate(step)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                running[0] += parts.run(gradients, batch)
                running[1] += len(batch.labels)
                self.optimizer.step()
                if (i + 1) % _CHECK_EVERY == 0 or i + 1 == self.steps:
                    total, seen = self.processes.sum(running).tolist()
                    loss = total / max(1, seen)
                    if not math.isfinite(loss):
                        raise self._diverged(epoch, step, rate, kept)
                    if progress:
                        speed = seen / (time.perf_counter() - began)
                        progress(step + 1, self.epochs * self.steps, self._text(epoch, loss, speed))
        trained = time.perf_counter() - began
        top1, top5 = self.accuracy()
        seconds = time.perf_counter() - began
        done = (epoch + 1) * self.steps
        self.state.history.append(
            Epoch(epoch + 1, done, loss, rate, top1, top5, seconds, seen / trained)
        )

    def drawn(self, epoch: int) -> _Drawn:
        """What is random in an epoch follows from (seed, epoch): a resumed run draws the same."""
        number, pictures = (self.seed * 1_000_003 + epoch) % 2**64, len(self.examples)
        generator = torch.Generator().manual_seed(number)
        torch.manual_seed(number)  # of what a net of the user's draws by itself
        return _Drawn(
            torch.randperm(pictures, generator=generator),
            torch.rand(pictures, DRAWS, generator=generator),
            torch.randint(-(2**31), 2**31, (pictures,), dtype=torch.int32, generator=generator),
        )

    def batch(self, drawn: _Drawn, step: int) -> Batch:
        """This process's part of the batch of a step of the epoch, in memory."""
        rows = drawn.order[step * self.batch_size :][: self.batch_size]
        pictures, kept = self.examples.take(self.processes.part(rows))
        teacher = None if self.teacher is None else self.teacher[kept]
        labels = self.examples.labels[kept]
        batch = Batch(pictures, labels, drawn.draws[kept], drawn.keys[kept], teacher)
        return batch.pinned() if self.device.type == "cuda" else batch

    def gradients(self, net: nn.Module, batch: Batch, *, size: int, count: int) -> Tensor:
        """Add to a net's gradients those of a part of a batch of `count`; its summed loss."""
        settings, several = self.settings, self.processes.count > 1
        if not len(batch.labels) and not several:  # others would wait for this one's gradients
            return torch.zeros((), device=self.device)
        batch = batch.to(self.device)
        pictures = augment(
            batch.pictures, size, settings.augmentation, batch.draws, self.axes, self.dtype
        )
        with SharedBatch(batch.keys, self.processes.sum if several else None):
            logits = self.forward(net, pictures)
        loss = nn.functional.cross_entropy(
            logits, batch.labels, label_smoothing=settings.label_smoothing, reduction="sum"
        )
        if batch.teacher is not None:
            taught = _divergence(logits, batch.teacher, settings.temperature)
            loss = (1 - settings.teacher_weight) * loss + settings.teacher_weight * taught
        (loss * (self.processes.count / count)).backward()  # processes average their gradients
        return loss.detach()

    def forward(self, net: nn.Module, pictures: Tensor) -> Tensor:
        """Logits (B, classes) of pictures (B, 3, S, S) in [0, 1]."""
        x = (pictures - self.mean).div_(self.std).contiguous(memory_format=torch.channels_last)
        low = self.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            logits: Tensor = net(x)
        return logits.float()

    def accuracy(self) -> tuple[float | None, float | None]:
        """Top-1 and top-5 on the validation pictures, as fractions."""
        if self.tested is None:
            return None, None
        self.net.eval()
        right = torch.zeros(3, dtype=torch.double, device=self.device)  # top-1, top-5, pictures
        for labeled in self._labeled(self.tested):
            found = predict(lambda pictures: self.forward(self.net, pictures), [labeled])
            hit = hits(found.labels, found.classes).double().sum(0).tolist()
            right += torch.tensor([*hit, len(found.labels)], dtype=torch.double).to(right.device)
        top1, top5, count = self.processes.sum(right).tolist()
        return (top1 / count, top5 / count) if count else (None, None)

    def _labeled(self, examples: Examples) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's part of some pictures in batches, with their labels."""
        rows = self.processes.part(torch.arange(len(examples)))
        with closing(ahead(examples.take, rows.split(250))) as batches:
            for raw, kept in batches:
                if len(kept):
                    yield raw.to(self.device).float() / 255, examples.labels[kept]

    def snapshot(self, step: int) -> None:
        """Keep the first layer's kernels before a step, and the accuracy then."""
        self.state.kernels.append(_first_kernels(self.net))
        self.state.kernel_steps.append(step)
        self.state.kernel_top1.append(self.accuracy()[0])

    def _text(self, epoch: int, loss: float, speed: float) -> str:
        last = self.state.history[-1].top1 if self.state.history else None
        known = "" if last is None else f", top-1 {100 * last:.1f}%"
        return f"epoch {epoch + 1}/{self.epochs}, loss {loss:.3f}{known}, {speed:.0f} pictures/s"

    def _diverged(self, epoch: int, step: int, rate: float, kept: Checkpoint) -> UserError:
        written = kept.folder is not None or isinstance(kept, Elsewhere)
        saved = f"; the state still has epoch {epoch}" if epoch and written else ""
        return UserError(
            f"the loss is no number in epoch {epoch + 1} before step {step + 1} (learning rate "
            f"{rate:.3g}): training diverged{saved}; try a lower lr or precision float32"
        )


def _check(
    net: nn.Module,
    examples: Examples,
    teacher: Tensor | None,
    settings: TrainSettings,
) -> None:
    outputs = [m.out_features for m in net.modules() if isinstance(m, nn.Linear)]
    if outputs and outputs[-1] != len(examples.classes):
        raise UserError(
            f"the data has {len(examples.classes)} classes, the net gives {outputs[-1]} logits; "
            "build it with num_classes of the data"
        )
    largest = max((settings.sizes or {0: int(getattr(net, "input_size", 64))}).values())
    if settings.augmentation.whole_pixels and largest > examples.size:
        raise UserError(
            f"crops of {largest} whole pixels do not fit pictures of {examples.size}; read them "
            "larger"
        )
    if teacher is not None and tuple(teacher.shape) != (len(examples), len(examples.classes)):
        raise UserError(
            f"the teacher's logits are {tuple(teacher.shape)}, the data needs "
            f"{(len(examples), len(examples.classes))}: one row a picture, in the data's order"
        )


def _check_processes(processes: Processes, workers: int, settings: TrainSettings) -> None:
    if processes.count > 1 and workers > 1:
        raise UserError(
            f"workers {workers}: threads within each of {processes.count} processes; leave it at 1"
        )
    if settings.batch_size < processes.count:
        raise UserError(
            f"batch_size is {settings.batch_size} for {processes.count} processes; give at least "
            "one picture each"
        )


def _divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || net) at temperature T, sum over pictures."""
    mine = (logits / temperature).log_softmax(1)
    theirs = (teacher.float() / temperature).log_softmax(1)
    divergence = nn.functional.kl_div(mine, theirs, reduction="sum", log_target=True)
    return temperature**2 * divergence


def _first_kernels(net: nn.Module) -> Tensor:
    """(out, 3, k, k) of the first convolution, batch normalization multiplied in."""
    for module in net.modules():
        inner = getattr(module, "layer", module)
        if isinstance(inner, nn.Conv2d):
            return folded_weight(module).cpu().clone()
    raise UserError("the net has no convolution whose kernels could be kept")


def _warnings(examples: Examples, tested: Examples | None) -> tuple[str, ...]:
    warnings = []
    if tested is None:
        warnings.append("no validation pictures were given, so the accuracy is not known")
    for words, what in (("training", examples), ("validation", tested)):
        if what is not None and what.skipped:
            warnings.append(
                f"{unread(len(what.skipped), f'{words} picture')}; the first: "
                f"{what.skipped[0].reason}"
            )
    return tuple(warnings)
