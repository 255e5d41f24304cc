"""What `ablate` returns: accuracy with units silenced, overall and by class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from featviz import results
from featviz.ablation.figures import draw_changes, draw_classes, draw_logits
from featviz.ablation.measured import Measured, PictureLogits
from featviz.ablation.silence import IN_WORDS
from featviz.comparison.paired import LEVEL
from featviz.results import Number, significant
from featviz.statistics import (
    Estimate,
    percentiles,
    resampled_means,
    share,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 3
"""classes hurt most that are named beside a unit"""
NEEDED = 5
"""units that are named beside a class"""


@dataclass(frozen=True, kw_only=True, repr=False)
class Ablation(Measured, results.Result):
    """A net with units silenced, in words, tables and figures."""

    kind: ClassVar[str] = "ablation"

    @property
    def title(self) -> str:
        what = (
            self.names[0]
            if len(self.names) == 1
            else f"{len(self.names)} {self.what} of {self.layer}"
        )
        how = "silenced" if self.how == "zero" else IN_WORDS[self.how]
        return f"{what} {how} in {self.model_name}"

    def numbers(self) -> dict[str, Number]:
        found = {
            "accuracy": self.accuracy.number(
                "predictions of the whole net that are their own labels"
                if self.predicted_labels
                else "the most likely class is right, in the whole net"
            )
        }
        return found | (self._one() if len(self.names) == 1 else self._many()) | self._control()

    def _one(self) -> dict[str, Number]:
        effect = self.effects[0]
        n = effect.flips.n
        worst = self.class_effect(0, self.hurt_most(0)[0])
        return {
            "accuracy silenced": share(effect.flips.second, n).number(f"without {self.names[0]}"),
            "change": effect.change.number("of accuracy, pair by pair"),
            "p": Number(significant(effect.corrected, 3), "", "of McNemar's exact test"),
            "class hurt most": worst.change.number(
                f"{self.classes[int(self.shown_classes[self.hurt_most(0)[0]])]}: change of its "
                f"accuracy, corrected p {worst.corrected:.2g}"
            ),
        }

    def _many(self) -> dict[str, Number]:
        changes = torch.tensor([one.change.value or 0.0 for one in self.effects]).double()
        worst = int(changes.argmin())
        changed = sum(one.corrected < LEVEL for one in self.effects)
        hurt = ((self.class_p < LEVEL) & (self.class_changes < 0)).any(1)
        low, high = percentiles(changes)
        found = {
            "median change": Number(
                round(float(changes.median()), 5),
                "fraction",
                f"of accuracy by one of {len(self.names)}; 95% of them "
                f"{100 * low:+.2f} to {100 * high:+.2f} points",
            ),
            "largest loss": self.effects[worst].change.number(f"change by {self.names[worst]}"),
            "change accuracy": Number(
                changed, "", "of them by McNemar's exact test, corrected for their number"
            ),
            "hurt a class": Number(
                int(hurt.sum()), "", "of them by the test, corrected for all pairs with a class"
            ),
        }
        one, every = self.held_out
        if len(one):
            for name, values, meaning in (
                ("loss of the class hurt most", one, "chosen on half of the pictures, "),
                ("loss of a class on average", every, ""),
            ):
                low, high = percentiles(resampled_means(values[:, None])[:, 0])
                found[name] = Number(
                    round(float(values.double().mean()), 5),
                    "fraction",
                    f"{meaning}measured on the other half; mean over all {len(values)}",
                    low,
                    high,
                    len(values),
                )
        return found

    def _control(self) -> dict[str, Number]:
        if not len(self.control_changes):
            return {}
        low, high = percentiles(self.control_changes)
        return {
            "control": Number(
                round(float(self.control_changes.mean()), 5),
                "fraction",
                f"change of accuracy by {len(self.control_changes)} random choices of as many; "
                "mean and the middle 95% of them",
                low,
                high,
                len(self.control_changes),
            )
        }

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "units.csv",
            (
                *("unit", "accuracy", "change", "low", "high", "fixed", "broken", "p"),
                *("logit_change", "classes_hurt"),
            ),
            [self._row(run) for run in self.worst_first],
            caption="Effect when silenced, the largest loss first: accuracy without the unit, its "
            "change with the paired 95% interval, predictions that became right and wrong, p of "
            "McNemar's exact test (Holm, for all rows), the mean change of the logit of the "
            "picture's class, and the classes that lose most with the change in points.",
        )
        yield results.Table(
            "classes.csv",
            (
                *("unit", "class", "pictures", "before", "after", "change", "low", "high"),
                *("fixed", "broken", "p", "logit_change"),
            ),
            list(self._class_rows()),
            caption="Each silenced unit and each class with a changed prediction, the largest loss "
            "first: accuracy before and after, its change with the paired 95% interval, p of "
            "McNemar's exact test (Holm, for all pairs), and the mean change of the class's logit "
            "on its pictures.",
            parquet=True,
        )
        if len(self.names) > 1:
            yield results.Table(
                "needed.csv",
                ("unit", "class", "needs", "change", "low", "high", "p", "logit_change"),
                list(self._needed()),
                caption="For each class the silenced units whose loss lowers its accuracy most; "
                "columns as in classes.csv.",
            )
        if self.picture is not None:
            yield results.Table(
                "picture.csv",
                ("unit", "class", "before", "after", "change"),
                list(self._picture_rows(self.picture)),
                caption=f"Logits of {self.picture.name}: in each run the classes whose logits "
                "change most.",
            )

    def _row(self, run: int) -> tuple[object, ...]:
        effect = self.effects[run]
        hurt = [k for k in self.hurt_most(run)[:NAMED] if self.class_changes[run, k] < 0]
        named = ", ".join(
            f"{self._class(k)} {100 * float(self.class_changes[run, k]):.0f}".replace(
                "-", "\N{MINUS SIGN}"
            )
            for k in hurt
        )
        return (
            self.names[run],
            round(effect.flips.second / effect.flips.n, 4),
            *_rounded(effect.change),
            effect.flips.fixed,
            effect.flips.broken,
            significant(effect.corrected, 3),
            significant(self.logit_change[run].mean(), 4),
            named,
        )

    def _class(self, column: int) -> str:
        return self.classes[int(self.shown_classes[column])]

    def _class_rows(self) -> Iterator[tuple[object, ...]]:
        fixed, broken = self.fixed_and_broken
        pairs = ((fixed + broken) > 0).nonzero().tolist()
        pairs.sort(key=lambda p: (float(self.class_changes[p[0], p[1]]), p))
        for run, column in pairs:
            flips, change, p = self.class_effect(run, column)
            yield (
                *(self.names[run], self._class(column), flips.n),
                *(round(right / flips.n, 4) for right in (flips.first, flips.second)),
                *_rounded(change),
                *(flips.fixed, flips.broken, significant(p, 3)),
                significant(self.class_logits[run, column], 4),
            )

    def _needed(self) -> Iterator[tuple[object, ...]]:
        for column, label in enumerate(self.shown_classes.tolist()):
            change, logit = self.class_changes[:, column].tolist(), self.class_logits[:, column]
            order = sorted(range(len(change)), key=lambda run: (change[run], float(logit[run])))
            for run in order[:NEEDED]:
                if change[run] >= 0:
                    break
                _, estimate, p = self.class_effect(run, column)
                yield (
                    *(f"logits:{label}", self.classes[label], self.names[run]),
                    *_rounded(estimate),
                    *(significant(p, 3), significant(logit[run], 4)),
                )

    def _picture_rows(self, one: PictureLogits) -> Iterator[tuple[object, ...]]:
        for run in self.worst_first:
            change = one.after[run] - one.before
            for k in change.abs().argsort(descending=True)[:NEEDED].tolist():
                values = (one.before[k], one.after[run, k], change[k])
                yield (self.names[run], self.classes[k], *(significant(v, 4) for v in values))

    def write(self, folder: results.Folder) -> None:
        units = self.names if len(self.names) <= 64 else ()
        many = len(self.names) > 1
        folder.figure(
            "changes.svg",
            self.plot(),
            caption="Left: change of accuracy by each silenced unit, the largest loss first, with "
            "the paired 95% interval"
            + (
                "; the gray band holds 95% of the random choices."
                if len(self.control_after)
                else "."
            )
            + (
                " Right: the loss of the class hurt most beside that of all pictures; classes are "
                "chosen on half of the pictures and measured on the other."
                if many
                else " Right: the classes that lose most."
            ),
            alt="Sorted changes of accuracy, and losses of single classes",
            units=units,
        )
        if many:
            folder.figure(
                "classes.svg",
                draw_classes(self),
                caption="The units that hurt single classes most, and these classes: change of "
                "the class's accuracy in points.",
                alt="A grid of units and classes, red where the class loses",
            )
        if self.picture is not None:
            folder.figure(
                "picture.png",
                self.picture.picture,
                caption=f"{self.picture.name}: the picture whose logits are in picture.csv.",
                alt=self.picture.name,
            )
            folder.figure(
                "picture.svg",
                draw_logits(self, self.picture),
                caption=f"Logits of {self.picture.name}, whole (ring) and silenced (dots).",
                alt="Logits of the most likely classes before and after",
                units=units,
            )
        folder.arrays(
            "ablation.npz",
            {
                "labels": self.labels.numpy(),
                "before": self.before.numpy(),
                "after": self.after.numpy(),
                "logit_change": self.logit_change.numpy(),
                "control_after": self.control_after.numpy(),
                "control_change": self.control_change.numpy(),
                **(
                    {}
                    if self.picture is None
                    else {
                        "picture_before": self.picture.before.numpy(),
                        "picture_after": self.picture.after.numpy(),
                    }
                ),
            },
            caption="Labels, predictions before and after, and the change of the logit of the "
            "picture's class; runs in the order in which they were named.",
        )

    def plot(self) -> Figure:
        return draw_changes(self)


def _rounded(change: Estimate) -> tuple[float, float, float]:
    return round(change.value or 0.0, 4), round(change.low, 4), round(change.high, 4)
