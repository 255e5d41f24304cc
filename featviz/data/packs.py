"""Packs: data sets of decoded pictures that are mapped into memory; `featviz pack` makes them.

    pack.json          side, number of pictures, source, and each shard with its rows and its sha256
    names.npz          names, classes and original sizes of all pictures
    rows-00000000.npz  "pictures" (n, 3, side, side) uint8, one shard of many

Files end with a hash of their content (`arrays`), which pack.json has too. Names and sizes of
files are checked when a pack is opened, the content of a shard before its first picture is used.
"""

from __future__ import annotations

import bisect
import struct
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from featviz import schema
from featviz.arrays import Arrays, noted_digest, read_arrays
from featviz.errors import BadPicture, UserError
from featviz.pictures import decoding, images
from featviz.pictures.decoding import Prepared
from featviz.pictures.preprocessing import Preprocessing

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

SCHEMA = 1
MANIFEST, NAMES, FIRST = "pack.json", "names.npz", "rows-00000000.npz"
PICTURES = "pictures"
"""the array of a shard"""

_AGAIN = "pack again"
_SHAPE = {
    "schema": schema.Kind(str(SCHEMA), lambda v: v == SCHEMA),
    "side": schema.whole(1, 65535),
    "rows": schema.COUNT,
    "skipped": schema.COUNT,
    "source": {"name": str, "count": schema.COUNT, "sha256": str},
    "names": schema.HASH,
    "shards": [
        {"file": schema.FILE, "rows": schema.COUNT, "bytes": schema.COUNT, "sha256": schema.HASH}
    ],
}


class Shard(NamedTuple):
    """A file of pictures."""

    file: str
    rows: int
    bytes: int
    sha256: str
    """that it ends with"""


class Contents(NamedTuple):
    """What a pack holds, row by row."""

    side: int
    """of the squares, in pixels"""
    paths: tuple[str, ...]
    folders: tuple[str, ...]
    """the class of each picture"""
    sizes: NDArray[np.int32]
    """(N, 2): width and height of each picture before"""
    rows: dict[str, int]
    """the row of each path"""
    shards: tuple[Shard, ...]
    firsts: tuple[int, ...]
    """the first row of each shard"""


def is_pack(root: Path) -> bool:
    """Whether a folder is a pack, also one that has lost its manifest."""
    return (root / MANIFEST).is_file() or all((root / name).is_file() for name in (NAMES, FIRST))


def contents(root: Path) -> Contents:
    """What a pack holds. Raises UserError if it is incomplete or was changed."""
    try:
        return _contents(root, (root / MANIFEST).stat().st_mtime_ns)
    except FileNotFoundError:
        raise UserError(f"{root} is a pack without its {MANIFEST}; {_AGAIN}") from None
    except OSError as error:
        raise UserError(f"{root} cannot be read ({error.strerror}); {_AGAIN}") from None


@lru_cache(maxsize=8)
def _contents(root: Path, changed: int) -> Contents:
    path = root / MANIFEST
    found = schema.check_sealed(schema.read_json(path, _AGAIN), _SHAPE, path, _AGAIN)
    shards = tuple(Shard(**shard) for shard in found["shards"])
    for shard in shards:
        _check_size(root / shard.file, shard.bytes)
    names = _read(root, NAMES, found["names"])
    paths, folders = _split(names["paths"]), _split(names["folders"])
    firsts = np.cumsum([0, *(shard.rows for shard in shards)])
    counts = {len(paths), len(folders), len(names["sizes"]), found["rows"], int(firsts[-1])}
    if len(counts) > 1:
        raise UserError(f"{root}: files of different lengths; {_AGAIN}")
    rows = {path: row for row, path in enumerate(paths)}
    return Contents(
        found["side"], paths, folders, names["sizes"], rows, shards, tuple(firsts[:-1].tolist())
    )


def _check_size(path: Path, expected: int) -> None:
    try:
        size = path.stat().st_size
    except OSError:
        raise UserError(f"{path.parent}: {path.name} is missing; {_AGAIN}") from None
    if size != expected:
        raise UserError(f"{path} has {size:,} bytes in place of {expected:,}; {_AGAIN}")


def _read(root: Path, file: str, sha256: str) -> Arrays:
    """The arrays of a file whose content is as it was written."""
    path = root / file
    arrays = read_arrays(path, path.stem)
    if arrays is None or noted_digest(path) != sha256:
        raise UserError(f"{path} is damaged; {_AGAIN}")
    return arrays


def joined(texts: Sequence[str]) -> NDArray[np.uint8]:
    """Names as the bytes of one array, also those that are not UTF-8."""
    return np.frombuffer("\0".join(texts).encode(errors="surrogateescape"), np.uint8)


def _split(content: NDArray[Any]) -> tuple[str, ...]:
    return tuple(content.tobytes().decode(errors="surrogateescape").split("\0"))


def read(root: Path, path: str) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """A picture (3, side, side), mapped into memory, and its width and height before.

    Raises:
        BadPicture: There is none of that name.
        UserError: Its shard is damaged.
    """
    pack = contents(root)
    row = pack.rows.get(path)
    if row is None:
        raise BadPicture(f"{root}:{path}: no such picture in the pack")
    number = bisect.bisect_right(pack.firsts, row) - 1
    shard = pack.shards[number]
    width, height = pack.sizes[row].tolist()
    return _mapped(root, shard)[row - pack.firsts[number]], (width, height)


@lru_cache(maxsize=1 << 14)
def _mapped(root: Path, shard: Shard) -> NDArray[np.uint8]:
    """The pictures of a shard (n, 3, side, side), whose content has been checked."""
    path = root / shard.file
    _read(root, shard.file, shard.sha256)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(f"{PICTURES}.npy").header_offset
    with path.open("rb") as file:
        file.seek(start)
        named, extra = struct.unpack("<26xHH", file.read(30))
        file.seek(named + extra, 1)
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return np.memmap(path, dtype, "r", file.tell(), shape)


def opened(root: Path, path: str) -> Image.Image:
    """A picture as a pillow image. Raises as `read`."""
    from PIL import Image

    pixels, _ = read(root, path)
    return Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, 2)))


def prepared(root: Path, path: str, preprocessing: Preprocessing) -> Prepared:
    """A picture as a model takes it, and its size before. Raises as `read`."""
    pixels, size = read(root, path)
    side = pixels.shape[1]
    if preprocessing.channels == 3 and preprocessing.before_crop(side, side) == (side, side):
        height, width = preprocessing.size  # a crop, as `images.fit` cuts it
        top, left = round((side - height) / 2), round((side - width) / 2)
        cut = np.array(pixels[:, top : top + height, left : left + width])
        return Prepared(torch.from_numpy(cut), size)
    image = images.converted(opened(root, path), images.file_channels(preprocessing))
    return decoding.prepared(image, preprocessing)._replace(size=size)
