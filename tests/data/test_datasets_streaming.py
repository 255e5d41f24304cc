"""Data sets: what is listed, in which order, and that broken pictures are skipped and named."""

from __future__ import annotations

import tarfile
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from featviz.data.datasets import (
    Pictures,
    Skipped,
    batches,
    open_pictures,
    read_all,
)
from featviz.data.from_python import as_pictures
from featviz.data.labeled import read_labeled
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.pictures import images
from featviz.pictures.preprocessing import Preprocessing


def gray(value: int, side: int = 8) -> Tensor:
    return torch.full((3, side, side), value / 255)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two class folders whose gray values tell the pictures apart, with two broken files."""
    for value, name in (
        (1, "cat/a.png"),
        (2, "cat/b.png"),
        (3, "cat/c.PNG"),
        (4, "dog/a.png"),
        (5, "dog/z.png"),
    ):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        images.to_pillow(gray(value)).save(path, format="PNG")
    (tmp_path / "data" / "cat" / "bad.jpg").write_text("no picture")
    (tmp_path / "data" / "dog" / "cut.png").write_bytes(
        (tmp_path / "data" / "dog" / "a.png").read_bytes()[:40]
    )
    (tmp_path / "data" / "notes.md").write_text("not listed")
    (tmp_path / "data" / "cat" / ".hidden.png").write_text("not listed")
    return tmp_path / "data"


ORDER = (
    "cat/a.png",
    "cat/b.png",
    "cat/bad.jpg",
    "cat/c.PNG",
    "dog/a.png",
    "dog/cut.png",
    "dog/z.png",
)
GOOD = {0: 1, 1: 2, 3: 3, 4: 4, 6: 5}  # row to gray value


def test_a_folder_is_listed_by_path_with_its_classes(folder: Path) -> None:
    pictures = open_pictures(folder)
    assert pictures.paths == ORDER
    assert pictures.folders == ("cat",) * 4 + ("dog",) * 3
    assert pictures.classes == ("cat", "dog")
    assert pictures.name == "data"


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_come_in_order_without_what_is_broken(
    folder: Path, batch_size: int, workers: int
) -> None:
    skipped: list[Skipped] = []
    found: dict[int, int] = {}
    sizes = []
    for batch in batches(
        open_pictures(folder),
        Preprocessing.of(8),
        batch_size=batch_size,
        workers=workers,
        skipped=skipped,
    ):
        assert batch.images.shape == (len(batch.rows), 3, 8, 8)
        sizes.append(len(batch.rows))
        for row, image in zip(batch.rows, batch.images, strict=True):
            found[row] = round(float(image.mean()) * 255)
    assert found == GOOD
    assert list(found) == sorted(found)
    assert all(size == batch_size for size in sizes[:-1])
    assert [(s.row, s.path) for s in skipped] == [(2, "cat/bad.jpg"), (5, "dog/cut.png")]
    assert "is not a picture" in skipped[0].reason


def test_slow_pictures_do_not_lose_their_place() -> None:
    class Slow(Pictures):
        def read(self, row: int, preprocessing: Preprocessing) -> Tensor:
            time.sleep(0.02 if row % 3 == 0 else 0)
            return gray(row, preprocessing.size[0])

    pictures = Slow(Path("slow"), tuple(map(str, range(30))), ("",) * 30)
    found = batches(pictures, Preprocessing.of(2), batch_size=4, workers=5)
    rows = [row for batch in found for row in batch.rows]
    assert rows == list(range(30))


def test_linked_class_folders_are_listed_and_loops_end(folder: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    some.mkdir()
    (some / "kitten").symlink_to(folder / "cat")
    (folder / "cat" / "back").symlink_to(folder)
    pictures = open_pictures(some)
    assert [p for p in pictures.paths if "back" not in p] == [
        "kitten/a.png",
        "kitten/b.png",
        "kitten/bad.jpg",
        "kitten/c.PNG",
    ]
    assert "kitten/back/dog/z.png" in pictures.paths
    assert not any("back/cat/back" in p for p in pictures.paths)


def test_a_list_holds_paths_and_classes(folder: Path) -> None:
    (folder.parent / "data" / "some.txt").write_text("dog/z.png\tpoodle\n\ncat/a.png\tcat\n")
    pictures = open_pictures(folder / "some.txt")
    assert pictures.paths == ("dog/z.png", "cat/a.png")
    assert pictures.folders == ("poodle", "cat")
    _, batch, _ = read_all(pictures, Preprocessing.of(8))
    assert (batch.mean((1, 2, 3)) * 255).round().tolist() == [5, 1]


def test_a_tar_gives_what_its_folder_gives(folder: Path) -> None:
    archive = folder.parent / "data.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ORDER:
            tar.add(folder / name, arcname=name)
    listed, from_folder = open_pictures(archive), open_pictures(folder)
    assert (listed.paths, listed.folders) == (from_folder.paths, from_folder.folders)
    assert listed.sha256 == from_folder.sha256
    kept, batch, skipped = read_all(listed, Preprocessing.of(8))
    assert kept.paths == tuple(ORDER[row] for row in GOOD)
    assert (batch.mean((1, 2, 3)) * 255).round().tolist() == list(GOOD.values())
    assert [s.path for s in skipped] == ["cat/bad.jpg", "dog/cut.png"]


def test_one_file_is_a_data_set(folder: Path) -> None:
    pictures = open_pictures(folder / "cat" / "b.png")
    assert (pictures.paths, pictures.folders) == (("b.png",), ("",))
    assert round(float(pictures.shown(0, 8).mean()) * 255) == 2


def test_what_holds_nothing_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no pictures \(\.bmp, "):
        open_pictures(tmp_path / "empty")
    with pytest.raises(UserError, match="no such file or folder; give a picture, a folder"):
        open_pictures(tmp_path / "absent")
    (tmp_path / "x.tar").write_text("no tar")
    with pytest.raises(UserError, match=r"x\.tar is not a tar that can be read"):
        open_pictures(tmp_path / "x.tar")
    broken = open_pictures(folder).select([2, 5])
    with pytest.raises(UserError, match=r"no picture of .*data could be read"):
        list(batches(broken, Preprocessing.of(8)))
    with pytest.raises(UserError, match=r"no picture of .*data could be read"):
        read_all(broken, Preprocessing.of(8))


def test_the_hash_follows_names_classes_and_order(folder: Path) -> None:
    pictures = open_pictures(folder)
    assert pictures.sha256 == open_pictures(folder).sha256
    assert pictures.select([1, 0]).sha256 != pictures.select([0, 1]).sha256
    renamed = Pictures(pictures.root, pictures.paths, ("x",) * len(pictures))
    assert renamed.sha256 != pictures.sha256


def test_spread_takes_rows_evenly(folder: Path) -> None:
    pictures = open_pictures(folder)
    assert pictures.spread(3).paths == (ORDER[0], ORDER[2], ORDER[4])
    assert pictures.spread(99) is pictures


def three_classes() -> Model:
    return Model(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 3)),
        name="m",
        preprocessing=2,
        classes=[("n01", "tabby, tabby cat"), ("n02", "bus"), ("n03", "dog")],
    )


def test_labels_go_by_synset_or_name() -> None:
    folders = ("n02", "tabby_cat", "Dog", "unknown", "")
    pictures = Pictures(Path("x"), tuple("abcde"), folders)
    assert pictures.labels(three_classes()) == (1, 0, 2, None, None)


def test_a_data_set_is_one_line_in_a_notebook(folder: Path) -> None:
    assert repr(open_pictures(folder)) == "<Pictures: 7 in data of 2 classes>"


def test_a_tensor_is_a_data_set(generator: torch.Generator) -> None:
    tensor = torch.rand(3, 3, 4, 4, generator=generator)
    pictures = as_pictures(tensor, ["a", "b", "a"])
    assert pictures.classes == ("a", "b")
    assert torch.equal(pictures.select([2, 0]).shown(0, 4), tensor[2])
    assert pictures.shown(1, 2).shape == (3, 2, 2)
    with pytest.raises(UserError, match="2 labels for 3 pictures"):
        as_pictures(tensor, ["a", "b"])
    with pytest.raises(UserError, match=r"pictures lie in \[0, 1\]"):
        as_pictures(2 * tensor)


def test_pictures_are_read_with_the_labels_of_the_model(folder: Path) -> None:
    """Of the folders cat and dog the model has dog; one of its pictures is broken."""
    model = three_classes()
    read = read_labeled(model, open_pictures(folder))
    assert read.names == ("dog/a.png", "dog/z.png")
    assert read.pictures.shape == (2, 3, 2, 2)
    assert read.labels is not None
    assert read.labels.tolist() == [2, 2]
    assert read.warnings[0] == "2 of 3 classes of m have no picture: tabby, bus"
    assert "4 of 7 pictures do not count" in read.warnings[1]
    assert "1 picture could not be read" in read.warnings[2]
    assert read.data_name == "data"


def test_a_tensor_is_read_with_labels_by_index_or_name() -> None:
    model = three_classes()
    pictures = torch.linspace(0, 1, 4).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    read = read_labeled(model, pictures, [0, "bus", 2, "n01"], count=2)
    assert read.labels is not None
    assert read.labels.tolist() == [0, 2]
    assert torch.equal(read.pictures, pictures[[0, 2]])
    assert read_labeled(model, pictures).labels is None
    with pytest.raises(UserError, match="1 label for 4 pictures"):
        read_labeled(model, pictures, [0])
    with pytest.raises(UserError, match="must lie in"):
        read_labeled(model, pictures - 1)
