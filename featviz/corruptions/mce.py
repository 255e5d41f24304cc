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

from featviz.corruptions.constants import CORRUPTIONS
from featviz.errors import UserError

ALEXNET_ERRORS: Mapping[str, tuple[float, float, float, float, float]] = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.94870, 0.98720, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.58430, 0.70048, 0.82108, 0.89750, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.91870, 0.94952),
    "frost": (0.61390, 0.79734, 0.88790, 0.89942, 0.93430),
    "fog": (0.67474, 0.76050, 0.84378, 0.87260, 0.94500),
    "brightness": (0.45140, 0.48502, 0.54048, 0.62166, 0.72440),
    "contrast": (0.64548, 0.76150, 0.88874, 0.97760, 0.99270),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.54620, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}
"""corruption -> share of wrong answers at severities 1 to 5"""
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
