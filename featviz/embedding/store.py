"""A store: the activations of a data set at one layer, on disk or in memory.

A folder that holds

    manifest.json    schema, model and its sha256, layer, dim, dtype, rows, shards with sha256
    shard-00000.npy  float16, rows x dim, at most 64 MB each
    ids.csv          row, path, class, width, height; y, x where one position was read
    skipped.csv      path, reason
    result.json      the numbers, for people and the gallery

The manifest has the last word on what is there. Rows are in the data's order. `featviz.embed`
makes a store, `open_store` reads one; `blocks` streams it, `take` reads single rows. The rows stay
on the disk: what is held in memory is one name, class and size for each picture.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from featviz import images, plotting, results
from featviz.datasets import Pictures
from featviz.errors import UserError
from featviz.models.receptive_field import ReceptiveField
from featviz.samples import SamplePictures, sample_pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

SCHEMA = 1
_SAMPLES = sample_pictures(1).root
SHARD_BYTES = 64 * 10**6
"""the largest shard"""
_HASHED = 10**9
"""bytes of shards up to which they are compared with their hashes whenever a store is opened"""


class Shard(NamedTuple):
    """One file of a store."""

    file: str
    rows: int
    sha256: str


class Left(NamedTuple):
    """A picture that is not in the store, and why."""

    path: str
    reason: str


class Drift(NamedTuple):
    """How far a decoder moves rows from those of exact pixels: 1 - cosine."""

    pictures: int
    """on how many it was measured"""
    mean: float
    largest: float


class Statistics(NamedTuple):
    """What one pass over a store finds."""

    norms: NDArray[np.float64]
    """length of each row, (N,)"""
    active: NDArray[np.int64]
    """on how many pictures each unit is above zero, (dim,)"""
    zeros: float
    """share of values that are exactly zero"""


@dataclass(frozen=True, kw_only=True, repr=False)
class Store(results.Result):
    """Activations of N pictures at one layer, as float16 rows."""

    kind: ClassVar[str] = "embed"

    layer: str
    dim: int
    shape: tuple[int, ...]
    """of the layer: (C, H, W), (C,) or (tokens, C)"""
    positions: NDArray[np.int32] | None = None
    """(N, 2): the row and column of the map that was read of each picture; None for means"""
    receptive_field: ReceptiveField | None = None
    """what one position sees, where `positions` says which was read"""
    precision: str = "float32"
    """of the network: "float32" or "bf16" """
    decoder: str = "exact"
    """what read the files: "exact", or a faster one that changes pixels"""
    drift: Drift | None = None
    """how far that one moves the rows"""
    pictures: Pictures
    """the pictures of the rows, in order; their files may have moved since"""
    sizes: NDArray[np.int32]
    """(N, 2): width and height of each picture"""
    skipped: tuple[Left, ...] = ()
    class_names: Mapping[str, str] = field(default_factory=dict)
    """how people call the class folders"""
    source: Mapping[str, Any]
    """the whole data set: name, root, count, sha256 of its list"""
    preparation: Mapping[str, int]
    """resize and crop, in pixels"""
    shards: tuple[Shard, ...] = ()
    folder: Path | None = None
    """where the shards are; None for a store in memory"""
    memory: NDArray[np.float16] | None = None
    pace: float | None = None
    """rows a second of the run that made it"""

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def model_name(self) -> str:
        """The model that made it."""
        return str((self.origin.model or {}).get("name", "?"))

    @property
    def title(self) -> str:
        return f"{self.layer} of {self.model_name} on {self.source['name']}"

    @property
    def pooled(self) -> bool:
        """Whether values are means over the layer's positions."""
        return len(self.shape) > 1 and self.positions is None

    @property
    def labels(self) -> tuple[str, ...]:
        """The class folder of each row, "" where there is none."""
        return self.pictures.folders

    def class_name(self, row: int) -> str:
        """The class of a row as people call it, "" where there is none."""
        label = self.labels[row]
        return self.class_names.get(label, label)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(shard.rows for shard in self.shards)])

    def _parts(self) -> Iterator[NDArray[np.float16]]:
        if self.memory is not None:
            yield self.memory
            return
        for number in range(len(self.shards)):
            yield self._map(number)

    def _map(self, number: int) -> NDArray[np.float16]:
        assert self.folder is not None
        file = self.folder / self.shards[number].file
        try:
            mapped: NDArray[np.float16] = np.load(file, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read ({error}); embed again") from None
        return mapped

    def numbered(self) -> list[Shard]:
        """The shards under the names that they have in a store's folder."""
        return [s._replace(file=f"shard-{i:05}.npy") for i, s in enumerate(self.shards)]

    def blocks(self, size: int = 8192) -> Iterator[Tensor]:
        """The rows in order as float32 tensors of at most `size` x dim; memory stays bounded."""
        for part in self._parts():
            for start in range(0, len(part), size):
                yield torch.from_numpy(np.array(part[start : start + size], dtype=np.float32))

    def matrix(self) -> Tensor:
        """All rows as one float32 tensor (N, dim)."""
        return torch.cat(list(self.blocks())) if len(self) else torch.empty(0, self.dim)

    def take(self, rows: Sequence[int] | Tensor) -> Tensor:
        """Some rows as float32, (len(rows), dim), in the order given."""
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            bad = int(wanted[(wanted < 0) | (wanted >= len(self))][0])
            raise UserError(f"row {bad} is out of range: the store has rows 0 to {len(self) - 1}")
        return torch.from_numpy(self.gather(wanted).astype(np.float32))

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Some rows as they are stored, (len(rows), dim), in the order given."""
        if self.memory is not None:
            return self.memory[rows]
        taken = np.empty((rows.size, self.dim), dtype=np.float16)
        holder = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(holder):
            here = np.flatnonzero(holder == number)
            self._read(int(number), rows[here] - self._starts[number], taken, here)
        return taken

    def _read(
        self,
        number: int,
        rows: NDArray[np.int64],
        into: NDArray[np.float16],
        at: NDArray[np.int64],
    ) -> None:
        """Rows of a shard. Read, not mapped: pages that were touched would stay in memory."""
        assert self.folder is not None
        shard = self.shards[number]
        width = 2 * self.dim
        file = self.folder / shard.file
        try:
            with file.open("rb", buffering=0) as content:
                start = content.seek(0, os.SEEK_END) - width * shard.rows  # behind the header
                for row, place in zip(rows.tolist(), at.tolist(), strict=True):
                    content.seek(start + width * row)
                    if content.readinto(into[place]) != width:
                        raise OSError("it is too short")
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read ({error}); embed again") from None

    def span(self, start: int, stop: int) -> NDArray[np.float16]:
        """Rows start to stop as they are stored; nothing of them stays in memory."""
        if self.memory is not None:
            return self.memory[start:stop]
        parts = [
            np.array(self._map(number)[max(start - at, 0) : stop - at])
            for number, at in enumerate(self._starts[:-1])
            if at < stop and start < at + self.shards[number].rows
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.dim), np.float16)

    def crop(self, row: int) -> Tensor:
        """The part of picture `row` that its position sees, (3, h, w) in [0, 1].

        At the model's size; grey where it reaches beyond the picture.
        Raises UserError if rows are not of single positions, or their field is not known.
        """
        if self.positions is None or self.receptive_field is None:
            raise UserError(
                f"{self.title} is not of single positions whose receptive field is known; "
                "embed a convolutional layer with position random"
            )
        resize, crop = self.preparation["resize"], self.preparation["crop"]
        y, x = (int(i) for i in self.positions[row])
        picture = self.pictures.read(row, resize, crop)
        return images.crop_box(picture, self.receptive_field.box(y, x))

    @cached_property
    def statistics(self) -> Statistics:
        """Norms, activity and zeros, from one pass over the rows."""
        norms = [np.empty(0)]
        active = np.zeros(self.dim, dtype=np.int64)
        zeros = 0
        for block in self.blocks(512):  # larger ones would scatter the heap, for no gain
            rows = block.numpy()
            norms.append(np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64)))
            active += np.count_nonzero(rows > 0, axis=0)
            zeros += rows.size - int(np.count_nonzero(rows))
        return Statistics(np.concatenate(norms), active, zeros / max(1, len(self) * self.dim))

    def numbers(self) -> dict[str, results.Number]:
        found = self.statistics
        silent = int((found.active == 0).sum())
        shown = {
            "rows": results.Number(len(self), "", "pictures in the store"),
            "dim": results.Number(self.dim, "", f"units of {self.layer}"),
            "zeros": results.Number(found.zeros, "fraction", "of all values are exactly zero"),
            "mean norm": results.Number(float(found.norms.mean()), "", "Euclidean length of a row"),
            "silent units": results.Number(silent, "", "units above zero on none of the pictures"),
            "skipped": results.Number(len(self.skipped), "", "pictures that could not be read"),
        }
        if self.drift is not None:
            shown["decoder drift"] = results.Number(
                self.drift.mean,
                "",
                f"mean 1 - cosine to exact pixels on {self.drift.pictures} "
                f"pictures (at most {self.drift.largest:.2g}), {self.decoder}",
            )
        if self.pace is not None:
            meaning = "decoding included"
            shown["pace"] = results.Number(round(self.pace, 1), "rows/s", meaning)
        return shown

    def write(self, folder: results.Folder) -> None:
        shards = self.numbered()
        for old, new in zip(self.shards, shards, strict=True):
            assert self.folder is not None
            _link(self.folder / old.file, folder.path / new.file)
        if self.memory is not None:
            shards = save_shards(self.memory, folder.path)
        write_ids(folder.path / "ids.csv", self.pictures, self.sizes, self.positions)
        folder.tables.append(
            {
                "file": "ids.csv",
                "caption": "The picture of each row.",
                "columns": list(_ID_COLUMNS if self.positions is None else _ALL_COLUMNS),
            }
        )
        folder.table(
            "skipped.csv", ("path", "reason"), self.skipped, caption="What could not be read."
        )
        folder.figure(
            "activity.svg",
            self.plot(),
            caption="Left: Euclidean length of the rows. Right: on which share of the pictures a "
            "unit is above zero, units sorted by it.",
            alt="Histogram of row norms and sorted curve of how often units are active",
        )
        # Last, because the manifest says that all the rest is there.
        results.write_json(folder.path / "manifest.json", self.manifest(shards))

    def manifest(self, shards: Sequence[Shard]) -> dict[str, Any]:
        """The document that makes a folder a store; it holds nothing that changes with time."""
        return {
            "schema": SCHEMA,
            "model": self.origin.model,
            "layer": self.layer,
            "shape": self.shape,
            "position": None
            if len(self.shape) == 1
            else "mean"
            if self.positions is None
            else "random",
            "seed": self.origin.seed if self.positions is not None else None,
            "receptive_field": asdict(self.receptive_field) if self.receptive_field else None,
            "precision": self.precision,
            "decoder": self.decoder,
            "drift": self.drift._asdict() if self.drift else None,
            "dim": self.dim,
            "dtype": "float16",
            "rows": len(self),
            "skipped": len(self.skipped),
            "preparation": dict(self.preparation),
            "data": dict(self.source),
            "class_names": dict(self.class_names),
            "shards": [shard._asdict() for shard in shards],
        }

    def plot(self) -> Figure:
        found = self.statistics
        figure = plotting.new_figure(8, 2.6)
        lengths, activity = figure.subplots(1, 2)
        lengths.hist(found.norms, bins=min(40, max(5, len(self) // 8)), color=plotting.BLUE)
        plotting.lines(lengths, xlabel=f"norm of {self.layer}", ylabel="pictures")
        share = np.sort(found.active)[::-1] / max(1, len(self))
        shown = np.unique(np.linspace(0, self.dim - 1, 300).round().astype(int))
        activity.fill_between(shown, 100 * share[shown], color=plotting.SKY, linewidth=0)
        activity.set_ylim(0, 102)
        activity.margins(x=0)
        plotting.lines(
            activity, xlabel="units, most often active first", ylabel="active on (% of pictures)"
        )
        return figure


_ID_COLUMNS = ("row", "path", "class", "width", "height")
_ALL_COLUMNS = (*_ID_COLUMNS, "y", "x")


def shard_rows(dim: int, limit: int = SHARD_BYTES) -> int:
    """How many rows a shard holds: as many as fit, at least one."""
    return max(1, limit // (2 * dim))


def write_shard(path: Path, rows: NDArray[np.float16]) -> Shard:
    """Write one shard whole: beside its place, then renamed. Returns its entry."""
    beside = path.with_name(f".{path.name}")
    try:
        with beside.open("wb") as out:
            np.save(out, rows)
        digest = hash_file(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return Shard(path.name, len(rows), digest)


def save_shards(rows: NDArray[np.float16], folder: Path) -> list[Shard]:
    """Write a matrix as shards."""
    step = shard_rows(rows.shape[1])
    starts = range(0, len(rows), step)
    return [
        write_shard(folder / f"shard-{i:05}.npy", rows[start : start + step])
        for i, start in enumerate(starts)
    ]


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_ids(
    path: Path,
    pictures: Pictures,
    sizes: NDArray[np.int32],
    positions: NDArray[np.int32] | None = None,
) -> None:
    """Write ids.csv."""
    numbers = sizes if positions is None else np.hstack([sizes, positions])
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(_ID_COLUMNS if positions is None else _ALL_COLUMNS)
        for row, (name, label, found) in enumerate(
            zip(pictures.paths, pictures.folders, numbers, strict=True)
        ):
            writer.writerow((row, name, label, *found))


def _link(old: Path, new: Path) -> None:
    """Bring a shard to another place: by a second name for the same file where that works."""
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)


def open_store(
    folder: str | Path, *, data: str | Path | None = None, verify: bool | None = None
) -> Store:
    """Read a store and check it. Rows stay on the disk until they are asked for.

    data: where its pictures are now, if they have moved since
    verify: compare every shard with its sha256 (reads all files once); False compares sizes only;
        None, the default, compares up to 1 GB of them

    Raises UserError for a folder that is no store, and names the shard that is missing or damaged.
    """
    place = Path(folder)
    manifest = _read_manifest(place)
    try:
        shards = tuple(Shard(**entry) for entry in manifest["shards"])
        if verify is None:
            verify = 2 * int(manifest["dim"]) * int(manifest["rows"]) <= _HASHED
        _check_shards(place, shards, int(manifest["dim"]), verify=verify)
        chosen = manifest.get("position") == "random"
        names, labels, numbers = _read_ids(place / "ids.csv", chosen)
        with (place / "skipped.csv").open(newline="", encoding="utf-8") as file:
            skipped = tuple(Left(*line) for line in list(csv.reader(file))[1:])
        source = manifest["data"]
        if not len(names) == manifest["rows"] == sum(shard.rows for shard in shards):
            raise UserError(
                f"{place / 'ids.csv'} lists {len(names)} rows where the manifest has "
                f"{manifest['rows']}; embed again"
            )
        return Store(
            origin=_read_origin(place, manifest),
            layer=manifest["layer"],
            dim=manifest["dim"],
            shape=tuple(manifest.get("shape", _old_shape(manifest))),
            positions=numbers[:, 2:] if chosen else None,
            receptive_field=_read_field(manifest.get("receptive_field")),
            precision=manifest.get("precision", "float32"),
            decoder=manifest.get("decoder", "exact"),
            drift=Drift(**manifest["drift"]) if manifest.get("drift") else None,
            pictures=_pictures(Path(data or source["root"]), names, labels),
            sizes=numbers[:, :2],
            skipped=skipped,
            class_names=manifest["class_names"],
            source=source,
            preparation=manifest["preparation"],
            shards=shards,
            folder=place,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{place} is damaged ({error!r} in its tables); embed again") from None
    except FileNotFoundError as error:
        raise UserError(
            f"{place} is incomplete: {error.filename} is missing; embed again"
        ) from None


def _pictures(root: Path, names: tuple[str, ...], labels: tuple[str, ...]) -> Pictures:
    kind = SamplePictures if root == _SAMPLES else Pictures
    return kind(root, names, labels)


def _read_manifest(place: Path) -> dict[str, Any]:
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


def _check_shards(place: Path, shards: Sequence[Shard], dim: int, *, verify: bool) -> None:
    """Every bad shard is named, not only the first."""
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


def _read_ids(
    path: Path, positions: bool
) -> tuple[tuple[str, ...], tuple[str, ...], NDArray[np.int32]]:
    """Paths, classes and the numbers behind them, (N, 2 or 4), line by line."""
    columns = _ALL_COLUMNS if positions else _ID_COLUMNS
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


def _old_shape(manifest: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of a layer as far as the first manifests tell it."""
    dim = int(manifest["dim"])
    return (dim, 1, 1) if manifest.get("pooled") else (dim,)


def _read_field(found: Mapping[str, Any] | None) -> ReceptiveField | None:
    if found is None:
        return None
    size, stride, offset = (tuple(found[name]) for name in ("size", "stride", "offset"))
    return ReceptiveField(size, stride, offset)


def _read_origin(place: Path, manifest: Mapping[str, Any]) -> results.Origin:
    document = results.read_result(place) if (place / "result.json").is_file() else {}
    return results.Origin(
        model=manifest["model"],
        data=document.get("data"),
        parameters=document.get("parameters", {}),
        seed=document.get("seed"),
        device=document.get("versions", {}).get("device", "unknown"),
        seconds=document.get("seconds", 0.0),
        created=document.get("created", ""),
        command=document.get("command"),
    )
