"""Mean corruption error (mCE), in units of AlexNet's published errors on ImageNet-C.

The published error rates are those of torchvision's AlexNet on the 50,000 validation pictures
under each corruption, 1,000 classes, 224 pixels. Severity is not monotone for snow and
elastic_transform: their constants are not, and neither are AlexNet's errors.

    Hendrycks and Dietterich, 2019, section 4.1 (mCE and relative mCE)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from featviz.corruptions.constants import ALEXNET_ERRORS, CORRUPTIONS
from featviz.errors import UserError

ALEXNET_CLEAN_ERROR = 0.43478
"""torchvision's AlexNet on the clean pictures: 56.522% right"""
VALID_SIDE = 224
"""pixels of the pictures for which the errors apply"""


@dataclass(frozen=True)
class MeanCorruptionError:
    """Means of a table of error rates."""

    mean: float
    """plain mean of the error rates: compares models on the same pictures"""
    relative_mean: float | None
    """mean of (error - clean error); None without a clean error"""
    mce: float | None
    """in units of AlexNet's errors (1 is AlexNet); None where those do not apply"""
    relative_mce: float | None
    """the same for the error beyond the clean error"""
    corruptions: tuple[str, ...]
    """over which it is taken"""


def mean_corruption_error(
    errors: Mapping[str, Sequence[float]],
    *,
    clean: float | None = None,
    side: int | None = None,
) -> MeanCorruptionError:
    """Mean corruption error from the error rates at severities 1 to 5 of each corruption.

    Args:
        errors: Name -> five error rates in [0, 1]. Corruptions that AlexNet's table lacks count for
            the plain means only.
        clean: The error rate without corruption.
        side: Of the pictures, in pixels. AlexNet's errors are the unit of mCE at 224 pixels only;
            at another side `mce` and `relative_mce` are None.

    Raises:
        UserError: Rates are out of range or not five.
    """
    if not errors:
        raise UserError("there are no errors to take a mean of")
    for name, rates in errors.items():
        if len(rates) != 5 or any(not 0 <= rate <= 1 for rate in rates):
            raise UserError(f"{name}: five error rates in [0, 1] are needed, got {list(rates)}")
    every = [rate for rates in errors.values() for rate in rates]
    mean = fmean(every)
    known = tuple(name for name in CORRUPTIONS if name in errors)
    mce = relative = None
    if side == VALID_SIDE and known:
        mce = fmean(sum(errors[n]) / sum(ALEXNET_ERRORS[n]) for n in known)
        if clean is not None:
            relative = fmean(
                (sum(errors[n]) - 5 * clean) / (sum(ALEXNET_ERRORS[n]) - 5 * ALEXNET_CLEAN_ERROR)
                for n in known
            )
    return MeanCorruptionError(
        mean=mean,
        relative_mean=None if clean is None else mean - clean,
        mce=mce,
        relative_mce=relative,
        corruptions=tuple(errors),
    )
