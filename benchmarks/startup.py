"""Start-up time of whole processes, beside that of the libraries that they import.

python benchmarks/startup.py [--quick]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import _rounds


def main() -> None:
    given = _rounds.arguments(__doc__.splitlines()[0])
    python = sys.executable
    with tempfile.TemporaryDirectory() as folder:
        kernels = [
            python,
            "-m",
            "featviz",
            "kernels",
            "--overwrite",
            "--out",
            str(Path(folder) / "k"),
        ]
        commands = {
            "python": [python, "-c", ""],
            "import typer": [python, "-c", "import typer"],
            "featviz --help": [python, "-m", "featviz", "--help"],
            "import featviz": [python, "-c", "import featviz"],
            "import torch": [python, "-c", "import torch"],
            "featviz kernels": kernels,
        }
        works = {
            name: lambda command=command: subprocess.run(command, check=True, capture_output=True)
            for name, command in commands.items()
        }
        seconds = _rounds.measure(works, rounds=3 if given.quick else 7)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    _rounds.report(
        "startup",
        [_rounds.row(name, "s", values) for name, values in seconds.items()],
        {
            "featviz --help/import typer": median["featviz --help"] / median["import typer"],
            "featviz kernels/import torch": median["featviz kernels"] / median["import torch"],
        },
    )


if __name__ == "__main__":
    main()
