"""A page that holds only the engine of the explorer with a network, and calls of it from Python."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from featviz.explorer.build import ENGINE, WORKER, network_document, script_of
from featviz.explorer.page import printed
from featviz.explorer.program import RUN, Program
from featviz.explorer.trace import trace
from featviz.explorer.weights import Rounding, fitted, store
from featviz.models.model import Model

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

PAGE = """<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,"><title>Engine</title>
<script type="application/json" id="data">{data}</script>
<script type="text/plain" id="block-weights">{weights}</script>
<script type="text/plain" id="engine-worker">{worker}</script>
<script>"use strict";{engine}
// Arrays of numbers travel as base64 of float32.
function packed(value) {{
  if (value instanceof Float32Array) {{
    let text = "";
    for (const byte of new Uint8Array(value.buffer, value.byteOffset, value.byteLength))
      text += String.fromCharCode(byte);
    return {{floats: btoa(text)}};
  }}
  if (Array.isArray(value)) return value.map(packed);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, packed(one)]));
}}
function unpacked(value) {{
  if (value && value.floats)
    return new Float32Array(Uint8Array.from(atob(value.floats), (c) => c.charCodeAt(0)).buffer);
  return value;
}}
function file(text, type) {{
  return new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], {{type}});
}}
const opening = Engine.start(JSON.parse(textOf("data")));
</script>"""

CALL = """const [code, given, done] = arguments;
const work = new Function("engine", "given", `return (async () => {${code}})()`);
opening.then((engine) => work(engine, given.map(unpacked))).then(
  (found) => done({found: packed(found)}), (error) => done({error: String(error)}));"""


class EnginePage:
    """A network in a page that a browser shows.

    `gpu` is as in `moveToCard`; `more` is code behind the worker's.
    """

    def __init__(
        self,
        browser: Chrome,
        path: Path,
        model: Model,
        *,
        weights: Rounding = "float16",
        most: int | None = None,
        vectors: bool = True,
        gpu: str | None = None,
        more: str = "",
    ) -> None:
        program = trace(model)
        stored = (
            store(program, weights)
            if most is None
            else fitted(program, torch.rand(4, *model.blank().shape[1:]), most)
        )
        self.program = stored.program
        self.model, self.browser = model, browser
        self.names = {layer.name: i for layer, i in program.layers.items() if layer.name}
        document = network_document(model, program, stored) | ({"gpu": gpu} if gpu else {})
        plain = "" if vectors else "WebAssembly = undefined;\n"
        page = PAGE.format(
            data=json.dumps(document).replace("<", "\\u003c"),
            weights=printed(stored.block.deflated()),
            worker=plain + script_of(WORKER) + more,
            engine=script_of(ENGINE),
        )
        path.write_text(page, encoding="utf-8")
        browser.get(path.as_uri())

    def run(self, code: str, *given: Any) -> Any:
        """What the code returns, which has `engine` and `given`; raises its errors."""
        words = [_packed(one) if isinstance(one, Tensor) else one for one in given]
        answer = self.browser.execute_async_script(CALL, code, words)
        if "error" in answer:
            raise AssertionError(answer["error"])
        return _unpacked(answer["found"])

    def forward(self, picture: Tensor, names: Sequence[str] = (), **options: Any) -> Any:
        """As the engine's `forward` for a picture (C, H, W)."""
        code = "return engine.forward(given[0], given[1])"
        return self.run(code, picture, {"layers": list(names), **options})

    def gradient(self, picture: Tensor, target: dict[str, Any], **options: Any) -> Tensor:
        """Of a target, shaped as the picture."""
        code = "return engine.gradient(given[0], given[1], given[2])"
        found = self.run(code, picture, target, options)["gradient"]
        assert isinstance(found, Tensor)
        return found.view(picture.shape)


def values_of(program: Program, picture: Tensor) -> list[Tensor]:
    """All values of one picture (C, H, W) by torch, through which gradients go."""
    values = [picture[None]]
    for one in program.operations:
        values.append(RUN[one.kind](one, *(values[i] for i in one.inputs)))
    return values


def _packed(values: Tensor) -> dict[str, str]:
    return {"floats": base64.b64encode(values.float().contiguous().numpy().tobytes()).decode()}


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"floats"}:
            floats = np.frombuffer(base64.b64decode(value["floats"]), "<f4")
            return torch.from_numpy(floats.copy())
        return {key: _unpacked(one) for key, one in value.items()}
    return [_unpacked(one) for one in value] if isinstance(value, list) else value
