"""AutoAttack's standard suite by its own program, to compare with: extra `verify`.

Croce & Hein 2020 (arXiv:2003.01690); the package is pyautoattack
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from featviz.attacks.checks import check_batch_size, check_norm
from featviz.attacks.external import external_attack
from featviz.attacks.loop import Classifier
from featviz.attacks.options import AttackOptions
from featviz.attacks.result import AttackResult
from featviz.errors import UserError

_NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def autoattack(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    version: str = "standard",
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """AutoAttack's own program, its pictures judged as those of every other attack.

    version: "standard" or "plus"

    Raises UserError where pyautoattack is not installed.
    """
    check_installed()
    check_norm(norm, tuple(_NAMES))
    batch_size = check_batch_size(options.batch_size, pictures.device)

    def program(model: Classifier, pictures: Tensor, labels: Tensor, eps: Tensor) -> Tensor:
        from pyautoattack import AutoAttack

        ran = AutoAttack(
            model,
            norm=_NAMES[norm],
            eps=float(eps[0]),
            seed=options.seed,
            version=version,
            device=str(pictures.device),
        )
        with torch.inference_mode(False):
            moved: Tensor
            moved, _ = ran.run_standard_evaluation(pictures, labels, batch_size=batch_size)
        return moved

    attack = external_attack(program, f"autoattack-{version}")
    return attack(model, pictures, labels, eps=eps, norm=norm, options=options)


def check_installed() -> None:
    """Raise UserError where pyautoattack is not installed."""
    if importlib.util.find_spec("pyautoattack") is None:
        raise UserError(
            "pyautoattack is not installed, so there is nothing to compare with; "
            "pip install 'featviz[verify]' brings it"
        )
