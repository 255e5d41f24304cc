"""A store that is too large to be held is searched on the disk, with the same results."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featviz.data.samples import sample_pictures
from featviz.embedding.extract import embed
from featviz.embedding.store import Store, open_store
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.neighbors import exact
from featviz.neighbors.exact import Metric, build_index


@pytest.fixture(scope="module")
def store(mini: Model, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """57 rows in six shards of ten."""
    out = tmp_path_factory.mktemp("store") / "s"
    embed(mini, sample_pictures(3), "conv1", out=out, batch_size=10, shard_bytes=10 * 2 * 64)
    found = open_store(out)
    assert len(found.shards) == 6
    return found


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_results_are_those_of_rows_in_memory(
    store: Store, metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "_BLOCK", 16)  # so that blocks and shards do not fall together
    held = build_index(store, metric=metric)
    monkeypatch.setattr(exact, "_HELD", 0)
    lying = build_index(store, metric=metric)
    everything = torch.arange(len(store))
    queries = store.matrix()
    for one, other in zip(
        held.search(queries, 7, exclude=everything),
        lying.search(queries, 7, exclude=everything),
        strict=True,
    ):
        assert torch.equal(one, other)
    assert len(lying) == len(held) == 57
    assert np.array_equal(lying.norms, held.norms)
    assert torch.equal(lying.take([56, 0, 10, 9, 9]), held.take([56, 0, 10, 9, 9]))
    with pytest.raises(UserError, match="rows cannot be added"):
        lying.add(queries)


def test_spans_and_single_rows_are_those_of_the_matrix(store: Store) -> None:
    whole = store.matrix().half().numpy()
    for start, stop in ((0, 57), (0, 10), (9, 11), (10, 20), (25, 57), (5, 5)):
        assert np.array_equal(store.span(start, stop), whole[start:stop])
    rows = np.array([3, 56, 3, 20, 19])
    assert np.array_equal(store.gather(rows), whole[rows])


def test_building_an_index_of_a_large_store_reads_no_more_than_a_block_at_a_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows handed out at once are counted, not trusted."""
    monkeypatch.setattr(exact, "_HELD", 0)
    monkeypatch.setattr(exact, "_BLOCK", 16)
    largest = []
    original = Store.span

    def counted(self: Store, start: int, stop: int) -> np.ndarray:
        found = original(self, start, stop)
        largest.append(len(found))
        return found

    monkeypatch.setattr(Store, "span", counted)
    monkeypatch.setattr(Store, "matrix", None)
    index = build_index(store)
    index.search(store.take([0, 1]), 3)
    assert max(largest) == 16
    assert sum(largest) == 2 * 57  # for the norms, and for the search
