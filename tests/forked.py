"""Work in a copy of this process, which need not import anything again."""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import NoReturn

import torch

MEMORY = 12 << 30
"""bytes of addresses that a command may take; more is refused by the system"""

FORK = multiprocessing.get_context("fork")


def start(work: Callable[[], object]) -> ForkProcess:
    """A copy of this process, at work with one thread."""

    def alone() -> None:
        torch.set_num_threads(1)
        work()

    copy = FORK.Process(target=alone)
    copy.start()
    return copy


def run_forked(
    words: Sequence[str], folder: Path, *, seconds: float = 20.0
) -> tuple[int | None, str, str]:
    """(exit code, standard output, standard error) of `featviz WORDS` run in `folder`.

    The code is None if it computed for longer than `seconds`, or waited for six times as long, and
    was killed.
    """
    out, err = folder.with_suffix(".stdout"), folder.with_suffix(".stderr")
    child = os.fork()
    if child == 0:
        _run(words, folder, out, err, math.ceil(seconds))
    ends, code = time.monotonic() + 6 * seconds, None
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            code = None if code in {-signal.SIGXCPU, -signal.SIGKILL} else code
            break
        if time.monotonic() > ends:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.002)
    texts = [path.read_text("utf-8", "replace") for path in (out, err)]
    out.unlink()
    err.unlink()
    return code, texts[0], texts[1]


def _run(words: Sequence[str], folder: Path, out: Path, err: Path, seconds: int) -> NoReturn:
    code = 70
    try:
        for path, number in ((out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), number)
        # pytest replaces these by objects that do not write to the descriptors.
        sys.stdout = os.fdopen(1, "w")
        sys.stderr = os.fdopen(2, "w", errors="backslashreplace")
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        used = math.ceil(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, used + seconds))
        torch.set_num_threads(1)
        from featviz.cli.main import main

        try:
            main(words)
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 0
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:  # noqa: BLE001 - the parent has to see it
        os.write(2, f"Traceback: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)
