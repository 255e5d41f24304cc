"""Pieces mapped here and on a Ray cluster: only what is missing is made, and counted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featviz.checkpoints import Arrays, Interrupted, open_checkpoint
from featviz.engine import Piece, check_engine, map_pieces
from featviz.errors import UserError

PIECES = [Piece(f"piece-{i}", i, size=10) for i in range(4)]


def square(i: int, report: Callable[[int], None]) -> Arrays:
    report(5)
    return {"square": np.array(i * i)}


def squares(folder: Path | None, progress: Callable[[int, int], None] | None = None) -> list[int]:
    with open_checkpoint(folder, {}, total=40, unit="rows") as kept:
        map_pieces(square, PIECES, kept, progress=progress)
        found = [kept.read(piece.name) for piece in PIECES]
        assert kept.summary == "kept 40 of 40 rows"
    return [int(arrays["square"]) for arrays in found if arrays is not None]


@pytest.fixture
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            num_cpus=1,
            object_store_memory=10**8,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        try:
            yield ray
        finally:
            ray.shutdown()


def test_progress_counts_finished_pieces_and_parts_of_the_one_at_work() -> None:
    said: list[tuple[int, int]] = []
    assert squares(None, progress=lambda *now: said.append(now)) == [0, 1, 4, 9]
    assert [done for done, _ in said] == [0, 5, 10, 15, 20, 25, 30, 35, 40]
    assert {total for _, total in said} == {40}


def test_only_missing_and_damaged_pieces_are_made(tmp_path: Path) -> None:
    made: list[int] = []

    def stopped(i: int, report: Callable[[int], None]) -> Arrays:
        if i == 3:
            raise KeyboardInterrupt
        return square(i, report)

    def noted(i: int, report: Callable[[int], None]) -> Arrays:
        made.append(i)
        return square(i, report)

    folder = tmp_path / "p"
    with (
        pytest.raises(Interrupted, match="kept 30 of 40 rows; give the same"),
        open_checkpoint(folder, {}, total=40, unit="rows") as kept,
    ):
        map_pieces(stopped, PIECES, kept)
    content = (folder / "piece-1.npz").read_bytes()
    (folder / "piece-1.npz").write_bytes(content[:50] + b"damaged" + content[57:])
    with open_checkpoint(folder, {}) as kept:
        map_pieces(noted, PIECES, kept)
        assert kept.found == 20  # rows
    assert made == [1, 3]
    assert squares(folder) == [0, 1, 4, 9]


def test_what_fails_is_raised_and_what_was_finished_stays(tmp_path: Path) -> None:
    def fail(i: int, report: Callable[[int], None]) -> Arrays:
        if i == 2:
            raise UserError("the third cannot be made; leave it out")
        return square(i, report)

    with (
        pytest.raises(UserError, match="the third"),
        open_checkpoint(tmp_path / "p", {}) as kept,
    ):
        map_pieces(fail, PIECES, kept)
    assert sorted(p.name for p in (tmp_path / "p").glob("*.npz")) == ["piece-0.npz", "piece-1.npz"]


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(UserError, match="unknown engine 'spark'; take here or ray"):
        check_engine("spark")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own deprecations and late sockets
def test_a_cluster_gives_the_same_pieces_and_raises_what_fails(
    cluster: Any, tmp_path: Path
) -> None:
    # Local, so that they are sent as they are: the workers cannot import this module.
    def cube(i: int, report: Callable[[int], None]) -> Arrays:
        return {"cube": np.array(i**3)}

    def fail(i: int, report: Callable[[int], None]) -> Arrays:
        raise UserError("none can be made; leave them out")

    with open_checkpoint(tmp_path / "p", {}) as kept:
        map_pieces(cube, PIECES, kept, engine="ray")
        found = [kept.read(piece.name) or {} for piece in PIECES]
    assert [int(arrays["cube"]) for arrays in found] == [0, 1, 8, 27]
    with pytest.raises(UserError, match="none can be made"), open_checkpoint(None, {}) as kept:
        map_pieces(fail, PIECES, kept, engine="ray")
