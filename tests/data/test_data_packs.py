"""Packs: the pixels of the files, wherever data is taken; nothing damaged is used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import featviz
from featviz.checkpoints import Arrays, Checkpoint
from featviz.data import packing
from featviz.data.datasets import Pictures, open_pictures
from featviz.errors import BadPicture, UserError
from featviz.pictures.preprocessing import Preprocessing
from featviz.training.data import read_examples


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten smooth pictures of two classes and of several shapes, and a broken one."""
    generator = torch.Generator().manual_seed(0)
    for i in range(10):
        height, width = ((40, 57), (64, 33), (31, 31), (90, 41), (12, 80))[i % 5]
        coarse = torch.rand(1, 3, 5, 7, generator=generator)
        pixels = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
        place = tmp_path / "source" / ("cat" if i < 5 else "dög") / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        array = (pixels[0].clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(place)
    (tmp_path / "source" / "cat" / "broken.png").write_bytes(b"no picture")
    return tmp_path / "source"


@pytest.fixture
def packed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same at 32 pixels, three pictures a shard."""
    monkeypatch.setattr(packing, "SHARD_BYTES", 3 * 3 * 32 * 32)
    made = featviz.pack(source, tmp_path / "packed", size=32)
    assert made.skipped == (("cat/broken.png", made.skipped[0][1]),)
    assert len(made.shards) == 4
    return tmp_path / "packed"


@pytest.mark.parametrize("size", [32, 28, 24])
def test_a_model_that_resizes_to_the_packs_side_sees_the_pixels_of_the_files(
    source: Path, packed: Path, size: int
) -> None:
    before, after = open_pictures(source), open_pictures(packed)
    how = Preprocessing.of(size, resize=32)
    for row, path in enumerate(after.paths):
        file = before.paths.index(path)
        assert after.folders[row] == before.folders[file]
        wanted, found = before.prepare(file, how), after.prepare(row, how)
        assert torch.equal(found.pixels, wanted.pixels)
        assert found.size == wanted.size
    assert after.classes == ("cat", "dög")


def test_other_sizes_are_resized_from_the_squares(packed: Path) -> None:
    pictures = open_pictures(packed)
    squares = np.asarray(pictures.open(0))
    assert squares.shape == (32, 32, 3)
    small = pictures.read(0, Preprocessing.of(16))
    image = Image.fromarray(squares).resize((16, 16), Image.Resampling.BILINEAR)
    wanted = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(small, wanted)
    assert pictures.read(0, Preprocessing.of(16, channels=1)).shape == (1, 16, 16)


def test_parts_copies_and_stores_find_their_pictures(
    packed: Path, tmp_path: Path, mini: featviz.Model
) -> None:
    pictures = open_pictures(packed)
    some = pictures.select([7, 2])
    assert some.paths == (pictures.paths[7], pictures.paths[2])
    assert torch.equal(some.shown(0, 32), pictures.shown(7, 32))
    featviz.embed(mini, packed, out=tmp_path / "store")
    again = featviz.open_store(tmp_path / "store")
    assert torch.equal(again.pictures.shown(3, 32), pictures.shown(3, 32))
    assert len(featviz.evaluate(mini, pictures, labels=[0] * 10).labels) == 10
    with pytest.raises(UserError, match="a pack among several paths; give it alone"):
        open_pictures([packed, tmp_path / "source"])
    with pytest.raises(BadPicture, match="no such picture"):
        Pictures(packed, ("cat/x.png",), ("cat",)).open(0)


def test_training_data_are_those_of_the_files(source: Path, packed: Path) -> None:
    read = [read_examples(place, 28, resize=32) for place in (source, packed)]
    assert read[0].decoded is not None
    assert read[1].decoded is not None
    assert torch.equal(read[0].decoded, read[1].decoded)
    assert torch.equal(read[0].labels, read[1].labels)


@pytest.mark.parametrize("file", ["rows-00000003.npz", "names.npz", "pack.json"])
@pytest.mark.parametrize("how", ["changed", "shortened", "removed"])
def test_damage_is_one_line_before_a_wrong_pixel_is_used(packed: Path, file: str, how: str) -> None:
    place = packed / file
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "removed":
        place.unlink()
    else:
        place.write_bytes(content if how == "changed" else content[:-5])
    with pytest.raises((UserError, BadPicture)) as refused:
        read_examples(packed, 32)
    assert "pack again" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_stopped_run_makes_only_what_is_missing_and_the_same_bytes(
    source: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = Checkpoint.write, []

    def stop_after_two(self: Checkpoint, name: str, arrays: Arrays, *, size: int = 1) -> None:
        write(self, name, arrays, size=size)
        written.append(name)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "write", stop_after_two)
    with pytest.raises(KeyboardInterrupt, match="kept 6 of 11 pictures"):
        featviz.pack(source, tmp_path / "again", size=32)
    with pytest.raises(UserError, match="another command"):
        featviz.pack(source, tmp_path / "again", size=16)
    featviz.pack(source, tmp_path / "again", size=32)
    assert written == [f"rows-{first:08}" for first in (0, 3, 6, 9)]
    assert not (tmp_path / "again.partial").exists()
    for file in packed.glob("*.npz"):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_what_cannot_be_packed_is_said(tmp_path: Path, packed: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="no picture of"):
        featviz.pack(tmp_path / "bad", tmp_path / "out")
    with pytest.raises(UserError, match="exists; add --overwrite"):
        featviz.pack(packed, packed)
    with pytest.raises(UserError, match="size is 4"):
        featviz.pack(packed, tmp_path / "out", size=4)
    assert not (tmp_path / "out").exists()


def test_pictures_in_memory_are_packed(tmp_path: Path) -> None:
    pictures = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    data = featviz.as_pictures(pictures, labels=["a", "b", "a"])
    made = featviz.pack(data, tmp_path / "packed", size=16)
    assert json.loads((tmp_path / "packed" / "result.json").read_text())["kind"] == "pack"
    again = featviz.open_pictures(tmp_path / "packed")
    assert again.folders == made.folders == ("a", "b", "a")
    for row in range(3):
        assert torch.equal(again.prepare(row, Preprocessing.of(16)).pixels, pictures[row])
