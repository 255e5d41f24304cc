"""`embed(model, pictures)`: the activations of a data set at a layer, streamed into a store.

Work goes shard by shard (`shards`), here or on a cluster (`engine`). A shard is written whole and
renamed, and depends only on its own rows of the data set, so a run that was killed goes on behind
its last shard and ends with the same bytes. `embed_layers` reads several layers in one pass.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from featviz import decoding, images, results
from featviz import engine_old as engine
from featviz.datasets import Pictures, open_pictures
from featviz.decoding import Prepared
from featviz.embedding.positions import draw_positions
from featviz.embedding.shards import Job, Kept, as_stored, pool, read_note
from featviz.embedding.store import Drift, Shard, Store, shard_rows
from featviz.errors import UserError
from featviz.models.layers import activations
from featviz.models.precision import gains_by_bfloat16, has_bfloat16, in_bfloat16

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from featviz.models.model import Layer, Model

POSITIONS = ("mean", "random")
PRECISIONS = ("auto", "float32", "bfloat16")

_FEW = 10_000
"""pictures below which `precision="auto"` is float32: there is little time to gain"""
_SHARD_ROWS = 8192
"""rows of the largest shard, however narrow the layer: what is lost when a run is killed"""
_PROBED = 64
"""pictures on which the drift of a fast decoder is measured"""

_PASSIVE = ("Dropout", "Identity", "Flatten")
"""modules that change no value of a picture in eval mode"""

Progress = Callable[[int, int, str], None]


def embed(
    model: Model,
    pictures: Pictures | Tensor | str | Path,
    layer: str | None = None,
    *,
    out: str | Path | None = None,
    position: str = "mean",
    seed: int = 0,
    precision: str = "auto",
    decoder: str = "exact",
    engine: str = "here",
    labels: Sequence[str] | None = None,
    class_names: Mapping[str, str] | None = None,
    batch_size: int = 64,
    shard_bytes: int = 64 * 10**6,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Store:
    """The activations of every picture at one layer.

    pictures: a data set (or its path), or a tensor (N, 3, H, W) in [0, 1] with one of `labels` each
    layer: where to read. Default: relu7, which is what papers call the fc7 space (fc7 after its
        ReLU); "fc7" itself is the same before the ReLU. Models without these names are read at
        their last layer before the classes. Tokens are averaged over positions
    out: the store's folder. It is written beside its place and renamed; finished shards wait in
        `<out>.partial` and a second call with the same arguments goes on from there. None keeps
        everything in memory
    position: of a map (C, H, W): "mean" over all positions, or "random": one for each picture, as
        activation atlases take it, never at the border of a map wider than 2; `Store.positions`
        says which
    seed: of the random positions
    precision: "float32"; "bf16", about twice as fast on CPUs that compute in it, with
        neighbours that agree to 99% (docs/embedding.md); or "auto": bf16 on such a CPU for 10,000
        pictures and more
    decoder: "exact" (pillow's pixels), or "fast", which changes them a little where JPEGs are
        larger than the model needs; how far that moves the rows is measured and kept
    engine: "here", or "ray": the shards are made by a Ray cluster (needs `out`)
    class_names: how people call the class folders; default: the model's names, where it knows them
    batch_size: pictures a forward pass; the last bits of the result may depend on it
    shard_bytes: the largest shard, in bytes
    workers: threads that decode; default: one for each core

    Pictures that cannot be read are skipped, counted and listed. Values are rounded to float16.

    Returns a `Store`; `store.matrix()` is its (rows, dim) float32 tensor.
    Raises UserError for an unknown layer, no readable picture, values beyond float16, an existing
    `out` without `overwrite` and an `<out>.partial` that belongs to other arguments or pictures.
    """
    (store,) = _embed(
        model,
        pictures,
        [layer or default_layer(model)],
        _alone,
        out=out,
        position=position,
        seed=seed,
        precision=precision,
        decoder=decoder,
        engine=engine,
        labels=labels,
        class_names=class_names,
        batch_size=batch_size,
        shard_bytes=shard_bytes,
        workers=workers,
        overwrite=overwrite,
        progress=progress,
    )
    return store


def embed_layers(
    model: Model,
    pictures: Pictures | Tensor | str | Path,
    layers: Sequence[str],
    *,
    out: str | Path | None = None,
    position: str = "mean",
    seed: int = 0,
    precision: str = "auto",
    decoder: str = "exact",
    engine: str = "here",
    labels: Sequence[str] | None = None,
    class_names: Mapping[str, str] | None = None,
    batch_size: int = 64,
    shard_bytes: int = 64 * 10**6,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Store]:
    """The activations of every picture at several layers, decoded and run once.

    out: a folder that will hold one store for each layer, under the layer's name; whole or absent

    All else as in `embed`; the rows are those that `embed` gives for each layer alone.

    Returns the stores by layer. Raises UserError as `embed` does, and for a layer given twice.
    """
    stores = _embed(
        model,
        pictures,
        layers,
        _together,
        out=out,
        position=position,
        seed=seed,
        precision=precision,
        decoder=decoder,
        engine=engine,
        labels=labels,
        class_names=class_names,
        batch_size=batch_size,
        shard_bytes=shard_bytes,
        workers=workers,
        overwrite=overwrite,
        progress=progress,
    )
    return {store.layer: store for store in stores}


def embed_batch(
    model: Model, pictures: Tensor, layer: str, *, precision: str = "float32"
) -> Tensor:
    """Activations (N, units) of pictures (N, 3, S, S), as a store holds them: float16's numbers.

    precision: that of the store with which they are to be compared, "float32" or "bf16"

    Maps and tokens are averaged over positions. Returns float32 on the CPU.
    Raises UserError for values beyond float16.
    """
    place = model.layer(layer)
    pictures = pictures.to(model.device)
    with torch.inference_mode(), contextlib.ExitStack() as stack:
        fast = (
            stack.enter_context(in_bfloat16(model, pictures)) if precision == "bfloat16" else None
        )
        taken = activations(model, pictures, [layer], forward=fast)[layer]
        return as_stored(pool(taken, place), layer).float()


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

    @property
    def state(self) -> str:
        return hashlib.sha256(self.tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()

    def open(self, row: int) -> Image.Image:
        return images.to_pillow(self.tensor[int(self.paths[row])])

    def prepare(
        self, row: int, resize: int, crop: int | None = None, *, decoder: str = "exact"
    ) -> Prepared:
        tensor = self.tensor[int(self.paths[row])].detach().cpu()
        _, height, width = tensor.shape
        if (height, width) == (crop or resize, crop or resize):
            return Prepared(tensor.float(), (width, height))
        return super().prepare(row, resize, crop)


def _alone(out: Path, layer: str) -> Path:
    """The folder of a layer's store where it is the only one."""
    return out


def _together(out: Path, layer: str) -> Path:
    return out / layer


def _embed(
    model: Model,
    pictures: Pictures | Tensor | str | Path,
    layers: Sequence[str],
    folder_of: Callable[[Path, str], Path],
    *,
    out: str | Path | None,
    position: str,
    seed: int,
    precision: str,
    decoder: str,
    engine: str,
    labels: Sequence[str] | None,
    class_names: Mapping[str, str] | None,
    batch_size: int,
    shard_bytes: int,
    workers: int | None,
    overwrite: bool,
    progress: Progress | None,
) -> list[Store]:
    started = time.perf_counter()
    _check_arguments(position, precision, engine, batch_size, out, overwrite, folder_of)
    places = _places(model, layers, position)
    kind = decoding.resolve(decoder)
    data = _as_pictures(pictures, labels)
    low = _is_low(model, precision, len(data))
    job = Job(
        model,
        data,
        places,
        batch_size,
        position,
        seed,
        "bfloat16" if low else "float32",
        kind,
        workers or _cores(),
    )
    step = _step(places, shard_bytes, batch_size)
    spans = [range(start, min(start + step, len(data))) for start in range(0, len(data), step)]
    parts: list[_Part]
    partial: Path | None
    if out is None:
        # A store in memory is computed in the same pieces, so its values are those of the files.
        partial, new, parts = None, 0, []
        for span in spans:
            found, values = job.run(span, _of_all(progress, job, span))
            parts.append(_Part(found, values))
    else:
        partial = Path(f"{out}.partial")
        parts, new = _on_disk(job, spans, partial, engine, overwrite, progress)
    rows = np.concatenate([part.kept.rows for part in parts])
    if not rows.size:
        if partial is not None:
            shutil.rmtree(partial)
        raise UserError(f"none of the {len(data)} pictures of {data.root} could be read")

    drifts = _drifts(job) if kind != "exact" else {}
    seconds = time.perf_counter() - started
    kept = data if len(rows) == len(data) else data.select(rows.tolist())
    skipped = tuple(left for part in parts for left in part.kept.skipped)
    names = {f: model.class_name(c) for f, c in _known(model, data).items()} | dict(
        class_names or {}
    )
    source = {
        "name": data.name,
        "root": _root(data),
        "count": len(data),
        "sha256": data.sha256,
    }
    stores = []
    for number, place in enumerate(places):
        chosen = position == "random" and place.spatial
        stores.append(
            Store(
                origin=results.origin(
                    model,
                    parameters={
                        "layer": place.name,
                        "position": position,
                        "seed": seed,
                        "precision": precision,
                        "decoder": decoder,
                        "engine": engine,
                        "batch_size": batch_size,
                        "shard_bytes": shard_bytes,
                        "out": None if out is None else str(folder_of(Path(out), place.name)),
                    },
                    started=started,
                    data=data,
                    seed=seed if chosen else None,
                ),
                warnings=tuple(_doubts(model, place, len(skipped))),
                layer=place.name,
                dim=place.units,
                shape=place.shape,
                receptive_field=place.receptive_field if chosen else None,
                positions=draw_positions(seed, rows, *place.shape[1:]) if chosen else None,
                precision=job.precision,
                decoder=kind,
                drift=drifts.get(place.name),
                pictures=kept,
                sizes=np.concatenate([part.kept.sizes for part in parts]),
                skipped=skipped,
                class_names={f: names[f] for f in data.classes if f in names},
                source=source,
                preparation={"resize": model.resize, "crop": model.input_size},
                shards=tuple(p.shards[number] for p in parts if p.shards if len(p.kept.rows)),
                folder=partial,
                memory=None
                if partial is not None
                else np.concatenate([part.values[number] for part in parts]),
                pace=(new if partial is not None else len(rows)) / seconds or None,
            )
        )
    if out is None or partial is None:
        return stores
    return _save(stores, Path(out), folder_of, partial, overwrite)


def _check_arguments(
    position: str,
    precision: str,
    chosen: str,
    batch_size: int,
    out: str | Path | None,
    overwrite: bool,
    folder_of: Callable[[Path, str], Path],
) -> None:
    for name, value, known in (
        ("position", position, POSITIONS),
        ("precision", precision, PRECISIONS),
    ):
        if value not in known:
            raise UserError(f"unknown {name} {value!r}; take {', '.join(known)}")
    engine.check_engine(chosen)
    if chosen != "here" and out is None:
        raise UserError(f"engine {chosen} puts its shards in a folder; give --out")
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size} is too small; 1 or more")
    if out is not None:
        _check_out(Path(out), overwrite, folder_of)


def _check_out(out: Path, overwrite: bool, folder_of: Callable[[Path, str], Path]) -> None:
    """Raise UserError unless the store, or the folder of several, may be written there."""
    if folder_of is _alone or not out.is_dir() or not any(out.iterdir()):
        results.check_target(out, overwrite=overwrite)
        return
    if not all((inside / "manifest.json").is_file() for inside in out.iterdir()):
        raise UserError(f"{out} is not empty and not a folder of stores; choose another --out")
    if not overwrite:
        raise UserError(f"{out} exists; add --overwrite or choose another --out")


def _places(model: Model, layers: Sequence[str], position: str) -> tuple[Layer, ...]:
    if not layers:
        raise UserError("no layer was named; name one or more")
    places = tuple(model.layer(name) for name in layers)
    for number, place in enumerate(places):
        if place in places[:number]:
            raise UserError(f"layer {place.name} is given twice; name each once")
    if position == "random":
        if not any(place.spatial for place in places):
            names = ", ".join(place.name for place in places)
            raise UserError(
                f"{names} has no map to take a random position from; name a convolutional layer, "
                "or leave --position out"
            )
        for place in places:
            if len(place.shape) == 2:
                raise UserError(
                    f"{place.name} has tokens, not rows and columns, so no random position; "
                    "leave --position out to average them"
                )
    return places


def _is_low(model: Model, precision: str, pictures: int) -> bool:
    if precision != "auto":
        return precision == "bfloat16"
    if pictures < _FEW or model.device.type != "cpu" or not has_bfloat16(model.device):
        return False
    return gains_by_bfloat16(model, torch.zeros(1, 3, model.input_size, model.input_size))


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _step(places: Sequence[Layer], shard_bytes: int, batch_size: int) -> int:
    """Rows of a shard; whole batches, so that what is run together does not depend on it."""
    step = min(_SHARD_ROWS, shard_rows(max(place.units for place in places), shard_bytes))
    return max(step - step % batch_size, min(step, batch_size))


def _as_pictures(
    pictures: Pictures | Tensor | str | Path, labels: Sequence[str] | None
) -> Pictures:
    if isinstance(pictures, Tensor):
        return in_memory(pictures, labels)
    if labels is not None:
        raise UserError("labels belong to a tensor of pictures; a data set has its class folders")
    data = open_pictures(pictures) if isinstance(pictures, str | Path) else pictures
    # Absolute, for workers of a cluster are somewhere else.
    return replace(data, root=data.root.absolute()) if data.files else data


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


@dataclass(frozen=True)
class _Part:
    """A finished shard: in memory, or as files."""

    kept: Kept
    values: Sequence[NDArray[np.float16]] = ()
    shards: Sequence[Shard] = ()


def _of_all(progress: Progress | None, job: Job, span: range) -> Callable[[int], None]:
    """From progress in a span to progress in the data set."""

    def report(done: int) -> None:
        if progress is not None:
            progress(span.start + done, len(job.data), _doing(job))

    return report


def _doing(job: Job) -> str:
    return f"embedding {', '.join(place.name for place in job.places)}"


def _on_disk(
    job: Job,
    spans: Sequence[range],
    partial: Path,
    chosen: str,
    overwrite: bool,
    progress: Progress | None,
) -> tuple[list[_Part], int]:
    """All shards as files in `partial`, and how many rows are new."""
    work = [engine.Shard(f"{number:05}", span, len(span)) for number, span in enumerate(spans)]

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total, _doing(job))

    with _open_partial(partial, job, spans, overwrite):
        names = [shard.name for shard in work]
        finished = {name for name in names if _read(partial / name, job, discard=True)}
        engine.map_shards(
            job,
            work,
            partial,
            engine=chosen,
            gpus=int(job.model.device.type == "cuda"),
            progress=report,
        )
        parts = []
        new = 0
        for shard in work:
            part = _read(partial / shard.name, job)
            if part is None:
                raise UserError(f"{partial / shard.name} was changed meanwhile; start again")
            parts.append(part)
            new += len(part.kept.rows) * (shard.name not in finished)
        return parts, new


def _read(folder: Path, job: Job, *, discard: bool = False) -> _Part | None:
    """A finished shard, or None if it is not there or not whole."""
    note = read_note(folder, len(job.places))
    if note is None:
        if discard:
            shutil.rmtree(folder, ignore_errors=True)
        return None
    kept, hashes = note
    return _Part(
        kept,
        shards=[
            Shard(f"{folder.name}/{number}.npy", len(kept.rows), digest)
            for number, digest in enumerate(hashes)
        ],
    )


@contextlib.contextmanager
def _open_partial(
    partial: Path, job: Job, spans: Sequence[range], overwrite: bool
) -> Iterator[None]:
    """The folder of finished shards; it stays unless nothing was finished."""
    wanted = _fingerprint(job, spans)
    threads = torch.get_num_threads()
    note = partial / "job.json"
    try:
        found = _read_job(note)
        if found is None and partial.exists() and any(partial.iterdir()):
            raise UserError(f"{partial} is in the way and not ours; move it or change --out")
        if found is not None and found["job"] != wanted:
            if not overwrite:
                raise UserError(_other_job(partial, found["job"], wanted))
            shutil.rmtree(partial)
            found = None
        if found is None:
            partial.mkdir(parents=True, exist_ok=True)
            # Kernels may round by the number of threads: a run goes on with those it began with.
            results.write_json(note, {"job": wanted, "threads": threads})
        else:
            torch.set_num_threads(int(found["threads"]))
            for left in partial.glob(".*"):  # what a killed run was writing
                shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise results.cannot_write(partial, error) from None
    try:
        yield
    except BaseException:
        if not any(partial.glob("[0-9]*")):  # nothing to go on from
            shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        torch.set_num_threads(threads)


def _read_job(note: Path) -> dict[str, Any] | None:
    """What a folder of shards says of itself; None if it is none, or was killed when it began."""
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if isinstance(found, dict) and {"job", "threads"} <= found.keys():
        return found
    if not any(note.parent.glob("[0-9]*")):  # killed while it was written, before any shard
        note.unlink()
        return None
    raise UserError(f"{note} is damaged; remove {note.parent} or choose another --out")


def _fingerprint(job: Job, spans: Sequence[range]) -> dict[str, Any]:
    """What must be the same for finished shards to be of use."""
    versions = results.versions()
    described = {
        "model": job.model.sha256,
        "layers": [place.name for place in job.places],
        "pictures": job.data.sha256,
        "files": job.data.state,
        "resize": job.model.resize,
        "crop": job.model.input_size,
        "batch_size": job.batch_size,
        "shard_rows": len(spans[0]),
        "position": job.position,
        "seed": job.seed if job.position == "random" else None,
        "precision": job.precision,
        "decoder": job.decoder,
        "device": job.model.device.type,
        "featviz": versions["featviz"],
        "torch": versions["torch"],
    }
    plain: dict[str, Any] = json.loads(json.dumps(described))
    return plain


def _other_job(partial: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The line for shards that cannot be gone on with: the first thing in which two jobs differ."""
    name = next(key for key in wanted if found.get(key) != wanted[key])
    words = {
        "model": "other weights",
        "pictures": "another list of pictures",
        "files": "the picture files have changed since",
    }
    why = words.get(name, f"{name} {found.get(name)}, now {wanted[name]}")
    return (
        f"{partial} holds the unfinished shards of another job ({why}); give that command again "
        "to finish it, or add --overwrite to begin anew"
    )


def _drifts(job: Job) -> dict[str, Drift]:
    """How far a fast decoder moves the rows of a sample from those of exact pixels."""
    sample = job.data.spread(_PROBED)
    whole = range(len(sample))
    fast = replace(job, data=sample, position="mean").run(whole)
    exact = replace(job, data=sample, position="mean", decoder="exact").run(whole)
    both = np.intersect1d(fast[0].rows, exact[0].rows)
    drifts = {}
    for place, one, other in zip(job.places, fast[1], exact[1], strict=True):
        a = torch.from_numpy(one[np.searchsorted(fast[0].rows, both)]).double()
        b = torch.from_numpy(other[np.searchsorted(exact[0].rows, both)]).double()
        away = 1 - F.cosine_similarity(a, b)
        drifts[place.name] = Drift(len(both), float(away.mean()), float(away.max()))
    return drifts


def _save(
    stores: Sequence[Store],
    out: Path,
    folder_of: Callable[[Path, str], Path],
    partial: Path,
    overwrite: bool,
) -> list[Store]:
    """Write the stores, all or none, and remove the shards that they were made of."""
    _check_out(out, overwrite, folder_of)
    # Inside the folder of shards, where the next run clears away what a killed one leaves.
    ready = partial / ".ready"
    for store in stores:
        store.save(folder_of(ready, store.layer))
    with results.whole(out) as beside:
        beside.rmdir()
        ready.rename(beside)
    shutil.rmtree(partial)
    return [
        replace(store, folder=folder_of(out, store.layer), shards=tuple(store.numbered()))
        for store in stores
    ]
