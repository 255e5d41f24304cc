"""Milliseconds of a picture in the explorer's page: WebAssembly, plain JavaScript, and torch.

    python benchmarks/explorer.py [--quick]

All layers of alexnet-mini and of AlexNet's convolutions at 224 pixels (random weights), and the
gradient of alexnet-mini, in headless Chromium from pages on the disk. Each round takes a picture
that the engine has not seen, because it keeps the values of the last one. Torch runs the same with
one thread, as the page does. Also: megabytes of the page of alexnet-mini. --quick: three rounds.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _rounds
import torch
from torch import nn

# The browser is that of the tests.
sys.path.append(str(Path(__file__).parents[1] / "tests"))

from browser_driver import open_browser

import featviz
from featviz.models.model import Model

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

WORK = {
    "all layers": "engine.forward(picture(), {layers: data.layers.map((layer) => layer.name)})",
    "gradient": "engine.gradient(picture(), 0)",
}
ROUNDS = """
const [rounds, done] = arguments;
(async () => {
  const opening = performance.now();
  const data = JSON.parse(textOf("data")), engine = await Engine.start(data);
  const times = [performance.now() - opening];
  const length = data.input.channels * data.input.size[0] * data.input.size[1];
  const picture = () => Float32Array.from({ length }, Math.random);
  for (let i = 0; i <= rounds; i++) {
    const began = performance.now();
    await WORK;
    times.push(performance.now() - began);
  }
  engine.stop();
  done([engine.arithmetic, times]);
})().catch((error) => done([error.message, []]));
"""


def main() -> None:
    rounds = 3 if _rounds.arguments(__doc__.splitlines()[0]).quick else 10
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, open_browser(800, 600) as browser:
        browser.set_script_timeout(120)
        for model, works in ((featviz.load(), list(WORK)), (trunk(), ["all layers"])):
            page = featviz.build_explorer(model, featviz.sample_pictures(1).spread(4)).page
            rows.append(_rounds.row(f"{model.name}, page", "MB", [len(page.encode()) / 1e6]))
            own = _rounds.measure({"torch": partial(passed, model)}, rounds)["torch"]
            rows.append(_rounds.row(f"{model.name}, torch", "ms", [1000 * s for s in own]))
            for name in ("VectorArithmetic", "PlainArithmetic"):
                file = Path(folder) / f"{name}.html"
                file.write_text(without_views(page, name), encoding="utf-8")
                for work in works:
                    start, first, *times = timed(browser, file, work, rounds, name)
                    title = f"{model.name}, {name}, {work}"
                    rows.append(_rounds.row(f"{title}, until it is ready", "ms", [start]))
                    rows.append(_rounds.row(f"{title}, first", "ms", [first]))
                    rows.append(_rounds.row(title, "ms", times))
                    if work == "all layers":
                        ratios[f"{model.name}, {name}/torch"] = (
                            rows[-1]["median"] / statistics.median(own) / 1000
                        )
    _rounds.report("explorer", rows, ratios)


def trunk() -> Model:
    """The convolutions of AlexNet and eight classes."""
    net = featviz.load("alexnet", weights=None).net
    net.classifier = nn.Linear(9216, 8)
    return featviz.wrap(
        net, name="AlexNet's convolutions", input_size=224, mean=(0.45,), std=(0.25,)
    )


def passed(model: Model) -> None:
    with torch.no_grad():
        model(torch.rand_like(model.blank()))


def without_views(page: str, arithmetic: str) -> str:
    """The page with only its engine, which has this arithmetic."""
    page = page.replace("\nopenPage();", "\nObject.assign(window, {Engine, textOf});")
    if arithmetic == "PlainArithmetic":
        page = page.replace("WebAssembly.validate(bytes)", "false")
    return page


def timed(browser: Chrome, file: Path, work: str, rounds: int, arithmetic: str) -> list[float]:
    """Milliseconds until the engine is ready, then of each round, as the page sees them."""
    browser.get(file.as_uri())
    used, times = browser.execute_async_script(ROUNDS.replace("WORK", WORK[work]), rounds)
    if used != arithmetic:
        raise RuntimeError(f"{file.name}, {work}: {used} in place of {arithmetic}")
    return list(times)


if __name__ == "__main__":
    main()
