"""A store: the activations of a data set at one layer, on disk or in memory.

A folder that holds

    manifest.json    schema, model and its sha256, layer, dim, dtype, rows, shards with sha256
    shard-00000.npy  float16, rows x dim, at most 64 MB each
    ids.csv          row, path, class, width, height
    skipped.csv      path, reason
    result.json      the numbers, for people and the gallery

The manifest has the last word on what is there. Rows are in the data's order. `featviz.embed`
makes a store, `open_store` reads one; `blocks` streams it, `take` reads single rows.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from featviz import plots, results
from featviz.datasets import Pictures
from featviz.errors import UserError
from featviz.samples import SamplePictures, sample_pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

SCHEMA = 1
_SAMPLES = sample_pictures(1).root
SHARD_BYTES = 64 * 10**6
"""the largest shard"""


class Shard(NamedTuple):
    """One file of a store."""

    file: str
    rows: int
    sha256: str


class Left(NamedTuple):
    """A picture that is not in the store, and why."""

    path: str
    reason: str


class Statistics(NamedTuple):
    """What one pass over a store finds."""

    norms: NDArray[np.float64]
    """length of each row, (N,)"""
    active: NDArray[np.int64]
    """on how many pictures each unit is above zero, (dim,)"""
    zeros: float
    """share of values that are exactly zero"""


@dataclass(frozen=True, kw_only=True)
class Store(results.Result):
    """Activations of N pictures at one layer, as float16 rows."""

    kind: ClassVar[str] = "embed"

    layer: str
    dim: int
    pooled: bool
    """values are means over the layer's positions"""
    pictures: Pictures
    """the pictures of the rows, in order; their files may have moved since"""
    sizes: tuple[tuple[int, int], ...]
    """width and height of each picture"""
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
        if self.memory is not None:
            return torch.from_numpy(self.memory[wanted].astype(np.float32))
        taken = np.empty((wanted.size, self.dim), dtype=np.float32)
        holder = np.searchsorted(self._starts, wanted, side="right") - 1
        for number in np.unique(holder):
            here = holder == number
            taken[here] = self._map(int(number))[wanted[here] - self._starts[number]]
        return torch.from_numpy(taken)

    @cached_property
    def statistics(self) -> Statistics:
        """Norms, activity and zeros, from one pass over the rows."""
        norms = [np.empty(0)]
        active = np.zeros(self.dim, dtype=np.int64)
        zeros = 0
        for block in self.blocks(2048):
            norms.append(block.norm(dim=1, dtype=torch.float64).numpy())
            active += (block > 0).sum(0).numpy()
            zeros += int((block == 0).sum())
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
        if self.pace is not None:
            meaning = "decoding included"
            shown["pace"] = results.Number(round(self.pace, 1), "rows/s", meaning)
        return shown

    def write(self, folder: results.Folder) -> None:
        shards = [_place(self, number, folder.path) for number in range(len(self.shards))]
        if self.memory is not None:
            shards = save_shards(self.memory, folder.path)
        write_ids(folder.path / "ids.csv", self.pictures, self.sizes)
        folder.tables.append(
            {
                "file": "ids.csv",
                "caption": "The picture of each row.",
                "columns": list(_ID_COLUMNS),
            }
        )
        folder.table(
            "skipped.csv", ("path", "reason"), self.skipped, caption="What could not be read."
        )
        folder.figure(
            "activity.svg", self.plot(),
            caption="Left: Euclidean length of the rows. Right: on which share of the pictures a "
            "unit is above zero, units sorted by it.",
            alt="Histogram of row norms and sorted curve of how often units are active",
        )  # fmt: skip
        # Last, because the manifest says that all the rest is there.
        results.write_json(folder.path / "manifest.json", self.manifest(shards))

    def manifest(self, shards: Sequence[Shard]) -> dict[str, Any]:
        """The document that makes a folder a store; it holds nothing that changes with time."""
        return {
            "schema": SCHEMA,
            "model": self.origin.model,
            "layer": self.layer,
            "pooled": self.pooled,
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
        figure = plots.new_figure(8, 2.6)
        lengths, activity = figure.subplots(1, 2)
        lengths.hist(found.norms, bins=min(40, max(5, len(self) // 8)), color=plots.BLUE)
        plots.lines(lengths, xlabel=f"norm of {self.layer}", ylabel="pictures")
        share = np.sort(found.active)[::-1] / max(1, len(self))
        shown = np.unique(np.linspace(0, self.dim - 1, 300).round().astype(int))
        activity.fill_between(shown, 100 * share[shown], color=plots.SKY, linewidth=0)
        activity.set_ylim(0, 102)
        activity.margins(x=0)
        plots.lines(
            activity, xlabel="units, most often active first", ylabel="active on (% of pictures)"
        )
        return figure


_ID_COLUMNS = ("row", "path", "class", "width", "height")


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


def write_ids(path: Path, pictures: Pictures, sizes: Sequence[tuple[int, int]]) -> None:
    """Write ids.csv."""
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(_ID_COLUMNS)
        for row, (name, label, size) in enumerate(
            zip(pictures.paths, pictures.folders, sizes, strict=True)
        ):
            writer.writerow((row, name, label, *size))


def _place(store: Store, number: int, target: Path) -> Shard:
    """Bring a shard into another folder: by a second name for the same file where that works."""
    assert store.folder is not None
    shard = store.shards[number]
    try:
        os.link(store.folder / shard.file, target / shard.file)
    except OSError:
        shutil.copyfile(store.folder / shard.file, target / shard.file)
    return shard


def open_store(folder: str | Path, *, data: str | Path | None = None, verify: bool = True) -> Store:
    """Read a store and check it.

    data: where its pictures are now, if they have moved since
    verify: compare every shard with its sha256 (reads all files once); False compares sizes only

    Raises UserError for a folder that is no store, and names the shard that is missing or damaged.
    """
    place = Path(folder)
    manifest = _read_manifest(place)
    try:
        shards = tuple(Shard(**entry) for entry in manifest["shards"])
        _check_shards(place, shards, int(manifest["dim"]), verify=verify)
        names, labels, sizes = _read_ids(place / "ids.csv")
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
            pooled=manifest["pooled"],
            pictures=_pictures(Path(data or source["root"]), names, labels),
            sizes=sizes,
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
    path: Path,
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[int, int], ...]]:
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return (
        tuple(line["path"] for line in lines),
        tuple(line["class"] for line in lines),
        tuple((int(line["width"]), int(line["height"])) for line in lines),
    )


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
    )
