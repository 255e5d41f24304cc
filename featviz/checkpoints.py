"""Unfinished work on disk: finished pieces, whose job they are, and a lock.

A job is cut into pieces by its arguments, never by the clock, so that a run that was stopped and
started again makes the same pieces and ends with the same bytes. Each piece is a few arrays in one
file, `<name>.npz`: written beside its place and renamed, with the sha256 of its content at its end,
so that a damaged piece is noticed and made again. `job.json` holds everything that the pieces
depend on. The folder is `<out>.partial` beside the result that it becomes.

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
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from featviz import folders, results, schema
from featviz.arrays import Arrays as Arrays  # noqa: PLC0414 - the content of a piece
from featviz.arrays import read_arrays, write_arrays
from featviz.errors import UserError

ENGINES = ("here", "ray")

_JOB, _SAVED = "job.json", "saved.json"
_JOB_SHAPE = {
    "job": dict,
    "threads": schema.whole(1, 4096),
}
_SAVED_SHAPE = {"result": str, "created": str, "seconds": float}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a job whose finished pieces are on disk; the text says what was kept."""


class Checkpoint:
    """The pieces of one job: in a folder, or in memory where there is none.

    Attributes:
        folder: Where the pieces are, or None.
        total: What the sizes of all pieces add up to, if it is known.
        unit: What the sizes count: "rows".
        sizes: Size of each piece that was read or written, by name.
        found: Sum of the sizes of the pieces that an earlier run had finished.
        engine: Where missing pieces are made (`engine.map_pieces`).
        held: What is held until the job ends.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        total: int | None = None,
        unit: str = "pieces",
        engine: str = "here",
        held: contextlib.ExitStack | None = None,
    ):
        self.folder = folder
        self.total, self.unit = total, unit
        self.engine = engine
        self.held = contextlib.ExitStack() if held is None else held
        self.sizes: dict[str, int] = {}
        self.found = 0
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
        arrays = self._memory.get(name) if self.folder is None else self._read_file(name)
        if arrays is not None and size and name not in self.sizes:
            self.sizes[name] = size
            self.found += size
        return arrays

    def is_damaged(self, name: str) -> bool:
        """Whether there is a file of that piece which cannot be read."""
        return self.folder is not None and self._file(name).exists() and self.read(name) is None

    def write(self, name: str, arrays: Arrays, *, size: int = 1) -> None:
        """Keep a piece; one of the same name is replaced. Raises UserError if it cannot."""
        if self.folder is None:
            self._memory[name] = arrays
        else:
            try:
                write_arrays(self._file(name), arrays)
            except OSError as error:
                raise folders.cannot_write(self.folder, error) from None
        self.sizes[name] = size

    def part(self, name: str, *, total: int | None = None) -> Checkpoint:
        """A checkpoint within this one, for a piece of work that has pieces of its own.

        The job of this checkpoint must hold what the part depends on, too.
        """
        if name not in self._parts:
            folder = None if self.folder is None else self.folder / results.file_stem(name)
            self._parts[name] = Checkpoint(
                folder, total=total, unit=self.unit, engine=self.engine, held=self.held
            )
        return self._parts[name]

    @property
    def done(self) -> int:
        """Sum of the sizes of the pieces that were read or written, here and in parts."""
        parts = (part.done for part in self._parts.values() if part.unit == self.unit)
        return sum(self.sizes.values()) + sum(parts)

    @property
    def summary(self) -> str:
        """ "kept 2,304 of 5,000 rows" """
        whole = "" if self.total is None else f" of {self.total:,}"
        return f"kept {self.done:,}{whole} {self.unit}"

    def _read_file(self, name: str) -> Arrays | None:
        return read_arrays(self._file(name), self._file(name).stem)

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{results.file_stem(name)}.npz"


def partial_folder(out: str | Path) -> Path:
    """Where the unfinished work of a result folder is kept: beside it, or beside what it links."""
    place = folders.real_path(out) if os.path.islink(out) else Path(out)
    return place.with_name(f"{place.name}{folders.PARTIAL}")


@contextlib.contextmanager
def open_checkpoint(
    folder: str | Path | Checkpoint | None,
    job: Mapping[str, Any],
    *,
    total: int | None = None,
    unit: str = "pieces",
    engine: str = "here",
) -> Iterator[Checkpoint]:
    """The checkpoint of a job, locked for as long as the block lasts.

    A folder in which no piece was finished is removed at the end of the block.

    Args:
        folder: Where pieces are kept. None keeps them in memory. A `Checkpoint` is handed on as it
            is: the work is a part of a job that has been opened already.
        job: Everything that the pieces depend on, as it goes into JSON. Versions of featviz and
            torch are added. The number of torch's threads is kept too, and a later run goes on
            with it, since kernels may round by the number of threads.
        total: What the sizes of all pieces add up to, for the message after Ctrl-C.
        unit: What the sizes count.
        engine: "here" or "ray"; a `Checkpoint` that is handed on keeps its own.

    Raises:
        UserError: The folder holds the pieces of another job, is used by another run at the moment,
            is not a checkpoint, or cannot be written; the engine is unknown or not installed.
        Interrupted: In place of KeyboardInterrupt, if the folder keeps finished pieces.
    """
    if isinstance(folder, Checkpoint):
        folder.total = total if folder.total is None else folder.total
        yield folder
        return
    check_engine(engine)
    with contextlib.ExitStack() as held:
        kept = Checkpoint(
            None if folder is None else Path(folder),
            total=total,
            unit=unit,
            engine=engine,
            held=held,
        )
        if kept.folder is not None:
            held.enter_context(_begun(kept, kept.folder, job))
        yield kept


@contextlib.contextmanager
def _begun(kept: Checkpoint, place: Path, job: Mapping[str, Any]) -> Iterator[None]:
    """The folder of a checkpoint, locked, and its job noted."""
    import torch

    threads = torch.get_num_threads()
    with _locked(place):
        try:
            used = {name: v for name, v in results.versions().items() if name != "python"}
            begun = _begin(place, results.plain({**job, **used}), threads)
        except OSError as error:
            raise folders.cannot_write(place, error) from None
        torch.set_num_threads(begun)
        try:
            yield
        except KeyboardInterrupt as stop:
            if isinstance(stop, Interrupted) or not _has_pieces(place):
                raise
            raise Interrupted(f"{kept.summary}; give the same command again to go on") from None
        finally:
            torch.set_num_threads(threads)
            if not _has_pieces(place):
                _remove(place)


def check_engine(engine: str) -> None:
    """Raise UserError for an unknown engine, or one that is not installed."""
    if engine not in ENGINES:
        raise UserError(f"unknown engine {engine!r}; take {' or '.join(ENGINES)}")
    if engine == "ray" and find_spec("ray") is None:
        raise UserError(
            "engine ray needs Ray, which is not installed: pip install 'featviz[ray]', "
            "or leave --engine out to work here"
        )


def remove_checkpoint(folder: str | Path) -> None:
    """Remove a checkpoint whose result is saved.

    Nothing is touched that is not a checkpoint, or that another run has begun to use.
    """
    place = Path(folder)
    if (place / _JOB).is_file():
        with contextlib.suppress(UserError), _locked(place):
            _remove(place)


def announce_result(folder: str | Path, made: results.Origin, *, inside: str = "") -> None:
    """Note in a checkpoint which result is about to be saved from it.

    If the run is killed between saving and `remove_checkpoint`, `remove_finished` knows it by this.

    Args:
        folder: The checkpoint.
        made: The origin of the result.
        inside: Where the result will be in the folder that is written.
    """
    place = Path(folder)
    if (place / _JOB).is_file():
        note = {"result": inside, "created": made.created, "seconds": made.seconds}
        try:
            results.write_json(place / _SAVED, note)
        except OSError as error:
            raise folders.cannot_write(place, error) from None


def remove_finished(out: str | Path, *, overwrite: bool = False) -> None:
    """Remove unfinished work of a result folder that nobody can go on with.

    That is a checkpoint without pieces, or whose result is in the folder (`announce_result`); and
    with `overwrite` one whose pieces belong to no job that can be read.
    """
    place = partial_folder(out)
    if not place.is_dir():
        return
    with contextlib.suppress(UserError), _locked(place, strange=overwrite):
        if not _has_pieces(place) or _is_saved(place, Path(out)):
            _remove(place)
        elif overwrite:
            try:
                _read_job(place)
            except UserError:
                _remove(place)


def _is_saved(place: Path, out: Path) -> bool:
    way_out = "begin anew"
    try:
        note = place / _SAVED
        said = schema.check(schema.read_json(note, way_out), _SAVED_SHAPE, note, way_out)
        document = results.read_result(out / said["result"])
    except UserError:
        return False
    return all(document.get(name) == said[name] for name in ("created", "seconds"))


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


@contextlib.contextmanager
def _locked(place: Path, *, strange: bool = False) -> Iterator[None]:
    """Hold the lock of a checkpoint; `strange`: also of pieces without a job."""
    with contextlib.ExitStack() as held:
        try:
            if place.exists() and not place.is_dir():
                raise UserError(f"{place} is a file; move it or choose another --out")
            if not _is_ours(place, strange):
                raise UserError(
                    f"{place} is not empty and has no job.json, so nothing can be resumed from it; "
                    "remove it (--overwrite does if it holds pieces only) or choose another --out"
                )
            held.enter_context(folders.locked(place, f"another run is writing {place}"))
        except OSError as error:
            raise folders.cannot_write(place, error) from None
        yield


def _is_ours(place: Path, strange: bool) -> bool:
    """Whether a folder is a checkpoint, or nothing is lost with it."""
    if not place.is_dir() or (place / _JOB).is_file():
        return True
    files = [p.name for p in place.rglob("*") if p.name[0] != "." and not p.is_dir()]
    return all(name == folders.LOCK or (strange and name.endswith(".npz")) for name in files)


def _begin(place: Path, wanted: dict[str, Any], threads: int) -> int:
    """Check the job of a locked folder, or note a new one; how many threads it computes with."""
    for left in [*place.rglob(".*.part")]:  # what a killed run was writing
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    if not _has_pieces(place):
        results.write_json(place / ".job.part", {"job": wanted, "threads": threads})
        (place / ".job.part").replace(place / _JOB)
        return threads
    job, begun = _read_job(place)
    if job != wanted:
        raise UserError(
            f"{place} holds unfinished work of another command ({difference(job, wanted)}); give "
            "that command again to finish it, remove the folder, or choose another --out"
        )
    return begun


def _read_job(place: Path) -> tuple[dict[str, Any], int]:
    """The job of the pieces in a folder, and its threads."""
    note, way_out = place / _JOB, f"remove {place} (--overwrite does) or choose another --out"
    found = schema.check(schema.read_json(note, way_out), _JOB_SHAPE, note, way_out)
    return found["job"], found["threads"]


def _has_pieces(place: Path) -> bool:
    return any(place.rglob("*.npz"))


def _remove(place: Path) -> None:
    """Remove a locked folder; job.json goes last, so that what a kill leaves is recognized."""
    folders.remove_locked(place, last=(_SAVED, _JOB))
