"""A function mapped over shards of work: in this process, or on a Ray cluster.

A shard is a name and a description of some work. Its result is a few files (name to bytes), which
become the folder `<folder>/<shard's name>`: whole or absent, so that work which was killed goes on
from the shards that are there. Shards know nothing of one another and give the same bytes wherever
and however often they are made; that is all that Ray is asked to rely on when it loses a worker.

    map_shards(make, [Shard("conv5-00000", range(16)), ...], Path("run/x.partial"), engine="ray")

Ray (extra `ray`) is started here, or found where RAY_ADDRESS says. Its workers send the files to
this process, so they need no file system in common.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featviz.errors import UserError
from featviz.results import cannot_write

ENGINES = ("here", "ray")

Files = dict[str, bytes]
"""what a shard's work gives: name to content"""
Make = Callable[[Any, Callable[[int], None]], Files]
"""make(description, report): the files of a shard; report(done) may be told of the shard's size"""

# How often a shard may be lost with its worker before the cluster is held to be sick.
_LOSSES = 8


@dataclass(frozen=True)
class Shard:
    """A piece of work."""

    name: str
    """of its folder; the same name is the same work"""
    work: Any
    """what `make` is given"""
    size: int = 1
    """how much work it is, for the progress"""


def check_engine(engine: str) -> None:
    """Raise UserError for an unknown engine, or one that is not installed."""
    if engine not in ENGINES:
        raise UserError(f"unknown engine {engine!r}; take {' or '.join(ENGINES)}")
    if engine == "ray":
        _ray()


def map_shards(
    make: Make,
    shards: Sequence[Shard],
    folder: Path,
    *,
    engine: str = "here",
    gpus: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Make every shard that `folder` does not hold yet.

    make: with engine "ray" it is sent to the workers, with all that it refers to
    gpus: that each shard needs, for Ray to place it
    progress: called with (done, total) in units of the shards' sizes

    Raises UserError for an engine that is unknown, not installed or not to be reached, and when
    the folder cannot be written. What `make` raises is raised here.
    """
    check_engine(engine)
    missing = [shard for shard in shards if not (folder / shard.name).is_dir()]
    total = sum(shard.size for shard in shards)
    done = total - sum(shard.size for shard in missing)

    def report(more: int) -> None:
        if progress is not None:
            progress(done + more, total)

    report(0)
    if not missing:
        return
    made = _here(make, missing, report) if engine == "here" else _on_ray(make, missing, gpus)
    for shard, files in made:
        _keep(files, folder / shard.name)
        done += shard.size
        report(0)


def _here(
    make: Make, shards: Sequence[Shard], report: Callable[[int], None]
) -> Iterator[tuple[Shard, Files]]:
    for shard in shards:
        yield shard, make(shard.work, report)


def _on_ray(make: Make, shards: Sequence[Shard], gpus: int) -> Iterator[tuple[Shard, Files]]:
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
    parcel = ray.put(make)  # sent once to each node, not once with each shard
    threads = torch.get_num_threads()  # kernels may round by their number
    pending = {task.remote(parcel, shard.work, threads): shard for shard in shards}
    try:
        while pending:
            ready, _ = ray.wait(list(pending))
            for reference in ready:
                shard = pending.pop(reference)
                try:
                    files = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.as_instanceof_cause() from None
                yield shard, files
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
        if started:
            ray.shutdown()


def _made(make: Make, work: Any, threads: int) -> Files:
    """On a worker: the files of one shard."""
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


def _keep(files: Files, target: Path) -> None:
    """Write a shard's folder whole or not at all."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            for name, content in files.items():
                (temporary / name).write_bytes(content)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise cannot_write(target, error) from None
