"""What is listed of a folder, an archive and a list, and that the rest is counted."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featviz.data.datasets import Pictures, open_pictures
from featviz.errors import BadPicture, UserError
from featviz.pictures import images
from featviz.pictures.preprocessing import Preprocessing


def png(value: int = 128) -> bytes:
    out = io.BytesIO()
    images.to_pillow(torch.full((3, 4, 4), value / 255)).save(out, "PNG")
    return out.getvalue()


def make(root: Path, *names: str) -> Path:
    for value, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
    return root


def tar_of(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def values(pictures: Pictures) -> list[int]:
    return [
        round(float(pictures.read(row, Preprocessing.of(4)).mean()) * 255)
        for row in range(len(pictures))
    ]


def test_classes_are_the_folders_of_the_first_level(tmp_path: Path) -> None:
    """As in ImageFolder; so Tiny ImageNet's CLASS/images/*.JPEG are its classes."""
    found = open_pictures(make(tmp_path / "d", "a/images/1.png", "b/images/x/2.png", "b/3.png"))
    assert found.folders == ("a", "b", "b")
    assert found.left_out.notes == ()


def test_hidden_folders_dangling_links_and_other_files_are_counted(tmp_path: Path) -> None:
    root = make(
        tmp_path / "d",
        "a/1.png",
        "a/.ipynb_checkpoints/1.png",
        "a/thumbnails/1.png",
        "b/2.png",
        "b/._2.png",
        "__MACOSX/b/2.png",
        ".git/3.png",
        "@eaDir/a.png",
        "beside.png",
    )
    for name in ("a/1.txt", "a/1.heic", "notes.md", "b/Thumbs.db", "b/.DS_Store", "b/2.HEIC"):
        (root / name).write_text("")
    (root / "empty").mkdir()
    (root / "a" / "gone.png").symlink_to("nowhere.png")
    (root / "a" / "self.png").symlink_to("self.png")
    os.mkfifo(root / "a" / "pipe.png")
    found = open_pictures(root)
    assert found.paths == ("a/1.png", "b/2.png", "beside.png")
    left = found.left_out
    assert left.empty == ("empty",)
    assert left.unlabeled == ("beside.png",)
    assert set(left.hidden) == {
        ".git",
        "@eaDir",
        "__MACOSX",
        "a/.ipynb_checkpoints",
        "a/thumbnails",
        "b/._2.png",
    }
    assert left.dangling == ("a/gone.png", "a/self.png")
    assert dict(left.endings) == {".heic": 2, ".txt": 1, ".md": 1, "devices and pipes": 1}
    assert left.notes == (
        "1 class folder without a picture: empty",
        "1 picture without a class: beside.png",
        "6 hidden files and folders left out: .git, @eaDir, __MACOSX and 3 more",
        "2 links that lead nowhere left out: a/gone.png, a/self.png",
        "5 files with other endings left out: .heic (2), .md (1), .txt (1) and 1 more",
    )


def test_hidden_and_linked_files_of_a_tar_are_left_out_or_followed(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("./a/1.png", "b/2.png", "__MACOSX/b/2.png", "a/.git/x.png", "b/notes.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(png())
            tar.addfile(member, io.BytesIO(png(len(name))))
        for name, kind, target in (
            ("b/3.png", tarfile.LNKTYPE, "a/1.png"),
            ("b/4.png", tarfile.SYMTYPE, "../a/1.png"),
            ("b/5.png", tarfile.SYMTYPE, "gone.png"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
        empty = tarfile.TarInfo("empty")
        empty.type = tarfile.DIRTYPE
        tar.addfile(empty)
    found = open_pictures(archive)
    assert dict(zip(found.paths, values(found), strict=True)) == {
        "a/1.png": 9,
        "b/2.png": 7,
        "b/3.png": 9,
        "b/4.png": 9,
    }
    assert found.folders == ("a", "b", "b", "b")
    assert found.left_out.empty == ("empty",)
    assert found.left_out.dangling == ("b/5.png",)
    assert set(found.left_out.hidden) == {"__MACOSX", "a/.git"}
    assert found.left_out.endings == ((".txt", 1),)


def test_the_folder_around_all_classes_of_an_archive_is_none_of_them(tmp_path: Path) -> None:
    files = {f"val/{name}/1.png": png() for name in ("a", "b")}
    found = open_pictures(tar_of(tmp_path / "a.tar", files))
    assert found.folders == ("a", "b")
    assert found.left_out.notes == ("classes are the folders in val",)
    assert open_pictures(make(tmp_path / "d", *files)).left_out.notes == (
        f"there is one class only, val; if the classes are its 2 folders, give {tmp_path}/d/val",
    )


def test_a_web_data_set_has_its_labels_beside_the_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(3):
        files = {}
        for i in range(2):
            key = f"{shard}{i}"
            files[f"{key}.png"] = png(10 * shard + i)
            label = json.dumps({"label": shard, "caption": "x"}) if i else f"{shard}\n"
            files[f"{key}.{'json' if i else 'cls'}"] = label.encode()
        tar_of(folder / f"part-{shard:03d}.tar", files)
    for place in (folder, folder / "part-{000..002}.tar"):
        found = open_pictures(place)
        assert found.folders == ("0", "0", "1", "1", "2", "2")
        assert found.paths[:2] == ("part-000.tar/00.png", "part-000.tar/01.png")
        assert values(found) == [0, 1, 10, 11, 20, 21]
        assert values(found.select([5, 2])) == [21, 10]
    some = open_pictures(folder / "part-{001..001}.tar")
    assert values(some) == [10, 11]
    with pytest.raises(UserError, match=r"part-003\.tar: no such tar or zip"):
        open_pictures(folder / "part-{002..003}.tar")
    state = found.state
    os.utime(folder / "part-001.tar", ns=(1, 1))
    assert open_pictures(folder).state != state


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_gives_what_its_folder_gives(method: int, tmp_path: Path) -> None:
    root = make(tmp_path / "d", "a/1.png", "b/2.png", "b/3.png")
    with zipfile.ZipFile(tmp_path / "d.zip", "w", method) as archive:
        archive.mkdir("empty")
        for path in sorted(root.rglob("*.png")):
            archive.write(path, path.relative_to(root))
    found, expected = open_pictures(tmp_path / "d.zip"), open_pictures(root)
    assert (found.paths, found.folders) == (expected.paths, expected.folders)
    assert values(found) == values(expected) == [0, 1, 2]
    assert found.left_out.empty == ("empty",)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_damaged_archives_are_refused_or_skip_pictures(kind: str, tmp_path: Path) -> None:
    files = {"a/1.png": png(1), "b/2.png": png(2)}
    path = tmp_path / f"a.{kind}"
    if kind == "tar":
        tar_of(path, files)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    whole = path.read_bytes()
    rng = np.random.default_rng(3)
    for turn in range(150):
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)] if turn % 3 else whole)
        for at in rng.integers(0, len(damaged), size=4):
            damaged[at] = rng.integers(256)
        place = tmp_path / f"{turn}.{kind}"
        place.write_bytes(damaged)
        try:
            found = open_pictures(place)
        except UserError:
            continue
        for row in range(len(found)):
            with contextlib.suppress(BadPicture):
                found.read(row, Preprocessing.of(4))


def test_compressed_tars_and_pipes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match="compressed tar, which can be read from its beginning"):
        open_pictures(tmp_path / "a.tar.gz")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        open_pictures(tmp_path / "pipe.png")
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(UserError, match=r"too long|no path"):
            open_pictures(tmp_path / name)


def test_tiny_imagenet_validation_has_its_labels_in_a_file(tmp_path: Path) -> None:
    root = make(tmp_path / "val", "images/val_0.png", "images/val_1.png", "images/val_2.png")
    (root / "val_annotations.txt").write_text(
        "val_1.png\tn02\t0\t32\t44\t62\nval_0.png\tn01\t1\t2\t3\t4\n"
    )
    found = open_pictures(root)
    assert found.folders == ("n01", "n02", "")
    assert found.left_out.unlabeled == ("images/val_2.png",)
    assert "classes are those of val_annotations.txt" in found.left_out.notes


def write_parquet(path: Path, columns: Mapping[str, list[object]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(dict(columns)), path)


LISTS = {
    "a.txt": "a/1.png\tcat\nb/2.png\tbig dog\n",
    "b.txt": "a/1.png cat\nb/2.png big dog\n",
    "a.csv": "path,label\na/1.png,cat\nb/2.png,big dog\n",
    "b.csv": 'Class,"Filename",more\r\ncat,a/1.png,"x, y"\r\n"big dog",b/2.png,\r\n',
    "c.csv": "a/1.png,cat\nb/2.png,big dog\n",
    "d.csv": "path;label\na/1.png;cat\nb/2.png;big dog\n",
    "a.tsv": "image\ttarget\na/1.png\tcat\nb/2.png\tbig dog\n",
    "a.jsonl": '{"file_name": "a/1.png", "category": "cat"}\n\n'
    '{"category": "big dog", "file_name": "b/2.png"}\n',
    "a.parquet": "",
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_every_kind_name_pictures_and_classes(
    name: str, encoding: str, tmp_path: Path
) -> None:
    make(tmp_path / "d", "a/1.png", "b/2.png")
    place = tmp_path / "d" / name
    if name == "a.parquet":
        write_parquet(place, {"path": ["a/1.png", "b/2.png"], "label": ["cat", "big dog"]})
    else:
        place.write_bytes(LISTS[name].encode(encoding))
    found = open_pictures(place)
    assert found.paths == ("a/1.png", "b/2.png")
    assert found.folders == ("cat", "big dog")
    assert values(found) == [0, 1]
    assert found.left_out.notes == ()


def test_labels_of_lists_are_names_or_indices(tmp_path: Path) -> None:
    place = tmp_path / "a.parquet"
    write_parquet(place, {"path": ["a", "b", "c"], "label": [0.0, None, 2.0]})
    assert open_pictures(place).folders == ("0", "", "2")
    (tmp_path / "a.jsonl").write_text('{"path": "a", "label": 3}\n{"path": "b"}\n')
    assert open_pictures(tmp_path / "a.jsonl").folders == ("3", "")


def test_paths_of_a_list_are_looked_for_beside_it_and_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "d", "a/1.png")
    (tmp_path / "lists").mkdir()
    place = tmp_path / "lists" / "a.txt"
    place.write_text("a/1.png\ngone.png\na/1.png\n")
    monkeypatch.chdir(tmp_path / "d")
    found = open_pictures(place)
    assert values(found.select([0])) == [0]
    assert found.left_out.remarks == (
        "paths of the list are relative to the working directory",
        "1 line of the list with a picture that an earlier one names",
    )
    make(tmp_path / "lists", "a/0.png", "a/1.png")
    beside = open_pictures(place)
    assert (beside.paths[0], values(beside.select([0]))) == ("a/1.png", [1])


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.csv", b"name,kind\nx,y\n", r"no column of paths \(it has 'name', 'kind'\)"),
        ("a.jsonl", b'{"path": "a"}\n[1]\n', "line 2 of .* is no JSON object"),
        ("a.jsonl", b'{"path": 3}\n', "line 1 of .*'path' is no path"),
        ("a.parquet", b"PAR1 no", "is no Parquet file that can be read"),
        ("a.txt", b"\n\n", "is an empty list"),
        ("a.txt", "a.png\n".encode("utf-16-le"), "UTF-16 without its mark"),
        ("a.csv", b"path\n", "is an empty list"),
    ],
)
def test_lists_that_cannot_be_read_say_why(
    name: str, content: bytes, what: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=what):
        open_pictures(tmp_path / name)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([".txt", ".csv", ".tsv", ".jsonl"]),
    st.one_of(st.binary(), st.sampled_from([text.encode() for text in LISTS.values()])),
    st.integers(0, 60),
    st.binary(max_size=4),
)
def test_any_bytes_are_a_list_or_refused(suffix: str, content: bytes, at: int, more: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / f"a{suffix}"
        place.write_bytes(content[:at] + more + content[at + 1 :])
        try:
            found = open_pictures(place)
        except UserError:
            return
        assert len(found) == len(found.folders) > 0
        assert len(found.state) == len(found.sha256) == 64
        for row in range(min(3, len(found))):
            with pytest.raises(BadPicture):
                found.read(row, Preprocessing.of(4))
