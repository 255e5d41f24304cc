"""The views of the explorer in a real browser, opened from the disk, over a small network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser_driver import console_errors, open_browser, resize
from small_explorer import write_small_page

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser

STEPS = ("numbers", "kernel", "maps", "layers", "list", "units", "map", "training", "fooled")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_page(tmp_path_factory.mktemp("explorer") / "explorer.html")


@pytest.fixture(scope="module")
def opened() -> Iterator[Chrome]:
    with open_browser(1280, 900) as browser:
        yield browser


@pytest.fixture
def browser(opened: Chrome, page: Path) -> Iterator[Chrome]:
    """The page, freshly opened; whatever a test does, it must not complain or ask for files."""
    opened.get(page.as_uri())
    wait(opened, "'ready' in document.documentElement.dataset")
    yield opened
    assert console_errors(opened) == []
    asked = opened.execute_script(
        "return performance.getEntriesByType('resource').map(r => r.name)"
    )
    assert [name for name in asked if not name.startswith(("blob:", "data:"))] == []


def wait(browser: Chrome, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda b: b.execute_script(f"return {script}"), script)


def go(browser: Chrome, step: str) -> None:
    browser.execute_script(f"location.hash = '{step}'")
    link, _, _ = step.partition("/")
    wait(browser, f"document.querySelector('#steps [aria-current]').hash === '#{link}'")
    wait(browser, "document.querySelector('.view').children.length > 0")


DROP = """
const side = {width: 40, height: 40};
const canvas = Object.assign(document.createElement("canvas"), side);
const context = canvas.getContext("2d");
context.fillStyle = "#06f";
context.fillRect(0, 0, 40, 40);
canvas.toBlob((blob) => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([blob], "blue.png", {type: "image/png"}));
  dispatchEvent(new DragEvent("drop", {dataTransfer}));
});
"""

UNNAMED = """
return [...document.querySelectorAll('button, input, a, [tabindex="0"]')]
  .filter((one) => !(one.ariaLabel || one.textContent.trim() || one.title || one.hidden))
  .map((one) => one.outerHTML);
"""


def text(browser: Chrome, selector: str) -> str:
    found: Any = browser.execute_script(f"return document.querySelector('{selector}').innerText")
    return str(found)


def picture(browser: Chrome) -> str:
    found: Any = browser.execute_script("return document.querySelector('.own canvas').toDataURL()")
    return str(found)


def classes(browser: Chrome) -> str:
    return text(browser, "aside .classes")


def press(browser: Chrome, selector: str, words: str = "") -> None:
    script = f"""const all = [...document.querySelectorAll('{selector}')];
        all.find((one) => one.textContent.includes('{words}')).click()"""
    browser.execute_script(script)


def test_a_dropped_picture_goes_through_the_network(browser: Chrome) -> None:
    before = picture(browser), classes(browser)
    browser.execute_script(DROP)
    wait(browser, "document.querySelector('.title').textContent === 'blue.png'")
    wait(browser, f"document.querySelector('aside .classes').innerText !== {before[1]!r}")
    assert picture(browser) != before[0]


def test_strokes_change_the_classes_and_undo_brings_them_back(browser: Chrome) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    before = picture(browser), classes(browser)
    press(browser, "summary", "Change it")
    press(browser, ".choice button", "Paint")
    board = browser.find_element(By.CSS_SELECTOR, ".own .board")
    ActionChains(browser).drag_and_drop_by_offset(board, 60, 40).perform()
    wait(browser, f"document.querySelector('aside .classes').innerText !== {before[1]!r}")
    assert picture(browser) != before[0]
    press(browser, "aside button", "Undo")
    wait(browser, f"document.querySelector('aside .classes').innerText === {before[1]!r}")
    assert picture(browser) == before[0]


def test_products_and_bias_add_up_to_the_cell_of_the_map(browser: Chrome) -> None:
    go(browser, "kernel/all")
    press(browser, ".row button", "Pause")
    press(browser, ".kernel:nth-child(3)")
    press(browser, ".row button", "One step")
    wait(browser, "document.querySelector('button.kernel:nth-child(3)').ariaPressed === 'true'")
    wait(browser, "document.querySelectorAll('.rows .figure').length === 4")
    wait(browser, "document.querySelector('.sum b') !== null")
    # In one script: the view draws them in the same frame.
    texts: Any = browser.execute_script(
        "return [...document.querySelectorAll('.rows .figure, .sum b')].map((e) => e.textContent)"
    )
    shown, *rows = (float(text.replace("\u2212", "-")) for text in texts)
    total = sum(rows)
    assert shown == pytest.approx(total, abs=0.025)  # four numbers with two decimals


def test_a_cell_shows_what_it_sees_and_leads_down_to_the_pixels(browser: Chrome) -> None:
    go(browser, "layers")
    press(browser, ".choice button", "conv2")
    wait(browser, "document.querySelector('.chosen h3').textContent.startsWith('conv2:')")
    wait(browser, "document.querySelectorAll('.input').length > 2")
    press(browser, ".input")
    wait(browser, "document.querySelector('.chosen h3').textContent.startsWith('conv1:')")
    wait(browser, "document.querySelector('.fed').textContent.includes('red')")
    frame = "document.querySelectorAll('.pair .board')[1].querySelector('rect')"
    sees: Any = browser.execute_script(f"return {frame}.width.baseVal.value")
    assert sees == 3  # the kernel of conv1
    press(browser, ".trail button")
    wait(browser, "document.querySelector('.chosen h3').textContent.startsWith('conv2:')")


def test_pooling_shows_the_cell_that_it_keeps(browser: Chrome) -> None:
    go(browser, "maps")
    wait(browser, "document.querySelectorAll('.stages .board').length === 3")
    # In one script, as another pass of the network draws the boards anew.
    said, kept = browser.execute_script("""document.querySelectorAll('.stages .board')[2]
        .dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}));
        return [document.querySelector('.stages + p').textContent,
            document.querySelectorAll('rect.won').length]""")
    assert "the largest" in said
    assert kept > 0


def test_a_unit_switched_off_changes_the_classes_until_it_is_on(browser: Chrome) -> None:
    before = classes(browser)
    go(browser, "units")
    press(browser, ".choice button", "relu7")
    most = "[...document.querySelectorAll('.unit')]"
    for unit in range(12):
        browser.execute_script(f"{most}[{unit}].click()")
        press(browser, ".unit-card .primary", "Switch it off")
    wait(browser, f"document.querySelector('aside .classes').innerText !== {before!r}")
    assert browser.execute_script("return engine.calls.at(-1)[1].off.relu7.length") in {12, None}
    press(browser, ".view button", "Switch all on again")
    wait(browser, f"document.querySelector('aside .classes').innerText === {before!r}")


def test_a_neighbor_is_taken_and_the_map_follows(browser: Chrome) -> None:
    go(browser, "list")
    wait(browser, "document.querySelectorAll('.nearest button').length === 8")
    name = text(browser, ".nearest .name")
    press(browser, ".nearest button")
    wait(browser, f"document.querySelector('.title').textContent.startsWith({name!r})")
    # However far its small picture is from the one that was listed.
    taken = "document.querySelector('.title').textContent"
    wait(
        browser,
        f"![...document.querySelectorAll('.nearest button')].some(b => b.title.endsWith({taken}))",
    )
    go(browser, "map")
    wait(browser, "document.querySelector('.atlas-frame + p').textContent.includes('lies beside')")
    assert name in text(browser, ".atlas-frame + p")


def move(browser: Chrome, selector: str, value: float) -> None:
    browser.execute_script(f"""const input = document.querySelector('{selector}');
        input.value = {value}; input.dispatchEvent(new Event('input'));""")


COUNTED = """
// Of each frame the number of maps drawn; a clock that only drawing a map moves on, by 3 ms.
window.drawn = [];
let clock = 1000;
performance.now = () => clock;
const put = CanvasRenderingContext2D.prototype.putImageData;
CanvasRenderingContext2D.prototype.putImageData = function (...given) {
  if (this.canvas.closest(".maps")) { drawn[drawn.length - 1]++; clock += 3; }
  return put.apply(this, given);
};
const tick = () => { drawn.push(0); requestAnimationFrame(tick); };
tick();
"""


def maps_drawn(browser: Chrome) -> list[int]:
    """The number of maps drawn in each frame since the last call, once no more are drawn."""
    browser.execute_script("drawn.splice(0, drawn.length - 1)")
    wait(browser, "drawn.length > 10 && drawn.slice(-8).every((one) => one === 0)")
    frames: Any = browser.execute_script("return drawn")
    return [count for count in frames if count]


def show_conv2(browser: Chrome) -> None:
    go(browser, "layers")
    press(browser, ".choice button", "conv1")  # the step begins with conv2, drawn sooner or later
    browser.execute_script(COUNTED)
    press(browser, ".choice button", "conv2")
    wait(browser, "document.querySelectorAll('.map').length === 6 && Math.max(...drawn) > 0")
    maps_drawn(browser)


def test_many_moves_in_a_frame_are_one_pass_and_a_frame_draws_few_maps(browser: Chrome) -> None:
    show_conv2(browser)

    def maps(*lights: float) -> str:
        """The maps after these moves within one frame."""
        before: Any = browser.execute_script("return engine.calls.length")
        browser.execute_script(
            """drawn.splice(0, drawn.length - 1);
            const input = document.querySelector('[data-knob=light]');
            for (const light of arguments) {
              input.value = light; input.dispatchEvent(new Event('input'));
            }""",
            *lights,
        )
        wait(browser, "drawn.reduce((sum, one) => sum + one, 0) >= 6")
        assert browser.execute_script("return drawn.filter((one) => one)") == [3, 3]  # 8 ms
        assert browser.execute_script("return engine.calls.length") == before + 1
        found: Any = browser.execute_script(
            "return [...document.querySelectorAll('.map canvas')].map((one) => one.toDataURL())"
        )
        return ",".join(found)

    many = maps(*(i / 50 for i in range(1, 31)))
    assert maps(0) != many
    assert maps(0.6) == many


def test_maps_out_of_view_are_drawn_when_they_come_into_view(browser: Chrome) -> None:
    show_conv2(browser)
    margin = "document.querySelector('.maps').style.marginTop"
    browser.execute_script(f"{margin} = '5000px'; scrollTo(0, 0)")
    assert maps_drawn(browser) == []
    move(browser, "[data-knob=light]", 0.6)
    assert maps_drawn(browser) == []
    browser.execute_script(f"{margin} = ''")
    assert sum(maps_drawn(browser)) == 6


def test_the_training_slider_shows_the_kernels_of_that_moment(browser: Chrome) -> None:
    go(browser, "training")
    shown = "document.querySelector('.large canvas').toDataURL()"
    blank = browser.execute_script(
        "return Object.assign(document.createElement('canvas'), {width: 3, height: 3}).toDataURL()"
    )
    wait(browser, f"{shown} !== {blank!r}")
    first = browser.execute_script(f"return {shown}")
    assert "20%" in text(browser, ".number")
    move(browser, ".view input[type=range]", 1)
    wait(browser, "document.querySelector('.number').textContent.includes('60%')")
    wait(browser, f"{shown} !== {first!r}")


def test_the_eps_slider_changes_the_answer_from_the_size_that_is_named(browser: Chrome) -> None:
    go(browser, "fooled")
    wait(browser, "!document.querySelector('.number').textContent.includes('looking')")
    found = text(browser, ".number b")
    move(browser, ".view input[type=range]", 0)
    wait(browser, "document.querySelector('.verdict').textContent.includes('still')")
    move(browser, ".view input[type=range]", float(found.split()[0]))
    wait(browser, "document.querySelector('.verdict').textContent.includes('instead of')")


def test_every_step_fits_a_phone_and_both_colors(browser: Chrome) -> None:
    try:
        resize(browser, 390, 844)
        grounds = set()
        for step in STEPS:
            for depth in ("", "/all"):
                browser.execute_script(f"location.hash = '{step}{depth}'")
                wait(browser, "document.querySelector('.view').children.length > 0")
                wide: Any = browser.execute_script("return document.documentElement.scrollWidth")
                assert wide == 390, step + depth
            browser.execute_script("document.querySelector('#theme').click()")
            grounds.add(
                browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            )
        assert len(grounds) == 2
        unnamed: Any = browser.execute_script(UNNAMED)
        assert unnamed == []
    finally:
        browser.execute_script("localStorage.clear()")
        resize(browser, 1280, 900)
