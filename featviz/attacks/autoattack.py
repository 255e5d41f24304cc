"""AutoAttack's standard suite by its own program, to compare with: extra `verify`.

Croce & Hein 2020 (arXiv:2003.01690); the package is pyautoattack
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from featviz.attacks.external import adapter
from featviz.attacks.loop import Classifier
from featviz.attacks.result import Found
from featviz.errors import UserError

_NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def autoattack(
    norm: str = "linf", *, version: str = "standard", seed: int = 0, batch_size: int = 16
) -> Callable[..., Found]:
    """AutoAttack as an attack of featviz (see `adapter`); one eps for all pictures.

    norm: "linf", "l2" or "l1", to be given again in the call; version: "standard" or "plus";
    batch_size: pictures at once, on which its results depend

    Raises UserError where pyautoattack is not installed.
    """
    try:
        from pyautoattack import AutoAttack
    except ImportError:
        raise UserError(
            "pyautoattack is not installed, so there is nothing to compare with; "
            "pip install 'featviz[verify]' brings it"
        ) from None
    if norm not in _NAMES:
        raise UserError(f"AutoAttack knows no norm {norm!r}; take linf, l2 or l1")

    def attack(model: Classifier, pictures: Tensor, labels: Tensor, eps: Tensor) -> Tensor:
        if bool((eps != eps[0]).any()):
            raise UserError("AutoAttack takes one eps for all pictures, several were given")
        program = AutoAttack(
            model,
            norm=_NAMES[norm],
            eps=float(eps[0]),
            seed=seed,
            version=version,
            device=str(pictures.device),
        )
        with torch.inference_mode(False):
            moved: Tensor
            moved, _ = program.run_standard_evaluation(pictures, labels, batch_size=batch_size)
        return moved

    return adapter(attack, f"autoattack-{version}")
