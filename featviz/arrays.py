"""Files of named arrays that end with a hash of their content, so that damage is noticed."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Arrays = dict[str, "NDArray[Any]"]

_DIGEST = hashlib.sha256().digest_size


def write_arrays(target: Path, arrays: Arrays) -> None:
    """Write arrays to a file, beside its place and renamed. Raises OSError."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    content = buffer.getbuffer()
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.stem}.part")
    try:
        with beside.open("wb") as out:
            out.write(content)
            out.write(_digest(content, target.stem))
            out.flush()
            os.fsync(out.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def read_arrays(path: Path, name: str) -> Arrays | None:
    """The arrays of a file; None if it is absent, damaged, or has another name."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if _digest(memoryview(content)[:-_DIGEST], name) != content[-_DIGEST:]:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def noted_digest(path: Path) -> str:
    """The hash at the end of a file, in hexadecimal; `read_arrays` checks it."""
    with path.open("rb") as file:
        file.seek(-_DIGEST, os.SEEK_END)
        return file.read().hex()


def _digest(content: memoryview, name: str) -> bytes:
    """The last bytes of a file: a hash of all before them, and of its name."""
    digest = hashlib.sha256(content)
    digest.update(name.encode())
    return digest.digest()
