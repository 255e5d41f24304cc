"""The atlas's page in a browser, from file://, with a mouse and with keys."""

from __future__ import annotations

import time

import pytest
import torch
from browser_driver import console_errors, open_browser

from featviz.atlas.build import Atlas, build_atlas
from featviz.embedding.extract import embed
from featviz.samples import sample_pictures

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def made(mini, tmp_path_factory: pytest.TempPathFactory) -> tuple[Atlas, str]:
    store = embed(mini, sample_pictures(4))
    atlas = build_atlas(mini, store, icons="both", icon_side=4, icon_steps=2, iterations=(50, 100))
    folder = tmp_path_factory.mktemp("atlas") / "a"
    atlas.save(folder)
    return atlas, (folder / "atlas.html").as_uri()


def wait(browser, condition: str) -> None:
    for _ in range(200):
        if browser.execute_script(f"return Boolean({condition})"):
            return
        time.sleep(0.1)
    pytest.fail(f"the page never came to {condition}")


def visit(browser, page: str) -> None:
    browser.get(page)
    wait(browser, "window.atlas && atlas.state().ready && !atlas.state().moving")


def point_at(browser, row: int, *, click: bool = False) -> None:
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    place = browser.execute_script(f"return atlas.screenOf({row})")
    actions = ActionBuilder(browser, duration=20)
    actions.pointer_action.move_to_location(int(place["x"]), int(place["y"]))
    if click:
        actions.pointer_action.click()
    actions.perform()


def press(browser, keys: str) -> None:
    from selenium.webdriver.common.by import By

    browser.find_element(By.ID, "canvas").send_keys(keys)


def text(browser, element: str) -> str:
    return browser.execute_script(f"return document.getElementById('{element}').innerText")


def state(browser) -> dict:
    return browser.execute_script("return atlas.state()")


@pytest.mark.parametrize(("width", "dark"), [(1300, False), (1300, True), (390, False)])
def test_pointing_shows_the_true_neighbours(made, width: int, dark: bool) -> None:
    atlas, page = made
    row = 7
    with open_browser(width, 850, dark=dark) as browser:
        visit(browser, page)
        point_at(browser, row)
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
        far = browser.execute_script("return document.querySelectorAll('#found .torn').length")
        assert far == int((~atlas.quality.kept[row]).sum())
        ground = browser.execute_script(
            "const p = document.getElementById('canvas').getContext('2d')"
            ".getImageData(1, 1, 1, 1).data; return p[0]"
        )
        assert (ground < 60) == dark
        assert browser.execute_script(
            "return document.documentElement.scrollWidth <= window.innerWidth"
        )
        assert console_errors(browser) == []


def test_the_map_is_walked_by_keys(made) -> None:
    from selenium.webdriver.common.keys import Keys

    atlas, page = made
    with open_browser() as browser:
        visit(browser, page)
        browser.execute_script("document.getElementById('canvas').focus()")
        before = state(browser)["scale"]
        press(browser, "+")
        assert state(browser)["scale"] == pytest.approx(1.4 * before)
        press(browser, "0")
        wait(browser, "!atlas.state().moving")
        assert state(browser)["scale"] == pytest.approx(before)
        press(browser, Keys.ARROW_LEFT)
        first = state(browser)["pinned"]
        assert first is not None
        x = browser.execute_script(f"return atlas.screenOf({first}).x")
        press(browser, Keys.ARROW_RIGHT)
        second = state(browser)["pinned"]
        assert second != first
        assert browser.execute_script(f"return atlas.screenOf({second}).x") > x
        assert browser.current_url.endswith(f"#row={second}")
        assert atlas.name(second) in text(browser, "found")
        press(browser, Keys.ESCAPE)
        assert state(browser)["pinned"] is None
        assert console_errors(browser) == []


def test_views_icons_search_and_theme(made) -> None:
    atlas, page = made
    with open_browser() as browser:
        visit(browser, page)

        def press_button(selector: str) -> None:
            browser.execute_script(f'document.querySelector("{selector}").click()')
            wait(browser, "!atlas.state().moving")

        press_button("[data-view=mosaic]")
        assert state(browser)["view"] == "mosaic"
        columns = int(atlas.mosaic[0][:, 0].max()) + 1
        places = [browser.execute_script(f"return atlas.screenOf({row})") for row in (0, 1)]
        moved = (atlas.mosaic[0][1] - atlas.mosaic[0][0]).tolist()
        assert places[1]["x"] - places[0]["x"] == pytest.approx(moved[0] * places[0]["size"])
        assert places[0]["size"] == pytest.approx(state(browser)["scale"] / columns)

        press_button("[data-view=cells]")
        assert state(browser)["side"] == 8  # the finest that is large enough
        press_button("[data-icons=synthetic]")
        assert state(browser)["side"] == 4  # only these were made
        point_at(browser, 0)
        wait(browser, "document.getElementById('found').innerText.includes('cosine')")
        assert "pictures in this square of 4" in text(browser, "found")

        press_button("[data-view=map]")
        name = atlas.name(0)
        browser.execute_script(
            "const s = document.getElementById('search'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input'))", name,
        )  # fmt: skip
        same = sum(atlas.name(row) == name for row in range(len(atlas.rows)))
        wait(browser, f"document.getElementById('count').innerText.startsWith('{same} found')")

        before = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        press_button("#theme")
        after = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert before != after
        press_button("#trust")
        assert browser.execute_script("return !document.getElementById('legend').hidden")
        assert console_errors(browser) == []


def test_zoom_drag_and_touch_move_the_map(made) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    _, page = made
    with open_browser() as browser:
        visit(browser, page)
        canvas = browser.find_element(By.ID, "canvas")
        place = browser.execute_script("return atlas.screenOf(3)")
        before = state(browser)["scale"]
        browser.execute_script(
            "arguments[0].dispatchEvent(new WheelEvent('wheel', {deltaY: -300,"
            "clientX: arguments[1], clientY: arguments[2], cancelable: true}))",
            canvas, place["x"], place["y"],
        )  # fmt: skip
        assert state(browser)["scale"] > 1.5 * before
        # what is under the pointer stays there; events come at whole pixels
        now = browser.execute_script("return atlas.screenOf(3)")
        assert (now["x"], now["y"]) == pytest.approx((place["x"], place["y"]), abs=1)
        ActionChains(browser).drag_and_drop_by_offset(canvas, 120, 40).perform()
        moved = browser.execute_script("return atlas.screenOf(3)")
        assert moved["x"] - now["x"] == pytest.approx(120, abs=2)
        assert moved["y"] - now["y"] == pytest.approx(40, abs=2)
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
        assert state(browser)["scale"] > 1.3 * scale
        assert console_errors(browser) == []


def test_an_address_leads_back_to_a_picture(made) -> None:
    atlas, page = made
    with open_browser() as browser:
        visit(browser, f"{page}#view=mosaic&row=5")
        assert state(browser)["view"] == "mosaic"
        assert state(browser)["pinned"] == 5
        assert atlas.name(5) in text(browser, "found")
        visit(browser, f"{page}#view=nowhere&row=99999")
        assert torch.is_tensor(atlas.neighbors)
        assert console_errors(browser) == []
