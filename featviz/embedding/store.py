"""A store: the activations of a data set at one layer, on disk or in memory.

`featviz.embed` makes a store, `open_store` reads one from its folder (`files`); `blocks` streams
it, `take` reads single rows. Rows are in the data's order and remain on the disk: what is held in
memory is one name, class and size for each picture.
"""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from featviz import results, schema
from featviz.data.datasets import Pictures
from featviz.data.samples import SamplePictures, sample_pictures
from featviz.embedding.figures import draw_activity
from featviz.embedding.files import (
    EXPONENTS,
    IDS,
    LOCATION,
    SCHEMA,
    SKIPPED,
    Shard,
    ShardWriter,
    check_shards,
    check_tables,
    find_root,
    hash_file,
    id_columns,
    map_shard,
    read_exponents,
    read_ids,
    read_manifest,
    relative_root,
)
from featviz.embedding.pieces import restored
from featviz.embedding.reduction import How
from featviz.errors import UserError, public, visible
from featviz.models.receptive_field import ReceptiveField
from featviz.pictures import images
from featviz.pictures.preprocessing import Preprocessing, from_reading
from featviz.types import Precision
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_SAMPLES = sample_pictures(1).root
_SAME = ("layer", "dim", "precision", "decoder", "preparation", "class_names")
"""fields that the manifest has as they are"""
_HASHED = 10**9
"""bytes of shards up to which they are compared with their hashes whenever a store is opened"""


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
    """Activations of N pictures at one layer, as float16 rows, some with an exponent."""

    kind: ClassVar[str] = "embed"

    layer: str
    dim: int
    shape: tuple[int, ...]
    """of the layer: (C, H, W), (C,) or (tokens, C)"""
    reduced: How | None = "mean"
    """what of a map a row is: its mean, maximum, a random position, one of all, or the map itself;
    None for layers without positions"""
    positions: NDArray[np.int32] | None = None
    """(N, 2): the row and column of the map that each row was read at; None where it is of more"""
    of_picture: NDArray[np.int64] | None = None
    """(N,): which picture of the data set a row is of, where a picture has several rows"""
    receptive_field: ReceptiveField | None = None
    """what one position sees, where `positions` says which was read"""
    precision: Precision = "float32"
    """of the network"""
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
    """readable names of the class folders"""
    source: Mapping[str, Any]
    """the whole data set: name, count, sha256 of its list"""
    preparation: Mapping[str, Any]
    """how the pictures were read, see `Preprocessing.reading`"""
    shards: tuple[Shard, ...] = ()
    folder: Path | None = None
    """where the shards are; None for a store in memory"""
    memory: NDArray[np.float16] | None = None
    exponents: NDArray[np.int16] | None = None
    """(N,): the values of a row are its stored numbers * 2^e; None where all are 0"""
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
        return self.reduced == "mean" and len(self.shape) > 1

    @property
    def labels(self) -> tuple[str, ...]:
        """The class folder of each row, "" where there is none."""
        return self.pictures.folders

    def class_name(self, row: int) -> str:
        """The readable name of a row's class, "" where there is none."""
        label = self.labels[row]
        return visible(self.class_names.get(label, label))

    @property
    def digest(self) -> str:
        """A hash of the rows and of which picture each is of."""
        found = hashlib.sha256(repr([shard.sha256 for shard in self.shards]).encode())
        for values in (self.memory, self.exponents, self.of_picture):
            if values is not None:
                found.update(values.tobytes())
        return found.hexdigest()

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(shard.rows for shard in self.shards)])

    def blocks(self, size: int = 8192) -> Iterator[Tensor]:
        """The rows in order as float32 tensors of at most `size` x dim; memory stays bounded."""
        for start in range(0, len(self), size):
            # torch widens float16 ten times as fast as numpy
            yield torch.from_numpy(self.span(start, start + size)).float()

    def matrix(self) -> Tensor:
        """All rows as one float32 tensor (N, dim)."""
        return torch.cat(list(self.blocks())) if len(self) else torch.empty(0, self.dim)

    def take(self, rows: Sequence[int] | Tensor) -> Tensor:
        """Some rows as float32, (len(rows), dim), in the order given."""
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            bad = int(wanted[(wanted < 0) | (wanted >= len(self))][0])
            raise UserError(f"row {bad} is out of range: the store has rows 0 to {len(self) - 1}")
        return torch.from_numpy(self.gather(wanted)).float()

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        """Some rows (len(rows), dim), in the order given: float16, or float32 with exponents."""
        exponents = None if self.exponents is None else self.exponents[rows]
        return restored(self._gathered(rows), exponents)

    def span(self, start: int, stop: int) -> NDArray[np.floating[Any]]:
        """Rows start to stop, as `gather`; nothing of them stays in memory."""
        exponents = None if self.exponents is None else self.exponents[start:stop]
        return restored(self._spanned(start, stop), exponents)

    def _gathered(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        if self.memory is not None:
            return self.memory[rows]
        taken = np.empty((rows.size, self.dim), dtype=np.float16)
        holder = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(holder):
            here = np.flatnonzero(holder == number)
            # Mapped anew each time: pages of a mapping that stays would stay in memory.
            taken[here] = self._map(int(number))[rows[here] - self._starts[number]]
        return taken

    def _map(self, number: int) -> NDArray[np.float16]:
        assert self.folder is not None
        return map_shard(self.folder / self.shards[number].file)

    def _spanned(self, start: int, stop: int) -> NDArray[np.float16]:
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

        At the model's size; gray where it reaches beyond the picture.
        Raises UserError if rows are not of single positions, or their field is not known.
        """
        if self.positions is None or self.receptive_field is None:
            raise UserError(
                f"{self.title} is not of single positions whose receptive field is known; "
                "embed a convolutional layer with position random"
            )
        y, x = (int(i) for i in self.positions[row])
        picture = self.pictures.read(row, self.preprocessing)
        return images.crop_box(images.visible(picture), self.receptive_field.box(y, x))

    @property
    def preprocessing(self) -> Preprocessing:
        """How the pictures were read."""
        return from_reading(self.preparation)

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
        inactive = int((found.active == 0).sum())
        shown = {
            "rows": results.Number(len(self), "", self._rows_in_words()),
            "dim": results.Number(self.dim, "", f"units of {self.layer}"),
            "zeros": results.Number(found.zeros, "fraction", "of all values are exactly zero"),
            "mean norm": results.Number(float(found.norms.mean()), "", "Euclidean length of a row"),
            "inactive units": results.Number(
                inactive, "", "units above zero on none of the pictures"
            ),
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

    def _rows_in_words(self) -> str:
        if self.of_picture is None:
            return "pictures in the store"
        return f"positions of {counted(len(np.unique(self.of_picture)), 'picture')}"

    def write(self, folder: results.Folder) -> None:
        shards: Sequence[Shard] = self.shards
        if self.memory is None:
            assert self.folder is not None
            for shard in shards:
                _link(self.folder / shard.file, folder.path / shard.file)
        else:
            writer = ShardWriter(folder.path, len(self), self.dim)
            writer.add(self.memory)
            shards = writer.shards
        folder.figure(
            "activity.svg",
            self.plot(),
            caption="Left: Euclidean length of the rows. Right: on which share of the pictures a "
            "unit is above zero, units sorted by it.",
            alt="Histogram of row norms and sorted curve of how often units are active",
        )
        if self.exponents is not None:
            np.save(folder.path / EXPONENTS, self.exponents.astype("<i2"))
        if self._root(folder.final) is None:
            text = f"{os.path.abspath(self.pictures.root)}\n"
            (folder.path / LOCATION).write_text(text, encoding="utf-8", errors="surrogateescape")
        manifest = schema.sealed(results.plain(self._manifest(folder, shards)))
        results.write_json(folder.path / "manifest.json", manifest)

    def tables(self) -> Iterator[results.Table]:
        columns = id_columns(self.positions is not None, self.of_picture is not None)
        yield results.Table(
            IDS, columns, self._id_rows(), caption="The picture of each row.", parquet=True
        )
        yield results.Table(
            SKIPPED, ("path", "reason"), self.skipped, caption="What could not be read."
        )

    def _id_rows(self) -> Iterator[tuple[Any, ...]]:
        more = [self.positions, None if self.of_picture is None else self.of_picture[:, None]]
        numbers = np.hstack([self.sizes, *(values for values in more if values is not None)])
        names = zip(self.pictures.paths, self.labels, numbers, strict=True)
        return ((row, path, label, *found) for row, (path, label, found) in enumerate(names))

    def _root(self, final: Path) -> str | None:
        """How a store in a folder names the place of its pictures."""
        root = self.pictures.root
        # Samples and tensors are nowhere on the disk.
        return relative_root(root, final) if root.exists() else str(root)

    def _manifest(self, folder: results.Folder, shards: Sequence[Shard]) -> dict[str, Any]:
        """The document that makes a folder a store; it holds nothing that changes with time."""
        return {
            "schema": SCHEMA,
            "model": self.origin.model,
            **{name: getattr(self, name) for name in _SAME},
            "shape": self.shape,
            "position": self.reduced if len(self.shape) > 1 else None,
            "several": self.of_picture is not None,
            "seed": self.origin.seed if self.positions is not None else None,
            "receptive_field": asdict(self.receptive_field) if self.receptive_field else None,
            "drift": self.drift._asdict() if self.drift else None,
            "dtype": "float16",
            "rows": len(self),
            "exponents": None if self.exponents is None else hash_file(folder.path / EXPONENTS),
            "skipped": len(self.skipped),
            "data": {**self.source, "root": self._root(folder.final)},
            "shards": [shard._asdict() for shard in shards],
            "tables": {name: hash_file(folder.path / name) for name in (IDS, SKIPPED)},
        }

    def plot(self) -> Figure:
        found = self.statistics
        return draw_activity(found.norms, found.active, layer=self.layer)


def _link(old: Path, new: Path) -> None:
    """Bring a shard to another place: by a second name for the same file where that works."""
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)


@public
def open_store(
    folder: str | Path, *, data: str | Path | None = None, verify: bool | None = None
) -> Store:
    """Read a store and check it. Rows remain on the disk until they are needed.

    Args:
        folder: The store's folder.
        data: Where its pictures are now, if they have moved since.
        verify: Compare every shard with its sha256 (reads all files once). False compares sizes
            only; None, the default, compares up to 1 GB of them.

    Raises:
        UserError: The folder is no store, or some shards are missing or damaged; all are named.
    """
    place = Path(folder)
    manifest = read_manifest(place)
    shards = tuple(Shard(**entry) for entry in manifest["shards"])
    if verify is None:
        verify = 2 * manifest["dim"] * manifest["rows"] <= _HASHED
    check_shards(place, shards, manifest["dim"], verify=verify)
    check_tables(place, manifest["tables"])
    chosen, several = manifest["position"] in {"random", "all"}, manifest["several"]
    try:
        names, labels, numbers = read_ids(place / IDS, chosen, several)
        with (place / SKIPPED).open(newline="", encoding="utf-8") as file:
            skipped = tuple(Left(*line) for line in list(csv.reader(file))[1:])
    except (OSError, TypeError, ValueError, OverflowError, csv.Error) as error:
        raise UserError(f"{place} is damaged ({error} in its tables); embed again") from None
    if not len(names) == manifest["rows"] == sum(shard.rows for shard in shards):
        raise UserError(
            f"{place / IDS} lists {len(names)} rows where the manifest has "
            f"{manifest['rows']}; embed again"
        )
    source = manifest["data"]
    root = Path(data) if data is not None else find_root(place, source["root"], source["name"])
    return Store(
        origin=_read_origin(place, manifest),
        **{name: manifest[name] for name in _SAME},
        shape=tuple(manifest["shape"]),
        reduced=manifest["position"],
        positions=numbers[:, 2:4] if chosen else None,
        of_picture=numbers[:, -1].astype(np.int64) if several else None,
        receptive_field=_read_field(manifest["receptive_field"]),
        drift=Drift(**manifest["drift"]) if manifest["drift"] else None,
        pictures=_pictures(root, names, labels),
        sizes=numbers[:, :2],
        skipped=skipped,
        source=source,
        shards=shards,
        exponents=read_exponents(place, manifest["exponents"], len(names)),
        folder=place,
    )


def _pictures(root: Path, names: tuple[str, ...], labels: tuple[str, ...]) -> Pictures:
    kind = SamplePictures if root == _SAMPLES else Pictures
    return kind(root, names, labels)


def _read_field(found: Mapping[str, Any] | None) -> ReceptiveField | None:
    if found is None:
        return None
    return ReceptiveField(**{name: tuple(pair) for name, pair in found.items()})


def _read_origin(place: Path, manifest: Mapping[str, Any]) -> results.Origin:
    if not (place / "result.json").exists():
        return results.Origin(manifest["model"], None, {}, None, "unknown", 0.0, "", None)
    return results.read_origin(place, manifest["model"], "embed again")
