"""Third stage of an audit: another strong attack at a few eps, and one without gradients.

Pictures that the search has not fooled within an eps meet APGD (or the ensemble), and some of
those that are left meet Square. What they fool enters the curve and counts against the search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from featviz.attacks.apgd import apgd
from featviz.attacks.ensemble import ensemble
from featviz.attacks.square import square
from featviz.engine import Piece
from featviz.robustness.clean_pass import Work, spread
from featviz.robustness.examples import Batch, NormState
from featviz.robustness.norm_audit import SecondAttack

if TYPE_CHECKING:
    from featviz.checkpoints import Arrays

CHECKS = {"apgd": "APGD", "ensemble": "the ensemble"}
_LEFT = (0.5, 0.25, 0.75)  # shares of the clean correct pictures at the eps that are checked
_BLACK_BOX = 16  # pictures


def second_attacks(state: NormState, check: str, steps: int, queries: int, work: Work) -> None:
    """Check the eps of the grid at which about 1/2, 1/4 and 3/4 of the pictures are left."""
    right = max(1, len(state.clean.correct))
    shares = {eps: len(state.left(eps)) / right for eps in state.eps}
    usable = [eps for eps, share in shares.items() if share > 0]
    chosen = [min(usable, key=lambda e: abs(shares[e] - want)) for want in _LEFT if usable]
    for k, eps in enumerate(dict.fromkeys(chosen)):
        tried, fooled, late = _attack(state, f"check-{k}", eps, check, steps, work)
        black_box = _black_box(state, eps, queries if k == 0 else 0, work)
        found = SecondAttack(eps, CHECKS[check], tried, fooled, late, *black_box)
        state.second_attacks.append(found)


def _attack(
    state: NormState, name: str, eps: float, check: str, steps: int, work: Work
) -> tuple[int, int, int]:
    """Pictures tried, fooled, and fooled in the last tenth of the steps."""
    clean, norm = state.clean, state.norm

    def attacked(rows: Tensor) -> Arrays:
        batch = Batch(clean, rows, norm)
        own: dict[str, Any] = {"queries": 0}
        if check == "apgd":
            own = {"loss": "dlr" if clean.logits.shape[1] >= 3 else "ce"}
        program = apgd if check == "apgd" else ensemble
        found = batch.run(program, eps=eps, norm=norm, steps=steps, **own)
        batch.take(found)
        batch.trace(found, steps)
        first = found.first_step.cpu()[found.success.cpu()]
        batch.counts["late"] = int((first > 0.9 * steps).sum())
        return batch.arrays()

    rows, fooled, late = state.left(eps), 0, state.counts["late"]
    batches = clean.batches(rows)
    pieces = [Piece(f"{norm}-{name}-{k:04d}", some, len(some)) for k, some in enumerate(batches)]
    found = work.map(clean.model, attacked, pieces, f"{CHECKS[check]} in {norm}")
    for some, piece in zip(batches, found, strict=True):
        state.take(some, piece)
        fooled += _fooled(piece)
    return len(rows), fooled, state.counts["late"] - late


def _black_box(state: NormState, eps: float, queries: int, work: Work) -> tuple[int, int]:
    """Pictures tried and fooled by Square."""
    clean, norm = state.clean, state.norm
    rows = spread(state.left(eps), _BLACK_BOX)
    if not queries or not len(rows) or norm not in {"linf", "l2"}:
        return 0, 0

    def attacked() -> Arrays:
        batch = Batch(clean, rows, norm)
        batch.take(batch.run(square, eps=eps, norm=norm, queries=queries))
        return batch.arrays()

    piece = work.piece(clean.model, f"{norm}-black-box", attacked, f"Square in {norm}")
    state.take(rows, piece)
    return len(rows), _fooled(piece)


def _fooled(piece: Arrays) -> int:
    return int(np.isfinite(piece["examples"]["distance"]).sum())
