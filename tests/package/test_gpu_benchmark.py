"""The benchmark of a card runs on a CPU, and no row that hangs or breaks costs the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
WORKER = """
import json, os, sys, time
print(json.dumps({"limits": {"good": 5, "hangs": 1, "breaks": 5}, "done": True}), flush=True)
for name in map(str.strip, sys.stdin):
    if name == "hangs":
        print(json.dumps({"what": "half"}), flush=True)
        time.sleep(60)
    if name == "breaks":
        os.write(2, b"an error of the driver")
        os._exit(3)
    print(json.dumps({"what": "speed", "ok": True}), flush=True)
    print(json.dumps({"done": True}), flush=True)
"""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    import gpu

    return gpu


def test_a_row_that_hangs_or_breaks_costs_no_other(gpu: Any, tmp_path: Path) -> None:
    with (tmp_path / "lines").open("w+") as out, (tmp_path / "errors").open("w+b") as errors:
        log = gpu.Log(out)
        runner = gpu.Runner([sys.executable, "-c", WORKER], log, errors)
        try:
            for name in ("good", "hangs", "good", "breaks", "good"):
                runner.run(name, 1 if name == "hangs" else 20)
        finally:
            runner.stop()
        out.seek(0)
        lines = [json.loads(line) for line in out]
    assert [(line["row"], line.get("what", line.get("error"))) for line in lines] == [
        ("good", "speed"),
        ("hangs", "half"),
        ("hangs", "stopped after 1 s"),
        ("good", "speed"),
        ("breaks", "its process ended"),
        ("good", "speed"),
    ]
    assert lines[4]["last"] == ["an error of the driver"]
    assert log.summary(1)["failed"] == ["hangs: stopped after 1 s", "breaks: its process ended"]
    assert list(runner.limits) == ["good", "hangs", "breaks"]


def _run(*rows: str, device: str = "cpu") -> list[dict[str, Any]]:
    command = [sys.executable, str(FOLDER / "gpu.py"), "--small", "--device", device]
    done = subprocess.run(
        [*command, *(["--rows", *rows] if rows else ["--seconds", "1000"])],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, lines[-1]
    return lines


def test_rows_run_on_a_cpu() -> None:
    lines = _run("machine", "search", "check activations")
    assert {line["row"] for line in lines} == {"machine", "search", "check activations", "summary"}
    assert lines[-1]["checks"] == lines[-1]["passed"] == 3
    assert all(line["value"] > 0 for line in lines if line.get("unit") == "ms")


def test_a_wrong_result_is_told_from_a_right_one(gpu: Any) -> None:
    import _gpu_checks
    import torch

    x = torch.randn(3, 4)
    for far, ok in ((1e-6, True), (1e-3, False)):
        (line,) = _gpu_checks.compare({"conv5": x}, {"conv5": x * (1 + far)}, _gpu_checks.PASS)
        assert line["ok"] is ok
        assert line["value"] == pytest.approx(far, rel=0.1)


@pytest.mark.long
@pytest.mark.parametrize("device", ["cpu", "pretended"])
def test_all_rows_run_without_a_card(device: str) -> None:
    rows = ("ceilings", "maximize", "attack", "train", "embed", "layout", "million", "peers")
    lines = _run(*rows, "check neighbors", "check attack", device=device)
    assert {line["row"] for line in lines} >= set(rows)
