"""A program that runs one command of featviz many times, each run killed somewhere.

    python killed_commands.py '{"words": [...], "root": FOLDER, "kills": 20, "seed": 0}'

`root` is where the command writes; a whole run writes `root`-whole, for comparison. Each run is a
fork, so that nothing is imported twice, and goes on from what the run before it left. A run is
killed at a file operation below `root` or at a moment, by SIGKILL, SIGTERM, SIGINT or SIGALRM,
which ends it as SIGKILL does. The last but one is killed when it begins to save; then every piece
that it kept is damaged ("damage": true), and the last run is left alone. Writes the runs to
standard output as JSON: kill, exit code, last words.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

EVENTS = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.chmod"})

See = Callable[[int, str], None]


def watch_operations(root: str, see: See) -> None:
    """Call `see` with the number and the path of each operation that changes files below `root`."""
    count = 0

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            path, flags = str(arguments[0]), arguments[2]
            changes = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
        else:
            path, changes = str(arguments[0]) if event in EVENTS else "", event in EVENTS
        # Within shutil.rmtree names are relative to an open folder.
        if changes and (path.startswith(root) or (event in EVENTS and not os.path.isabs(path))):
            count += 1
            see(count, path)

    sys.addaudithook(audit)


def forked(words: list[str], prepare: Callable[[], None]) -> tuple[int, str]:
    """Run the command in a fork behind `prepare`; its exit code or minus the signal, last words."""
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said.seek(0)
            return code, said.read()[-500:]
        code = 99
        try:
            from featviz.cli.main import main

            prepare()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
                main(words)
        except SystemExit as left:
            code = int(left.code or 0)
        except KeyboardInterrupt:  # a second signal, while the first was dealt with
            code = 130
        finally:
            said.flush()
            os._exit(code)


def kill_at(root: str, number: int, kind: int) -> None:
    """Have this process killed at an operation."""

    def see(count: int, _: str) -> None:
        if count == number:
            os.kill(os.getpid(), kind)

    watch_operations(root, see)


def kill_in(seconds: float) -> None:
    """Have this process killed at a moment."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def kill_when_saving(root: str) -> None:
    """Have this process killed when it begins to save its result."""

    def see(_: int, path: str) -> None:
        if path.endswith(".featviz/new"):
            os.kill(os.getpid(), signal.SIGKILL)

    watch_operations(root, see)


def damage(root: Path) -> int:
    """Overwrite, cut or empty every piece; how many there were."""
    pieces = sorted(root.rglob("*.npz"))
    for number, piece in enumerate(pieces):
        content = bytearray(piece.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 8] = bytes(byte ^ 1 for byte in content[middle : middle + 8])
        piece.write_bytes((content, content[:middle], b"")[number % 3])
    return len(pieces)


def main() -> None:
    """Run and kill."""
    asked = json.loads(sys.argv[1])
    words, root, draw = asked["words"], asked["root"], random.Random(asked["seed"])
    import torch

    import featviz.cli.main

    assert featviz.cli.main  # loaded once, before the forks
    torch.set_num_threads(1)
    counted = Path(tempfile.mkdtemp()) / "count"
    counted.touch()
    runs: list[tuple[str, int, str]] = []

    def whole_run() -> None:
        def see(count: int, _: str) -> None:
            handle = os.open(counted, os.O_WRONLY)
            os.write(handle, str(count).encode())
            os.close(handle)

        watch_operations(f"{root}-whole", see)

    def run(kill: str, prepare: Callable[[], None], given: list[str] = words) -> int:
        code, said = forked(given, prepare)
        runs.append((kill, code, said))
        return code

    def anew() -> None:
        shutil.rmtree(root)
        Path(root).mkdir()

    started = time.monotonic()
    run("whole", whole_run, [word.replace(root, f"{root}-whole") for word in words])
    seconds = time.monotonic() - started
    operations = int(counted.read_text() or 1)
    for number in range(asked["kills"]):
        kind = draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        at, moment = draw.randint(1, operations), draw.uniform(0.01, seconds)
        if number % 4 == 3:
            code = run(f"{moment:.2f} s", partial(kill_in, moment))
        else:
            code = run(f"{kind.name} at {at}", partial(kill_at, root, at, kind))
        if code in (0, 2):  # it was done, or had been saved: from the start
            anew()
    if run("saving", partial(kill_when_saving, root)) == 2:
        anew()
        run("saving", partial(kill_when_saving, root))
    pieces = damage(Path(root)) if asked["damage"] else 0
    run("", lambda: None)
    shutil.rmtree(counted.parent)
    json.dump({"operations": operations, "damaged": pieces, "runs": runs}, sys.stdout)


if __name__ == "__main__":
    main()
