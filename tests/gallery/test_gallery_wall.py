"""The portraits on the overview: which layers have a row, and how many units are in it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from gallery_run import write_result

from featviz.gallery.reader import Figure, read_entry
from featviz.gallery.site import plan_site


def portrait(unit: str) -> Figure:
    return Figure(f"{unit}.png", "", unit, (unit,), False, 64, 64, False)


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ({"conv1": 96, "conv3": 3, "conv5": 3}, {"conv1": 4, "conv3": 3, "conv5": 3}),
        ({"conv1": 96, "conv3": 8, "conv5": 12}, {"conv1": 8, "conv3": 8, "conv5": 8}),
        ({"conv1": 96, "conv3": 40}, {"conv1": 10, "conv3": 10}),
        ({"conv1": 96, "conv3": 2}, {"conv1": 10}),
        ({"conv3": 2}, {}),
    ],
)
def test_a_long_row_is_cut_to_about_the_length_of_the_others(
    counts: dict[str, int], shown: dict[str, int], tmp_path: Path
) -> None:
    figures = [portrait(f"{layer}:{i}") for layer, count in counts.items() for i in range(count)]
    empty = read_entry(write_result(tmp_path / "run", kind="maximize"), "run")
    site = plan_site([replace(empty, figures=tuple(figures))], [])
    assert {layer: len(units) for layer, units in site.wall} == shown


def test_strips_and_photographs_are_no_portraits(tmp_path: Path) -> None:
    strips = [replace(portrait(f"conv1:{i}"), width=300) for i in range(8)]
    maximized = read_entry(write_result(tmp_path / "a", kind="maximize"), "a")
    maps = replace(maximized, kind="maps", figures=tuple(portrait(f"conv2:{i}") for i in range(8)))
    assert plan_site([replace(maximized, figures=tuple(strips)), maps], []).wall == []


def test_a_figure_for_print_is_passed_over(tmp_path: Path) -> None:
    """A PDF lies beside the picture that a page shows."""
    folder = write_result(tmp_path / "run")
    document = {"schema": 1, "figures": [{"file": "print.pdf", "caption": "for print"}]}
    (folder / "print.pdf").write_bytes(b"%PDF-1.4")
    (folder / "result.json").write_text(json.dumps(document))
    entry = read_entry(folder, "run")
    assert entry.figures == ()
    assert entry.problems == ()
