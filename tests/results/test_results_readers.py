"""Readers of our own files: what was changed is refused in one line, never taken for numbers."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gallery_run import figure, write_result
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import featviz
from featviz import results, schema
from featviz.checkpoints import open_checkpoint
from featviz.embedding.extract import embed
from featviz.embedding.store import open_store
from featviz.errors import UserError
from featviz.gallery.build import build_gallery
from featviz.kernels.snapshots import read_snapshots
from featviz.maximization.image_statistics import load_statistics
from featviz.models.model import Model
from featviz.neighbors.approximate import build_approximate, open_approximate
from featviz.training.files import save_growth

FEW = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
MANY = settings(FEW, max_examples=60)

HOSTILE: list[Any] = [
    *(None, True, -1, 0, 2**63, 2**200, 1e308, -1e-300, "", "x", "../x.npy", "/etc/passwd", "a\0b"),
    *("\ud800", "x" * 5000, [], {}, [[]], [None], {"a": None}, [1, "2"], "NaN", "1" * 400),
]
"""values that no field expects"""

TEXTS = {
    "an infinite number": '{"schema": 1, "seconds": 1e999}',
    "a number of 400 digits": f'{{"schema": 1, "seed": {"9" * 400}}}',
    "a number of 5,000 digits": f'{{"schema": 1, "seed": {"9" * 5000}}}',
    "NaN": '{"schema": 1, "seconds": NaN}',
    "-Infinity": '{"schema": 1, "numbers": {"a": {"value": -Infinity}}}',
    "deep lists": '{"schema": 1, "parameters": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep objects": '{"schema": 1, "parameters": ' + '{"a":' * 900 + "1" + "}" * 901,
    "depth 70": '{"schema": 1, "parameters": ' + "[" * 70 + "]" * 70 + "}",
    "a field twice": '{"schema": 1, "title": "a", "title": "b"}',
    "a huge text": '{"schema": 1, "title": "' + "x" * 2_000_000 + '"}',
    "a huge name": '{"schema": 1, "numbers": {"' + "x" * 2_000_000 + '": 1}}',
    "two documents": '{"schema": 1}{"schema": 1}',
    "nothing": "",
    "a list": "[]",
    "another schema": '{"schema": [1]}',
    "schema as true": '{"schema": true}',
}


def fields(document: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in a JSON document."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    found = []
    for name, value in items:
        found.append((*at, name))
        if isinstance(value, dict | list):
            found += fields(value, (*at, name))
    return found


@st.composite
def changed(draw: st.DrawFn, document: dict[str, Any]) -> dict[str, Any]:
    """A document with one value replaced or removed."""
    new = copy.deepcopy(document)
    *way, last = draw(st.sampled_from(fields(new)))
    place: Any = new
    for step in way:
        place = place[step]
    if draw(st.booleans()):
        del place[last]
    else:
        place[last] = draw(st.sampled_from(HOSTILE))
    return new


def changed_bytes(data: st.DataObject, content: bytes) -> bytes:
    """The content with a byte changed, cut short, or with a part twice."""
    at = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["change", "cut", "repeat", "empty"]))
    byte = bytes([content[at] ^ data.draw(st.integers(1, 255))])
    return {
        "change": content[:at] + byte + content[at + 1 :],
        "cut": content[:at],
        "repeat": content[:at] + content[at // 2 :],
        "empty": b"",
    }[kind]


def refused(read: Callable[[], object]) -> bool:
    """Whether a reader refuses in one line; any other error is the test's."""
    try:
        read()
    except UserError as error:
        return "\n" not in str(error)
    return False


class Format:
    """Files of a kind, and what reads them."""

    def __init__(self, folder: Path, read: Callable[[], object], *, sealed: bool = True):
        self.folder, self.read, self.sealed = folder, read, sealed
        self.files = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def restore(self) -> None:
        for path, content in self.files.items():
            path.write_bytes(content)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, mini: Model) -> Format:
    place = tmp_path_factory.mktemp("store") / "s"
    pictures = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    embed(mini, pictures, "conv1", labels=list("ababab"), out=place, position="random")
    for name in ("activity.svg", "result.json", "ids.parquet"):
        (place / name).unlink(missing_ok=True)
    return Format(place, lambda: open_store(place))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, mini: Model) -> Format:
    pytest.importorskip("faiss")
    place = tmp_path_factory.mktemp("index") / "s"
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 8), torch.nn.ReLU(), torch.nn.Flatten())
    pictures = torch.rand(600, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    embed(featviz.wrap(net, input_size=8), pictures, "1", out=place)
    opened = open_store(place)
    kept = build_approximate(opened, "ivf").save(place / "index")
    return Format(kept, lambda: open_approximate(kept, opened))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Format:
    place = tmp_path_factory.mktemp("pieces") / "x.partial"

    def read() -> None:
        with open_checkpoint(place, {"seed": 1}) as kept:
            arrays = kept.read("one")
        if arrays is None:
            raise UserError("it is made again")
        assert arrays["x"].tolist() == [1.5, 2.5]

    with open_checkpoint(place, {"seed": 1}) as kept:
        kept.write("one", {"x": np.array([1.5, 2.5])})
    return Format(place, read)


def test_what_is_whole_is_read(store: Format, index: Format, pieces: Format) -> None:
    for one in (store, index, pieces):
        one.read()


def try_bytes(one: Format, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(p for p in one.files if p.stat().st_size)))
    content = changed_bytes(data, one.files[path])
    # White space within JSON changes nothing.
    plain = path.suffix == ".json"
    assume(content.split() != one.files[path].split() if plain else content != one.files[path])
    try:
        path.write_bytes(content)
        assert refused(one.read), path.name
    finally:
        one.restore()


def try_fields(one: Format, data: st.DataObject, *, seal: bool) -> None:
    """A changed field is noticed; one that was sealed again may be right, but is no traceback."""
    (path,) = (p for p in one.files if p.suffix == ".json")
    document = json.loads(one.files[path])
    document.pop(schema.SEAL, None)
    new = data.draw(changed(document))
    assume(new != document)
    if seal and schema.SEAL in json.loads(one.files[path]):
        new = schema.sealed(new)
    try:
        path.write_text(json.dumps(new), encoding="utf-8")
        assert refused(one.read) or seal, path.name
    finally:
        one.restore()


@FEW
@given(data=st.data(), seal=st.booleans())
@pytest.mark.parametrize("name", ["store", "index", "pieces"])
def test_a_change_is_noticed(
    name: str, request: pytest.FixtureRequest, data: st.DataObject, seal: bool
) -> None:
    one: Format = request.getfixturevalue(name)
    try_bytes(one, data)
    try_fields(one, data, seal=seal)


@pytest.mark.long
@MANY
@given(data=st.data(), seal=st.booleans())
@pytest.mark.parametrize("name", ["store", "index", "pieces"])
def test_many_changes_are_noticed(
    name: str, request: pytest.FixtureRequest, data: st.DataObject, seal: bool
) -> None:
    one: Format = request.getfixturevalue(name)
    try_bytes(one, data)
    try_fields(one, data, seal=seal)


@pytest.mark.parametrize(
    "shard", ["../x.npy", "/etc/passwd", "a/b.npy", "..", "", "a\0b", "x" * 300]
)
def test_a_manifest_names_files_of_its_own_folder_only(store: Format, shard: str) -> None:
    path = store.folder / "manifest.json"
    document = json.loads(path.read_text())
    document.pop(schema.SEAL)
    document["shards"][0]["file"] = shard
    try:
        path.write_text(json.dumps(schema.sealed(document)))
        with pytest.raises(UserError, match="not the name of a file in the same folder"):
            store.read()
    finally:
        store.restore()


def test_a_store_moved_with_its_pictures_finds_them(mini: Model, tmp_path: Path) -> None:
    from featviz.data.samples import sample_pictures

    data = tmp_path / "a" / "data" / "class"
    data.mkdir(parents=True)
    sample_pictures(1).open(0).save(data / "x.png")
    embed(mini, data.parent, "conv1", out=tmp_path / "a" / "run" / "s")
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert open_store(tmp_path / "b" / "run" / "s").pictures.open(0).size
    for path in (tmp_path / "b" / "run").rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes(), path


GROWTH = {
    "kernels": torch.rand(2, 4, 3, 5, 5),
    "steps": torch.tensor([0, 10]),
    "top1": torch.tensor([math.nan, 0.5], dtype=torch.float64),
}
WRONG_GROWTH: list[dict[str, torch.Tensor]] = [
    {"kernels": torch.rand(2, 4, 3, 5)},
    {"kernels": torch.rand(0, 4, 3, 5, 5)},
    {"kernels": torch.rand(2, 0, 3, 5, 5)},
    {"kernels": torch.full((2, 4, 3, 5, 5), math.inf)},
    {"kernels": torch.ones(2, 4, 3, 5, 5, dtype=torch.int64)},
    {"steps": torch.tensor(3)},
    {"steps": torch.tensor([0, -1])},
    {"steps": torch.tensor([0.5, 1.0])},
    {"steps": torch.tensor([[0, 1]])},
    {"steps": torch.tensor([0, 1, 2])},
    {"top1": torch.tensor([0.5])},
    {"top1": torch.tensor([0.5, 1.5])},
    {"top1": torch.tensor([True, False])},
    {"top1": torch.tensor(0.5)},
]


@pytest.mark.parametrize("wrong", WRONG_GROWTH)
def test_growth_of_wrong_shapes_and_values_is_refused(
    wrong: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "growth.safetensors"
    save_file(GROWTH | wrong, path)
    assert refused(lambda: read_snapshots(path))


def test_a_training_state_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    save_growth(tmp_path / "g.safetensors", GROWTH["kernels"], [0, 10], [None, 0.5])
    assert read_snapshots(tmp_path / "g.safetensors").top1 == (None, 0.5)
    with open_checkpoint(tmp_path / "p", {}) as kept:
        kept.write("state", {name: tensor.numpy() for name, tensor in GROWTH.items()})
    path = tmp_path / "p" / "state.npz"
    assert read_snapshots(path).steps == (0, 10)
    content = path.read_bytes()
    for wrong in (b"", content[:100], content[:700] + b"\0\1\2\3" + content[704:], b"PK\3\4"):
        path.write_bytes(wrong)
        assert refused(lambda: read_snapshots(path))
    os.remove(path)
    path.mkdir()
    assert refused(lambda: read_snapshots(path))


STATISTICS = {
    "colors": torch.eye(3, dtype=torch.float64),
    "amplitudes": torch.ones(3, 8, 5, dtype=torch.float16),
}


@pytest.mark.parametrize(
    ("wrong", "width"),
    [
        ({"colors": torch.eye(2)}, "8"),
        ({"colors": torch.zeros(3, 3)}, "8"),
        ({"colors": torch.full((3, 3), math.nan)}, "8"),
        ({"amplitudes": torch.ones(8, 5)}, "8"),
        ({"amplitudes": torch.ones(3, 8, 4)}, "8"),
        ({"amplitudes": torch.full((3, 8, 5), math.inf)}, "8"),
        ({"amplitudes": -torch.ones(3, 8, 5)}, "8"),
        ({}, "-8"),
        ({}, "9" * 400),
        ({}, "9" * 5000),
        ({}, "eight"),
    ],
)
def test_statistics_of_wrong_shapes_and_values_are_refused(
    wrong: dict[str, torch.Tensor], width: str, tmp_path: Path
) -> None:
    path = tmp_path / "s.safetensors"
    save_file(STATISTICS, path, metadata={"name": "n", "width": "8"})
    load_statistics(path)
    save_file(STATISTICS | wrong, path, metadata={"name": "n", "width": width})
    assert refused(lambda: load_statistics(path))


@pytest.mark.parametrize("name", TEXTS)
def test_a_hostile_result_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(TEXTS[name])
    assert refused(lambda: results.read_result(tmp_path))


def test_a_result_that_is_no_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.mkdir()
    assert refused(lambda: results.read_result(tmp_path))
    path.rmdir()
    os.mkfifo(path)
    assert refused(lambda: results.read_result(tmp_path))
    path.unlink()
    path.write_bytes(b'{"schema": 1, "title": "\xff"}')
    assert refused(lambda: results.read_result(tmp_path))


def test_the_gallery_leaves_hostile_results_out_and_shows_the_rest(tmp_path: Path) -> None:
    run = tmp_path / "a.partial" / "run"  # what lies above the run does not count
    write_result(run / "good", figures=[figure("a.png")])
    for number, text in enumerate(TEXTS.values()):
        (run / f"bad-{number}").mkdir()
        (run / f"bad-{number}" / "result.json").write_text(text)
    (run / "folder" / "result.json").mkdir(parents=True)
    (run / "fifo").mkdir()
    os.mkfifo(run / "fifo" / "result.json")
    site = json.loads((build_gallery(run) / "gallery.json").read_text())
    assert [found["folder"] for found in site["results"]] == ["good"]
    assert len(site["left_out"]) == len(TEXTS) + 2


FULL: dict[str, Any] = {
    "schema": 1,
    "kind": "maximize",
    "title": "A title",
    "command": "featviz maximize",
    "model": {"name": "m", "sha256": "ab", "input_size": [64, 64], "classes": 10},
    "data": {"name": "d", "sha256": "cd", "count": 5},
    "parameters": {"layer": "conv1", "units": [1, 2]},
    "seed": 0,
    "versions": {"featviz": "0.1", "torch": "2", "python": "3", "device": "cpu"},
    "created": "2026-01-01T00:00:00+00:00",
    "seconds": 1.5,
    "numbers": {"a": {"value": 0.5, "unit": "fraction", "meaning": "m", "low": 0.4, "high": 0.6}},
    "figures": [figure("a.png", ("conv1:1",)), figure("b.svg", ("conv1:2", "logits:x"))],
    "tables": [{"file": "t.csv", "caption": "c", "columns": ["unit", "x"]}],
    "arrays": [{"file": "a.npz", "caption": "c", "names": ["x"]}],
    "warnings": ["w"],
}
PICTURES = [
    *(b"", b"<svg", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"\xff\xd8\xff\xe0"),
    b'<svg viewBox="0 0 1.2.3 4"/>',
    b'<svg viewBox="0 0 1e999 4"/>',
    b'<svg viewBox="0 0 0 0"/>',
    b'<svg viewBox="0 0 ' + b"9" * 400 + b' 4"/>',
    b'<svg viewBox=""/>',
]


def try_gallery(run: Path, data: st.DataObject) -> None:
    shutil.rmtree(run, ignore_errors=True)
    write_result(run / "good", figures=[figure("a.png")])
    folder = write_result(run / "odd", **FULL)
    (folder / "t.csv").write_text("unit,x\n1,2\n")
    new = data.draw(changed(FULL))
    (folder / "result.json").write_text(json.dumps(new), encoding="utf-8")
    for file in ("a.png", "b.svg"):
        if data.draw(st.booleans()):
            (folder / file).write_bytes(data.draw(st.sampled_from(PICTURES)))
    build_gallery(run, overwrite=True)
    assert (run / "gallery" / "results" / "good.html").is_file()


@FEW
@given(data=st.data())
def test_the_gallery_is_built_whatever_a_result_holds(tmp_path: Path, data: st.DataObject) -> None:
    try_gallery(tmp_path / "run", data)


@pytest.mark.long
@settings(MANY, max_examples=20)
@given(data=st.data())
def test_the_gallery_is_built_whatever_many_results_hold(
    tmp_path: Path, data: st.DataObject
) -> None:
    try_gallery(tmp_path / "run", data)
