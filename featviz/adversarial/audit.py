"""`audit`: accuracy against the size of the attack, over a data set, with doubts about itself.

Each picture is attacked by FGSM and by PGD in L-infinity and L2, and its smallest eps is kept. An
attack can only show that a picture falls, never that it stands: every accuracy here is "at most".
A picture that is wrong when clean counts as wrong from eps 0 on; one that fell at some distance
counts as fallen at every larger eps, whichever attack found it.

Walking down the grid: PGD begins at the eps at which FGSM succeeded. What it finds has a distance
of its own and proves all grid points above it; the next try is at the largest grid point below. So
the long, failing walk is paid about once a picture, not once an eps. (Where PGD fails at its first
eps it goes up instead.) FGSM's one gradient serves all eps of both norms.

    Wilson, "Probable inference, the law of succession, and statistical inference", 1927
    Athalye, Carlini, Wagner, "Obfuscated Gradients ...", 2018 (arXiv:1802.00420), for the doubts
    Carlini et al., "On Evaluating Adversarial Robustness", 2019 (arXiv:1902.06705)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from featviz import datasets, images, plots, results
from featviz.adversarial import balls
from featviz.adversarial.attacks import (
    check_eps,
    check_pictures,
    check_settings,
    check_slots,
    class_indices,
    short,
    shown_perturbation,
)
from featviz.adversarial.balls import NORM_NAMES, eps_text
from featviz.adversarial.search import (
    Job,
    Outcome,
    Settings,
    classify,
    gradients,
    search,
    steepest,
)
from featviz.datasets import Pictures
from featviz.errors import UserError
from featviz.models.frozen import frozen

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from featviz.models.load import Model

DEFAULT_EPS: Mapping[str, tuple[float, ...]] = {
    "linf": tuple(k / 255 for k in (0.125, 0.25, 0.5, 1, 2, 4, 8)),
    "l2": (0.03125, 0.0625, 0.125, 0.25, 0.5, 1.0, 2.0),
}
ATTACKS = ("fgsm", "pgd")
SHOWN = 6
"""pictures in the gallery of the easiest"""
_ENOUGH = 5  # pictures of a class before its accuracy is shown in a figure
_BLOCK = 128  # pictures in memory at once
Progress = Callable[[int, int, str], None]


class Share(NamedTuple):
    """A fraction of n pictures with its 95% Wilson interval."""

    right: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float | None:
        return self.right / self.n if self.n else None

    @property
    def interval(self) -> str:
        return f"{100 * self.low:.1f}% to {100 * self.high:.1f}%"


def share(right: int, n: int) -> Share:
    """`right` of n with its 95% Wilson interval; without pictures the interval is everything."""
    if n == 0:
        return Share(0, 0, 0.0, 1.0)
    from scipy.stats import binomtest

    interval = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return Share(right, n, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class Fall:
    """How one picture fell to a norm's attacks."""

    row: int
    distance: float
    """of the perturbation found, in [0, 1] units"""
    attack: str
    predicted: int
    steps: int
    original: Tensor | None = None
    """(3, H, W); kept for the easiest pictures only"""
    adversarial: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class NormAudit:
    """What the attacks of one norm found."""

    norm: str
    eps: tuple[float, ...]
    """the grid, ascending"""
    smallest: Mapping[str, Tensor]
    """attack -> (N,) float64: the smallest distance at which a picture fell; 0 for one wrong when
    clean, inf for one that did not fall"""
    noise_right: Tensor
    """(len(eps), N) bool: right under random noise of that size"""
    falls: Mapping[int, Fall]
    """the best fall of each picture that was right and fell"""
    standing_at_most: int
    """pictures right after PGD even with a ball that holds everything: none, if the attack works"""
    late: int
    """PGD's successes that came in the last tenth of the steps"""
    survive_8bit: int
    """falls that still are wrong when rounded to 8 bits"""
    easiest: tuple[Fall, ...]

    @property
    def overall(self) -> Tensor:
        """(N,) the smallest distance by any attack."""
        return torch.stack(list(self.smallest.values())).amin(0)

    def right(self, attack: str | None, eps: float) -> int:
        """How many pictures are right at eps against one attack, or against all of them."""
        smallest = self.overall if attack is None else self.smallest[attack]
        return int((smallest > eps).sum()) if eps > 0 else int((smallest > 0).sum())


@dataclass(frozen=True, kw_only=True)
class Audit(results.Result):
    """Accuracy of a model against the size of the attack."""

    kind: ClassVar[str] = "audit"

    model_name: str
    data_name: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: Tensor
    """(N,)"""
    own_labels: bool
    """the labels are the model's own answers, for want of others"""
    clean: Tensor
    """(N,) the model's answers to the clean pictures"""
    margins: Tensor
    """(N,) the label's logit minus the best other one, clean"""
    norms: tuple[NormAudit, ...]
    zero_gradients: int
    forwards: int
    backwards: int
    seconds: float

    @property
    def title(self) -> str:
        return f"Audit of {self.model_name} on {len(self.names)} pictures of {self.data_name}"

    @property
    def clean_right(self) -> Tensor:
        """(N,) bool."""
        return self.clean == self.labels

    def numbers(self) -> dict[str, results.Number]:
        n = len(self.names)
        clean = share(int(self.clean_right.sum()), n)
        what = "agreement with itself, by construction" if self.own_labels else "unattacked"
        found = {
            "clean accuracy": results.Number(
                clean.value, "fraction", f"{what}; 95% interval {clean.interval}, n = {n}"
            )
        }
        for part in self.norms:
            for eps in part.eps:
                s = share(part.right(None, eps), n)
                found[f"{NORM_NAMES[part.norm]} {eps_text(eps, part.norm)}"] = results.Number(
                    s.value, "fraction", f"accuracy at most this; interval {s.interval}"
                )
            middle = self.median(part)
            unit = "/255" if part.norm == "linf" else ""
            scale = 255 if part.norm == "linf" else 1
            found[f"median {NORM_NAMES[part.norm]} distance"] = results.Number(
                None if middle is None else scale * middle, unit,
                "of the pictures that are right when clean; half of them fall within it",
            )  # fmt: skip
            found[f"{NORM_NAMES[part.norm]} falls left by 8 bits"] = results.Number(
                part.survive_8bit, f"of {len(part.falls)}",
                "adversarial pictures that still fool when rounded as a file holds them",
            )  # fmt: skip
        return found | {
            "forward passes": results.Number(
                self.forwards, "", f"of single pictures, {self.forwards / max(n, 1):.0f} a picture"
            ),
            "backward passes": results.Number(
                self.backwards, "", f"{self.backwards / max(n, 1):.0f} a picture"
            ),
            "seconds": results.Number(round(self.seconds, 1), "s", "for all of it"),
        }

    def median(self, part: NormAudit) -> float | None:
        """Median smallest distance of the pictures right when clean; None if over half stand."""
        values = part.overall[self.clean_right]
        if not len(values):
            return None
        middle = float(values.sort().values[(len(values) - 1) // 2])
        return middle if math.isfinite(middle) else None

    def telling_eps(self, part: NormAudit) -> float:
        """The grid point at which about half of what was right still stands."""
        half = int(self.clean_right.sum()) / 2
        return min(part.eps, key=lambda eps: abs(part.right(None, eps) - half))

    def write(self, folder: results.Folder) -> None:
        n = len(self.names)
        folder.figure(
            "curves.svg", self.plot(),
            caption="Accuracy against the size of the perturbation, "
            f"{n} pictures, 95% Wilson bands. Attacks give upper bounds: the true accuracy is at "
            "most the lowest line. A picture wrong when clean counts as wrong at eps 0; one that "
            "fell counts as fallen at every larger eps. Noise: random signs of size eps (L∞), or "
            "a random direction of length eps (L2), and no such carrying over.",
            alt="Curves of accuracy falling with eps: noise highest, FGSM below, PGD lowest",
        )  # fmt: skip
        for part in self.norms:
            if part.easiest:
                folder.figure(
                    f"easiest-{part.norm}.png", self.plot_easiest(part),
                    caption=f"The pictures that fall most easily in {NORM_NAMES[part.norm]}: "
                    "original, change (times the factor above it, round mid-grey), adversarial.",
                    alt="Easily fooled pictures with their perturbations",
                )  # fmt: skip
        spots = [row for row in self.class_rows() if row.n >= _ENOUGH]
        if len(spots) > 2:
            folder.figure(
                "classes.svg", self.plot_classes(),
                caption=f"Accuracy by class at most, with 95% Wilson intervals (classes with "
                f"{_ENOUGH} pictures or more; the weakest come first, at most 24 are shown). With "
                "many classes some look weak by chance.",
                alt="Dot plot of accuracy under attack for each class",
            )  # fmt: skip
        self._write_tables(folder)

    def _write_tables(self, folder: results.Folder) -> None:
        n = len(self.names)
        rows = []
        for part in self.norms:
            for k, eps in enumerate((0.0, *part.eps)):
                noise = int(self.clean_right.sum() if k == 0 else part.noise_right[k - 1].sum())
                for attack in ("noise", *ATTACKS, "all"):
                    right = noise if attack == "noise" else part.right(
                        None if attack == "all" else attack, eps
                    )  # fmt: skip
                    s = share(right, n)
                    rows.append((part.norm, eps, eps_text(eps, part.norm), attack, right, n,
                                 s.value, s.low, s.high))  # fmt: skip
        folder.table(
            "accuracy.csv",
            ("norm", "eps", "eps_text", "attack", "right", "n", "accuracy", "low", "high"), rows,
            caption="Accuracy at each eps: against noise, FGSM, PGD and all attacks together "
            "(an upper bound of the true one), with 95% Wilson interval.",
        )  # fmt: skip
        header = ["picture", "label", "clean", "margin"]
        for part in self.norms:
            header += [f"{part.norm}_smallest", f"{part.norm}_attack", f"{part.norm}_becomes"]
        folder.table(
            "pictures.csv", header, (self._picture_row(i) for i in self._by_ease()),
            caption="Every picture, easiest first: smallest distance at which it fell (0: wrong "
            "when clean; empty: it stood), by which attack, and what it became; margin is the "
            "label's logit minus the best other one.",
        )  # fmt: skip
        columns = ["class", "n", "clean_right"]
        for part in self.norms:
            columns += [f"{part.norm}_eps", f"{part.norm}_right", f"{part.norm}_low",
                        f"{part.norm}_high", f"{part.norm}_median"]  # fmt: skip
        folder.table(
            "classes.csv", columns, (self._class_row(row) for row in self.class_rows()),
            caption="Classes, weakest first: pictures right when clean, right at the eps where "
            "about half of all fall (at most), Wilson interval, median smallest distance of the "
            "pictures right when clean (empty: most stand). Mind n.",
        )  # fmt: skip

    def _by_ease(self) -> list[int]:
        return [int(i) for i in self.norms[0].overall.argsort(stable=True)]

    def _picture_row(self, i: int) -> list[object]:
        row: list[object] = [self.names[i], self.classes[int(self.labels[i])],
                             self.classes[int(self.clean[i])], float(self.margins[i])]  # fmt: skip
        for part in self.norms:
            distance, fall = float(part.overall[i]), part.falls.get(i)
            row += [
                distance if math.isfinite(distance) else "",
                fall.attack if fall else "",
                self.classes[fall.predicted] if fall else "",
            ]
        return row

    def class_rows(self) -> list[ClassRow]:
        """One row a class that occurs, weakest first (by the first norm's telling eps)."""
        part = self.norms[0]
        standing = part.overall > self.telling_eps(part)
        found = []
        for label in sorted(set(self.labels.tolist())):
            own = self.labels == label
            found.append(ClassRow(label, int(own.sum()), int(self.clean_right[own].sum()),
                                  int(standing[own].sum())))  # fmt: skip
        return sorted(found, key=lambda r: (r.standing / r.n, -r.n, r.label))

    def _class_row(self, row: ClassRow) -> list[object]:
        own = self.labels == row.label
        cells: list[object] = [self.classes[row.label], row.n, row.clean_right]
        for part in self.norms:
            eps = self.telling_eps(part)
            s = share(int((part.overall[own] > eps).sum()), row.n)
            values = part.overall[own & self.clean_right].sort().values
            middle = float(values[(len(values) - 1) // 2]) if len(values) else math.inf
            cells += [eps, s.right, s.low, s.high, middle if math.isfinite(middle) else ""]
        return cells

    def plot(self) -> Figure:
        figure = plots.new_figure(4.3 * len(self.norms), 3.3)
        panels = figure.subplots(1, len(self.norms), sharey=True, squeeze=False)[0]
        for ax, part in zip(panels, self.norms, strict=True):
            self._draw_curves(ax, part)
        panels[0].set_ylabel("accuracy, at most (%)", fontsize=9)
        panels[-1].legend(fontsize=8, frameon=False, loc="upper right")
        return figure

    def _draw_curves(self, ax: Axes, part: NormAudit) -> None:
        n, scale = len(self.names), 255 if part.norm == "linf" else 1
        grid = (0.0, *part.eps)
        x = [scale * eps for eps in grid]
        clean = int(self.clean_right.sum())
        lines = {
            "random noise": ([clean, *part.noise_right.sum(1).tolist()], plots.GREEN, "s"),
            "FGSM": ([part.right("fgsm", e) for e in grid], plots.ORANGE, "^"),
            "PGD": ([part.right("pgd", e) for e in grid], plots.BLUE, "o"),
        }
        for name, (counts, colour, marker) in lines.items():
            shares = [share(c, n) for c in counts]
            ax.fill_between(x, [100 * s.low for s in shares], [100 * s.high for s in shares],
                            color=colour, alpha=0.15, linewidth=0)  # fmt: skip
            ax.plot(x, [100 * (s.value or 0) for s in shares], color=colour, marker=marker,
                    markersize=4, linewidth=1.6, label=name)  # fmt: skip
        unit = "levels of 255" if part.norm == "linf" else "pictures in [0, 1]"
        plots.lines(ax, xlabel=f"{NORM_NAMES[part.norm]} eps ({unit})", ylabel="")
        ax.set_xscale("symlog", linthresh=x[1], linscale=0.6)
        ax.set_xlim(0, x[-1] * 1.08)
        ax.set_xticks(x, [f"{v:.3g}" for v in x])
        ax.minorticks_off()
        ax.set_ylim(0, 102)

    def plot_easiest(self, part: NormAudit) -> Figure:
        """The pictures that fall most easily: original, change, adversarial."""
        count = len(part.easiest)
        figure = plots.new_figure(1.55 * count + 0.35, 5.2)
        axes = figure.subplots(3, count, squeeze=False)
        for ax, word in zip(axes[:, 0], ("original", "change", "adversarial"), strict=True):
            ax.set_ylabel(word, fontsize=8, color=plots.INK)
        for c, fall in enumerate(part.easiest):
            assert fall.original is not None
            assert fall.adversarial is not None
            change, factor = shown_perturbation(fall.adversarial - fall.original)
            size = eps_text(fall.distance, "l2")
            if part.norm == "linf":
                size = f"{255 * fall.distance:.2g}/255"
            pixelated = fall.original.shape[-1] <= 128
            label, name = self.classes[int(self.labels[fall.row])], self.classes[fall.predicted]
            titles = (short(label), f"{size}, shown × {factor:,.0f}", short(name))
            for ax, picture, title in zip(
                axes[:, c], (fall.original, change, fall.adversarial), titles, strict=True
            ):
                plots.show_image(ax, picture, title, pixelated=pixelated)
        return figure

    def plot_classes(self) -> Figure:
        """Accuracy by class under attack, with intervals."""
        rows = [row for row in self.class_rows() if row.n >= _ENOUGH][:24]
        part = self.norms[0]
        figure = plots.new_figure(5.2, 0.9 + 0.22 * len(rows))
        ax = figure.subplots()
        for y, row in enumerate(rows):
            s = share(row.standing, row.n)
            ax.plot([100 * s.low, 100 * s.high], [y, y], color=plots.BLUE, linewidth=1.4)
            ax.plot(100 * row.standing / row.n, y, "o", color=plots.BLUE, markersize=5,
                    label="under attack, at most" if y == 0 else None)  # fmt: skip
            ax.plot(100 * row.clean_right / row.n, y, "|", color=plots.INK, markersize=9,
                    label="clean" if y == 0 else None)  # fmt: skip
        names = [f"{short(self.classes[row.label])} (n = {row.n})" for row in rows]
        ax.set_yticks(range(len(rows)), names)
        ax.invert_yaxis()
        eps = eps_text(self.telling_eps(part), part.norm)
        plots.lines(ax, xlabel=f"accuracy at {NORM_NAMES[part.norm]} eps {eps} (%)", ylabel="")
        ax.set_xlim(-2, 102)
        ax.legend(fontsize=7, frameon=False)
        return figure


class ClassRow(NamedTuple):
    """A class in the audit."""

    label: int
    n: int
    clean_right: int
    standing: int
    """right at the telling eps of the first norm"""


@dataclass
class _Running:
    """What is collected of one norm while blocks go by."""

    norm: str
    eps: tuple[float, ...]
    smallest: dict[str, list[Tensor]] = field(default_factory=lambda: {a: [] for a in ATTACKS})
    noise: list[Tensor] = field(default_factory=list)
    falls: dict[int, Fall] = field(default_factory=dict)
    easiest: list[Fall] = field(default_factory=list)
    standing_at_most: int = 0
    late: int = 0
    survive_8bit: int = 0

    def finish(self) -> NormAudit:
        return NormAudit(
            norm=self.norm,
            eps=self.eps,
            smallest={a: torch.cat(parts) for a, parts in self.smallest.items()},
            noise_right=torch.cat(self.noise, 1),
            falls=self.falls,
            standing_at_most=self.standing_at_most,
            late=self.late,
            survive_8bit=self.survive_8bit,
            easiest=tuple(self.easiest),
        )


@dataclass
class _Passes:
    forwards: int = 0
    backwards: int = 0


def audit(
    model: Model,
    pictures: Pictures | Tensor,
    labels: Sequence[int | str] | Tensor | None = None,
    *,
    norms: Sequence[str] = ("linf", "l2"),
    eps: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    count: int | None = None,
    steps: int = 20,
    restarts: int = 1,
    seed: int = 0,
    slots: int | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Accuracy against eps with FGSM and PGD, beside random noise; weak classes and pictures.

    pictures: a data set, or a tensor (N, 3, H, W) in [0, 1]
    labels: of a tensor's pictures, indices or names. A data set is labelled by its class folders;
        pictures in folders that are no class of the model are left out. Without any label the
        model's own clean answers stand in, and the result says so
    norms: "linf", "l2" or both; eps: the grid, for one norm a sequence, for both a mapping
        {"linf": [...], "l2": [...]}; default: 1/8 to 8 levels of 255, and 1/32 to 2 in L2
    count: at most so many pictures, evenly spread over the data set
    steps, restarts: of PGD; more find more (a warning says when that is likely)
    seed: of PGD's random starts and the noise, both drawn per picture: neither order nor
        neighbours matter; slots: see `pgd`

    Returns an `Audit`. Raises UserError for arguments out of range.
    """
    started = time.perf_counter()
    grids = check_grids(norms, eps)
    for norm in grids:
        check_settings(Settings(norm=norm, steps=steps, restarts=restarts))
    slots = check_slots(slots, model.device)
    data = pictures if isinstance(pictures, Pictures) else None
    skipped: list[datasets.Skipped] = []
    warnings: list[str] = []
    if data is not None:
        known = data.labels(model)
        if any(label is not None for label in known):
            rows = [i for i, label in enumerate(known) if label is not None]
            if len(rows) < len(data):
                warnings.append(
                    f"{len(data) - len(rows)} of {len(data)} pictures are left out: their folders "
                    f"are no classes of {model.name}"
                )
            data = data.select(rows)
        data = data.spread(count) if count else data
        total = len(data)
        blocks = _blocks_of_data(model, data, skipped)
    else:
        assert isinstance(pictures, Tensor)
        batch = check_pictures(pictures)
        given = None if labels is None else class_indices(model, labels, len(batch))
        if count and count < len(batch):
            rows = [i * len(batch) // count for i in range(count)]
            batch, given = batch[rows], None if given is None else given[rows]
        total = len(batch)
        blocks = _blocks_of_tensor(batch, given)

    running = [_Running(norm, grid) for norm, grid in grids.items()]
    passes = _Passes()
    names: list[str] = []
    all_labels, all_clean, all_margins = [], [], []
    own_labels, zeros, done = False, 0, 0
    settings = {n: Settings(norm=n, steps=steps, restarts=restarts) for n in grids}
    tasks = total * len(grids)
    with frozen(model):
        for block_names, block, block_labels in blocks:
            x = block.to(model.device)
            y = None if block_labels is None else block_labels.to(model.device)
            if y is None:
                own_labels = True
                y = classify(model, x, slots=slots).argmax(1)
                passes.forwards += len(x)
            logits, gradient = gradients(model, x, y, slots=slots)
            passes.forwards += len(x)
            passes.backwards += len(x)
            clean = logits.argmax(1)
            right = clean == y
            zeros += int((right & (gradient.flatten(1).abs().amax(1) == 0)).sum())
            z = logits.double()
            margin = z.gather(1, y[:, None])[:, 0] - z.scatter(1, y[:, None], -math.inf).amax(1)
            keys = [balls.picture_key(picture, seed) for picture in x]
            for part in running:

                def report(decided: int, already: int = done) -> None:
                    if progress is not None:
                        progress(already + decided, tasks, f"attacking in {part.norm}")  # noqa: B023 - called within this round only

                _attack_block(
                    model, x, y, right, gradient, keys, len(names), part, settings[part.norm],
                    slots, passes, report,
                )  # fmt: skip
                done += len(x)
            names += block_names
            all_labels.append(y.cpu())
            all_clean.append(clean.cpu())
            all_margins.append(margin.cpu())
    if skipped:
        warnings.append(f"{len(skipped)} pictures could not be read, first {skipped[0].reason}")
    finished = [part.finish() for part in running]
    result = Audit(
        origin=results.origin(
            model,
            parameters={
                "norms": list(grids), "eps": {k: list(v) for k, v in grids.items()},
                "count": count, "steps": steps, "restarts": restarts, "slots": slots,
                "labels": "the model's own answers" if own_labels else "given",
            },
            started=started,
            data=data,
            seed=seed,
        ),
        warnings=tuple(warnings),
        model_name=model.name,
        data_name=data.name if data is not None else "a tensor",
        classes=tuple(model.class_name(c) for c in range(len(model.classes))),
        names=tuple(names),
        labels=torch.cat(all_labels),
        own_labels=own_labels,
        clean=torch.cat(all_clean),
        margins=torch.cat(all_margins),
        norms=tuple(finished),
        zero_gradients=zeros,
        forwards=passes.forwards,
        backwards=passes.backwards,
        seconds=time.perf_counter() - started,
    )  # fmt: skip
    return _with_doubts(result)


def check_grids(
    norms: Sequence[str], eps: Sequence[float] | Mapping[str, Sequence[float]] | None
) -> dict[str, tuple[float, ...]]:
    """The grid of each norm, ascending, without 0 and doubles. Raises UserError."""
    if not norms:
        raise UserError("no norm was named; take linf, l2 or both")
    if eps is None:
        given: Mapping[str, Sequence[float]] = DEFAULT_EPS
    elif isinstance(eps, Mapping):
        given = {norm: eps.get(norm, DEFAULT_EPS.get(norm, ())) for norm in norms}
    elif len(norms) == 1:
        given = {norms[0]: eps}
    else:
        raise UserError(
            "one list of eps for two norms would mean two things; "
            'give {"linf": [...], "l2": [...]}, or one norm'
        )
    grids = {}
    for norm in dict.fromkeys(norms):
        check_settings(Settings(norm=norm))
        values = sorted({float(e) for e in given[norm]} - {0.0})
        for value in values:
            check_eps(value, norm, 1)
        if not values:
            raise UserError(f"no eps above 0 was given for {norm}")
        grids[norm] = tuple(values)
    return grids


Block = tuple[list[str], Tensor, Tensor | None]


def _blocks_of_data(
    model: Model, data: Pictures, skipped: list[datasets.Skipped]
) -> Iterator[Block]:
    known = data.labels(model)
    for batch in datasets.batches(
        data, resize=model.resize, crop=model.input_size, batch_size=_BLOCK, skipped=skipped
    ):
        labels = [known[row] for row in batch.rows]
        found = [label for label in labels if label is not None]
        names = [data.paths[row] for row in batch.rows]
        yield names, batch.images, torch.tensor(found) if len(found) == len(labels) else None


def _blocks_of_tensor(pictures: Tensor, labels: Tensor | None) -> Iterator[Block]:
    for start in range(0, len(pictures), _BLOCK):
        block = pictures[start : start + _BLOCK]
        names = [f"picture {start + i + 1}" for i in range(len(block))]
        yield names, block, None if labels is None else labels[start : start + _BLOCK]


def _attack_block(
    model: Model,
    x: Tensor,
    y: Tensor,
    right: Tensor,
    gradient: Tensor,
    keys: Sequence[int],
    first: int,
    part: _Running,
    settings: Settings,
    slots: int,
    passes: _Passes,
    report: Callable[[int], None],
) -> None:
    """All attacks of one norm on one block; `first` is the number of its first picture."""
    norm, grid = part.norm, part.eps
    n = len(x)
    tried = right.nonzero()[:, 0].tolist()
    fgsm = torch.where(right.cpu(), math.inf, 0.0).double()
    pgd = fgsm.clone()
    best: dict[int, tuple[Fall, Tensor]] = {}

    def fell(i: int, fall: Fall, picture: Tensor) -> None:
        if i not in best or fall.distance < best[i][0].distance:
            best[i] = (fall, picture)

    # FGSM: the gradient is there; each eps costs one pass for what still stands.
    standing = list(tried)
    for eps in grid:
        if not standing:
            break
        rows = torch.tensor(standing, device=x.device)
        radii = torch.full((len(rows),), eps, dtype=torch.float64, device=x.device)
        moved = steepest(x[rows], gradient[rows], radii, norm)
        answers = classify(model, moved, slots=slots).argmax(1)
        passes.forwards += len(rows)
        distances = balls.distance(x[rows], moved, norm).tolist()
        wrong = (answers != y[rows]).tolist()
        for j, i in enumerate(standing):
            if wrong[j]:
                fgsm[i] = distances[j]
                fell(i, Fall(first + i, distances[j], "fgsm", int(answers[j]), 1), moved[j])
        standing = [i for j, i in enumerate(standing) if not wrong[j]]

    # PGD: down the grid from where FGSM succeeded, or up it if PGD does not succeed there.
    top = len(grid) - 1
    unbeaten: list[int] = []
    decided = n - len(tried)

    def walk(i: int, k: int) -> Job:
        return Job(x[i], int(y[i]), grid[k], keys[i], (i, k), known_right=True)

    def done(job: Job, outcome: Outcome) -> Job | None:
        nonlocal decided
        i, k = job.tag
        passes.forwards += outcome.forwards
        passes.backwards += outcome.backwards
        beaten = math.isfinite(pgd[i])
        if outcome.success:
            d = float(balls.distance(job.picture[None], outcome.picture[None], norm))
            pgd[i] = min(float(pgd[i]), d)
            part.late += outcome.steps > 0.9 * settings.steps * settings.restarts
            fell(i, Fall(first + i, d, "pgd", outcome.predicted, outcome.steps), outcome.picture)
            lower = max((j for j, e in enumerate(grid) if e < d), default=-1)
            if lower >= 0 and lower not in failed[i]:
                return walk(i, lower)
        elif not beaten and k < top:
            failed[i].add(k)
            return walk(i, k + 1)
        elif not beaten:
            unbeaten.append(i)
        decided += 1
        report(decided)
        return None

    failed: dict[int, set[int]] = {i: set() for i in tried}
    begin = {i: min((k for k, e in enumerate(grid) if e >= float(fgsm[i])), default=top)
             for i in tried}  # fmt: skip
    search(model, [walk(i, begin[i]) for i in tried], settings, slots=slots, done=done)

    # A ball that holds every picture: whoever stands here shows a failing attack.
    whole = 1.0 if norm == "linf" else math.sqrt(x[0].numel())

    def last(job: Job, outcome: Outcome) -> None:
        passes.forwards += outcome.forwards
        passes.backwards += outcome.backwards
        part.standing_at_most += not outcome.success

    jobs = [Job(x[i], int(y[i]), whole, keys[i], None, known_right=True) for i in unbeaten]
    search(model, jobs, settings, slots=slots, done=last)

    part.noise.append(_noise(model, x, y, tried, keys, grid, norm, slots, passes))
    part.smallest["fgsm"].append(fgsm)
    part.smallest["pgd"].append(pgd)
    part.falls.update({first + i: fall for i, (fall, _) in best.items()})
    if best:
        order = sorted(best)
        rounded = images.quantise(torch.stack([best[i][1] for i in order]))
        answers = classify(model, rounded.to(x.dtype), slots=slots).argmax(1)
        passes.forwards += len(order)
        part.survive_8bit += int((answers != y[torch.tensor(order, device=y.device)]).sum())
    block = [
        Fall(**{**fall.__dict__, "original": x[i].cpu(), "adversarial": picture.cpu()})
        for i, (fall, picture) in sorted(best.items(), key=lambda e: e[1][0].distance)[:SHOWN]
    ]
    part.easiest = sorted(part.easiest + block, key=lambda f: (f.distance, f.row))[:SHOWN]


def _noise(
    model: Model,
    x: Tensor,
    y: Tensor,
    tried: Sequence[int],
    keys: Sequence[int],
    grid: Sequence[float],
    norm: str,
    slots: int,
    passes: _Passes,
) -> Tensor:
    """(len(grid), N) bool: right under noise; a picture wrong when clean counts as wrong."""
    right = torch.zeros(len(grid), len(x), dtype=torch.bool)
    if not tried:
        return right
    rows = torch.tensor(tried, device=x.device)
    for k, eps in enumerate(grid):
        streams = (balls.generator(keys[i], 1_000_000 + k) for i in tried)
        noisy = torch.stack(
            [balls.random_noise(x[i], eps, norm, s) for i, s in zip(tried, streams, strict=True)]
        )
        answers = classify(model, noisy, slots=slots).argmax(1)
        passes.forwards += len(rows)
        right[k, rows.cpu()] = (answers == y[rows]).cpu()
    return right


def _with_doubts(result: Audit) -> Audit:
    """The audit with what speaks against it, in words."""
    doubts = list(result.warnings)
    n, right = len(result.names), int(result.clean_right.sum())
    if result.own_labels:
        doubts.append(
            "there are no labels: the model's own clean answers stand in for them, so accuracy "
            "means agreement with itself and is 100% at eps 0 by construction"
        )
    if right < 30:
        doubts.append(f"only {right} pictures are right when clean: the intervals are wide")
    if result.zero_gradients:
        doubts.append(
            f"the gradient is exactly 0 at {result.zero_gradients} of {right} clean pictures: "
            "the model hides it (rounding, saturation?), and gradient attacks find too little"
        )
    for part in result.norms:
        name = NORM_NAMES[part.norm]
        for eps in part.eps:
            fgsm, pgd = part.right("fgsm", eps), part.right("pgd", eps)
            if pgd - fgsm > max(1, 0.01 * n):
                doubts.append(
                    f"{name} {eps_text(eps, part.norm)}: one step (FGSM) fools {pgd - fgsm} "
                    "pictures more than PGD does, a sign of masked gradients or of too few steps"
                )
                break
        if part.standing_at_most > max(1, 0.02 * right):
            doubts.append(
                f"{name}: {part.standing_at_most} pictures stand even when every pixel may change "
                "at will, where accuracy must be near 0: the attack fails, the model may not be "
                "robust at all"
            )
        attacked = [k for k, eps in enumerate(part.eps)
                    if int(part.noise_right[k].sum()) < part.right(None, eps)]  # fmt: skip
        if attacked:
            doubts.append(
                f"{name} {eps_text(part.eps[attacked[0]], part.norm)}: random noise does more "
                "harm than the attacks, which have therefore failed"
            )
        if part.late > max(1, 0.05 * right):
            doubts.append(
                f"{name}: {part.late} of PGD's successes came in the last tenth of its steps; "
                "more steps would find more"
            )
    return Audit(**{**result.__dict__, "warnings": tuple(doubts)})
