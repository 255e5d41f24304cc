"""The files of a store: shards of rows, the table of ids, the manifest.

    manifest.json    schema, model and its sha256, layer, dim, dtype, rows, shards with sha256
    shard-00000.npy  float16, rows x dim, at most 64 MB each
    ids.csv          row, path, class, width, height; y, x where one position was read
    skipped.csv      path, reason

The manifest decides what belongs to a store.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from featviz.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA = 1
SHARD_BYTES = 64 * 10**6
"""the largest shard"""

_ID_COLUMNS = ("row", "path", "class", "width", "height")
_POSITION_COLUMNS = ("y", "x")


class Shard(NamedTuple):
    """One file of a store."""

    file: str
    rows: int
    sha256: str


class ShardWriter:
    """Writes rows, which come a few at a time, as shards; no more than those few are held."""

    def __init__(self, folder: Path, rows: int, dim: int, *, limit: int = SHARD_BYTES):
        self.folder, self.left, self.dim = folder, rows, dim
        self.largest = max(1, limit // (2 * dim))
        self.shards: list[Shard] = []
        self._out: IO[bytes] | None = None
        self._missing = 0
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, rows: NDArray[np.float16]) -> None:
        """Append rows (n, dim)."""
        while len(rows):
            if self._out is None:
                self._begin()
            assert self._out is not None
            some, rows = rows[: self._missing], rows[self._missing :]
            self._out.write(np.ascontiguousarray(some).tobytes())
            self._missing -= len(some)
            if not self._missing:
                self._end()

    def _begin(self) -> None:
        self._missing = min(self.largest, self.left)
        self._out = (self.folder / f"shard-{len(self.shards):05}.npy").open("wb")
        header = {
            "descr": np.dtype(np.float16).str,
            "fortran_order": False,
            "shape": (self._missing, self.dim),
        }
        np.lib.format.write_array_header_1_0(self._out, header)

    def _end(self) -> None:
        assert self._out is not None
        self._out.close()
        path, self._out = Path(self._out.name), None
        rows = min(self.largest, self.left)
        self.left -= rows
        self.shards.append(Shard(path.name, rows, hash_file(path)))


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def map_shard(path: Path) -> NDArray[np.float16]:
    """The rows of a shard, mapped into memory. Raises UserError if it cannot be read."""
    try:
        mapped: NDArray[np.float16] = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); embed again") from None
    return mapped


def check_shards(place: Path, shards: Sequence[Shard], dim: int, *, verify: bool) -> None:
    """Raise UserError that names every shard that is missing or damaged."""
    bad = []
    for shard in shards:
        path = place / shard.file
        if not path.is_file():
            bad.append(f"{shard.file} is missing")
            continue
        try:
            shape = np.load(path, mmap_mode="r").shape
        except (OSError, ValueError, EOFError):
            shape = None
        if shape != (shard.rows, dim) or (verify and hash_file(path) != shard.sha256):
            bad.append(f"{shard.file} is damaged")
    if bad:
        raise UserError(f"{place}: {', '.join(bad)}; embed again")


def id_columns(positions: bool) -> tuple[str, ...]:
    """The columns of ids.csv, with or without positions."""
    return _ID_COLUMNS + _POSITION_COLUMNS * positions


def read_ids(
    path: Path, positions: bool
) -> tuple[tuple[str, ...], tuple[str, ...], NDArray[np.int32]]:
    """Paths, classes and the numbers behind them, (N, 2 or 4), line by line."""
    columns = id_columns(positions)
    names: list[str] = []
    labels: list[str] = []
    numbers = array("i")
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        found = next(lines, [])
        if tuple(found) != columns:
            raise ValueError(f"{path.name} has columns {','.join(found)}")
        for _, name, label, *rest in lines:
            names.append(name)
            labels.append(sys.intern(label))
            numbers.extend(map(int, rest))
    table = np.array(numbers, dtype=np.int32).reshape(len(names), len(columns) - 3)
    return tuple(names), tuple(labels), table


def read_manifest(place: Path) -> dict[str, Any]:
    """The manifest of a store. Raises UserError for a folder that is none."""
    path = place / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{place} is no store: no manifest.json (featviz embed makes one)"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); embed again") from None
    found = manifest.get("schema") if isinstance(manifest, dict) else None
    if found != SCHEMA:
        raise UserError(f"{path} has schema {found}, this featviz reads {SCHEMA}; embed again")
    assert isinstance(manifest, dict)
    return manifest
