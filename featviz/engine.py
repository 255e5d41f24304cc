"""A function mapped over pieces of work: in this process, or on a Ray cluster.

A piece is a name and a description of some work; its result is a few arrays, which go into a
checkpoint (`checkpoints`), so that a job that was stopped makes only what is missing. Pieces are
independent of one another and give the same arrays wherever and however often they are made; that
is all that Ray is asked to rely on when it loses a worker.

    with open_checkpoint(folder, job) as kept:
        map_pieces(make, [Piece("rows-000000", range(16)), ...], kept, engine="ray")
        arrays = kept.read("rows-000000")

Ray (extra `ray`) is started here, or found where RAY_ADDRESS says. Its workers send the arrays to
this process, so they need no file system in common.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from featviz.checkpoints import Arrays, Checkpoint
from featviz.errors import UserError

ENGINES = ("here", "ray")

Make = Callable[[Any, Callable[[int], None]], Arrays]
"""make(work, report): the arrays of a piece; report(done) may be called with a part of its size"""

# How often a piece may be lost with its worker before the cluster is considered broken.
_LOSSES = 8


@dataclass(frozen=True)
class Piece:
    """A piece of work."""

    name: str
    """of its file in the checkpoint; the same name is the same work"""
    work: Any
    """the argument of `make`"""
    size: int = 1
    """how much work it is, for the progress"""


def check_engine(engine: str) -> None:
    """Raise UserError for an unknown engine, or one that is not installed."""
    if engine not in ENGINES:
        raise UserError(f"unknown engine {engine!r}; take {' or '.join(ENGINES)}")
    if engine == "ray":
        _ray()


def map_pieces(
    make: Make,
    pieces: Sequence[Piece],
    kept: Checkpoint,
    *,
    engine: str = "here",
    gpus: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Make every piece that the checkpoint does not hold yet.

    Args:
        make: With engine "ray" it is sent to the workers, with all that it refers to.
        pieces: In the order in which they are made.
        kept: Where the pieces are written.
        engine: "here" or "ray".
        gpus: How many each piece needs, for Ray to place it.
        progress: Called with (done, total) in units of the pieces' sizes.

    Raises:
        UserError: The engine is unknown, not installed or cannot be reached, or the folder cannot
            be written. What `make` raises is raised here.
    """
    check_engine(engine)
    missing = [piece for piece in pieces if kept.read(piece.name, size=piece.size) is None]
    total = sum(piece.size for piece in pieces)
    done = total - sum(piece.size for piece in missing)

    def report(more: int) -> None:
        if progress is not None:
            progress(done + more, total)

    report(0)
    if not missing:
        return
    here = ((piece, make(piece.work, report)) for piece in missing)
    for piece, arrays in here if engine == "here" else _on_ray(make, missing, gpus):
        kept.write(piece.name, arrays, size=piece.size)
        done += piece.size
        report(0)


def _on_ray(make: Make, pieces: Sequence[Piece], gpus: int) -> Iterator[tuple[Piece, Arrays]]:
    import torch

    ray = _ray()
    started = not ray.is_initialized()
    if started:
        where = os.environ.get("RAY_ADDRESS")
        try:
            ray.init(
                address=where,
                include_dashboard=None if where else False,
                log_to_driver=False,
                logging_level="ERROR",
            )
        except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"no Ray cluster answers at RAY_ADDRESS={where} ({reason}); "
                "start one (ray start --head), or unset RAY_ADDRESS to have one here"
            ) from None
    task = ray.remote(max_retries=_LOSSES, num_gpus=gpus)(_made)
    parcel = _parcel(ray, make)  # sent once to each node, not once with each shard
    threads = torch.get_num_threads()  # kernels may round by their number
    pending = {task.remote(parcel, piece.work, threads): piece for piece in pieces}
    try:
        while pending:
            ready, _ = ray.wait(list(pending))
            for reference in ready:
                piece = pending.pop(reference)
                try:
                    arrays = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, ray.exceptions.RaySystemError):
                        reason = str(error.cause).strip().splitlines()[-1]
                        raise UserError(
                            f"a worker of Ray cannot read the model: {reason}"
                        ) from None
                    raise error.as_instanceof_cause() from None
                yield piece, arrays
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
        if started:
            ray.shutdown()


def _parcel(ray: Any, make: Make) -> Any:
    """What is done, for the workers, with the modules of the user's own, which they do not have."""
    from featviz.models import own

    for module in own.modules():
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        return ray.put(make)
    except (TypeError, ValueError, AttributeError, pickle.PicklingError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise UserError(
            f"the model cannot be sent to the workers of Ray ({reason}); leave --engine out"
        ) from None


def _made(make: Make, work: Any, threads: int) -> Arrays:
    """On a worker: the arrays of one piece."""
    import torch

    torch.set_num_threads(threads)
    return make(work, lambda _: None)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError(
            "engine ray needs Ray, which is not installed: pip install 'featviz[ray]', "
            "or leave --engine out to work here"
        ) from None
    return ray
