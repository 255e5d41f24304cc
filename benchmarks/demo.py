"""How long the tour takes, step by step, beside the import of torch in the same run.

    python benchmarks/demo.py [--quick]

--quick measures `featviz demo --quick`, else the whole tour of `make demo`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _rounds


def main() -> None:
    given = _rounds.arguments(__doc__.splitlines()[0])
    rounds = 1 if given.quick else 3
    tours: list[dict[str, Any]] = []
    whole: list[float] = []
    bare: list[float] = []
    for _ in range(rounds):
        bare.append(_seconds([sys.executable, "-c", "import torch"])[0])
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "featviz", "demo", "--json", "--quiet"]
            command += ["--quick"] if given.quick else []
            seconds, text = _seconds([*command, "--out", str(Path(folder) / "tour")])
        whole.append(seconds)
        tours.append(json.loads(text))
    names = [Path(step["folder"]).name for step in tours[0]["steps"]]
    rows = [
        _rounds.row(name, "s", [tour["steps"][i]["seconds"] for tour in tours])
        for i, name in enumerate(names)
    ]
    kind = "featviz demo --quick" if given.quick else "featviz demo"
    rows = [_rounds.row(kind, "s", whole), _rounds.row("import torch", "s", bare), *rows]
    ratio = statistics.median(whole) / statistics.median(bare)
    _rounds.report("demo", rows, {f"{kind}/import torch": ratio})


def _seconds(command: list[str]) -> tuple[float, str]:
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - started, done.stdout


if __name__ == "__main__":
    main()
