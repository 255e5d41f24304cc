"""The atlas's page in a browser, from file://, with a mouse, with fingers and with keys."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from browser_driver import console_errors, open_browser, resize
from made_up_page import color_of, made_up_page
from PIL import Image

from featviz.atlas import viewer
from featviz.atlas.build import build_atlas
from featviz.atlas.icons import IconSettings
from featviz.atlas.layout import LayoutSettings
from featviz.atlas.result import Atlas
from featviz.atlas.viewer.data import PageData
from featviz.atlas.viewer.page import render_page
from featviz.data.samples import sample_pictures
from featviz.embedding.extract import embed
from featviz.models.model import Model

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from selenium.webdriver import Chrome

pytestmark = [pytest.mark.browser, pytest.mark.slow]

RENDERERS = ("webgl2", "canvas")

Made = tuple[Atlas, str]
Large = tuple[PageData, str]
"""what is shown, and the address of its page"""


@pytest.fixture(scope="module")
def made(mini: Model, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A small real atlas with icons of both kinds, and the address of its page."""
    store = embed(mini, sample_pictures(4))
    atlas = build_atlas(
        mini,
        store,
        icons="both",
        icon_side=4,
        icon=IconSettings(steps=2),
        layout=LayoutSettings(steps=(50, 100)),
    )
    folder = tmp_path_factory.mktemp("atlas") / "a"
    atlas.save(folder)
    return atlas, (folder / "atlas.html").as_uri()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Large:
    """3,000 rows in flat colors, half of them without a picture."""
    atlas = made_up_page(3000, pictured=1500)
    file = tmp_path_factory.mktemp("large") / "atlas.html"
    file.write_text(render_page(atlas), encoding="utf-8")
    return atlas, file.as_uri()


@pytest.fixture(scope="module")
def opened() -> Iterator[Chrome]:
    with open_browser(1300, 850) as browser:
        yield browser


@pytest.fixture
def browser(opened: Chrome) -> Iterator[Chrome]:
    """One browser for all tests; each leaves it without complaints."""
    resize(opened, 1300, 850)
    set_scheme(opened, "light")
    yield opened
    assert console_errors(opened) == []


def set_scheme(browser: Chrome, scheme: str) -> None:
    wanted = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [wanted]})


def wait(browser: Chrome, condition: str) -> None:
    for _ in range(300):
        if browser.execute_script(f"return Boolean({condition})"):
            return
        time.sleep(0.03)
    pytest.fail(f"the page never came to {condition}")


def rest(browser: Chrome) -> None:
    wait(browser, "window.atlas && atlas.state().ready && !atlas.state().moving")


def visit(browser: Chrome, page: str, *, renderer: str = "webgl2", address: str = "") -> None:
    """Open a page at an address, and skip the test where it should draw by WebGL2 and cannot.

    A page that is open already only gets the new address, which puts everything back.
    """
    place = f"{page}?renderer={renderer}"
    if browser.current_url.partition("#")[0] != place:
        browser.get("about:blank")
        browser.get(f"{place}#{address}")
    else:
        browser.execute_script(
            "delete document.documentElement.dataset.theme;"
            "location.hash = `${arguments[0]}&again=${Math.random()}`",
            address,
        )
        wait(browser, "!location.hash.includes('again')")
    rest(browser)
    found = browser.execute_script("return atlas.renderer")
    if renderer == "webgl2" and found != "webgl2":
        pytest.skip("this browser has no WebGL2; the page drew on a 2-D canvas")
    assert found == renderer


def point_at(browser: Chrome, x: float, y: float, *, click: bool = False) -> None:
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    actions = ActionBuilder(browser, duration=10)
    actions.pointer_action.move_to_location(round(x), round(y))
    if click:
        actions.pointer_action.click()
    actions.perform()


def point_at_row(browser: Chrome, row: int, *, click: bool = False) -> None:
    place = browser.execute_script(f"return atlas.screenOf({row})")
    point_at(browser, place["x"], place["y"], click=click)


def press(browser: Chrome, keys: str) -> None:
    from selenium.webdriver.common.by import By

    browser.find_element(By.ID, "canvas").send_keys(keys)


def click_button(browser: Chrome, selector: str) -> None:
    browser.execute_script(f'document.querySelector("{selector}").click()')
    rest(browser)


def search(browser: Chrome, words: str) -> None:
    browser.execute_script(
        "const s = document.getElementById('search'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('input'))",
        words,
    )
    rest(browser)


def text(browser: Chrome, element: str) -> str:
    found: str = browser.execute_script(f"return document.getElementById('{element}').innerText")
    return found


def state(browser: Chrome) -> dict[str, Any]:
    found: dict[str, Any] = browser.execute_script("return atlas.state()")
    return found


def screenshot(browser: Chrome) -> NDArray[np.int64]:
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(taken))).convert("RGB")).astype(int)


@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (1300, "dark"), (390, "light")])
def test_pointing_shows_the_true_neighbors(
    browser: Chrome, made: Made, width: int, scheme: str
) -> None:
    atlas, page = made
    row = 7
    resize(browser, width, 850)
    set_scheme(browser, scheme)
    visit(browser, page)
    corner = screenshot(browser)[80 if width > 700 else 120, 4]
    assert (corner.max() < 60) == (scheme == "dark")
    point_at_row(browser, row)
    wait(browser, f"atlas.state().hovered === {row}")
    shown = text(browser, "found")
    assert atlas.name(row) in shown
    assert atlas.store.pictures.paths[row] in shown
    listed = browser.execute_script(
        "return [...document.querySelectorAll('#found .near button')].map((b) => b.title)"
    )
    paths = atlas.store.pictures.paths
    assert [title.partition(" (")[2].rstrip(")") for title in listed] == [
        paths[near] for near in atlas.neighbors[row].tolist()
    ]
    assert f"{float(atlas.distances[row, 0]):.2f}" in shown
    far = browser.execute_script(
        "return [...document.querySelectorAll('#found .near li')].map((li) => li.className)"
    )
    assert [name == "far" for name in far] == (~atlas.quality.kept[row]).tolist()
    assert browser.execute_script(
        "return document.documentElement.scrollWidth <= window.innerWidth"
    )


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize(
    "address", ["view=map&at=0.5,0.5,3", "view=mosaic", "view=points&at=0.5,0.5,2"]
)
def test_the_picture_drawn_at_a_place_is_the_one_that_is_there(
    browser: Chrome, large: Large, renderer: str, address: str
) -> None:
    """What the eye sees at the middle of a picture is that row's color, and pointing finds it."""
    atlas, page = large
    visit(browser, page, renderer=renderer, address=address)
    seen = screenshot(browser)
    right = browser.execute_script("return document.getElementById('canvas').clientWidth") - 60
    places = browser.execute_script(
        "return arguments[0].filter(atlas.isPicture).map((row) => {"
        "  const place = atlas.screenOf(row);"
        "  return {row, ...place, at: atlas.thingAt(place.x, place.y)};"
        "})",
        atlas.thumbnails.rows.tolist(),
    )
    whole = max(place["size"] for place in places) - 0.5  # others are about to appear
    tried = 0
    for place in places:
        row, x, y = place["row"], place["x"], place["y"]
        if place["size"] < whole or not (20 < x < right and 70 < y < 780):
            continue
        if place["at"] != {"row": row}:  # among points another picture may cover this one
            assert "points" in address
            continue
        tried += 1
        color = color_of(torch.tensor(row)).numpy()
        assert np.abs(seen[int(y), int(x)] - color).max() <= 8, row
        if "points" not in address:  # and it fills its place, up to the gap
            reach = int(place["size"] / 2 - 2)
            assert np.abs(seen[int(y) - reach, int(x) - reach] - color).max() <= 8
    assert tried > 40


@pytest.mark.parametrize(
    "address", ["view=points", "view=map", "view=mosaic", "view=cells", "view=cells&at=0.4,0.5,2"]
)
def test_both_ways_to_draw_have_the_same_things_under_the_cursor(
    browser: Chrome, large: Large, address: str
) -> None:
    _, page = large
    found, drawn = [], []
    for renderer in RENDERERS:
        visit(browser, page, renderer=renderer, address=address)
        found.append(
            browser.execute_script(
                "const found = []; for (let y = 80; y < 800; y += 23)"
                "for (let x = 20; x < 900; x += 23) found.push(atlas.thingAt(x, y)); return found"
            )
        )
        drawn.append(screenshot(browser)[60:800, :880])
    assert found[0] == found[1]
    assert sum(thing is not None for thing in found[0]) > 100
    differing = np.abs(drawn[0] - drawn[1]).max(2) > 40  # edges are smoothed in two ways
    assert differing.mean() < 0.03


def test_dots_become_pictures_as_one_comes_nearer_and_none_vanishes(
    browser: Chrome, large: Large
) -> None:
    atlas, page = large
    visit(browser, page, address="view=points")
    count = f"return {atlas.thumbnails.rows.tolist()}.filter((row) => atlas.isPicture(row))"
    before: set[int] = set()
    for near in (1, 2, 4, 8, 32):
        browser.execute_script(f"atlas.look(0.5, 0.5, {near})")
        rest(browser)
        now = set(browser.execute_script(count))
        assert before <= now
        before = now
    assert len(before) > 1000
    # Rows without a picture stay dots, and can be pointed at.
    bare = 1
    assert bare not in atlas.thumbnails.rows.tolist()
    x, y = atlas.xy[bare].tolist()
    browser.execute_script(f"atlas.look({x}, {y}, 60)")
    rest(browser)
    point_at_row(browser, bare)
    wait(browser, f"atlas.state().hovered === {bare}")
    assert "000001.jpg" in text(browser, "found")


def test_names_are_below_pictures_of_their_class(browser: Chrome, large: Large) -> None:
    atlas, page = large
    visit(browser, page, address="view=points&at=0.5,0.5,2")
    named = browser.execute_script("return atlas.named()")
    assert len(named) > 2
    own = torch.arange(3000) % 20
    for row in named:
        # In the made-up atlas all true neighbors are of a row's class; which are kept is chance.
        assert int(atlas.kept[row].sum()) >= 4
        pictured = browser.execute_script(f"return atlas.isPicture({row})")
        assert pictured or row not in atlas.thumbnails.rows.tolist()  # else by its dot
    assert len({int(own[row]) for row in named}) == len(named)  # each class once
    before = screenshot(browser)
    press(browser, "l")
    rest(browser)
    assert (np.abs(before - screenshot(browser)).max(2) > 60).sum() > 100
    assert not state(browser)["names"]
    wait(browser, "location.hash.includes('names=off')")


def test_a_processor_that_plays_graphics_card_is_left_alone(browser: Chrome, large: Large) -> None:
    """Where WebGL2 would be drawn by the processor the canvas is several times as fast."""
    _, page = large
    visit(browser, page)
    if "SwiftShader" not in browser.execute_script("return atlas.about()"):
        pytest.skip("this browser draws WebGL2 by a graphics card")
    browser.get(page)
    rest(browser)
    assert browser.execute_script("return atlas.renderer") == "canvas"


def test_the_graphics_card_may_lose_everything(browser: Chrome, large: Large) -> None:
    _, page = large
    visit(browser, page, address="view=mosaic")
    before = screenshot(browser)
    browser.execute_script("window.lost = atlas.loseContext(); lost.loseContext()")
    time.sleep(0.1)
    browser.execute_script("lost.restoreContext()")
    time.sleep(0.1)
    rest(browser)
    time.sleep(0.1)
    after = screenshot(browser)
    console_errors(browser)  # the browser itself reports the loss
    assert (np.abs(before - after).max(2) > 8).mean() < 0.001


def test_squares_become_finer_as_one_comes_nearer(browser: Chrome, made: Made) -> None:
    atlas, page = made
    visit(browser, page, address="view=cells")
    sides = [level.grid.side for level in atlas.levels]
    seen = []
    for near in (0.3, 1, 2, 8):
        browser.execute_script(f"atlas.look(0.5, 0.5, {near})")
        rest(browser)
        seen.append(state(browser)["side"])
    assert seen == sorted(seen)
    assert seen[-1] == max(sides)


def test_icons_are_toggled_and_a_square_tells_what_is_in_it(browser: Chrome, made: Made) -> None:
    atlas, page = made
    visit(browser, page)
    assert not browser.execute_script("return document.getElementById('icons').offsetWidth")
    press(browser, "c")
    rest(browser)
    pictures = screenshot(browser)
    click_button(browser, "[data-icons=synthetic]")
    assert state(browser)["side"] == 4  # only these were made
    synthetic = screenshot(browser)
    assert (np.abs(pictures - synthetic).max(2) > 30).mean() > 0.05
    level = next(level for level in atlas.levels if level.grid.side == 4)
    place = browser.execute_script("return atlas.screenOf(0)")
    point_at(browser, place["x"], place["y"], click=True)
    made_icons = level.synthetic
    assert made_icons is not None
    assert made_icons.nearest is not None
    assert level.effects is not None
    number = next(i for i, cell in enumerate(level.grid.cells) if 0 in cell.members)
    wait(browser, f"atlas.state().cell === {number}")
    shown = text(browser, "found")
    members = level.grid.cells[number].members
    assert f"{len(members)} picture" in shown
    assert "in this square of 4 × 4" in shown
    assert f"cosine to the mean {float(made_icons.cosines[number].clamp_min(0)):.2f}" in shown
    assert f"cosine to their mean {float(level.cosines[number]):.2f}" in shown
    assert level.classes[number][0][0] in shown
    raised = ", ".join(name for name, _ in level.effects[number][:3])
    assert f"The mean raises most the logits of {raised}." in shown
    other = int(made_icons.nearest[number]) != number
    assert ("nearer to the mean of another square" in shown) == other
    press(browser, "i")
    assert state(browser)["icons"] == "sample"


def test_views_keep_their_places(browser: Chrome, made: Made) -> None:
    atlas, page = made
    visit(browser, page)
    click_button(browser, "[data-view=mosaic]")
    assert state(browser)["view"] == "mosaic"
    columns = int(atlas.mosaic[0][:, 0].max()) + 1
    places = [browser.execute_script(f"return atlas.screenOf({row})") for row in (0, 1)]
    moved = (atlas.mosaic[0][1] - atlas.mosaic[0][0]).tolist()
    assert places[1]["x"] - places[0]["x"] == pytest.approx(moved[0] * places[0]["size"], abs=0.01)
    assert places[0]["size"] == pytest.approx(state(browser)["scale"] / columns)
    click_button(browser, "[data-view=points]")
    places = [browser.execute_script(f"return atlas.screenOf({row})") for row in (0, 1)]
    moved = (atlas.layout.xy[1] - atlas.layout.xy[0]).tolist()
    scale = state(browser)["scale"]
    assert places[1]["x"] - places[0]["x"] == pytest.approx(moved[0] * scale, abs=0.05)
    assert places[1]["y"] - places[0]["y"] == pytest.approx(moved[1] * scale, abs=0.05)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_matches_of_a_search_stand_out(browser: Chrome, large: Large, renderer: str) -> None:
    _, page = large
    visit(browser, page, renderer=renderer, address="view=mosaic")
    before = screenshot(browser)
    search(browser, "class 08")
    assert text(browser, "count") == "150 found"
    after = screenshot(browser)
    same = [(row % 20 == 8) for row in range(0, 400, 2)]
    places = browser.execute_script(
        "return arguments[0].map(atlas.screenOf)", list(range(0, 400, 2))
    )
    for row, sought, place in zip(range(0, 400, 2), same, places, strict=True):
        x, y = int(place["x"]), int(place["y"])
        changed = np.abs(before[y, x] - after[y, x]).max() > 40
        assert changed != sought, row
    search(browser, "class:class 0")  # a whole name, and there is none such
    assert text(browser, "count") == "nothing found"
    search(browser, "000123")  # files are found too
    assert text(browser, "count") == "1 found"
    press(browser, "n")
    assert state(browser)["pinned"] == 123
    click_button(browser, "#clear")
    assert state(browser)["found"] == 0
    assert text(browser, "count") == ""


def test_the_legend_finds_a_class(browser: Chrome, large: Large) -> None:
    _, page = large
    visit(browser, page)
    lines = browser.execute_script(
        "document.getElementById('classList').open = true;"
        "return [...document.querySelectorAll('#classes button')].map((b) => b.innerText)"
    )
    assert len(lines) == 20
    assert lines[3].split() == ["class", "03", "150"]
    colors = browser.execute_script(
        "return [...document.querySelectorAll('#classes .swatch')].map((i) => i.style.background)"
    )
    assert len(set(colors)) > 6
    click_button(browser, "#classes li:nth-child(4) button")
    assert state(browser)["find"] == "class:class 03"
    assert state(browser)["found"] == 150


def test_kept_neighbors_are_shown_by_frames(browser: Chrome, made: Made) -> None:
    atlas, page = made
    visit(browser, page, address="color=kept")
    assert browser.execute_script("return !document.getElementById('legend').hidden")
    steps = [(213, 94, 0), (230, 159, 0), (150, 150, 150), (86, 180, 233), (0, 114, 178)]
    seen = screenshot(browser)
    for row in range(0, 76, 5):
        place = browser.execute_script(f"return atlas.screenOf({row})")
        shown = place["size"] - 1
        x, y = place["x"] - shown / 2 + 1, place["y"]
        share = float(atlas.quality.per_row[row])
        assert np.abs(seen[int(y), int(x)] - steps[min(4, int(share * 5))]).max() < 60, row


def test_the_map_is_walked_by_keys(browser: Chrome, made: Made) -> None:
    from selenium.webdriver.common.keys import Keys

    atlas, page = made
    visit(browser, page)
    browser.execute_script("document.getElementById('canvas').focus()")
    before = state(browser)["scale"]
    press(browser, "+")
    assert state(browser)["scale"] == pytest.approx(1.4 * before)
    press(browser, "0")
    rest(browser)
    assert state(browser)["scale"] == pytest.approx(before)
    press(browser, Keys.ARROW_LEFT)
    first = state(browser)["pinned"]
    assert first is not None
    x = browser.execute_script(f"return atlas.screenOf({first}).x")
    press(browser, Keys.ARROW_RIGHT)
    second = state(browser)["pinned"]
    assert second != first
    assert browser.execute_script(f"return atlas.screenOf({second}).x") > x
    wait(browser, f"location.hash.endsWith('row={second}')")
    assert atlas.name(second) in text(browser, "found")
    for key, view in (("p", "points"), ("o", "mosaic"), ("c", "cells"), ("m", "map")):
        press(browser, key)
        rest(browser)
        assert state(browser)["view"] == view
    press(browser, Keys.ESCAPE)
    assert state(browser)["pinned"] is None
    assert "About this map" in text(browser, "found")


def test_zoom_drag_and_touch_move_the_map(browser: Chrome, made: Made) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    _, page = made
    visit(browser, page)
    canvas = browser.find_element(By.ID, "canvas")
    place = browser.execute_script("return atlas.screenOf(3)")
    before = state(browser)["scale"]
    browser.execute_script(
        "arguments[0].dispatchEvent(new WheelEvent('wheel', {deltaY: -300,"
        "clientX: arguments[1], clientY: arguments[2], cancelable: true}))",
        canvas,
        place["x"],
        place["y"],
    )
    assert state(browser)["scale"] > 1.5 * before
    # what is under the pointer stays there; events come at whole pixels
    now = browser.execute_script("return atlas.screenOf(3)")
    assert (now["x"], now["y"]) == pytest.approx((place["x"], place["y"]), abs=1)
    ActionChains(browser).drag_and_drop_by_offset(canvas, 60, 40).perform()
    moved = browser.execute_script("return atlas.screenOf(3)")
    assert moved["x"] - now["x"] == pytest.approx(60, abs=4)
    assert moved["y"] - now["y"] == pytest.approx(40, abs=4)
    assert state(browser)["pinned"] is None  # a drag is no click
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    scale = state(browser)["scale"]
    for kind, points in (
        ("touchStart", [(400, 400), (500, 400)]),
        ("touchMove", [(380, 400), (520, 400)]),
        ("touchMove", [(350, 400), (550, 400)]),
        ("touchEnd", []),
    ):
        browser.execute_cdp_cmd(
            "Input.dispatchTouchEvent",
            {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]},
        )
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    assert state(browser)["scale"] > 1.3 * scale
    assert state(browser)["pinned"] is None


def test_an_address_leads_back(browser: Chrome, made: Made) -> None:
    atlas, page = made
    visit(browser, page, address="view=mosaic&at=0.4,0.3,2.5&color=kept&row=5")
    found = state(browser)
    assert (found["view"], found["color"], found["pinned"]) == ("mosaic", "kept", 5)
    assert (found["x"], found["y"]) == pytest.approx((0.4, 0.3), abs=1e-4)
    assert found["near"] == pytest.approx(2.5)
    assert atlas.name(5) in text(browser, "found")
    press(browser, "c")
    rest(browser)
    click_button(browser, "[data-icons=synthetic]")
    search(browser, atlas.name(0))
    place = browser.execute_script("return atlas.screenOf(0)")
    point_at(browser, place["x"], place["y"], click=True)
    wait(browser, "location.hash.includes('cell=') && location.hash.includes('find=')")
    before = state(browser)
    address = browser.execute_script("return location.hash.slice(1)")
    visit(browser, page, address=address)
    after = state(browser)
    for name in ("view", "icons", "color", "find", "found", "cell", "side"):
        assert after[name] == before[name], name
    visit(browser, page, address="view=nowhere&row=99999&at=a,b&cell=7.7&color=pink")
    assert state(browser)["view"] == "map"
    assert state(browser)["pinned"] is None


def test_a_picture_is_linked_if_asked_for(browser: Chrome, mini: Model, tmp_path: Path) -> None:
    from featviz.data.datasets import open_pictures

    folder = tmp_path / "my pictures" / "a#b"
    folder.mkdir(parents=True)
    for number in range(6):
        color = tuple(color_of(torch.tensor(number)).tolist())
        Image.new("RGB", (32, 32), color).save(folder / f"{number} ä.png")
    store = embed(mini, open_pictures(tmp_path / "my pictures"))
    page = tmp_path / "atlas.html"
    page.write_text(render_page(build_atlas(None, store, links=True).page()), encoding="utf-8")
    visit(browser, page.as_uri(), address="row=2")
    link = browser.execute_script("return document.querySelector('#found .path a').href")
    browser.get(link)
    shown = browser.execute_script("return document.images[0].naturalWidth")
    assert shown == 32


def test_light_and_dark_and_the_card(browser: Chrome, made: Made) -> None:
    atlas, page = made
    visit(browser, page)
    card = text(browser, "found")
    assert f"{len(atlas.rows)} pictures" in card
    assert f"{100 * atlas.quality.recall:.0f}%" in card
    assert f"{100 * atlas.quality.recall:.0f}%" in text(browser, "quality")
    before = screenshot(browser)[100, 5]
    click_button(browser, "#theme")
    after = screenshot(browser)[100, 5]
    assert before.min() > 200
    assert after.max() < 60


def test_tiles_hold_every_row_once_and_a_share_of_them_is_an_even_sample(browser: Chrome) -> None:
    """The order in which large maps are drawn, without a page of so many rows."""
    browser.get("about:blank")
    found = browser.execute_script(
        (Path(viewer.__file__).parent / "places.js").read_text(encoding="utf-8")
        + """
        const count = 6000, at = new Float32Array(2 * count);
        for (let row = 0; row < count; row++) {
          at[2 * row] = (row * 0.618) % 1; at[2 * row + 1] = 0.2 + 0.5 * ((row * 0.7549) % 1);
        }
        const tiles = makeTiles(at, 8);
        const rows = (ranges) => ranges.flatMap(([a, b]) => Array.from(tiles.rows.subarray(a, b)));
        const all = rows(tiles.ranges(-1, -1, 2, 2, Infinity));
        const some = rows(tiles.ranges(-1, -1, 2, 2, 1500));
        const near = new Set(rows(tiles.ranges(0.3, 0.3, 0.5, 0.4, Infinity)));
        const inside = (row) => at[2 * row] >= 0.3 && at[2 * row] <= 0.5
          && at[2 * row + 1] >= 0.3 && at[2 * row + 1] <= 0.4;
        const missed = all.filter((row) => inside(row) && !near.has(row));
        const left = some.filter((row) => at[2 * row] < 0.5);
        const early = some.filter((row) => row < 3000);
        return [new Set(all).size, all.length, new Set(some).size, missed.length, near.size,
          left.length / some.length, early.length / some.length];
        """
    )
    distinct, everything, sampled, missed, near, left, early = found
    assert distinct == everything == 6000
    assert 1500 <= sampled <= 1564
    assert missed == 0
    assert near < 2000
    assert left == pytest.approx(0.5, abs=0.05)
    assert early == pytest.approx(0.5, abs=0.1)
