"""`UniversalPerturbation`: one change for all pictures, with its rates, tables and figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from featviz import results
from featviz.attacks import figures
from featviz.attacks.held_out_result import HeldOutResult
from featviz.attacks.projections import NORM_NAMES, eps_text
from featviz.statistics import Share, share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WORDS = {
    "universal": "universal",
    "shuffled": "its pixels shuffled",
    "noise": "random noise",
    "8 bits": "universal, in 8 bits",
}


@dataclass(frozen=True, kw_only=True, repr=False)
class UniversalPerturbation(HeldOutResult):
    """A perturbation that fools a model on most pictures, and how often."""

    kind: ClassVar[str] = "universal"

    perturbation: Tensor
    """(3, S, S), within eps of 0 in `norm`, exactly"""
    eps: float
    norm: str
    labels: Tensor | None
    """(M,) of the held-out pictures, where there are any"""
    predicted: Mapping[str, Tensor]
    """universal, shuffled, noise, 8 bits -> (M,) predictions for the pictures with it"""
    training_share: Share
    """the same rate on the training pictures"""

    @property
    def title(self) -> str:
        aim = "" if self.target is None else f" towards {self.classes[self.target]}"
        return f"Universal perturbation of {self.model_name}{aim}, {self.size}"

    @property
    def size(self) -> str:
        """ "L∞ 10/255" """
        return f"{NORM_NAMES[self.norm]} {eps_text(self.eps, self.norm)}"

    def rate(self, what: str = "universal") -> Share:
        """Share of the held-out pictures whose prediction changes (a target: becomes it)."""
        return self.fooled(self.predicted[what])

    def accuracy(self, what: str | None = None) -> Share | None:
        """Accuracy on the held-out pictures, clean or with a perturbation; None without labels."""
        if self.labels is None:
            return None
        predicted = self.clean if what is None else self.predicted[what]
        return share(int((predicted == self.labels).sum()), len(self.labels))

    def numbers(self) -> dict[str, results.Number]:
        word = "fooling rate" if self.target is None else "target reached"
        found = {}
        for what in self.predicted:
            name = word if what == "universal" else f"{word}, {_WORDS[what].split(', ')[-1]}"
            found[name] = self.rate(what).number("held-out pictures")
        found[f"{word} in training"] = self.training_share.number("pictures it was made from")
        before, after = self.accuracy(), self.accuracy("universal")
        if before is not None and after is not None:
            found["clean accuracy"] = before.number("held-out pictures")
            found["accuracy with it"] = after.number("held-out pictures")
        label, count = self.commonest[0]
        v = self.perturbation.double()
        return found | {
            "commonest class": results.Number(
                self.classes[label],
                "",
                f"{100 * count / len(self.clean):.0f}% of the predictions with it, "
                f"{100 * self._clean_share(label):.1f}% without",
            ),
            "L2 of it": results.Number(float(v.norm()), "", "in [0, 1] units"),
            "largest change": results.Number(
                255 * float(v.abs().max()), "/255", "of a single value"
            ),
            **self.costs(),
        }

    def _clean_share(self, label: int) -> float:
        return float((self.clean == label).double().mean())

    def caveats(self) -> list[str]:
        """What limits the meaning of the rates."""
        caveats = super().caveats()
        s, trained = self.rate(), self.training_share
        if (trained.value or 0) - (s.value or 0) > 0.1 and trained.low > s.high:
            caveats.append(
                f"it fools {100 * (trained.value or 0):.0f}% of the pictures it was made from but "
                f"{100 * (s.value or 0):.0f}% of the others: more training pictures would make it "
                "stronger"
            )
        if self.eps and s.low <= self.rate("noise").high:
            caveats.append("it does not clearly beat random noise of the same size")
        return caveats

    @property
    def commonest(self) -> list[tuple[int, int]]:
        """(class, how often) of the predictions with the perturbation, the commonest first."""
        counts = Counter(self.predicted["universal"].tolist())
        return sorted(counts.items(), key=lambda e: (-e[1], e[0]))

    def write(self, folder: results.Folder) -> None:
        shown, factor = figures.shown_perturbation(self.perturbation)
        folder.figure(
            "universal.svg",
            self.plot(),
            caption="One change for all pictures: the perturbation "
            f"(times {factor:,.0f}, around mid-gray), and held-out pictures without it and "
            "with it, each with its predicted class. Orange: the prediction has changed.",
            alt="The perturbation as a picture, and pictures before and after it is added",
        )
        folder.figure(
            "rates.svg",
            self.plot_rates(),
            caption="Left: how many held-out pictures "
            + ("change their prediction" if self.target is None else "become the target")
            + ", with 95% Wilson intervals; a shuffled perturbation has the same values at "
            "other places. Middle: the commonest predictions with it (dots: how common they are "
            "without). Right: the share of each training batch, as it was made.",
            alt="Bars of fooling rates, bars of the commonest classes, a rising curve of training",
        )
        folder.figure(
            "perturbation.png",
            shown,
            caption=f"The perturbation alone, times {factor:,.0f} around mid-gray.",
            alt="The perturbation as a picture",
            pixelated=self.perturbation.shape[-1] <= 128,
        )
        folder.arrays(
            "perturbation.npz",
            {"perturbation": self.perturbation.numpy()},
            caption="The perturbation, (3, S, S) float32: add it to pictures in [0, 1] and clip.",
        )

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "pictures.csv",
            ["picture", "label", "clean", *self.predicted],
            (self._row(i) for i in range(len(self.names))),
            caption="Every held-out picture: its label, the model's clean prediction, and those "
            "with the perturbation, the shuffled one, noise, and the saved 8-bit picture.",
        )

    def _row(self, i: int) -> list[object]:
        label = "" if self.labels is None else self.classes[int(self.labels[i])]
        every = (self.clean, *self.predicted.values())
        return [self.names[i], label, *(self.classes[int(each[i])] for each in every)]

    def plot(self) -> Figure:
        """The perturbation, and pictures without it and with it."""
        rows = list(self.shown)
        return figures.before_and_after(
            self.perturbation,
            self.examples,
            (self.examples + self.perturbation).clamp(0, 1),
            self.clean[rows],
            self.predicted["universal"][rows],
            self.classes,
            self.size,
        )

    def plot_rates(self) -> Figure:
        """Fooling rates beside shuffled and random ones, the commonest classes, the training."""
        return figures.universal_rates(
            {_WORDS[what]: self.rate(what) for what in ("noise", "shuffled", "universal")},
            "prediction changed (%)" if self.target is None else "target reached (%)",
            [
                (self.classes[label], count / len(self.clean), self._clean_share(label))
                for label, count in self.commonest[:6]
            ],
            100 * torch.as_tensor(self.trace),
        )
