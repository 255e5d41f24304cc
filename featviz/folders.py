"""Result folders on the disk: written whole or not at all, by one run at a time.

The folder X is made in `.X.featviz`, beside it, and takes its place in one step. Whoever writes X
holds the lock in `.X.featviz` and removes that folder at the end; what a killed run leaves there is
put right by the next one. A symbolic link is followed: what it names is written.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from featviz.errors import UserError

try:
    import fcntl
except ImportError:  # no advisory locks on this system: a second run is not noticed
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"
"""ending of the folders that hold unfinished work"""
LOCK = "lock"
"""the locked file of a folder"""
_NEW, _OLD = "new", "old"
_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of renameat2(2)"""

_CLAIMED: ContextVar[frozenset[Path]] = ContextVar("claimed", default=frozenset())


def real_path(folder: str | Path) -> Path:
    """The absolute path of a folder, with symbolic links followed, also where nothing is there.

    Raises:
        UserError: It is no path.
    """
    try:
        return Path(os.path.realpath(folder))
    except (OSError, ValueError) as error:  # no current folder; a NUL
        raise UserError(f"{str(folder)!r} is no path ({error}); choose another --out") from None


def check_target(folder: str | Path, *, overwrite: bool, mark: str = "result.json") -> None:
    """Raise the UserError that `whole` would raise, before any long work is done.

    Args:
        folder: Where a folder is to be written.
        overwrite: Whether one that is there may be replaced.
        mark: The file by which a folder is known that may be replaced.
    """
    target = _checked(folder)
    kind = "result folder" if mark == "result.json" else Path(mark).stem
    try:
        if target.exists() and not target.is_dir():
            raise UserError(f"{folder} is a file; --out takes a folder")
        if not target.exists() or not any(target.iterdir()):
            return
        if not (target / mark).is_file():
            raise UserError(f"{folder} is not empty and not a {kind}; choose another --out")
    except OSError as error:
        raise cannot_write(folder, error) from None
    if not overwrite:
        raise UserError(f"{folder} exists; add --overwrite or choose another --out")


def _checked(folder: str | Path) -> Path:
    """The real path of a folder that may be written, by its name."""
    target = real_path(folder)
    if target.name.endswith(PARTIAL):
        raise UserError(f"{folder}: names with {PARTIAL} are of unfinished work; choose another")
    if os.path.islink(target):
        raise UserError(f"{folder} is a symbolic link that leads to itself; choose another --out")
    if real_path(".").is_relative_to(target):
        raise UserError(
            f"{folder} is the current folder or lies above it, and a result replaces its whole "
            "folder; give --out a name of its own"
        )
    return target


@contextlib.contextmanager
def whole(folder: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A new folder, which takes the target's place at the end; on an error nothing is left.

    What is in the target is not looked at (`check_target`).

    Args:
        folder: The target.
        overwrite: Replace what is there; otherwise only an empty folder.

    Raises:
        UserError: It cannot be written, exists, or another run is writing it.
    """
    with claimed(folder) as work:
        new = work / _NEW
        try:
            new.mkdir()
            yield new
            target = real_path(folder)
            if not overwrite and target.is_dir() and any(target.iterdir()):
                raise UserError(
                    f"{folder} exists, another run has written it meanwhile; add --overwrite or "
                    "choose another --out"
                )
            _put(new, target)
        except OSError as error:
            raise cannot_write(folder, error) from None
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _put(new: Path, target: Path) -> None:
    if not target.exists():
        new.rename(target)
    elif not _exchange(new, target):
        old = new.with_name(_OLD)
        target.rename(old)
        try:
            new.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system cannot."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    paths = os.fsencode(one), os.fsencode(other)
    return rename is not None and not rename(_HERE, paths[0], _HERE, paths[1], _EXCHANGE)


@contextlib.contextmanager
def claimed(folder: str | Path) -> Iterator[Path]:
    """Keep other runs from writing a folder; the folder beside it in which it may be made.

    Within the block the same thread may claim it again. What a killed run has left is removed, and
    an old result that it had put aside is put back.

    Raises:
        UserError: Another run is writing it, or nothing can be written there.
    """
    target = _checked(folder)
    work = target.with_name(f".{target.name}.featviz")
    if target in _CLAIMED.get():
        yield work
        return
    above = [place for place in work.parents if not os.path.lexists(place)]
    try:
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(work, f"another run is writing {folder}"))
                _recover(work, target)
            except OSError as error:
                raise cannot_write(folder, error) from None
            held.callback(remove_locked, work)
            before = _CLAIMED.get()
            _CLAIMED.set(before | {target})
            held.callback(_CLAIMED.set, before)
            yield work
    finally:
        for place in above:  # made for the lock, and empty where nothing was written
            with contextlib.suppress(OSError):
                place.rmdir()


def _recover(work: Path, target: Path) -> None:
    """Put right what a run has left that was killed while it wrote the target."""
    old = work / _OLD
    if old.exists() and not target.exists():
        old.rename(target)
    for left in (work / _NEW, old):
        shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def locked(place: Path, busy: str) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it is absent; a kill frees it.

    Args:
        place: The folder.
        busy: What to say if another run holds it.

    Raises:
        UserError: Another run holds it.
    """
    handle = _lock(place, busy)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _lock(place: Path, busy: str) -> int | None:
    while True:
        place.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return None
        try:
            handle = os.open(place / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # the run that has just ended removed the folder: once more
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UserError(f"{busy}; wait for it to end or choose another --out") from None
        except OSError:
            os.close(handle)
            raise
        with contextlib.suppress(OSError):  # removed by the run that has just ended: once more
            if os.fstat(handle).st_ino == (place / LOCK).stat().st_ino:
                return handle
        os.close(handle)


def remove_locked(place: Path, last: tuple[str, ...] = ()) -> None:
    """Remove a folder whose lock is held.

    Args:
        place: The folder.
        last: Files to remove after all others, in this order; the lock goes after them.
    """
    for path in place.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in (*last, LOCK):
            path.unlink(missing_ok=True)
    for name in (*last, LOCK):
        (place / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        place.rmdir()


def cannot_write(target: str | Path, error: OSError) -> UserError:
    """The one line for a place that cannot be written."""
    # numpy reports a short write without an error number.
    if error.errno == errno.ENOSPC or "requested and" in str(error):
        why, way_out = "no space left on the disk", "free some or choose another --out"
    elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        why, way_out = "not allowed to write there", "choose another --out"
    else:
        why, way_out = error.strerror or str(error), "choose another --out"
    return UserError(f"cannot write {target}: {why}; {way_out}")
