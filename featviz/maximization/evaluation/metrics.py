"""What each number of the panel means, and how it is written: for tables, captions and figures.

The texts are templates over the panel's numbers (with "_" for a space) and over what all pictures
of a panel share: `count` pictures of the data set, `units` of the layer, the `other` model, the
layer right `before` the unit's, `natural_slope` and `slope_sd`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from featviz.maximization.evaluation.panel import Panel


class Metric(NamedTuple):
    """One number of a picture."""

    unit: str
    meaning: str
    value: str
    """as a table shows it"""
    short: str = ""
    """as a figure shows it; "" leaves it out"""


class Line(NamedTuple):
    """One number of one picture, in words."""

    name: str
    value: str
    meaning: str
    short: str


METRICS = {
    "score": Metric(
        "",
        "of the picture as it is saved, without transforms",
        "{score:.4g}",
        "score {score:.3g}",
    ),
    "natural": Metric("", "the highest score of {count:,} pictures", "{natural:.4g}"),
    "of natural": Metric(
        "times",
        "score over the highest of {count:,} pictures",
        "{of_natural:.3g} times",
        "{of_natural:.3g} x the best of {count:,} pictures ({natural:.3g})",
    ),
    "natural 99.9": Metric(
        "", "what one score in a thousand of the data set exceeds", "{natural_99_9:.4g}"
    ),
    "of natural 99.9": Metric(
        "times",
        "score over the 99.9th percentile of the data set's scores",
        "{of_natural_99_9:.3g} times",
        "{of_natural_99_9:.3g} x their 99.9th percentile",
    ),
    "held out": Metric(
        "",
        "score after shifts of 4 to 6 pixels, behind a 3x3 mean: what is left without pixel detail",
        "{held_out:.4g} ({kept:.0%})",
        "keeps {kept:.0%} shifted and blurred",
    ),
    "rank": Metric(
        "",
        "of the unit among all {units} units of its layer on its own picture{scale}; 1 is the top",
        "{rank:.0f}",
        "rank {rank:.0f} of {units} in its layer",
    ),
    "transfer rank": Metric(
        "",
        "of the same class in the prediction of {other}; 1 is the top",
        "{transfer_rank:.0f}",
        "rank {transfer_rank:.0f} in {other}",
    ),
    "path": Metric(
        "",
        "natural-path similarity at {before}: 1 is like another top picture of the unit, 0 no "
        "nearer than top pictures of other units; with its 95% interval",
        "{path:.2f} ({path_low:.2f} to {path_high:.2f})",
        "path similarity {path:.2f} ({path_low:.2f} to {path_high:.2f}) at {before}",
    ),
    "path low": Metric("", "lower end of the 95% interval, over the unit's top pictures", ""),
    "path high": Metric("", "upper end of it", ""),
    "path own": Metric(
        "", "rank correlation with the unit's top pictures at {before}", "{path_own:.2f}"
    ),
    "path others": Metric(
        "", "rank correlation with other units' top pictures at {before}", "{path_others:.2f}"
    ),
    "path confidence": Metric(
        "fraction", "of bootstrap draws in which path own exceeds path others", ""
    ),
    "overlap": Metric(
        "fraction",
        "of the score that comes through the channels of {before} that contribute to it on the "
        "unit's top pictures",
        "{overlap:.0%}",
        "{overlap:.0%} through the channels of natural pictures (usual {overlap_usual:.0%})",
    ),
    "overlap usual": Metric(
        "fraction", "the same of one top picture and the others", "{overlap_usual:.0%}"
    ),
    "slope": Metric(
        "",
        "of log amplitude against log frequency; natural pictures have {natural_slope:.2f}, "
        "standard deviation {slope_sd:.2f}",
        "{slope:.2f}",
        "slope {slope:.2f} (natural {natural_slope:.2f})",
    ),
    "high share": Metric(
        "fraction",
        "energy above 1/4 cycle a pixel; photographs have about 5%",
        "{high_share:.1%}",
        "{high_share:.1%} fine detail",
    ),
    "kernel": Metric(
        "",
        "correlation with the unit's own kernel, which maximizes a linear unit",
        "{kernel:.3f}",
        "kernel {kernel:.3f}",
    ),
    "spread": Metric(
        "fraction",
        "standard deviation of the restarts' scores over their median",
        "{spread:.0%}",
        "restarts within {spread:.0%}",
    ),
    "seconds": Metric("s", "to make the picture", "{seconds:.3g} s"),
}

_UNDEFINED_PATH = (
    "undefined",
    "natural-path similarity at {before}, where the unit's top pictures are no more alike than "
    "those of other units",
    "path similarity at {before} undefined",
)


def metric_of(name: str) -> Metric:
    """The metric of a number of the panel."""
    if not name.startswith("lattice "):
        return METRICS[name]
    period, field = name.removeprefix("lattice "), f"{{{_field(name)}:.2f}}"
    meaning = f"energy at a grid of {period} pixels over that of its neighbors; 1: no grid"
    return Metric("", meaning, field, f"grid of {period} pixels {field}")


def unit_and_meaning(panel: Panel, name: str) -> tuple[str, str]:
    """The unit of a number, and its meaning in words."""
    metric = metric_of(name)
    return metric.unit, metric.meaning.format_map(_shared(panel))


def describe(panel: Panel, i: int) -> list[Line]:
    """What was measured of picture `i`, in words, most important first."""
    score = float(panel.scores[i])
    values = {"score": score} | {name: float(v[i]) for name, v in panel.numbers.items()}
    if score > 0 and "held out" in values:
        values["kept"] = values["held out"] / score
    known = {_field(name): v for name, v in values.items() if not math.isnan(v)}
    lines = []
    for name in sorted(panel.numbers.keys() | {"score"}, key=_order):
        metric = metric_of(name)
        context = _shared(panel) | known
        texts = (metric.value, metric.meaning, metric.short)
        if name == "path" and "path" not in known and "path_own" in known:
            texts = _UNDEFINED_PATH
        if texts[0] and (_field(name) in known or texts is _UNDEFINED_PATH):
            lines.append(Line(name, *(_format(text, context) for text in texts)))
    return lines


def _format(template: str, context: dict[str, Any]) -> str:
    try:
        return template.format_map(context)
    except KeyError:  # a number beside it that could not be measured
        return ""


def _field(name: str) -> str:
    return name.replace(" ", "_").replace(".", "_")


def _order(name: str) -> tuple[int, str]:
    names = list(METRICS)
    return (names.index(name), "") if name in METRICS else (names.index("kernel"), name.zfill(20))


def _shared(panel: Panel) -> dict[str, Any]:
    mean, sd = panel.natural_slope
    return {
        "count": panel.count,
        "units": panel.units,
        "other": panel.other,
        "before": panel.path.layers[-2] if panel.path is not None else "",
        "natural_slope": mean,
        "slope_sd": sd,
        "scale": ", each in standard deviations over the data set" * panel.standardized,
    }
