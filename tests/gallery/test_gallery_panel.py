"""The honest panel on a unit's page, from nothing but tables and figures of a result folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from featviz import results
from featviz.gallery.build import build_gallery


def table(folder: Path, name: str, rows: list[list[str]]) -> dict[str, Any]:
    with (folder / name).open("w", newline="") as out:
        csv.writer(out).writerows(rows)
    return {"file": name, "caption": f"Caption of {name}.", "columns": rows[0]}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Six units, of which conv5:2 is not to be trusted."""
    from PIL import Image

    folder = tmp_path / "run" / "maximize-conv5"
    figures = []
    for i in range(6):
        for name, size in ((f"units/{i}.png", (32, 32)), (f"natural/{i}.jpg", (120, 24))):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (90, 20 * i, 120)).save(folder / name)
            figures.append(
                {
                    "file": name,
                    "caption": f"Words of {name}.",
                    "alt": name,
                    "units": [f"conv5:{i}"],
                    "pixelated": False,
                    "detail": name.endswith("jpg"),
                }
            )
    tables = [
        table(folder, "scores.csv", [["picture", "score"], ["conv5:2", "271828"]]),
        table(
            folder,
            "panel.csv",
            [
                ["picture", "what", "value", "meaning"],
                ["conv5:2", "rank in its layer", "7 of 256", "place of the unit"],
                ["conv5:3", "rank in its layer", "1 of 256", "place of the unit"],
            ],
        ),
        table(
            folder,
            "flags.csv",
            [
                ["picture", "flag", "reason"],
                ["conv5:2", "others answer more", "6 units <answer> more"],
            ],
        ),
    ]
    results.write_json(
        folder / "result.json",
        {
            "schema": 1,
            "kind": "maximize",
            "title": "What conv5 looks for",
            "parameters": {"layer": "conv5"},
            "figures": figures,
            "tables": tables,
        },
    )
    return build_gallery(tmp_path / "run")


def test_measures_and_doubts_stand_on_the_units_page(site: Path) -> None:
    page = (site / "units" / "conv5-2.html").read_text()
    assert 'aria-label="Not to be trusted"' in page
    assert "<b>others answer more</b>: 6 units &lt;answer&gt; more" in page
    assert "<dt>rank in its layer</dt><dd>7 of 256</dd>" in page
    assert "natural/2.jpg" in page
    assert "271828" not in page  # the measures say it in words
    other = (site / "units" / "conv5-3.html").read_text()
    assert 'aria-label="Not to be trusted"' not in other
    assert "<dd>1 of 256</dd>" in other


def test_details_stand_on_the_units_page_only(site: Path) -> None:
    page = (site / "results" / "maximize-conv5.html").read_text()
    assert "units/2.png" in page
    assert "natural/2.jpg" not in page
    assert (site / "results" / "maximize-conv5" / "natural" / "2.jpg").is_file()


def test_a_doubtful_unit_is_marked_wherever_it_hangs(site: Path) -> None:
    page = (site / "units" / "index.html").read_text()
    assert page.count('class="doubtful"') == 1
    assert page.index('class="doubtful"') > page.index("conv5-2.html")
    assert json.loads((site / "gallery.json").read_text())["left_out"] == []
