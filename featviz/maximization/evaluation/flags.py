"""When a maximised picture should not be trusted, and why, in words.

A flag is a reason, not a verdict: each names what was measured and what it means. The limits stand
here, each with where it comes from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HELD_OUT = 0.25
"""least share of its score that a picture keeps when shifted and softened. Pictures of AlexNet's
conv2 to logits keep a half to nine tenths, plain ascent on pixels a few per cent"""

SHAPES = 32
"""pixels; smaller pictures hold no shapes that could survive a shift by 6 and a 3x3 mean"""

RANK = 0.02
"""largest share of the layer's units that may answer more than the picture's own; at least 1 unit
always may"""

LEAD = 0.025
"""least share of bootstrap draws in which the picture is nearer to its unit's photographs than to
those of other units, at the layer right before it: below, the interval says that it is not"""

CARRIERS = 0.5
"""least part of the score that must come through the channels that carry it on photographs, over
the same for one photograph and the others"""

SLOPE = (-1.25, 0.22)
"""mean and standard deviation of 300 ImageNet photographs at 224 pixels, where none are given"""

SLOPES_AWAY = 4.0
"""standard deviations from photographs' slope; of 300 photographs none lies further than 3"""

HIGH_SHARE = 0.5
"""most energy above 1/4 cycle a pixel; 1 photograph in 100 has more than 0.26 at 224 pixels, more
than 0.56 at 64"""

LATTICE, LATTICE_OF_2 = 2.5, 6.0
"""energy at a lattice's frequencies over that of their neighbours, the second for a period of 2
pixels, which has three frequencies only; 1 photograph in 100 has 4.4 at 2 pixels, 1.9 at 4 and 1.4
at 8"""

SPREAD = 0.5
"""most standard deviation of the tries' scores, as a share of their median"""


@dataclass(frozen=True)
class Flag:
    """One reason not to trust a picture."""

    name: str
    """one of a few words, for tables: "silent" ..."""
    words: str
    """the reason, a sentence without its full stop"""


def flags_of(
    n: Mapping[str, float],
    *,
    score: float,
    alive: bool,
    rectified: bool,
    peak: float,
    side: int,
    units: int,
    photographs: int,
    natural_slope: tuple[float, float],
    ranked: bool,
    before: str,
) -> tuple[Flag, ...]:
    """The flags of one picture from its numbers `n` (see `panel.MEANINGS`); absent ones raise none.

    rectified: negative values of the layer go no further, so a unit at 0 or less is silent
    peak: the highest value of the unit at any place of a photograph
    units: in the layer
    ranked: the units of the layer can be compared with one another
    before: name of the last layer before the unit's, where paths are compared
    """

    def at(name: str) -> float:
        return n.get(name, math.nan)

    found: list[Flag] = []

    def flag(name: str, words: str) -> None:
        found.append(Flag(name, words))

    if not alive:
        flag("dead", "no gradient ever reached the picture, which is the start and shows nothing")
        return tuple(found)
    if not math.isfinite(score):
        flag("broken", "the score is no number")
        return tuple(found)
    highest = at("natural")
    if rectified and peak <= 0:
        flag(
            "silent",
            f"no photograph of {photographs:,} moves the unit above 0, so what the "
            "picture shows has no part in what the net does with photographs",
        )
    elif rectified and score <= 0:
        flag(
            "silent",
            "the unit stays at or below 0 on its own picture: the ReLU behind it passes nothing on",
        )
    if score < highest:
        flag(
            "below natural",
            f"a photograph scores {highest:.3g}, the picture only {score:.3g}: "
            "the ascent did not find what the unit looks for",
        )
    if side >= SHAPES and score > 0 and at("held out") < HELD_OUT * score:
        share = at("held out") / score
        flag(
            "falls apart",
            f"it keeps {max(0.0, share):.0%} of its score when shifted and "
            "softened: its fine detail is what scores, not its shapes",
        )
    if ranked and at("rank") > 1 + max(1, math.floor(RANK * units)):
        more = int(at("rank")) - 1
        flag(
            "others answer more",
            f"{more} of the {units - 1} other units of the layer answer the "
            "picture more than its own",
        )
    if at("carriers") < CARRIERS * at("carriers usual"):
        flag(
            "foreign path",
            f"only {at('carriers'):.0%} of the score comes through the channels "
            f"of {before} that carry it on photographs (of one photograph "
            f"{at('carriers usual'):.0%}): something else than what photographs have drives "
            "the unit here",
        )
    elif at("path lead") < LEAD and not math.isnan(at("path")):
        flag(
            "foreign path",
            f"at {before} it goes through the net less like the photographs that "
            f"move this unit than like those of other units (rank correlation "
            f"{at('path own'):.2f} against {at('path others'):.2f})",
        )
    mean, sd = natural_slope
    if abs(at("slope") - mean) > SLOPES_AWAY * sd:
        how = "flatter" if at("slope") > mean else "steeper"
        flag(
            "spectrum",
            f"its spectrum falls with slope {at('slope'):.2f}, much {how} than "
            f"photographs' ({mean:.2f}, standard deviation {sd:.2f})",
        )
    if side >= SHAPES and at("high share") > HIGH_SHARE:
        flag("spectrum", f"{at('high share'):.0%} of its energy is finer than 4 pixels")
    grids = [
        name
        for name in n
        if name.startswith("lattice ")
        and n[name] > (LATTICE_OF_2 if name == "lattice 2" else LATTICE)
    ]
    if grids:
        worst = max(grids, key=lambda name: n[name])
        period = worst.removeprefix("lattice ")
        flag(
            "lattice",
            f"a grid of {period} pixels, the net's own step, stands out {n[worst]:.1f} times",
        )
    if at("spread") > SPREAD:
        flag(
            "tries differ",
            f"the scores of its tries differ by {at('spread'):.0%} of their "
            "median: another seed may show something else",
        )
    return tuple(found)


def gathered(names: Sequence[str], flags: Sequence[Sequence[Flag]]) -> tuple[str, ...]:
    """One line a reason for all pictures that have it, most frequent first.

    Pictures without a gradient are left out: the ascent speaks of them itself.
    """
    pairs: dict[str, list[tuple[str, str]]] = {}
    for name, own in zip(names, flags, strict=True):
        for flag in own:
            if flag.name != "dead":
                pairs.setdefault(flag.name, []).append((name, flag.words))
    lines = []
    for flag_name, found in sorted(pairs.items(), key=lambda item: -len(item[1])):
        first, words = found[0]
        shown = ", ".join(name for name, _ in found[:8])
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        whose = f"{first}: " if len(found) > 1 else ""
        lines.append(f"{flag_name}: {shown}{more} ({whose}{words})")
    return tuple(lines)
