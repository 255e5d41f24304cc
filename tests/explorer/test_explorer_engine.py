"""The engine of the explorer in a real browser, opened from the disk, against torch."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from browser_driver import console_errors, open_browser
from PIL import Image
from torch import Tensor, nn

import featviz
from featviz.errors import UserError
from featviz.explorer.program import RUN
from featviz.explorer.trace import trace
from featviz.explorer.weights import fitted, store
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.pictures.images import read_picture

if TYPE_CHECKING:
    from selenium.webdriver import Chrome


class Mixed(nn.Module):
    """Functional layers, groups, batch norm, a residual sum, a concatenation, LRN."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(12, 12, 3, padding=2, dilation=2, groups=12)
        self.c = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(self.a(x)), 3, 2, ceil_mode=True)
        z = F.local_response_norm(self.norm(self.b(y)) + y, 5)
        z = F.avg_pool2d(F.relu(self.deep(torch.cat([z, y], 1))), 2)
        out: Tensor = self.c(z.mean((2, 3)))
        return out


def mixed() -> Model:
    torch.manual_seed(0)
    net = Mixed()
    with torch.no_grad():
        net.norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
        net.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return featviz.wrap(net, input_size=(21, 26), mean=(0.4,), std=(0.2,))


def alexnet_2012() -> Model:
    torch.manual_seed(0)
    net = featviz.load("alexnet-2012", weights=None).net
    net.classifier = nn.Sequential(nn.Linear(9216, 8))  # small enough for a page
    return featviz.wrap(net, input_size=227, mean=(0.45,), std=(0.25,))


def with_equal_columns() -> Model:
    """Columns 2 i and 2 i + 1 of its matrix are equal."""
    torch.manual_seed(0)
    matrix = nn.Linear(320, 33)
    matrix.weight.data[:, 1::2] = matrix.weight.data[:, ::2]
    body = [nn.Conv2d(3, 20, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), matrix]
    return featviz.wrap(nn.Sequential(*body), input_size=37, mean=(0.5,), std=(0.5,))


def picture(model: Model, seed: int = 0) -> Tensor:
    """(1, C, H, W): smooth colors."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, model.preprocessing.channels, 7, 7, generator=generator)
    return F.interpolate(coarse, model.input_size, mode="bicubic").clamp(0, 1)


START = """
const [done] = arguments;
(async () => {
  window.engine = await Engine.start(JSON.parse(textOf("data")));
  done(engine.arithmetic);
})().catch((error) => done(`failed: ${error.message}`));
"""


def ask(browser: Chrome, script: str, *values: Any) -> Any:
    """What an expression of the engine gives, with a, b ... for the values."""
    names = ", ".join("abcdefg"[: len(values)])
    found = browser.execute_async_script(
        f"const [{names}, done] = arguments;"
        f"(async () => done({script}))().catch((e) => done('failed: ' + e.message));",
        *values,
    )
    assert not (isinstance(found, str) and found.startswith("failed")), found
    return found


@pytest.fixture(scope="module")
def opened() -> Iterator[Chrome]:
    with open_browser(800, 600) as browser:
        browser.set_script_timeout(120)
        yield browser


@pytest.fixture
def start(opened: Chrome, tmp_path: Path) -> Iterator[Callable[[Model], Chrome]]:
    """Opens a model's page without its views."""

    def begin(model: Model) -> Chrome:
        pictures = featviz.sample_pictures(1).spread(4)
        page = featviz.build_explorer(model, pictures).page
        assert "\nopenPage();" in page
        file = tmp_path / "page.html"
        file.write_text(page.replace("\nopenPage();", "\nObject.assign(window, {Engine, textOf});"))
        opened.get(file.as_uri())
        assert opened.execute_async_script(START) == "VectorArithmetic"
        return opened

    yield begin
    assert console_errors(opened) == []


VALUES = "[Array.from((f = await engine.forward(Float32Array.from(a), {layers: b})).logits), " + (
    "Object.fromEntries(b.map((n) => [n, Array.from(f.values[n].data)]))]"
)


@pytest.mark.browser
@pytest.mark.parametrize("make", [mixed, alexnet_2012, None], ids=["mixed", "2012", "mini"])
def test_every_layer_and_gradient_is_that_of_torch(
    make: Callable[[], Model] | None, mini: Model, start: Callable[[Model], Chrome]
) -> None:
    model = mini if make is None else make()
    browser = start(model)
    names = [one.name for one in model.layers.values() if one.path]
    x = picture(model)
    browser.execute_script("window.f = null")
    logits, values = ask(browser, VALUES, x.flatten().tolist(), names)
    with torch.no_grad():
        own = activations(model, x, names)
    for name in names:
        want = own[name].flatten()
        error = (torch.tensor(values[name]) - want).abs().max() / want.abs().max()
        assert float(error) < 1e-3, name
    assert int(torch.tensor(logits).argmax()) == int(model(x).argmax())
    x.requires_grad_(True)
    (want,) = torch.autograd.grad(model(x)[0, 3], x)
    script = "Array.from((await engine.gradient(Float32Array.from(a), {logit: 3})).gradient)"
    found = torch.tensor(ask(browser, script, x.flatten().tolist()))
    assert float(F.cosine_similarity(found, want.flatten(), dim=0)) > 0.999


@pytest.mark.browser
def test_products_and_bias_give_the_value_and_units_can_be_switched_off(
    mini: Model, start: Callable[[Model], Chrome]
) -> None:
    browser, x = start(mini), picture(mini)
    pixels = x.flatten().tolist()
    with torch.no_grad():
        own = activations(mini, x, ["conv1", "conv3", "fc7"])
    for layer, unit, y, at in (("conv1", 9, 0, 30), ("conv3", 100, 3, 6), ("fc7", 7, 0, 0)):
        want = own[layer][0, unit, y, at] if own[layer].dim() == 4 else own[layer][0, unit]
        script = "(({products, bias, value}) => [Array.from(products), bias, value])"
        script += "(await engine.contributions(Float32Array.from(a), b, c, d, e))"
        products, bias, value = ask(browser, script, pixels, layer, unit, y, at)
        assert sum(products) + bias == pytest.approx(value, rel=1e-4, abs=1e-4)
        assert value == pytest.approx(float(want), rel=1e-3, abs=1e-3)

    def silence(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[:, [3, 12]] = 0
        return changed

    handle = mini.net.get_submodule("features.9").register_forward_hook(silence)
    try:
        want = mini(x)[0]
    finally:
        handle.remove()
    script = (
        "Array.from((await engine.forward(Float32Array.from(a), {off: {relu4: [3, 12]}})).logits)"
    )
    found = torch.tensor(ask(browser, script, pixels))
    assert float((found - want).abs().max() / want.abs().max()) < 1e-3
    assert float((mini(x)[0] - want).abs().max() / want.abs().max()) > 1e-3


@pytest.mark.browser
def test_a_changed_picture_stays_within_eps_and_old_calls_are_dropped(
    mini: Model, start: Callable[[Model], Chrome]
) -> None:
    browser, x = start(mini), picture(mini)
    label = int(mini(x).argmax())
    script = "Array.from((await engine.perturb(Float32Array.from(a), "
    script += "{eps: b, steps: 4, label: c})).pixels)"
    found = torch.tensor(ask(browser, script, x.flatten().tolist(), 2 / 255, label)).view_as(x)
    assert float((found - x).abs().max()) <= 2 / 255 + 1e-6
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    loss = F.cross_entropy(mini(torch.cat([x, found])), torch.tensor([label] * 2), reduction="none")
    assert loss[1] > loss[0]
    script = "(await Promise.all([1, 2, 3].map(() => "
    script += "engine.forward(Float32Array.from(a))))).map(Boolean)"
    assert ask(browser, script, x.flatten().tolist())[-2:] == [False, True]


@pytest.mark.browser
@pytest.mark.parametrize("count", [6, pytest.param(60, marks=pytest.mark.long)])
def test_pictures_are_read_as_pillow_reads_them(
    count: int, mini: Model, start: Callable[[Model], Chrome]
) -> None:
    browser = start(mini)
    random = torch.Generator().manual_seed(count)
    for i in range(count):
        wide, tall = torch.randint(20, 400, (2,), generator=random).tolist()
        tall = min(tall, 2 * wide)
        colors = torch.rand(1, 3, 9, 9, generator=random)
        pixels = F.interpolate(colors, (tall, wide), mode="bicubic").clamp(0, 1)
        buffer = io.BytesIO()
        image = Image.fromarray((255 * pixels[0]).byte().permute(1, 2, 0).numpy())
        image.save(buffer, "PNG" if i % 2 else "JPEG")
        text = base64.b64encode(buffer.getvalue()).decode()
        script = "Array.from(await engine.inputOf(new Blob([Uint8Array.from(atob(a), "
        script += "(c) => c.charCodeAt(0))])))"
        found = torch.tensor(ask(browser, script, text))
        want = read_picture(io.BytesIO(buffer.getvalue()), mini.preprocessing).flatten()
        assert float((found - want).abs().max()) < 1e-6, (wide, tall)


def test_a_program_is_the_model_and_its_parts_are_refused_in_one_line(mini: Model) -> None:
    program = trace(mini)
    x = picture(mini)
    (value,) = [i for layer, i in program.layers.items() if layer.name == "logits"]
    assert program.logits == value
    torch.testing.assert_close(program.run(x)[value], mini(x), rtol=1e-4, atol=1e-4)

    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.one(x)
            return (y * float(y.sum())).mean((2, 3))

    for net in (Changing(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.PixelShuffle(2), nn.Flatten())):
        model = featviz.wrap(net, input_size=8, mean=(0.5,), std=(0.5,))
        with pytest.raises(UserError, match="cannot run in a page") as refused:
            trace(model)
        assert "\n" not in str(refused.value)


def test_rounding_changes_as_little_as_it_must(mini: Model) -> None:
    program, x = trace(mini), picture(mini)
    exact = program.run(x)[-1]
    for how, most in (("float16", 1e-3), ("int8", 0.1)):
        block, ops, rounded = store(program, how)  # type: ignore[arg-type]
        assert float((rounded.run(x)[-1] - exact).abs().max() / exact.abs().max()) < most
        assert len(ops) == len(program.operations)
        for entry in block.entries:
            assert entry["start"] % 4 == 0


def test_weights_are_rounded_to_a_wanted_size_and_more_room_is_a_smaller_change() -> None:
    model = with_equal_columns()
    program, x = trace(model), torch.cat([picture(model, seed) for seed in range(8)])
    exact, other = program.run(x), torch.cat([picture(model, seed) for seed in range(8, 16)])
    differences = []
    for most in (5_000, 8_000, 12_000):
        stored = fitted(program, x, most)
        assert 0.9 * most < len(stored.block.deflated()) <= most
        found = stored.program.run(x)
        for i, one in enumerate(program.operations):
            if "weight" in one.weights:  # the shifted bias keeps the means
                same = RUN[one.kind](stored.program.operations[i], *(exact[j] for j in one.inputs))
                difference = (same - exact[i + 1]).transpose(0, 1).flatten(1).mean(1)
                assert float(difference.abs().max()) < 1e-4 * float(exact[i + 1].abs().max())
        assert len(found) == len(exact)
        change = stored.program.run(other)[-1] - program.run(other)[-1]
        differences.append(float(change.norm()))
    assert differences[0] > 1.5 * differences[1] > 2 * differences[2]
    with pytest.raises(UserError, match="too little") as refused:
        fitted(program, x, 800)
    assert "\n" not in str(refused.value)


def test_equal_columns_of_a_matrix_are_stored_once() -> None:
    program = trace(with_equal_columns())
    block, ops, rounded = store(program, "float16")
    (entry,) = [block.entries[op["weight"]] for op in ops if op["op"] == "linear"]
    assert entry["shape"] == [33, 160]
    for one, other in zip(program.operations, rounded.operations, strict=True):
        for name, values in one.weights.items():
            largest = float(values.abs().max())
            torch.testing.assert_close(other.weights[name], values, rtol=0, atol=1e-3 * largest)
