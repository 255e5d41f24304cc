"""Killed at any moment (kill -9, for real) and started again: the same bytes."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import forked
import pytest
import torch

from featviz.data.datasets import Pictures
from featviz.data.samples import sample_pictures
from featviz.embedding.extract import embed, embed_layers
from featviz.embedding.store import open_store
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.results import list_results

LAYERS = ("relu3", "relu7")
OPTIONS: dict[str, Any] = {
    "position": "random",
    "seed": 4,
    "batch_size": 4,
    "shard_bytes": 4 * 2 * 640,
}
"""shards and pieces of four rows"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """42 pictures, two of them broken."""
    some = sample_pictures(3)
    for row in range(42):
        place = tmp_path / "data" / some.folders[row] / f"{row:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        some.open(row).resize((80, 72)).save(place)
    broken = sorted((tmp_path / "data").rglob("*.png"))
    broken[5].write_bytes(broken[5].read_bytes()[:200])
    broken[6].write_bytes(b"")
    return tmp_path / "data"


def bytes_of(store: Path) -> dict[str, bytes]:
    """All files but result.json, which holds the time."""
    found = {p.name: p.read_bytes() for p in store.iterdir() if p.name != "result.json"}
    assert {"manifest.json", "ids.csv", "skipped.csv", "shard-00000.npy"} <= found.keys()
    return found


@pytest.mark.slow
def test_killed_three_times_several_layers_end_with_the_same_bytes(
    mini: Model, data: Path, tmp_path: Path
) -> None:
    embed_layers(mini, data, LAYERS, out=tmp_path / "whole", **OPTIONS)
    cut = tmp_path / "cut"
    now = forked.FORK.Value("i", 0)

    def work(pause: float) -> None:
        def say(done: int, *_: object) -> None:
            now.value = done
            time.sleep(pause)

        embed_layers(mini, data, LAYERS, out=cut, progress=say, **OPTIONS)

    reached = 0
    for wanted in (3, 16, 29):  # progress at which the process dies, wherever it then is
        # slowly, so that a fast machine has not finished before it is killed
        now.value = 0
        process = forked.start(partial(work, 0.1))
        while process.is_alive() and now.value < wanted:
            time.sleep(0.002)
        time.sleep(0.01 * wanted / 3)
        process.kill()
        process.join()
        assert process.exitcode == -9
        assert not cut.exists()
        there = len(list((tmp_path / "cut.partial").glob("rows-*.npz")))
        assert there >= reached
        reached = there
    assert 2 <= reached < 11
    # And once more when all is computed and the stores are being written.
    process = forked.start(partial(work, 0))
    while process.is_alive() and not (tmp_path / ".cut.featviz/new").is_dir():
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -9
    assert not cut.exists()
    done: list[int] = []
    embed_layers(mini, data, LAYERS, out=cut, progress=lambda now, *_: done.append(now), **OPTIONS)
    assert done == [42]  # it went on
    for layer in LAYERS:
        assert bytes_of(tmp_path / "whole" / layer) == bytes_of(cut / layer), layer
        store = open_store(cut / layer, verify=True)
        assert len(store) == 40
        assert len(store.skipped) == 2
    assert {p.name for p in tmp_path.iterdir()} == {"data", "whole", "cut"}


@pytest.mark.numeric
def test_several_layers_are_each_alone(mini: Model, data: Path, tmp_path: Path) -> None:
    """Also where the pieces of one differ from those of both, and where pictures are broken."""
    both = embed_layers(mini, data, LAYERS, batch_size=4, shard_bytes=2 * 640 * 8)
    for layer in LAYERS:
        alone = embed(mini, data, layer, batch_size=4, out=tmp_path / layer)
        # float16 keeps 11 bits
        torch.testing.assert_close(alone.matrix(), both[layer].matrix(), rtol=2e-3, atol=1e-4)
        assert (alone.sizes == both[layer].sizes).all()
        assert alone.skipped == both[layer].skipped
        assert len(alone.shards) == 1


@pytest.mark.numeric
def test_a_broken_picture_changes_no_other_row(mini: Model, data: Path) -> None:
    broken = {left.path for left in embed(mini, data).skipped}
    before = embed(mini, data, batch_size=8)
    kept = before.pictures.paths
    for path in broken:
        (data / path).write_bytes((data / kept[0]).read_bytes())
    after = embed(mini, data, batch_size=8)
    assert len(after) == len(before) + 2
    rows = [after.pictures.paths.index(path) for path in kept]
    # float16 keeps 11 bits
    torch.testing.assert_close(after.take(rows), before.matrix(), rtol=2e-3, atol=1e-4)


def test_a_folder_of_stores_is_replaced_only_when_asked(
    mini: Model, data: Path, tmp_path: Path
) -> None:
    few: Pictures = sample_pictures(1)
    out = tmp_path / "several"
    embed_layers(mini, few, LAYERS, out=out)
    assert [p.name for p in list_results(out)] == list(LAYERS)
    with pytest.raises(UserError, match="several exists; add --overwrite"):
        embed_layers(mini, few, LAYERS, out=out)
    embed_layers(mini, few, LAYERS[:1], out=out, overwrite=True)
    assert [p.name for p in out.iterdir()] == ["relu3"]
    (out / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match="not a folder of stores"):
        embed_layers(mini, few, LAYERS, out=out, overwrite=True)
    with pytest.raises(UserError, match="relu3 is given twice"):
        embed_layers(mini, few, ["relu3", "relu7", mini.layer("relu3").path])
    with pytest.raises(UserError, match="no layer was named"):
        embed_layers(mini, few, [])
