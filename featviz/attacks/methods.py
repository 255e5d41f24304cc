"""The attacks by name: one table, from which the command's help and checks are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from featviz.errors import UserError, nearest

_BALL = ("linf", "l2", "l1")


@dataclass(frozen=True, kw_only=True)
class Method:
    """An attack by name."""

    text: str
    """what it does"""
    function: str = ""
    """in the package `featviz`, where it is not called like the method"""
    norms: tuple[str, ...] = _BALL
    """the first is the default"""
    steps: int | None = None
    """default number of them"""
    keyword: str = "steps"
    """what the function calls them"""
    counted: str = "steps"
    """what they are, in words"""
    ball: bool = True
    """it stays within eps; otherwise it searches the smallest change"""
    targeted: bool = True
    restarts: bool = False
    step_size: bool = False
    fixed: Mapping[str, bool] = field(default_factory=dict)
    """keywords that `featviz attack` always gives"""


METHODS: Mapping[str, Method] = {
    "pgd": Method(
        text="projected gradient ascent",
        steps=40,
        restarts=True,
        step_size=True,
        fixed={"random_start": False},
    ),
    "fgsm": Method(text="one gradient step"),
    "bim": Method(text="steps of eps / 5", steps=10, step_size=True),
    "mi-fgsm": Method(text="steps with momentum", steps=10, step_size=True),
    "apgd": Method(
        text="step sizes of its own",
        steps=100,
        restarts=True,
        fixed={"random_start": False},
    ),
    "apgd-t": Method(
        function="apgd_targeted",
        text="towards the nearest classes in turn",
        steps=100,
        targeted=False,
    ),
    "ensemble": Method(text="all in turn", steps=100, targeted=False),
    "square": Method(
        text="without any gradient",
        norms=("linf", "l2"),
        steps=1000,
        keyword="queries",
        counted="queries",
    ),
    "noise": Method(text="random noise", steps=10, keyword="draws", counted="draws"),
    "minimal": Method(
        text="the smallest change that fools",
        norms=("linf", "l2", "l1", "l0"),
        steps=100,
        counted="passes",
        ball=False,
    ),
    "fmn": Method(
        text="smallest change by adaptive balls",
        norms=("linf", "l2", "l1", "l0"),
        steps=100,
        ball=False,
    ),
    "ddn": Method(
        text="smallest change by direction and norm",
        norms=("l2",),
        steps=100,
        ball=False,
    ),
    "deepfool": Method(
        text="smallest change by linearizations",
        norms=("l2", "linf", "l1"),
        steps=50,
        ball=False,
        targeted=False,
    ),
    "superdeepfool": Method(
        text="the same with projections on the boundary's normal",
        norms=("l2",),
        steps=100,
        ball=False,
        targeted=False,
    ),
    "sigma-zero": Method(
        text="fewest changed values",
        norms=("l0",),
        steps=1000,
        ball=False,
    ),
}


def find_method(name: str) -> Method:
    """The method of a name, with "-" or "_".

    Raises:
        UserError: There is none.
    """
    wanted = name.lower().replace("_", "-")
    if wanted not in METHODS:
        raise UserError(
            f"unknown method {name!r}{nearest(wanted, METHODS)} (there are {', '.join(METHODS)})"
        )
    return METHODS[wanted]


def methods_in_words() -> str:
    """ "pgd (projected gradient ascent), fgsm (one gradient step) ..." """
    return ", ".join(f"{name} ({method.text})" for name, method in METHODS.items())


def steps_in_words() -> str:
    """ "40 of pgd, 10 of bim and mi-fgsm ..." """
    by_number: dict[str, list[str]] = {}
    for name, method in METHODS.items():
        if method.steps:
            unit = "" if method.counted == "steps" else f" {method.counted}"
            by_number.setdefault(f"{method.steps}{unit}", []).append(name)
    return ", ".join(f"{number} of {' and '.join(names)}" for number, names in by_number.items())
