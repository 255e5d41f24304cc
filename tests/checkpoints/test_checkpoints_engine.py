"""Pieces mapped here: only what is missing is made, and counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featviz.checkpoints import Arrays, Interrupted, check_engine, open_checkpoint
from featviz.engine import Piece, map_pieces
from featviz.errors import UserError
from featviz.types import Progress

PIECES = [Piece(f"piece-{i}", i, size=10) for i in range(4)]


def square(i: int, report: Callable[[int], None]) -> Arrays:
    report(5)
    return {"square": np.array(i * i)}


def squares(folder: Path | None, progress: Progress | None = None) -> list[int]:
    with open_checkpoint(folder, {}, total=40, unit="rows") as kept:
        found = [*map_pieces(square, PIECES, kept, progress=progress, text="squares")]
        assert kept.summary == "kept 40 of 40 rows"
    return [int(arrays["square"]) for arrays in found]


def test_progress_counts_finished_pieces_and_parts_of_the_one_at_work() -> None:
    said: list[tuple[int, int, str]] = []
    assert squares(None, progress=lambda *now: said.append(now)) == [0, 1, 4, 9]
    assert [done for done, *_ in said] == [0, 5, 10, 15, 20, 25, 30, 35, 40]
    assert {now[1:] for now in said} == {(40, "squares")}


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
