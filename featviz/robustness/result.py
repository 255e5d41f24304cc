"""`Audit`: robust accuracy of a model with everything that speaks for and against it.

Every robust accuracy is an upper bound ("at most"): an attack shows that a picture is not robust,
never that it is. Numbers, tables and files are here; `norm_audit` holds what one norm's attacks
found, `figures` draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from featviz import results
from featviz.data.labels import LabelReport
from featviz.robustness import figures
from featviz.robustness.masking import Check
from featviz.robustness.norm_audit import (
    ClassAccuracy,
    Confusion,
    NormAudit,
    class_accuracies,
    confusions,
)
from featviz.robustness.self_test import SelfTest
from featviz.statistics import Share, median, share
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN_CLASSES = 24
_ENOUGH = 3  # pictures of a class before it is drawn
_SHARED_NUMBERS = {"clean accuracy", "seconds"}  # of parts, which the audit has itself


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
    predicted_labels: bool
    """the labels are the model's predictions on the clean pictures, since none were given"""
    clean: Tensor
    """(N,) predictions on the clean pictures"""
    second_choice: Tensor
    """(N,) the best other class of the clean pictures"""
    margins: Tensor
    """(N,) the label's logit minus the best other one, clean"""
    norms: tuple[NormAudit, ...]
    checks: tuple[Check, ...]
    self_test: SelfTest
    part_results: Mapping[str, results.Result]
    """corruptions, universal, transfer, diagnosis: those that were made"""
    forwards: int
    backwards: int
    memory: float
    """peak memory of the process (on CUDA: of the device) in bytes"""
    precision: Mapping[str, str]
    """of the search and of the judgement"""
    seconds: float
    resumed: int
    """pieces of work that an earlier, interrupted run had finished"""
    label_report: LabelReport | None = None
    """how the data's folders fit the classes; None for a tensor"""

    @property
    def title(self) -> str:
        return f"Audit of {self.model_name} on {self._pictures} of {self.data_name}"

    @property
    def _pictures(self) -> str:
        return counted(len(self.names), "picture")

    @property
    def parts(self) -> Mapping[str, results.Result]:
        return self.part_results

    @property
    def clean_correct(self) -> Tensor:
        """(N,) bool."""
        return self.clean == self.labels

    @property
    def clean_accuracy(self) -> Share:
        return share(int(self.clean_correct.sum()), len(self.names))

    @cached_property
    def class_rows(self) -> list[ClassAccuracy]:
        """One row a class that occurs, least robust first, at the first norm's `half_eps`."""
        return class_accuracies(self.norms[0], self.labels, self.norms[0].half_eps)

    @cached_property
    def confusions(self) -> list[Confusion]:
        """Labels and adversarial predictions of the first norm, commonest pair first."""
        return confusions(self.norms[0], self.labels, self.second_choice)

    def numbers(self) -> dict[str, results.Number]:
        n = len(self.names)
        what = "agreement with itself, by construction" if self.predicted_labels else "no attack"
        found = {"clean accuracy": self.clean_accuracy.number(what)}
        for norm in self.norms:
            middle = median(norm.scale * norm.distance[norm.distance > 0])
            found[f"median {norm.name} distance"] = middle.number(
                norm.unit,
                "half of the pictures that are right when clean are fooled within it; "
                f"{middle.censored} were not fooled at any distance",
            )
        for norm in self.norms:
            found |= self._norm_numbers(norm)
        for name, part in self.parts.items():
            own = part.numbers()
            found |= {f"{name}: {k}": v for k, v in own.items() if k not in _SHARED_NUMBERS}
        flagged = sum(check.flagged for check in self.checks)
        search, judge = self.precision["search"], self.precision["judge"]
        return found | {
            "self-test": results.Number(
                "passed" if self.self_test.passed else "FAILED", "", self.self_test.line
            ),
            "checks flagged": results.Number(
                flagged,
                f"of {len(self.checks)}",
                "signs that an attack failed or that gradients are masked",
            ),
            "forward passes": results.Number(
                self.forwards,
                "",
                f"of single pictures, {self.forwards / max(n, 1):.0f} per picture, by attacks and "
                "checks (without the parts)",
            ),
            "backward passes": results.Number(
                self.backwards, "", f"{self.backwards / max(n, 1):.0f} per picture"
            ),
            "memory": results.Number(round(self.memory / 2**20), "MiB", "peak"),
            "seconds": results.Number(
                round(self.seconds, 1), "s", f"searched in {search}, judged in {judge}"
            ),
        }

    def _norm_numbers(self, norm: NormAudit) -> dict[str, results.Number]:
        n = len(self.names)
        found = {}
        for eps in norm.eps:
            meaning = "at most"
            if norm.has_8bit(eps):
                meaning += f"; between 8-bit pictures {100 * norm.correct_8bit(eps) / n:.1f}%"
            accuracy = share(norm.correct(eps), n)
            found[f"robust accuracy {norm.name} {norm.text(eps)}"] = accuracy.number(meaning)
        fooled = share(int(norm.fools_8bit.sum()), int(norm.fooled.sum()))
        found[f"{norm.name} fooled in 8 bits"] = fooled.number(
            "adversarial pictures that still fool when rounded as a file stores them"
        )
        return found

    def plot(self) -> Figure:
        return figures.plot_curves(self.norms)

    def write(self, folder: results.Folder) -> None:
        self._write_figures(folder)
        self._write_examples(folder)
        self._write_class_figures(folder)

    def tables(self) -> Iterator[results.Table]:
        yield from self._accuracy_table()
        yield from self._certificates_table()
        yield from self._class_tables()
        yield from self._checks_tables()

    def _write_figures(self, folder: results.Folder) -> None:
        folder.figure(
            "curves.svg",
            self.plot(),
            caption=f"Robust accuracy of {self._pictures} against the size of the "
            "change, an upper bound. Blue: all attacks, each picture until the smallest "
            "adversarial change found for it, with the 95% Wilson band; diamonds: eps at which a "
            "second strong attack tried the pictures that were left. Orange: one step (FGSM). "
            "Green: random noise of that size. Pictures wrong when clean are wrong at eps 0.",
            alt="Curves of accuracy falling with eps: noise highest, FGSM below, all attacks "
            "lowest",
        )
        estimated = [norm for norm in self.norms if norm.estimated.any()]
        if estimated:
            folder.figure(
                "distances.svg",
                figures.plot_distances(estimated, self.margins),
                caption="Each dot a picture: the smallest change found against the linear estimate "
                "(clean margin over the gradient's dual norm). On the diagonal the model is as "
                "good as linear over that distance; above it, it is curved or its gradient masked.",
                alt="Scatter of found distance against the linear estimate",
            )

    def _write_examples(self, folder: results.Folder) -> None:
        for norm in self.norms:
            sheets = {"least": norm.least_robust, "most": norm.most_robust}
            for word, examples in sheets.items():
                if examples:
                    of = "" if word == "least" else " of those that were fooled"
                    folder.figure(
                        f"{word}-robust-{norm.norm}.svg",
                        figures.plot_examples(norm, examples, self.labels, self.classes),
                        caption=f"The {word} robust pictures{of} in {norm.name}: original, change "
                        "(times the factor above it, around mid-gray), adversarial. Titles: the "
                        "label, the size of the change, the prediction.",
                        alt=f"{word} robust pictures with their changes",
                    )

    def _write_class_figures(self, folder: results.Folder) -> None:
        rows = [row for row in self.class_rows if row.n >= _ENOUGH]
        overall = share(self.norms[0].correct(self.norms[0].half_eps), len(self.names))
        if len(rows) > 2:
            folder.figure(
                "classes.svg",
                figures.plot_classes(rows[:_SHOWN_CLASSES], overall, self._where, self.classes),
                caption="Robust accuracy of each class, an upper bound, least robust first (at "
                f"most {_SHOWN_CLASSES} classes, of those with {_ENOUGH} pictures or more). Dot "
                "and bar: shrunk towards the share of all classes, the more the fewer pictures a "
                "class has (Beta prior fitted on all), with 95% credible interval; circle: not "
                "shrunk; tick: clean. Dotted: all pictures.",
                alt="Dot plot of robust accuracy for each class",
            )
        if self.confusions and self.confusions[0].pictures > 1:
            folder.figure(
                "confusions.svg",
                figures.plot_confusions(self.confusions[: _SHOWN_CLASSES // 2], self.classes),
                caption="The commonest pairs of label and prediction under the smallest change. "
                "Dark: it was the model's second choice already.",
                alt="Bars of the commonest pairs of label and adversarial prediction",
            )

    def _accuracy_table(self) -> Iterator[results.Table]:
        n = len(self.names)
        rows: list[tuple[object, ...]] = []
        for norm in self.norms:
            counts = norm.counts()
            for k, eps in enumerate((0.0, *norm.eps)):
                for attack, along in counts.items():
                    right = along[k]
                    if right is not None:
                        s = share(right, n)
                        line = (attack, right, n, s.value, s.low, s.high)
                        rows.append((norm.norm, eps, norm.text(eps), *line))
        yield results.Table(
            "accuracy.csv",
            ("norm", "eps", "eps_text", "attack", "right", "n", "accuracy", "low", "high"),
            rows,
            caption="Robust accuracy at each eps, an upper bound, with 95% Wilson interval: under "
            "all attacks; the minimal-distance search alone; attacks between 8-bit pictures; one "
            "step (FGSM); random noise.",
        )

    def _certificates_table(self) -> Iterator[results.Table]:
        """One row for each picture and norm: what is needed to verify an adversarial example."""

        def finite(value: Tensor) -> object:
            return float(value) if math.isfinite(value) else ""

        header = (
            "picture norm label clean margin distance distance_text predicted attack by_logits "
            "fools_8bit distance_8bit estimate box judge sha256"
        )
        rows = []
        for norm in self.norms:
            for i in norm.distance.argsort(stable=True).tolist():
                distance, fooled = norm.distance[i], bool(norm.fooled[i])
                rows.append(
                    (
                        self.names[i],
                        norm.norm,
                        self.classes[int(self.labels[i])],
                        self.classes[int(self.clean[i])],
                        float(self.margins[i]),
                        finite(distance),
                        norm.text(float(distance)) if math.isfinite(distance) else "not fooled",
                        self.classes[int(norm.predicted[i])] if fooled else "",
                        norm.attack[i],
                        finite(norm.margin[i]) if fooled else "",
                        int(norm.fools_8bit[i]) if fooled else "",
                        finite(norm.distance_8bit[i]),
                        finite(norm.estimate[i]),
                        "[0, 1]",
                        self.precision["judge"],
                        norm.sha256[i],
                    )
                )
        yield results.Table(
            "certificates.csv",
            header.split(),
            rows,
            caption="Every picture in every norm, least robust first: the smallest adversarial "
            "change found (float64; 0: wrong when clean; empty: none found), the prediction and by "
            "how many logits it leads, which attack, whether it fools when rounded to 8 bits, the "
            "smallest change found between 8-bit pictures, the linear estimate, and the hash of "
            "the adversarial values.",
        )

    @property
    def _where(self) -> str:
        norm = self.norms[0]
        return f"{norm.name} eps {norm.text(norm.half_eps)}"

    def _class_tables(self) -> Iterator[results.Table]:
        rows = []
        for row in self.class_rows:
            s = share(row.robust, row.n)
            predicted = "; ".join(f"{self.classes[c]} ({k})" for c, k in row.predicted[:5])
            counts = (row.n, row.clean, row.robust, s.low, s.high)
            shrunk = (row.shrunk, row.low, row.high)
            rows.append((self.classes[row.label], *counts, *shrunk, predicted))
        header = "class n clean_right right wilson_low wilson_high shrunk low high predicted"
        yield results.Table(
            "classes.csv",
            header.split(),
            rows,
            caption=f"Classes, least robust first, at {self._where}: pictures, right when clean, "
            "right under attack (at most) with Wilson interval, the share shrunk towards that of "
            "all classes with credible interval, and the adversarial predictions.",
        )
        yield results.Table(
            "confusions.csv",
            ("class", "predicted", "pictures", "second_choice"),
            (
                (self.classes[c.label], self.classes[c.predicted], c.pictures, c.second_choice)
                for c in self.confusions
            ),
            caption=f"Smallest changes in {self.norms[0].name}: how many pictures of a class are "
            "predicted as which other, and for how many of them that was the second choice.",
        )

    def _checks_tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "checks.csv",
            ("check", "verdict", "value", "limit", "what", "remedy"),
            (
                (
                    c.name,
                    "flagged" if c.flagged else "not measured" if c.value is None else "passed",
                    "" if c.value is None else c.value,
                    c.limit,
                    c.meaning,
                    c.remedy,
                )
                for c in self.checks
            ),
            caption="Checks of this audit: signs of a failed attack or of masked gradients "
            "(Athalye et al. 2018; I1 to I6: Pintor et al. 2022).",
        )
        rows: list[tuple[object, ...]] = []
        for norm in self.norms:
            for level in norm.convergence:
                value = "" if level.median is None else level.median
                rows.append((norm.norm, "median distance after steps", level.steps, "", value))
            for a in norm.second_attacks:
                black_box = (a.black_box_tried, a.black_box_fooled)
                rows += [
                    (
                        norm.norm,
                        f"left by the search, fooled by {a.attack}",
                        a.eps,
                        a.tried,
                        a.fooled,
                    ),
                    (
                        norm.norm,
                        f"of these in the last tenth of {a.attack}",
                        a.eps,
                        a.fooled,
                        a.late,
                    ),
                    (norm.norm, "left by both, fooled by the black box", a.eps, *black_box),
                ]
        yield results.Table(
            "convergence.csv",
            ("norm", "what", "eps_or_steps", "pictures", "value"),
            rows,
            caption="Would more steps or attacks find more? Median distance with a quarter, half "
            "and all of the steps (same few pictures); pictures left by the search and fooled by "
            "the second attack or by the black box; successes of the second attack in its last "
            "tenth of steps.",
        )


def audit_warnings(audit: Audit) -> list[str]:
    """What limits an audit, in words: its data, attacks that disagree, checks that are flagged."""
    found = [] if audit.self_test.passed else [audit.self_test.line]
    n, right = len(audit.names), int(audit.clean_correct.sum())
    if audit.predicted_labels:
        found.append(
            "there are no labels: the model's predictions on the clean pictures are used instead, "
            "so accuracy means agreement with itself and is 100% at eps 0 by construction"
        )
    if right < 30:
        found.append(f"only {counted(right, 'picture')} right when clean: the intervals are wide")
    for norm in audit.norms:
        for a in norm.second_attacks:
            if a.fooled > max(1, 0.01 * n):
                found.append(
                    f"second attack stronger than the search: at {norm.name} {norm.text(a.eps)} "
                    f"{a.attack} fools {counted(a.fooled, 'picture')} ({100 * a.fooled / n:.1f} "
                    "points) that the search did not; the curve includes them there, but may be "
                    "too high elsewhere: take more steps"
                )
                break
        if len(norm.convergence) > 1:
            half, full = norm.convergence[-2:]
            if half.median and full.median and full.median < 0.95 * half.median:
                gained = 100 * (1 - full.median / half.median)
                found.append(
                    f"not converged: from {half.steps} to {full.steps} steps the median "
                    f"{norm.name} distance fell by {gained:.0f}%; more steps would find smaller "
                    "changes"
                )
    return [*found, *(check.warning for check in audit.checks if check.flagged)]
