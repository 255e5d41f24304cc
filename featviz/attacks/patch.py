"""`patch`: a sticker that takes the answer over wherever it lies in the picture.

The patch is learned on training pictures, each time at a random place, size and turn, and judged on
held-out pictures at places of their own. Beside it stands a patch of random noise of the same
shape, at the same places: what that reaches is the covering, what the patch reaches beyond it is
its pattern. Nothing bounds the patch but its outline; its pixels take any value in [0, 1].

    A(p, x) = x (1 - m) + p m, with patch p and outline m resampled by one affine map

    Brown et al., "Adversarial Patch", 2017 (arXiv:1712.09665)
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from featviz import plotting, results
from featviz.attacks import projections
from featviz.attacks.checks import check_batch_size
from featviz.attacks.figures import short
from featviz.attacks.loop import classify, differentiable
from featviz.attacks.losses import cross_entropy
from featviz.attacks.universal import batches_of, check_training, parted, shown_rows
from featviz.datasets import Pictures, read_labelled
from featviz.errors import UserError
from featviz.models.frozen import frozen
from featviz.statistics import Share, share
from featviz.types import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from featviz.models.model import Model

SHAPES = ("circle", "square")
SHOWN = 7
_EDGE = 20  # the outline falls off as 1 - r ** (2 * _EDGE): about a pixel wide


class Places(NamedTuple):
    """Where a patch lies in each picture, (N,) each."""

    size: Tensor
    """side (or diameter) as a share of the picture's side"""
    angle: Tensor
    """degrees"""
    x: Tensor
    """of the middle, as a share of the side"""
    y: Tensor


@dataclass(frozen=True, kw_only=True, repr=False)
class AdversarialPatch(results.Result):
    """A patch that fools a model, and how often."""

    kind: ClassVar[str] = "adversarial-patch"

    model_name: str
    data_name: str
    classes: tuple[str, ...]
    patch: Tensor
    """(3, P, P) in [0, 1]"""
    noise: Tensor
    """(3, P, P) the patch of noise beside it"""
    shape: str
    sizes: tuple[float, ...]
    """shares of the picture's side at which it was judged"""
    trained_sizes: tuple[float, float]
    rotation: float
    target: int | None
    names: tuple[str, ...]
    """of the held-out pictures"""
    clean: Tensor
    """(M,) the model's answers to them"""
    answers: Tensor
    """(sizes, M) its answers with the patch"""
    noise_answers: Tensor
    """(sizes, M) its answers with the patch of noise at the same places"""
    trained_on: int
    trace: Tensor
    """(steps,) share of each batch that was won"""
    examples: Tensor
    """(k, 3, S, S) some held-out pictures with the patch"""
    shown: tuple[int, ...]
    """which of `names` they are"""
    shown_size: int
    """which of `sizes` they have"""
    forwards: int
    backwards: int
    seconds: float

    @property
    def title(self) -> str:
        if self.target is None:
            return f"Adversarial patch of {self.model_name}"
        return f"Patch that makes {self.model_name} say {self.classes[self.target]}"

    def rate(self, size: int, *, noise: bool = False) -> Share:
        """Share of the held-out pictures won at a size: target given, or answer changed.

        With a target, pictures that the model answers so by itself do not count.
        """
        answers = (self.noise_answers if noise else self.answers)[size]
        if self.target is None:
            return share(int((answers != self.clean).sum()), len(self.clean))
        others = self.clean != self.target
        return share(int((answers[others] == self.target).sum()), int(others.sum()))

    def numbers(self) -> dict[str, results.Number]:
        word = "answer changed" if self.target is None else "target given"
        found = {}
        for k, size in reversed(list(enumerate(self.sizes))):
            for noise in (False, True):
                s = self.rate(k, noise=noise)
                name = f"{word} at {100 * size:.0f}% of the side" + (", by noise" if noise else "")
                found[name] = results.Number(
                    s.value,
                    "fraction",
                    f"{100 * self._area(size):.1f}% of the area; interval {s.interval}, n = {s.n}",
                )
        found["passes"] = results.Number(
            self.forwards, "", f"forward, and {self.backwards} backward, of single pictures"
        )
        found["seconds"] = results.Number(round(self.seconds, 1), "s", "for all of it")
        return found

    def _area(self, size: float) -> float:
        return size**2 * (math.pi / 4 if self.shape == "circle" else 1)

    def write(self, folder: results.Folder) -> None:
        small = self.examples.shape[-1] <= 128
        folder.figure(
            "pictures.png",
            self.plot(),
            caption="The patch, and held-out pictures with it at places it was never tried at "
            f"({100 * self.sizes[self.shown_size]:.0f}% of the side), each with the model's "
            "answer; below in grey its answer without the patch. Orange frame: "
            + ("changed." if self.target is None else "the target."),
            alt="The patch and photographs on which it lies",
        )
        folder.figure(
            "rates.svg",
            self.plot_rates(),
            caption="How often it wins by its size (side or diameter as a share of the picture's "
            "side), beside a patch of random noise at the same places, with 95% Wilson bands. "
            "Grey: the sizes it was trained at.",
            alt="Curves of success against the patch's size",
        )
        folder.figure(
            "patch.png",
            self._cut_out(self.patch),
            caption="The patch, to be printed.",
            alt="The patch",
            pixelated=small,
        )
        folder.arrays(
            "patch.npz",
            {"patch": self.patch.numpy(), "noise": self.noise.numpy()},
            caption="The patch and the noise beside it, (3, P, P) float32 in [0, 1].",
        )
        columns = ["picture", "clean", *(f"at_{100 * size:.0f}" for size in self.sizes)]
        folder.table(
            "pictures.csv",
            columns,
            (
                [
                    self.names[i],
                    self.classes[int(self.clean[i])],
                    *(self.classes[int(a)] for a in self.answers[:, i]),
                ]
                for i in range(len(self.names))
            ),
            caption="Every held-out picture: the model's answer without the patch and at each size "
            "of it, in percent of the side.",
        )

    def _cut_out(self, patch: Tensor) -> Tensor:
        mask = outline(self.shape, patch.shape[-1])
        return patch * mask + (1 - mask)

    def plot(self) -> Figure:
        """The patch and pictures with it."""
        count, cell = len(self.examples), 1.3
        page = plotting.Page(cell * (count + 1) + 0.25, cell + 0.5)
        small = self.examples.shape[-1] <= 128
        ax = page.axes(0.05, 0.28, cell - 0.05, cell - 0.05)
        plotting.show_image(ax, self._cut_out(self.patch), pixelated=small)
        page.text(cell / 2, 0.14, "the patch", fontsize=8, ha="center")
        for c in range(count):
            left = cell * (c + 1) + 0.2
            row = self.shown[c]
            answer, before = int(self.answers[self.shown_size, row]), int(self.clean[row])
            won = answer != before if self.target is None else answer == self.target
            ax = page.axes(left, 0.28, cell - 0.05, cell - 0.05)
            plotting.show_image(ax, self.examples[c], pixelated=small)
            plotting.frame(ax, plotting.ORANGE if won else "#bbbbbb", 1.6 if won else 0.6)
            middle = left + cell / 2 - 0.02
            page.text(
                middle,
                0.14,
                short(self.classes[answer], 17),
                fontsize=8,
                ha="center",
                color=plotting.RED if won else plotting.INK,
            )
            page.text(
                middle,
                cell + 0.36,
                short(self.classes[before], 17),
                fontsize=7.5,
                ha="center",
                color="#777777",
            )
        return page.figure

    def plot_rates(self) -> Figure:
        """Success against the patch's size."""
        figure = plotting.new_figure(4.6, 3.0)
        ax: Axes = figure.subplots()
        x = [100 * size for size in self.sizes]
        low, high = (100 * size for size in self.trained_sizes)
        ax.axvspan(low, high, color="#eeeeee", linewidth=0)
        for noise, name, colour, marker in (
            (False, "the patch", plotting.ORANGE, "o"),
            (True, "noise", plotting.GREEN, "s"),
        ):
            shares = [self.rate(k, noise=noise) for k in range(len(x))]
            ax.fill_between(
                x,
                [100 * s.low for s in shares],
                [100 * s.high for s in shares],
                color=colour,
                alpha=0.18,
                linewidth=0,
            )
            ax.plot(
                x,
                [100 * (s.value or 0) for s in shares],
                color=colour,
                marker=marker,
                markersize=4,
                linewidth=1.6,
                label=name,
            )
        word = "answer changed (%)" if self.target is None else "target given (%)"
        plotting.lines(ax, xlabel="size (% of the picture's side)", ylabel=word)
        ax.set_ylim(0, 102)
        ax.legend(fontsize=8, frameon=False)
        return figure


def patch(
    model: Model,
    pictures: Pictures | Tensor,
    *,
    target: int | str | None = None,
    shape: str = "circle",
    sizes: tuple[float, float] = (0.25, 0.45),
    rotation: float = 22.5,
    steps: int = 150,
    batch: int = 16,
    learning_rate: float = 0.05,
    clip: float = 9.0,
    held_out: float = 0.5,
    count: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> AdversarialPatch:
    """A patch that makes the model answer the target (or anything else) wherever it lies.

    pictures: a data set, or a tensor (N, 3, S, S) in [0, 1]; a part is held out to judge on.
        Labels are not needed: the model's own clean answers are what is to be left
    target: the class to be answered; None is any other than before
    shape: "circle" or "square"; sizes: smallest and largest side (or diameter) in training, as
        shares of the picture's side; rotation: at most so many degrees either way
    steps, batch: of Adam, and pictures a step; learning_rate: of pixels in [0, 1]
    clip: pictures won by more logits than this no longer count
    held_out, count, seed, slots: as `universal` has them

    Returns an `AdversarialPatch`, judged at five sizes. Raises UserError for arguments out of
    range.
    """
    started = time.perf_counter()
    check_training(steps=steps, batch=batch, held_out=held_out)
    smallest, largest = _check_outline(shape, sizes, rotation)
    batch_size = check_batch_size(batch_size, model.device)
    aim = None if target is None else model.class_index(target)
    given = read_labelled(model, pictures, count=count)
    training, held = parted(given, held_out, seed)
    stream = projections.generator(seed, 3)
    side = given.pictures.shape[-1]
    with frozen(model), torch.no_grad():
        x = given.pictures.to(model.device)
        clean = classify(model, x, batch_size=batch_size).argmax(1)
        pixels = max(4, round(largest * side))
        noise = torch.rand(3, pixels, pixels, generator=stream).to(x)
        sticker = torch.full_like(noise, 0.5).requires_grad_(True)
        adam = torch.optim.Adam([sticker], lr=learning_rate)
        trace = []
        for step, rows in enumerate(batches_of(training, batch, steps, stream)):
            places = drawn_places(len(rows), smallest, largest, rotation, shape, [stream])
            labels = clean[rows] if aim is None else torch.full_like(clean[rows], aim)
            gradient, hits = _pull(
                model, x[rows], sticker, shape, places, labels, aim is not None, clip, batch_size
            )
            sticker.grad = -gradient
            for group in adam.param_groups:
                group["lr"] = learning_rate * (0.5 + 0.5 * math.cos(math.pi * step / steps))
            adam.step()
            sticker.data.clamp_(0, 1)
            trace.append(hits)
            if progress is not None:
                progress(step + 1, steps, "making a patch")
        made = sticker.detach()
        judged = _judged_sizes(smallest, largest)
        keys = [projections.picture_key(picture, seed) for picture in given.pictures[held]]
        rows_of_answers: dict[bool, list[Tensor]] = {False: [], True: []}
        shown = min(range(len(judged)), key=lambda k: abs(judged[k] - (smallest + largest) / 2))
        examples = None
        for k, size in enumerate(judged):
            places = drawn_places(
                len(held),
                size,
                size,
                rotation,
                shape,
                [projections.generator(key, 30 + k) for key in keys],
            )
            for is_noise, sheet in ((False, made), (True, noise)):
                laid = lay(x[held], sheet, shape, places)
                answers = classify(model, laid, batch_size=batch_size).argmax(1).cpu()
                rows_of_answers[is_noise].append(answers)
                if k == shown and not is_noise:
                    examples = laid[shown_rows(len(held), SHOWN)].cpu()
    assert examples is not None
    spent = steps * min(batch, len(training))
    result = AdversarialPatch(
        origin=results.origin(
            model,
            parameters={
                "target": target,
                "shape": shape,
                "sizes": [smallest, largest],
                "rotation": rotation,
                "steps": steps,
                "batch": batch,
                "learning_rate": learning_rate,
                "clip": clip,
                "held_out": held_out,
                "count": count,
                "batch_size": batch_size,
            },
            started=started,
            data=given.data,
            seed=seed,
        ),
        warnings=given.warnings,
        model_name=model.name,
        data_name=given.data_name,
        classes=tuple(model.class_name(c) for c in range(len(model.classes))),
        patch=made.cpu(),
        noise=noise.cpu(),
        shape=shape,
        sizes=judged,
        trained_sizes=(smallest, largest),
        rotation=rotation,
        target=aim,
        names=tuple(given.names[i] for i in held.tolist()),
        clean=clean[held].cpu(),
        answers=torch.stack(rows_of_answers[False]),
        noise_answers=torch.stack(rows_of_answers[True]),
        trained_on=len(training),
        trace=torch.stack(trace).cpu(),
        examples=examples,
        shown=tuple(shown_rows(len(held), SHOWN)),
        shown_size=shown,
        forwards=len(x) + spent + 2 * len(judged) * len(held),
        backwards=spent,
        seconds=time.perf_counter() - started,
    )
    if len(held) < 50:
        doubt = f"only {len(held)} pictures are held out: the intervals are wide"
        result = AdversarialPatch(**{**result.__dict__, "warnings": (*result.warnings, doubt)})
    return result


def _check_outline(shape: str, sizes: tuple[float, float], rotation: float) -> tuple[float, float]:
    if shape not in SHAPES:
        raise UserError(f"unknown shape {shape!r}; take circle or square")
    smallest, largest = (float(size) for size in sizes)
    if not 0 < smallest <= largest <= 0.7:
        raise UserError(
            f"sizes are {smallest:g} to {largest:g}; give shares of the picture's side above 0, "
            "the smaller first, at most 0.7 (turned by 45 degrees more does not fit)"
        )
    if not 0 <= rotation <= 180:
        raise UserError(f"rotation is {rotation:g}; it is an angle of 0 to 180 degrees")
    return smallest, largest


def _judged_sizes(smallest: float, largest: float) -> tuple[float, ...]:
    """Five sizes: half the smallest, and four from the smallest to the largest."""
    inner = [smallest + k * (largest - smallest) / 3 for k in range(4)]
    return tuple(dict.fromkeys(round(size, 4) for size in (smallest / 2, *inner)))


def drawn_places(
    count: int,
    smallest: float,
    largest: float,
    rotation: float,
    shape: str,
    streams: Sequence[torch.Generator],
) -> Places:
    """Random places at which the whole patch lies within the picture.

    streams: one for each picture, or a single one for all in turn.
    """
    drawn = torch.stack(
        [
            torch.rand(4, generator=streams[i % len(streams)], dtype=torch.float64)
            for i in range(count)
        ]
    )
    size = smallest + (largest - smallest) * drawn[:, 0]
    angle = rotation * (2 * drawn[:, 1] - 1)
    reach = size / 2
    if shape == "square":
        turned = angle.deg2rad()
        reach = reach * (turned.cos().abs() + turned.sin().abs())
    return Places(size, angle, *(reach + (1 - 2 * reach) * drawn[:, k] for k in (2, 3)))


def outline(shape: str, pixels: int) -> Tensor:
    """(1, pixels, pixels): 1 where the patch is, 0 outside it, with a soft edge for the circle."""
    if shape == "square":
        return torch.ones(1, pixels, pixels)
    line = (2 * torch.arange(pixels) + 1) / pixels - 1
    radius = line[:, None] ** 2 + line[None, :] ** 2
    return (1 - (radius**_EDGE).clamp(max=1))[None]


def lay(pictures: Tensor, sticker: Tensor, shape: str, places: Places) -> Tensor:
    """The pictures (N, 3, S, S) with the patch (3, P, P) at each one's place."""
    mask = outline(shape, sticker.shape[-1]).to(sticker)
    sheet = torch.cat([sticker * mask, mask])
    size, turn = places.size, places.angle.deg2rad()
    cos, sin = turn.cos() / size, turn.sin() / size
    x, y = 2 * places.x - 1, 2 * places.y - 1
    maps = torch.stack(
        [
            torch.stack([cos, sin, -(cos * x + sin * y)], 1),
            torch.stack([-sin, cos, sin * x - cos * y], 1),
        ],
        1,
    ).to(pictures)
    grid = nn.functional.affine_grid(maps, list(pictures.shape), align_corners=False)
    laid = nn.functional.grid_sample(
        sheet.expand(len(pictures), -1, -1, -1), grid, padding_mode="zeros", align_corners=False
    )
    return (pictures * (1 - laid[:, 3:]) + laid[:, :3]).clamp(0, 1)


def _pull(
    model: Model,
    x: Tensor,
    sticker: Tensor,
    shape: str,
    places: Places,
    labels: Tensor,
    targeted: bool,
    clip: float,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """The gradient of the clipped loss at the patch, and the share of the batch already won."""
    total = torch.zeros_like(sticker)
    won = torch.zeros((), device=sticker.device)
    for start in range(0, len(x), batch_size):
        part = slice(start, start + batch_size)
        with torch.enable_grad():
            laid = lay(x[part], sticker, shape, Places(*(p[part] for p in places)))
        leaf, logits = differentiable(model, laid.detach(), batch_size)
        own, z = labels[part], logits.detach()[: len(laid)]
        value, weights = cross_entropy(z, own, targeted=targeted)
        won += ((z.argmax(1) == own) == targeted).sum()
        back = torch.zeros_like(logits)
        back[: len(laid)] = (weights * (value < clip)[:, None]).to(logits.dtype)
        (gradient,) = torch.autograd.grad(logits, leaf, back)
        (step,) = torch.autograd.grad(laid, sticker, gradient[: len(laid)])
        total += step / len(x)
    return total, won / len(x)
