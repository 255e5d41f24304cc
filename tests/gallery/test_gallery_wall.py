"""The overview's wall of portraits: which layers hang there, and how many of each."""

from __future__ import annotations
from pathlib import Path

from dataclasses import dataclass

import pytest

from featviz.gallery import site as site_module
from featviz.gallery.reader import _figures
from featviz.gallery.site import Site


@dataclass(frozen=True)
class _Unit:
    layer: str
    portrait: bool = True


@pytest.mark.parametrize(
    ("counts", "hung"),
    [
        ({"conv1": 96, "conv3": 3, "conv5": 3}, {"conv1": 4, "conv3": 3, "conv5": 3}),
        ({"conv1": 96, "conv3": 8, "conv5": 12}, {"conv1": 8, "conv3": 8, "conv5": 8}),
        ({"conv1": 96, "conv3": 40}, {"conv1": 10, "conv3": 10}),
        ({"conv1": 96, "conv3": 2}, {"conv1": 10}),
        ({"conv3": 2}, {}),
    ],
)
def test_a_long_row_is_cut_to_about_the_length_of_the_others(counts, hung, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(site_module, "_hangs", bool)
    units = tuple(_Unit(layer) for layer, count in counts.items() for _ in range(count))
    site = Site.__new__(Site)
    object.__setattr__(site, "units", units)
    assert {layer: len(row) for layer, row in site.wall} == hung


def test_a_print_version_is_passed_over_without_a_word(tmp_path: Path):
    """A PDF lies beside the picture that a page shows."""
    (tmp_path / "print.pdf").write_bytes(b"%PDF-1.4")
    problems: list[str] = []
    document = {"figures": [{"file": "print.pdf", "caption": "for print"}]}
    assert _figures(tmp_path, document, problems) == ([], [])
    assert problems == []
