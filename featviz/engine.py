"""A function mapped over pieces of work: in this process, or on a Ray cluster.

A piece is a name and a description of some work; its result is a few arrays, which go into a
checkpoint (`checkpoints`), so that a job that was stopped makes only what is missing. Pieces are
independent of one another and give the same arrays wherever and however often they are made; that
is all that Ray is asked to rely on when it loses a worker.

    with open_checkpoint(folder, job, engine="ray") as kept:
        for arrays in map_pieces(make, [Piece("rows-000000", range(16)), ...], kept):
            ...

Ray (extra `ray`) is started here for as long as the checkpoint is open, or found where RAY_ADDRESS
says. Its workers send the arrays to this process, so they need no file system in common.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featviz import results
from featviz.checkpoints import Arrays, Checkpoint
from featviz.errors import UserError

if TYPE_CHECKING:
    from featviz.types import Progress

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


def map_pieces(
    make: Make,
    pieces: Sequence[Piece],
    kept: Checkpoint,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
    text: str = "",
) -> Iterator[Arrays]:
    """Make every piece that the checkpoint does not hold yet, with its engine.

    Args:
        make: On Ray it is sent to the workers, with all that it refers to.
        pieces: In the order in which they are made.
        kept: Where the pieces are written.
        device: Where `make` computes: on "cuda" each piece needs a GPU, for Ray to place it.
        progress: Called with (done, total, text) in units of the pieces' sizes.
        text: For the progress.

    Returns:
        The arrays of all pieces in order, each read when it is asked for.

    Raises:
        UserError: The cluster cannot be reached or loses a piece again and again, or the folder
            cannot be written. What `make` raises is raised here.
    """
    missing = [piece for piece in pieces if kept.read(piece.name, size=piece.size) is None]
    total = sum(piece.size for piece in pieces)
    done = total - sum(piece.size for piece in missing)

    def report(more: int) -> None:
        if progress is not None:
            progress(done + more, total, text)

    if total:
        report(0)
    here = ((piece, make(piece.work, report)) for piece in missing)
    on_ray = kept.engine == "ray" and missing
    for piece, arrays in _on_ray(make, missing, kept, device) if on_ray else here:
        kept.write(piece.name, arrays, size=piece.size)
        done += piece.size
        report(0)
    return (_read(kept, piece.name) for piece in pieces)


def _read(kept: Checkpoint, name: str) -> Arrays:
    arrays = kept.read(name)
    if arrays is None:
        raise UserError(f"{name} in {kept.folder} was changed meanwhile; start again")
    return arrays


def _on_ray(
    make: Make, pieces: Sequence[Piece], kept: Checkpoint, device: str
) -> Iterator[tuple[Piece, Arrays]]:
    import torch

    ray = _cluster(kept)
    threads = torch.get_num_threads()  # kernels may round by their number
    options = _needs(ray, threads, device)
    task = ray.remote(max_retries=_LOSSES, **options)(_made)
    parcel = _parcel(ray, make)  # sent once to each node, not once with each piece
    told = threads, results.versions()
    pending = {task.remote(parcel, piece.work, *told): piece for piece in pieces}
    try:
        while pending:
            ready, _ = ray.wait(list(pending))
            for reference in ready:
                piece = pending.pop(reference)
                yield piece, _result(ray, reference)
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)


def _cluster(kept: Checkpoint) -> Any:
    """Ray, connected; what is started here is stopped with the job."""
    import ray

    if ray.is_initialized():
        return ray
    where = os.environ.get("RAY_ADDRESS")
    try:
        ray.init(
            address=where,
            include_dashboard=None if where else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"no Ray cluster answers at RAY_ADDRESS={where} ({reason}); "
            "start one (ray start --head), or unset RAY_ADDRESS to have one here"
        ) from None
    kept.held.callback(ray.shutdown)
    return ray


def _needs(ray: Any, threads: int, device: str) -> dict[str, Any]:
    """What a piece takes of a machine: a core for each thread, as far as every machine has them."""
    gpus = int(device == "cuda")
    if gpus and not ray.cluster_resources().get("GPU"):
        raise UserError("no machine of the Ray cluster has a GPU; add --device cpu")
    cores = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    least = min((count for count in cores if count >= 1), default=1)
    return {"num_cpus": min(threads, least), "num_gpus": gpus}


def _result(ray: Any, reference: Any) -> Arrays:
    """The arrays that a worker made, or what it raised."""
    try:
        # Copied, since Ray's own memory cannot be written to, and is freed like this.
        return {name: array.copy() for name, array in ray.get(reference).items()}
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ray.exceptions.RaySystemError):
            reason = str(error.cause).strip().splitlines()[-1]
            raise UserError(f"a worker of Ray cannot read the model: {reason}") from None
        # A user's mistake is the line that it is here; all else comes with its place on the worker.
        raise (
            error.cause if isinstance(error.cause, UserError) else error.as_instanceof_cause()
        ) from None
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"workers of Ray were lost with a piece of the work ({reason}); they may lack memory: "
            "give a smaller batch, or fewer CPUs to each machine (ray start --num-cpus)"
        ) from None


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


def _made(make: Make, work: Any, threads: int, versions: dict[str, str]) -> Arrays:
    """On a worker: the arrays of one piece."""
    import torch

    own = results.versions()
    for name, version in versions.items():
        if own.get(name) != version:
            raise UserError(
                f"a worker of Ray has {name} {own.get(name)}, this machine {version}; "
                "install the same everywhere"
            )
    torch.set_num_threads(threads)
    return make(work, lambda _: None)
