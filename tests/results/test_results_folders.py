"""Result folders: whole or absent, never over somebody's files, readable by anything."""

from __future__ import annotations

import errno
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from featviz import plotting, results
from featviz.errors import BadPicture, UserError
from featviz.pictures import images


@dataclass(frozen=True, kw_only=True, repr=False)
class Toy(results.Result):
    """A result with one of everything."""

    kind: ClassVar[str] = "toy"
    value: float = 1.5

    @property
    def title(self) -> str:
        return "A <toy>"

    def numbers(self) -> dict[str, results.Number]:
        return {
            "value": results.Number(self.value, "fraction", "what it is"),
            "count": results.Number(12_345),
        }

    def write(self, folder: results.Folder) -> None:
        folder.figure(
            "a.png",
            torch.full((3, 4, 4), 0.5),
            caption="Gray.",
            alt="gray",
            units=["conv1:2"],
            pixelated=True,
        )
        folder.figure("units/b.svg", self.plot(), caption="A line.", alt="line")
        rows = [(1, 'say "x", y'), (2, "z")]
        folder.table(results.Table("t.csv", ("a", "b"), rows, "Two rows."))
        folder.arrays("x.npz", {"x": np.arange(3)}, caption="Three numbers.")
        folder.warn("said while writing")

    def plot(self) -> Figure:
        figure = plotting.new_figure(2, 1)
        figure.subplots().plot([0, 1])
        return figure


def toy(value: float = 1.5, **parameters: Any) -> Toy:
    made = results.origin(None, parameters=parameters, started=time.perf_counter(), seed=3)
    return Toy(origin=made, warnings=("said before",), value=value)


def listing(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    folder = toy(steps=7, path=Path("x/y"), units=(1, 2)).save(tmp_path / "run" / "toy")
    document = results.read_result(folder)
    assert document["schema"] == 1
    assert (document["kind"], document["title"], document["seed"]) == ("toy", "A <toy>", 3)
    assert document["parameters"] == {"steps": 7, "path": "x/y", "units": [1, 2]}
    assert document["numbers"]["value"] == {
        "value": 1.5,
        "unit": "fraction",
        "meaning": "what it is",
    }
    assert document["warnings"] == ["said before", "said while writing"]
    assert set(document["versions"]) == {"featviz", "torch", "python", "device"}
    figure = document["figures"][0]
    assert figure == {
        "file": "a.png",
        "caption": "Gray.",
        "alt": "gray",
        "units": ["conv1:2"],
        "pixelated": True,
        "detail": False,
    }
    assert all((folder / f["file"]).is_file() for f in document["figures"] + document["tables"])
    assert (folder / "t.csv").read_text() == 'a,b\n1,"say ""x"", y"\n2,z\n'
    assert np.load(folder / "x.npz")["x"].tolist() == [0, 1, 2]
    assert torch.equal(images.read_image(folder / "a.png"), torch.full((3, 4, 4), 128 / 255))
    assert results.list_results(tmp_path) == [folder]


def test_json_holds_no_nan_and_no_infinity(tmp_path: Path) -> None:
    folder = toy(value=float("nan"), eps=float("inf"), t=torch.tensor([1.0, float("nan")])).save(
        tmp_path / "r"
    )

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in JSON")

    document = json.loads((folder / "result.json").read_text(), parse_constant=refuse)
    assert document["numbers"]["value"]["value"] is None
    assert document["parameters"] == {"eps": None, "t": [1.0, None]}


def test_what_json_cannot_hold_is_refused_rather_than_spelt_out(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        toy(thing=object()).save(tmp_path / "r")
    assert listing(tmp_path) == []


@pytest.mark.parametrize("number", range(6))
def test_a_full_disk_leaves_nothing_behind(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    spots = {
        0: (Path, "write_text"),
        1: (Path, "write_bytes"),
        2: (images, "write_png"),
        3: (np, "savez_compressed"),
        4: (Path, "mkdir"),
        5: (Path, "rename"),
    }
    where, name = spots[number]

    def full(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(where, name, full)
        with pytest.raises(UserError, match="no space left on the disk; free some or choose"):
            toy().save(tmp_path / "r")
    assert calls
    assert listing(tmp_path) == []


def test_an_interrupted_write_leaves_nothing_and_keeps_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = toy(value=1.0).save(tmp_path / "r")
    before = {
        name: (tmp_path / name).read_bytes()
        for name in listing(tmp_path)
        if (tmp_path / name).is_file()
    }

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(results.Folder, "arrays", stop)
    with pytest.raises(KeyboardInterrupt):
        toy(value=2.0).save(folder, overwrite=True)
    after = {
        name: (tmp_path / name).read_bytes()
        for name in listing(tmp_path)
        if (tmp_path / name).is_file()
    }
    assert after == before


def test_overwriting_replaces_the_whole_folder(tmp_path: Path) -> None:
    folder = toy(value=1.0).save(tmp_path / "r")
    (folder / "left over.txt").write_text("of the first")
    toy(value=2.0).save(folder, overwrite=True)
    assert results.read_result(folder)["numbers"]["value"]["value"] == 2.0
    assert not (folder / "left over.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_an_existing_result_is_kept_without_overwrite(tmp_path: Path) -> None:
    folder = toy(value=1.0).save(tmp_path / "r")
    with pytest.raises(UserError, match="r exists; add --overwrite or choose another --out"):
        toy(value=2.0).save(folder)
    assert results.read_result(folder)["numbers"]["value"]["value"] == 1.0


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_peoples_folders_and_files_are_never_replaced(
    tmp_path: Path, overwrite: bool
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(UserError, match="thesis is not empty and not a result folder"):
        toy().save(tmp_path / "thesis", overwrite=overwrite)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file is a file; --out takes a folder"):
        toy().save(tmp_path / "file", overwrite=overwrite)


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    assert results.read_result(toy().save(tmp_path / "r"))["kind"] == "toy"


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*file/r: .*; choose another --out"):
        toy().save(tmp_path / "file" / "r")
    if Path("/proc/self").is_dir():
        with pytest.raises(UserError, match="cannot write /proc/featviz: "):
            toy().save("/proc/featviz")


def test_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = toy(), toy()
    first.save(tmp_path / "a")
    second.save(tmp_path / "b")
    for name in ("a.png", "units/b.svg", "t.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_damaged_and_foreign_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no result folder: it has no result"):
        results.read_result(tmp_path)
    (tmp_path / "result.json").write_text('{"schema": 1, ')
    with pytest.raises(UserError, match=r"cannot be read .*; make the result again"):
        results.read_result(tmp_path)
    (tmp_path / "result.json").write_text('{"schema": 99}')
    with pytest.raises(UserError, match="has schema 99, this featviz reads 1"):
        results.read_result(tmp_path)
    (tmp_path / "result.json").write_text("[1]")
    with pytest.raises(UserError, match="has schema None"):
        results.read_result(tmp_path)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (results.Number(0.4412, "fraction"), "44.1%"),
        (results.Number(1234567), "1,234,567"),
        (results.Number(1.23456, "s"), "1.235 s"),
        (results.Number("11x11", "pixels"), "11x11"),
        (results.Number(None), "-"),
    ],
)
def test_numbers_are_shown_as_people_read_them(number: results.Number, text: str) -> None:
    assert results.show_number(number) == text


def test_a_notebook_shows_picture_numbers_and_doubts() -> None:
    page = toy()._repr_html_()
    assert "A &lt;toy&gt;" in page
    assert "data:image/png;base64," in page
    assert "150.0%" in page
    assert "said before" in page


def test_a_notebook_shows_the_numbers_of_a_result_whose_pictures_are_missing() -> None:
    class Lost(Toy):
        def plot(self) -> Figure:
            raise BadPicture("dog.jpg: no such file; check the path")

    shown = Lost(origin=results.origin(None, parameters={}, started=0.0))._repr_html_()
    assert "<img" not in shown
    assert "12,345" in shown
    assert "dog.jpg: no such file" in shown


@dataclass(frozen=True, kw_only=True, repr=False)
class Several(Toy):
    """A result with two parts, whose names are no file names."""

    @property
    def parts(self) -> dict[str, results.Result]:
        return {"conv1:2": toy(0.25), "conv1:3": toy(0.75)}

    def write(self, folder: results.Folder) -> None:
        folder.table(results.Table("own.csv", ("a",), [(1,)], "Own."))


def test_parts_are_written_into_folders_of_their_own_and_listed(tmp_path: Path) -> None:
    made = results.origin(None, parameters={}, started=0.0)
    several = Several(origin=made, warnings=("conv1:2: said before",))
    folder = several.save(tmp_path / "s")
    document = results.read_result(folder)
    figures = [figure["file"] for figure in document["figures"]]
    assert figures == [
        "conv1-2/a.png",
        "conv1-2/units/b.svg",
        "conv1-3/a.png",
        "conv1-3/units/b.svg",
    ]
    assert [table["file"] for table in document["tables"]] == [
        "own.csv",
        "conv1-2/t.csv",
        "conv1-3/t.csv",
    ]
    for entry in (*document["figures"], *document["tables"], *document["arrays"]):
        assert (folder / entry["file"]).is_file()
    assert document["warnings"] == [  # each once, also where the result repeats a part's
        "conv1:2: said before",
        "conv1:2: said while writing",
        "conv1:3: said before",
        "conv1:3: said while writing",
    ]
    assert repr(several) == "<Several: A <toy>>"


def test_results_are_listed_but_not_those_under_way(tmp_path: Path) -> None:
    for name in ("b", "a/deep", "my.partial-study/x", "c", ".b.tmp", "a/.hidden/x"):
        toy().save(tmp_path / name)
    (tmp_path / "c").rename(tmp_path / "c.partial")
    found = [path.relative_to(tmp_path).as_posix() for path in results.list_results(tmp_path)]
    assert found == ["a/deep", "b", "my.partial-study/x"]
    # Also from inside a folder whose own path has such a part.
    assert results.list_results(tmp_path / "c.partial") == [tmp_path / "c.partial"]


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("conv5:12@6,6", "conv5-12-6-6"),
        ("features.3", "features.3"),
        ("../up", "up"),
        ("  ", "unnamed"),
        ("école", "cole"),
    ],
)
def test_names_become_file_names(name: str, stem: str) -> None:
    assert results.file_stem(name) == stem


def test_an_estimate_has_its_interval_in_the_document(tmp_path: Path) -> None:
    class Estimated(Toy):
        def numbers(self) -> dict[str, results.Number]:
            return {"x": results.Number(0.5, "fraction", "of all", 0.25, 0.75, 12)}

    made = Estimated(origin=results.origin(None, parameters={}, started=0.0))
    numbers = results.read_result(made.save(tmp_path / "e"))["numbers"]
    assert numbers["x"] == {
        "value": 0.5,
        "unit": "fraction",
        "meaning": "of all",
        "low": 0.25,
        "high": 0.75,
        "n": 12,
    }
    assert "<td>50.0%</td><td>95%: 25.0% to 75.0%, n = 12</td>" in made._repr_html_()
