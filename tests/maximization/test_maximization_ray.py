"""The same files from a Ray cluster as from here, also when it loses a machine."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import featviz

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
    """Eight batches on two machines; the second is shut down when the first two are finished."""
    model = featviz.load("alexnet-mini")
    options: dict[str, Any] = {"units": "0-7", "batch_size": 1, "steps": 6, "precision": "float32"}
    threads = torch.get_num_threads()
    here = featviz.maximize(model, "conv2", **options)
    lost: list[int] = []

    def progress(done: int, total: int, text: str) -> None:
        if text.startswith("maximizing") and done >= 12 and not lost:
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
