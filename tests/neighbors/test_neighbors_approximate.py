"""Approximate indexes: what they find, what they say they find, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from featviz.embedding.store import Store, open_store
from featviz.errors import UserError
from featviz.neighbors.approximate import (
    KINDS,
    Effort,
    build_approximate,
    open_approximate,
    open_or_build,
)
from featviz.neighbors.exact import Metric, build_index, spread
from featviz.neighbors.find import find_neighbors
from featviz.schema import sealed

pytest.importorskip("faiss")


def clustered(count: int, dim: int) -> Tensor:
    """Rows round 40 centers, a third of their values zero."""
    generator = torch.Generator().manual_seed(5)
    centers = torch.randn(40, 12, generator=generator)
    hidden = centers[torch.arange(count) % 40]
    hidden = hidden + 0.5 * torch.randn(count, 12, generator=generator)
    return (hidden @ torch.randn(12, dim, generator=generator) - 0.5).relu()


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_recall_it_states_is_the_recall_it_has(kind: str, metric: Metric) -> None:
    base = clustered(3000, 64)
    index = build_approximate(base, kind, metric=metric)
    assert index.recall >= 0.99
    exact = build_index(base, metric=metric)
    asked = np.arange(7, 3000, 23)  # rows of which most were not asked at build time
    distances, rows = index.search(base[asked], 10, exclude=asked)
    true_distances, true_rows = exact.search(base[asked], 10, exclude=asked)
    hits = (rows[:, :, None] == true_rows[:, None, :]).any(2)
    assert hits.double().mean() >= 0.98
    # What is found has its exact distance, to the last bit.
    for line in range(len(asked)):
        known = dict(zip(true_rows[line].tolist(), true_distances[line].tolist(), strict=True))
        for row, distance in zip(rows[line].tolist(), distances[line].tolist(), strict=True):
            assert known.get(row, distance) == distance
    assert not (rows == torch.from_numpy(asked)[:, None]).any()


def test_a_low_recall_asked_for_is_cheaper_and_stated() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2000, 300, generator=generator)  # no structure: PCA and cells lose much
    careless, careful = (build_approximate(base, "ivf", recall=r) for r in (0.2, 0.95))
    assert 0.2 <= careless.recall < careful.recall
    assert careful.recall >= 0.95
    assert careless.effort.probes < careful.effort.probes


def test_rows_larger_than_float16_are_found_by_their_distance() -> None:
    base = 1e5 * clustered(1000, 32)
    index = build_approximate(base, "ivf", metric="l2")
    asked = np.arange(3, 1000, 17)
    rows = index.search(base[asked], 10, exclude=asked)[1]
    true = build_index(base, metric="l2").search(base[asked], 10, exclude=asked)[1]
    assert (rows[:, :, None] == true[:, None, :]).any(2).double().mean() >= 0.98


def test_the_effort_is_the_least_that_reaches_the_recall() -> None:
    base = clustered(3000, 64)
    index = build_approximate(base, "ivf", recall=0.9)
    asked = spread(3000, 200)
    true = build_index(base).search(base[asked], 10, exclude=asked)[1]

    def recall(effort: Effort) -> float:
        index.effort = effort
        rows = index.search(base[asked], 10, exclude=asked)[1]
        return float((rows[:, :, None] == true[:, None, :]).any(2).double().mean())

    found = index.effort
    assert recall(found) == pytest.approx(index.recall)
    for probes, candidates in ((1, 2), (2, 1)):
        less = Effort(found.probes // probes, found.candidates // candidates)
        if min(less.probes, less.candidates) >= 1:
            assert recall(less) < 0.9


def test_the_same_seed_gives_the_same_answers() -> None:
    base = clustered(800, 32)
    found = [build_approximate(base, "ivf", seed=4).search(base[:50], 5) for _ in range(2)]
    assert torch.equal(found[0][1], found[1][1])
    assert torch.equal(found[0][0], found[1][0])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of 600 rows on disk, made of bundled pictures' vectors repeated with noise."""
    import featviz

    model = featviz.load("alexnet-mini", device="cpu")
    small = featviz.embed(model, featviz.sample_pictures(), "fc7")
    small.save(tmp_path / "store")
    return open_store(tmp_path / "store")


def test_an_index_beside_its_store_is_used_again_and_only_for_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import featviz.neighbors.approximate as module

    monkeypatch.setattr(module, "_FEWEST", 8)
    made, why = open_or_build(store, "ivf")
    assert store.folder is not None
    place = store.folder / "index-ivf-cosine"
    assert why == ""
    assert sorted(f.name for f in place.iterdir()) == ["axes.npz", "index.faiss", "index.json"]
    written = (place / "index.faiss").stat().st_mtime_ns
    again, why = open_or_build(store, "ivf")
    assert why == ""
    assert (place / "index.faiss").stat().st_mtime_ns == written
    assert (again.recall, again.effort) == (made.recall, made.effort)
    queries = store.take([0, 3])
    assert torch.equal(again.search(queries, 5)[1], made.search(queries, 5)[1])

    with pytest.raises(UserError, match="is for cosine, not l2"):
        open_approximate(place, store, metric="l2")
    about = json.loads((place / "index.json").read_text())
    other = {name: value for name, value in about.items() if name != "seal"} | {"store": "0" * 64}
    (place / "index.json").write_text(json.dumps(sealed(other)))
    with pytest.raises(UserError, match="was made of other rows"):
        open_approximate(place, store)
    result = find_neighbors(store, [0], index="ivf")
    assert "was made of other rows" in result.warnings[0]
    assert result.recall is not None
    assert result.recall >= 0.99
    assert json.loads((place / "index.json").read_text()) == about

    (place / "axes.npz").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"axes\.npz is damaged or missing"):
        open_approximate(place, store)
    assert "axes.npz is damaged" in open_or_build(store, "ivf")[1]
    open_approximate(place, store)


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        (600, "ivg", "unknown index 'ivg'; take ivf, hnsw, pq or exact"),
        (100, "hnsw", "100 rows are too few for hnsw, which learns from 512 or more"),
    ],
)
def test_mistakes_are_one_line(rows: int, kind: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        build_approximate(torch.randn(rows, 4), kind)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
