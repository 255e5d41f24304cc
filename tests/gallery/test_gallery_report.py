"""Reports: one file with everything in it, the verdict first, print within the page."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from browser_driver import console_errors, open_browser
from command_line import run
from matplotlib.figure import Figure

import featviz
from featviz import results
from featviz.errors import UserError
from featviz.gallery import report
from featviz.gallery.build import build_gallery
from featviz.gallery.reader import read_entry
from featviz.gallery.summary import chapters, key_numbers, summarize_entry
from featviz.results import Number

WIDE = tuple(f"column_{i}" for i in range(14))


@dataclass(frozen=True, kw_only=True)
class Measured(results.Result):
    kind: ClassVar[str] = "audit"

    @property
    def title(self) -> str:
        return "Audit of <b>m</b>"

    def numbers(self) -> dict[str, Number]:
        return {
            "clean accuracy": Number(0.6, "fraction", "no attack", 0.5, 0.7, 90),
            "robust accuracy L∞ 0.5/255": Number(0.6, "fraction", "at most", 0.5, 0.7, 90),
            "robust accuracy L∞ 1/255": Number(0.25, "fraction", "at most", 0.2, 0.4, 90),
            "robust accuracy L∞ 2/255": Number(0.0, "fraction", "at most", 0.0, 0.1, 90),
            "self-test": Number("passed"),
            "passes": Number(1200),
        }

    def write(self, folder: results.Folder) -> None:
        folder.figure("curve.svg", self.plot(), caption="A curve.", alt="Curve")
        folder.warn("only 90 pictures: the intervals are wide")

    def tables(self) -> list[results.Table]:
        rows = [("n0123456789_long_name_of_a_class", *range(13)) for _ in range(30)]
        return [results.Table("rows.csv", WIDE, rows, "Rows.")]

    def plot(self) -> Figure:
        figure = Figure(figsize=(4, 2))
        figure.subplots().plot([1, 2, 3])
        return figure


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Measured(origin=results.origin(None, parameters={"steps": 9}, started=0.0))
    place = tmp_path_factory.mktemp("run") / "audit"
    return made.save(place, checks=made.require("clean accuracy.low>=0.4", "passes<=1000"))


def test_the_summary_has_the_verdict_five_numbers_that_differ_and_the_doubts(saved: Path) -> None:
    entry = read_entry(saved, "audit")
    first = summarize_entry(entry)
    assert first.verdict == "1 of 2 requirements fail."
    assert [check.met for check in first.checks] == [False, True]
    assert [name for name, _ in first.numbers] == [
        "clean accuracy",
        "robust accuracy L∞ 1/255",
        "self-test",
        "robust accuracy L∞ 2/255",
        "passes",
    ]
    assert len(key_numbers(entry, 3)) == 3
    assert first.doubts == ("only 90 pictures: the intervals are wide",)
    (chapter,) = chapters(entry)
    assert (len(chapter.figures), len(chapter.tables)) == (1, 1)


def test_a_report_is_one_file_that_needs_no_other(saved: Path, tmp_path: Path) -> None:
    made = featviz.build_report(
        saved.parent, tmp_path / "report.html", require=["selftest==passed"]
    )
    page = made.path.read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "<script" not in page
    assert "Audit of &lt;b&gt;m&lt;/b&gt;" in page
    assert page.index("1 of 3 requirements fail.") < page.index("Contents")
    assert page.count("n0123456789_long_name_of_a_class") == 30  # all rows can be reached
    again = featviz.build_report(saved.parent, tmp_path / "b.html", require=["selftest==passed"])
    assert again.path.read_bytes() == made.path.read_bytes()


def test_the_command_checks_saved_results(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.html"
    code, said, _ = run(capsys, "report", saved, "-o", out, "--json", "--require", "passes<9999")
    assert code == 3
    assert [check["met"] for check in json.loads(said)["requirements"]] == [False, True, True]
    code, _, err = run(capsys, "report", saved, "-o", out)
    assert (code, "--overwrite" in err) == (2, True)
    code, _, err = run(capsys, "report", saved, "-o", tmp_path / "x.html", "--require", "pases<1")
    assert (code, "did you mean passes" in err) == (2, True)
    code, _, err = run(capsys, "report", saved, "-o", tmp_path / "x.doc")
    assert (code, ".html or .pdf" in err) == (2, True)


def test_without_chromium_the_pdf_is_plain_and_says_so(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "BROWSERS", ())
    made = featviz.build_report(saved, tmp_path / "report.pdf")
    assert made.path.read_bytes().startswith(b"%PDF")
    assert any("no chromium" in note for note in made.notes)


def test_folders_without_results_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no result that can be shown"):
        featviz.build_report(tmp_path, tmp_path / "r.html")


@pytest.mark.slow
def test_pages_fit_the_screen_the_phone_and_the_printed_page(saved: Path, tmp_path: Path) -> None:
    page = featviz.build_report(saved, tmp_path / "report.html").path.as_uri()
    site = build_gallery(saved.parent, tmp_path / "site")
    beside = (site / "results" / "audit.html").as_uri()
    with open_browser(1280, 900, dark=True) as browser:
        for address in (page, beside):
            browser.get(address)
            assert console_errors(browser) == []
            for width, media in ((1280, ""), (390, ""), (687, "print")):
                size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})
                outside = browser.execute_script(
                    "const wide = document.documentElement.clientWidth + 1;"
                    "const within = e => e.closest('.scroll, .zoom') && arguments[0] != 'print';"
                    "return [...document.querySelectorAll('table, img, dl, pre, h1')].filter("
                    "e => !within(e) && e.getBoundingClientRect().right > wide)"
                    ".map(e => e.tagName)",
                    media,
                )
                assert outside == [], (address, width, media)


@pytest.mark.slow
def test_the_gallery_opens_with_the_same_summary(saved: Path, tmp_path: Path) -> None:
    site = build_gallery(saved.parent, tmp_path / "site")
    page = (site / "results" / "audit.html").read_text(encoding="utf-8")
    assert "1 of 2 requirements fail." in page
    assert "18 more of 30 rows" in page
    card = (site / "index.html").read_text(encoding="utf-8")
    assert card.count("60.0%") == 1
