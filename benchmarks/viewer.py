"""Frame times of the atlas's page in a browser, drawn by WebGL2 and on a 2-D canvas.

    python benchmarks/viewer.py [--quick] [--points 20000]

Pages of 2,500, 20,000 and 200,000 made-up points (2,500 with pictures of 80 pixels; above that of
32, 20,000 of them) are opened from the disk in headless Chromium at 1400 x 900 and moved: across
the map at four times its size, and from everything to sixteen times nearer and back. A frame's time
is what passes between two of the browser's calls for a new frame; 16.7 ms is the screen's own pace.
The last line's `device` says what drew: without a graphics card Chromium renders WebGL2 by the
processor (SwiftShader), which says little about machines that have one. Also measured: megabytes of
the page, seconds to write it, and seconds until everything is on the screen. --quick: the two
smaller pages, fewer frames.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _rounds
import numpy as np
import torch

# The made-up page and the browser are those of the tests.
sys.path.append(str(Path(__file__).parents[1] / "tests"))

from browser_driver import open_browser
from made_up_page import made_up_page

from featviz.atlas.viewer.page import render_page
from featviz.data.samples import sample_pictures
from featviz.pictures import images

SIZES = {2_500: (2_500, 80), 20_000: (20_000, 32), 200_000: (20_000, 32)}
"""points: (pictures, pixels a side)"""
MOVES = {
    "panning": "atlas.look(0.3 + 0.4 * t, 0.35 + 0.3 * t, 4)",
    "zooming": "atlas.look(0.47, 0.52, 16 ** (1 - Math.abs(2 * t - 1)))",
}
DRIVE = """
const done = arguments[1], frames = arguments[0], times = [];
let last = 0, number = 0;
function tick(now) {
  if (last) times.push(now - last);
  last = now;
  if (number > frames) { done(times); return; }
  const t = number++ / frames;
  MOVE;
  requestAnimationFrame(tick);
}
requestAnimationFrame(tick);
"""


def main() -> None:
    given = _rounds.arguments(__doc__.splitlines()[0], points=0)
    sizes = [given.points] if given.points else list(SIZES)[: 2 if given.quick else 3]
    frames = 40 if given.quick else 120
    rows: list[dict[str, Any]] = []
    medians: dict[tuple[int, str, str], float] = {}
    device = ""
    with tempfile.TemporaryDirectory() as folder, open_browser(1400, 900) as browser:
        browser.set_script_timeout(300)
        for points in sizes:
            pictures, size = SIZES.get(points, (min(points, 20_000), 32))
            data = made_up_page(
                points, pictured=pictures, classes=200, pictures=small_pictures(size)
            )
            page = Path(folder) / f"{points}.html"
            started = time.perf_counter()
            page.write_text(render_page(data), encoding="utf-8")
            name = f"{points} points"
            rows.append(_rounds.row(f"{name}, write", "s", [time.perf_counter() - started]))
            rows.append(_rounds.row(f"{name}, page", "MB", [page.stat().st_size / 1e6]))
            for renderer in ("webgl2", "canvas"):
                started = time.perf_counter()
                browser.get("about:blank")
                browser.get(f"{page.as_uri()}?renderer={renderer}#view=points")
                while not browser.execute_script("return window.atlas && atlas.state().ready"):
                    time.sleep(0.02)
                opened = time.perf_counter() - started
                drawn = browser.execute_script("return atlas.renderer")
                if drawn != renderer:
                    print(f"{renderer} is missing in this browser, so it is missing below")
                    continue
                rows.append(_rounds.row(f"{name}, {renderer}, open", "s", [opened]))
                if renderer == "webgl2":
                    device = browser.execute_script("return atlas.about()")
                for move, script in MOVES.items():
                    drive = DRIVE.replace("MOVE", script)
                    browser.execute_async_script(drive, 10)  # fill caches
                    times = browser.execute_async_script(drive, frames)
                    what = f"{name}, {renderer}, {move}"
                    rows.append(_rounds.row(f"{what}: frame", "ms", times))
                    rows.append(
                        _rounds.row(
                            f"{what}: 95th percentile", "ms", [float(np.quantile(times, 0.95))]
                        )
                    )
                    medians[points, renderer, move] = statistics.median(times)
    ratios = {
        f"webgl2/canvas, {points} points, {move}": medians[points, "webgl2", move]
        / medians[points, "canvas", move]
        for points, renderer, move in medians
        if renderer == "webgl2"
    }
    _rounds.report("viewer", rows, ratios, device=f"browser: {device or '2-D canvas'}")


def small_pictures(size: int) -> torch.Tensor:
    """The bundled sample pictures as (N, 3, size, size) uint8."""
    samples = sample_pictures(4)
    return images.to_uint8(torch.stack([samples.shown(row, size) for row in range(len(samples))]))


if __name__ == "__main__":
    main()
