"""Unfinished work: kept through a kill, made again where damaged, never mixed with another job."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch

from featviz.checkpoints import (
    Arrays,
    Checkpoint,
    Interrupted,
    difference,
    open_checkpoint,
    partial_folder,
    remove_checkpoint,
)
from featviz.errors import UserError

JOB: dict[str, Any] = {"model": "abc", "steps": 128, "lr": float("nan"), "units": (3, 12)}


def make(i: int) -> Arrays:
    return {"x": np.random.default_rng(i).normal(size=(100, 100)), "i": np.array(i)}


class Run:
    """A run in a copy of this process: 20 pieces, with a pause before each.

    With a pause below 0 it waits for a message before each piece but the first.
    """

    def __init__(self, folder: Path, pause: float):
        self.said, there = forked.FORK.Pipe()

        def one(i: int) -> Arrays:
            if i and pause < 0:
                there.recv()
            else:
                time.sleep(abs(pause))
            return make(i)

        def work() -> None:
            try:
                with open_checkpoint(folder, {"rows": 20}, total=20, unit="rows") as kept:
                    for i in range(20):
                        kept.piece(f"piece-{i:02}", partial(one, i))
                        there.send(i)
            except UserError as error:
                there.send(str(error))
                raise SystemExit(1) from None

        self.process = forked.start(work)
        there.close()

    def wait_for(self, line: int) -> None:
        while self.said.recv() != line:
            pass

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def end(self) -> int | None:
        self.process.join()
        return self.process.exitcode


def two_pieces(folder: Path, job: dict[str, Any] = JOB) -> None:
    with open_checkpoint(folder, job) as kept:
        kept.write("one", make(1))
        kept.write("two", make(2))


def stopped(folder: Path | None, pieces: int) -> None:
    """A run of which Ctrl-C is pressed behind so many pieces."""
    with open_checkpoint(folder, JOB, total=5000, unit="rows") as kept:
        for i in range(pieces):
            kept.write(f"rows-{i}", make(i), size=256)
        raise KeyboardInterrupt


def read_all(folder: Path, job: dict[str, Any] = JOB) -> list[Arrays | None]:
    with open_checkpoint(folder, job) as kept:
        return [kept.read(name) for name in ("one", "two")]


def test_pieces_survive_kill_9_and_the_rerun_makes_only_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "out.partial"
    for line in (2, 9):
        run = Run(folder, 0.02)
        run.wait_for(line)
        time.sleep(0.013)
        run.kill()
        assert run.end() == -signal.SIGKILL
    made: list[int] = []

    def note(i: int) -> Arrays:
        made.append(i)
        return make(i)

    with open_checkpoint(folder, {"rows": 20}, total=20, unit="rows") as kept:
        found = [kept.piece(f"piece-{i:02}", partial(note, i)) for i in range(20)]
        assert kept.found == 20 - len(made)
    assert made == list(range(made[0], 20))
    assert 10 <= made[0] < 20
    for i, arrays in enumerate(found):
        assert arrays.keys() == {"x", "i"}
        assert arrays["i"] == i
        assert np.array_equal(arrays["x"], make(i)["x"])


def test_any_damaged_byte_is_noticed(tmp_path: Path) -> None:
    two_pieces(tmp_path / "p")
    with open_checkpoint(tmp_path / "p", JOB) as kept:
        kept.write("one", {"x": np.arange(3)})
        file = tmp_path / "p" / "one.npz"
        whole = file.read_bytes()
        for place in range(len(whole)):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert kept.read("one") is None, place
        for end in (0, 1, 32, len(whole) - 1):
            file.write_bytes(whole[:end])
            assert kept.read("one") is None
        assert np.array_equal(kept.piece("one", lambda: {"x": np.arange(3)})["x"], np.arange(3))
        assert file.read_bytes() == whole


def test_pieces_are_files_that_numpy_reads(tmp_path: Path) -> None:
    two_pieces(tmp_path / "p")
    with np.load(tmp_path / "p" / "two.npz") as arrays:
        assert np.array_equal(arrays["x"], make(2)["x"])


def test_another_job_is_refused_with_both_ways_out_and_its_pieces_stay(tmp_path: Path) -> None:
    two_pieces(tmp_path / "p")
    before = {path: path.read_bytes() for path in (tmp_path / "p").glob("*.npz")}
    with (
        pytest.raises(UserError, match=r"another command \(steps 128, now 256\)") as error,
        open_checkpoint(tmp_path / "p", JOB | {"steps": 256}),
    ):
        pass
    assert "give that command again to finish it" in str(error.value)
    assert "remove the folder, or choose another --out" in str(error.value)
    assert "\n" not in str(error.value)
    assert before == {path: path.read_bytes() for path in (tmp_path / "p").glob("*.npz")}
    assert all(arrays is not None for arrays in read_all(tmp_path / "p"))


def test_another_version_of_torch_is_another_job(tmp_path: Path) -> None:
    two_pieces(tmp_path / "p")
    note = tmp_path / "p" / "job.json"
    note.write_text(note.read_text().replace(torch.__version__, "1.0"))
    with pytest.raises(UserError, match=r"torch 1\.0, now"):
        read_all(tmp_path / "p")


def test_a_job_without_a_finished_piece_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_checkpoint(tmp_path / "p", JOB) as kept:
        kept.piece("one", lambda: {"x": np.array(1 // 0)})
    assert not (tmp_path / "p").exists()
    # Killed before its first piece: the folder is anybody's.
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "job.json").write_text(json.dumps({"job": {"other": 1}, "threads": 1}))
    two_pieces(tmp_path / "p")


def test_the_second_of_two_runs_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    first = Run(folder, -0.01)  # it waits for a message before the second piece
    first.wait_for(0)
    second = Run(folder, 0.0)
    assert second.end() == 1
    assert f"another run is writing {folder}; wait for it to end" in second.said.recv()
    with (
        pytest.raises(UserError, match=r"another run is writing .* or choose another --out"),
        open_checkpoint(folder, {"rows": 20}),
    ):
        pass
    remove_checkpoint(folder)  # not while another run is writing
    for _ in range(19):
        first.said.send(None)
    assert first.end() == 0
    assert len(list(folder.glob("*.npz"))) == 20


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    run = Run(tmp_path / "p", 0.05)
    run.wait_for(1)
    run.kill()
    assert (tmp_path / "p" / "lock").exists()
    with open_checkpoint(tmp_path / "p", {"rows": 20}) as kept:
        assert kept.read("piece-00") is not None


def test_ctrl_c_says_what_was_kept(tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as stop:
        stopped(tmp_path / "p", pieces=9)
    assert isinstance(stop.value, KeyboardInterrupt)
    wanted = "kept 2,304 of 5,000 rows; give the same command again to go on"
    assert str(stop.value) == wanted


def test_ctrl_c_before_the_first_piece_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as stop:
        stopped(tmp_path / "p", pieces=0)
    assert not isinstance(stop.value, Interrupted)
    assert not (tmp_path / "p").exists()


def test_a_folder_whose_job_is_gone_is_refused(tmp_path: Path) -> None:
    two_pieces(tmp_path / "p")
    (tmp_path / "p" / "job.json").unlink()
    with pytest.raises(UserError, match=r"has no job\.json.*remove it .* or choose another --out"):
        read_all(tmp_path / "p")
    assert len(list((tmp_path / "p").glob("*.npz"))) == 2
    remove_checkpoint(tmp_path / "p")  # not certainly ours
    assert len(list((tmp_path / "p").glob("*.npz"))) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"job": 3}', '{"threads": 1}'])
def test_a_damaged_job_is_refused(tmp_path: Path, content: str) -> None:
    two_pieces(tmp_path / "p")
    (tmp_path / "p" / "job.json").write_text(content)
    with pytest.raises(UserError, match=r"job\.json .*; remove .* or choose another --out"):
        read_all(tmp_path / "p")


def test_a_file_and_a_foreign_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        two_pieces(tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="nothing can be resumed"):
        two_pieces(tmp_path / "mine")
    remove_checkpoint(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="not allowed to write there; choose another --out"):
            two_pieces(tmp_path / "p")
    finally:
        tmp_path.chmod(0o700)


def test_what_a_killed_removal_leaves_is_recognized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind each deletion in turn: a later run takes the folder over, or removes it."""
    unlink, rmtree = Path.unlink, shutil.rmtree
    for allowed in range(7):
        folder = tmp_path / str(allowed) / "p"
        two_pieces(folder)
        with open_checkpoint(folder, JOB) as kept:
            kept.part("inner").write("three", make(3))
        left = [allowed]

        def count(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

        def unlink_some(path: Path, missing_ok: bool = False, c: Any = count) -> None:
            c()
            unlink(path, missing_ok=missing_ok)

        def rmtree_some(path: Any, ignore_errors: bool = False, c: Any = count) -> None:
            c()
            rmtree(path, ignore_errors=ignore_errors)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", unlink_some)
            patched.setattr(shutil, "rmtree", rmtree_some)
            if allowed < 6:
                with pytest.raises(KeyboardInterrupt):
                    remove_checkpoint(folder)
            else:
                remove_checkpoint(folder)
        assert folder.exists() == (allowed < 6)
        two_pieces(folder)
        assert all(arrays is not None for arrays in read_all(folder))
        remove_checkpoint(folder)
        assert not folder.exists()


def test_what_a_kill_leaves_half_written_is_not_read_and_cleared_away(tmp_path: Path) -> None:
    two_pieces(tmp_path / "p")
    with open_checkpoint(tmp_path / "p", JOB) as kept:
        kept.part("inner").write("three", make(3))
    for folder in (tmp_path / "p", tmp_path / "p" / "inner"):
        (folder / ".four.part").write_bytes((tmp_path / "p" / "one.npz").read_bytes()[:200])
    with open_checkpoint(tmp_path / "p", JOB) as kept:
        assert kept.read("four") is None
        assert kept.part("inner").read("four") is None
    assert not list((tmp_path / "p").rglob("*.part"))


@pytest.mark.parametrize("on_disk", [True, False])
def test_parts_keep_their_own_pieces_and_count_with_the_whole(
    tmp_path: Path, on_disk: bool
) -> None:
    folder = tmp_path / "p" if on_disk else None
    with open_checkpoint(folder, JOB, total=12, unit="units") as kept:
        kept.write("one", make(1), size=2)
        inner = kept.part("conv5:12")
        with open_checkpoint(inner, {"any": "job"}, total=5) as same:
            assert same is inner is kept.part("conv5:12")
            same.write("one", make(7), size=3)
        assert kept.summary == "kept 5 of 12 units"
        assert inner.summary == "kept 3 of 5 units"
        for checkpoint, i in ((kept, 1), (inner, 7)):
            arrays = checkpoint.read("one")
            assert arrays is not None
            assert arrays["i"] == i
    if folder is not None:
        with open_checkpoint(folder, JOB) as again:
            assert again.part("conv5:12").read("one", size=3) is not None
            assert again.done == 3
        remove_checkpoint(folder)
        assert not folder.exists()


def test_a_piece_that_is_replaced_counts_once(tmp_path: Path) -> None:
    """As the state of a training, which is one piece written again after each epoch."""
    with open_checkpoint(tmp_path / "p", JOB, total=9, unit="epochs") as kept:
        for epoch in (1, 2, 3):
            kept.write("state", make(epoch), size=epoch)
        assert kept.summary == "kept 3 of 9 epochs"
        state = kept.read("state")
        assert state is not None
        assert state["i"] == 3
    assert [path.name for path in (tmp_path / "p").glob("*.npz")] == ["state.npz"]


def test_without_a_folder_pieces_are_in_memory() -> None:
    with open_checkpoint(None, JOB) as kept:
        assert kept.folder is None
        first = kept.piece("one", lambda: make(1))
        assert kept.piece("one", lambda: make(2)) is first
    with pytest.raises(KeyboardInterrupt) as stop:
        stopped(None, pieces=1)
    assert not isinstance(stop.value, Interrupted)


def test_a_later_run_computes_with_the_threads_of_the_first(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        two_pieces(tmp_path / "p")
        torch.set_num_threads(1)
        with open_checkpoint(tmp_path / "p", JOB):
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


def test_the_difference_of_two_jobs_in_words() -> None:
    assert difference({"steps": 128}, {"steps": 256}) == "steps 128, now 256"
    assert difference({"a": 1, "settings": {"lr": 1, "x": 2}}, {"a": 1, "settings": {"lr": 3}}) == (
        "lr 1, now 3"
    )
    assert difference({"units": [1, 2]}, {"units": [1, 3]}) == "units 2, now 3"
    assert difference({"pictures": "a" * 64}, {"pictures": "b" * 64}) == "other pictures"
    assert difference({"seed": None}, {"seed": 3}) == "other seed"


def test_the_folder_of_unfinished_work_lies_beside_the_result() -> None:
    assert partial_folder("run/embed.v1") == Path("run/embed.v1.partial")
    assert isinstance(Checkpoint(None).summary, str)
