"""The files of a store: shards of rows, the table of ids, the manifest.

    manifest.json    schema, model and its sha256, layer, dim, dtype, rows, shards with sha256
    shard-00000.npy  float16, rows x dim, at most 64 MB each
    exponents.npy    int16, rows: where some are not 0, the values of a row are its numbers * 2^e
    ids.csv          row, path, class, width, height; y, x where a row is one position;
                     picture where a picture has several rows
    skipped.csv      path, reason
    location.txt     where the pictures are, if they share no folder with the store

The manifest decides what belongs to a store.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import sys
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np

from featviz import schema
from featviz.embedding.reduction import How
from featviz.errors import UserError
from featviz.pictures.preprocessing import from_reading
from featviz.types import Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA = 2
SHARD_BYTES = 64 * 10**6
"""the largest shard"""

IDS, SKIPPED, LOCATION = "ids.csv", "skipped.csv", "location.txt"
EXPONENTS = "exponents.npy"

_ID_COLUMNS = ("row", "path", "class", "width", "height")
_POSITION_COLUMNS = ("y", "x")
_ESCAPED = re.compile(r"\\u(dc[89a-f][0-9a-f])")


def _is_reading(value: object) -> bool:
    """Whether a JSON value is a `Preprocessing.reading`."""
    if not isinstance(value, dict) or not {"resize", "crop"} <= value.keys():
        return False
    try:
        from_reading(value)
    except (UserError, TypeError, ValueError, LookupError):
        return False
    return True


_EMBED_AGAIN = "embed again"
_PAIR = (int, int)
_MANIFEST = {
    "schema": schema.COUNT,
    "model": dict,
    "layer": str,
    "dim": schema.whole(1, 2**31 - 1),
    "precision": schema.one_of(*get_args(Precision)),
    "decoder": str,
    "preparation": schema.Kind("the reading of pictures", _is_reading),
    "class_names": {str: str},
    "shape": [schema.COUNT],
    "position": schema.Maybe(schema.one_of(*get_args(How))),
    "several": bool,
    "seed": schema.Maybe(int),
    "receptive_field": schema.Maybe({"size": _PAIR, "stride": _PAIR, "offset": _PAIR}),
    "drift": schema.Maybe({"pictures": schema.COUNT, "mean": float, "largest": float}),
    "dtype": schema.one_of("float16"),
    "rows": schema.COUNT,
    "skipped": schema.COUNT,
    "data": {
        "name": str,
        "root": schema.Maybe(schema.RELATIVE),
        "count": schema.COUNT,
        "sha256": str,
    },
    "exponents": schema.Maybe(schema.HASH),
    "shards": [{"file": schema.FILE, "rows": schema.COUNT, "sha256": schema.HASH}],
    "tables": {IDS: schema.HASH, SKIPPED: schema.HASH},
}


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
    except _UNREADABLE as error:
        raise UserError(f"{path} cannot be read ({error}); {_EMBED_AGAIN}") from None
    return mapped


_UNREADABLE = (OSError, ValueError, EOFError, OverflowError, SyntaxError, TypeError, KeyError)
"""what numpy raises of a file that is no array"""


def check_shards(place: Path, shards: Sequence[Shard], dim: int, *, verify: bool) -> None:
    """Raise UserError that names every shard that is missing or damaged."""
    bad = []
    for shard in shards:
        path = place / shard.file
        if not path.is_file():
            bad.append(f"{shard.file} is missing")
        elif (verify and hash_file(path) != shard.sha256) or not _holds_rows(path, shard.rows, dim):
            bad.append(f"{shard.file} is damaged")
    if bad:
        raise UserError(f"{place}: {', '.join(bad)}; {_EMBED_AGAIN}")


def _holds_rows(path: Path, rows: int, dim: int) -> bool:
    try:
        mapped = np.load(path, mmap_mode="r")
    except _UNREADABLE:
        return False
    return bool(
        isinstance(mapped, np.ndarray) and mapped.shape == (rows, dim) and mapped.dtype == "<f2"
    )


def read_exponents(place: Path, digest: str | None, rows: int) -> NDArray[np.int16] | None:
    """The exponents of a store's rows, where it has some. Raises UserError if they are damaged."""
    if digest is None:
        return None
    check_tables(place, {EXPONENTS: digest})
    try:
        found: NDArray[np.int16] = np.load(place / EXPONENTS)
    except _UNREADABLE as error:
        raise UserError(f"{place / EXPONENTS} cannot be read ({error}); {_EMBED_AGAIN}") from None
    if found.shape != (rows,) or found.dtype != "<i2":
        raise UserError(f"{place / EXPONENTS} is not of {rows} rows; {_EMBED_AGAIN}")
    return found


def check_tables(place: Path, tables: Mapping[str, str]) -> None:
    """Raise UserError for a table that is missing or was changed."""
    for name, expected in tables.items():
        if not (place / name).is_file():
            raise UserError(f"{place} is incomplete: {name} is missing; {_EMBED_AGAIN}")
        if hash_file(place / name) != expected:
            raise UserError(f"{place / name} was changed since it was written; {_EMBED_AGAIN}")


def id_columns(positions: bool, several: bool) -> tuple[str, ...]:
    """The columns of ids.csv: with positions, with several rows a picture."""
    return _ID_COLUMNS + _POSITION_COLUMNS * positions + ("picture",) * several


def read_ids(
    path: Path, positions: bool, several: bool
) -> tuple[tuple[str, ...], tuple[str, ...], NDArray[np.int32]]:
    """Paths, classes and the numbers behind them, (N, 2 to 5), line by line."""
    columns = id_columns(positions, several)
    names: list[str] = []
    labels: list[str] = []
    numbers = array("i")
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        found = next(lines, [])
        if tuple(found) != columns:
            raise ValueError(f"{path.name} has columns {','.join(found)}")
        for _, name, label, *rest in lines:
            names.append(_raw(name))
            labels.append(sys.intern(_raw(label)))
            numbers.extend(map(int, rest))
    table = np.array(numbers, dtype=np.int32).reshape(len(names), len(columns) - 3)
    return tuple(names), tuple(labels), table


def _raw(name: str) -> str:
    """A name with the bytes that are not UTF-8, which a table holds as "\\udce9"."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), name) if "\\" in name else name


def read_manifest(place: Path) -> dict[str, Any]:
    """The manifest of a store, checked. Raises UserError for a folder that is none."""
    path = place / "manifest.json"
    if not os.path.exists(path):  # false for a name too long, too
        raise UserError(f"{place} is no store: no manifest.json (featviz embed makes one)")
    document = schema.read_json(path, _EMBED_AGAIN)
    found = document.get("schema") if isinstance(document, dict) else None
    if isinstance(found, int | None) and found != SCHEMA:
        raise UserError(f"{path} has schema {found}, this featviz reads {SCHEMA}; {_EMBED_AGAIN}")
    manifest: dict[str, Any] = schema.check_sealed(document, _MANIFEST, path, _EMBED_AGAIN)
    return manifest


def relative_root(root: Path, store: Path) -> str | None:
    """The way from a store to its pictures; None if they share no folder but the whole disk."""
    there, here = os.path.abspath(root), os.path.abspath(store)
    try:
        common = os.path.commonpath([there, here])
    except ValueError:  # two drives
        return None
    return (
        None if common == os.path.dirname(common) else Path(os.path.relpath(there, here)).as_posix()
    )


def find_root(place: Path, root: str | None, name: str) -> Path:
    """Where the pictures of a store are, or its name for them where that is not known."""
    if root is not None:
        beside = Path(os.path.normpath(place / root))
        return beside if beside.exists() else Path(root)
    try:
        location = (place / LOCATION).read_text(encoding="utf-8", errors="surrogateescape")
        return Path(location.removesuffix("\n") or name)
    except (OSError, ValueError):
        return Path(name)
