"""featviz's attacks, with the fields of `AttackOptions` as keywords of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import featviz
from featviz.attacks.minimal import bisect as bisect_segments
from featviz.attacks.options import AttackOptions
from featviz.attacks.result import AttackResult

_OPTIONS = {field.name for field in fields(AttackOptions)}


def flat(attack: Callable[..., AttackResult]) -> Callable[..., AttackResult]:
    """An attack whose `AttackOptions` are given one by one among its other keywords."""

    @functools.wraps(attack)
    def call(*given: Any, **mixed: Any) -> AttackResult:
        options = {name: mixed.pop(name) for name in _OPTIONS & mixed.keys()}
        if options:
            mixed["options"] = AttackOptions(**options)
        return attack(*given, **mixed)

    return call


apgd = flat(featviz.apgd)
apgd_targeted = flat(featviz.apgd_targeted)
bim = flat(featviz.bim)
bisect = flat(bisect_segments)
ddn = flat(featviz.ddn)
deepfool = flat(featviz.deepfool)
ensemble = flat(featviz.ensemble)
fgsm = flat(featviz.fgsm)
fmn = flat(featviz.fmn)
mi_fgsm = flat(featviz.mi_fgsm)
minimal = flat(featviz.minimal)
noise = flat(featviz.noise)
pgd = flat(featviz.pgd)
sigma_zero = flat(featviz.sigma_zero)
square = flat(featviz.square)
superdeepfool = flat(featviz.superdeepfool)
