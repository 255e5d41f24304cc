"""The gallery in a real browser, opened from the disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser_driver import console_errors, open_browser, resize
from gallery_run import write_run

from featviz.gallery.build import build_gallery

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_gallery(write_run(tmp_path_factory.mktemp("browser") / "run"))


@pytest.fixture(scope="module", params=["light", "dark"])
def browser(request: pytest.FixtureRequest) -> Iterator[Chrome]:
    with open_browser(1400, 900, dark=request.param == "dark") as opened:
        yield opened


@pytest.fixture(autouse=True)
def fresh(browser: Chrome, site: Path) -> None:
    """Every test starts on the overview, with no memory of a theme."""
    browser.get((site / "index.html").as_uri())
    browser.execute_script("localStorage.clear(); document.documentElement.dataset.theme = ''")
    console_errors(browser)


def press(browser: Chrome, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def wait(browser: Chrome, script: str) -> None:
    """Until a script returns something true."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 30).until(lambda b: b.execute_script(f"return {script}"), script)


def at(browser: Chrome) -> str:
    return browser.current_url.rpartition("/gallery/")[2]


def all_pages(site: Path) -> list[Path]:
    return [p for p in sorted(site.rglob("*.html")) if len(p.relative_to(site).parts) <= 2]


BROKEN = """
const pictures = [...document.images];
pictures.forEach((p) => { p.loading = "eager"; });
await Promise.allSettled(pictures.map((p) => p.decode()));
return pictures.filter((p) => !p.naturalWidth).map((p) => p.src);
"""

LINKS = "return [...document.querySelectorAll('main a[href]')].map((a) => a.href.split('#')[0]);"

TOO_WIDE = """
const width = document.documentElement.scrollWidth;
return width <= arguments[0] ? [] : [...document.querySelectorAll("body *")]
  .filter((e) => e.getBoundingClientRect().right > arguments[0])
  .map((e) => `${e.tagName} ${e.className}`);
"""


@pytest.mark.slow
def test_all_pages_open_whole_without_complaint_on_any_screen(browser: Chrome, site: Path) -> None:
    browser.get((site / "index.html").as_uri())
    waiting, seen = [browser.current_url], set[str]()
    while waiting:
        page = waiting.pop()
        if page in seen or not page.endswith(".html"):
            continue
        seen.add(page)
        browser.get(page)
        if page.endswith("/atlas/atlas.html"):  # a result's own page, not ours
            continue
        waiting += browser.execute_script(LINKS)
        assert browser.execute_script(BROKEN) == [], page
        for width in (360, 390, 768, 1400):
            resize(browser, width, 900)
            assert browser.execute_script(TOO_WIDE, width) == [], f"{page} at {width}"
        assert console_errors(browser) == [], page
    assert seen >= {page.as_uri() for page in all_pages(site)}


def test_a_missing_picture_would_be_noticed(browser: Chrome, site: Path) -> None:
    browser.execute_script("const i = new Image(); i.src = 'gone.png'; document.body.append(i);")
    assert len(browser.execute_script(BROKEN)) == 1
    assert any("gone.png" in message for message in console_errors(browser))


def test_the_large_view_opens_turns_and_closes_by_keyboard(browser: Chrome, site: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get((site / "results" / "kernels-conv1.html").as_uri())
    browser.execute_script("document.querySelectorAll('a.zoom')[0].focus()")
    press(browser, Keys.ENTER)
    shown = "document.querySelector('.viewer[open] .stage img')?.src.split('/').pop()"
    wait(browser, f"{shown} === 'sheet.png'")
    assert (
        browser.execute_script(
            "return getComputedStyle(document.querySelector('.viewer img')).imageRendering"
        )
        == "pixelated"
    )
    words = browser.find_element("css selector", ".viewer .words").text
    assert "Caption of sheet.png" in words
    press(browser, Keys.ARROW_RIGHT)
    wait(browser, f"{shown} === 'conv1-0.png'")
    press(browser, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    wait(browser, f"{shown} === 'conv1-10.png'")
    assert at(browser) == "results/kernels-conv1.html"
    press(browser, Keys.ESCAPE)
    wait(browser, "!document.querySelector('.viewer[open]')")
    focused = "document.activeElement.href?.split('/').pop()"
    wait(browser, f"{focused} === 'conv1-10.png'")
    assert console_errors(browser) == []


def test_pages_turn_by_keyboard(browser: Chrome, site: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get((site / "units" / "conv1-0.html").as_uri())
    for key, page in (
        (Keys.ARROW_RIGHT, "units/conv1-1.html"),
        ("j", "units/conv1-2.html"),
        ("k", "units/conv1-1.html"),
        (Keys.ARROW_LEFT, "units/conv1-0.html"),
        ("u", "units/index.html"),
        ("h", "index.html"),
    ):
        press(browser, key)
        wait(browser, f"location.href.endsWith('/gallery/{page}')")


def test_the_keys_are_shown_under_the_question_mark(browser: Chrome, site: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    press(browser, "?")
    wait(browser, "document.querySelector('.help[open]')")
    assert "light or dark" in browser.find_element("css selector", ".help").text
    press(browser, Keys.ESCAPE)
    wait(browser, "!document.querySelector('.help[open]')")


LUMINANCE = """
const channels = getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).map(Number);
return channels.slice(0, 3).reduce((a, b) => a + b) / 3;
"""


def test_the_theme_follows_the_reader_and_the_switch_is_remembered(
    browser: Chrome, site: Path
) -> None:
    dark = browser.execute_script("return matchMedia('(prefers-color-scheme: dark)').matches")
    assert (browser.execute_script(LUMINANCE) < 128) == dark
    press(browser, "t")
    assert (browser.execute_script(LUMINANCE) < 128) != dark
    browser.get((site / "units" / "index.html").as_uri())
    assert (browser.execute_script(LUMINANCE) < 128) != dark


CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgb = (color) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = color;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const light = (color) => {
  const linear = (v) => (v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  const [r, g, b] = color.map((v) => linear(v / 255));
  return .2126 * r + .7152 * g + .0722 * b;
};
const ground = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const color = rgb(getComputedStyle(e).backgroundColor);
    if (color[3] > 200) return color;
  }
  return [255, 255, 255];
};
const poor = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || !element.checkVisibility() || element.closest(".skip")) continue;
  const pair = [light(rgb(getComputedStyle(element).color)), light(ground(element))];
  const ratio = (Math.max(...pair) + .05) / (Math.min(...pair) + .05);
  if (ratio < 4.5) poor.push(`${element.tagName} ${element.className}: ${ratio.toFixed(2)}`);
}
return poor;
"""


def test_words_stand_out_from_their_ground(browser: Chrome, site: Path) -> None:
    for page in ("index", "results/kernels-conv1", "results/atlas", "units/conv1-1", "units/index"):
        browser.get((site / f"{page}.html").as_uri())
        assert browser.execute_script(CONTRAST) == [], page


def test_without_script_every_figure_still_opens(browser: Chrome, site: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get((site / "results" / "kernels-conv1.html").as_uri())
        browser.find_element("css selector", "a.zoom").click()
        assert browser.current_url.endswith("sheet.png")
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
