"""Milliseconds of a picture in the explorer's page: WebAssembly, plain JavaScript, and torch.

    python benchmarks/explorer.py [--quick]

All layers of alexnet-mini and of AlexNet's convolutions at 224 pixels (random weights), and the
gradient of alexnet-mini, in headless Chromium from pages on the disk. Each round takes a picture
that the engine has not seen, because it keeps the values of the last one. Torch runs the same with
one thread, as the page does. Also: megabytes of the page of alexnet-mini, and the longest task of
the page's main thread while a slider moves 30 times under the maps of the first layer, in
milliseconds of the processor and by the clock. --quick: three rounds.
"""

from __future__ import annotations

import json
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
TRACE = "disabled-by-default-devtools.timeline,blink.user_timing"
SLIDER = """
const [moves, done] = arguments;
const input = document.querySelector("[data-knob=light]");
const rest = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
(async () => {
  performance.mark("moves");
  for (let i = 1; i <= moves; i++) {
    input.value = i / 60;
    input.dispatchEvent(new Event("input"));
    await rest(33);
  }
  await rest(1000);
  performance.mark("rest");
  done();
})();
"""


def main() -> None:
    rounds = 3 if _rounds.arguments(__doc__.splitlines()[0]).quick else 10
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, open_browser(1280, 900, trace=TRACE) as browser:
        browser.set_script_timeout(120)
        for model, works in ((featviz.load(), list(WORK)), (trunk(), ["all layers"])):
            page = featviz.build_explorer(model, featviz.sample_pictures(1).spread(4)).page
            rows.append(_rounds.row(f"{model.name}, page", "MB", [len(page.encode()) / 1e6]))
            file = Path(folder) / "views.html"
            file.write_text(page, encoding="utf-8")
            for unit, times in longest_tasks(browser, file, rounds).items():
                title = f"{model.name}, longest task while a slider moves, {unit}"
                rows.append(_rounds.row(title, "ms", times))
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


def longest_tasks(browser: Chrome, file: Path, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of the main thread's longest task in each round of 30 moves."""
    from selenium.webdriver.support.ui import WebDriverWait

    ready = "return 'ready' in document.documentElement.dataset"
    times: dict[str, list[float]] = {"processor": [], "clock": []}
    for _ in range(rounds):
        browser.get(file.as_uri() + "#maps")
        WebDriverWait(browser, 60).until(lambda b: b.execute_script(ready))
        browser.execute_async_script(SLIDER, 5)  # compiled
        browser.execute_async_script(SLIDER, 30)
        browser.get("about:blank")  # the driver reads the trace before it leaves a page
        tasks = moved(traced(browser))
        times["processor"].append(max(task["tdur"] for task in tasks) / 1000)
        times["clock"].append(max(task["dur"] for task in tasks) / 1000)
    return times


def traced(browser: Chrome) -> list[dict[str, Any]]:
    """Events of the trace since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"] for m in messages if m["method"] == "Tracing.dataCollected"]


def moved(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tasks between the two marks, of the thread that set them."""
    begin, end = ([e for e in events if e["name"] == name][-1] for name in ("moves", "rest"))
    thread = begin["pid"], begin["tid"]
    return [
        event
        for event in events
        if event["name"] == "RunTask"
        and (event["pid"], event["tid"]) == thread
        and begin["ts"] <= event["ts"] <= end["ts"]
    ]


if __name__ == "__main__":
    main()
