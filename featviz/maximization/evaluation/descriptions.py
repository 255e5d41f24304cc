"""The panel of one picture in plain words, for tables, captions and figures."""

from __future__ import annotations

import math
from typing import NamedTuple

from featviz.maximization.evaluation.panel import Panel


class Told(NamedTuple):
    """One line of a picture's panel."""

    what: str
    value: str
    meaning: str
    short: str
    """the same in a few words, for a figure"""


def told(panel: Panel, i: int) -> list[Told]:
    """What was measured of picture `i`, most important first."""
    score = float(panel.scores[i])
    n = {name: float(values[i]) for name, values in panel.numbers.items()}
    n = {name: value for name, value in n.items() if not math.isnan(value)}
    lines = [
        Told(
            "score",
            f"{score:.4g}",
            "of the picture as it is saved, without transforms",
            f"score {score:.3g}",
        )
    ]
    if "of natural" in n:
        lines.append(
            Told(
                "against the best photograph",
                f"{n['of natural']:.3g} times",
                f"the highest score of {panel.count:,} photographs is {n['natural']:.3g}",
                f"{n['of natural']:.3g} x the best of {panel.count:,} photographs",
            )
        )
    elif "natural" in n:
        lines.append(
            Told(
                "the best photograph",
                f"{n['natural']:.3g}",
                f"of {panel.count:,}",
                f"the best photograph {n['natural']:.3g}",
            )
        )
    if "of natural 99.9" in n:
        lines.append(
            Told(
                "against the 99.9th percentile",
                f"{n['of natural 99.9']:.3g} times",
                f"one score of photographs in a thousand is above {n['natural 99.9']:.3g}",
                f"{n['of natural 99.9']:.3g} x their 99.9th percentile",
            )
        )
    if score > 0 and "held out" in n:
        share = n["held out"] / score
        lines.append(
            Told(
                "shifted and softened",
                f"{share:.0%}",
                "of the score is left after shifts of 4 to 6 pixels and a 3x3 mean",
                f"keeps {share:.0%} shifted and softened",
            )
        )
    if "rank" in n:
        rank = int(n["rank"])
        lines.append(
            Told(
                "rank in its layer",
                f"{rank} of {panel.units}",
                "place of the unit among those of its layer on this picture"
                + (", each by its own scale on photographs" if panel.scaled else ""),
                f"{ordinal(rank)} of {panel.units} in its layer",
            )
        )
    if "transfer rank" in n:
        rank = int(n["transfer rank"])
        lines.append(
            Told(
                f"rank in {panel.other}",
                str(rank),
                "place of the same class in the other model's answer",
                f"{ordinal(rank)} in {panel.other}",
            )
        )
    lines += _path(panel, n)
    if panel.path is not None and "carriers" in n:
        lines.append(
            Told(
                "carried as on photographs",
                f"{n['carriers']:.0%}",
                f"of the score comes through the channels of {panel.path.layers[-2]} that carry it "
                f"on photographs of the unit; of one photograph's score {n['carriers usual']:.0%}",
                f"{n['carriers']:.0%} carried as on photographs (they: {n['carriers usual']:.0%})",
            )
        )
    if "slope" in n:
        mean, sd = panel.natural_slope
        lines.append(
            Told(
                "slope of the spectrum",
                f"{n['slope']:.2f}",
                f"photographs have {mean:.2f}, standard deviation {sd:.2f}",
                f"slope {n['slope']:.2f} (photographs {mean:.2f})",
            )
        )
    if "high share" in n:
        lines.append(
            Told(
                "fine detail",
                f"{n['high share']:.1%}",
                "of the energy is finer than 4 pixels",
                f"{n['high share']:.1%} fine detail",
            )
        )
    grids = {name.removeprefix("lattice "): n[name] for name in n if name.startswith("lattice ")}
    if grids:
        values = ", ".join(f"{value:.2f}" for value in grids.values())
        lines.append(
            Told(
                "lattice",
                values,
                f"energy at grids of {_listed(list(grids))} pixels, the net's own steps, over what "
                "is around; 1 is none",
                f"lattice {values}",
            )
        )
    if "kernel" in n:
        lines.append(
            Told(
                "like its kernel",
                f"{n['kernel']:.3f}",
                "correlation with the kernel, what a linear unit answers to most in closed form",
                f"kernel {n['kernel']:.3f}",
            )
        )
    if "spread" in n:
        lines.append(
            Told(
                "spread over tries",
                f"{n['spread']:.0%}",
                "standard deviation of the tries' scores over their median",
                f"tries within {n['spread']:.0%}",
            )
        )
    if "seconds" in n:
        lines.append(
            Told("time", f"{n['seconds']:.3g} s", "to make the picture", f"{n['seconds']:.3g} s")
        )
    return lines


def _path(panel: Panel, n: dict[str, float]) -> list[Told]:
    path = panel.path
    if path is None or "path own" not in n:
        return []
    before = path.layers[-2]
    compared = (
        f"at {before}, with the {path.photographs} photographs that move the unit most "
        f"(correlation {n['path own']:.2f}; with those of other units {n['path others']:.2f})"
    )
    if "path" not in n:
        return [
            Told(
                "like photographs inside",
                "cannot be told",
                f"{compared}: these photographs are no more alike there than others",
                f"path at {before}: photographs too unlike to tell",
            )
        ]
    value = f"{n['path']:.2f} ({n['path low']:.2f} to {n['path high']:.2f})"
    return [
        Told(
            "like photographs inside",
            value,
            f"natural-path similarity {compared}: 1 is another photograph of the unit, 0 of any "
            "unit; in brackets the 95% interval",
            f"path similarity {value} at {before}",
        )
    ]


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st."""
    if 10 <= number % 100 <= 20:
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"


def _listed(items: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
