"""One card in at most eight minutes: is everything right there, and how fast is it?

    python benchmarks/gpu.py --out results.jsonl
    python benchmarks/gpu.py --rows search train --seconds 120
    python benchmarks/gpu.py --device cpu --small

Needs the repository and torch with CUDA, no data and no network: pictures are drawn, weights of
AlexNet are random. Rows run in the order of their use (--list), each within its own time, in a
process that is killed and started anew where a row hangs or crashes. Every measurement is a line
of JSON at once, in the file, too:

    {"row": "maximize", "what": "featviz, bfloat16", "value": 5.6, "unit": "ms a step",
     "predicted": [5, 6], "ok": null}

predicted: for one H200, from counted work (docs/scale.md); null where nothing was predicted
ok: the verdict of a check (`benchmarks/_gpu_checks.py`); null for a speed

The rows "check NAME" run each analysis on the card and on the CPU and compare what they find.
With --device cpu the other side computes without oneDNN, which rounds differently; with --device
pretended it is the tests' pretended card. --small takes everything at its smallest. Ends with
status 1 where a check failed or a row broke.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

STARTING = 60.0
"""seconds that a worker may take until it is ready"""


def main() -> int:
    given = _arguments()
    if given.worker:
        return work(given)
    ends = time.monotonic() + given.seconds
    with ExitStack() as stack:
        out = stack.enter_context(given.out.open("a")) if given.out else None
        log = Log(out)
        errors = stack.enter_context(tempfile.TemporaryFile())
        runner = Runner(command(given), log, errors)
        stack.callback(runner.stop)
        runner.start()
        if given.list:
            print("\n".join(f"{limit:4.0f} s  {name}" for name, limit in runner.limits.items()))
            return 0
        for name, limit in runner.limits.items():
            if given.rows and not {name, name.partition(" ")[0]} & set(given.rows):
                continue
            left = ends - time.monotonic()
            if left < 2:
                log({"row": name, "skipped": f"the {given.seconds:.0f} seconds are over"})
                continue
            runner.run(name, min(limit, left))
        log(log.summary(given.seconds - (ends - time.monotonic())))
    return int(log.broken > 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="a file to which the lines are added")
    parser.add_argument("--rows", nargs="+", help="only these; check: all checks")
    parser.add_argument("--seconds", type=float, default=480, help="for all rows together")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu", "pretended"])
    parser.add_argument("--small", action="store_true", help="everything at its smallest")
    parser.add_argument("--list", action="store_true", help="the rows in order, and their times")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def limits() -> dict[str, float]:
    """All rows in order, with the seconds that each may take."""
    from _gpu_checks import FIRST
    from every_analysis import ANALYSES

    rest = [name for name in ANALYSES if name not in FIRST]
    return {
        "machine": 30,
        "ceilings": 40,
        "check numbers": 30,
        **{f"check {name}": 120 if name == "audit" else 60 for name in FIRST},
        "maximize": 70,
        "attack": 30,
        "search": 60,
        "train": 60,
        "embed": 60,
        "layout": 70,
        "audit": 60,
        **{f"check {name}": 60 for name in rest},
        "peers": 60,
        "million": 150,
    }


def command(given: argparse.Namespace) -> list[str]:
    """The command line of a worker."""
    options = ["--worker", "--device", given.device, *["--small"] * given.small]
    return [sys.executable, __file__, *options]


class Log:
    """Lines of JSON to the terminal and the file, each at once."""

    def __init__(self, out: IO[str] | None):
        self.out = out
        self.checks = self.passed = self.broken = 0
        self.failed: list[str] = []

    def __call__(self, line: dict[str, Any]) -> None:
        if line.get("ok") is not None:
            self.checks, self.passed = self.checks + 1, self.passed + bool(line["ok"])
        if line.get("ok") is False or "error" in line:
            self.broken += 1
            self.failed.append(f"{line['row']}: {line.get('what', line.get('error'))}")
        for place in filter(None, (sys.stdout, self.out)):
            print(json.dumps(line), file=place, flush=True)

    def summary(self, seconds: float) -> dict[str, Any]:
        return {
            "row": "summary",
            "checks": self.checks,
            "passed": self.passed,
            "failed": self.failed,
            "seconds": round(seconds, 1),
        }


class Runner:
    """Gives rows to a worker, one at a time; a worker that hangs or breaks is replaced."""

    def __init__(self, command: list[str], log: Log, errors: IO[bytes]):
        self.command, self.log, self.errors = command, log, errors
        self.limits: dict[str, float] = {}
        """all rows in order, with the seconds that each may take"""
        self.process: subprocess.Popen[str] | None = None
        self.lines: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def run(self, name: str, limit: float) -> None:
        if self.process is None:
            self.start()
        if self.process is None or self.process.stdin is None:
            return
        print(name, file=self.process.stdin, flush=True)
        self._finish(name, limit)

    def start(self) -> None:
        self.lines = queue.Queue()
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            text=True, start_new_session=True,
        )  # fmt: skip
        threading.Thread(target=_read, args=(self.process.stdout, self.lines), daemon=True).start()
        self._finish("start", STARTING)

    def _finish(self, name: str, limit: float) -> None:
        """Pass on the lines of a row until it is done."""
        ends = time.monotonic() + limit
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, ends - time.monotonic()))
            except queue.Empty:
                line = {"error": f"stopped after {limit:.0f} s", "done": False}
            if line is None:
                line = {"error": "its process ended", "last": self._last_words(), "done": False}
            done = line.pop("done", None)
            self.limits = line.pop("limits", self.limits)
            if line:
                self.log({"row": name} | line)
            if done is False:
                self.stop()
            if done is not None:
                return

    def _last_words(self) -> list[str]:
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace").splitlines()[-5:]

    def stop(self) -> None:
        if self.process is not None:
            # It may have ended, or the driver holds it: the next one starts all the same.
            with suppress(ProcessLookupError, subprocess.TimeoutExpired, BrokenPipeError):
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(10)
                self.process.__exit__(None, None, None)  # closes its pipes
            self.process = None


def _read(lines: IO[str], into: queue.Queue[dict[str, Any] | None]) -> None:
    for line in lines:
        into.put(json.loads(line))
    into.put(None)


def work(given: argparse.Namespace) -> int:
    """The worker: names of rows in, lines of JSON out, then {"done": whether it can go on}."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no line of ours

    def say(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=out, flush=True)

    with ExitStack() as stack:
        if given.device == "pretended":
            from pretend_cuda import PretendedCuda

            stack.enter_context(PretendedCuda())
        import torch

        if given.device == "cuda" and not torch.cuda.is_available():
            print("torch sees no CUDA device here; take --device cpu --small", file=sys.stderr)
            return 1
        say({"limits": limits(), "done": True})
        for line in sys.stdin:
            say({"done": run_row(line.strip(), given, say)})
    return 0


def run_row(name: str, given: argparse.Namespace, say: Any) -> bool:
    """Say every line of a row; whether this process can go on."""
    import gc
    import traceback

    import torch

    device = "cpu" if given.device == "cpu" else "cuda"
    try:
        began = time.perf_counter()
        for line in _lines(name, device, small=given.small):
            if given.small or device == "cpu":
                line["predicted"] = None
            say({**line, "at": round(time.perf_counter() - began, 1)})
    except Exception as error:  # noqa: BLE001 - a row may fail in any way
        places = [
            f"{Path(frame.filename).name}:{frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)
            if "site-packages" not in frame.filename
        ]
        text = " ".join(str(error).split())[:500]
        say({"error": f"{type(error).__name__}: {text}", "from": places[-4:]})
    gc.collect()
    try:
        if device == "cuda":
            torch.cuda.synchronize()  # which fails for good after an error of a kernel
            torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def _lines(name: str, device: str, *, small: bool) -> Iterator[dict[str, Any]]:
    import _gpu_checks
    import _gpu_rows

    if name == "machine":
        yield {"what": "machine", "value": machine(device)}
    elif name.startswith("check "):
        yield from _gpu_checks.check(name.removeprefix("check "), device)
    else:
        yield from _gpu_rows.ROWS[name](device, small)


def machine(device: str) -> dict[str, Any]:
    """What was measured on."""
    import torch

    import featviz

    found = {
        "host": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "featviz": featviz.__version__,
        "device": device,
    }
    if device == "cuda" and torch.version.cuda:
        card = torch.cuda.get_device_properties(0)
        found |= {
            "card": card.name,
            "GB": round(card.total_memory / 1e9),
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
        }
    return found


if __name__ == "__main__":
    sys.exit(main())
