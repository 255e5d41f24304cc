"""A net trained by several processes: the same weights, each picture once, a kill loses nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from featviz.errors import UserError
from featviz.training import loop
from featviz.training.loop import TrainSettings
from featviz.training.processes import Processes, joined


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `processes_check.py` found."""
    script = Path(__file__).with_name("processes_check.py")
    folder = tmp_path_factory.mktemp("processes")
    done = subprocess.run(
        [sys.executable, "-W", "error", script, folder],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "said.json").read_text())
    return found


@pytest.mark.numeric
def test_the_weights_do_not_depend_on_the_number_of_processes(said: dict[str, Any]) -> None:
    """20 steps with dropout, changed pictures, batch normalization and a picture that is broken."""
    assert said["moved"] > 0.1
    assert said["weights of 2"] < 1e-5
    assert said["loss of 2"] < 1e-5
    assert len(set(said["top-1"])) == 1


def test_in_an_epoch_no_picture_is_read_twice_by_any_process(said: dict[str, Any]) -> None:
    rows = said["rows"]
    read = Counter(row for mine in rows for row in mine)
    # Four epochs of 40 of the 42 pictures; the order is drawn anew, so that others are left out.
    assert list(map(len, rows)) == [80, 80]
    assert max(read.values()) <= 4
    assert len(read) == 42


def test_no_net_that_shares_gradients_outlives_the_group(said: dict[str, Any]) -> None:
    """Freed later, it could wait forever for a thread of the group."""
    assert said["left"] == [[0], [0]]


def test_after_a_kill_the_others_end_with_one_line_and_any_number_goes_on(
    said: dict[str, Any],
) -> None:
    survivor, killed = said["killed"]
    assert killed is None
    assert survivor == (
        "another process of the training has ended; kept 2 of 4 epochs; give the same command "
        "again to go on"
    )
    assert said["seconds"] < 60
    assert said["resumed by 3"] < 1e-5
    assert said["rows after the resume"] == 2 * 40


def test_mistakes_with_several_processes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    several = Processes(torch.device("cpu"), 0, 9)
    with pytest.raises(UserError, match="batch_size is 8 for 9 processes"):
        loop._check_processes(several, 1, TrainSettings(batch_size=8))
    with pytest.raises(UserError, match="workers 2: threads within each of 9 processes"):
        loop._check_processes(several, 2, TrainSettings())
    started = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (started | {"MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(UserError, match=r"3 processes for 2 CUDA devices; .*--nproc-per-node 2"),
        joined("auto"),
    ):
        pass


def _torchrun(count: int, *words: str | Path) -> subprocess.Popen[str]:
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command = [sys.executable, "-m", *launch, "-m", "featviz", *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def _lines(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("featviz: ")]


@pytest.mark.long
def test_torchrun_trains_resumes_and_says_each_mistake_once(tmp_path: Path) -> None:
    for i in range(42):
        place = tmp_path / "data" / f"class{i % 3}" / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (5 * i, 90, 0)).save(place)
    words: list[str | Path] = [
        "train",
        "--data",
        tmp_path / "data",
        "--batch-size",
        "8",
        "--out",
        tmp_path / "run",
    ]
    words += ["--device", "cpu", "--quiet", "--precision", "float32", "--lr", "0.02"]
    wrong = _torchrun(2, *words, "--schedule", "cosin")
    _, err = wrong.communicate(timeout=120)
    assert wrong.returncode != 0
    assert len(_lines(err)) == 1
    assert "did you mean cosine" in _lines(err)[0]
    stopped = _torchrun(2, *words, "--epochs", "400")
    state = tmp_path / "run.partial" / "state.npz"
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    workers = Path(f"/proc/{stopped.pid}/task/{stopped.pid}/children").read_text().split()
    os.kill(int(workers[0]), signal.SIGKILL)
    _, err = stopped.communicate(timeout=120)
    assert stopped.returncode != 0
    assert len(_lines(err)) == 1, err
    assert re.search(r"kept \d+ of 400 epochs; give the same command again", _lines(err)[0])
    finished = len(json.loads(str(np.load(state)["history"])))
    resumed = _torchrun(3, *words, "--epochs", str(finished + 1), "--json")
    out, err = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, err
    document = json.loads(out)
    assert document["parameters"]["processes"] == 3
    assert document["numbers"]["epochs"]["value"] == finished + 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "run"]
