"""`build_explorer`: one HTML file in which a model itself runs.

Comes in: a model, pictures, results of the same model, snapshots of its training. Goes out:
`Explorer`, whose page holds the network's operations and weights and everything it shows.
"""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featviz import results
from featviz.data.datasets import Pictures, batches
from featviz.data.from_python import Data, as_pictures
from featviz.data.samples import sample_pictures
from featviz.errors import UserError, public
from featviz.explorer.gathered import MOST, Gathered, gather
from featviz.explorer.page import render_page
from featviz.explorer.program import Program
from featviz.explorer.result import Drift, Explorer
from featviz.explorer.trace import trace
from featviz.explorer.weights import Rounding, Stored, fitted, store
from featviz.kernels.snapshots import read_snapshots
from featviz.models.layers import activations
from featviz.models.load import bundled
from featviz.models.model import Model
from featviz.pictures.images import from_pillow, open_image
from featviz.statistics import share
from featviz.types import Count, Megabytes, Progress, Seed
from featviz.wording import unread

ENGINE = ("client.js", "reading.js")
WORKER = (
    "text.js",
    "tensors.js",
    "arithmetic.js",
    "products.js",
    "gpu.js",
    "operations.js",
    "network.js",
    "worker.js",
)
"""files of `engine`, in the order in which they are evaluated"""

MARGIN = 4000
"""bytes between a page's size and the size that was asked for"""


@public
def build_explorer(
    model: Model,
    data: Data | None = None,
    *,
    weights: Rounding = "float16",
    megabytes: Megabytes | None = None,
    run: str | Path | None = None,
    snapshots: str | Path | None = None,
    count: Count = MOST,
    atlas: str | None = None,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> Explorer:
    """A page in which the model runs: one HTML file without a server or a network.

    Args:
        model: Of convolutions, matrices, batch norm, LRN, pools, activations, sums, products and
            concatenations.
        data: Pictures that are offered and among which neighbors are searched; default: the bundled
            ones.
        weights: How the page has them: "float16" (whole numbers of 16 bits with a step an output
            unit where float16 would change weights), or "int8" with a step an output unit, which
            halves the page.
        megabytes: The page is at most so large: weights that matter little for the pictures'
            classes are rounded more coarsely than others. `weights` are kept where they fit.
        run: A folder of results of this model, from which pictures of units are taken.
        snapshots: A file of first-layer kernels during training, as `featviz.train` keeps them;
            default: those of alexnet-mini for the bundled model, else none.
        count: Of more pictures an even sample is taken.
        atlas: Address of an atlas page, as the page links to it.
        seed: Of the map of pictures.
        progress: Called with (done, total, text).

    Returns:
        The page, its size, and how far its network is from the model on the pictures.

    Raises:
        UserError: An operation that the page cannot run, no picture that can be read, snapshots of
            another first layer.

    Example:
        >>> featviz.build_explorer(featviz.load()).save("run/explorer")
    """
    started = time.perf_counter()
    pictures = as_pictures(sample_pictures() if data is None else data)
    program = trace(model)
    found = gather(model, pictures, run=run, most=count, seed=seed, progress=progress)
    links = {"atlas": atlas} if atlas else {}
    least: Rounding = weights if megabytes is None else "int8"

    def page_of(stored: Stored) -> str:
        stored = stored._replace(block=stored.block.copy())
        kept = _snapshots(model.name, program, stored, snapshots, least)
        document = {
            **network_document(model, program, stored),
            "snapshots": kept,
            "gathered": found.document,
            "pictures": found.document.get("pictures"),
            "links": links,
        }
        blocks = {"weights": stored.block.deflated(), **found.blocks}
        return render_page(document, blocks, engine=script_of(ENGINE), worker=script_of(WORKER))

    some = _some(model, pictures)
    stored = store(program, weights, program.run(some) if weights == "int8" else ())
    if megabytes is not None:
        size = len(stored.block.deflated())
        over = len(page_of(stored).encode()) - 1e6 * megabytes
        if over > 0:
            room = int(size - over * 13 / 16) - MARGIN
            stored = fitted(program, some, room)
    bits = stored.bits
    drift = _drift(model, stored.program, pictures.spread(min(count, 200)))
    found.document["drift"] = drift.text(bits)
    about = found.document["pictures"]
    about["itself"] += 2 * _moved(program, stored.program, some, about["layer"])
    left_out = [unread(found.skipped)] if found.skipped else []
    return Explorer(
        origin=results.origin(
            model,
            parameters={"weights": weights, "megabytes": megabytes, "count": count},
            started=started,
            data=pictures,
            seed=seed,
        ),
        warnings=(*pictures.left_out.notes, *left_out),
        model_name=model.name,
        page=page_of(stored),
        operations=len(stored.ops),
        weights=len(stored.block.deflated()),
        bits=bits,
        drift=drift,
        samples=_samples(found),
    )


def network_document(model: Model, program: Program, stored: Stored) -> dict[str, Any]:
    """What the engine reads of a network; its weights are the bytes of the block."""
    how = model.preprocessing
    return {
        "model": {"name": model.name, "sha256": model.sha256},
        "classes": [name.partition(",")[0] for name in model.classes or ()],
        "input": {
            "channels": how.channels,
            "size": how.size,
            "resize": how.resize,
            "mean": how.mean,
            "std": how.std,
            "interpolation": how.interpolation,
        },
        "ops": stored.ops,
        "layers": [
            {"name": layer.name, "value": i, "shape": _shape(program, model, i)}
            for layer, i in program.layers.items()
            if layer.name
        ],
        "logits": program.logits,
        "tensors": stored.block.entries,
    }


def script_of(files: tuple[str, ...]) -> str:
    """The program of some files of `engine`, without lines that are comments."""
    folder = Path(__file__).parent / "engine"
    lines = "\n".join((folder / name).read_text(encoding="utf-8") for name in files).split("\n")
    return "\n".join(line for line in lines if not line.lstrip().startswith("//"))


def _some(model: Model, pictures: Pictures) -> Tensor:
    """A few pictures (N, C, H, W), evenly spread."""
    return next(iter(batches(pictures.spread(16), model.preprocessing, batch_size=16))).images


def _shape(program: Program, model: Model, value: int) -> tuple[int, ...]:
    if value:
        return program.operations[value - 1].shape
    return (model.preprocessing.channels, *model.preprocessing.size)


def _drift(model: Model, program: Program, pictures: Pictures) -> Drift:
    """How far a program's logits are from the model's, on pictures."""
    same, count, largest, size = 0, 0, 0.0, 1e-30
    last = list(program.layers)[-1].name
    for batch in batches(pictures, model.preprocessing, batch_size=16):
        seen = batch.images.to(model.device)
        with torch.no_grad():
            own = (
                model(seen)
                if program.logits is not None
                else activations(model, seen, [last])[last]
            )
        ours = program.run(batch.images)[program.last].flatten(1)
        own = own.float().cpu().flatten(1)
        same += int((own.argmax(1) == ours.argmax(1)).sum())
        count += len(own)
        largest = max(largest, float((own - ours).abs().max()))
        size = max(size, float(own.abs().max()))
    return Drift(share(same, count), largest / size)


def _moved(program: Program, rounded: Program, pictures: Tensor, layer: str) -> float:
    """The largest cosine distance between the lists of one picture before and after rounding."""
    (value,) = [i for one, i in program.layers.items() if one.name == layer]
    lists, others = (one.run(pictures)[value].flatten(1) for one in (program, rounded))
    distance = 1 - torch.nn.functional.cosine_similarity(lists, others)
    return max(0.0, float(distance.max()))


def _snapshots(
    name: str,
    program: Program,
    stored: Stored,
    file: str | Path | None,
    how: Rounding,
) -> list[dict[str, Any]]:
    """Moments of the training: which tensors then stand for the first kernels."""
    found = read_snapshots(bundled("alexnet-mini.kernels") if file is None else Path(file))
    first = next((i for i, one in enumerate(program.operations) if one.kind == "conv"), None)
    own = torch.empty(0) if first is None else program.operations[first].weights["weight"]
    fits = own.shape == found.kernels.shape[1:]
    if file is None and not (fits and torch.allclose(own, found.kernels[-1], atol=1e-2)):
        return []
    if first is None or not fits:
        raise UserError(
            f"{file} has kernels of shape {tuple(found.kernels.shape[1:])}, {name} begins "
            "with others; give the snapshots of its own training"
        )
    weight = str(stored.ops[first]["weight"])
    return [
        {
            "step": step,
            "top1": top1,
            "tensors": {weight: stored.block.rounded(kernels, how)[0]},
        }
        for kernels, step, top1 in zip(found.kernels, found.steps, found.top1, strict=True)
    ]


def _samples(found: Gathered) -> list[Tensor]:
    """The pictures to begin with, decoded."""
    listed = found.document.get("samples", [])
    return [from_pillow(open_image(io.BytesIO(found.blocks[one["block"]]))) for one in listed]
