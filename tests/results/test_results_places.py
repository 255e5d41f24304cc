"""Where a result may be written, and what two runs and a kill do to a folder."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command_line import run

from featviz import folders
from featviz.checkpoints import announce_result, open_checkpoint, partial_folder, remove_finished
from featviz.data.samples import sample_pictures
from featviz.errors import UserError
from featviz.results import Origin

KILLED = """
import os, sys
from pathlib import Path
from featviz import folders
target, count, exchange = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "exchange"
if not exchange:
    folders._exchange = lambda one, other: False
operations = 0
def count_operations(event, arguments):
    global operations
    if event.startswith("os.") and str(target.parent) in str(arguments[0]):
        operations += 1
        if operations > count:
            os._exit(9)
sys.addaudithook(count_operations)
with folders.whole(target) as new:
    (new / "result.json").write_text("new")
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(target: Path, text: str, *, overwrite: bool = True) -> None:
    with folders.whole(target, overwrite=overwrite) as new:
        (new / "result.json").write_text(text)


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_stays_and_what_it_names_is_written(tmp_path: Path, there: bool) -> None:
    (tmp_path / "disk").mkdir()
    if there:
        write(tmp_path / "disk" / "x", "old")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "x")
    folders.check_target(tmp_path / "link", overwrite=True)
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "x" / "result.json").read_text() == "new"
    assert partial_folder(tmp_path / "link") == tmp_path / "disk" / "x.partial"
    assert names(tmp_path) == ["disk", "link"]
    assert names(tmp_path / "disk") == ["x"]


def test_places_that_would_be_lost_or_cannot_be_written_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path / "here")
    for place in (
        *("/", ".", "..", "", "x.partial", "a\0b", "../loop", "../file", "../file/x"),
        *("a" * 300, "/proc/x"),
    ):
        with pytest.raises(UserError) as refused, folders.claimed(place):
            folders.check_target(place, overwrite=True)
        assert "\n" not in str(refused.value)
    assert names(tmp_path) == ["file", "here", "loop"]
    assert names(tmp_path / "here") == []


@pytest.mark.parametrize("how", ["exchange", "two renames"])
def test_a_kill_at_any_file_operation_loses_neither_the_old_nor_the_new(
    tmp_path: Path, how: str
) -> None:
    for count in range(40):
        target = tmp_path / str(count) / "x"
        write(target, "old")
        command = [sys.executable, "-c", KILLED, str(target), str(count), how]
        code = subprocess.run(command, check=False).returncode
        with folders.claimed(target):
            assert (target / "result.json").read_text() in ("old", "new")
        assert names(target.parent) == ["x"]
        if code == 0:
            assert (target / "result.json").read_text() == "new"
            break
    assert 5 < count < 39


def test_of_two_runs_the_second_is_refused_in_one_line(tmp_path: Path) -> None:
    target = tmp_path / "a" / "x"
    seen: list[str] = []

    def second() -> None:
        try:
            write(target, "second")
        except UserError as error:
            seen.append(str(error))

    with folders.claimed(target):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        write(target, "first")  # the run itself may
    assert seen == [f"another run is writing {target}; wait for it to end or choose another --out"]
    assert names(target.parent) == ["x"]
    with pytest.raises(UserError, match="exists, another run has written it meanwhile"):
        write(target, "third", overwrite=False)
    assert (target / "result.json").read_text() == "first"


def test_a_claim_leaves_no_folder_behind(tmp_path: Path) -> None:
    with folders.claimed(tmp_path / "a" / "b" / "x"):
        assert (tmp_path / "a" / "b").is_dir()
    assert names(tmp_path) == []


def test_commands_claim_their_folder_and_spare_their_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x"
    assert run(capsys, "layers", "--out", out, "-q")[0] == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    code, _, said = run(capsys, "embed", "--data", out, "--out", out, "--overwrite")
    assert code == 2
    assert f"{out} lies in the result folder {out}, which would be replaced" in said
    with folders.locked(tmp_path / ".x.featviz", "busy"):
        for command in ("embed", "kernels", "layers", "demo"):
            code, _, said = run(capsys, command, "--out", out, "--overwrite")
            assert (code, said.count("\n")) == (2, 1)
            assert f"another run is writing {out}" in said
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def _pieces(place: Path) -> None:
    with open_checkpoint(place, {"job": 1}) as kept:
        kept.write("one", {})


def test_unfinished_work_that_nobody_can_go_on_with_is_cleared(tmp_path: Path) -> None:
    out, place = tmp_path / "x", tmp_path / "x.partial"
    made = Origin(None, None, {}, 0, "cpu", 1.5)
    out.mkdir()
    # Killed between saving the result and removing its pieces.
    _pieces(place)
    announce_result(place, made)
    remove_finished(out)
    assert place.exists()  # not saved yet
    document = f'{{"schema": 1, "created": "{made.created}", "seconds": 1.5}}'
    (out / "result.json").write_text(document)
    with folders.locked(place, "busy"):
        remove_finished(out)
    assert place.exists()  # another run is at it
    remove_finished(out)
    assert not place.exists()
    # Pieces without a job, or with one that cannot be read: only where all is replaced.
    for damage in (lambda job: job.unlink(), lambda job: job.write_text("{")):
        _pieces(place)
        damage(place / "job.json")
        remove_finished(out)
        assert (place / "one.npz").exists()
        remove_finished(out, overwrite=True)
        assert not place.exists()
    # Of another job, or not ours at all: never.
    _pieces(place)
    remove_finished(out, overwrite=True)
    assert (place / "one.npz").exists()
    os.remove(place / "job.json")
    (place / "thesis.tex").write_text("mine")
    remove_finished(out, overwrite=True)
    assert (place / "thesis.tex").exists()


@pytest.mark.slow
def test_no_file_of_a_result_names_a_folder_of_the_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some, data, out = sample_pictures(2), tmp_path / "data", tmp_path / "run"
    for row in range(8):
        (data / some.folders[row]).mkdir(parents=True, exist_ok=True)
        some.open(row).resize((64, 64)).save(data / some.folders[row] / f"{row}.png")
    for words in (
        ("embed", "--data", data, "--out", out / "embed"),
        ("neighbors", "--store", out / "embed", "--out", out / "neighbors"),
        ("atlas", "--store", out / "embed", "--out", out / "atlas", "--perplexity", "2"),
        ("maps", data / some.folders[0] / "0.png", "--layer", "conv1", "--out", out / "maps"),
        ("gallery", out),
    ):
        code, _, said = run(capsys, *words, "--quiet")
        assert code == 0, said
    found = [path for path in out.rglob("*") if path.is_file()]
    assert len(found) > 20
    assert [path for path in found if str(tmp_path).encode() in path.read_bytes()] == []
