"""What fitting a dictionary costs: NMF beside scikit-learn's, TopK beside its bare training step.

    python benchmarks/concepts.py [--quick] [--rows 200000] [--channels 256] [--count 64]
        [--active 16] [--steps 100]

The rows are sparse sums of non-negative directions with noise. "nmf" and "MiniBatchNMF" factorize
all of them; the error of each is that of the best non-negative codes, as a share of the rows'
energy. "topk" trains through `featviz`, with its order of rows, revival and kept stages; "bare
step" is the same network and Adam on batches that are ready.
"""

from __future__ import annotations

import statistics
import warnings

import _rounds
import torch
import torch.nn.functional as F
from torch import Tensor

import featviz
from featviz.checkpoints import Checkpoint
from featviz.concepts.dictionary import keep_largest, non_negative_codes
from featviz.concepts.moments import Moments
from featviz.concepts.nmf import factorize
from featviz.concepts.sample import Sample
from featviz.concepts.topk import Training, train_topk
from featviz.embedding.store import Store
from featviz.results import Origin

BATCH = 1024


def main() -> None:
    given = _rounds.arguments(
        __doc__.splitlines()[0], rows=200_000, channels=256, count=64, active=16, steps=100
    )
    if given.quick:
        given.rows = min(given.rows, 20_000)
    rows = planted(given.rows, given.channels, 2 * given.count)
    found: dict[str, Tensor] = {}

    def ours() -> None:
        found["nmf"] = factorize(rows, given.count, 0)

    def theirs() -> None:
        from sklearn.decomposition import MiniBatchNMF

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = MiniBatchNMF(given.count, random_state=0).fit(rows.numpy())
        found["MiniBatchNMF"] = torch.from_numpy(model.components_)

    sample = Sample.of(store_of(rows))
    moments = Moments.of(some for some, _ in sample.blocks())
    codes = 4 * given.count
    how = Training(codes, given.active, given.steps, 0, torch.device("cpu"))
    batches = [rows[i * BATCH : (i + 1) * BATCH] for i in range(min(20, len(rows) // BATCH))]
    train_topk(sample, moments, Training(codes, given.active, 2, 0, how.device), Checkpoint(None))

    seconds = _rounds.measure(
        {
            "nmf": ours,
            "MiniBatchNMF": theirs,
            "topk": lambda: train_topk(sample, moments, how, Checkpoint(None)) and None,
            "bare step": lambda: bare(batches, codes, given.active, given.steps),
        },
        rounds=3,
    )
    median = {name: statistics.median(values) for name, values in seconds.items()}
    errors = {name: error(rows, directions) for name, directions in found.items()}
    for name, value in errors.items():
        print(f"error of {name}: {value:.4f} of the energy")
    _rounds.report(
        "concepts",
        [_rounds.row(name, "s", values) for name, values in seconds.items()],
        {
            "nmf/MiniBatchNMF, seconds": median["nmf"] / median["MiniBatchNMF"],
            "nmf/MiniBatchNMF, error": errors["nmf"] / errors["MiniBatchNMF"],
            "bare step/topk": median["bare step"] / median["topk"],
        },
    )


def planted(count: int, channels: int, directions: int) -> Tensor:
    """Rows (count, channels) >= 0."""
    generator = torch.Generator().manual_seed(0)
    parts = torch.rand(directions, channels, generator=generator).pow(4)
    rows = torch.empty(count, channels)
    for block in rows.split(8192):
        codes = torch.rand(len(block), directions, generator=generator)
        codes *= torch.rand(codes.shape, generator=generator) < 0.1
        block[:] = (codes @ parts + 0.1 * torch.randn(block.shape, generator=generator)).relu()
    return rows


def store_of(rows: Tensor) -> Store:
    """A store in memory."""
    return Store(
        origin=Origin(None, None, {}, None, "cpu", 0.0),
        layer="rows",
        dim=rows.shape[1],
        shape=(rows.shape[1],),
        pictures=featviz.sample_pictures(1).select([0] * len(rows)),
        sizes=torch.ones(len(rows), 2, dtype=torch.int32).numpy(),
        source={"name": "rows", "count": len(rows), "sha256": ""},
        preparation={},
        memory=rows.half().numpy(),
    )


def bare(batches: list[Tensor], codes: int, active: int, steps: int) -> None:
    """The training step alone: forward, backward, Adam, directions back to length 1."""
    start = F.normalize(torch.randn(codes, batches[0].shape[1]))
    weight, directions = (start.clone().requires_grad_() for _ in range(2))
    shift = torch.zeros(start.shape[1], requires_grad=True)
    adam = torch.optim.Adam([weight, directions, shift], lr=1e-3, foreach=True)
    for step in range(steps):
        rows = batches[step % len(batches)]
        found = keep_largest((rows - shift) @ weight.T, active)
        (torch.addmm(shift, found, directions) - rows).square().mean().backward()
        with torch.no_grad():
            adam.step()
            adam.zero_grad()
            directions /= directions.norm(dim=1, keepdim=True)


def error(rows: Tensor, directions: Tensor) -> float:
    """Squared error of the best codes of 20,000 rows, as a share of their energy."""
    some = rows[:20_000]
    scaled = directions / directions.norm(dim=1, keepdim=True).clamp(min=1e-30)
    left = some - non_negative_codes(some, scaled) @ scaled
    return float(left.double().square().sum() / some.double().square().sum())


if __name__ == "__main__":
    main()
