"""Data sets of pictures on disk: class folders, a flat folder, a tar, or a list; streamed in order.

Comes in: a path. Goes out: `Pictures`, the ordered list of what is there, and from it batches of
(N, C, H, W) tensors. A picture that cannot be read is skipped and listed, never silently replaced.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from featviz.data import archives, packs
from featviz.data.labels import LabelReport, report_labels
from featviz.data.listing import (
    NOTHING,
    STANDARD_INPUT,
    LeftOut,
    list_pictures,
    list_several,
)
from featviz.errors import BadPicture, UserError, public, visible
from featviz.pictures import decoding, images
from featviz.pictures.decoding import Prepared
from featviz.pictures.preprocessing import Preprocessing
from featviz.wording import counted

if TYPE_CHECKING:
    from PIL import Image

    from featviz.models.model import Model


T = TypeVar("T")

_SHOWN, _SHOWN_SIDE = 24, 72
"""pictures in a notebook, and pixels of their side"""
_CHUNK = 8
"""pictures that a thread reads before it hands them over"""


@dataclass(frozen=True, repr=False)
class Pictures:
    """Which pictures, in which order.

    root: the folder, tar file or list that was opened
    paths: one name a picture, relative to the root ("n02099601/dog.jpg")
    folders: the class folder of each picture (or its label in a list), "" where there is none
    left_out: what else was there when they were listed

    Pictures that are no files (drawn, in memory) are subclasses that override `open`, or `prepare`
    where their values are not 8 bits.
    """

    root: Path
    paths: tuple[str, ...]
    folders: tuple[str, ...]
    left_out: LeftOut = field(default=NOTHING, kw_only=True, compare=False)

    def __len__(self) -> int:
        return len(self.paths)

    def __getstate__(self) -> dict[str, Any]:
        """What is sent to another process, which may run in another folder."""
        return vars(self) | {"root": self.root.absolute()}

    def __repr__(self) -> str:
        classes = f" of {counted(len(self.classes), 'class')}" if self.classes else ""
        return f"<Pictures: {len(self):,} in {self.name}{classes}>"

    def _repr_html_(self) -> str:
        """A contact sheet of up to 24 of the pictures."""
        some = []
        for row in evenly(len(self), _SHOWN):
            with suppress(BadPicture):
                some.append(self.shown(row, _SHOWN_SIDE))
        text = html.escape(repr(self))
        if not some:
            return text
        buffer = io.BytesIO()
        sheet = images.contact_sheet(torch.stack(some), columns=min(len(some), 12))
        images.to_pillow(sheet).save(buffer, format="PNG")
        content = base64.b64encode(buffer.getvalue()).decode()
        return f'{text}<br><img alt="{text}" src="data:image/png;base64,{content}">'

    @property
    def name(self) -> str:
        """Of the folder, archive or list, for titles."""
        return visible(self.root.name)

    @cached_property
    def sha256(self) -> str:
        """Hash of the list (paths and classes, in order), not of the pixels."""
        lines = (f"{p}\t{c}\n" for p, c in zip(self.paths, self.folders, strict=True))
        return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The class folders that occur, sorted; empty for data without classes."""
        return tuple(sorted({c for c in self.folders if c}))

    @cached_property
    def state(self) -> str:
        """Hash of the files' sizes and times of change: other pictures under the same names."""
        digest = hashlib.sha256()
        for place in dict.fromkeys(self._place(row)[0] for row in range(len(self))):
            try:
                found = os.stat(place)
            except (OSError, ValueError):  # a name with NUL
                digest.update(b"-")
            else:
                digest.update(b"%d %d;" % (found.st_size, found.st_mtime_ns))
        return digest.hexdigest()

    @property
    def _base(self) -> Path:
        return self.root if self.root.is_dir() else self.root.parent

    def content(self, row: int) -> bytes:
        """The bytes of picture `row`'s file. Raises BadPicture; UserError where all are gone."""
        file, member = self._place(row)
        try:
            return archives.read(file, member) if member else file.read_bytes()
        except KeyError:
            raise BadPicture(f"{self.where(row)}: no such file in the archive") from None
        except FileNotFoundError:
            if not self.root.exists() and self.root.name != STANDARD_INPUT:
                raise UserError(  # every picture would be skipped
                    f"{self.root} is not on this machine; put the pictures there (on every machine "
                    "of a cluster), or give --data"
                ) from None
            raise BadPicture(f"{self.where(row)}: no such file; check the path") from None
        except PermissionError:
            raise BadPicture(f"{self.where(row)}: not allowed to read this file") from None
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise BadPicture(f"{self.where(row)} cannot be read ({why})") from None

    def _place(self, row: int) -> tuple[Path, str]:
        """The file that holds picture `row`; its name in there if that is an archive, else ""."""
        path = self.paths[row]
        if self._packed:
            return self.root / packs.MANIFEST, path
        if archives.is_archive(self.root) and not self.root.is_dir():
            return self.root, path
        *folders, _ = parts = path.split("/")
        for depth, name in enumerate(folders, 1):
            archive = self._base.joinpath(*parts[:depth])
            if archives.is_archive(Path(name)) and archive.is_file():
                return archive, "/".join(parts[depth:])
        return self._base / path, ""

    @cached_property
    def _packed(self) -> bool:
        return packs.is_pack(self.root)

    @property
    def files(self) -> bool:
        """Whether the pictures are files, and not drawn or in memory."""
        kind = type(self)
        return kind.open is Pictures.open and kind.prepare is Pictures.prepare

    def where(self, row: int) -> str:
        """A picture's file, as messages name it."""
        file, member = self._place(row)
        return f"{file}:{member}" if member else str(file)

    def open(self, row: int) -> Image.Image:
        """Picture `row` as an upright 8-bit RGB pillow image. Raises BadPicture."""
        if self._packed:
            return packs.opened(self.root, self.paths[row])
        return images.open_image(io.BytesIO(self.content(row)), name=self.where(row))

    def prepare(
        self, row: int, preprocessing: Preprocessing, *, decoder: str = "exact"
    ) -> Prepared:
        """Picture `row` as a model takes it, and how large it was. Raises BadPicture.

        decoder: as `decoding.resolve` names it; what is no file is not decoded
        """
        if not self.files:
            image = images.converted(self.open(row), images.file_channels(preprocessing))
            return decoding.prepared(image, preprocessing)
        if self._packed:
            return packs.prepared(self.root, self.paths[row], preprocessing)
        content = self.content(row)
        return decoding.decode(content, preprocessing, decoder=decoder, name=self.where(row))

    def read(self, row: int, preprocessing: Preprocessing) -> Tensor:
        """Picture `row` as a model takes it: (C, height, width) in [0, 1]. Raises BadPicture."""
        return decoding.as_batch([self.prepare(row, preprocessing).pixels])[0]

    def shown(self, row: int, side: int) -> Tensor:
        """Picture `row` for figures: RGB (3, side, side) in [0, 1]. Raises BadPicture."""
        return self.read(row, Preprocessing.of(side))

    def select(self, rows: Sequence[int]) -> Pictures:
        """The same data set with these rows only, in this order."""
        return replace(
            self,
            paths=tuple(self.paths[i] for i in rows),
            folders=tuple(self.folders[i] for i in rows),
        )

    def spread(self, count: int) -> Pictures:
        """At most `count` pictures, evenly spread over the list (so over the classes)."""
        return self if count >= len(self) else self.select(evenly(len(self), count))

    def labels(self, model: Model) -> tuple[int | None, ...]:
        """The model's class for each picture, by its folder or label: synset, name or index."""
        return self.label_report(model).labels

    def label_report(self, model: Model, skipped: Sequence[Skipped] = ()) -> LabelReport:
        """How the class folders (or labels of a list) fit the classes of a model.

        skipped: pictures that could not be read, for the report's `unreadable`
        """
        report = report_labels(
            self.folders,
            self._inner_folders,
            self.left_out,
            model=model.name,
            synsets=model.synsets,
            classes=model.classes,
        )
        if not skipped:
            return report
        return report.with_unreadable([s.path for s in skipped], skipped[0].reason)

    @property
    def _inner_folders(self) -> dict[str, str]:
        """Folders of the second level, each with the path of the folder around it."""
        if not self.root.is_dir():
            return {}
        split = (path.split("/", 2) for path in self.paths)
        return {parts[1]: str(self.root / parts[0]) for parts in split if len(parts) > 2}


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of `count` rows, evenly spaced."""
    some = min(count, most)
    return [i * count // some for i in range(some)]


@public
def open_pictures(path: str | Path | Sequence[str | Path]) -> Pictures:
    """List the pictures of a folder, an archive, a list, one file, or of several of these.

    Args:
        path: A folder, whose folders of the first level are the classes, or a flat one, or one that
            `pack` has made. A .tar or
            .zip, or several: a folder of them, or "part-{000..003}.tar"; classes are folders, or
            stand in .cls and .json files beside the pictures (WebDataset). A list (.txt, .csv,
            .tsv, .jsonl, .parquet) of paths and labels, relative to its own folder or, where
            nothing is found there, to the working directory. "-": a list from standard input. A
            sequence: the pictures of all, each once.

    Returns:
        The data set; sorted by path for folders, in the stored order for archives and lists.

    Raises:
        UserError: There is nothing that can be read.
    """
    listed = list_pictures(path) if isinstance(path, str | Path) else list_several(path)
    return Pictures(listed.root, listed.paths, listed.folders, left_out=listed.left_out)


class Batch(NamedTuple):
    """Some pictures of a data set, in its order."""

    rows: tuple[int, ...]
    """which rows of the data set these are, (N,)"""
    images: Tensor
    """(N, C, H, W) float32 in [0, 1]"""


class Skipped(NamedTuple):
    """A picture that could not be read."""

    row: int
    path: str
    reason: str


def batches(
    pictures: Pictures,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 64,
    workers: int = 2,
    skipped: list[Skipped] | None = None,
    span: range | None = None,
) -> Iterator[Batch]:
    """Stream a data set as batches, decoded ahead in threads, in the data's order.

    Args:
        pictures: The data set.
        preprocessing: Size and channels.
        batch_size: Pictures of a batch at most.
        workers: Threads that decode.
        skipped: Pictures that cannot be read are left out of their batch and appended here.
        span: These rows only, a piece of the data set, of which none need be readable.

    Raises:
        UserError: No picture of the whole data set could be read.
    """
    rows: list[int] = []
    read: list[Tensor] = []
    none = True
    found = in_order(
        lambda row: pictures.read(row, preprocessing),
        range(len(pictures)) if span is None else span,
        ahead=2 * batch_size,
        workers=workers,
    )
    for row, picture in found:
        if isinstance(picture, BadPicture):
            if skipped is not None:
                skipped.append(Skipped(row, pictures.paths[row], str(picture)))
            continue
        none = False
        rows.append(row)
        read.append(picture)
        if len(rows) == batch_size:
            yield Batch(tuple(rows), torch.stack(read))
            rows, read = [], []
    if rows:
        yield Batch(tuple(rows), torch.stack(read))
    if none and span is None and len(pictures):
        raise UserError(f"no picture of {pictures.root} could be read")


def in_order(
    read: Callable[[int], T], rows: Iterable[int], *, ahead: int = 128, workers: int = 2
) -> Generator[tuple[int, T | BadPicture], None, None]:
    """(row, read(row) or why it cannot be read) for all rows, in order, read in threads.

    ahead: how many rows are read before they are needed; that bounds the memory
    """
    # Handing over single small pictures would cost more than reading them.
    chunk = max(1, min(_CHUNK, ahead // (2 * workers)))

    def read_some(some: list[int]) -> list[T | BadPicture]:
        return [_or_why_not(read, row) for row in some]

    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[list[int], Future[list[T | BadPicture]]]] = deque()
        upcoming = iter(rows)

        def submit() -> None:
            some = list(islice(upcoming, chunk))
            if some:
                waiting.append((some, pool.submit(read_some, some)))

        for _ in range(math.ceil(ahead / chunk)):
            submit()
        try:
            while waiting:
                some, future = waiting.popleft()
                submit()
                yield from zip(some, future.result(), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)


def _or_why_not(read: Callable[[int], T], row: int) -> T | BadPicture:
    try:
        return read(row)
    except BadPicture as error:
        return error


def read_all(
    pictures: Pictures, preprocessing: Preprocessing
) -> tuple[Pictures, Tensor, list[Skipped]]:
    """A small data set as one tensor: (what could be read, (N, C, H, W), what could not)."""
    skipped: list[Skipped] = []
    rows: list[int] = []
    parts: list[Tensor] = []
    for batch in batches(pictures, preprocessing, skipped=skipped):
        rows += batch.rows
        parts.append(batch.images)
    return pictures.select(rows), torch.cat(parts), skipped
