"""Every long command, killed again and again: the same bytes, and nothing left beside them.

FEATVIZ_KILLS sets how many times each command is killed (default 5; 20 for a thorough search).
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featviz.data.samples import sample_pictures

KILLS = int(os.environ.get("FEATVIZ_KILLS", "5"))
PROGRAM = Path(__file__).parents[1] / "killed_commands.py"

COMMANDS = {
    "embed": "embed --data DATA --batch-size 4",
    "maximize": "maximize --layer conv1 --units 0-3 --steps 3 --batch-size 2",
    "facets": "facets --layer conv2 --units 3 --count 3 --steps 3",
    "interpolate": "interpolate --layer conv1 --units 0,3 --count 3 --steps 3",
    "redraw": "redraw --layer conv1,conv2 --steps 3",
    "atlas": "atlas --data DATA --icons both --sides 2 --icon-side 2 --icon-steps 2 --perplexity 2",
    "attack": "attack --steps 3",
    "audit": "audit --count 2 --steps 10 --norm linf --check-steps 2 --queries 0 --parts transfer",
    "corrupt": "corrupt --names fog,contrast --severities 1 --count 3",
    "universal": "universal --count 4 --steps 3",
    "patch": "universal --patch --count 4 --steps 3",
    "train": "train --data DATA --epochs 2 --batch-size 4",
}
WITHOUT_DAMAGE = {"attack", "train"}
"""attack keeps no pieces, and a damaged state of a training is refused"""
TIMES = re.compile("second|time|pace|speed|created|/s$|memory|self-test")
"""names and units of what differs from run to run: times and memory"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small pictures of two classes."""
    some, folder = sample_pictures(4), tmp_path_factory.mktemp("data")
    for row in range(8):
        place = folder / some.folders[row] / f"{row}.png"
        place.parent.mkdir(exist_ok=True)
        some.open(row).resize((64, 64)).save(place)
    return folder


def content(path: Path) -> Any:
    """What a file holds but for times and memory."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {n: arrays[n].tobytes() for n in arrays if not TIMES.search(n)}
    if path.suffix == ".csv":
        with path.open(encoding="utf-8") as file:
            rows = list(csv.reader(file))
        kept = [i for i, name in enumerate(rows[0]) if not TIMES.search(name)]
        return [[row[i] for i in kept] for row in rows if not any(map(TIMES.search, row[:2]))]
    if path.name == "result.json":
        document = json.loads(path.read_text(encoding="utf-8"))
        numbers = {
            name: number
            for name, number in document.pop("numbers").items()
            if not TIMES.search(f"{name} {number['unit']}")
        }
        return numbers, {k: v for k, v in document.items() if not TIMES.search(k)} | {"command": 0}
    return path.read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_anywhere_a_command_ends_with_the_same_bytes(
    name: str, data: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    words = [str(data) if word == "DATA" else word for word in COMMANDS[name].split()]
    words += ["--device", "cpu", "--quiet", "--out", str(root / "x")]
    asked: dict[str, Any] = {"words": words, "root": str(root), "kills": KILLS, "seed": len(name)}
    asked["damage"] = name not in WITHOUT_DAMAGE
    done = subprocess.run(
        [sys.executable, str(PROGRAM), json.dumps(asked)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    runs = found["runs"]
    assert runs[0][1] == 0, runs
    assert runs[-1][1] == 0, runs
    # Exit 2 is that the result had been saved when the run before it was killed.
    assert all(code in (0, -9, -14, 130) or "x exists" in said for _, code, said in runs), runs
    assert all(said.count("\n") <= 1 for _, code, said in runs if code in (2, 130)), runs
    assert (found["damaged"] > 0) == asked["damage"], runs
    assert [p.name for p in root.iterdir()] == ["x"], runs
    whole = Path(f"{root}-whole")
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    for file in files:
        assert content(root / file) == content(whole / file), (file, runs)
