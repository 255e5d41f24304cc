"""The overview follows one picture through the network, as far as there are results."""

from __future__ import annotations

from pathlib import Path

from gallery_run import figure, write_result

from featviz.gallery.build import build_gallery
from featviz.gallery.story import STEPS


def write_steps(run: Path, kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        write_result(run / kind, kind=kind, title=f"All {kind}", figures=[figure("a.png")])


def test_steps_are_told_in_their_order_and_missing_ones_are_left_out(tmp_path: Path) -> None:
    write_steps(tmp_path, ("attack", "classify", "atlas", "maps"))
    page = (build_gallery(tmp_path) / "index.html").read_text()
    story = page[page.index("Follow one picture") : page.index('id="chapter-1"')]
    told = [step.title for step in STEPS if step.title in story]
    places = [story.index(title) for title in told]
    assert places == sorted(places)
    assert "All this began as noise" not in told
    assert told[0] == "A picture is a table of numbers"
    assert told[-1] == "A change that nobody sees can fool it"
    assert "results/attack.html" in story


def test_two_results_are_no_story(tmp_path: Path) -> None:
    write_steps(tmp_path, ("attack", "classify"))
    assert "Follow one picture" not in (build_gallery(tmp_path) / "index.html").read_text()


def test_steps_lead_into_the_explorer_where_it_is(tmp_path: Path) -> None:
    write_steps(tmp_path, ("attack", "classify", "atlas"))
    explorer = write_result(tmp_path / "explore", kind="explore", title="Explorer", figures=[])
    (explorer / "explorer.html").write_text("<!doctype html><title>Explorer</title>")
    page = (build_gallery(tmp_path) / "index.html").read_text()
    assert 'href="results/explore/explorer.html#fooled"' in page
    assert 'href="results/attack.html"' in page
