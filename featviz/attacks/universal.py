"""`universal`: one perturbation for all pictures, learned from some and judged on others.

The perturbation v climbs a loss over batches of training pictures and is brought back into its
ball after every step:

    v <- project(v + step * direction of the averaged gradient of mean min(m(clip(x + v)), clip))

with m the logit of all other classes together less that of the clean answer. A picture that is
fooled by more than `clip` no longer pulls, so that v works for the rest (Shafahi's clipped loss).
x + v is clipped to [0, 1] where the model sees it; v itself is not, so a saturated picture takes
nothing from it.

Two rates that are often confused are both given: the fooling rate counts answers that differ from
the model's own clean answer, accuracy counts right answers. Both on pictures that v was not made
from, beside a v with its pixels shuffled and beside random noise of the same size: what those
reach is the size of the change, and what v reaches beyond them is its pattern.

    Moosavi-Dezfooli et al., "Universal adversarial perturbations", 2017 (arXiv:1610.08401)
    Shafahi et al., "Universal adversarial training", 2018 (arXiv:1811.11304)
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from featviz import images, plotting, results
from featviz.attacks import projections
from featviz.attacks.checks import check_batch_size, check_eps, check_norm
from featviz.attacks.figures import short, shown_perturbation
from featviz.attacks.loop import Classifier, classify, differentiable
from featviz.attacks.losses import cross_entropy
from featviz.attacks.options import choose_precision
from featviz.attacks.projections import NORM_NAMES, eps_text
from featviz.datasets import Labelled, Pictures, read_labelled
from featviz.errors import UserError
from featviz.models.frozen import frozen
from featviz.models.precision import in_bfloat16
from featviz.statistics import Share, share
from featviz.types import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from featviz.models.model import Model

SHOWN = 6
"""held-out pictures in the figure"""
_LARGEST_STEP, _SMALLEST_STEP = 0.25, 0.01  # of eps; a half cosine between them
_WORDS = {
    "universal": "universal",
    "shuffled": "its pixels shuffled",
    "noise": "random noise",
    "8 bits": "universal, in 8 bits",
}


@dataclass(frozen=True, kw_only=True, repr=False)
class Universal(results.Result):
    """A perturbation that fools a model on most pictures, and how often."""

    kind: ClassVar[str] = "universal"

    model_name: str
    data_name: str
    classes: tuple[str, ...]
    perturbation: Tensor
    """(3, S, S), within eps of 0 in `norm`, exactly"""
    eps: float
    norm: str
    target: int | None
    names: tuple[str, ...]
    """of the held-out pictures"""
    labels: Tensor | None
    """(M,) of the held-out pictures, where there are any"""
    clean: Tensor
    """(M,) the model's answers to them"""
    answers: Mapping[str, Tensor]
    """universal, shuffled, noise, 8 bits -> (M,) the model's answers to the pictures with it"""
    trained_on: int
    training_share: Share
    """the same rate on the training pictures"""
    trace: Tensor
    """(steps,) share of each batch that was fooled (with a target: that reached it)"""
    examples: Tensor
    """(k, 3, S, S) some held-out pictures"""
    shown: tuple[int, ...]
    """which of `names` they are"""
    forwards: int
    backwards: int
    seconds: float

    @property
    def title(self) -> str:
        aim = "" if self.target is None else f" towards {self.classes[self.target]}"
        size = f"{NORM_NAMES[self.norm]} {eps_text(self.eps, self.norm)}"
        return f"Universal perturbation of {self.model_name}{aim}, {size}"

    def rate(self, what: str = "universal") -> Share:
        """Share of the held-out pictures whose answer changes (with a target: becomes it)."""
        return _rate(self.clean, self.answers[what], self.target)

    def accuracy(self, what: str | None = None) -> Share | None:
        """Accuracy on the held-out pictures, clean or with a perturbation; None without labels."""
        if self.labels is None:
            return None
        answers = self.clean if what is None else self.answers[what]
        return share(int((answers == self.labels).sum()), len(self.labels))

    def numbers(self) -> dict[str, results.Number]:
        word = "fooling rate" if self.target is None else "target reached"
        found = {}
        for what in self.answers:
            s = self.rate(what)
            name = word if what == "universal" else f"{word}, {_WORDS[what].split(', ')[-1]}"
            meaning = f"held-out pictures, n = {s.n}; 95% interval {s.interval}"
            found[name] = results.Number(s.value, "fraction", meaning)
        s = self.training_share
        found[f"{word} in training"] = results.Number(
            s.value, "fraction", f"on the {self.trained_on} pictures that it was made from"
        )
        before, after = self.accuracy(), self.accuracy("universal")
        if before is not None and after is not None:
            found["clean accuracy"] = results.Number(
                before.value, "fraction", f"held-out pictures; interval {before.interval}"
            )
            found["accuracy with it"] = results.Number(
                after.value, "fraction", f"interval {after.interval}"
            )
        label, count = self.commonest[0]
        found["commonest answer"] = results.Number(
            self.classes[label],
            "",
            f"{100 * count / len(self.clean):.0f}% of the answers with it, "
            f"{100 * float((self.clean == label).double().mean()):.1f}% without",
        )
        v = self.perturbation.double()
        found["L2 of it"] = results.Number(float(v.norm()), "", "in [0, 1] units")
        found["largest change"] = results.Number(
            255 * float(v.abs().max()), "/255", "of a single value"
        )
        found["passes"] = results.Number(
            self.forwards, "", f"forward, and {self.backwards} backward, of single pictures"
        )
        found["seconds"] = results.Number(round(self.seconds, 1), "s", "for all of it")
        return found

    @property
    def commonest(self) -> list[tuple[int, int]]:
        """(class, how often) of the answers with the perturbation, the commonest first."""
        counts = Counter(self.answers["universal"].tolist())
        return sorted(counts.items(), key=lambda e: (-e[1], e[0]))

    def write(self, folder: results.Folder) -> None:
        _, factor = shown_perturbation(self.perturbation)
        folder.figure(
            "universal.png",
            self.plot(),
            caption="One change for all pictures: the perturbation "
            f"(times {factor:,.0f}, round mid-grey), and held-out pictures without it and "
            "with it, each with the model's answer. Orange: the answer has changed.",
            alt="The perturbation as a picture, and photographs before and after it is added",
        )
        folder.figure(
            "rates.svg",
            self.plot_rates(),
            caption="Left: how many held-out pictures "
            + ("change their answer" if self.target is None else "give the target")
            + ", with 95% Wilson intervals; a shuffled perturbation has the same values at "
            "other places. Middle: the commonest answers with it (dots: how common they are "
            "without). Right: the share of each training batch, as it was made.",
            alt="Bars of fooling rates, bars of the commonest answers, a rising curve of training",
        )
        shown, factor = shown_perturbation(self.perturbation)
        folder.figure(
            "perturbation.png",
            shown,
            caption=f"The perturbation alone, times {factor:,.0f} round mid-grey.",
            alt="The perturbation as a picture",
            pixelated=self.perturbation.shape[-1] <= 128,
        )
        folder.arrays(
            "perturbation.npz",
            {"perturbation": self.perturbation.numpy()},
            caption="The perturbation, (3, S, S) float32: add it to pictures in [0, 1] and clip.",
        )
        columns = ["picture", "label", "clean", *self.answers]
        folder.table(
            "pictures.csv",
            columns,
            (self._row(i) for i in range(len(self.names))),
            caption="Every held-out picture: its label, the model's clean answer, and its answers "
            "with the perturbation, the shuffled one, noise, and the saved 8-bit picture.",
        )

    def _row(self, i: int) -> list[object]:
        label = "" if self.labels is None else self.classes[int(self.labels[i])]
        answers = [self.classes[int(a[i])] for a in (self.clean, *self.answers.values())]
        return [self.names[i], label, *answers]

    def plot(self) -> Figure:
        """The perturbation, and pictures without it and with it."""
        return before_and_after(
            self.perturbation,
            self.examples,
            (self.examples + self.perturbation).clamp(0, 1),
            self.clean[list(self.shown)],
            self.answers["universal"][list(self.shown)],
            self.classes,
            f"{NORM_NAMES[self.norm]} {eps_text(self.eps, self.norm)}",
        )

    def plot_rates(self) -> Figure:
        """Fooling rates beside shuffled and random ones, the commonest answers, the training."""
        figure = plotting.new_figure(9.6, 2.9)
        left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.15, 0.9))
        word = "answer changed (%)" if self.target is None else "target reached (%)"
        rates = {_WORDS[what]: self.rate(what) for what in ("noise", "shuffled", "universal")}
        draw_rates(left, rates, word)
        top = self.commonest[:6]
        for y, (label, count) in enumerate(top):
            middle.barh(y, 100 * count / len(self.clean), color=plotting.SKY, height=0.62)
            before = 100 * float((self.clean == label).double().mean())
            middle.plot(before, y, "o", color=plotting.INK, markersize=4)
        middle.set_yticks(range(len(top)), [short(self.classes[label]) for label, _ in top])
        middle.invert_yaxis()
        plotting.lines(middle, xlabel="answers with it (%)", ylabel="")
        right.plot(
            range(1, len(self.trace) + 1), 100 * self.trace, color=plotting.BLUE, linewidth=1
        )
        plotting.lines(right, xlabel="step of training", ylabel=word)
        right.set_ylim(0, 102)
        return figure


def draw_rates(ax: Axes, rates: Mapping[str, Share], xlabel: str) -> None:
    """Shares as bars with their intervals, one below the other."""
    colours = (plotting.GREEN, plotting.SKY, plotting.ORANGE, plotting.RED)
    for y, (s, colour) in enumerate(zip(rates.values(), colours, strict=False)):
        value = 100 * (s.value or 0)
        ax.barh(y, value, color=colour, height=0.62)
        ax.plot([100 * s.low, 100 * s.high], [y, y], color=plotting.INK, linewidth=1.3)
        ax.text(100 * s.high + 2, y, f"{value:.0f}", va="center", fontsize=8, color=plotting.INK)
    ax.set_yticks(range(len(rates)), list(rates))
    ax.invert_yaxis()
    plotting.lines(ax, xlabel=xlabel, ylabel="")
    ax.set_xlim(0, 108)


def before_and_after(
    change: Tensor,
    before: Tensor,
    after: Tensor,
    clean: Tensor,
    answers: Tensor,
    classes: Sequence[str],
    size: str,
) -> Figure:
    """The change, and pictures without it (above) and with it (below), with their answers."""
    count, cell = len(before), 1.28
    page = plotting.Page(2 * cell + 0.35 + cell * count + 0.05, 2 * cell + 0.62)
    shown, factor = shown_perturbation(change)
    pixelated = change.shape[-1] <= 128
    ax = page.axes(0.05, 0.3, 2 * cell + 0.1, 2 * cell + 0.1)
    plotting.show_image(ax, shown, pixelated=pixelated)
    page.text(cell + 0.1, 0.15, f"{size}, shown × {factor:,.0f}", fontsize=8, ha="center")
    for c in range(count):
        left = 2 * cell + 0.3 + cell * c
        for r, (pictures, row) in enumerate(((before, clean), (after, answers))):
            top = 0.3 + r * (cell + 0.28)
            ax = page.axes(left, top, cell - 0.06, cell - 0.06)
            plotting.show_image(ax, pictures[c], pixelated=pixelated)
            changed = r == 1 and int(row[c]) != int(clean[c])
            plotting.frame(ax, plotting.ORANGE if changed else "#bbbbbb", 1.6 if changed else 0.6)
            colour = plotting.RED if changed else plotting.INK
            words, middle = short(classes[int(row[c])], 17), left + (cell - 0.06) / 2
            page.text(middle, top - 0.12, words, fontsize=7.5, ha="center", color=colour)
    return page.figure


def universal(
    model: Model,
    pictures: Pictures | Tensor,
    labels: Sequence[int | str] | Tensor | None = None,
    *,
    eps: float = 10 / 255,
    norm: str = "linf",
    target: int | str | None = None,
    steps: int = 200,
    batch: int = 32,
    momentum: float = 0.9,
    clip: float = 9.0,
    held_out: float = 0.5,
    count: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
) -> Universal:
    """One perturbation that changes the model's answer on as many pictures as possible.

    pictures: a data set, or a tensor (N, 3, S, S) in [0, 1]; a part of them, drawn with `seed`,
        is held out to judge the result
    labels: for accuracy only; the perturbation is made from the model's own clean answers
    eps, norm: the ball that the perturbation lies in, "linf" or "l2"; the field's sizes are 10/255
        and 2000/255 at 224 pixels
    target: a class to which all answers are to turn; None is away from their own
    steps, batch: of the ascent, and pictures a step; each costs a forward and a backward pass
    momentum: how much of the gradients before stays in the average
    clip: pictures fooled by more logits than this no longer count
    held_out: share of the pictures kept for judging
    count: at most so many pictures in all, evenly spread
    seed: of the parting, the batches, the shuffling and the noise
    precision: "bf16" ascends in bf16, "auto" does so on processors that are faster at it; what is
        reported is judged in fp32

    Returns a `Universal`. Raises UserError for arguments out of range.
    """
    started = time.perf_counter()
    check_norm(norm, ("linf", "l2"))
    check_eps(eps, norm, 1)
    check_training(steps=steps, batch=batch, held_out=held_out, momentum=momentum)
    batch_size = check_batch_size(batch_size, model.device)
    aim = None if target is None else model.class_index(target)
    given = read_labelled(model, pictures, labels, count=count)
    training, held = parted(given, held_out, seed)
    stream = projections.generator(seed, 2)
    x = given.pictures.to(model.device)
    precision = choose_precision(model, x, precision)
    climbed = in_bfloat16(model, x) if precision == "bfloat16" else nullcontext(model)
    with frozen(model), torch.no_grad(), climbed as fast:
        clean = classify(model, x, batch_size=batch_size).argmax(1)
        forwards = len(x)
        v = torch.zeros_like(x[0])
        average = torch.zeros_like(v)
        trace: list[Tensor] = []
        order = batches_of(training, batch, steps, stream)
        for step, rows in enumerate(order if eps > 0 else ()):
            labels_now = clean[rows] if aim is None else torch.full_like(clean[rows], aim)
            gradient, hits = _pull(fast, x[rows], v, labels_now, aim is not None, clip, batch_size)
            trace.append(hits)
            average = momentum * average + gradient / gradient.abs().sum().clamp(min=1e-30)
            turn = 0.5 + 0.5 * math.cos(math.pi * step / max(1, steps - 1))
            size = eps * (_SMALLEST_STEP + (_LARGEST_STEP - _SMALLEST_STEP) * turn)
            v = into_ball(v + size * _direction(average, norm), eps, norm)
            if progress is not None:
                progress(step + 1, steps, "making one perturbation for all")
        spent = len(trace) * min(batch, len(training))
        noise = _noise(v.shape, eps, norm, stream).to(v)
        others = {"universal": v, "shuffled": _shuffled(v, stream), "noise": noise}
        answers = {
            what: classify(model, (x[held] + change).clamp(0, 1), batch_size=batch_size)
            .argmax(1)
            .cpu()
            for what, change in others.items()
        }
        saved = images.quantize((x[held] + v).clamp(0, 1)).to(x.dtype)
        answers["8 bits"] = classify(model, saved, batch_size=batch_size).argmax(1).cpu()
        seen = classify(model, (x[training] + v).clamp(0, 1), batch_size=batch_size).argmax(1)
    forwards += spent + len(answers) * len(held) + len(training)
    result = Universal(
        origin=results.origin(
            model,
            parameters={
                "eps": eps,
                "norm": norm,
                "target": target,
                "steps": steps,
                "batch": batch,
                "momentum": momentum,
                "clip": clip,
                "held_out": held_out,
                "count": count,
                "batch_size": batch_size,
                "precision": precision,
            },
            started=started,
            data=given.data,
            seed=seed,
        ),
        warnings=given.warnings,
        model_name=model.name,
        data_name=given.data_name,
        classes=tuple(model.class_name(c) for c in range(len(model.classes))),
        perturbation=v.cpu(),
        eps=eps,
        norm=norm,
        target=aim,
        names=tuple(given.names[i] for i in held.tolist()),
        labels=None if given.labels is None else given.labels[held],
        clean=clean[held].cpu(),
        answers=answers,
        trained_on=len(training),
        training_share=_rate(clean[training].cpu(), seen.cpu(), aim),
        trace=torch.stack(trace).cpu() if trace else torch.zeros(0),
        examples=given.pictures[held[shown_rows(len(held), SHOWN)]],
        shown=tuple(shown_rows(len(held), SHOWN)),
        forwards=forwards,
        backwards=spent,
        seconds=time.perf_counter() - started,
    )
    return _with_doubts(result)


def check_training(*, steps: int, batch: int, held_out: float, momentum: float = 0.0) -> None:
    """Raise UserError for settings of the ascent that make no sense."""
    if steps < 1 or batch < 1:
        raise UserError(f"steps is {steps} and batch {batch}; both must be 1 or more")
    if not 0 < held_out < 1:
        raise UserError(
            f"held_out is {held_out:g}; it is a share between 0 and 1, and both parts need pictures"
        )
    if not 0 <= momentum < 1:
        raise UserError(f"momentum is {momentum:g}; it must be 0 or more and below 1")


def parted(given: Labelled, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows for training and rows to judge on, drawn at random. Raises UserError if one is empty."""
    count = len(given.names)
    order = torch.randperm(count, generator=projections.generator(seed, 1))
    kept = min(count - 1, max(1, round(held_out * count)))
    if count < 2:
        raise UserError("2 pictures or more are needed: some to learn from, some to judge on")
    return order[kept:].sort().values, order[:kept].sort().values


def shown_rows(count: int, most: int) -> list[int]:
    """At most so many rows of `count`, evenly spread: data sets are sorted by class."""
    most = min(count, most)
    return [i * count // most for i in range(most)]


def batches_of(rows: Tensor, batch: int, steps: int, stream: torch.Generator) -> list[Tensor]:
    """`steps` batches of the rows, each round of them in a new order."""
    size = min(batch, len(rows))
    waiting: list[int] = []
    found = []
    for _ in range(steps):
        if len(waiting) < size:
            waiting += rows[torch.randperm(len(rows), generator=stream)].tolist()
        found.append(torch.tensor(waiting[:size]))
        del waiting[:size]
    return found


def _pull(
    model: Classifier,
    x: Tensor,
    v: Tensor,
    labels: Tensor,
    targeted: bool,
    clip: float,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """The gradient at v of the clipped loss, summed over a batch, and the share already won."""
    total = torch.zeros_like(v)
    won = torch.zeros((), device=v.device)
    for start in range(0, len(x), batch_size):
        part, own = x[start : start + batch_size], labels[start : start + batch_size]
        moved = part + v
        leaf, logits = differentiable(model, moved.clamp(0, 1), batch_size)
        z = logits.detach()[: len(part)]
        value, weights = cross_entropy(z, own, targeted=targeted)
        weights = weights * (value < clip)[:, None]
        won += ((z.argmax(1) == own) == targeted).sum()
        back = torch.zeros_like(logits)
        back[: len(part)] = weights.to(logits.dtype)
        (gradient,) = torch.autograd.grad(logits, leaf, back)
        free = (moved >= 0) & (moved <= 1)  # where the clip lets v through
        total += (gradient[: len(part)] * free).sum(0)
    return total, won / len(x)


def _direction(gradient: Tensor, norm: str) -> Tensor:
    if norm == "linf":
        return gradient.sign()
    length = max(float(gradient.double().norm()), 1e-300)
    return (gradient.double() / length).to(gradient.dtype)


def into_ball(v: Tensor, eps: float, norm: str) -> Tensor:
    """v brought to within eps of 0, exactly as measured in float64."""
    if norm == "linf":
        limit = torch.tensor(eps, dtype=v.dtype, device=v.device)
        if float(limit) > eps:
            limit = torch.nextafter(limit, torch.zeros_like(limit))
        return v.clamp(-limit, limit)
    while (size := float(v.double().norm())) > eps:
        v = (v.double() * (eps / size * (1 - 1e-9))).to(v.dtype)
        if float(v.double().norm()) > eps:  # rounding went outwards
            v = v * (1 - 2**-22)
    return v


def _shuffled(v: Tensor, stream: torch.Generator) -> Tensor:
    """The same pixels at other places, colours kept together."""
    flat = v.flatten(1)
    order = torch.randperm(flat.shape[1], generator=stream).to(v.device)
    return flat[:, order].view_as(v)


def _noise(shape: torch.Size, eps: float, norm: str, stream: torch.Generator) -> Tensor:
    """Random signs of size eps, or a random direction of length eps."""
    if norm == "linf":
        signs = torch.randint(0, 2, shape, generator=stream).mul(2).sub(1)
        return into_ball(eps * signs.float(), eps, norm)
    drawn = torch.randn(shape, generator=stream, dtype=torch.float64)
    return into_ball((eps * drawn / drawn.norm()).float(), eps, norm)


def _rate(clean: Tensor, answers: Tensor, target: int | None) -> Share:
    if target is None:
        return share(int((answers != clean).sum()), len(clean))
    others = clean != target
    return share(int((answers[others] == target).sum()), int(others.sum()))


def _with_doubts(result: Universal) -> Universal:
    doubts = list(result.warnings)
    s, trained = result.rate(), result.training_share
    if s.n < 50:
        doubts.append(f"only {s.n} pictures are held out: the intervals are wide")
    if (trained.value or 0) - (s.value or 0) > 0.1 and trained.low > s.high:
        doubts.append(
            f"it fools {100 * (trained.value or 0):.0f}% of the pictures it was made from but "
            f"{100 * (s.value or 0):.0f}% of the others: more training pictures would make it "
            "stronger"
        )
    if result.eps and s.low <= result.rate("noise").high:
        doubts.append("it does not clearly beat random noise of the same size")
    return Universal(**{**result.__dict__, "warnings": tuple(doubts)})
