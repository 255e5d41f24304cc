"""The rows of one shard: pictures are decoded, run through the model and read at the layers.

`Job` is what `engine` maps over spans of the data set, here or on a cluster. A shard depends only
on its own span: the network is always given the same pictures together (`batch_size` rows of the
data set, a picture that is broken replaced by black), so that neither a broken neighbour nor the
number of layers changes a row.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from featviz.datasets import Pictures, in_order
from featviz.decoding import Prepared
from featviz.embedding.positions import draw_positions
from featviz.embedding.store import Left, hash_file
from featviz.engine_old import Files
from featviz.errors import BadPicture, UserError
from featviz.models.layers import activations
from featviz.models.model import Layer
from featviz.models.precision import in_bfloat16

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featviz.models.model import Model

LARGEST = 65504.0
"""the largest number that float16 holds"""


class Kept(NamedTuple):
    """Which pictures of a span are in its shard."""

    rows: NDArray[np.int64]
    """of the data set, (n,)"""
    sizes: NDArray[np.int32]
    """width and height, (n, 2)"""
    skipped: tuple[Left, ...]


@dataclass(frozen=True)
class Job:
    """Everything that the rows of a shard depend on."""

    model: Model
    data: Pictures
    places: tuple[Layer, ...]
    batch_size: int
    position: str
    """"mean" over a map's positions, or "random": one of them"""
    seed: int
    precision: str
    """"float32" or "bf16" """
    decoder: str
    """as `decoding.resolve` names it"""
    workers: int

    def __call__(self, work: range, report: Callable[[int], None]) -> Files:
        """The files of a shard: a .npy for each layer, and note.json, which says what they are."""
        kept, values = self.run(work, report)
        files = {}
        for number, rows in enumerate(values):
            buffer = io.BytesIO()
            np.save(buffer, rows)
            files[f"{number}.npy"] = buffer.getvalue()
        note = {
            "rows": kept.rows.tolist(),
            "sizes": kept.sizes.tolist(),
            "skipped": kept.skipped,
            "sha256": [hashlib.sha256(content).hexdigest() for content in files.values()],
        }
        return files | {"note.json": json.dumps(note).encode()}

    def run(
        self, span: range, report: Callable[[int], None] = lambda _: None
    ) -> tuple[Kept, list[NDArray[np.float16]]]:
        """Which pictures of a span could be read, and the rows (n, units) of each layer."""
        if self.data.files and not self.data.root.exists():  # all would seem broken
            raise UserError(
                f"{self.data.root} is not on this machine; every machine of a cluster needs the "
                "pictures under the same path"
            )
        side = self.model.input_size
        values = [np.empty((len(span), place.units), np.float16) for place in self.places]
        rows: list[int] = []
        sizes: list[tuple[int, int]] = []
        skipped: list[Left] = []
        full = torch.zeros(min(self.batch_size, len(span)), 3, side, side)

        def read(row: int) -> Prepared:
            return self.data.prepare(row, self.model.resize, side, decoder=self.decoder)

        stream = in_order(read, span, ahead=2 * self.batch_size, workers=self.workers)
        with closing(stream), self.network(full) as network:
            for start in range(0, len(span), self.batch_size):
                wanted = len(range(start, min(start + self.batch_size, len(span))))
                good: list[int] = []
                pixels: list[Tensor] = []
                for row, found in islice(stream, wanted):
                    if isinstance(found, BadPicture):
                        path = self.data.paths[row]
                        # Relative, so that it is the same wherever the data lies.
                        reason = str(found).replace(self.data.where(row), path)
                        skipped.append(Left(path, reason))
                        continue
                    good.append(row)
                    sizes.append(found.size)
                    pixels.append(found.pixels)
                if good:
                    _fill(full[:wanted], pixels)
                    taken = network(full[:wanted])
                    for place, store in zip(self.places, values, strict=True):
                        store[len(rows) : len(rows) + len(good)] = self.read(
                            taken[place.name][: len(good)], place, good
                        )
                rows += good
                report(start + wanted)
        kept = Kept(
            np.array(rows, np.int64), np.array(sizes, np.int32).reshape(-1, 2), tuple(skipped)
        )
        return kept, [store[: len(rows)] for store in values]

    @contextmanager
    def network(self, example: Tensor) -> Iterator[Callable[[Tensor], dict[str, Tensor]]]:
        """From pictures to the activations of the layers, in the precision that was asked for."""
        names = [place.name for place in self.places]

        def plain(pictures: Tensor) -> dict[str, Tensor]:
            return activations(self.model, pictures.to(self.model.device), names)

        with torch.inference_mode():
            if self.precision == "float32":
                yield plain
                return
            with in_bfloat16(self.model, example.to(self.model.device)) as fast:

                def low(pictures: Tensor) -> dict[str, Tensor]:
                    at = pictures.to(self.model.device)
                    return activations(self.model, at, names, forward=fast)

                yield low

    def read(self, taken: Tensor, place: Layer, rows: list[int]) -> NDArray[np.float16]:
        """Activations of pictures at a layer as the store holds them, (N, units)."""
        if self.position == "random" and place.spatial:
            _, height, width = place.shape
            at = torch.from_numpy(draw_positions(self.seed, rows, height, width)).long()
            at = at.to(taken.device)
            which = torch.arange(len(taken), device=taken.device)
            taken = taken[which, :, at[:, 0], at[:, 1]]
        return as_stored(pool(taken, place), place.name).numpy()


def pool(values: Tensor, place: Layer) -> Tensor:
    """Activations (N, C), (N, C, H, W) or (N, tokens, C) as (N, C): means over positions."""
    values = values.float()
    if values.dim() == 4:
        return values.mean((2, 3))
    if values.dim() == 3:
        return values.mean(1 if values.shape[2] == place.units else 2)
    return values


def as_stored(values: Tensor, layer: str) -> Tensor:
    """Values as float16 on the CPU. Raises UserError for those that it cannot hold."""
    values = values.float().cpu()
    if not torch.isfinite(values).all() or values.abs().max() > LARGEST:
        raise UserError(
            f"{layer} has values up to {values.abs().max():.3g}, more than float16 holds "
            f"({LARGEST:.0f}); the weights may be broken, or choose another layer"
        )
    return values.half()


def _fill(batch: Tensor, pixels: list[Tensor]) -> None:
    """Put pictures at the head of a batch (N, 3, S, S) in [0, 1], and black behind them."""
    for place, one in zip(batch, pixels, strict=False):
        place.copy_(one)
        if one.dtype == torch.uint8:
            place.div_(255)
    batch[len(pixels) :] = 0


def read_note(folder: Path, layers: int) -> tuple[Kept, list[str]] | None:
    """What a finished shard holds, and the hashes of its files; None if it is not whole."""
    try:
        note: dict[str, Any] = json.loads((folder / "note.json").read_text(encoding="utf-8"))
        hashes = [str(digest) for digest in note["sha256"]]
        if hashes != [hash_file(folder / f"{number}.npy") for number in range(layers)]:
            return None
        kept = Kept(
            np.array(note["rows"], np.int64),
            np.array(note["sizes"], np.int32).reshape(-1, 2),
            tuple(Left(*left) for left in note["skipped"]),
        )
        return kept, hashes
    except (OSError, ValueError, KeyError, TypeError):
        return None
