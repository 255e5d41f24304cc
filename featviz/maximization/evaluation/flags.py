"""Reasons not to trust a maximized picture, in words.

A flag is a reason, not a verdict: each says what was measured and what it means. The limits are
below, each with what it was measured on.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HELD_OUT = 0.25
"""least share of its score that a picture keeps when shifted and blurred. Pictures of AlexNet's
conv2 to logits keep a half to nine tenths, plain gradient ascent on pixels a few per cent"""

SHAPES = 32
"""pixels; smaller pictures hold no shapes that could survive a shift by 6 and a 3x3 mean"""

RANK = 0.02
"""largest share of the layer's units that may respond more than the picture's own; at least 1 unit
always may"""

CONFIDENCE = 0.025
"""least share of bootstrap draws in which the picture is nearer to its unit's top pictures than to
those of other units, at the layer right before it"""

OVERLAP = 0.5
"""least share of the score through the channels that contribute to it on natural pictures, over the
same for one top picture and the others"""

NATURAL_SLOPE = (-1.25, 0.22)
"""mean and standard deviation of 300 ImageNet photographs at 224 pixels, where none are given"""

SLOPES_AWAY = 4.0
"""standard deviations from the natural slope; of 300 photographs none is further away than 3"""

HIGH_SHARE = 0.5
"""most energy above 1/4 cycle a pixel; 1 photograph in 100 has more than 0.26 at 224 pixels, more
than 0.56 at 64"""

LATTICE, LATTICE_OF_2 = 2.5, 6.0
"""energy at a lattice's frequencies over that of their neighbors, the second for a period of 2
pixels, which has three frequencies only; 1 photograph in 100 has 4.4 at 2 pixels, 1.9 at 4 and 1.4
at 8"""

SPREAD = 0.5
"""most standard deviation of the restarts' scores, as a share of their median"""

NO_GRADIENT = "no gradient"
"""name of the flag of a picture that was never optimized"""


@dataclass(frozen=True)
class Flag:
    """One reason not to trust a picture."""

    name: str
    """one of a few words, for tables: "inactive" ..."""
    words: str
    """the reason, a sentence without its full stop"""


@dataclass(frozen=True)
class Setting:
    """What the pictures of a panel have in common, as far as flags depend on it."""

    side: int
    """of the pictures, in pixels"""
    units: int
    """in the layer"""
    rectified: bool
    """negative values of the layer go no further, so a unit at 0 or less is inactive"""
    ranked: bool
    """the units of the layer can be compared with one another"""
    count: int = 0
    """pictures of the data set"""
    natural_slope: tuple[float, float] = NATURAL_SLOPE
    before: str = ""
    """name of the last layer before the unit's, where paths are compared"""


def find_flags(
    numbers: Mapping[str, float], setting: Setting, *, score: float, alive: bool, peak: float
) -> tuple[Flag, ...]:
    """The flags of one picture.

    Args:
        numbers: Of the panel, by name (see `metrics.METRICS`); what is absent or NaN raises none.
        setting: What all pictures of the panel have in common.
        score: The clean score.
        alive: Whether there ever was a gradient.
        peak: The highest activation of the unit at any position of a picture of the data set.
    """
    if not alive:
        words = "no gradient ever reached the picture, which is the start and shows nothing"
        return (Flag(NO_GRADIENT, words),)
    if not math.isfinite(score):
        return (Flag("not finite", "the score is not a number"),)
    n = defaultdict(lambda: math.nan, numbers)
    kept = n["held out"] / score if score > 0 else math.nan
    shaped = setting.side >= SHAPES
    never = setting.rectified and peak <= 0
    foreign = n["overlap"] < OVERLAP * n["overlap usual"]
    mean, sd = setting.natural_slope
    lattices = {name: n[name] for name in n if name.startswith("lattice ")}
    grids = {
        name.removeprefix("lattice "): value
        for name, value in lattices.items()
        if value > (LATTICE_OF_2 if name == "lattice 2" else LATTICE)
    }
    grid = max(grids, key=lambda period: grids[period], default="")
    checks = [
        (
            "inactive",
            never,
            f"no picture of {setting.count:,} activates the unit above 0, so what the picture "
            "shows has no part in what the network does with natural pictures",
        ),
        (
            "inactive",
            (score == 0 or (setting.rectified and score < 0)) and not never,
            f"it scores {score:.3g} on its own picture: the unit is not active there",
        ),
        (
            "below natural",
            score < n["natural"],
            f"a picture of the data set scores {n['natural']:.3g}, this one only {score:.3g}: the "
            "optimization did not find what the unit responds to most",
        ),
        (
            "fine detail",
            shaped and kept < HELD_OUT,
            f"it keeps {max(0.0, kept):.0%} of its score when shifted and blurred: its fine detail "
            "is what scores, not its shapes",
        ),
        (
            "others respond more",
            setting.ranked and n["rank"] > 1 + max(1, math.floor(RANK * setting.units)),
            f"{n['rank'] - 1:.0f} of the {setting.units - 1} other units of the layer respond to "
            "the picture more than its own",
        ),
        (
            "unnatural path",
            foreign,
            f"only {n['overlap']:.0%} of the score comes through the channels of {setting.before} "
            f"that contribute to it on natural pictures (of one of these {n['overlap usual']:.0%}):"
            " other features than those of natural pictures drive the unit here",
        ),
        (
            "unnatural path",
            n["path confidence"] < CONFIDENCE and not math.isnan(n["path"]) and not foreign,
            f"at {setting.before} its activations are less like those of the unit's top pictures "
            f"than like those of other units' (rank correlation {n['path own']:.2f} against "
            f"{n['path others']:.2f})",
        ),
        (
            "spectrum",
            abs(n["slope"] - mean) > SLOPES_AWAY * sd,
            f"the slope of its spectrum is {n['slope']:.2f}, much "
            f"{'flatter' if n['slope'] > mean else 'steeper'} than that of natural pictures "
            f"({mean:.2f}, standard deviation {sd:.2f})",
        ),
        (
            "spectrum",
            shaped and n["high share"] > HIGH_SHARE,
            f"{n['high share']:.0%} of its energy is finer than 4 pixels",
        ),
        (
            "lattice",
            bool(grids),
            f"a grid of {grid} pixels, the network's own stride, has {grids.get(grid, 0):.1f} "
            "times the energy of its neighbors",
        ),
        (
            "restarts differ",
            n["spread"] > SPREAD,
            f"the scores of its restarts differ by {n['spread']:.0%} of their median: another seed "
            "may show something else",
        ),
    ]
    return tuple(Flag(name, words) for name, raised, words in checks if raised)


def summarize(names: Sequence[str], flags: Sequence[Sequence[Flag]]) -> tuple[str, ...]:
    """One line a reason for all pictures that have it, most frequent first.

    Pictures without a gradient are left out: the optimization reports them itself.
    """
    pairs: dict[str, list[tuple[str, str]]] = {}
    for name, own in zip(names, flags, strict=True):
        for flag in own:
            if flag.name != NO_GRADIENT:
                pairs.setdefault(flag.name, []).append((name, flag.words))
    lines = []
    for flag_name, found in sorted(pairs.items(), key=lambda item: -len(item[1])):
        first, words = found[0]
        shown = ", ".join(name for name, _ in found[:8])
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        whose = f"{first}: " if len(found) > 1 else ""
        lines.append(f"{flag_name}: {shown}{more} ({whose}{words})")
    return tuple(lines)
