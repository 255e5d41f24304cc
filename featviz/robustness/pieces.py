"""Finished pieces of a long job, kept on disk so that a killed run goes on where it was.

A piece is a name with a few arrays. Each lies in a file of its own, written beside its place and
renamed, so a file that exists is whole whenever the run was killed. `job.json` says what the job
was; pieces of another job are thrown away. Without a folder pieces are made and not kept.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from featviz import results
from featviz.errors import UserError

Arrays = dict[str, NDArray[Any]]
SECONDS = "seconds"
"""an array that every piece brings: how long it took to make"""


class Shards:
    """The pieces of one job in one folder."""

    def __init__(self, folder: Path | None, job: Mapping[str, Any]):
        """Open the folder of an earlier run of the same job, or begin anew.

        job: everything that the pieces depend on, as it goes into JSON
        Raises UserError if the folder is not ours or cannot be written.
        """
        self.folder = folder
        self.found = 0
        """pieces that an earlier run had finished"""
        if folder is None:
            return
        wanted = json.loads(json.dumps(job, default=str))
        note = folder / "job.json"
        try:
            try:
                same = json.loads(note.read_text(encoding="utf-8")) == wanted
            except (FileNotFoundError, ValueError):
                same = False
            if folder.exists() and not same:
                if not note.is_file() and any(folder.iterdir()):
                    raise UserError(f"{folder} is in the way and not ours; move it or change --out")
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
            results.write_json(note, wanted)
        except OSError as error:
            raise results.cannot_write(folder, error) from None

    def get(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """The piece of that name: as an earlier run left it, or made now and kept."""
        kept = self._read(name)
        if kept is not None:
            self.found += 1
            return kept
        started = time.perf_counter()
        piece = make()
        piece[SECONDS] = np.array([time.perf_counter() - started])
        self._write(name, piece)
        return piece

    def _read(self, name: str) -> Arrays | None:
        if self.folder is None:
            return None
        try:
            with np.load(self.folder / f"{name}.npz", allow_pickle=False) as arrays:
                return {key: arrays[key] for key in arrays.files}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None  # not there, or not whole: made again

    def _write(self, name: str, piece: Arrays) -> None:
        if self.folder is None:
            return
        beside = self.folder / f".{name}.part"
        try:
            with beside.open("wb") as out:
                np.savez(out, **piece)  # type: ignore[arg-type]
                out.flush()
                os.fsync(out.fileno())
            beside.replace(self.folder / f"{name}.npz")
        except OSError as error:
            raise results.cannot_write(self.folder, error) from None

    def close(self) -> None:
        """Throw the pieces away; the result holds what they held."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
