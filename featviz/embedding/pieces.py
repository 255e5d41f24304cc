"""The rows of one piece of a data set: decode pictures, run the model, read the layers.

`Rows` is what `engine.map_pieces` maps over spans of the data set, here or on a cluster. The
arrays of a piece depend on its own span only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from featviz.data.datasets import Pictures, in_order
from featviz.embedding.reduction import Reduction
from featviz.errors import BadPicture, UserError
from featviz.models.layers import activations
from featviz.models.model import Layer, Model
from featviz.models.precision import in_precision
from featviz.pictures.decoding import Prepared, as_batch
from featviz.types import Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featviz.checkpoints import Arrays

LARGEST_ERROR = 1e-3
"""of a stored row, as a share of its length"""
_TOP = 15  # scaled rows have their largest value below 2^15: float16 holds numbers to 65504


@dataclass(frozen=True)
class Rows:
    """Everything that the rows of a piece depend on."""

    model: Model
    data: Pictures
    places: tuple[Layer, ...]
    batch_size: int
    reduction: Reduction
    precision: Precision
    decoder: str
    """as `decoding.resolve` names it"""
    workers: int

    def __call__(self, span: range, report: Callable[[int], None] = lambda _: None) -> Arrays:
        """The arrays of a span of the data set.

        Returns:
            "rows" (n,): the picture of each row, by its number in the data set; "sizes" (n, 2): its
            width and height; "skipped" (s, 2): path and reason of those that could not be read;
            "0", "1", ... (n, dim): the activations at each layer, float16, and
            "exponents 0", ... (n,), as `as_stored` has them.
        """
        values = [[np.empty((0, self.reduction.dim(p)), np.float16)] for p in self.places]
        exponents = [[np.empty(0, np.int16)] for _ in self.places]
        rows: list[int] = []
        sizes: list[tuple[int, int]] = []
        skipped: list[tuple[str, str]] = []

        def read(row: int) -> Prepared:
            return self.data.prepare(row, self.model.preprocessing, decoder=self.decoder)

        def keep(reduced: list[Tensor]) -> None:
            for number, found in enumerate(reduced):
                stored, scale = as_stored(found, self.places[number].name)
                values[number].append(stored)
                exponents[number].append(scale)

        ahead: list[Tensor] = []
        stream = in_order(read, span, ahead=2 * self.batch_size, workers=self.workers)
        with closing(stream), self.network() as network:
            while batch := list(islice(stream, self.batch_size)):
                good = [(row, found) for row, found in batch if isinstance(found, Prepared)]
                for row, found in batch:
                    if isinstance(found, BadPicture):
                        path = self.data.paths[row]
                        # Relative, so that it is the same wherever the data lies.
                        skipped.append((path, str(found).replace(self.data.where(row), path)))
                if good:
                    here = [row for row, _ in good]
                    # A card was done with the batch before while this one was decoded; while it
                    # computes this one, the rows of the other are rounded.
                    before = [reduced.cpu() for reduced in ahead]
                    taken = network(as_batch([p.pixels for _, p in good], self.model.device))
                    ahead = self._reduced(taken, here)
                    keep(before)
                    rows += here
                    sizes += [found.size for _, found in good]
                report(batch[-1][0] + 1 - span.start)
            keep(ahead)
        return {
            "rows": np.array(rows, np.int64).repeat(self.per_picture),
            "sizes": np.array(sizes, np.int32).reshape(-1, 2).repeat(self.per_picture, 0),
            "skipped": np.array(skipped, str).reshape(-1, 2),
            **{str(number): np.concatenate(kept) for number, kept in enumerate(values)},
            **{exponents_of(number): np.concatenate(kept) for number, kept in enumerate(exponents)},
        }

    @contextmanager
    def network(self) -> Iterator[Callable[[Tensor], dict[str, Tensor]]]:
        """From pictures (N, C, H, W) in [0, 1] to the activations of the layers, by name."""
        names = [place.name for place in self.places]
        with (
            torch.inference_mode(),
            in_precision(self.model, self.precision) as forward,
        ):
            # Whether values are finite is seen when they are read back, at no other wait.
            yield lambda pictures: activations(
                self.model, pictures, names, forward=forward, check=False
            )

    def _reduced(self, taken: Mapping[str, Tensor], rows: list[int]) -> list[Tensor]:
        """Of each layer the rows (n, dim) of some pictures."""
        return [self.reduction(taken[place.name], place, rows) for place in self.places]

    @property
    def per_picture(self) -> int:
        """Rows of a picture, the same at all layers."""
        return self.reduction.rows(self.places[0])


def as_stored(values: Tensor, layer: str) -> tuple[NDArray[np.float16], NDArray[np.int16]]:
    """Rows (N, dim) as float16 numbers m and an exponent e for each row, (N,): they are m * 2^e.

    e is 0 wherever float16 holds a row as it is, to `LARGEST_ERROR` of its length.

    Raises:
        UserError: Values that are not finite, or beyond float32.
    """
    exact = values.detach().cpu().double()
    if not bool((exact.abs() <= torch.finfo(torch.float32).max).all()):  # NaN fails, too
        raise UserError(
            f"{layer} has values that are not finite, or beyond float32; the weights may be "
            "broken, or choose another layer"
        )
    kept = exact.half()
    exponents = torch.zeros(len(exact), dtype=torch.int16)
    poor = _poorly_held(kept.double(), exact)
    if bool(poor.any()):
        rows = exact[poor]
        scale = torch.frexp(rows.abs().amax(1)).exponent - _TOP
        kept[poor] = torch.ldexp(rows, -scale[:, None]).half()
        exponents[poor] = scale.short()
        scaled = restored(kept[poor].numpy(), scale.short().numpy())
        if bool(_poorly_held(torch.from_numpy(scaled).double(), rows).any()):
            raise UserError(f"{layer} has rows that float16 does not hold; choose another layer")
    return kept.numpy(), exponents.numpy()


def _poorly_held(rows: Tensor, exact: Tensor) -> Tensor:
    """Which rows (N, dim) are further from the exact ones than a store may be, (N,)."""
    well: Tensor = (rows - exact).norm(dim=1) <= LARGEST_ERROR * exact.norm(dim=1)
    return ~well


def restored(
    rows: NDArray[np.float16], exponents: NDArray[np.int16] | None
) -> NDArray[np.floating[Any]]:
    """The values of stored rows (N, dim): as they are without exponents, else float32."""
    if exponents is None or not exponents.any():
        return rows
    return np.ldexp(rows.astype(np.float32), exponents[:, None])


def exponents_of(number: int) -> str:
    """The name of a layer's exponents among the arrays of a piece."""
    return f"exponents {number}"
