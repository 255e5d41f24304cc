"""Networks of the known families in a real browser: layers, gradients, products, arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from browser_driver import console_errors, open_browser
from engine_page import EnginePage, values_of
from explorer_nets import NETS, small_net
from torch import Tensor

import featviz
from featviz.data.datasets import batches
from featviz.explorer.program import RUN
from featviz.models.layers import activations
from featviz.models.model import Model

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser

MODELS = (*NETS, "alexnet-mini", pytest.param("alexnet-2012", marks=pytest.mark.long))


@pytest.fixture(scope="module")
def opened() -> Iterator[Chrome]:
    with open_browser() as browser:
        browser.set_script_timeout(120)
        yield browser


@pytest.fixture
def browser(opened: Chrome) -> Iterator[Chrome]:
    """Whatever a test does, its page must not complain or ask for files."""
    yield opened
    assert console_errors(opened) == []
    script = "return performance.getEntriesByType('resource').map((one) => one.name)"
    assert [name for name in opened.execute_script(script) if not name.startswith("blob:")] == []


def model_of(name: str) -> Model:
    if name in NETS:
        return small_net(name)
    if name == "alexnet-2012":
        return featviz.load(name, input_size=67, device="cpu")
    return featviz.load(name, device="cpu")


def picture_of(model: Model, seed: int = 0) -> Tensor:
    """A random picture (C, H, W), smooth and rough."""
    generator = torch.Generator().manual_seed(seed)
    channels, size = model.preprocessing.channels, model.preprocessing.size
    smooth = F.interpolate(torch.rand(1, channels, 5, 5, generator=generator), size, mode="bicubic")
    return (smooth[0] + 0.3 * torch.rand(channels, *size, generator=generator)).clamp(0, 1)


def relative(found: Tensor, expected: Tensor) -> float:
    expected = expected.detach().flatten()
    return float((found.flatten() - expected).abs().max() / expected.abs().max())


def cosine(found: Tensor, expected: Tensor) -> float:
    return float(F.cosine_similarity(found.flatten(), expected.flatten(), 0))


def follow(page: EnginePage, picture: Tensor) -> dict[str, Any]:
    found: dict[str, Any] = page.forward(picture, list(page.names))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_all_layers_and_gradients_are_those_of_torch(
    browser: Chrome, tmp_path: Path, name: str
) -> None:
    model = model_of(name)
    page = EnginePage(browser, tmp_path / "page.html", model)
    picture = picture_of(model).requires_grad_()
    values = values_of(page.program, picture)
    found = follow(page, picture.detach())
    own = activations(model, picture.detach()[None], list(page.names))
    for layer, value in page.names.items():
        seen = found["values"][layer]
        assert seen["shape"] == list(values[value].shape[1:]), layer
        assert relative(seen["data"], values[value]) < 1e-4, layer
        assert relative(seen["data"], own[layer]) < 1e-3, layer  # the model's weights as they are
    assert page.program.logits is not None
    logits = values[page.program.logits][0]
    assert int(found["logits"].argmax()) == int(logits.argmax())

    label = int(logits.argmin())
    (expected,) = torch.autograd.grad(-logits.log_softmax(0)[label], picture, retain_graph=True)
    assert cosine(page.gradient(picture.detach(), {"class": label}), expected) > 0.999
    layer, value = max(
        (pair for pair in page.names.items() if values[pair[1]].dim() == 4),
        key=lambda pair: pair[1],
    )
    maps = values[value][0]
    unit, y, x = torch.unravel_index(maps.argmax(), maps.shape)
    (expected,) = torch.autograd.grad(maps[unit, y, x], picture)
    target = {"layer": layer, "unit": int(unit), "y": int(y), "x": int(x)}
    gradient = page.gradient(picture.detach(), target)
    assert cosine(gradient, expected) > 0.999
    assert float(gradient.norm()) == pytest.approx(float(expected.norm()), rel=1e-3)


@pytest.mark.parametrize("name", ["vgg", "mobilenet", "functional", "gray", "alexnet-mini"])
def test_products_and_bias_add_up_to_the_value_of_the_map(
    browser: Chrome, tmp_path: Path, name: str
) -> None:
    model = model_of(name)
    page, picture = EnginePage(browser, tmp_path / "page.html", model), picture_of(model)
    operations = page.program.operations
    products = {n: i for n, i in page.names.items() if operations[i - 1].kind in {"conv", "linear"}}
    assert products
    values = values_of(page.program, picture)
    generator = torch.Generator().manual_seed(0)
    for layer, value in products.items():
        maps = values[value][0]
        shape = (*maps.shape, 1, 1)[:3]
        corners = [(0, 0, 0), tuple(n - 1 for n in shape)]
        somewhere = [tuple(int(torch.randint(n, (), generator=generator)) for n in shape)]
        for unit, y, x in (*corners, *somewhere):
            code = "return engine.contributions(given[0], ...given[1])"
            found = page.run(code, picture, [layer, unit, y, x])
            expected = float(maps.view(shape)[unit, y, x])
            close = pytest.approx(expected, rel=1e-4, abs=1e-4 * float(maps.abs().max()))
            assert found["value"] == close
            assert float(found["products"].double().sum()) + found["bias"] == close
            assert float(found["channels"].double().sum()) + found["bias"] == close
            assert torch.equal(found["patch"] * found["kernel"], found["products"])
            assert len(found["patch"]) == torch.tensor(found["shape"]).prod()


def test_units_switched_off_are_zeros_in_torch(
    browser: Chrome, tmp_path: Path, mini: Model
) -> None:
    page, picture = EnginePage(browser, tmp_path / "page.html", mini), picture_of(mini)
    off = {"relu1": [0, 5], "relu5": list(range(20)), "relu7": [3]}
    values = [picture[None]]
    places = {page.names[name]: units for name, units in off.items()}
    for i, one in enumerate(page.program.operations, 1):
        value = RUN[one.kind](one, *(values[j] for j in one.inputs))
        if i in places:
            value = value.clone()
            value[:, places[i]] = 0
        values.append(value)
    found = page.forward(picture, list(page.names), off=off)
    for layer, index in page.names.items():
        assert relative(found["values"][layer]["data"], values[index]) < 1e-4, layer
    again = follow(page, picture)
    assert relative(again["logits"], values_of(page.program, picture)[-1]) < 1e-4


def test_plain_arithmetic_gives_what_webassembly_gives(
    browser: Chrome, tmp_path: Path, mini: Model
) -> None:
    picture = picture_of(mini)
    pages = []
    for vectors in (True, False):
        page = EnginePage(browser, tmp_path / "page.html", mini, vectors=vectors)
        assert page.run("return engine.arithmetic") == (
            "VectorArithmetic" if vectors else "PlainArithmetic"
        )
        pages.append((follow(page, picture), page.gradient(picture, {"class": 3})))
    (fast, gradient), (plain, other) = pages
    for layer, one in fast["values"].items():
        assert relative(one["data"], plain["values"][layer]["data"]) < 1e-5, layer
    assert cosine(gradient, other) > 0.99999


@pytest.mark.parametrize("most", [None, 1_000_000])
def test_rounded_weights_run_as_torch_runs_them(
    browser: Chrome, tmp_path: Path, mini: Model, most: int | None
) -> None:
    picture = picture_of(mini)
    page = EnginePage(browser, tmp_path / "page.html", mini, weights="int8", most=most)
    follow_and_compare(page, picture)


def test_a_matrix_with_equal_columns_runs_as_torch_runs_it(browser: Chrome, tmp_path: Path) -> None:
    model = small_net("vgg")
    matrix = next(one for one in model.net.modules() if isinstance(one, torch.nn.Linear))
    matrix.weight.data[:, 1::2] = matrix.weight.data[:, ::2]
    page = EnginePage(browser, tmp_path / "page.html", model, most=9_000)
    picture = picture_of(model).requires_grad_()
    values = follow_and_compare(page, picture)
    (expected,) = torch.autograd.grad(values[-1][0, 2], picture)
    assert cosine(page.gradient(picture.detach(), {"logit": 2}), expected) > 0.9999
    layer, value = next(
        (name, i)
        for name, i in page.names.items()
        if page.program.operations[i - 1].kind == "linear"
    )
    found = page.run("return engine.contributions(given[0], given[1], 3)", picture.detach(), layer)
    assert len(found["products"]) == 320
    total = float(found["products"].double().sum()) + found["bias"]
    assert total == pytest.approx(values[value][0, 3].item(), rel=1e-4, abs=1e-4)


def follow_and_compare(page: EnginePage, picture: Tensor) -> list[Tensor]:
    """The values of all layers, which are those of the page's program in torch."""
    found = follow(page, picture.detach())
    values = values_of(page.program, picture)
    for layer, value in page.names.items():
        assert relative(found["values"][layer]["data"], values[value]) < 1e-4, layer
    return values


def test_a_later_call_in_the_slot_drops_the_earlier(
    browser: Chrome, tmp_path: Path, mini: Model
) -> None:
    page, pictures = EnginePage(browser, tmp_path / "page.html", mini), picture_of(mini)
    code = """
    const moved = (i) => given[0].map((v) => v * (1 - 0.1 * i));
    const calls = [0, 1, 2, 3].map((i) => engine.forward(moved(i), {}));
    calls.push(engine.forward(moved(4), {slot: "other"}), engine.forward(moved(5), {slot: null}),
      engine.forward(moved(6), {slot: null}));
    return (await Promise.all(calls)).map((found) => found && found.logits);
    """
    found = page.run(code, pictures)
    # The first is at work when the second comes, and may be through before it can be dropped.
    assert [one is None for one in found[1:]] == [True, True, False, False, False, False]
    for i in (3, 4, 5, 6):
        expected = values_of(page.program, pictures * (1 - 0.1 * i))[-1]
        assert relative(found[i], expected) < 1e-4


def test_a_live_picture_does_not_wait_for_gradients(
    browser: Chrome, tmp_path: Path, mini: Model
) -> None:
    page, picture = EnginePage(browser, tmp_path / "page.html", mini), picture_of(mini)
    code = """
    const order = [], done = (name) => (found) => { order.push(name); return found; };
    const options = {eps: 0.03, steps: 20, label: 3};
    const long = engine.perturb(given[0], options).then(done("perturbed"));
    await new Promise((resolve) => setTimeout(resolve, 60));
    const half = given[0].map((v) => v / 2);
    const {logits} = await engine.forward(half).then(done("forward"));
    const {pixels} = await long, alone = await engine.perturb(given[0], options);
    return {order, logits, same: pixels.every((v, i) => v === alone.pixels[i])};
    """
    found = page.run(code, picture)
    assert found["order"] == ["forward", "perturbed"]
    assert found["same"]
    assert relative(found["logits"], values_of(page.program, picture / 2)[-1]) < 1e-4


def test_mistakes_are_told_and_leave_the_engine_running(
    browser: Chrome, tmp_path: Path, mini: Model
) -> None:
    page, picture = EnginePage(browser, tmp_path / "page.html", mini), picture_of(mini)
    with pytest.raises(AssertionError, match="no layer conv9"):
        page.forward(picture, ["conv9"])
    assert page.forward(picture)["logits"].isfinite().all()


@pytest.mark.long
def test_the_most_probable_class_is_that_of_torch_on_200_pictures(
    browser: Chrome, tmp_path: Path, mini: Model
) -> None:
    page = EnginePage(browser, tmp_path / "page.html", mini)
    pictures = featviz.sample_pictures().spread(200)
    images = next(iter(batches(pictures, mini.preprocessing, batch_size=200))).images
    with torch.no_grad():
        expected = mini(images).argmax(1)
    found = torch.tensor([int(page.forward(one)["logits"].argmax()) for one in images])
    assert len(found) == 200
    assert int((found == expected).sum()) == 200
