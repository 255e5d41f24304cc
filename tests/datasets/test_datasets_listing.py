"""What is listed of a folder, an archive and a list, and that the rest is counted."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import torch

from featviz import images
from featviz.datasets import Pictures, open_pictures
from featviz.preprocessing import Preprocessing


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
