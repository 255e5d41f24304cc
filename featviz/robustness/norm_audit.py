"""What the attacks of one norm found, picture by picture, and what follows for classes.

A picture that is wrong when clean has distance 0 and counts as wrong at every eps; one that an
attack fooled at some distance counts as fooled at every larger eps, whichever attack it was; one
that no attack fooled has distance inf. Attacks give an upper bound of robust accuracy, no more.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from featviz.attacks.projections import NORM_NAMES, eps_text
from featviz.statistics import Median, fit_prior, median


class AdversarialExample(NamedTuple):
    """A picture beside its adversarial copy."""

    row: int
    distance: float
    predicted: int
    original: Tensor
    """(3, H, W)"""
    adversarial: Tensor


class SecondAttack(NamedTuple):
    """Another attack at one eps, on the pictures that the search had not fooled there."""

    eps: float
    attack: str
    tried: int
    fooled: int
    late: int
    """of those, in the last tenth of the steps"""
    black_box_tried: int
    """pictures that were tried without gradients afterwards"""
    black_box_fooled: int


class Convergence(NamedTuple):
    """The search with a number of steps, on the same few pictures."""

    steps: int
    median: float | None


@dataclass(frozen=True, kw_only=True)
class NormAudit:
    """What the attacks of one norm found; row i belongs to picture i."""

    norm: str
    eps: tuple[float, ...]
    """the grid, ascending"""
    distance: Tensor
    """(N,) float64: the smallest adversarial change by any attack; 0 wrong when clean, inf none"""
    search_distance: Tensor
    """(N,) float64: the same by the minimal-distance search alone"""
    attack: tuple[str, ...]
    """which attack found `distance`; "" where none was needed or none succeeded"""
    predicted: Tensor
    """(N,) the class of the adversarial picture, -1 where there is none"""
    fools_8bit: Tensor
    """(N,) bool: the picture of `distance` still fools when rounded to 8 bits"""
    margin: Tensor
    """(N,) float64: by how many logits it fools, in float32"""
    distance_8bit: Tensor
    """(N,) float64: the smallest change found between 8-bit pictures; inf where none was"""
    estimate: Tensor
    """(N,) float64: margin over the gradient's dual norm, the distance if the model were linear"""
    one_step: Tensor | None
    """(N,) float64: the smallest FGSM of the grid that fools"""
    noise_correct: Tensor | None
    """(len(eps), N) bool: classified right under random noise of that size"""
    second_attacks: tuple[SecondAttack, ...]
    convergence: tuple[Convergence, ...]
    least_robust: tuple[AdversarialExample, ...]
    most_robust: tuple[AdversarialExample, ...]
    """of those that were fooled"""
    sha256: tuple[str, ...]
    """of the adversarial picture's float32 values, "" where there is none"""
    forwards: int
    backwards: int

    @property
    def name(self) -> str:
        """ "L∞" """
        return NORM_NAMES[self.norm]

    @property
    def scale(self) -> float:
        """Distances are written in levels of 255 in L-infinity, else as they are."""
        return 255.0 if self.norm == "linf" else 1.0

    @property
    def unit(self) -> str:
        return {"linf": "/255", "l0": "components"}.get(self.norm, "")

    def text(self, distance: float) -> str:
        """A distance as people write it."""
        return eps_text(distance, self.norm) if self.norm != "l0" else f"{distance:.0f}"

    @property
    def fooled(self) -> Tensor:
        """(N,) bool: right when clean, and an adversarial example is known."""
        return self.distance.isfinite() & (self.distance > 0)

    def robust(self, eps: float) -> Tensor:
        """(N,) bool: right when clean, and no adversarial example within eps is known."""
        return above(self.distance, eps)

    def correct(self, eps: float) -> int:
        """How many pictures are right at eps under all attacks."""
        return int(self.robust(eps).sum())

    def correct_8bit(self, eps: float) -> int:
        """The same under attacks between 8-bit pictures."""
        return int(above(self.distance_8bit, eps).sum())

    def has_8bit(self, eps: float) -> bool:
        """Whether 8-bit pictures were searched at eps: in L-infinity from one level on."""
        return bool(self.distance_8bit.isfinite().any()) and (
            self.norm != "linf" or eps * 255 >= 1 - 1e-9
        )

    def counts(self) -> dict[str, list[int | None]]:
        """Attack -> pictures that are right at eps 0 and on the grid; None where not measured."""
        grid = (0.0, *self.eps)

        def along(distance: Tensor) -> list[int | None]:
            return [int(above(distance, eps).sum()) for eps in grid]

        found = {"all": along(self.distance), "search": along(self.search_distance)}
        found["8-bit"] = [self.correct_8bit(eps) if self.has_8bit(eps) else None for eps in grid]
        if self.one_step is not None:
            found["fgsm"] = along(self.one_step)
        if self.noise_correct is not None:
            found["noise"] = [self.correct(0.0), *self.noise_correct.sum(1).tolist()]
        return found

    @property
    def median(self) -> Median:
        """Of the distances of pictures that are right when clean; inf counts as larger than all."""
        return median(self.distance[self.distance > 0])

    @property
    def half_eps(self) -> float:
        """The eps of the grid at which the pictures left are nearest to half of the clean ones."""
        half = self.correct(0.0) / 2
        return min(self.eps, key=lambda eps: abs(self.correct(eps) - half))

    @property
    def estimated(self) -> Tensor:
        """(N,) bool: fooled, and there is a linear estimate of the distance."""
        return self.fooled & self.estimate.isfinite() & (self.estimate > 0)


def above(distance: Tensor, eps: float) -> Tensor:
    """(N,) bool: right when clean and not fooled within eps."""
    return (distance > eps) & (distance > 0)


class ClassAccuracy(NamedTuple):
    """A class in the audit."""

    label: int
    n: int
    clean: int
    """pictures that are right when clean"""
    robust: int
    """pictures that are right at the eps"""
    shrunk: float
    """share of `robust`, shrunk towards that of all classes (beta-binomial), and its interval"""
    low: float
    high: float
    predicted: tuple[tuple[int, int], ...]
    """(class, pictures) of its adversarial pictures, most first"""


class Confusion(NamedTuple):
    """How often pictures of a class are made to look like another."""

    label: int
    predicted: int
    pictures: int
    second_choice: int
    """of these, pictures for which it was the second choice when clean"""


def class_accuracies(found: NormAudit, labels: Tensor, eps: float) -> list[ClassAccuracy]:
    """One row for each class that occurs, least robust first (by the shrunk share)."""
    rows = {label: labels == label for label in sorted(set(labels.tolist()))}
    robust = found.robust(eps)
    right = [int(robust[own].sum()) for own in rows.values()]
    n = [int(own.sum()) for own in rows.values()]
    prior = fit_prior(right, n)
    classes = []
    for (label, own), k, count in zip(rows.items(), right, n, strict=True):
        predicted = Counter(found.predicted[own & found.fooled].tolist())
        classes.append(
            ClassAccuracy(
                label,
                count,
                int((found.distance[own] > 0).sum()),
                k,
                *prior.shrink(k, count),
                predicted=tuple(sorted(predicted.items(), key=lambda item: (-item[1], item[0]))),
            )
        )
    return sorted(classes, key=lambda row: (row.shrunk, -row.n, row.label))


def confusions(found: NormAudit, labels: Tensor, second: Tensor) -> list[Confusion]:
    """Pairs of label and adversarial prediction, commonest first; `second`: (N,) second choices."""
    rows = found.fooled
    pairs = list(zip(labels[rows].tolist(), found.predicted[rows].tolist(), strict=True))
    counts = Counter(pairs)
    seconds = Counter(p for p, c in zip(pairs, second[rows].tolist(), strict=True) if p[1] == c)
    ordered = sorted(counts, key=lambda pair: (-counts[pair], pair))
    return [Confusion(*pair, counts[pair], seconds[pair]) for pair in ordered]
