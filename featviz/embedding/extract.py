"""`embed(model, pictures)`: the activations of a data set at one layer, streamed into a store.

Work goes shard by shard. A shard is written whole and renamed, and depends only on its own rows of
the data set, so a run that was stopped goes on behind its last shard and ends with the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from featviz import images, results
from featviz.datasets import Pictures, Skipped, batches, open_pictures
from featviz.embedding.store import Left, Shard, Store, hash_file, shard_rows, write_shard
from featviz.errors import UserError
from featviz.models.layers import activations

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from featviz.models.layers import Layer
    from featviz.models.load import Model

LARGEST = 65504.0
"""the largest number that float16 holds"""

_PASSIVE = ("Dropout", "Identity", "Flatten")
"""modules that change no value of a picture in eval mode"""


def embed(
    model: Model,
    pictures: Pictures | Tensor | str | Path,
    layer: str | None = None,
    *,
    out: str | Path | None = None,
    labels: Sequence[str] | None = None,
    class_names: Mapping[str, str] | None = None,
    batch_size: int = 64,
    shard_bytes: int = 64 * 10**6,
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Store:
    """The activations of every picture at one layer.

    pictures: a data set (or its path), or a tensor (N, 3, H, W) in [0, 1] with one of `labels` each
    layer: where to read. Default: relu7, which is what papers call the fc7 space (fc7 after its
        ReLU); "fc7" itself is the same before the ReLU. Models without these names are read at
        their last layer before the classes. Maps (C, H, W) and tokens are averaged over positions
    out: the store's folder. It is written beside its place and renamed; finished shards wait in
        `<out>.partial` and a second call with the same arguments goes on from there. None keeps
        everything in memory
    class_names: how people call the class folders; default: the model's names, where it knows them
    batch_size: pictures a forward pass; the last bits of the result may depend on it
    shard_bytes: the largest shard, in bytes

    Pictures that cannot be read are skipped, counted and listed. Values are rounded to float16.

    Returns a `Store`; `store.matrix()` is its (rows, dim) float32 tensor.
    Raises UserError for an unknown layer, no readable picture, values beyond float16 and an
    existing `out` without `overwrite`.
    """
    started = time.perf_counter()
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size} is too small; 1 or more")
    if out is not None:
        results.check_target(out, overwrite=overwrite)
    place = model.layer(layer or default_layer(model))
    data = _as_pictures(pictures, labels)
    step = shard_rows(place.units, shard_bytes)
    # A store in memory is computed in the same pieces, so its values are those of the files.
    spans = [range(start, min(start + step, len(data))) for start in range(0, len(data), step)]
    job = _Job(model, data, place, batch_size, progress)
    partial = None if out is None else _open_partial(Path(f"{out}.partial"), job, step)

    finished: list[tuple[_Kept, Shard | None, NDArray[np.float16] | None]] = []
    new = 0
    for number, span in enumerate(spans):
        if partial is None:
            kept, rows = job.run(span)
            finished.append((kept, None, rows))
        else:
            done = _read_finished(partial, number)
            if done is None:
                kept, rows = job.run(span)
                done = kept, _write_finished(partial, number, kept, rows)
                new += len(kept.rows)
            finished.append((*done, None))
    kept_rows = [row for kept, _, _ in finished for row in kept.rows]
    if not kept_rows:
        raise UserError(f"none of the {len(data)} pictures of {data.root} could be read")

    seconds = time.perf_counter() - started
    skipped = tuple(left for kept, _, _ in finished for left in kept.skipped)
    names = {f: model.class_name(c) for f, c in _known(model, data).items()} | dict(
        class_names or {}
    )
    store = Store(
        origin=results.origin(
            model,
            parameters={
                "layer": place.name, "batch_size": batch_size, "shard_bytes": shard_bytes,
                "out": None if out is None else str(out),
            },
            started=started,
            data=data,
        ),
        warnings=tuple(_doubts(model, place, len(skipped))),
        layer=place.name,
        dim=place.units,
        pooled=len(place.shape) > 1,
        pictures=data.select(kept_rows),
        sizes=tuple(size for kept, _, _ in finished for size in kept.sizes),
        skipped=skipped,
        class_names={f: names[f] for f in data.classes if f in names},
        source={
            "name": data.name, "root": _root(data), "count": len(data),
            "sha256": data.sha256,
        },
        preparation={"resize": model.resize, "crop": model.input_size},
        shards=tuple(shard for _, shard, _ in finished if shard is not None and shard.rows),
        folder=partial,
        memory=np.concatenate([r for _, _, r in finished if r is not None])
        if partial is None
        else None,
        pace=(new if partial is not None else len(kept_rows)) / seconds or None,
    )  # fmt: skip
    if out is None or partial is None:
        return store
    store.save(out, overwrite=overwrite)
    shutil.rmtree(partial)
    return replace(store, folder=Path(out))


def embed_batch(model: Model, pictures: Tensor, layer: str) -> Tensor:
    """Activations (N, units) of pictures (N, 3, S, S), as a store holds them: float16's numbers.

    Maps and tokens are averaged over positions. Returns float32 on the CPU.
    Raises UserError for values beyond float16.
    """
    place = model.layer(layer)
    with torch.inference_mode():
        taken = activations(model, pictures.to(model.device), [layer])[layer]
        values = pool(taken, place).float().cpu()
    if not torch.isfinite(values).all() or values.abs().max() > LARGEST:
        raise UserError(
            f"{layer} has values up to {values.abs().max():.3g}, more than float16 holds "
            f"({LARGEST:.0f}); the weights may be broken, or choose another layer"
        )
    return values.half().float()


def default_layer(model: Model) -> str:
    """relu7 where a model has it, else its last layer before the classes."""
    if "relu7" in model.aliases:
        return "relu7"
    classes = len(model.classes)
    inner = [
        layer
        for layer in model.layers.values()
        if layer.units != classes and layer.path and not layer.kind.startswith(_PASSIVE)
    ]
    if not inner:
        raise UserError(f"{model.name} has no layer before its classes; name one with --layer")
    return inner[-1].name


def in_memory(pictures: Tensor, labels: Sequence[str] | None = None) -> Pictures:
    """A tensor of pictures (N, 3, H, W) in [0, 1] as a data set."""
    if pictures.dim() != 4 or pictures.shape[1] != 3 or not len(pictures):
        raise UserError(f"pictures are (N, 3, H, W) with N > 0, got {tuple(pictures.shape)}")
    labels = tuple(labels or [""] * len(pictures))
    if len(labels) != len(pictures):
        raise UserError(f"{len(labels)} labels for {len(pictures)} pictures; give one each")
    names = tuple(str(i) for i in range(len(pictures)))
    return _Tensors(Path("tensor"), names, labels, pictures)


@dataclass(frozen=True)
class _Tensors(Pictures):
    """Pictures that are in memory; a path is the number of a picture."""

    tensor: Tensor

    def open(self, row: int) -> Image.Image:
        return images.to_pillow(self.tensor[int(self.paths[row])])

    def read(self, row: int, resize: int, crop: int | None = None) -> Tensor:
        tensor = self.tensor[int(self.paths[row])].detach().cpu()
        exact = tensor.shape[1:] == (crop or resize, crop or resize)
        return tensor if exact else super().read(row, resize, crop)


def _as_pictures(
    pictures: Pictures | Tensor | str | Path, labels: Sequence[str] | None
) -> Pictures:
    if isinstance(pictures, Tensor):
        return in_memory(pictures, labels)
    if labels is not None:
        raise UserError("labels belong to a tensor of pictures; a data set has its class folders")
    return open_pictures(pictures) if isinstance(pictures, str | Path) else pictures


def _root(data: Pictures) -> str:
    """Where the pictures are, for later: samples and tensors are nowhere on the disk."""
    return os.path.abspath(data.root) if data.root.exists() else str(data.root)


def _known(model: Model, data: Pictures) -> dict[str, int]:
    """The model's class of each class folder that it knows."""
    found = {folder: model.find_class(folder) for folder in data.classes}
    return {folder: index for folder, index in found.items() if index is not None}


def _doubts(model: Model, place: Layer, skipped: int) -> list[str]:
    doubts = []
    order = list(model.layers.values())
    after = order[order.index(place) + 1 :]
    if place.kind in {"Linear", "Conv2d"} and after and after[0].kind == "ReLU":
        doubts.append(
            f"{place.name} is read before its ReLU; the space that papers name so is "
            f"{after[0].name}, behind it"
        )
    if skipped:
        doubts.append(f"{skipped} pictures could not be read (skipped.csv lists them)")
    return doubts


class _Kept(NamedTuple):
    """Which pictures of a span are in its shard."""

    rows: list[int]
    sizes: list[tuple[int, int]]
    skipped: list[Left]


@dataclass(frozen=True)
class _Job:
    """Everything that the rows of a shard depend on."""

    model: Model
    data: Pictures
    place: Layer
    batch_size: int
    progress: Callable[[int, int, str], None] | None

    def run(self, span: range) -> tuple[_Kept, NDArray[np.float16]]:
        """The float16 rows of a span of the data set, and which pictures they are."""
        part = _part(self.data, span)
        skipped: list[Skipped] = []
        rows: list[int] = []
        found: list[Tensor] = []
        stream = batches(
            part, resize=self.model.resize, crop=self.model.input_size,
            batch_size=self.batch_size, skipped=skipped,
        )  # fmt: skip
        try:
            for batch in stream:
                rows += batch.rows
                found.append(embed_batch(self.model, batch.images, self.place.name))
                self._report(span[batch.rows[-1]] + 1)
        except UserError:
            if len(skipped) < len(span):  # a shard may be empty, the store may not
                raise
        self._report(span[-1] + 1)
        kept = _Kept(
            [span[row] for row in rows],
            [part.sizes[row] for row in rows],
            [Left(left.path, left.reason) for left in skipped],
        )
        values = torch.cat(found) if found else torch.empty(0, self.place.units)
        return kept, values.half().numpy()  # exact: embed_batch has rounded

    def _report(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, len(self.data), f"embedding {self.place.name}")

    def fingerprint(self, step: int) -> dict[str, Any]:
        """What must be the same for finished shards to be of use."""
        return {
            "model": self.model.record(), "layer": self.place.name, "data": self.data.sha256,
            "resize": self.model.resize, "batch_size": self.batch_size, "shard_rows": step,
            "torch": torch.__version__,
        }  # fmt: skip


def pool(values: Tensor, place: Layer) -> Tensor:
    """Activations (N, C), (N, C, H, W) or (N, tokens, C) as (N, C): means over positions."""
    if values.dim() == 4:
        return values.mean((2, 3))
    if values.dim() == 3:
        return values.mean(1 if values.shape[2] == place.units else 2)
    return values


@dataclass(frozen=True)
class _Measuring(Pictures):
    """A span of a data set that remembers how large each picture was before it was resized."""

    whole: Pictures
    start: int
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)

    def read(self, row: int, resize: int, crop: int | None = None) -> Tensor:
        if isinstance(self.whole, _Tensors):
            tensor = self.whole.tensor[int(self.paths[row])]
            self.sizes[row] = (tensor.shape[2], tensor.shape[1])
            return self.whole.read(self.start + row, resize, crop)
        image = self.whole.open(self.start + row)
        self.sizes[row] = image.size
        return images.from_pillow(images.square(image, resize, crop))


def _part(data: Pictures, span: range) -> _Measuring:
    cut = slice(span.start, span.stop)
    return _Measuring(data.root, data.paths[cut], data.folders[cut], data, span.start)


def _open_partial(partial: Path, job: _Job, step: int) -> Path:
    """The folder of finished shards; emptied if they belong to another job."""
    fingerprint = job.fingerprint(step)
    note = partial / "job.json"
    try:
        try:
            same = json.loads(note.read_text(encoding="utf-8")) == fingerprint
        except (FileNotFoundError, ValueError):
            same = False
        if partial.exists() and not same:
            if not note.is_file() and any(partial.iterdir()):
                raise UserError(f"{partial} is in the way and not ours; move it or change --out")
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        results.write_json(note, fingerprint)
    except OSError as error:
        raise results.cannot_write(partial, error) from None
    return partial


def _write_finished(partial: Path, number: int, kept: _Kept, rows: NDArray[np.float16]) -> Shard:
    """Save a shard; its note comes last and says that it is there."""
    try:
        shard = write_shard(partial / f"shard-{number:05}.npy", rows)
        beside = partial / f".shard-{number:05}.json"
        results.write_json(beside, {"shard": shard._asdict(), "kept": kept._asdict()})
        beside.replace(partial / f"shard-{number:05}.json")
    except OSError as error:
        if not any(partial.glob("shard-*.json")):  # nothing finished, nothing to go on from
            shutil.rmtree(partial, ignore_errors=True)
        raise results.cannot_write(partial, error) from None
    return shard


def _read_finished(partial: Path, number: int) -> tuple[_Kept, Shard] | None:
    """A shard of an earlier run, or None if it is not there or not whole."""
    try:
        note = json.loads((partial / f"shard-{number:05}.json").read_text(encoding="utf-8"))
        shard = Shard(**note["shard"])
        if hash_file(partial / shard.file) != shard.sha256:
            return None
        kept = note["kept"]
        return _Kept(
            kept["rows"],
            [(width, height) for width, height in kept["sizes"]],
            [Left(*left) for left in kept["skipped"]],
        ), shard
    except (OSError, ValueError, KeyError, TypeError):
        return None
