"""`Audit`: what the audit found, as numbers, figures and tables.

An attack can only show that a picture falls, never that it stands, so every accuracy is "at most".
A picture that is wrong when clean counts as wrong from eps 0 on and has distance 0; one that fell
at some distance counts as fallen at every larger eps, whichever attack found it; one that did not
fall has distance inf.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from torch import Tensor

from featviz import plotting, results
from featviz.attacks.projections import NORM_NAMES, eps_text
from featviz.robustness.masking import Check
from featviz.statistics import Median, Prior, Share, fit_prior, median, rank_correlation, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from featviz.robustness.parts import Section
    from featviz.robustness.self_test import SelfTest

_SPOTS = 24  # classes, pairs in one figure
_ENOUGH = 3  # pictures of a class before it is drawn


class Fall(NamedTuple):
    """A picture beside what it became."""

    row: int
    distance: float
    predicted: int
    original: Tensor
    """(3, H, W)"""
    adversarial: Tensor


class Point(NamedTuple):
    """The curve checked at one eps: the pictures that stood there, attacked once more."""

    eps: float
    attack: str
    tried: int
    fell: int
    late: int
    """of those, in the last tenth of the steps"""
    black_box: int
    """pictures that still stood and were tried without gradients"""
    black_box_fell: int


class Level(NamedTuple):
    """The search repeated with fewer steps, on the same few pictures."""

    steps: int
    median: float | None


@dataclass(frozen=True, kw_only=True)
class NormAudit:
    """What the attacks of one norm found; row i belongs to picture i."""

    norm: str
    eps: tuple[float, ...]
    """the grid, ascending"""
    distance: Tensor
    """(N,) float64: the smallest change by any attack that fools; 0 wrong when clean, inf stands"""
    searched: Tensor
    """(N,) float64: the same by the minimal-distance search alone"""
    attack: tuple[str, ...]
    """which attack found `distance`; "" where none was needed or none succeeded"""
    predicted: Tensor
    """(N,) the class it became, -1 where it stands"""
    fools_8bit: Tensor
    """(N,) bool: the picture of `distance` still fools when rounded to 8 bits"""
    judged: Tensor
    """(N,) float64: by how many logits it fools, in fp32"""
    distance_8bit: Tensor
    """(N,) float64: the smallest change found that 8 bits can hold; inf where none was"""
    estimate: Tensor
    """(N,) float64: margin over the gradient's dual norm, the distance if the model were linear"""
    one_step: Tensor | None
    """(N,) float64: the smallest FGSM of the grid that fools"""
    noise_right: Tensor | None
    """(len(eps), N) bool: right under random noise of that size"""
    points: tuple[Point, ...]
    levels: tuple[Level, ...]
    easiest: tuple[Fall, ...]
    hardest: tuple[Fall, ...]
    sha256: tuple[str, ...]
    """of the adversarial picture's float32 values, "" where there is none"""
    forwards: int
    backwards: int

    @property
    def scale(self) -> float:
        """Distances are told in levels of 255 in L-infinity, as they are else."""
        return 255.0 if self.norm == "linf" else 1.0

    @property
    def unit(self) -> str:
        return {"linf": "/255", "l0": "components"}.get(self.norm, "")

    def standing(self, eps: float) -> Tensor:
        """(N,) bool: right when clean and not known to fall within eps."""
        return (self.distance > eps) & (self.distance > 0)

    def right(self, eps: float) -> int:
        """How many pictures are right at eps against all attacks."""
        return int(self.standing(eps).sum())

    def right_8bit(self, eps: float) -> int:
        """The same against pictures that a file of 8 bits can hold."""
        return int(((self.distance_8bit > eps) & (self.distance_8bit > 0)).sum())

    def text(self, distance: float) -> str:
        """A distance as people write it."""
        return eps_text(distance, self.norm) if self.norm != "l0" else f"{distance:.0f}"


class ClassRow(NamedTuple):
    """A class in the audit."""

    label: int
    n: int
    clean_right: int
    standing: int
    """right at the telling eps of the first norm"""
    shrunk: float
    low: float
    high: float
    becomes: tuple[tuple[int, int], ...]
    """(class, pictures) that its pictures fall into, most first"""


@dataclass(frozen=True, kw_only=True, repr=False)
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
    runner_up: Tensor
    """(N,) the best other class of the clean pictures"""
    margins: Tensor
    """(N,) the label's logit minus the best other one, clean"""
    norms: tuple[NormAudit, ...]
    checks: tuple[Check, ...]
    selftest: SelfTest
    sections: tuple[Section, ...]
    """further parts"""
    forwards: int
    backwards: int
    memory: float
    """most bytes that the process (on CUDA: the device) held"""
    precision: Mapping[str, str]
    """of the search and of the judge"""
    seconds: float
    resumed: int
    """pieces of work taken over from a run that was stopped"""

    @property
    def title(self) -> str:
        return f"Audit of {self.model_name} on {len(self.names)} pictures of {self.data_name}"

    @property
    def clean_right(self) -> Tensor:
        """(N,) bool."""
        return self.clean == self.labels

    def median(self, part: NormAudit) -> Median:
        """Of the pictures that are right when clean; those that stand are kept as larger."""
        return median(part.distance[self.clean_right])

    def telling_eps(self, part: NormAudit) -> float:
        """The grid point at which about half of what was right still stands."""
        half = int(self.clean_right.sum()) / 2
        return min(part.eps, key=lambda eps: abs(part.right(eps) - half))

    def numbers(self) -> dict[str, results.Number]:
        n, right = len(self.names), int(self.clean_right.sum())
        clean = share(right, n)
        what = "agreement with itself, by construction" if self.own_labels else "unattacked"
        found = {
            "clean accuracy": results.Number(
                clean.value, "fraction", f"{what}; 95% interval {clean.interval}, n = {n}"
            )
        }
        for part in self.norms:
            name = NORM_NAMES[part.norm]
            middle = self.median(part)
            ends = [part.scale * end for end in (middle.low, middle.high)]
            found[f"median {name} distance"] = results.Number(
                None if middle.value is None else part.scale * middle.value,
                part.unit,
                f"half of the {middle.n} pictures that are right when clean fall within it; "
                f"interval {ends[0]:.3g} to {ends[1]:.3g}, {middle.censored} did not fall at all",
            )
        for part in self.norms:
            name = NORM_NAMES[part.norm]
            for eps in part.eps:
                s, eight = share(part.right(eps), n), share(part.right_8bit(eps), n)
                found[f"{name} {part.text(eps)}"] = results.Number(
                    s.value,
                    "fraction",
                    f"accuracy at most this; interval {s.interval}"
                    + (
                        f"; counted on 8-bit pictures {100 * (eight.value or 0):.1f}%"
                        if self._has_8bit(part, eps)
                        else ""
                    ),
                )
            fell = int((part.distance.isfinite() & (part.distance > 0)).sum())
            found[f"{name} falls left by 8 bits"] = results.Number(
                int(part.fools_8bit.sum()),
                f"of {fell}",
                "smallest changes that still fool when rounded as a file holds them",
            )
        for section in self.sections:
            found |= section.numbers()
        tripped = sum(check.tripped for check in self.checks)
        return found | {
            "self-test": results.Number(
                "passed" if self.selftest.passed else "FAILED", "", self.selftest.line
            ),
            "checks tripped": results.Number(
                tripped,
                f"of {len(self.checks)}",
                "signs that an attack failed or that the model hides its gradient",
            ),
            "forward passes": results.Number(
                self.forwards,
                "",
                f"of single pictures, {self.forwards / max(n, 1):.0f} a "
                "picture, by attacks and checks (sections tell their own)",
            ),
            "backward passes": results.Number(
                self.backwards, "", f"{self.backwards / max(n, 1):.0f} a picture"
            ),
            "memory": results.Number(round(self.memory / 2**20), "MiB", "most at one time"),
            "seconds": results.Number(
                round(self.seconds, 1),
                "s",
                f"of computing; search in {self.precision['search']}, judged in "
                f"{self.precision['judge']}",
            ),
        }

    def _has_8bit(self, part: NormAudit, eps: float) -> bool:
        """Whether 8-bit pictures were searched for at eps: in L-infinity from one level on."""
        return bool(part.distance_8bit.isfinite().any()) and (
            part.norm != "linf" or eps * 255 >= 1 - 1e-9
        )

    def write(self, folder: results.Folder) -> None:
        self._write_figures(folder)
        for section in self.sections:
            section.write(folder)
        self._write_tables(folder)

    def _write_figures(self, folder: results.Folder) -> None:
        n = len(self.names)
        folder.figure(
            "curves.svg",
            self.plot(),
            caption=f"Accuracy of {n} pictures against the size of the change, at most: attacks "
            "show that pictures fall, never that they stand. Blue: each picture leaves at the "
            "smallest change found for it, with the 95% Wilson band; black: the check, a second "
            "strong attack on the pictures that stood there. Orange: one step (FGSM). Green: "
            "random noise of that size. A picture wrong when clean counts as wrong at eps 0.",
            alt="Curves of accuracy falling with eps: noise highest, FGSM below, all attacks "
            "lowest",
        )
        if any(self._estimated(part).any() for part in self.norms):
            folder.figure(
                "distances.svg",
                self.plot_distances(),
                caption="Each dot a picture: the smallest change found against what its margin "
                "and gradient alone promise (margin over the gradient's dual norm, the distance "
                "if the model were linear). On the diagonal the model is as good as linear over "
                "that distance; above it it curves away, or hides its gradient.",
                alt="Scatter of found distance against the linear estimate",
            )
        for part in self.norms:
            name = NORM_NAMES[part.norm]
            for word, falls in (("easiest", part.easiest), ("hardest", part.hardest)):
                if falls:
                    order = "least" if word == "easiest" else "most, of those that fell"
                    folder.figure(
                        f"{word}-{part.norm}.png",
                        self.plot_falls(part, falls),
                        caption=f"The pictures that took the {order}, in {name}: original, change "
                        "(times the factor above it, round mid-grey), adversarial. Titles: the "
                        "right class, the size of the change, what the model says then.",
                        alt=f"{word} pictures to fool, with their changes",
                    )
        if len(self._spots()) > 2:
            folder.figure(
                "classes.svg",
                self.plot_classes(),
                caption=f"Accuracy by class under attack, at most, weakest first (at most {_SPOTS} "
                f"classes, of those with {_ENOUGH} pictures or more). Dot and bar: drawn towards "
                "the share of all classes, the more the fewer pictures a class has (Beta prior "
                "fitted on all), with 95% credible interval; circle: the bare share; tick: clean. "
                "Dotted: all pictures.",
                alt="Dot plot of accuracy under attack for each class",
            )
        if self.flows() and self.flows()[0][1][0] > 1:
            folder.figure(
                "confusions.svg",
                self.plot_flows(),
                caption="Where pictures fall: the commonest pairs of right class and what the "
                "smallest change turns it into. Dark: it was the model's second choice already.",
                alt="Bars of the commonest pairs of right class and false class",
            )

    def _write_tables(self, folder: results.Folder) -> None:
        n = len(self.names)
        rows: list[tuple[object, ...]] = []
        for part in self.norms:
            for k, eps in enumerate((0.0, *part.eps)):
                counts = {"all": part.right(eps), "search": self._above(part.searched, eps)}
                if self._has_8bit(part, eps):
                    counts["8-bit"] = part.right_8bit(eps)
                if part.one_step is not None:
                    counts["fgsm"] = self._above(part.one_step, eps)
                if part.noise_right is not None:
                    clean = int(self.clean_right.sum())
                    counts["noise"] = int(part.noise_right[k - 1].sum()) if k else clean
                for attack, right in counts.items():
                    s = share(right, n)
                    rows.append(
                        (part.norm, eps, part.text(eps), attack, right, n, s.value, s.low, s.high)
                    )
        folder.table(
            "accuracy.csv",
            ("norm", "eps", "eps_text", "attack", "right", "n", "accuracy", "low", "high"),
            rows,
            caption="Accuracy at each eps, at most, with 95% Wilson interval: against all attacks; "
            "the minimal-distance search alone; changes that 8 bits can hold; one step (FGSM); "
            "random noise.",
        )
        self._write_certificates(folder)
        folder.table(
            "classes.csv",
            (
                "class",
                "n",
                "clean_right",
                "right",
                "wilson_low",
                "wilson_high",
                "shrunk",
                "low",
                "high",
                "falls_into",
            ),
            (self._class_line(row) for row in self.class_rows()),
            caption=f"Classes, weakest first, at {self._telling_text()}: pictures, right when "
            "clean, right under attack (at most) with Wilson interval, the share drawn towards "
            "all classes with credible interval, and the classes they fall into.",
        )
        folder.table(
            "confusions.csv",
            ("class", "becomes", "pictures", "second_choice"),
            (
                (self.classes[a], self.classes[b], count, second)
                for (a, b), (count, second) in self.flows()
            ),
            caption=f"Smallest changes in {NORM_NAMES[self.norms[0].norm]}: how many pictures of "
            "a class become which other, and for how many of them that was the second choice.",
        )
        folder.table(
            "checks.csv",
            ("check", "verdict", "value", "limit", "what", "remedy"),
            (
                (
                    c.name,
                    "TRIPPED" if c.tripped else "not measured" if c.value is None else "passed",
                    "" if c.value is None else c.value,
                    c.limit,
                    c.meaning,
                    c.remedy,
                )
                for c in self.checks
            ),
            caption="Doubts about this audit, each measured: signs of a failed attack or a hidden "
            "gradient (Athalye et al. 2018; I1 to I6: Pintor et al. 2022).",
        )
        folder.table(
            "convergence.csv",
            ("norm", "what", "eps_or_steps", "pictures", "value"),
            self._convergence_lines(),
            caption="Would more have found more? Median distance with a quarter, half and all of "
            "the steps (same few pictures); pictures that stood and fell to the check or to the "
            "black box; successes of the check in its last tenth of steps.",
        )

    def _write_certificates(self, folder: results.Folder) -> None:
        """One row a picture and norm: what anyone needs to hold a claim against the facts."""
        header = (
            "picture",
            "norm",
            "label",
            "clean",
            "margin",
            "distance",
            "distance_text",
            "becomes",
            "attack",
            "by_logits",
            "fools_8bit",
            "distance_8bit",
            "estimate",
            "box",
            "judge",
            "sha256",
        )

        def finite(value: float) -> object:
            return value if math.isfinite(value) else ""

        rows = []
        for part in self.norms:
            for i in part.distance.argsort(stable=True).tolist():
                d, fell = float(part.distance[i]), bool(part.predicted[i] >= 0)
                rows.append(
                    (
                        self.names[i],
                        part.norm,
                        self.classes[int(self.labels[i])],
                        self.classes[int(self.clean[i])],
                        float(self.margins[i]),
                        finite(d),
                        part.text(d) if math.isfinite(d) else "stands",
                        self.classes[int(part.predicted[i])] if fell else "",
                        part.attack[i],
                        finite(float(part.judged[i])) if fell else "",
                        int(part.fools_8bit[i]) if fell else "",
                        finite(float(part.distance_8bit[i])),
                        finite(float(part.estimate[i])),
                        "[0, 1]",
                        self.precision["judge"],
                        part.sha256[i],
                    )
                )
        folder.table(
            "certificates.csv",
            header,
            rows,
            caption="Every picture in every norm, easiest first: the smallest change found "
            "(float64; 0: wrong when clean; empty: it stands), what it becomes and by how many "
            "logits, which attack, whether it fools when rounded to 8 bits, the smallest change "
            "that 8 bits can hold, the linear estimate, and the hash of the adversarial values.",
        )

    @staticmethod
    def _above(distances: Tensor, eps: float) -> int:
        return int(((distances > eps) & (distances > 0)).sum())

    def _telling_text(self) -> str:
        part = self.norms[0]
        return f"{NORM_NAMES[part.norm]} eps {part.text(self.telling_eps(part))}"

    def _convergence_lines(self) -> list[tuple[object, ...]]:
        rows: list[tuple[object, ...]] = []
        for part in self.norms:
            for level in part.levels:
                rows.append(
                    (
                        part.norm,
                        "median distance after so many steps",
                        level.steps,
                        "",
                        "" if level.median is None else level.median,
                    )
                )
            for p in part.points:
                rows += [
                    (part.norm, f"stood, fell to {p.attack}", p.eps, p.tried, p.fell),
                    (part.norm, f"of these in the last tenth of {p.attack}", p.eps, p.fell, p.late),
                    (
                        part.norm,
                        "still stood, fell to the black box",
                        p.eps,
                        p.black_box,
                        p.black_box_fell,
                    ),
                ]
        return rows

    @cached_property
    def prior(self) -> Prior:
        """The Beta prior of a class's share at the first norm's telling eps."""
        right, n = zip(*self._counts().values(), strict=True)
        return fit_prior(right, n)

    def _counts(self) -> dict[int, tuple[int, int]]:
        part = self.norms[0]
        standing = part.standing(self.telling_eps(part))
        return {
            label: (int(standing[self.labels == label].sum()), int((self.labels == label).sum()))
            for label in sorted(set(self.labels.tolist()))
        }

    def class_rows(self) -> list[ClassRow]:
        """One row a class that occurs, weakest first (by the shrunken share)."""
        part, found = self.norms[0], []
        fallen = part.predicted >= 0
        for label, (right, n) in self._counts().items():
            own = self.labels == label
            into = Counter(part.predicted[own & fallen].tolist())
            found.append(
                ClassRow(
                    label,
                    n,
                    int(self.clean_right[own].sum()),
                    right,
                    *self.prior.shrink(right, n),
                    becomes=tuple(sorted(into.items(), key=lambda e: (-e[1], e[0]))),
                )
            )
        return sorted(found, key=lambda r: (r.shrunk, -r.n, r.label))

    def _spots(self) -> list[ClassRow]:
        """The classes of which there are enough pictures to be drawn."""
        return [row for row in self.class_rows() if row.n >= _ENOUGH]

    def _class_line(self, row: ClassRow) -> list[object]:
        s = share(row.standing, row.n)
        into = "; ".join(f"{self.classes[c]} ({k})" for c, k in row.becomes[:5])
        return [
            self.classes[row.label],
            row.n,
            row.clean_right,
            row.standing,
            s.low,
            s.high,
            row.shrunk,
            row.low,
            row.high,
            into,
        ]

    def flows(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """((class, becomes), (pictures, of these to the second choice)), commonest first."""
        part = self.norms[0]
        rows = (part.predicted >= 0).nonzero()[:, 0].tolist()
        counts: Counter[tuple[int, int]] = Counter()
        second: Counter[tuple[int, int]] = Counter()
        for i in rows:
            pair = int(self.labels[i]), int(part.predicted[i])
            counts[pair] += 1
            second[pair] += pair[1] == int(self.runner_up[i])
        ordered = sorted(counts, key=lambda pair: (-counts[pair], pair))
        return [(pair, (counts[pair], second[pair])) for pair in ordered]

    def plot(self) -> Figure:
        figure = plotting.new_figure(4.3 * len(self.norms), 3.5)
        panels = figure.subplots(1, len(self.norms), sharey=True, squeeze=False)[0]
        for ax, part in zip(panels, self.norms, strict=True):
            self._draw_curves(ax, part)
        panels[0].set_ylabel("accuracy, at most (%)", fontsize=9)
        return figure

    def _draw_curves(self, ax: Axes, part: NormAudit) -> None:
        n, grid = len(self.names), (0.0, *part.eps)
        top = 1.15 * part.eps[-1]
        values = part.distance[part.distance > 0].sort().values
        steps = [0.0, *values[values <= top].tolist(), top]
        heights = [part.right(e) for e in steps]
        shares = [share(k, n) for k in heights]
        x = [part.scale * e for e in steps]
        ax.fill_between(
            x,
            [100 * s.low for s in shares],
            [100 * s.high for s in shares],
            color=plotting.BLUE,
            alpha=0.15,
            linewidth=0,
            step="post",
        )
        ax.step(
            x,
            [100 * k / n for k in heights],
            color=plotting.BLUE,
            linewidth=1.7,
            where="post",
            label="all attacks",
        )
        at = [part.scale * e for e in grid]
        if part.noise_right is not None:
            counts = [int(self.clean_right.sum()), *part.noise_right.sum(1).tolist()]
            ax.plot(
                at,
                [100 * k / n for k in counts],
                color=plotting.GREEN,
                marker="s",
                markersize=3.5,
                linewidth=1.2,
                label="random noise",
            )
        if part.one_step is not None:
            ax.plot(
                at,
                [100 * self._above(part.one_step, e) / n for e in grid],
                color=plotting.ORANGE,
                marker="^",
                markersize=4,
                linewidth=1.2,
                label="one step (FGSM)",
            )
        if part.points:
            ax.plot(
                [part.scale * p.eps for p in part.points],
                [100 * part.right(p.eps) / n for p in part.points],
                "x",
                color=plotting.INK,
                markersize=6,
                markeredgewidth=1.4,
                label="check",
            )
        unit = {"linf": "levels of 255", "l0": "changed components"}.get(
            part.norm, "pictures in [0, 1]"
        )
        plotting.lines(ax, xlabel=f"{NORM_NAMES[part.norm]} eps ({unit})", ylabel="")
        ax.set_xscale("symlog", linthresh=at[1], linscale=0.6)
        ax.set_xlim(0, part.scale * top)
        ax.set_xticks(at, [f"{v:.3g}" for v in at])
        ax.minorticks_off()
        ax.set_ylim(0, 102)
        ax.legend(fontsize=7.5, frameon=False, loc="upper right")
        middle = self.median(part)
        if middle.value is not None and middle.value < part.eps[-1]:
            unit = "/255" if part.norm == "linf" else ""
            ax.annotate(
                f"median {part.scale * middle.value:.3g}{unit} ",
                (part.scale * middle.value, 6),
                ha="right",
                fontsize=7.5,
                color=plotting.BLUE,
            )
            ax.axvline(part.scale * middle.value, color=plotting.BLUE, linewidth=0.8, linestyle=":")

    def _estimated(self, part: NormAudit) -> Tensor:
        fell = part.distance.isfinite() & (part.distance > 0)
        return fell & part.estimate.isfinite() & (part.estimate > 0)

    def plot_distances(self) -> Figure:
        """Found distance against the linear estimate, one panel a norm."""
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        parts = [part for part in self.norms if self._estimated(part).any()]
        figure = plotting.new_figure(3.6 * len(parts), 3.5)
        panels = figure.subplots(1, len(parts), squeeze=False)[0]
        for ax, part in zip(panels, parts, strict=True):
            rows = self._estimated(part)
            x = part.scale * part.estimate[rows].numpy()
            y = part.scale * part.distance[rows].numpy()
            ends = [0.7 * min(x.min(), y.min()), 1.4 * max(x.max(), y.max())]
            ax.plot(ends, ends, color=plotting.INK, linewidth=0.8)
            ax.plot(x, y, "o", color=plotting.BLUE, markersize=3, alpha=0.6, markeredgewidth=0)
            ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
            ax.set_aspect("equal")
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
                axis.set_minor_formatter(NullFormatter())
            unit = " (/255)" if part.norm == "linf" else ""
            plotting.lines(ax, xlabel=f"linear estimate{unit}", ylabel=f"found{unit}")
            tie = rank_correlation(self.margins[rows], part.distance[rows])
            note = f"median ratio {float((part.distance / part.estimate)[rows].median()):.2f}"
            if tie is not None:
                note += f"\nmargin explains: ρ = {tie:.2f}"
            ax.set_title(f"{NORM_NAMES[part.norm]}", fontsize=9, color=plotting.INK)
            ax.text(
                0.04, 0.96, note, transform=ax.transAxes, va="top", fontsize=7.5, color=plotting.INK
            )
        return figure

    def plot_falls(self, part: NormAudit, falls: Sequence[Fall]) -> Figure:
        """Pictures beside what they became: original, change, adversarial."""
        from featviz.attacks.figures import short, shown_perturbation

        count = len(falls)
        figure = plotting.new_figure(1.55 * count + 0.35, 5.2)
        axes = figure.subplots(3, count, squeeze=False)
        for ax, word in zip(axes[:, 0], ("original", "change", "adversarial"), strict=True):
            ax.set_ylabel(word, fontsize=8, color=plotting.INK)
        for c, fall in enumerate(falls):
            change, factor = shown_perturbation(fall.adversarial - fall.original)
            pixelated = fall.original.shape[-1] <= 128
            label, name = self.classes[int(self.labels[fall.row])], self.classes[fall.predicted]
            size = f"{part.scale * fall.distance:.2g}"
            size += "/255" if part.norm == "linf" else f" in {NORM_NAMES[part.norm]}"
            titles = (short(label), f"{size}, × {factor:,.0f}", short(name))
            for ax, picture, title in zip(
                axes[:, c], (fall.original, change, fall.adversarial), titles, strict=True
            ):
                plotting.show_image(ax, picture, title, pixelated=pixelated)
        return figure

    def plot_classes(self) -> Figure:
        """Accuracy by class under attack, shrunken, with intervals."""
        from featviz.attacks.figures import short

        rows = self._spots()[:_SPOTS]
        figure = plotting.new_figure(5.6, 1.0 + 0.2 * len(rows))
        ax = figure.subplots()
        everything: Share = share(
            self.norms[0].right(self.telling_eps(self.norms[0])), len(self.names)
        )
        ax.axvline(
            100 * (everything.value or 0),
            color=plotting.INK,
            linewidth=0.9,
            linestyle=":",
            label="all pictures",
        )
        for y, row in enumerate(rows):
            ax.plot([100 * row.low, 100 * row.high], [y, y], color=plotting.BLUE, linewidth=1.4)
            ax.plot(
                100 * row.shrunk,
                y,
                "o",
                color=plotting.BLUE,
                markersize=5,
                label="under attack, at most" if y == 0 else None,
            )
            ax.plot(
                100 * row.standing / row.n,
                y,
                "o",
                color=plotting.BLUE,
                markersize=5,
                markerfacecolor="none",
                markeredgewidth=0.9,
                label="the same, bare share" if y == 0 else None,
            )
            ax.plot(
                100 * row.clean_right / row.n,
                y,
                "|",
                color=plotting.RED,
                markersize=9,
                markeredgewidth=1.6,
                label="clean" if y == 0 else None,
            )
        names = [f"{short(self.classes[row.label])} (n = {row.n})" for row in rows]
        ax.set_yticks(range(len(rows)), names)
        ax.invert_yaxis()
        plotting.lines(ax, xlabel=f"accuracy at {self._telling_text()} (%)", ylabel="")
        ax.tick_params(axis="y", labelsize=7)
        ax.set_xlim(-2, 102)
        figure.legend(fontsize=7, frameon=False, loc="outside upper center", ncols=4)
        return figure

    def plot_flows(self) -> Figure:
        """The commonest pairs of right class and false class."""
        from featviz.attacks.figures import short

        flows = self.flows()[: _SPOTS // 2]
        figure = plotting.new_figure(6.0, 0.8 + 0.24 * len(flows))
        ax = figure.subplots()
        places = range(len(flows))
        ax.barh(
            places,
            [count for _, (count, _) in flows],
            color=plotting.SKY,
            height=0.66,
            label="any other class",
        )
        ax.barh(
            places,
            [second for _, (_, second) in flows],
            color=plotting.BLUE,
            height=0.66,
            label="the model's second choice",
        )
        ax.set_yticks(
            places, [f"{short(self.classes[a])} → {short(self.classes[b])}" for (a, b), _ in flows]
        )
        ax.invert_yaxis()
        plotting.lines(ax, xlabel="pictures", ylabel="")
        ax.tick_params(axis="y", labelsize=7)
        from matplotlib.ticker import MaxNLocator

        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(fontsize=7, frameon=False, loc="outside upper center", ncols=2)
        return figure


def doubts(audit: Audit) -> list[str]:
    """What speaks against an audit, in words: data, agreement of attacks, checks that tripped."""
    found = [] if audit.selftest.passed else [audit.selftest.line]
    n, right = len(audit.names), int(audit.clean_right.sum())
    if audit.own_labels:
        found.append(
            "there are no labels: the model's own clean answers stand in for them, so accuracy "
            "means agreement with itself and is 100% at eps 0 by construction"
        )
    if right < 30:
        found.append(f"only {right} pictures are right when clean: the intervals are wide")
    for part in audit.norms:
        name = NORM_NAMES[part.norm]
        for p in part.points:
            if p.fell > max(1, 0.01 * n):
                found.append(
                    f"curve beaten by its check: at {name} {part.text(p.eps)} {p.attack} fells "
                    f"{p.fell} pictures ({100 * p.fell / n:.1f} points) that the search had "
                    "standing; the curve includes them there, but may be too high elsewhere: "
                    "take more steps"
                )
                break
        if len(part.levels) > 1:
            half, full = part.levels[-2:]
            if half.median and full.median and full.median < 0.95 * half.median:
                gained = 100 * (1 - full.median / half.median)
                found.append(
                    f"not converged: from {half.steps} to {full.steps} steps the median {name} "
                    f"distance fell by {gained:.0f}%; more steps would find smaller changes"
                )
    found += [check.warning for check in audit.checks if check.tripped]
    return found
