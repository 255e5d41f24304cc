"""Unfinished work on disk: finished pieces, whose job they are, and a lock.

A job is cut into pieces by its arguments, never by the clock, so that a run that was stopped and
started again makes the same pieces and ends with the same bytes. Each piece is a few arrays in one
file, `<name>.<first digits of its sha256>.npz`: written beside its place and renamed, and read only
if the digest still agrees; a damaged piece is made again. `job.json` holds everything that the
pieces depend on. The folder is `<out>.partial` beside the result that it becomes.

    with open_checkpoint(partial_folder(out), {"model": model.sha256, "seed": 0}) as kept:
        for rows in pieces:
            arrays = kept.piece(f"rows-{rows.start:06}", lambda: work(rows), size=len(rows))
    ...                                  # save the result
    remove_checkpoint(partial_folder(out))

One policy for every command: the pieces of another job are refused and never deleted, and of two
runs on one folder the second is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from featviz import results
from featviz.errors import UserError

try:
    import fcntl
except ImportError:  # no advisory locks on this system: two runs are not told apart
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from numpy.typing import NDArray

Arrays = dict[str, "NDArray[Any]"]
"""content of a piece"""

_JOB, _LOCK = "job.json", "lock"
_DIGITS = 16


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a job whose finished pieces are on disk; the text says what was kept."""


class Checkpoint:
    """The pieces of one job: in a folder, or in memory where there is none."""

    def __init__(self, folder: Path | None, *, total: int | None = None, unit: str = "pieces"):
        self.folder = folder
        self.total, self.unit = total, unit
        self.done = 0
        """sum of the sizes of the pieces that were read or written"""
        self.found = 0
        """how many pieces an earlier run had finished and this one has read"""
        self._memory: dict[str, Arrays] = {}
        self._parts: dict[str, Checkpoint] = {}

    def piece(self, name: str, make: Callable[[], Arrays], *, size: int = 1) -> Arrays:
        """The piece of that name: as an earlier run left it, or made now and kept."""
        arrays = self.read(name, size=size)
        if arrays is None:
            arrays = make()
            self.write(name, arrays, size=size)
        return arrays

    def read(self, name: str, *, size: int = 0) -> Arrays | None:
        """A finished piece, or None if it is absent or damaged. `size` counts it as done."""
        arrays = self._memory.get(name) if self.folder is None else self._from_file(name)
        if arrays is not None and size:
            self.done += size
            self.found += 1
        return arrays

    def write(self, name: str, arrays: Arrays, *, size: int = 1) -> None:
        """Keep a piece; one of the same name is replaced. Raises UserError if it cannot."""
        if self.folder is None:
            self._memory[name] = arrays
        else:
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)  # type: ignore[arg-type]
            try:
                self._to_file(name, buffer.getvalue())
            except OSError as error:
                raise results.cannot_write(self.folder, error) from None
        self.done += size

    def forget(self, name: str) -> None:
        """Drop a piece from memory; on disk pieces stay until the job is done."""
        self._memory.pop(name, None)

    def part(self, name: str, *, total: int | None = None) -> Checkpoint:
        """A checkpoint within this one, for a piece of work that has pieces of its own."""
        if name not in self._parts:
            folder = None if self.folder is None else self.folder / name
            self._parts[name] = Checkpoint(folder, total=total, unit=self.unit)
        return self._parts[name]

    @property
    def summary(self) -> str:
        """ "kept 2,304 of 5,000 rows" """
        whole = "" if self.total is None else f" of {self.total:,}"
        return f"kept {self.done:,}{whole} {self.unit}"

    def _files(self, name: str) -> list[Path]:
        assert self.folder is not None
        return sorted(self.folder.glob(f"{name}.{'[0-9a-f]' * _DIGITS}.npz"))

    def _from_file(self, name: str) -> Arrays | None:
        for path in self._files(name):
            try:
                content = path.read_bytes()
                if _digest(content) != path.name.split(".")[-2]:
                    continue
                with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                    return {key: arrays[key] for key in arrays.files}
            except (OSError, ValueError, KeyError, EOFError, BadZipFile):
                continue
        return None

    def _to_file(self, name: str, content: bytes) -> None:
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        earlier = self._files(name)
        target = self.folder / f"{name}.{_digest(content)}.npz"
        beside = self.folder / f".{name}.part"
        try:
            with beside.open("wb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
        for path in earlier:
            if path != target:
                path.unlink(missing_ok=True)


def partial_folder(out: str | Path) -> Path:
    """Where the unfinished work of a result folder is kept."""
    return Path(out).with_name(f"{Path(out).name}.partial")


@contextlib.contextmanager
def open_checkpoint(
    folder: str | Path | Checkpoint | None,
    job: Mapping[str, Any],
    *,
    total: int | None = None,
    unit: str = "pieces",
) -> Iterator[Checkpoint]:
    """The checkpoint of a job, locked for as long as the block lasts.

    Args:
        folder: where pieces are kept. None keeps them in memory. A `Checkpoint` is handed on as it
            is: the work is a part of a job that has been opened already.
        job: everything that the pieces depend on, as it goes into JSON. Versions of featviz and
            torch are added. The number of torch's threads is kept too, and a later run goes on
            with it, since kernels may round by the number of threads.
        total: what the sizes of all pieces add up to, for the message after Ctrl-C.
        unit: what the sizes count.

    Raises:
        UserError: the folder holds the pieces of another job, is used by another run at the moment,
            is not a checkpoint, or cannot be written.
        Interrupted: in place of KeyboardInterrupt, if the folder keeps finished pieces.
    """
    if isinstance(folder, Checkpoint):
        folder.total = total if folder.total is None else folder.total
        yield folder
        return
    if folder is None:
        yield Checkpoint(None, total=total, unit=unit)
        return
    import torch

    place = Path(folder)
    wanted = _plain(job)
    threads = torch.get_num_threads()
    lock = None
    try:
        try:
            lock = _lock(place)
            begun = _begin(place, wanted, threads)
        except OSError as error:
            raise results.cannot_write(place, error) from None
        torch.set_num_threads(begun)
        kept = Checkpoint(place, total=total, unit=unit)
        try:
            yield kept
        except KeyboardInterrupt as stop:
            if isinstance(stop, Interrupted) or not _has_pieces(place):
                raise
            raise Interrupted(f"{kept.summary}; give the same command again to go on") from None
    finally:
        torch.set_num_threads(threads)
        if lock is not None:
            if not _has_pieces(place) and _is_ours(place):
                _remove(place)
            os.close(lock)


def remove_checkpoint(folder: str | Path) -> None:
    """Remove a checkpoint whose result is saved; nothing that is not a checkpoint is touched."""
    if _is_ours(Path(folder)):
        _remove(Path(folder))


def job_record(**described: Any) -> dict[str, Any]:
    """What a job depends on, with the versions of featviz and torch."""
    versions = results.versions()
    return described | {name: versions[name] for name in ("featviz", "torch")}


def difference(found: Any, wanted: Any, name: str = "") -> str:
    """The first thing in which two jobs differ, in words: "steps 128, now 256"."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *found]:
            if found.get(key) != wanted.get(key):
                return difference(found.get(key), wanted.get(key), key)
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for one, other in zip(found, wanted, strict=True):
            if one != other:
                return difference(one, other, name)
    short = all(isinstance(v, str | int | float) and len(str(v)) < 40 for v in (found, wanted))
    return f"{name} {found}, now {wanted}" if short else f"other {name or 'arguments'}"


def _plain(job: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(job_record(**job), default=str))
    return plain


def _lock(place: Path) -> int | None:
    """An open, locked file in the folder; released by closing it or by the end of the process."""
    while True:
        if place.exists() and not place.is_dir():
            raise UserError(f"{place} is a file; move it or choose another --out")
        foreign = place.is_dir() and not _is_ours(place) and _content(place)
        if foreign and any(name != _LOCK for name in foreign):
            raise UserError(
                f"{place} is not empty and has no job.json, so nothing can be resumed from it; "
                "remove it or choose another --out"
            )
        place.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return None
        handle = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UserError(
                f"another run is writing {place}; wait for it to end or choose another --out"
            ) from None
        with contextlib.suppress(OSError):  # removed by the run that has just ended: once more
            if os.fstat(handle).st_ino == (place / _LOCK).stat().st_ino:
                return handle
        os.close(handle)


def _begin(place: Path, wanted: dict[str, Any], threads: int) -> int:
    """Check the job of a locked folder, or note a new one; how many threads it computes with."""
    note = place / _JOB
    for left in place.glob(".*"):  # what a killed run was writing
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    found = _read_job(note)
    if found is None:
        beside = place / ".job.part"
        results.write_json(beside, {"job": wanted, "threads": threads})
        beside.replace(note)
        return threads
    if found["job"] != wanted:
        raise UserError(
            f"{place} holds unfinished work of another command "
            f"({difference(found['job'], wanted)}); give that command again to finish it, remove "
            "the folder, or choose another --out"
        )
    return int(found["threads"])


def _read_job(note: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if (
        isinstance(found, dict)
        and isinstance(found.get("job"), dict)
        and isinstance(found.get("threads"), int)
        and found["threads"] > 0
    ):
        return found
    raise UserError(f"{note} is damaged; remove {note.parent} or choose another --out")


def _content(place: Path) -> list[str]:
    return [path.name for path in place.iterdir() if not path.name.startswith(".")]


def _is_ours(place: Path) -> bool:
    return (place / _JOB).is_file()


def _has_pieces(place: Path) -> bool:
    return any(place.rglob("*.npz"))


def _remove(place: Path) -> None:
    """Remove the folder, job.json last: whatever is left of it can be recognised."""
    for path in place.iterdir():
        if path.name in {_JOB, _LOCK}:
            continue
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    (place / _LOCK).unlink(missing_ok=True)
    (place / _JOB).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        place.rmdir()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]
