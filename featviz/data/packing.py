"""`pack(data, folder)`: decode and resize a data set once, for trainings and repeated analyses."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from featviz import folders, plotting, results, schema
from featviz.arrays import noted_digest, write_arrays
from featviz.checkpoints import (
    Arrays,
    announce_result,
    open_checkpoint,
    partial_folder,
    remove_checkpoint,
)
from featviz.data import packs
from featviz.data.datasets import Pictures, Skipped, in_order
from featviz.data.from_python import Data, as_pictures
from featviz.data.packs import Shard
from featviz.engine import Piece, map_pieces
from featviz.errors import UserError, public
from featviz.pictures.decoding import Prepared, prepared
from featviz.pictures.preprocessing import Preprocessing
from featviz.types import Engine, Progress, Side
from featviz.wording import counted, unread

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

SHARD_BYTES = 64 * 10**6
"""the largest shard; it is read whole before its first picture is used"""
_MOST = 4096  # pictures of a shard


@dataclass(frozen=True, kw_only=True, repr=False)
class PackResult(results.Result):
    """A pack on disk."""

    kind: ClassVar[str] = "pack"

    folder: Path
    """that holds the shards"""
    side: int
    """of the squares, in pixels"""
    paths: tuple[str, ...]
    folders: tuple[str, ...]
    """the class of each picture"""
    sizes: NDArray[np.int32]
    """(N, 2): width and height of each picture before"""
    shards: tuple[Shard, ...]
    skipped: tuple[tuple[str, str], ...]
    """(path, reason) of what could not be read"""

    @property
    def title(self) -> str:
        return f"Pack of {(self.origin.data or {}).get('name', 'pictures')}"

    @property
    def pictures(self) -> Pictures:
        """The packed data set."""
        return Pictures(self.folder, self.paths, self.folders)

    def numbers(self) -> dict[str, results.Number]:
        count, whole = len(self.paths), sum(shard.bytes for shard in self.shards)
        small = int((self.sizes.min(1) < self.side).sum()) if count else 0
        classes = len({name for name in self.folders if name})
        return {
            "pictures": results.Number(count, "", f"squares of {self.side} pixels"),
            "classes": results.Number(classes, "", "folders"),
            "skipped": results.Number(len(self.skipped), "", "pictures that could not be read"),
            "enlarged": results.Number(small, "", "pictures that were smaller"),
            "size": results.Number(
                round(whole / 1e6, 3), "MB", f"in {counted(len(self.shards), 'shard')}"
            ),
        }

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "skipped.csv",
            ("path", "reason"),
            self.skipped,
            caption="Pictures that could not be read.",
        )

    def write(self, folder: results.Folder) -> None:
        for shard in self.shards:
            _link(self.folder / shard.file, folder.path / shard.file)
        names: Arrays = {
            "paths": packs.joined(self.paths),
            "folders": packs.joined(self.folders),
            "sizes": self.sizes,
        }
        write_arrays(folder.path / packs.NAMES, names)
        manifest = {
            "schema": packs.SCHEMA,
            "side": self.side,
            "rows": len(self.paths),
            "skipped": len(self.skipped),
            "source": self.origin.data,
            "names": noted_digest(folder.path / packs.NAMES),
            "shards": [shard._asdict() for shard in self.shards],
        }
        results.write_json(folder.path / packs.MANIFEST, schema.sealed(manifest))
        folder.figure(
            "sizes.svg",
            self.plot(),
            caption="Shorter sides of the pictures before they were packed, in pixels; the line is "
            "the side of the pack.",
            alt="Histogram of the shorter sides with a line at the side of the pack",
        )

    def plot(self) -> Figure:
        figure = plotting.new_figure(4.8, 2.8)
        axes = figure.subplots()
        axes.hist(self.sizes.min(1), bins=40, color=plotting.SKY)
        axes.axvline(self.side, color=plotting.INK, linewidth=1)
        plotting.lines(axes, xlabel="shorter side (pixels)", ylabel="pictures")
        return figure


@public
def pack(
    data: Data,
    out: str | Path,
    *,
    size: Side = 256,
    engine: Engine = "here",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PackResult:
    """Decode a data set once into squares that are mapped into memory.

    The shorter side of each picture is resized to `size`, the center is cut out. Whatever takes
    the data takes the folder: `train`, `evaluate`, `embed` ... A model that resizes to `size`
    (AlexNet: 256, of which it takes the 224 in the middle) sees the same pixels as in the files
    (where the margin is no multiple of 4, at most a pixel beside); others resize once more. A
    picture takes 3 x size x size bytes: 197 KB at 256, 252 GB for the 1.28 million of ImageNet.

    Args:
        data: What `as_pictures` takes: class folders, a Dataset ...
        out: The folder. Finished shards are kept in `<out>.partial`, and a second call with the
            same arguments goes on from there.
        size: Side of the squares, in pixels.
        engine: "here", or "ray": decoded by a Ray cluster.
        overwrite: Replace an existing folder.
        progress: Called with (pictures done, all pictures, text).

    Raises:
        UserError: No picture can be read, or an existing `out` without `overwrite`.

    Example:
        >>> featviz.pack("imagenet/train", "packs/train")
        >>> featviz.train(net, "packs/train", validation="packs/val")
    """
    started = time.perf_counter()
    folders.check_target(out, overwrite=overwrite)
    pictures = as_pictures(data)
    if pictures.files:  # the workers of a cluster run in other folders
        pictures = replace(pictures, root=pictures.root.absolute())
    step = max(1, min(_MOST, SHARD_BYTES // (3 * size * size)))
    spans = [
        range(first, min(first + step, len(pictures))) for first in range(0, len(pictures), step)
    ]
    pieces = [Piece(f"rows-{span.start:08}", span, len(span)) for span in spans]
    job = {"kind": "pack", "size": size, "pictures": pictures.sha256, "state": pictures.state}
    partial = partial_folder(out)
    with open_checkpoint(partial, job, total=len(pictures), unit="pictures", engine=engine) as kept:
        map_pieces(_Decoded(pictures, size), pieces, kept, progress=progress, text="packing")
        made = _result(pictures, partial, pieces, size, engine, started)
        announce_result(partial, made.origin)
        made.save(out, overwrite=overwrite)
    remove_checkpoint(partial)
    return replace(made, folder=Path(out))


def _result(
    pictures: Pictures, partial: Path, pieces: list[Piece], size: int, engine: str, started: float
) -> PackResult:
    """The pack whose shards are the pieces of the checkpoint; their pictures are not read."""
    rows: list[int] = []
    sizes, shards, skipped = [np.empty((0, 2), np.int32)], [], []
    for piece in pieces:
        file = partial / f"{piece.name}.npz"
        with np.load(file) as arrays:
            count = len(arrays["rows"])
            rows += arrays["rows"].tolist()
            sizes.append(arrays["sizes"])
            skipped += [(path, reason) for path, reason in arrays["skipped"].tolist()]
        shards.append(Shard(file.name, count, file.stat().st_size, noted_digest(file)))
    if not rows:
        reason = f"; the first: {skipped[0][1]}" if skipped else ""
        raise UserError(f"no picture of {pictures.root} could be read{reason}")
    few = unread(len(skipped))
    return PackResult(
        origin=results.origin(
            None, parameters={"size": size, "engine": engine}, started=started, data=pictures
        ),
        warnings=(*((few,) if skipped else ()), *pictures.left_out.notes),
        folder=partial,
        side=size,
        paths=tuple(pictures.paths[row] for row in rows),
        folders=tuple(pictures.folders[row] for row in rows),
        sizes=np.concatenate(sizes),
        shards=tuple(shards),
        skipped=tuple(skipped),
    )


@dataclass(frozen=True)
class _Decoded:
    """What makes the shards."""

    data: Pictures
    side: int

    def __call__(self, span: range, report: Callable[[int], None] = lambda _: None) -> Arrays:
        """ "pictures" (n, 3, side, side), "rows" (n,), "sizes" (n, 2), "skipped" (s, 2)."""
        how = Preprocessing.of(self.side)

        def read(row: int) -> Prepared:
            if self.data.files:
                return self.data.prepare(row, how)
            return prepared(self.data.open(row), how)

        pixels = np.empty((len(span), 3, self.side, self.side), np.uint8)
        rows: list[int] = []
        sizes: list[tuple[int, int]] = []
        skipped: list[Skipped] = []
        for done, (row, found) in enumerate(in_order(read, span, workers=_cores()), start=1):
            if isinstance(found, Prepared):
                pixels[len(rows)] = found.pixels.numpy()
                rows.append(row)
                sizes.append(found.size)
            else:
                path = self.data.paths[row]
                reason = str(found).replace(self.data.where(row), path)
                skipped.append(Skipped(row, path, reason))
            report(done)
        return {
            packs.PICTURES: pixels[: len(rows)],
            "rows": np.array(rows, np.int64),
            "sizes": np.array(sizes, np.int32).reshape(-1, 2),
            "skipped": np.array([(s.path, s.reason) for s in skipped], str).reshape(-1, 2),
        }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _link(source: Path, target: Path) -> None:
    """A second name for a file, which takes no space; a copy where the disk has no such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
