"""Result folders for the gallery's tests, written by hand from the contract alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="72pt" height="36pt" viewBox="0 0 72 36"/>'


def figure(file: str, units: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """An item of `figures`."""
    words = {"caption": f"Caption of {file}.", "alt": f"Alt of {file}", "pixelated": False}
    return {"file": file, "units": list(units)} | words | more


def write_result(folder: Path, **fields: Any) -> Path:
    """A result folder with every figure and table it lists (figures as small pictures)."""
    document: dict[str, Any] = {"schema": 1, "kind": "kernels", "title": folder.name} | fields
    folder.mkdir(parents=True, exist_ok=True)
    for number, item in enumerate(document.get("figures", [])):
        path = folder / item["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".svg":
            path.write_text(SVG)
        else:
            Image.new("RGB", (24, 16), (40 * number % 256, 90, 120)).save(path)
    (folder / "result.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def write_run(run: Path) -> Path:
    """A small run with a result in most chapters, units in two layers, a page and a bad folder."""
    write_result(
        run / "layers",
        kind="layers",
        title="Layers of small",
        figures=[figure("layers.svg")],
        numbers={"parameters": {"value": 1234567, "unit": "", "meaning": "weights and biases"}},
        model={"name": "small", "sha256": "ab" * 32, "input_size": 64, "classes": 10},
    )
    kernels = write_result(
        run / "kernels-conv1",
        title="Kernels of conv1",
        parameters={"layer": "conv1", "units": [0, 1, 2, 10]},
        figures=[
            figure("sheet.png", pixelated=True),
            *(figure(f"units/conv1-{i}.png", (f"conv1:{i}",), pixelated=True) for i in (0, 1, 2)),
            figure("units/conv1-10.png", ("conv1:10@3,4",), pixelated=True),
        ],
        tables=[{"file": "kernels.csv", "caption": "Each kernel.", "columns": ["unit", "norm"]}],
        numbers={"share": {"value": 0.4375, "unit": "fraction", "meaning": "with a direction"}},
        warnings=["Two kernels are faint."],
        seed=0,
    )
    (kernels / "kernels.csv").write_text("unit,norm\n0,0.5\n1,0.25\n2,0.125\n10,0.0625\n")
    write_result(
        run / "deep" / "maximize-conv5",
        kind="maximize",
        title="What conv5 looks for",
        figures=[
            figure("sheet.png", ("conv5:3", "conv1:1")),
            figure("conv5-3.png", ("conv5:3",)),
            figure("class.png", ("logits:tabby, tabby cat",)),
        ],
        arrays=[{"file": "images.npz", "caption": "The pictures.", "names": ["images"]}],
    )
    (run / "deep" / "maximize-conv5" / "images.npz").write_bytes(b"not looked into")
    atlas = write_result(run / "atlas", kind="atlas", title="Atlas", figures=[])
    (atlas / "tiles").mkdir()
    (atlas / "tiles" / "0.js").write_text("window.tile = 1;\n")
    (atlas / "atlas.html").write_text(
        '<!doctype html><title>Atlas</title><script src="tiles/0.js"></script>'
    )
    write_result(run / "strange", kind="sonograms", title="Of no known kind")
    (run / "damaged").mkdir()
    (run / "damaged" / "result.json").write_text('{"schema": 1, "kind": ')
    write_result(run / "foreign", schema="http://json-schema.org/draft-07")
    return run
