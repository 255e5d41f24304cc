"""Calibration: whether a model is right as often as its confidence says.

In: the probability that a model gave its prediction, and whether that was right. Out: the expected
calibration error with its interval, and the bins of a reliability diagram.

    Guo et al., "On Calibration of Modern Neural Networks", 2017 (arXiv:1706.04599)
    Bröcker and Smith, "Increasing the Reliability of Reliability Diagrams", 2007, for what a
        calibrated model of the same confidences would show
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from featviz import plotting
from featviz.results import Number
from featviz.statistics import Share, share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 15
_RESAMPLES = 1000


class Bin(NamedTuple):
    """Predictions of similar confidence."""

    low: float
    high: float
    confidence: float
    """their mean"""
    right: Share


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy."""

    confidences: Tensor
    """(N,) probability of the predicted class, in [0, 1]"""
    right: Tensor
    """(N,) bool: the prediction is the label"""

    @property
    def error(self) -> float:
        """Expected calibration error: mean |accuracy - confidence| of 15 equal bins, weighted by
        their counts."""
        return float(_errors(self.confidences, self.right[None].double())[0])

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95% of the error over resampled pictures."""
        generator = torch.Generator().manual_seed(0)
        n = len(self.right)
        drawn = (torch.randint(n, (n,), generator=generator) for _ in range(_RESAMPLES))
        found = [_errors(self.confidences[i], self.right[i][None].double()) for i in drawn]
        low, high = torch.cat(found).quantile(torch.tensor([0.025, 0.975], dtype=torch.double))
        return float(low), float(high)

    @cached_property
    def expected_if_calibrated(self) -> tuple[float, float]:
        """Mean and 95% point of the error of a calibrated model with the same confidences.

        It is above 0, and the more so the fewer pictures there are: in each bin chance alone moves
        the accuracy away from the confidence.
        """
        generator = torch.Generator().manual_seed(0)
        wanted, n = self.confidences.double(), len(self.right)
        drawn = (torch.rand(n, generator=generator, dtype=torch.double) for _ in range(_RESAMPLES))
        errors = torch.cat([_errors(wanted, (u < wanted)[None].double()) for u in drawn])
        return float(errors.mean()), float(errors.quantile(0.95))

    @property
    def bins(self) -> list[Bin]:
        """The bins that hold predictions, in rising order of confidence."""
        place = _places(self.confidences)
        found = []
        for k in place.unique().tolist():
            mine = place == k
            right = share(int(self.right[mine].sum()), int(mine.sum()))
            mean = float(self.confidences[mine].double().mean())
            found.append(Bin(k / BINS, (k + 1) / BINS, mean, right))
        return found

    def numbers(self) -> dict[str, Number]:
        low, high = self.interval
        mean, largest = self.expected_if_calibrated
        confidence, n = float(self.confidences.double().mean()), len(self.right)
        accuracy = float(self.right.double().mean())
        surer = "surer than right" if confidence > accuracy else "less sure than right"
        return {
            "calibration error": Number(
                self.error,
                "fraction",
                f"mean gap between confidence and accuracy ({BINS} bins); a calibrated model with "
                f"these confidences would show {100 * mean:.1f}% on so many pictures, and below "
                f"{100 * largest:.1f}% in 95 of 100 draws",
                low,
                high,
                n,
            ),
            "mean confidence": share(float(self.confidences.double().sum()), n).estimate(
                f"of the predictions: {surer} ({100 * accuracy:.1f}%)"
            ),
        }

    def plot(self) -> Figure:
        """The reliability diagram over a histogram of the confidences."""
        figure = plotting.new_figure(4.2, 4.6)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 100], [0, 100], color=plotting.INK, linewidth=1, linestyle=":")
        for one in self.bins:
            x = 100 * one.confidence
            ends = [100 * one.right.low, 100 * one.right.high]
            upper.plot([x, x], ends, color=plotting.SKY, linewidth=2)
            upper.plot(x, 100 * (one.right.value or 0.0), "o", color=plotting.BLUE, markersize=4)
        upper.set_ylim(-2, 102)
        upper.set_xlim(-2, 102)
        plotting.lines(upper, xlabel="", ylabel="accuracy (%)")
        width = 100 / BINS
        for one in self.bins:
            lower.bar(100 * one.low, one.right.n, width, align="edge", color=plotting.SKY)
        plotting.lines(lower, xlabel="confidence (%)", ylabel="pictures")
        lower.yaxis.get_major_locator().set_params(integer=True)
        return figure


def _places(confidences: Tensor) -> Tensor:
    """The bin of each confidence; a bin holds its upper end."""
    return ((confidences.double() * BINS).ceil().long() - 1).clamp(0, BINS - 1)


def _errors(confidences: Tensor, right: Tensor) -> Tensor:
    """Expected calibration errors (R,) of R draws of what was right (R, N), in {0, 1}."""
    place = _places(confidences)
    gaps = right - confidences.double()
    sums = gaps.new_zeros(len(right), BINS).index_add_(1, place, gaps)
    return sums.abs().sum(1) / len(confidences)
