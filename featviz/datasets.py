"""Data sets of pictures on disk: class folders, a flat folder, a tar, or a list; streamed in order.

Comes in: a path. Goes out: `Pictures`, the ordered list of what is there, and from it batches of
(N, 3, S, S) tensors. A picture that cannot be read is skipped and listed, never silently replaced.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from featviz import images
from featviz.errors import BadPicture, UserError

if TYPE_CHECKING:
    from PIL import Image

    from featviz.models.load import Model


@dataclass(frozen=True)
class Pictures:
    """Which pictures, in which order.

    root: the folder, tar file or list that was opened
    paths: one name a picture, relative to the root ("n02099601/dog.jpg")
    folders: the class folder of each picture, or "" where there is none
    """

    root: Path
    paths: tuple[str, ...]
    folders: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def name(self) -> str:
        return self.root.name

    @cached_property
    def sha256(self) -> str:
        """Hash of the list (paths and classes, in order), not of the pixels."""
        lines = (f"{p}\t{c}\n" for p, c in zip(self.paths, self.folders, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The class folders that occur, sorted; empty for data without classes."""
        return tuple(sorted({c for c in self.folders if c}))

    def open(self, row: int) -> Image.Image:
        """Picture `row` as an upright 8-bit RGB pillow image. Raises BadPicture."""
        path = self.paths[row]
        if self.root.suffix == ".tar":
            with tarfile.open(self.root) as archive:
                member = archive.extractfile(path)
                if member is None:
                    raise BadPicture(f"{path} in {self.root} is not a file")
                return images.open_rgb(io.BytesIO(member.read()), name=f"{self.root}:{path}")
        base = self.root if self.root.is_dir() else self.root.parent
        return images.open_rgb(base / path)

    def read(self, row: int, resize: int, crop: int | None = None) -> Tensor:
        """Picture `row` as a model wants it: (3, crop, crop) in [0, 1]. Raises BadPicture."""
        return images.from_pillow(images.square(self.open(row), resize, crop))

    def select(self, rows: Sequence[int]) -> Pictures:
        """The same data set with these rows only, in this order."""
        return replace(
            self,
            paths=tuple(self.paths[i] for i in rows),
            folders=tuple(self.folders[i] for i in rows),
        )

    def spread(self, count: int) -> Pictures:
        """At most `count` pictures, evenly spread over the list (so over the classes)."""
        if count >= len(self):
            return self
        return self.select([i * len(self) // count for i in range(count)])

    def labels(self, model: Model) -> tuple[int | None, ...]:
        """The model's class for each picture, by its folder's name (a synset or a class name)."""
        known = {folder: model.find_class(folder) for folder in self.classes}
        return tuple(known.get(folder) for folder in self.folders)


def open_pictures(path: str | Path) -> Pictures:
    """List the pictures of a folder (class folders or flat), a .tar, a .txt list, or one file.

    A list holds one path a line, relative to the list, with the class behind a tab if there is
    one. Order: sorted by path for folders, as stored for tars and lists.

    Raises UserError if there is nothing there.
    """
    root = Path(path)
    if not root.exists():
        raise UserError(f"{root}: no such file or folder; --data takes a folder of pictures")
    if root.is_dir():
        found = sorted(
            (p.relative_to(root) for p in root.rglob("*") if _is_picture(p.name) and p.is_file()),
            key=lambda p: p.parts,
        )
        pairs = [(p.as_posix(), p.parent.name) for p in found]
    elif root.suffix == ".tar":
        try:
            with tarfile.open(root) as archive:
                names = [m.name for m in archive if m.isfile() and _is_picture(m.name)]
        except (tarfile.TarError, OSError) as error:
            raise UserError(f"{root} is not a tar that can be read ({error})") from None
        pairs = [(name, Path(name).parent.name) for name in names]
    elif root.suffix == ".txt":
        lines = root.read_text(encoding="utf-8", errors="replace").splitlines()
        split = (line.partition("\t") for line in lines if line.strip())
        pairs = [(name.strip(), label.strip()) for name, _, label in split]
    else:
        return Pictures(root.parent, (root.name,), ("",))
    if not pairs:
        kinds = ", ".join(sorted(images.SUFFIXES))
        raise UserError(f"{root} holds no pictures ({kinds}); give a folder that does")
    return Pictures(root, tuple(p for p, _ in pairs), tuple(c for _, c in pairs))


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in images.SUFFIXES and not Path(name).name.startswith(".")


class Batch(NamedTuple):
    """Some pictures of a data set, in its order."""

    rows: tuple[int, ...]
    """which rows of the data set these are, (N,)"""
    images: Tensor
    """(N, 3, S, S) float32 in [0, 1]"""


class Skipped(NamedTuple):
    """A picture that could not be read."""

    row: int
    path: str
    reason: str


def batches(
    pictures: Pictures,
    *,
    resize: int,
    crop: int | None = None,
    batch_size: int = 64,
    start: int = 0,
    workers: int = 2,
    skipped: list[Skipped] | None = None,
) -> Iterator[Batch]:
    """Stream a data set as batches of at most `batch_size`, decoded ahead in threads.

    Rows come in the data's order whatever the workers do. Pictures that cannot be read are left
    out of their batch and appended to `skipped`; if nothing at all could be read, UserError.
    """
    good = 0
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Tensor]] = deque()
        rows = iter(range(start, len(pictures)))
        upcoming: deque[int] = deque()

        def submit() -> None:
            row = next(rows, None)
            if row is not None:
                upcoming.append(row)
                waiting.append(pool.submit(pictures.read, row, resize, crop))

        for _ in range(2 * batch_size):
            submit()
        batch_rows: list[int] = []
        batch_images: list[Tensor] = []
        try:
            while waiting:
                row, future = upcoming.popleft(), waiting.popleft()
                submit()
                try:
                    image = future.result()
                except BadPicture as error:
                    if skipped is not None:
                        skipped.append(Skipped(row, pictures.paths[row], str(error)))
                    continue
                batch_rows.append(row)
                batch_images.append(image)
                good += 1
                if len(batch_rows) == batch_size:
                    yield Batch(tuple(batch_rows), torch.stack(batch_images))
                    batch_rows, batch_images = [], []
            if batch_rows:
                yield Batch(tuple(batch_rows), torch.stack(batch_images))
        finally:
            pool.shutdown(cancel_futures=True)
    if not good and start < len(pictures):
        raise UserError(f"none of the {len(pictures)} pictures of {pictures.root} could be read")


def read_all(
    pictures: Pictures, *, resize: int, crop: int | None = None
) -> tuple[Pictures, Tensor, list[Skipped]]:
    """A small data set as one tensor: (what could be read, (N, 3, S, S), what could not)."""
    skipped: list[Skipped] = []
    rows: list[int] = []
    parts: list[Tensor] = []
    for batch in batches(pictures, resize=resize, crop=crop, skipped=skipped):
        rows += batch.rows
        parts.append(batch.images)
    return pictures.select(rows), torch.cat(parts), skipped
