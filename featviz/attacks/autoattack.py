"""AutoAttack's standard suite by its own program, to compare with: extra `verify`.

Croce & Hein 2020 (arXiv:2003.01690); the package is pyautoattack
"""

from __future__ import annotations

import importlib.util
from typing import Annotated

import torch
from torch import Tensor

from featviz.arguments import Bounds
from featviz.attacks.external import external_attack
from featviz.attacks.options import AttackOptions, Classifier, check_batch_size, check_norm
from featviz.attacks.result import AttackResult
from featviz.errors import UserError, public

_NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@public
def autoattack(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: Annotated[float, Bounds(0, 1e6)],
    norm: str = "linf",
    version: str = "standard",
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """AutoAttack's own program, its pictures judged as those of every other attack.

    Args:
        eps: One radius for all pictures.
        norm: "linf", "l2" or "l1".
        version: "standard" or "plus".
        options: `clean`, `seed` and `batch_size` apply; the program's results depend on the last.

    Other arguments as for `pgd`.

    Raises:
        UserError: An argument is out of range, or pyautoattack is not installed.
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

    name = f"autoattack-{version}"
    return external_attack(
        program, model, pictures, labels, eps=eps, norm=norm, name=name, options=options
    )


def check_installed() -> None:
    """Raise UserError where pyautoattack is not installed."""
    if importlib.util.find_spec("pyautoattack") is None:
        raise UserError(
            "pyautoattack is not installed, so there is nothing to compare with; "
            "pip install 'featviz[verify]' brings it"
        )
