"""Second stage of an audit: the smallest change that fools each picture, in one norm.

Each batch meets the minimal-distance search, then attacks that the search must not be weaker than:
an attack without bound on what it did not fool, one gradient step and random noise at every eps of
the grid, and PGD between 8-bit pictures down the grid. Every success counts as a smallest change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz.attacks import losses, projections
from featviz.attacks.linear_estimate import linear_estimate
from featviz.attacks.minimal import minimal
from featviz.attacks.pgd import pgd
from featviz.engine import Piece
from featviz.robustness.clean_pass import CleanPass, Work, spread
from featviz.robustness.examples import MEASURED, Batch, NormState
from featviz.robustness.masking import margin_gradient
from featviz.robustness.norm_audit import Convergence
from featviz.statistics import median

if TYPE_CHECKING:
    from featviz.checkpoints import Arrays

FEWEST_STEPS = 10
"""of a search for the smallest change"""
_ESTIMATED_CLASSES = 5  # of the linear estimate
_EIGHT_BIT_STEPS = 10
_CONVERGENCE = 16  # pictures on which shorter searches are run


def smallest_changes(
    clean: CleanPass, grids: Mapping[str, tuple[float, ...]], steps: int, work: Work
) -> list[NormState]:
    """Search all pictures that are right when clean, batch by batch, in each norm of the grids."""
    batches = clean.batches(clean.correct)
    pieces = [
        Piece(f"{norm}-{k:04d}", (norm, rows), len(rows))
        for norm in grids
        for k, rows in enumerate(batches)
    ]

    def search(given: tuple[str, Tensor]) -> Arrays:
        norm, rows = given
        return _search(clean, rows, norm, grids[norm], steps)

    names = " and ".join(projections.NORM_NAMES[norm] for norm in grids)
    found = work.map(clean.model, search, pieces, f"smallest changes in {names}")
    states = [NormState(clean, norm, grid) for norm, grid in grids.items()]
    for state in states:
        for rows in batches:
            state.take_search(rows, next(found))
    if batches:
        _converge(states, steps, work)
    return states


def _search(clean: CleanPass, rows: Tensor, norm: str, grid: Sequence[float], steps: int) -> Arrays:
    """All attacks of this stage on one batch."""
    batch, n = Batch(clean, rows, norm), len(rows)
    found = batch.run(minimal, norm=norm, steps=steps)
    measured = {name: torch.full((n,), math.inf, dtype=torch.float64) for name in MEASURED}
    measured["search_distance"] = batch.take(found)
    batch.trace(found, steps)
    failed = (~found.success.cpu()).nonzero()[:, 0]
    batch.counts["zero_steps"] = int((found.zero_gradients.cpu()[failed] > 0).sum())
    batch.counts["unbounded_tried"] = n
    if len(failed):
        batch.counts["unbounded_failed"] = _unbounded(batch, failed, steps)
    noise_correct = torch.zeros(len(grid), n, dtype=torch.bool)
    if norm != "l0":
        measured["estimate"] = _linear_estimate(batch)
        measured["one_step"] = _one_step(batch, grid)
        noise_correct = _noise(batch, grid)
        measured["distance_8bit"] = _eight_bit(batch, grid)
    return (
        batch.arrays()
        | batch.shown()
        | {name: values.numpy() for name, values in measured.items()}
        | {"noise_correct": noise_correct.numpy()}
    )


def _unbounded(batch: Batch, at: Tensor, steps: int) -> int:
    """How many pictures stay right when every pixel may take any value: a sign of failure."""
    found = batch.run(pgd, at, eps=1.0, steps=max(10, steps // 4))
    batch.take(found, at, "pgd, unbounded")
    return int((~found.success).sum())


def _linear_estimate(batch: Batch) -> Tensor:
    """(n,) float64: the distance if the model were linear."""
    found = linear_estimate(
        batch.clean.attacked,
        batch.x,
        batch.y,
        norm=batch.norm,
        among=_ESTIMATED_CLASSES,
        batch_size=batch.clean.batch_size,
    )
    batch.passes += (len(batch.x), _ESTIMATED_CLASSES * len(batch.x))
    return found.distances.amin(1).cpu()


def _one_step(batch: Batch, grid: Sequence[float]) -> Tensor:
    """(n,) float64: the smallest FGSM of the grid that fools; one gradient serves all eps."""
    x, y, n = batch.x, batch.y, len(batch.x)
    others = losses.others(batch.logits, y).argmax(1)
    gradient, _ = margin_gradient(
        batch.clean.attacked, x, y, others, batch_size=batch.clean.batch_size
    )
    gradient = torch.where(gradient.isfinite(), gradient, 0)
    batch.passes += (n, n)
    found = torch.full((n,), math.inf, dtype=torch.float64)
    for eps in grid:
        at = found.isinf().nonzero()[:, 0]
        if not len(at):
            break
        radii = torch.full((len(at),), eps, dtype=torch.float64, device=x.device)
        moved = projections.farthest(x[at], gradient[at], radii, batch.norm)
        wrong = (batch.clean.predict(moved) != y[at]).cpu()
        batch.passes[0] += len(at)
        found[at[wrong]] = projections.distance(x[at], moved, batch.norm).cpu()[wrong]
        batch.offer(at[wrong], moved[wrong], "fgsm")
    return found


def _noise(batch: Batch, grid: Sequence[float]) -> Tensor:
    """(len(grid), n) bool: right under noise as large as the ball allows."""
    correct = []
    for k, eps in enumerate(grid):
        streams = projections.picture_streams(batch.x, batch.clean.seed, 1_000_000 + k)
        pairs = zip(batch.x, streams, strict=True)
        noisy = torch.stack([projections.random_noise(p, eps, batch.norm, s) for p, s in pairs])
        correct.append((batch.clean.predict(noisy) == batch.y).cpu())
        batch.passes[0] += len(noisy)
    return torch.stack(correct)


def _eight_bit(batch: Batch, grid: Sequence[float]) -> Tensor:
    """(n,) float64: the smallest change found between 8-bit pictures, down the grid.

    After a success the next eps of a picture is the largest of the grid below its distance.
    """
    usable = [eps for eps in grid if batch.norm != "linf" or eps * 255 >= 1 - 1e-9]
    n = len(batch.x)
    found = torch.full((n,), math.inf, dtype=torch.float64)
    at, radii = torch.arange(n), torch.full((n,), max(usable, default=0.0), dtype=torch.float64)
    while usable and len(at):
        tried = batch.run(
            pgd,
            at,
            eight_bit=True,
            eps=radii,
            norm=batch.norm,
            steps=_EIGHT_BIT_STEPS,
            random_start=False,
        )
        distance = batch.take(tried, at, "pgd, 8-bit")
        won = tried.success.cpu()
        # Levels of 8 bits are not exact in float32: a distance may exceed its eps by the last bit.
        at, distance = at[won], torch.minimum(distance, radii)[won]
        found[at] = torch.minimum(found[at], distance)
        limits = torch.minimum(found[at], radii[won]).tolist()
        below = [max((e for e in usable if e < limit), default=0.0) for limit in limits]
        radii = torch.tensor(below, dtype=torch.float64)
        at, radii = at[radii > 0], radii[radii > 0]
    return found


def _converge(states: Sequence[NormState], steps: int, work: Work) -> None:
    """The search with a quarter and half of the steps, on a few pictures."""
    clean = states[0].clean
    rows = spread(clean.correct, _CONVERGENCE)
    fewer = [some for some in (steps // 4, steps // 2) if some >= FEWEST_STEPS]

    def shorter(given: tuple[str, int]) -> Arrays:
        norm, some = given
        batch = Batch(clean, rows, norm)
        found = batch.run(minimal, norm=norm, steps=some)
        distance = torch.where(found.success, found.distance, math.inf)
        return {"distance": distance.numpy(), "passes": batch.passes}

    pieces = [
        Piece(f"{state.norm}-steps-{some}", (state.norm, some), some)
        for state in states
        for some in fewer
    ]
    found = work.map(clean.model, shorter, pieces, "convergence")
    for state in states:
        distances = [torch.from_numpy(next(found)["distance"]) for _ in fewer]
        distances.append(torch.from_numpy(state.measured["search_distance"][rows.numpy()]))
        for some, distance in zip([*fewer, steps], distances, strict=True):
            state.convergence.append(Convergence(some, median(distance).value))
