"""`embed(model, pictures)`: the activations of a data set at a layer, streamed into a store.

Work goes piece by piece (`pieces`), here or on a cluster (`engine`), into a checkpoint; at the end
the pieces are joined into the shards of a store. A piece depends only on its own rows of the data
set, so a run that was stopped goes on behind its last piece and ends with the same bytes.
`embed_layers` reads several layers in one pass.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from featviz import folders, results
from featviz.arguments import Bounds
from featviz.checkpoints import (
    Arrays,
    Checkpoint,
    announce_result,
    open_checkpoint,
    partial_folder,
    remove_checkpoint,
)
from featviz.data.datasets import Pictures
from featviz.data.from_python import Data, Labels, as_pictures
from featviz.embedding.files import SHARD_BYTES, ShardWriter
from featviz.embedding.pieces import Rows, as_stored, exponents_of, restored
from featviz.embedding.reduction import Reduction, pool
from featviz.embedding.store import Drift, Left, Store
from featviz.engine import Piece, map_pieces
from featviz.errors import UserError, public
from featviz.models.layers import activations
from featviz.models.model import Layer, Model
from featviz.models.precision import choose_precision, gains_by_bfloat16, in_precision
from featviz.pictures import decoding
from featviz.types import AutoPrecision, BatchSize, Engine, Precision, Progress, Seed, WorkerCount
from featviz.wording import unread

if TYPE_CHECKING:
    from numpy.typing import NDArray

Position = Literal["mean", "max", "random"]
Positions = Annotated[int, Bounds(1, 10_000)] | Literal["all"]
"""how many random positions of a map, or all"""
Decoder = Literal["exact", "fast"]

_FEW = 10_000
"""pictures below which `precision="auto"` is float32: there is little time to gain"""
_PIECE_ROWS = {"cpu": 256, "cuda": 2048}
"""rows of a piece at most"""
_PIECE_MACS = 1e12
"""multiplications of a piece at most, half a minute of two cores"""
_JOINED = ".joined.part"
"""a folder within a checkpoint, which a later run clears away"""
_PROBED = 64
"""pictures on which the drift of a fast decoder is measured"""

_PASSIVE = ("Dropout", "Identity", "Flatten")
"""modules that change no value of a picture in eval mode"""


@dataclass(frozen=True)
class _Options:
    """The options that `embed` and `embed_layers` share, checked."""

    out: str | Path | None
    reduction: Reduction
    precision: AutoPrecision
    decoder: Decoder
    engine: Engine
    class_names: Mapping[str, str] | None
    batch_size: int
    shard_bytes: int
    workers: int | None
    overwrite: bool
    progress: Progress | None


@public
def embed(
    model: Model,
    pictures: Data,
    layer: str | None = None,
    *,
    out: str | Path | None = None,
    position: Position = "mean",
    positions: Positions | None = None,
    seed: Seed = 0,
    precision: AutoPrecision = "auto",
    decoder: Decoder = "exact",
    engine: Engine = "here",
    labels: Labels | None = None,
    class_names: Mapping[str, str] | None = None,
    batch_size: BatchSize = 64,
    shard_bytes: Annotated[int, Bounds(1, 2**40)] = SHARD_BYTES,
    workers: WorkerCount | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Store:
    """The activations of every picture at one layer.

    Pictures that cannot be read are skipped, counted and listed. Values are rounded to float16
    (with an exponent for rows that it does not hold as they are).

    Args:
        model: The network.
        pictures: A data set (or its path), or a tensor (N, 3, H, W) in [0, 1].
        layer: Where to read. Default: relu7, which is what papers call the fc7 space (fc7 after
            its ReLU); "fc7" itself is the same before the ReLU. Models without these names are
            read at their last layer before the classes. Tokens are averaged over positions.
        out: The store's folder. Finished pieces are kept in `<out>.partial`, and a second call with
            the same arguments goes on from there. None keeps everything in memory.
        position: Of a map (C, H, W): "mean" or "max" over all positions, or "random": one of them,
            as activation atlases take it, never at the border of a map wider than 2;
            `Store.positions` says which.
        positions: Several rows a picture: so many different random positions of its map, or "all".
            `Store.of_picture` says which picture a row belongs to.
        seed: Of the random positions.
        precision: "float32"; "bfloat16", about twice as fast on CPUs that compute in it, with
            neighbors that agree to 99% (docs/embedding.md); or "auto": bfloat16 on such a CPU for
            10,000 pictures and more.
        decoder: "exact" (pillow's pixels), or "fast", which changes them a little where JPEGs are
            larger than the model needs; how far that moves the rows is measured and kept.
        engine: "here", or "ray": the pieces are made by a Ray cluster.
        labels: A class for each picture; default: those of the data.
        class_names: Readable names of the class folders. Default: the model's, where it has them.
        batch_size: Pictures a forward pass; the last bits of the result may depend on it.
        shard_bytes: The largest file of rows, in bytes.
        workers: Threads that decode. Default: one for each core.
        overwrite: Replace an existing store.
        progress: Called with (pictures done, all pictures, text).

    Returns:
        A `Store`; `store.matrix()` is its (rows, dim) float32 tensor.

    Raises:
        UserError: Unknown layer, no readable picture, values that are not finite, an existing `out`
            without `overwrite`, or an `<out>.partial` that belongs to other arguments or pictures.

    Example:
        >>> store = featviz.embed(model, "photographs", "relu7", out="run/relu7")
    """
    options = _Options(
        out,
        _reduction(position, positions, seed),
        precision,
        decoder,
        engine,
        class_names,
        batch_size,
        shard_bytes,
        workers,
        overwrite,
        progress,
    )
    if out is not None:
        folders.check_target(out, overwrite=overwrite)
    name = model.layer(layer or default_layer(model)).name
    (store,) = _embed(model, as_pictures(pictures, labels, model=model), {name: Path()}, options)
    return store


@public
def embed_layers(
    model: Model,
    pictures: Data,
    layers: Sequence[str],
    *,
    out: str | Path | None = None,
    position: Position = "mean",
    positions: Positions | None = None,
    seed: Seed = 0,
    precision: AutoPrecision = "auto",
    decoder: Decoder = "exact",
    engine: Engine = "here",
    labels: Labels | None = None,
    class_names: Mapping[str, str] | None = None,
    batch_size: BatchSize = 64,
    shard_bytes: Annotated[int, Bounds(1, 2**40)] = SHARD_BYTES,
    workers: WorkerCount | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Store]:
    """The activations of every picture at several layers, decoded and run once.

    Args:
        model: The network.
        pictures: As in `embed`, like all options that are not listed here.
        layers: Where to read; each once.
        out: A folder that will hold one store for each layer, under the layer's name; whole or
            absent.

    Returns:
        The stores by layer; the rows are those that `embed` gives for each layer alone.

    Raises:
        UserError: As in `embed`, and for a layer given twice.
    """
    return embed_reduced(
        model,
        pictures,
        layers,
        _reduction(position, positions, seed),
        out=out,
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


def embed_reduced(
    model: Model,
    pictures: Data,
    layers: Sequence[str],
    reduction: Reduction,
    *,
    out: str | Path | None,
    precision: AutoPrecision = "float32",
    decoder: Decoder = "exact",
    engine: Engine = "here",
    labels: Labels | None = None,
    class_names: Mapping[str, str] | None = None,
    batch_size: int = 64,
    shard_bytes: int = SHARD_BYTES,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Store]:
    """`embed_layers` for any reduction."""
    options = _Options(
        out,
        reduction,
        precision,
        decoder,
        engine,
        class_names,
        batch_size,
        shard_bytes,
        workers,
        overwrite,
        progress,
    )
    if out is not None:
        _check_folder_of_stores(Path(out), overwrite)
    names = [model.layer(name).name for name in layers]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UserError(f"layer {name} is given twice; name each once")
    if not names:
        raise UserError("no layer was named; name one or more")
    data = as_pictures(pictures, labels, model=model)
    stores = _embed(model, data, {name: Path(results.file_stem(name)) for name in names}, options)
    return {store.layer: store for store in stores}


def embed_batch(
    model: Model, pictures: Tensor, layer: str, *, precision: Precision = "float32"
) -> Tensor:
    """Activations of pictures as a store holds them: float16's numbers, means over positions.

    Args:
        model: The network.
        pictures: (N, 3, S, S) in [0, 1].
        layer: Where to read.
        precision: That of the store with which they are to be compared.

    Returns:
        (N, units) float32 on the CPU.

    Raises:
        UserError: Values that are not finite.
    """
    pictures = pictures.to(model.device)
    with torch.inference_mode(), in_precision(model, precision) as forward:
        taken = activations(model, pictures, [layer], forward=forward)[layer]
        rows = restored(*as_stored(pool(taken, model.layer(layer)), layer))
        return torch.from_numpy(rows).float()


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


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_folder_of_stores(out: Path, overwrite: bool) -> None:
    if not out.is_dir() or not any(out.iterdir()):
        folders.check_target(out, overwrite=overwrite)
    elif not all((inside / "manifest.json").is_file() for inside in out.iterdir()):
        raise UserError(f"{out} is not empty and not a folder of stores; choose another --out")
    elif not overwrite:
        raise UserError(f"{out} exists; add --overwrite or choose another --out")


def _reduction(position: Position, positions: Positions | None, seed: int) -> Reduction:
    if positions is None:
        return Reduction(position, seed=seed)
    if position == "max":
        raise UserError("position max is one row a picture; leave it out, or positions")
    return Reduction("all") if positions == "all" else Reduction("random", positions, seed)


def _embed(
    model: Model, data: Pictures, inside: Mapping[str, Path], options: _Options
) -> list[Store]:
    """The stores of the layers, by name, each at its place below `options.out`."""
    started = time.perf_counter()
    places = tuple(model.layer(name) for name in inside)
    options.reduction.check(places)
    if len({options.reduction.rows(place) for place in places}) > 1:
        raise UserError(
            f"{', '.join(inside)} have different numbers of positions, so no rows in common; take "
            "each layer alone"
        )

    def worthwhile() -> bool:
        return len(data) >= _FEW and gains_by_bfloat16(model, model.blank())

    rows = Rows(
        model,
        data,
        places,
        options.batch_size,
        options.reduction,
        choose_precision(options.precision, worthwhile),
        decoding.resolve(options.decoder),
        options.workers or _cores(),
    )
    step = _piece_rows(rows, options.shard_bytes)
    spans = (range(start, min(start + step, len(data))) for start in range(0, len(data), step))
    pieces = [Piece(f"rows-{span.start:08}", span, len(span)) for span in spans]
    partial = None if options.out is None else partial_folder(options.out)
    opened = open_checkpoint(
        partial, _job(rows, step), total=len(data), unit="rows", engine=options.engine
    )
    with opened as kept:
        map_pieces(
            rows,
            pieces,
            kept,
            device=model.device.type,
            progress=options.progress,
            text=f"embedding {', '.join(inside)}",
        )
        pace = (kept.done - kept.found) / (time.perf_counter() - started)
        found = _Found.of(kept, pieces)
        stores = []
        if len(found.rows):
            joined = _join(kept, pieces, rows, len(found.rows), options.shard_bytes)
            drifts = _drifts(rows) if rows.decoder != "exact" else {}
            stores = [
                replace(
                    _store(rows, place, found, options, started),
                    pace=pace or None,
                    drift=drifts.get(place.name),
                    **where,
                )
                for place, where in zip(places, joined, strict=True)
            ]
        if stores and options.out is not None:
            within = list(inside.values())
            stores = _save(stores, Path(options.out), within, kept, options.overwrite)
    if partial is not None:
        remove_checkpoint(partial)
    if not stores:
        raise UserError(f"no picture of {data.root} could be read")
    return stores


def _piece_rows(rows: Rows, shard_bytes: int) -> int:
    """Rows of a piece: whole batches, so that which pictures share a batch is fixed."""
    macs = sum(layer.macs for layer in rows.model.layers.values())
    most = min(
        _PIECE_ROWS.get(rows.model.device.type, 256),
        int(_PIECE_MACS / max(1, macs)),
        shard_bytes // (2 * max(map(rows.reduction.dim, rows.places)) * rows.per_picture),
    )
    return max(1, most // rows.batch_size) * rows.batch_size


def _job(rows: Rows, step: int) -> dict[str, Any]:
    """Everything that the pieces depend on."""
    return {
        "weights": rows.model.sha256,
        "layers": [place.name for place in rows.places],
        "list of pictures": rows.data.sha256,
        "content of the picture files": rows.data.state,
        **rows.model.preprocessing.reading(),
        "batch_size": rows.batch_size,
        "rows of a piece": step,
        "position": rows.reduction.how,
        "positions": rows.reduction.count,
        "seed": rows.reduction.seed if rows.reduction.how == "random" else None,
        "precision": rows.precision,
        "decoder": rows.decoder,
        "device": rows.model.device.type,
    }


class _Found(NamedTuple):
    """Which pictures could be read."""

    rows: NDArray[np.int64]
    """of the data set, (N,)"""
    sizes: NDArray[np.int32]
    """width and height, (N, 2)"""
    skipped: tuple[Left, ...]

    @classmethod
    def of(cls, kept: Checkpoint, pieces: Sequence[Piece]) -> _Found:
        rows, sizes, skipped = [], [], []
        for arrays in _read_all(kept, pieces):
            rows.append(arrays["rows"])
            sizes.append(arrays["sizes"])
            skipped += [Left(*left) for left in arrays["skipped"].tolist()]
        return cls(np.concatenate(rows), np.concatenate(sizes), tuple(skipped))


def _read_all(kept: Checkpoint, pieces: Sequence[Piece]) -> Iterator[Arrays]:
    for piece in pieces:
        arrays = kept.read(piece.name)
        if arrays is None:
            raise UserError(f"{piece.name} in {kept.folder} was changed meanwhile; start again")
        yield arrays


def _join(
    kept: Checkpoint, pieces: Sequence[Piece], rows: Rows, count: int, shard_bytes: int
) -> list[dict[str, Any]]:
    """Where the rows of each layer are: in shards made of the pieces, or in memory."""
    layers = range(len(rows.places))
    if kept.folder is None:
        every = list(_read_all(kept, pieces))
        return [
            {
                "memory": np.concatenate([arrays[str(n)] for arrays in every]),
                "exponents": _exponents(every, n),
            }
            for n in layers
        ]
    folder = kept.folder / _JOINED
    shutil.rmtree(folder, ignore_errors=True)
    try:
        writers = [
            ShardWriter(folder / str(n), count, rows.reduction.dim(place), limit=shard_bytes)
            for n, place in enumerate(rows.places)
        ]
        for arrays in _read_all(kept, pieces):
            for n, writer in enumerate(writers):
                writer.add(arrays[str(n)])
    except OSError as error:
        raise folders.cannot_write(folder, error) from None
    return [
        {
            "folder": writer.folder,
            "shards": tuple(writer.shards),
            "exponents": _exponents(_read_all(kept, pieces), n),
        }
        for n, writer in enumerate(writers)
    ]


def _exponents(every: Iterable[Arrays], number: int) -> NDArray[np.int16] | None:
    """The exponents of a layer's rows, (N,); None where all are 0."""
    found = np.concatenate([arrays[exponents_of(number)] for arrays in every])
    return found if found.any() else None


def _store(rows: Rows, place: Layer, found: _Found, options: _Options, started: float) -> Store:
    """The store of a layer without its rows."""
    model, data = rows.model, rows.data
    reduction, several = rows.reduction, rows.per_picture > 1
    at = reduction.positions(place, found.rows[:: rows.per_picture])
    whole = len(found.rows) == len(data) and not several
    kept = data if whole else data.select(found.rows.tolist())
    classes = {name: model.find_class(name) for name in data.classes}
    names = {name: model.class_name(c) for name, c in classes.items() if c is not None}
    names |= options.class_names or {}
    recorded = ("precision", "decoder", "engine", "batch_size", "shard_bytes")
    parameters = {
        "layer": place.name,
        "position": reduction.how,
        "positions": reduction.count if reduction.how == "random" else None,
        "seed": reduction.seed,
        **{name: getattr(options, name) for name in recorded},
    }
    return Store(
        origin=results.origin(
            model,
            parameters=parameters,
            started=started,
            data=data,
            seed=reduction.seed if at is not None else None,
        ),
        warnings=(
            *data.label_report(model).ambiguities,
            *_warnings(model, place, len(found.skipped)),
            *data.left_out.notes,
        ),
        layer=place.name,
        dim=reduction.dim(place),
        shape=place.shape,
        reduced=reduction.how if len(place.shape) > 1 else None,
        receptive_field=place.receptive_field if at is not None else None,
        positions=at,
        of_picture=found.rows if several else None,
        precision=rows.precision,
        decoder=rows.decoder,
        pictures=kept,
        sizes=found.sizes,
        skipped=found.skipped,
        class_names={name: names[name] for name in data.classes if name in names},
        source={
            "name": data.name,
            "count": len(data),
            "sha256": data.sha256,
        },
        preparation=model.preprocessing.reading(),
    )


def _warnings(model: Model, place: Layer, skipped: int) -> list[str]:
    warnings = []
    order = list(model.layers.values())
    after = order[order.index(place) + 1 :]
    if place.kind in {"Linear", "Conv2d"} and after and after[0].kind == "ReLU":
        warnings.append(
            f"{place.name} is read before its ReLU; the space that papers name so is "
            f"{after[0].name}, behind it"
        )
    if skipped:
        warnings.append(f"{unread(skipped)} (skipped.csv)")
    return warnings


def _drifts(rows: Rows) -> dict[str, Drift]:
    """How far a fast decoder moves the rows of a sample from those of exact pixels."""
    sample = rows.data.spread(_PROBED)
    span = range(len(sample))
    fast = replace(rows, data=sample, reduction=Reduction())(span)
    exact = replace(rows, data=sample, reduction=Reduction(), decoder="exact")(span)
    _, ours, theirs = np.intersect1d(fast["rows"], exact["rows"], return_indices=True)
    drifts = {}
    for number, place in enumerate(rows.places):
        a, b = (
            torch.from_numpy(restored(made[str(number)], made[exponents_of(number)])[rows]).double()
            for made, rows in ((fast, ours), (exact, theirs))
        )
        away = 1 - F.cosine_similarity(a, b)
        drifts[place.name] = Drift(len(ours), float(away.mean()), float(away.max()))
    return drifts


def _save(
    stores: Sequence[Store], out: Path, inside: Sequence[Path], kept: Checkpoint, overwrite: bool
) -> list[Store]:
    """Write the stores below `out`, all or none."""
    assert kept.folder is not None
    announce_result(kept.folder, stores[0].origin, inside=str(inside[0]))
    final = folders.real_path(out)
    with folders.whole(out, overwrite=overwrite) as beside:
        for store, place in zip(stores, inside, strict=True):
            target = results.Folder(beside / place, final=final / place)
            target.path.mkdir(exist_ok=True)
            target.fill(store)
            target.finish(store)
    return [replace(s, folder=out / place) for s, place in zip(stores, inside, strict=True)]
