"""Stores: what goes in comes out, a run that was stopped ends with the same bytes."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Never

import numpy as np
import pytest
import torch
from torch import nn

import featviz
from featviz.data.datasets import open_pictures
from featviz.embedding.extract import default_layer, embed, embed_batch
from featviz.embedding.store import Store, open_store
from featviz.errors import UserError
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.pictures import images

SIDE = 16


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.relu = nn.ReLU()
        self.flat = nn.Flatten()
        self.fc = nn.Linear(4 * 7 * 7, 6)
        self.act = nn.ReLU()
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.act(self.fc(self.flat(self.relu(self.conv(x))))))
        return logits


@pytest.fixture(scope="module")
def model() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Small()
    aliases = {
        "conv1": "conv",
        "relu1": "relu",
        "fc7": "fc",
        "relu7": "act",
        "logits": "head",
    }
    classes = [("", "cat"), ("", "dog"), ("", "owl")]
    return Model(net, name="small", preprocessing=SIDE, aliases=aliases, classes=classes)


@pytest.fixture
def data(tmp_path: Path, generator: torch.Generator) -> Path:
    """13 pictures of three classes, of which two are broken."""
    folder = tmp_path / "data"
    for number in range(13):
        place = folder / ("cat", "dog", "owl")[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        size = (3, SIDE + number, SIDE + 2)
        images.write_png(torch.rand(size, generator=generator), place / f"{number:02}.png")
    (folder / "dog" / "04.png").write_bytes(b"no picture")
    whole = (folder / "owl" / "02.png").read_bytes()
    (folder / "owl" / "02.png").write_bytes(whole[: len(whole) // 2])
    return folder


FOUR_ROWS = 4 * 6 * 2
"""bytes of a shard of four rows of relu7"""


def oracle(model: Model, data: Path, layer: str) -> torch.Tensor:
    """One picture at a time, through the net itself."""
    rows = []
    for row in range(13):
        pictures = open_pictures(data)
        if pictures.paths[row] in {"dog/04.png", "owl/02.png"}:
            continue
        x = pictures.shown(row, SIDE)[None]
        net = model.net
        assert isinstance(net, Small)
        with torch.no_grad():
            maps = net.relu(net.conv(x))
            hidden = net.fc(net.flat(maps))
        values = {"relu1": maps.mean((2, 3)), "fc7": hidden, "relu7": hidden.relu()}[layer]
        rows.append(values[0])
    return torch.stack(rows)


@pytest.mark.parametrize("layer", ["relu1", "fc7", "relu7"])
def test_rows_are_the_activations_of_the_pictures_in_order(
    model: Model, data: Path, layer: str
) -> None:
    store = embed(model, data, layer, batch_size=3)
    expected = oracle(model, data, layer)
    # float16 keeps 11 bits
    torch.testing.assert_close(store.matrix(), expected, rtol=1e-3, atol=1e-4)
    assert [Path(p).stem for p in store.pictures.paths][:3] == ["00", "03", "06"]
    assert store.pooled == (layer == "relu1")


def test_the_space_behind_the_relu_is_the_default_and_the_other_is_pointed_out(
    model: Model, data: Path
) -> None:
    assert embed(model, data).layer == "relu7"
    assert not embed(model, data).warnings[1:]
    warning = embed(model, data, "fc7").warnings[0]
    assert "before its ReLU" in warning
    assert "relu7" in warning


def test_a_model_without_names_is_read_before_its_classes(model: Model) -> None:
    bare = Model(model.net, name="bare", preprocessing=SIDE)
    assert default_layer(bare) == "act"


def test_disk_and_memory_hold_the_same_numbers(model: Model, data: Path, tmp_path: Path) -> None:
    kept = embed(model, data, out=tmp_path / "s", batch_size=2, shard_bytes=FOUR_ROWS)
    here = embed(model, data, batch_size=2, shard_bytes=FOUR_ROWS)
    again = open_store(tmp_path / "s")
    for store in (kept, again):
        assert torch.equal(store.matrix(), here.matrix())
        assert store.labels == here.labels
        assert np.array_equal(store.sizes, here.sizes)
        assert store.skipped == here.skipped
        assert store.class_name(0) == "cat"
    here.save(tmp_path / "t")
    assert torch.equal(open_store(tmp_path / "t").matrix(), here.matrix())
    assert torch.equal(again.take([7, 0, 7]), here.matrix()[[7, 0, 7]])
    assert torch.equal(torch.cat(list(again.blocks(3))), here.matrix())


def test_broken_pictures_are_skipped_counted_and_listed(
    model: Model, data: Path, tmp_path: Path
) -> None:
    store = embed(model, data, out=tmp_path / "s", shard_bytes=FOUR_ROWS)
    assert len(store) == 11
    assert {left.path for left in store.skipped} == {"dog/04.png", "owl/02.png"}
    assert store.numbers()["skipped"].value == 2
    with (tmp_path / "s" / "skipped.csv").open() as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["path", "reason"]
    assert {line[0] for line in lines[1:]} == {"dog/04.png", "owl/02.png"}
    with (tmp_path / "s" / "ids.csv").open() as file:
        ids = list(csv.DictReader(file))
    assert [int(line["row"]) for line in ids] == list(range(11))
    assert ids[1] == {
        "row": "1",
        "path": "cat/03.png",
        "class": "cat",
        "width": "18",
        "height": "19",
    }


def test_a_folder_is_a_store_and_a_result(model: Model, data: Path, tmp_path: Path) -> None:
    embed(model, data, out=tmp_path / "s", shard_bytes=FOUR_ROWS)
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert manifest["rows"] == 11
    assert manifest["dim"] == 6
    assert manifest["dtype"] == "float16"
    assert manifest["model"]["sha256"] == model.sha256
    assert [shard["file"] for shard in manifest["shards"]] == [
        f"shard-{i:05}.npy" for i in range(3)
    ]
    result = json.loads((tmp_path / "s" / "result.json").read_text())
    assert result["kind"] == "embed"
    assert result["numbers"]["rows"]["value"] == 11
    assert 0 < result["numbers"]["zeros"]["value"] < 1
    assert not (tmp_path / "s.partial").exists()


def test_numbers_agree_with_the_matrix(model: Model, data: Path) -> None:
    store = embed(model, data)
    matrix = store.matrix().double().numpy()
    numbers = store.numbers()
    assert numbers["zeros"].value == pytest.approx((matrix == 0).mean())
    assert numbers["mean norm"].value == pytest.approx(np.linalg.norm(matrix, axis=1).mean())
    assert numbers["inactive units"].value == ((matrix > 0).sum(0) == 0).sum()


class Killed(BaseException):
    """What stops a run between two pieces."""


def killed(*_: object, **__: object) -> Never:
    raise Killed


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_run_that_was_stopped_ends_with_the_same_bytes(
    model: Model, data: Path, tmp_path: Path, after: int
) -> None:
    options: dict[str, Any] = {"batch_size": 3, "shard_bytes": FOUR_ROWS}
    embed(model, data, out=tmp_path / "whole", **options)

    def stop(done: int, total: int, text: str) -> None:
        if done > 3 * after:
            raise Killed

    with pytest.raises(Killed):
        embed(model, data, out=tmp_path / "cut", progress=stop, **options)
    assert not (tmp_path / "cut").exists()
    partial = tmp_path / "cut.partial"
    assert len(list(partial.glob("rows-*.npz"))) == after
    # A piece that was being written, and one that was damaged since, are made again.
    (partial / ".rows-00000009.part").write_bytes(b"half")
    content = (partial / "rows-00000000.npz").read_bytes()
    (partial / "rows-00000000.npz").write_bytes(content[:-40] + b"\xff" + content[-39:])
    forwards: list[int] = []
    embed(model, data, out=tmp_path / "cut", progress=lambda n, *_: forwards.append(n), **options)
    assert forwards[0] == 3 * (after - 1)
    first, second = tmp_path / "whole", tmp_path / "cut"
    names = {p.name for p in first.iterdir()}
    assert names == {p.name for p in second.iterdir()}
    for name in names - {"result.json"}:  # that one holds the time
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_finished_pieces_are_not_made_again(
    model: Model, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    with monkeypatch.context() as broken:
        broken.setattr(Store, "write", killed)
        with pytest.raises(Killed):
            embed(model, data, out=tmp_path / "t", shard_bytes=FOUR_ROWS)
    embed(
        model,
        data,
        out=tmp_path / "t",
        shard_bytes=FOUR_ROWS,
        progress=lambda n, *_: done.append(n),
    )
    assert done == [13]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"layer": "fc7"}, "layers relu7, now fc7"),
        ({"batch_size": 3}, "batch_size 4, now 3"),
        ({"precision": "bfloat16"}, "precision float32, now bfloat16"),
    ],
)
def test_pieces_of_another_job_are_neither_used_nor_thrown_away(
    model: Model,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    other: dict[str, Any],
    why: str,
) -> None:
    options: dict[str, Any] = {
        "layer": "relu7",
        "batch_size": 4,
        "shard_bytes": FOUR_ROWS,
        "out": tmp_path / "s",
    }
    with monkeypatch.context() as broken:
        broken.setattr(Store, "write", killed)
        with pytest.raises(Killed):
            embed(model, data, **options)
    for overwrite in (False, True):
        with pytest.raises(UserError, match=f"another command .*{why}.* choose another --out"):
            embed(model, data, **options | other | {"overwrite": overwrite})
    assert (tmp_path / "s.partial" / "rows-00000000.npz").is_file()
    expected = embed(model, data, **options | {"out": None})
    assert torch.equal(embed(model, data, **options).matrix(), expected.matrix())


def test_pictures_that_were_changed_between_two_runs_are_noticed(
    model: Model, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"shard_bytes": FOUR_ROWS, "out": tmp_path / "s"}
    with monkeypatch.context() as broken:
        broken.setattr(Store, "write", killed)
        with pytest.raises(Killed):
            embed(model, data, **options)
    shutil.copy(data / "cat" / "03.png", data / "cat" / "00.png")
    with pytest.raises(UserError, match="other content of the picture files"):
        embed(model, data, **options)
    with pytest.raises(UserError, match="other list of pictures"):
        embed(model, open_pictures(data).select(range(9)), **options)


def test_every_missing_or_damaged_shard_is_named(model: Model, data: Path, tmp_path: Path) -> None:
    embed(model, data, out=tmp_path / "s", shard_bytes=FOUR_ROWS)
    (tmp_path / "s" / "shard-00001.npy").unlink()
    file = tmp_path / "s" / "shard-00002.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(
        UserError, match=r"shard-00001.npy is missing, shard-00002.npy is damaged; embed again"
    ):
        open_store(tmp_path / "s")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"shard-00002.npy is damaged"):
        open_store(tmp_path / "s", verify=False)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: (s / "manifest.json").unlink(), "is no store"),
        (lambda s: (s / "manifest.json").write_text("{"), "cannot be read"),
        (lambda s: (s / "manifest.json").write_text('{"schema": 9}'), "schema 9"),
        (lambda s: (s / "manifest.json").write_text('{"schema": 2}'), "is damaged"),
        (lambda s: (s / "ids.csv").unlink(), "ids.csv is missing"),
        (lambda s: (s / "ids.csv").write_text("row,path\n0,x\n"), "was changed since"),
        (lambda s: (s / "ids.csv").write_text("row,path,class,width,height\n"), "was changed"),
    ],
)
def test_damage_is_said_in_one_line(
    model: Model, data: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    embed(model, data, out=tmp_path / "s")
    damage(tmp_path / "s")
    with pytest.raises(UserError, match=message):
        open_store(tmp_path / "s")


def test_bad_arguments_are_refused_before_the_work(
    model: Model, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no layer 'relu9'; did you mean relu7"):
        embed(model, data, "relu9")
    embed(model, data, out=tmp_path / "s")
    with pytest.raises(UserError, match="--overwrite"):
        embed(model, data, out=tmp_path / "s")
    with pytest.raises(UserError, match="batch_size is 0"):
        embed(model, data, batch_size=0)
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial" / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match=r"is not empty and has no job\.json"):
        embed(model, data, out=tmp_path / "x")
    assert (tmp_path / "x.partial" / "mine.txt").exists()
    for broken in data.rglob("*.png"):
        broken.write_bytes(b"")
    with pytest.raises(UserError, match="no picture of"):
        embed(model, data, shard_bytes=FOUR_ROWS)


def test_values_beyond_float16_have_an_exponent_and_beyond_float32_are_an_error(
    model: Model,
) -> None:
    net = Small()
    net.load_state_dict(model.net.state_dict())
    net.fc.weight.data *= 1e7
    loud = Model(net, name="loud", preprocessing=SIDE, aliases={"relu7": "act"})
    pictures = torch.ones(1, 3, SIDE, SIDE)
    values = activations(loud, pictures, ["relu7"])["relu7"]
    assert float(values.max()) > 65504
    torch.testing.assert_close(embed(loud, pictures).matrix(), values, rtol=1e-3, atol=1)
    net.fc.weight.data *= 1e33
    with pytest.raises(UserError, match="not finite"):
        embed(loud, pictures)


def test_tensors_are_embedded_as_they_are(model: Model, generator: torch.Generator) -> None:
    pictures = torch.rand(5, 3, SIDE, SIDE, generator=generator)
    store = embed(model, pictures, labels=list("abcab"), batch_size=5)
    assert torch.equal(store.matrix(), embed_batch(model, pictures, "relu7"))
    assert store.labels == ("a", "b", "c", "a", "b")
    assert store.pictures.open(3).size == (SIDE, SIDE)
    with pytest.raises(UserError, match="2 labels for 5 pictures"):
        embed(model, pictures, labels=["a", "b"])


def test_samples_are_found_again(mini: Model, tmp_path: Path) -> None:
    from featviz.data.samples import sample_pictures

    some = sample_pictures(2)
    embed(mini, some, out=tmp_path / "s")
    store = open_store(tmp_path / "s")
    assert store.pictures.open(0).tobytes() == some.open(0).tobytes()


def test_a_full_disk_is_named_and_leaves_no_half_written_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> Never:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    model, data = featviz.load("alexnet-mini"), featviz.sample_pictures(1)
    with pytest.raises(UserError, match="no space left on the disk"):
        embed(model, data.select([0, 1]), "conv1", out=tmp_path / "store")
    assert list(tmp_path.iterdir()) == []
