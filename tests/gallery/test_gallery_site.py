"""Laws of the gallery's pages, read back with the standard library's HTML parser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from gallery_run import figure, write_result, write_run
from PIL import Image

from featviz.errors import UserError
from featviz.gallery import build
from featviz.gallery.build import LARGEST_FRAME, build_gallery, show_seconds, show_size, show_time
from featviz.gallery.kinds import GROUPS, KINDS
from featviz.gallery.reader import Figure, read_entry, short_cell, unit_name
from featviz.gallery.site import layer_key, natural


class Page(HTMLParser):
    """What the tests ask of a page: its elements with their attributes, ids, and its text."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == [], f"{path.name}: {self.open} never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("li", "p", "tr", "td", "th") and self.open[-1] != tag:
            raise AssertionError(f"</{tag}> closes <{self.open[-1]}>")
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def pages(site: Path) -> list[Path]:
    """The pages that the gallery wrote (not those that it copied)."""
    return [p for p in site.rglob("*.html") if len(p.relative_to(site).parts) <= 2]


def leaves(page: Path) -> list[str]:
    """Every address that a page refers to."""
    return [
        attributes[name]
        for _, attributes in Page(page).elements
        for name in ("href", "src")
        if name in attributes
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture(scope="module")
def site(run: Path) -> Path:
    return build_gallery(run)


def follow_addresses(site: Path) -> int:
    """Assert that every address of every page is a file of the site; returns how many there are."""
    count = 0
    for page in pages(site):
        for address in leaves(page):
            parts = urlsplit(address)
            assert parts.scheme + parts.netloc == "", f"{page}: {address} leads elsewhere"
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert target.is_file(), f"{page}: {address}"
            assert target.is_relative_to(site.resolve()), f"{page}: {address}"
            if parts.fragment:
                ids = {a.get("id") for _, a in Page(target).elements}
                assert unquote(parts.fragment) in ids, f"{page}: {address}"
            count += 1
    return count


def test_every_address_leads_to_a_file_inside_the_site(site: Path) -> None:
    assert follow_addresses(site) > 100


def test_every_page_is_reached_from_the_overview(site: Path) -> None:
    seen: set[Path] = set()
    waiting = [site / "index.html"]
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        targets = [(page.parent / unquote(urlsplit(a).path)).resolve() for a in leaves(page)]
        waiting += [
            t for t in targets if t.suffix == ".html" and t in map(Path.resolve, pages(site))
        ]
    assert seen >= {p.resolve() for p in pages(site)}


def test_every_picture_has_alt_and_waits_until_it_is_seen(site: Path) -> None:
    pictures = [a for page in pages(site) for a in Page(page).all("img")]
    assert len(pictures) > 10
    assert all(a["alt"].strip() and a["loading"] == "lazy" for a in pictures)


def test_ids_are_unique_and_pages_have_one_main_heading(site: Path) -> None:
    for page in pages(site):
        elements = Page(page).elements
        ids = [a["id"] for _, a in elements if "id" in a]
        assert len(ids) == len(set(ids)), page
        assert [tag for tag, _ in elements].count("h1") == 1, page
        labels = " ".join(a["aria-labelledby"] for _, a in elements if "aria-labelledby" in a)
        assert set(labels.split()) <= set(ids), page


def test_a_units_page_has_exactly_the_figures_that_name_it(run: Path, site: Path) -> None:
    named: dict[str, set[str]] = {}
    for path in run.rglob("result.json"):
        if site in path.parents:
            continue
        try:
            listed = json.loads(path.read_text()).get("figures", [])
        except ValueError:
            continue
        for item in listed:
            for unit in item["units"]:
                named.setdefault(unit_name(unit), set()).add(item["alt"])
    about = json.loads((site / "gallery.json").read_text())
    assert {u["unit"] for u in about["units"]} == set(named)
    for unit in about["units"]:
        shown = _zoomed(site / unit["page"])
        assert shown == named[unit["unit"]], unit


def _zoomed(page: Path) -> set[str]:
    elements = Page(page).elements
    return {
        elements[i + 1][1]["alt"]
        for i, (tag, a) in enumerate(elements)
        if tag == "a" and "zoom" in a.get("class", "").split()
    }


def test_a_results_page_has_all_its_figures_numbers_and_rows(site: Path) -> None:
    page = Page(site / "results" / "kernels-conv1.html")
    alts = {a["alt"] for a in page.all("img")}
    assert alts == {"Alt of sheet.png", *(f"Alt of units/conv1-{i}.png" for i in (0, 1, 2, 10))}
    assert "43.8%" in page.words
    assert "with a direction" in page.words
    assert "Two kernels are faint." in page.words
    assert "0.0625" in page.words
    assert [a["class"] for a in page.all("img") if "sheet" in a["src"]] == ["pixelated"]


def test_rows_of_tables_stand_on_the_units_page(site: Path) -> None:
    page = Page(site / "units" / "conv1-10.html")
    assert "0.0625" in page.words
    assert "0.125" not in page.words


def test_units_are_in_the_order_of_layers_and_numbers(site: Path) -> None:
    about = json.loads((site / "gallery.json").read_text())
    assert [u["unit"] for u in about["units"]] == [
        "conv1:0",
        "conv1:1",
        "conv1:2",
        "conv1:10",
        "conv5:3",
        "logits:tabby, tabby cat",
    ]
    links = Page(site / "units" / "conv1-2.html").all("link")
    turns = {a["rel"]: a["href"] for a in links if a["rel"] in ("prev", "next")}
    assert turns == {"prev": "../units/conv1-1.html", "next": "../units/conv1-10.html"}


def test_layers_sort_as_a_picture_meets_them() -> None:
    order = [
        "conv1",
        "relu1",
        "pool1",
        "conv2",
        "conv5",
        "pool5",
        "fc6",
        "relu6",
        "fc7",
        "features.2",
        "features.10",
        "logits",
    ]
    assert sorted(set(order), key=layer_key) == order
    assert sorted(["10", "9", "tabby 2", "tabby 10"], key=natural) == [
        "9",
        "10",
        "tabby 2",
        "tabby 10",
    ]


def test_a_page_of_a_result_is_framed_and_its_files_come_along(site: Path) -> None:
    frames = Page(site / "results" / "atlas.html").all("iframe")
    assert [a["src"] for a in frames] == ["../results/atlas/atlas.html"]
    assert (site / "results" / "atlas" / "tiles" / "0.js").is_file()


def test_a_large_page_of_a_result_is_linked_and_not_framed(tmp_path: Path) -> None:
    folder = write_result(tmp_path / "explorer", kind="explorer")
    (folder / "explorer.html").write_text("<!doctype html>" + " " * LARGEST_FRAME)
    page = Page(build_gallery(tmp_path) / "results" / "explorer.html")
    assert page.all("iframe") == []
    assert "../results/explorer/explorer.html" in [a["href"] for a in page.all("a")]


def test_a_result_of_many_figures_numbers_and_tables_shows_the_first_and_folds_the_rest(
    tmp_path: Path,
) -> None:
    tables = [{"file": f"{i}.csv", "caption": f"Rows {i}"} for i in range(5)]
    folder = write_result(
        tmp_path / "audit",
        kind="audit",
        figures=[figure(f"{i}.png") for i in range(8)],
        numbers={f"number {i}": i for i in range(13)},
        tables=tables,
    )
    for table in tables:
        (folder / table["file"]).write_text("name,value\na,1\n")
    text = (build_gallery(tmp_path) / "results" / "audit.html").read_text()
    folded = re.findall(r"<details>(.*?)</details>", text, re.DOTALL)
    assert len(folded) == 7
    assert ["3.png" in folded[0], "2.png" in folded[0]] == [True, False]
    assert "5 more figures" in folded[0]
    assert "All 13 numbers" in folded[1]
    assert all(f"Rows {i}" in folded[2 + i] for i in range(5))


def test_links_to_classes_have_their_names(tmp_path: Path) -> None:
    write_result(
        tmp_path / "classify",
        kind="classify",
        figures=[figure("a.png", ("logits:1",))],
        class_names={"1": "goldfish, Carassius auratus"},
    )
    text = (build_gallery(tmp_path) / "results" / "classify.html").read_text()
    assert '<a href="../units/logits-1.html" title="logits:1">goldfish</a>' in text


@pytest.mark.parametrize("sheet", ["gallery.css", "report.css"])
def test_columns_of_numbers_are_flush_right(sheet: str, tmp_path: Path) -> None:
    folder = write_result(tmp_path / "run", tables=[{"file": "a.csv", "caption": "Rows"}])
    (folder / "a.csv").write_text("name,value,words,share\na,1,b,0.5\n")
    text = (build_gallery(tmp_path) / "results" / "run.html").read_text()
    assert '<table class="n2 n4 ">' in text
    rules = (Path(build.__file__).parent / "static" / sheet).read_text()
    block = rules[rules.index(".n1 tr") :].partition("{ text-align: right")[0]
    assert all(f".n{i} tr > :nth-child({i})" in block for i in range(1, 25))


def test_an_unknown_kind_has_a_card_and_a_page(site: Path) -> None:
    assert "Of no known kind" in Page(site / "index.html").words
    assert "no text for this kind" in Page(site / "results" / "strange.html").words


def test_damaged_and_foreign_folders_are_named_with_a_reason(site: Path) -> None:
    words = Page(site / "index.html").words
    assert "Left out: 2 folders" in words
    left_out = json.loads((site / "gallery.json").read_text())["left_out"]
    reasons = {item["folder"]: item["reason"] for item in left_out}
    assert re.match(r"cannot be read \(Expecting value.*make the result again", reasons["damaged"])
    assert reasons["foreign"].endswith("this featviz reads 1")
    assert all(item["reason"] in words for item in left_out)


def test_nothing_tells_where_the_run_lay(run: Path, site: Path) -> None:
    for path in site.rglob("*"):
        if path.is_file():
            assert str(run).encode() not in path.read_bytes(), path


def test_the_same_results_give_the_same_bytes(run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "moved"
    shutil.copytree(run, elsewhere)
    first, second = build_gallery(run, tmp_path / "a"), build_gallery(elsewhere, tmp_path / "b")
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file())
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_a_gallery_inside_the_run_is_not_taken_for_results(
    run: Path, site: Path, tmp_path: Path
) -> None:
    assert site.parent == run
    again = build_gallery(run, tmp_path / "again")
    assert (again / "gallery.json").read_bytes() == (site / "gallery.json").read_bytes()


def test_arrays_are_copied_only_when_asked(run: Path, tmp_path: Path) -> None:
    file = Path("results") / "deep-maximize-conv5" / "images.npz"
    without = build_gallery(run, tmp_path / "without")
    assert not (without / file).exists()
    page = "results/deep-maximize-conv5.html"
    assert "images.npz" in Page(without / page).words
    assert not [a for a in leaves(without / page) if a.endswith(".npz")]
    with_arrays = build_gallery(run, tmp_path / "with", with_arrays=True)
    assert (with_arrays / file).read_bytes() == b"not looked into"
    assert [a for a in leaves(with_arrays / page) if a.endswith(".npz")]


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>\udc80\x00 & {{ 7 * 7 }}'


def test_texts_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    hostile = write_result(
        tmp_path / "run" / "a <b> & #1?.% 'c'",
        kind=HOSTILE,
        title=HOSTILE,
        numbers={HOSTILE: {"value": HOSTILE, "unit": HOSTILE, "meaning": HOSTILE}},
        figures=[
            figure('f <i> "#?%41.png', (f"conv1:{HOSTILE}",), caption=HOSTILE, alt=HOSTILE),
            figure("javascript:alert(1).png", ('a b#<i>"&.1:7', "a b#<i>&.1:8")),
        ],
        tables=[{"file": "t.csv", "caption": HOSTILE, "columns": ["unit"]}],
        warnings=[HOSTILE, 7, None],
        parameters={HOSTILE: HOSTILE, "deep": {"list": [HOSTILE]}},
        model={"name": HOSTILE, "sha256": HOSTILE, "input_size": HOSTILE, "classes": [1]},
        data=HOSTILE,
        versions={"featviz": HOSTILE},
        created=HOSTILE,
    )
    cell = HOSTILE.replace("\udc80", "").replace('"', '""')
    (hostile / "t.csv").write_text(f'unit\n"{cell}"\n')
    site = build_gallery(tmp_path / "run", title=HOSTILE)
    scripts = {"", "static/gallery.js", "../static/gallery.js"}
    for page in pages(site):
        read = Page(page)
        assert {a.get("src", "") for a in read.all("script")} <= scripts
        assert not [a for _, a in read.elements if any(name.startswith("on") for name in a)]
        assert "<script>alert(1)</script>" in read.words
        assert "49" not in read.words
    assert follow_addresses(site) > 10


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../secret.png", "outside the result folder"),
        ("sub/../../secret.png", "outside the result folder"),
        ("link.png", "outside the result folder"),
        ("..\\secret.png", "outside the result folder"),
        ("arrays.npz", "no gif, htm, html"),
        ("gone.png", "is missing"),
        ("text.png", "no picture that can be read"),
        ("plain.svg", "no picture that can be read"),
        (17, "without a name"),
    ],
)
def test_files_that_lead_out_or_are_no_pictures_are_refused(
    tmp_path: Path, name: object, why: str
) -> None:
    folder = write_result(tmp_path / "run" / "kernels")
    write_result(tmp_path, figures=[figure("secret.png")])
    (tmp_path / "result.json").unlink()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "text.png").write_text("no picture")
    (folder / "plain.svg").write_text("<p>no picture</p>")
    (folder / "arrays.npz").write_bytes(b"")
    document = {"schema": 1, "kind": "kernels", "title": "K", "figures": [{"file": name}]}
    (folder / "result.json").write_text(json.dumps(document))
    site = build_gallery(tmp_path / "run")
    page = Page(site / "results" / "kernels.html")
    assert page.all("img") == []
    assert re.search(f"Not shown here: .*{why}", page.words)
    assert not [p for p in site.rglob("*") if p.name in ("secret.png", "link.png", "arrays.npz")]


def test_an_absolute_name_is_refused(tmp_path: Path) -> None:
    folder = write_result(tmp_path / "run" / "kernels", figures=[figure("a.png")])
    document = json.loads((folder / "result.json").read_text())
    document["figures"][0]["file"] = str(folder / "a.png")
    (folder / "result.json").write_text(json.dumps(document))
    entry = read_entry(folder, "kernels")
    assert entry.figures == ()
    assert "outside the result folder" in entry.problems[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"figures": 5, "tables": "x", "arrays": {"a": 1}, "warnings": 3},
        {"figures": [1, None, "x"], "numbers": [1], "parameters": 2, "versions": []},
        {"kind": None, "title": 5, "seconds": "long", "created": 3, "seed": "x"},
        {"numbers": {"a": 1, "b": None, "c": {"value": [1, 2]}, "d": {}, "e": {"unit": 5}}},
        {"model": {"name": 3}, "data": {"name": "d", "count": "many"}},
        {"numbers": {"a": {"value": 1, "low": "0.5"}}, "seed": True},
    ],
)
def test_fields_of_the_wrong_type_are_named_and_spoil_nothing_else(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    folder = tmp_path / "run" / "odd"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"schema": 1} | fields))
    page = Page(build_gallery(tmp_path / "run") / "results" / "odd.html")
    assert re.search(r"Not shown here: \w+\S* is .*, not ", page.words)


def test_a_problem_names_the_field_what_it_is_and_what_it_should_be(tmp_path: Path) -> None:
    fields = {
        "kind": 7,
        "seconds": 2,
        "data": {"count": 1.5},
        "warnings": ["a", 3, None],
        "figures": [{"file": "a.png", "units": ["conv1:1", {}]}, "b.png"],
        "numbers": {"a": {"value": [1], "n": "many"}},
    }
    folder = write_result(tmp_path / "odd", figures=[figure("a.png")])
    (folder / "result.json").write_text(json.dumps({"schema": 1} | fields))
    entry = read_entry(folder, "odd")
    assert set(entry.problems) >= {
        "kind is a whole number, not a text",
        "data.count is a number, not a whole number",
        "warnings[1] is a whole number, not a text",
        "figures[0].units[1] is an object, not a text",
        "figures[1] is a text, not an object",
        "numbers.a.n is a text, not a whole number",
    }
    assert entry.seconds == 2
    assert entry.warnings == ("a",)
    assert entry.figures[0].units == ("conv1:1",)


def test_a_number_is_shown_with_its_interval_and_count(tmp_path: Path) -> None:
    numbers = {
        "top-1": {"value": 0.5, "unit": "fraction", "low": 0.4861, "high": 0.5139, "n": 5000},
        "blurred": {"value": 2.5, "unit": "pixels", "n": 12},
    }
    write_result(tmp_path / "run" / "eval", kind="eval", numbers=numbers)
    words = Page(build_gallery(tmp_path / "run") / "results" / "eval.html").words
    assert "95%: 48.6% to 51.4%, n = 5,000" in words
    assert "n = 12" in words


def test_the_command_is_shown_as_it_was_recorded(tmp_path: Path) -> None:
    write_result(tmp_path / "run" / "a", command="featviz maps 'a <b>.jpg'")
    write_result(tmp_path / "run" / "b", parameters={"layer": "conv1"})
    site = build_gallery(tmp_path / "run")
    assert "featviz maps 'a <b>.jpg'" in Page(site / "results" / "a.html").words
    made_in_python = site / "results" / "b.html"
    assert 'class="command"' not in made_in_python.read_text()
    assert "conv1" in Page(made_in_python).words


def test_pages_with_the_same_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    for folder in ("a/b", "a-b", "A b"):
        write_result(tmp_path / "run" / folder, title=f"Of {folder}")
    units = ("conv1:a b", "conv1:a-b", "conv1:a/b")
    write_result(
        tmp_path / "run" / "u", figures=[figure(f"{i}.png", (u,)) for i, u in enumerate(units)]
    )
    site = build_gallery(tmp_path / "run")
    about = json.loads((site / "gallery.json").read_text())
    assert len({r["page"] for r in about["results"]}) == 4
    for result in about["results"]:
        assert result["title"] in Page(site / result["page"]).words
    assert len({u["page"] for u in about["units"]}) == 3


def test_units_of_two_models_have_pages_of_their_own(tmp_path: Path) -> None:
    """Of the same name; a result that names a model in its parameters belongs to it."""
    for model, results in (("small", 1), ("large", 2)):
        for number in range(results):
            write_result(
                tmp_path / "run" / f"{model}-{number}",
                figures=[figure(f"{model}-{number}.png", ("conv5:0",))],
                model={"name": model, "sha256": model},
            )
    write_result(
        tmp_path / "run" / "growth",
        figures=[figure("growth.png", ("conv5:0",))],
        parameters={"model": "small"},
    )
    site = build_gallery(tmp_path / "run", first="small")
    units = json.loads((site / "gallery.json").read_text())["units"]
    assert [(u["model"], u["unit"]) for u in units] == [("small", "conv5:0"), ("large", "conv5:0")]
    small, large = (site / u["page"] for u in units)
    assert _zoomed(small) == {"Alt of small-0.png", "Alt of growth.png"}
    assert _zoomed(large) == {"Alt of large-0.png", "Alt of large-1.png"}
    assert "of large" in Page(large).words
    for result, unit in (("small-0", small), ("large-1", large), ("growth", small)):
        assert f"../units/{unit.name}" in leaves(site / "results" / f"{result}.html")
    follow_addresses(site)
    with pytest.raises(UserError, match=r"no result is of the model 'huge'; .*: large, small$"):
        build_gallery(tmp_path / "run", first="huge", overwrite=True)


def test_a_concept_is_no_channel_of_the_layer_that_it_was_found_in(tmp_path: Path) -> None:
    units = [f"{layer}:{i}" for layer in ("conv5", "relu5", "relu5/nmf6") for i in range(4)]
    figures = [figure(f"{i}.png", (unit,)) for i, unit in enumerate(units)]
    folder = write_result(tmp_path / "run" / "maximize", kind="maximize", figures=figures)
    for one in figures:
        Image.new("RGB", (16, 16)).save(folder / one["file"])  # square, as tiles are
    site = build_gallery(tmp_path / "run", tmp_path / "site")
    unit = Page(site / "units" / "conv5-0.html").words
    assert "The same channel elsewhere: relu5:0" in unit
    assert "nmf" not in unit.partition("The same channel elsewhere")[2].partition("\n")[0]
    assert "The same channel" not in Page(site / "units" / "relu5-nmf6-0.html").words
    wall = (site / "index.html").read_text().partition('id="story"')[0]
    assert "units/relu5-0.html" in wall
    assert "units/relu5-nmf6-0.html" not in wall


def test_only_a_gallery_is_replaced_and_only_when_asked(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_result(run / "kernels")
    site = build_gallery(run, tmp_path / "site")
    (site / "stale.html").write_text("old")
    with pytest.raises(UserError, match="exists; add --overwrite"):
        build_gallery(run, site)
    assert (site / "stale.html").exists()
    build_gallery(run, site, overwrite=True)
    assert not (site / "stale.html").exists()
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not empty and not a gallery"):
            build_gallery(run, run, overwrite=overwrite)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        build_gallery(run, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert (build_gallery(run, tmp_path / "empty") / "index.html").is_file()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_nothing_to_show_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        build_gallery(tmp_path / "nowhere")
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="has no results; make some first"):
        build_gallery(tmp_path / "run")
    (tmp_path / "run" / "bad").mkdir()
    (tmp_path / "run" / "bad" / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"no result that can be shown \(bad: cannot be read"):
        build_gallery(tmp_path / "run")
    assert not (tmp_path / "run" / "gallery").exists()


def test_a_failed_build_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    write_result(run / "kernels")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("featviz.gallery.build._write_pages", full)
    with pytest.raises(UserError, match="no space left on the disk"):
        build_gallery(run, tmp_path / "site")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_single_result_folder_is_a_run_of_one(tmp_path: Path) -> None:
    write_result(tmp_path / "kernels", figures=[figure("a.png")])
    site = build_gallery(tmp_path / "kernels", tmp_path / "site")
    assert (site / "results" / "kernels.html").is_file()


def test_building_imports_no_torch(tmp_path: Path) -> None:
    write_result(tmp_path / "run" / "kernels", figures=[figure("a.png")])
    code = (
        "import sys; from featviz.gallery.build import build_gallery; "
        f"build_gallery({str(tmp_path / 'run')!r}); "
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_kind_has_a_chapter_and_every_chapter_words() -> None:
    assert {kind for group in GROUPS for kind in group.kinds} == set(KINDS)


def test_numbers_are_said_for_people() -> None:
    assert [show_size(n) for n in (999, 1_500, 2_340_000)] == ["999 bytes", "2 kB", "2.3 MB"]
    assert [show_seconds(s) for s in (1.234, 65, 7800)] == ["1.23 s", "1 min 5 s", "2 h 10 min"]
    assert show_time("2026-03-01T09:05:00+00:00") == "1 March 2026, 09:05 UTC"
    assert show_time("yesterday") == "yesterday"
    assert [short_cell(c) for c in ("0.0662913", "12345678", "n01.jpg", "-1.25")] == [
        "0.06629",
        "12345678",
        "n01.jpg",
        "-1.25",
    ]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("conv5:12", "conv5:12"),
        (" conv5:12@6,6 ", "conv5:12"),
        ("logits:tabby, tabby cat", "logits:tabby, tabby cat"),
        ("conv5", ""),
        (":3", ""),
        ("conv5:", ""),
        ("", ""),
    ],
)
def test_units_are_named_without_their_position(given: str, name: str) -> None:
    assert unit_name(given) == name


def test_a_small_pictures_caption_says_what_its_label_does_not() -> None:
    def parts(caption: str) -> tuple[str, str]:
        return Figure("a.png", caption, "a", ("conv1:3",), False, 1, 1, False).caption_parts

    assert parts("Kernel of conv1:3: stripes. Scaled by 2.") == ("stripes.", "Scaled by 2.")
    assert parts("Just one sentence.") == ("Just one sentence.", "")
    assert parts("Of conv1:3") == ("Of conv1:3", "")
