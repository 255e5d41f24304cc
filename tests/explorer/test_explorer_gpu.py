"""Products by WebGL2, drawn by the processor, against torch and WebAssembly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from browser_driver import console_errors, open_browser
from engine_page import EnginePage, values_of
from explorer_nets import NETS, small_net
from torch import Tensor

from featviz.models.model import Model

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser

TRIED = "return engine.tried"
LOSE = """
METHODS.lose = (pause) => network.products(1e9)[0].card.card.gl
  .getExtension("WEBGL_lose_context").loseContext();
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with open_browser() as opened:
        opened.set_script_timeout(120)
        yield opened
        assert console_errors(opened) == []


def picture_of(model: Model) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(model.blank().shape[1:])


def relative(found: Tensor, expected: Tensor) -> float:
    expected = expected.flatten()
    return float((found.flatten() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", [*NETS, pytest.param("alexnet-mini", marks=pytest.mark.long)])
def test_layers_by_webgl_are_those_of_torch_and_of_webassembly(
    browser: Chrome, tmp_path: Path, mini: Model, name: str
) -> None:
    model = small_net(name) if name in NETS else mini
    picture = picture_of(model)
    page = EnginePage(browser, tmp_path / "page.html", model, gpu="always")
    names = list(page.names)
    by_processor = page.forward(picture, names)  # before the card is tried
    tried = page.run(TRIED)
    products = [one for one in page.program.operations if one.kind in {"conv", "linear"}]
    assert len(tried.get("faster", ())) == len(products), tried
    by_card = page.forward(picture, names, off={names[-1]: []})  # not the kept values
    values = values_of(page.program, picture)
    differs = False
    for layer, value in page.names.items():
        found = by_card["values"][layer]["data"]
        assert relative(found, values[value].detach()) < 1e-3, layer
        assert relative(found, by_processor["values"][layer]["data"]) < 1e-4, layer
        differs |= not torch.equal(found, by_processor["values"][layer]["data"])
    assert differs  # they were computed in another way
    assert int(by_card["logits"].argmax()) == int(values[-1].argmax())


def test_a_lost_card_is_not_asked_again(browser: Chrome, tmp_path: Path) -> None:
    model = small_net("vgg")
    page = EnginePage(browser, tmp_path / "page.html", model, gpu="always", more=LOSE)
    assert "faster" in page.run(TRIED)
    said = page.run("return engine.computedBy()")
    assert "computed by the graphics card" in said
    page.run("await engine.call('lose', [], null)")
    picture = picture_of(model)
    for scale in (1.0, 0.5):
        found = page.forward(picture * scale)["logits"]
        assert relative(found, values_of(page.program, picture * scale)[-1].detach()) < 1e-4
    assert "not by a graphics card: WebGL2 has failed" in page.run("return engine.computedBy()")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("", "by the processor"),
        ("OffscreenCanvas = undefined;", "no WebGL2"),
        ("WebGL2RenderingContext.prototype.getExtension = () => null;", "float32"),
    ],
)
def test_without_a_card_the_page_says_why(
    browser: Chrome, tmp_path: Path, code: str, reason: str
) -> None:
    gpu = "always" if "float" in reason else None
    page = EnginePage(browser, tmp_path / "page.html", small_net("vgg"), gpu=gpu, more=code)
    assert reason in page.run(TRIED)["reason"]
    assert reason in page.run("return engine.computedBy()")


def test_other_numbers_or_no_speed_leave_webassembly(browser: Chrome, tmp_path: Path) -> None:
    model = small_net("vgg")
    wrong = """
    const right = CardProduct.prototype.unpacked;
    CardProduct.prototype.unpacked = function () { return right.call(this).map((v) => v + 0.1); };
    """
    page = EnginePage(browser, tmp_path / "page.html", model, gpu="always", more=wrong)
    assert page.run(TRIED) == {"reason": "WebGL2 gave other numbers"}
    page = EnginePage(browser, tmp_path / "page.html", model, gpu="imitated")
    assert page.run(TRIED)["faster"] == []
    assert "was not faster" in page.run("return engine.computedBy()")
