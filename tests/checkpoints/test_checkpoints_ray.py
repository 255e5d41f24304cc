"""Two machines of a Ray cluster, one of which is lost midway, give the bytes that this one gives.

Machines are nodes of one cluster on this computer; they have no files in common but the pictures.
"""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

import featviz
from featviz import engine
from featviz.checkpoints import Arrays, Interrupted, open_checkpoint
from featviz.data.samples import sample_pictures
from featviz.engine import Piece, map_pieces
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.types import Engine

ray: Any = pytest.importorskip("ray")

pytestmark = [
    pytest.mark.slow,
    # Ray's own: what it deprecates in itself, and sockets that it closes late.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error::UserWarning"),
]

_NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 10**8}
_CLOCK = re.compile("seconds|created|memory|pace|engine|resumed")
"""names of what differs from run to run"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args=_NODE | {"include_dashboard": False})
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        try:
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


@pytest.fixture
def lost(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pieces that were finished when a machine was lost, behind the first, and after."""
    second = cluster.add_node(**_NODE)
    cluster.wait_for_nodes()
    names: list[str] = []
    result = engine._result

    def lose(ray: Any, reference: Any) -> Arrays:
        arrays = result(ray, reference)
        if not names:
            cluster.remove_node(second, allow_graceful=False)
        names.append(str(reference))
        return arrays

    monkeypatch.setattr(engine, "_result", lose)
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty small pictures in class folders, one of which cannot be read."""
    root = tmp_path_factory.mktemp("pictures") / "data"
    some = sample_pictures(2)
    for row in range(len(some)):
        place = root / some.folders[row] / f"{row:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        some.open(row).resize((70, 70)).save(place)
    sorted(root.rglob("*.png"))[7].write_bytes(b"no picture")
    return root


Analysis = Callable[..., Any]

ANALYSES: dict[str, Analysis] = {
    "maximize": lambda model, data, **how: featviz.maximize(
        model, "conv2", units="0-3", pictures=data, precision="float32", **_FEW, **how
    ),
    "facets": lambda model, data, **how: featviz.draw_facets(
        model, "conv2", units="0-2", count=2, **_FEW, **how
    ),
    "invert": lambda model, data, **how: featviz.invert(
        model,
        _some(model, data, 3),
        ["conv1", "conv2"],
        others=_some(model, data, 2),
        **_FEW,
        **how,
    ),
    "deepdream": lambda model, data, **how: featviz.deepdream(
        model, _some(model, data, 3), ["conv2"], octaves=2, **_FEW, **how
    ),
    "attribute": lambda model, data, **how: featviz.attribute(
        model, _some(model, data, 4), methods=["saliency", "grad_cam"], **how
    ),
    "top patches": lambda model, data, **how: featviz.top_patches(
        model, data, "conv3", units="0-5", k=3, batch_size=4, **how
    ),
    "corruptions": lambda model, data, **how: featviz.corruption_table(
        model, data, names=["gaussian_noise", "fog"], severities=[1, 4], **how
    ),
    "audit": lambda model, data, **how: featviz.audit(
        model,
        data,
        norms=["linf", "l2"],
        count=12,
        steps=10,
        check_steps=3,
        queries=4,
        batch_size=3,
        parts=["corruptions", "transfer"],
        **how,
    ),
    "compare": lambda model, data, **how: featviz.compare(
        model,
        model,
        data,
        parts=["robustness", "corruptions"],
        norms=["l2"],
        steps=10,
        corruptions=["fog"],
        severities=[2, 3],
        count=8,
        batch_size=4,
        names=("one", "other"),
        **how,
    ),
    "describe": lambda model, data, **how: featviz.describe_units(
        model, data, "relu5", permutations=60, least=2, pairs=False, tuning=False, **how
    ),
    "ablate": lambda model, data, **how: featviz.ablate(
        model, "conv5", data, units="0-5", batch_size=4, controls=2, how="mean", **how
    ),
    "circuits": lambda model, data, **how: featviz.trace_circuits(
        model, ["conv2:0-9"], data, icons="patches", **how
    ),
    "cards": lambda model, data, **how: featviz.concept_cards(
        model,
        _concepts(model, data),
        data,
        patches=2,
        class_pictures=1,
        designs=4,
        classes=[0, 1, 2],
        steps=4,
        **how,
    ),
    "grid": lambda model, data, **how: featviz.activation_grid(
        model, _some(model, data, 1)[0], "relu2", cells=2, groups=2, steps=4, **how
    ),
    "atlas": lambda model, data, engine="here": featviz.build_atlas(
        model,
        featviz.embed(model, data),
        icons="both",
        sides=[2],
        icon_side=2,
        icon=featviz.IconSettings(steps=4, batch_size=1, engine=engine),
    ),
}
_FEW: dict[str, Any] = {"steps": 3, "batch_size": 1}


def _some(model: Model, data: Path, count: int) -> torch.Tensor:
    paths = sorted(data.rglob("*.png"))[:count]
    return featviz.read_batch(model, paths).pictures


def _concepts(model: Model, data: Path) -> featviz.Concepts:
    store = featviz.embed(model, data, "relu5", positions="all")
    return featviz.find_concepts(store, count=3, seeds=1)


def embed(model: Model, data: Path, out: Path, how: Engine) -> None:
    featviz.embed_layers(
        model,
        data,
        ["relu3", "relu7"],
        out=out,
        engine=how,
        batch_size=5,
        shard_bytes=5 * 2 * 640,
        position="random",
    )


def files_of(folder: Path) -> dict[str, Any]:
    """The content of a result folder by name, without what a clock says."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if not _CLOCK.search(k)}
        if isinstance(value, str):
            return re.sub(r"[0-9.]+ s\b", "", value)
        return [timeless(one) for one in value] if isinstance(value, list) else value

    def content(path: Path) -> Any:
        if path.suffix == ".json":
            return timeless(json.loads(path.read_text()))
        if path.suffix == ".csv":
            return timeless(list(csv.DictReader(path.read_text().splitlines())))
        if path.suffix == ".npz":
            return timeless({name: a.tobytes() for name, a in np.load(path).items()})
        return path.read_bytes()

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): content(path) for path in files}


@pytest.mark.long
@pytest.mark.parametrize("name", ANALYSES)
def test_a_machine_is_lost_midway_and_the_result_is_the_same(
    name: str,
    lost: list[str],
    mini: Model,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("ablation.ablate", "descriptions.units", "top_scores"):
        monkeypatch.setattr(f"featviz.{module}._PIECE", 8)
    make = ANALYSES[name]
    make(mini, folder, engine="ray").save(tmp_path / "there")
    assert len(lost) > 2
    make(mini, folder).save(tmp_path / "here")
    here, there = files_of(tmp_path / "here"), files_of(tmp_path / "there")
    assert here.keys() == there.keys()
    assert [file for file in here if here[file] != there[file]] == []


def test_a_machine_is_lost_midway_and_the_stores_are_the_same(
    lost: list[str], mini: Model, folder: Path, tmp_path: Path
) -> None:
    for how in get_args(Engine):
        embed(mini, folder, tmp_path / how, how)
    assert len(lost) > 2
    assert not (tmp_path / "ray.partial").exists()
    assert files_of(tmp_path / "here") == files_of(tmp_path / "ray")


def test_a_run_that_was_stopped_goes_on_on_another_engine(
    cluster: Any, mini: Model, folder: Path, tmp_path: Path
) -> None:
    def stop(done: int, total: int, text: str) -> None:
        if done:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"names": ["fog"], "severities": [1, 2, 3], "count": 4}
    kept = options | {"checkpoint": tmp_path / "p"}
    with pytest.raises(Interrupted, match=r"kept 4 of 12 corrupted pictures; give the same"):
        featviz.corruption_table(mini, folder, engine="ray", progress=stop, **kept)
    found = featviz.corruption_table(mini, folder, **kept)
    whole = featviz.corruption_table(mini, folder, **options)
    assert torch.equal(found.predictions["fog"], whole.predictions["fog"])


def mapped(make: engine.Make, count: int = 4) -> list[Arrays]:
    pieces = [Piece(f"piece-{i}", i) for i in range(count)]
    with open_checkpoint(None, {}, engine="ray") as kept:
        return list(map_pieces(make, pieces, kept))


def test_pieces_come_in_order_with_the_threads_of_this_process(cluster: Any) -> None:
    # Local, so that they are sent as they are: the workers cannot import this module.
    def cube(i: int, report: Callable[[int], None]) -> Arrays:
        return {"cube": np.array([i**3, torch.get_num_threads(), os.getpid()])}

    found = [arrays["cube"].tolist() for arrays in mapped(cube)]
    assert [cube for cube, *_ in found] == [0, 1, 8, 27]
    assert {threads for _, threads, _ in found} == {torch.get_num_threads()}
    assert os.getpid() not in {pid for *_, pid in found}


def test_what_fails_on_a_worker_is_the_line_that_it_is_here(cluster: Any) -> None:
    def fail(i: int, report: Callable[[int], None]) -> Arrays:
        raise UserError("none can be made; leave them out")

    with pytest.raises(UserError, match=r"^none can be made; leave them out$"):
        mapped(fail)


def test_a_worker_that_is_killed_again_and_again_is_one_line(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system does where memory is short."""
    monkeypatch.setattr(engine, "_LOSSES", 1)

    def die(i: int, report: Callable[[int], None]) -> Arrays:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    with pytest.raises(UserError, match=r"lost with a piece of the work .* they may lack memory"):
        mapped(die, 1)


def test_a_worker_with_another_featviz_is_refused(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(featviz, "__version__", "0.0.1")
    with pytest.raises(UserError, match=r"a worker of Ray has featviz .*, this machine 0\.0\.1"):
        mapped(lambda i, report: {})
