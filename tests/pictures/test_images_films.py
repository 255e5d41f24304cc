"""Films: GIF always, MP4 by whatever encoder there is, one line where there is none."""

from __future__ import annotations

import shutil
import stat
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.GifImagePlugin import GifImageFile

import featviz
from featviz import results
from featviz.pictures import films

# Stands for ffmpeg: notes its arguments and the pictures it is sent.
_STAND_IN = """#!{python}
import json, pathlib, sys
target = pathlib.Path(sys.argv[-1])
target.write_bytes(sys.stdin.buffer.read())
target.with_suffix(".json").write_text(json.dumps(sys.argv[1:]))
"""


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return _program(_STAND_IN.format(python=sys.executable), tmp_path, monkeypatch)


def _program(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "ffmpeg"
    program.write_text(text)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))
    return program


@pytest.fixture
def without_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def frames(count: int = 3, height: int = 5, width: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def test_the_encoder_is_sent_the_pictures_with_even_sides(encoder: Path, tmp_path: Path) -> None:
    sent = frames()
    films.write_mp4(list(sent.float() / 255), tmp_path / "film.mp4")
    raw = torch.frombuffer(bytearray((tmp_path / "film.mp4").read_bytes()), dtype=torch.uint8)
    read = raw.view(6, 6, 8, 3).permute(0, 3, 1, 2)  # the last stands for four
    assert torch.equal(read[:3, :, :5, :7], sent)
    assert torch.equal(read[:3, :, 5], read[:3, :, 4])
    assert torch.equal(read[3:], read[2:3].expand(3, -1, -1, -1))
    words = (tmp_path / "film.json").read_text()
    assert '"8x6"' in words
    assert '"libx264"' in words


def test_both_kinds_lie_in_the_folder_and_the_gif_is_shown(encoder: Path, tmp_path: Path) -> None:
    folder = results.Folder(tmp_path / "out")
    films.add_film(folder, "films/one", frames(), kind="mp4", caption="A film.", alt="film")
    assert (tmp_path / "out" / "films" / "one.mp4").is_file()
    (shown,) = folder.figures
    assert shown["file"] == "films/one.gif"
    assert shown["caption"].endswith("one.mp4.")
    with Image.open(tmp_path / "out" / "films" / "one.gif") as gif:
        assert isinstance(gif, GifImageFile)
        assert gif.n_frames == 3
        assert gif.size == (7 * 19, 5 * 19)  # small pictures in blocks


def test_an_mp4_without_an_encoder_is_one_line(without_encoder: None, tmp_path: Path) -> None:
    with pytest.raises(featviz.UserError, match="needs ffmpeg") as error:
        films.check_kind("mp4")
    assert "--film gif" in str(error.value)
    assert films.check_kind("gif") == "gif"
    with pytest.raises(featviz.UserError, match="'avi' is no kind of film"):
        films.check_kind("avi")


def test_an_encoder_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"#!{sys.executable}\nimport sys\nsys.stdin.buffer.read()\nsys.exit('no libx264')\n"
    _program(text, tmp_path, monkeypatch)
    with pytest.raises(featviz.UserError, match=r"could not write film\.mp4: no libx264"):
        films.write_mp4(list(frames().float() / 255), tmp_path / "film.mp4")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg here")
def test_the_real_encoder_writes_an_mp4(tmp_path: Path) -> None:
    films.write_mp4(list(frames(height=17, width=33).float() / 255), tmp_path / "film.mp4")
    assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"
