"""Time of an audit: the estimate rises with the work, and what is fitted into a time fits."""

from __future__ import annotations

from pathlib import Path

import pytest

import featviz
from featviz.cli.options import parse_duration
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.robustness import plan
from featviz.robustness.audit import audit
from featviz.robustness.parts import PARTS
from featviz.robustness.plan import FEWEST, Options, Pace, duration, estimate, fit
from featviz.robustness.result import Audit

PACE = Pace(forward=0.001, backward=0.003, corrupted=0.1)
OPTIONS = Options(("linf", "l2"), steps=60, check_steps=30, queries=100)


def test_more_work_takes_longer() -> None:
    base = estimate(PACE, 100, 0.8, OPTIONS, PARTS).seconds
    assert estimate(PACE, 200, 0.8, OPTIONS, PARTS).seconds > base
    assert estimate(PACE, 100, 1.0, OPTIONS, PARTS).seconds > base
    for more in (
        Options(("linf", "l2", "l1"), 60, 30, 100),
        Options(("linf", "l2"), 120, 30, 100),
        Options(("linf", "l2"), 60, 60, 100),
        Options(("linf", "l2"), 60, 30, 200),
    ):
        assert estimate(PACE, 100, 0.8, more, PARTS).seconds > base
    assert set(estimate(PACE, 100, 0.8, OPTIONS, PARTS).parts) == set(PARTS)


def test_no_right_picture_leaves_only_the_clean_pass() -> None:
    assert estimate(PACE, 100, 0.0, OPTIONS, ()).seconds == pytest.approx(100 * PACE.forward)


@pytest.mark.parametrize("share", [1.0, 0.6, 0.3, 0.15, 0.05])
def test_what_is_fitted_into_a_time_fits(share: float) -> None:
    whole = estimate(PACE, 200, 0.8, OPTIONS, PARTS).seconds
    count, parts = fit(share * whole, PACE, 200, 0.8, OPTIONS, PARTS)
    assert estimate(PACE, count, 0.8, OPTIONS, parts).seconds <= share * whole
    assert FEWEST <= count <= 200
    if share == 1.0:
        assert (count, parts) == (200, PARTS)
    # One picture more, or the part that was left out last, would not have fitted.
    if count < 200:
        assert estimate(PACE, count + 1, 0.8, OPTIONS, parts).seconds > share * whole


def test_a_time_too_short_names_the_time_that_is_needed() -> None:
    with pytest.raises(UserError, match=r"too short for 8 pictures, which take about \d+ s"):
        fit(0.01, PACE, 200, 0.8, OPTIONS, PARTS)


def test_durations() -> None:
    assert [parse_duration(t) for t in ("90", "90s", "1.5m", "2h")] == [90, 90, 90, 7200]
    for text in ("", "m", "-1s", "1d", "nan", "infh"):
        with pytest.raises(UserError, match="90s, 10m or 2h"):
            parse_duration(text)
    assert [duration(s) for s in (0.2, 40.4, 360, 9000)] == ["1 s", "40 s", "6 min", "2.5 h"]


def test_an_audit_says_what_it_leaves_out_and_keeps_to_its_plan(
    mini: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def progress(done: int, total: int, text: str) -> None:
        if total == 0:
            said.append(text)

    def run(pace: Pace) -> Audit:
        monkeypatch.setattr(plan, "measure_pace", lambda *_, **__: pace)
        return audit(
            mini,
            featviz.sample_pictures(),
            norms=("linf",),
            eps=[4 / 255],
            count=24,
            steps=10,
            check_steps=0,
            queries=0,
            parts=("transfer",),
            time=1.5,
            checkpoint=tmp_path / "work",
            progress=progress,
        )

    first = run(PACE)
    assert 8 <= len(first.names) < 24
    left = 24 - len(first.names)
    assert f"left out to fit into the time: {left} of 24 pictures, transfer" in first.warnings
    assert said[0].endswith(f"s for {len(first.names)} pictures")
    faster = Pace(PACE.forward / 10, PACE.backward / 10, 0.0)
    assert run(faster).names == first.names
