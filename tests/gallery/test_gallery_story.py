"""The overview follows one picture through the network, as far as there are results."""

from __future__ import annotations

import re
from pathlib import Path

from gallery_run import figure, write_result
from PIL import Image

from featviz.gallery.build import build_gallery
from featviz.gallery.glossary import TERMS
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


def story_of(site: Path) -> str:
    page = (site / "index.html").read_text()
    return page[page.index("Follow one picture") : page.index('id="chapter-1"')]


def test_the_numbers_of_the_first_step_are_those_of_the_pixels(tmp_path: Path) -> None:
    write_steps(tmp_path, ("attack", "atlas"))
    folder = write_result(tmp_path / "maps", kind="maps", figures=[figure("picture.png")])
    picture = Image.new("RGB", (7, 5))
    for x in range(7):
        for y in range(5):
            picture.putpixel((x, y), (10 * x, 10 * y, 200))
    picture.save(folder / "picture.png")
    site = build_gallery(tmp_path)
    drawn = (site / "static" / "numbers.svg").read_text()
    shown = [int(value) for value in re.findall(r"<text[^>]*>(\d+)</text>", drawn)]
    middle = [(x, y) for y in range(5) for x in range(1, 6)]
    assert shown == [value for at in middle for value in picture.getpixel(at)]  # type: ignore[union-attr]
    assert "<b>105</b> numbers" in story_of(site)
    assert "static/numbers.svg" in story_of(site)


def test_a_number_that_only_experts_know_is_not_told(tmp_path: Path) -> None:
    for kind, numbers in (
        ("atlas", {"recall@10": {"value": 0.75, "unit": "fraction"}}),
        ("circuit", {"followed by 8 inputs": 0.54, "connected": "256 of 256"}),
        ("kernels", {"undirected": 6}),
    ):
        write_result(tmp_path / kind, kind=kind, figures=[figure("a.png")], numbers=numbers)
    story = story_of(build_gallery(tmp_path))
    assert "<b>75.0%</b> of the ten pictures most like" in story
    assert "<b>256 of 256</b> units" in story
    for name in ("recall@10", "followed by", "undirected"):
        assert name not in story


def test_the_list_of_numbers_says_what_its_layer_is(tmp_path: Path) -> None:
    model = {"name": "net", "sha256": "0" * 64}
    write_steps(tmp_path, ("attack", "atlas"))
    write_result(
        tmp_path / "embed",
        kind="embed",
        title="relu7 of net",
        model=model,
        parameters={"layer": "relu7"},
        numbers={"dim": 640},
    )
    write_result(
        tmp_path / "near",
        kind="neighbors",
        title="Nearest neighbors in relu7 of net",
        model=model,
        figures=[figure("a.png")],
    )
    site = build_gallery(tmp_path)
    said = "The layer relu7 is AlexNet&#39;s fc7"
    for text in (story_of(site), (site / "results" / "near.html").read_text()):
        assert said in text
        assert "of 640 here" in text


def test_results_of_one_kind_share_a_card_and_a_deeper_link(tmp_path: Path) -> None:
    for layer in ("conv1", "conv2", "conv3"):
        write_result(
            tmp_path / layer,
            kind="maximize",
            title=f"Units of {layer}",
            parameters={"layer": layer},
            figures=[figure("a.png")],
        )
    write_steps(tmp_path, ("attack", "atlas"))
    site = build_gallery(tmp_path)
    assert story_of(site).count("What excites its units most") == 1
    page = (site / "index.html").read_text().partition('id="chapter-1"')[2]
    assert page.count("What excites its units most") == 1
    for layer in ("conv1", "conv2", "conv3"):
        assert f">{layer}</a>" in page
        assert f'href="results/{layer}.html"' in page


def test_the_glossary_is_that_of_the_documentation(tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "glossary.md").read_text(encoding="utf-8")
    assert [f"- **{term}**: {words}" for term, words in TERMS.items()] == [
        line for line in document.splitlines() if line.startswith("- ")
    ]
    write_steps(tmp_path, ("attack", "atlas", "maps"))
    site = build_gallery(tmp_path)
    assert 'href="glossary.html"' in story_of(site)
    assert all(f"<dt>{term}</dt>" in (site / "glossary.html").read_text() for term in TERMS)
