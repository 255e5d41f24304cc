"""The same files from a Ray cluster as from here, also when it loses a machine."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import featviz
from featviz.engine_old import Shard, map_shards

pytestmark = [
    pytest.mark.slow,
    # Ray's own: what it deprecates in itself, and sockets that it closes late.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        made = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "object_store_memory": 10**8,
                "include_dashboard": False,
            },
        )
        made.add_node(num_cpus=1, object_store_memory=10**8)
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        made.wait_for_nodes()
        try:
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


def test_a_machine_is_lost_midway_and_the_pictures_are_the_same(cluster: Any) -> None:
    """Eight shards on two machines; the second is shut down when the first two are finished."""
    model = featviz.load("alexnet-mini")
    options = {"units": "0-7", "batch_size": 1, "steps": 6, "precision": "float32"}
    threads = torch.get_num_threads()
    here = featviz.maximize(model, "conv2", **options)
    lost: list[int] = []

    def progress(done: int, total: int, text: str) -> None:
        if text.startswith("maximising") and done >= 12 and not lost:
            lost.append(done)
            worker = next(node for node in cluster.list_all_nodes() if not node.head)
            cluster.remove_node(worker, allow_graceful=False)

    there = featviz.maximize(model, "conv2", engine="ray", progress=progress, **options)
    assert lost
    assert len(cluster.list_all_nodes()) == 1
    assert torch.equal(here.images, there.images)
    assert torch.equal(here.trace, there.trace)
    assert torch.equal(here.scores, there.scores)
    assert torch.get_num_threads() == threads


def test_what_fails_on_a_worker_is_raised_here(cluster: Any, tmp_path: Any) -> None:
    def make(work: int, report: Any) -> dict[str, bytes]:
        if work == 2:
            raise featviz.UserError("the third cannot be made; leave it out")
        return {"n.txt": str(work).encode()}

    with pytest.raises(featviz.UserError, match="the third cannot be made"):
        map_shards(make, [Shard(str(i), i) for i in range(3)], tmp_path, engine="ray")
