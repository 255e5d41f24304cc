"""Precision, decoder and odd places for data: what they change, and what they must not."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from featviz.data.datasets import open_pictures
from featviz.data.from_python import as_pictures
from featviz.data.samples import sample_pictures
from featviz.embedding.extract import embed, embed_batch
from featviz.embedding.store import open_store
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.models.precision import has_bfloat16
from featviz.neighbors.exact import build_index
from featviz.types import Precision

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")

needs_bf16 = pytest.mark.skipif(
    not has_bfloat16(torch.device("cpu")), reason="this processor does not compute in bf16"
)


def jpegs(folder: Path, count: int, side: int) -> Path:
    """Sample pictures as large JPEGs."""
    some = sample_pictures(2)
    for row in range(count):
        place = folder / some.folders[row] / f"{row:02}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        some.open(row).resize((side, side)).save(place, quality=92)
    return folder


@pytest.mark.numeric
@needs_bf16
@pytest.mark.slow
def test_neighbors_in_bfloat16_agree_with_float32(mini: Model, shared_data: Path) -> None:
    """200 photographs; of each the ten nearest (docs/embedding.md: the same on thousands)."""
    photographs = open_pictures(shared_data / "imagenet_val").spread(200)
    found = []
    for precision in PRECISIONS:
        store = embed(mini, photographs, precision=precision)
        assert store.precision == precision
        everything = torch.arange(len(store))
        index = build_index(store)
        found.append((index, index.search(store.matrix(), 10, exclude=everything)[1]))
    (exact, wanted), (_, got) = found
    # Rows as near as the tenth are as good as the tenth: the float32 space decides.
    rows = exact.take(range(200)).numpy()
    distances = torch.from_numpy(exact.distances(rows, got.numpy()))
    last = torch.from_numpy(exact.distances(rows, wanted.numpy())[:, -1:])
    hits = (got[:, :, None] == wanted[:, None, :]).any(2) | (distances <= last)
    assert hits.double().mean() >= 0.99
    assert not torch.equal(got, wanted)  # it is another arithmetic, so the test can fail


@pytest.mark.numeric
@needs_bf16
def test_bfloat16_is_near_and_leaves_the_model_as_it_was(mini: Model) -> None:
    before = {name: value.clone() for name, value in mini.state_dict().items()}
    high, low = (embed(mini, sample_pictures(2), precision=p) for p in PRECISIONS)
    cosine = torch.cosine_similarity(low.matrix().double(), high.matrix().double())
    assert 0 < (1 - cosine).max() < 1e-3  # bf16 keeps 8 bits: 1 - cos about 2^-16 times a few
    assert all(torch.equal(before[name], value) for name, value in mini.state_dict().items())
    assert embed(mini, sample_pictures(1)).precision == "float32"  # few pictures: no haste
    one = sample_pictures(2).read(5, mini.preprocessing)[None]
    again = embed_batch(mini, one, low.layer, precision="bfloat16")
    nearer = torch.cosine_similarity(again.double(), low.take([5]).double())
    assert 1 - nearer < (1 - cosine)[5]  # a query is computed as the store was


def test_a_fast_decoder_is_recorded_with_what_it_costs(mini: Model, tmp_path: Path) -> None:
    data = jpegs(tmp_path / "data", 20, 320)
    exact = embed(mini, data)
    fast = embed(mini, data, decoder="fast", out=tmp_path / "s")
    cosine = torch.cosine_similarity(exact.matrix().double(), fast.matrix().double())
    assert fast.drift is not None
    assert fast.drift.pictures == 20
    assert fast.drift.mean == pytest.approx(float((1 - cosine).mean()), rel=1e-9)
    assert fast.drift.largest == pytest.approx(float((1 - cosine).max()), rel=1e-9)
    assert 0 < fast.drift.mean < 0.05
    again = open_store(tmp_path / "s")
    assert again.drift == fast.drift
    assert again.decoder.startswith("fast (")
    shown = json.loads((tmp_path / "s" / "result.json").read_text())["numbers"]["decoder drift"]
    assert shown["value"] == pytest.approx(fast.drift.mean)
    assert exact.drift is None
    assert exact.decoder == "exact"
    assert (again.sizes == 320).all()  # the file's size, not that of the scaled picture


def test_a_tar_gives_the_store_of_its_folder(mini: Model, tmp_path: Path) -> None:
    data = jpegs(tmp_path / "data", 9, 70)
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        for file in sorted(data.rglob("*.jpg")):
            archive.add(file, file.relative_to(data).as_posix())
    folder, tar = embed(mini, data), embed(mini, tmp_path / "data.tar")
    assert torch.equal(folder.matrix(), tar.matrix())
    assert folder.pictures.paths == tar.pictures.paths
    assert folder.labels == tar.labels
    with tarfile.open(tmp_path / "small.tar", "w:gz") as archive:
        archive.add(data / folder.pictures.paths[0], "x.jpg")
    with pytest.raises(UserError, match="not a tar that can be read"):
        embed(mini, tmp_path / "small.tar")


def test_a_tar_is_searched_once_and_not_for_each_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "many.tar", "w") as archive:
        for number in range(300):
            info = tarfile.TarInfo(f"{number:05}.jpg")
            info.size = 4
            archive.addfile(info, io.BytesIO(b"%04d" % number))
    opened = []
    original = tarfile.open

    def noted(*args: Any, **options: Any) -> tarfile.TarFile:
        opened.append(args)
        return original(*args, **options)

    monkeypatch.setattr(tarfile, "open", noted)
    pictures = open_pictures(tmp_path / "many.tar")
    some = pictures.select([299, 0, 150])
    assert [some.content(row) for row in range(3)] == [b"0299", b"0000", b"0150"]
    assert len(opened) == 1


@pytest.mark.skipif(os.name == "nt", reason="rights are others there")
def test_a_folder_that_cannot_be_read_is_not_passed_over(
    mini: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = jpegs(tmp_path / "data", 9, 70)
    closed = next(p for p in sorted(data.iterdir()) if p.is_dir())
    original = os.scandir

    def refuse(place: Path) -> object:  # as for another user; root may read everything
        if Path(place) == closed:
            raise PermissionError(13, "Permission denied", str(place))
        return original(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=f"{closed.name} cannot be read .*would be missing"):
        embed(mini, data)


def test_a_store_may_lie_inside_its_data(mini: Model, tmp_path: Path) -> None:
    """Nothing in a store is taken for a picture, also not from shards of a run that was cut."""
    data = jpegs(tmp_path / "data", 9, 70)
    first = embed(mini, data, out=data / "run" / "s")
    second = embed(mini, data, out=data / "run" / "t")
    assert torch.equal(first.matrix(), second.matrix())
    assert len(second) == 9


def test_nothing_in_a_store_tells_how_its_data_was_spelled(
    mini: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither absolute paths nor relative ones, also of what was skipped."""
    data = jpegs(tmp_path / "data", 9, 70)
    sorted(data.rglob("*.jpg"))[2].write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    embed(mini, "data", out=tmp_path / "s")
    embed(mini, data, out=tmp_path / "t")
    for name in ("skipped.csv", "ids.csv", "manifest.json"):
        assert (tmp_path / "s" / name).read_bytes() == (tmp_path / "t" / name).read_bytes(), name
    assert str(tmp_path) not in (tmp_path / "s" / "skipped.csv").read_text()


def test_a_machine_without_the_data_does_not_skip_everything(mini: Model, tmp_path: Path) -> None:
    data = open_pictures(jpegs(tmp_path / "data", 4, 70))
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is not on this machine"):
        embed(mini, data, out=tmp_path / "s")
    assert {p.name for p in tmp_path.iterdir()} == {"elsewhere"}


def test_a_trunk_without_a_head_is_read_before_its_end(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 7))
    trunk = Model(net, name="trunk", preprocessing=8, headless=True)
    pictures = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    store = embed(trunk, pictures, out=tmp_path / "s", precision="float32")
    torch.testing.assert_close(store.matrix(), net(pictures), rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="trunk without a head"):
        embed(trunk, pictures, "logits")


def test_tensors_are_told_apart_when_a_run_goes_on() -> None:
    one, other = torch.zeros(3, 3, 8, 8), torch.ones(3, 3, 8, 8)
    assert as_pictures(one).sha256 == as_pictures(other).sha256  # names only
    assert as_pictures(one).state != as_pictures(other).state


def test_large_stores_are_opened_without_reading_them(
    mini: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(mini, sample_pictures(1), out=tmp_path / "s")
    file = tmp_path / "s" / "shard-00000.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="damaged"):
        open_store(tmp_path / "s")
    monkeypatch.setattr("featviz.embedding.store._HASHED", 0)
    read = []
    original = np.memmap.__getitem__

    def noted(rows: Any, at: Any) -> Any:
        read.append(at)
        return original(rows, at)

    monkeypatch.setattr(np.memmap, "__getitem__", noted)
    open_store(tmp_path / "s")  # sizes agree, which is all that is looked at
    assert not read
    with pytest.raises(UserError, match="damaged"):
        open_store(tmp_path / "s", verify=True)
