"""The same store from a Ray cluster as from here, also when it loses a machine."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from featviz.data.samples import sample_pictures
from featviz.embedding.extract import embed, embed_layers
from featviz.engine import _parcel
from featviz.errors import UserError
from featviz.models.load import load
from featviz.models.model import Model

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own deprecations and late sockets


@pytest.fixture
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 10**8}
        made = Cluster(initialize_head=True, head_node_args=small | {"include_dashboard": False})
        made.add_node(**small)
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        made.wait_for_nodes()
        try:
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


@pytest.mark.slow
def test_a_machine_is_lost_midway_and_the_stores_are_the_same(
    cluster: Any, mini: Model, tmp_path: Path
) -> None:
    """Eleven pieces on two machines; the second is shut down when the first three are finished."""
    data = tmp_path / "data"
    some = sample_pictures(3)
    for row in range(len(some)):
        place = data / some.folders[row] / f"{row:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        some.open(row).resize((70, 70)).save(place)
    sorted(data.rglob("*.png"))[7].write_bytes(b"no picture")
    layers = ["relu3", "relu7"]
    options: dict[str, Any] = {"batch_size": 5, "shard_bytes": 5 * 2 * 640, "position": "random"}
    embed_layers(mini, data, layers, out=tmp_path / "here", **options)
    lost: list[int] = []

    def progress(done: int, total: int, text: str) -> None:
        if done >= 15 and not lost:
            lost.append(done)
            worker = next(node for node in cluster.list_all_nodes() if not node.head)
            cluster.remove_node(worker, allow_graceful=False)

    stores = embed_layers(
        mini, data, layers, out=tmp_path / "there", engine="ray", progress=progress, **options
    )
    assert lost
    assert lost[0] < len(some)
    assert len(cluster.list_all_nodes()) == 1
    for layer in layers:
        assert len(stores[layer]) == len(some) - 1
        names = {p.name for p in (tmp_path / "here" / layer).iterdir()}
        assert names == {p.name for p in (tmp_path / "there" / layer).iterdir()}
        for name in names - {"result.json"}:
            here, there = (tmp_path / where / layer / name for where in ("here", "there"))
            assert here.read_bytes() == there.read_bytes(), name
    assert not (tmp_path / "there.partial").exists()


def test_an_unknown_engine_is_refused(mini: Model) -> None:
    with pytest.raises(UserError, match="engine is 'spark'"):
        embed(mini, sample_pictures(1), engine="spark")  # type: ignore[arg-type]


BLOCKS = """
from torch import nn

class Block(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 3)
"""
NET = """
from torch import nn
from blocks_of_mine import Block
from .blocks_of_mine import Block as Same

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = Block(), Same()

    def forward(self, x):
        return (self.one(x) + self.two(x)).mean((2, 3))
"""


def test_a_model_of_a_file_is_sent_with_its_modules(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    (tmp_path / "blocks_of_mine.py").write_text(BLOCKS)
    (tmp_path / "net.py").write_text(NET)
    model = load(f"{tmp_path / 'net.py'}:Net", input_size=8)

    class Sent:
        """In place of Ray, whose workers lie elsewhere."""

        cloudpickle = ray.cloudpickle
        put = staticmethod(ray.cloudpickle.dumps)

    (tmp_path / "parcel").write_bytes(_parcel(Sent, model))
    (tmp_path / "blocks_of_mine.py").unlink()
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).classes)"
    command = [sys.executable, "-c", code, str(tmp_path / "parcel")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(model.classes), done.stderr
    model.net.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"cannot be sent .*_thread.lock.*leave --engine out"):
        _parcel(Sent, model)
    sys.modules.pop("blocks_of_mine")
