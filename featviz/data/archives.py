"""Tar and zip archives as folders of files that are read at random, by their offsets.

A tar may be a shard of a WebDataset: `0001.jpg` with `0001.cls` or `0001.json` beside it.
"""

from __future__ import annotations

import posixpath
import struct
import tarfile
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from featviz.errors import BadPicture, UserError

SUFFIXES = (".tar", ".zip")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
"""Tars that can be read from their beginning only."""

_LARGEST = 1 << 30  # bytes of one file
_DEFLATED = 8


class Member(NamedTuple):
    """Where a file of an archive lies."""

    start: int
    """offset of its bytes; in a zip of its header"""
    size: int
    """bytes in the archive"""
    method: int | None = None
    """of a zip's compression; None in a tar"""
    whole: int = 0
    """bytes after decompression"""


class Contents(NamedTuple):
    """The files of an archive by name, in its order, and what cannot be read in it."""

    files: dict[str, Member]
    folders: tuple[str, ...]
    """stated as such; they may be empty"""
    dangling: tuple[str, ...]
    """links to files that are not in the archive"""


def is_archive(path: Path) -> bool:
    """Whether a name is that of an archive which can be read at random."""
    return path.suffix.lower() in SUFFIXES


def contents(archive: Path) -> Contents:
    """What an archive holds. Raises UserError for one that cannot be read."""
    try:
        return _contents(archive, archive.stat().st_mtime_ns)
    except (OSError, ValueError, EOFError, struct.error, OverflowError, RuntimeError) as error:
        kind = archive.suffix[1:].lower()
        why = getattr(error, "strerror", None) or str(error) or "it is cut short"
        raise UserError(f"{archive} is not a {kind} that can be read ({why})") from None


@lru_cache(maxsize=64)
def _contents(archive: Path, changed: int) -> Contents:
    return _zip_contents(archive) if archive.suffix.lower() == ".zip" else _tar_contents(archive)


def _tar_contents(archive: Path) -> Contents:
    files: dict[str, Member] = {}
    folders, links = [], []
    try:
        with tarfile.open(archive, "r:", encoding="utf-8", errors="surrogateescape") as tar:
            for m in tar:
                name = _plain(m.name)
                if m.isdir():
                    folders.append(name)
                elif m.islnk() or m.issym():
                    beside = posixpath.dirname(name) if m.issym() else ""
                    links.append((name, _plain(posixpath.join(beside, m.linkname))))
                elif m.isfile() and not m.issparse():
                    files[name] = Member(m.offset_data, m.size)
    except tarfile.TarError as error:
        raise ValueError(str(error)) from None
    files |= {name: files[target] for name, target in links if target in files}
    dangling = tuple(name for name, target in links if target not in files)
    return Contents(files, tuple(folders), dangling)


def _zip_contents(archive: Path) -> Contents:
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(str(error)) from None
    files = {
        _plain(e.filename): Member(e.header_offset, e.compress_size, e.compress_type, e.file_size)
        for e in entries
        if not e.is_dir()
    }
    return Contents(files, tuple(_plain(e.filename) for e in entries if e.is_dir()), ())


def _plain(name: str) -> str:
    """A name without "./" before it and "/" behind it."""
    return posixpath.normpath(name).removeprefix("/")


def read(archive: Path, name: str) -> bytes:
    """The bytes of a file in an archive.

    Raises:
        KeyError: There is no such file in it.
        OSError: It cannot be read.
        UserError: It is no such archive any more.
        BadPicture: It is encrypted, damaged or compressed in an unknown way.
    """
    member = contents(archive).files[name]
    with archive.open("rb") as file:
        file.seek(member.start)
        if member.method is None:
            return file.read(member.size)
        header = file.read(30)  # its last two numbers are the lengths of name and extra field
        if len(header) < 30:
            raise BadPicture(f"{archive}:{name} is cut short")
        flags, named, extra = struct.unpack("<6xH18xHH", header)
        file.seek(named + extra, 1)
        content = file.read(member.size)
    if flags & 1 or member.method not in {0, _DEFLATED} or member.whole > _LARGEST:
        raise BadPicture(f"{archive}:{name} is encrypted, too large or compressed in a rare way")
    if member.method == 0:
        return content
    try:
        return zlib.decompressobj(-15).decompress(content, max(1, member.whole))
    except zlib.error as error:
        raise BadPicture(f"{archive}:{name} is damaged ({error})") from None
