"""Why a unit of a convolution responds at one position: patch times kernel, step by step.

Comes in: a model, one picture, a unit. Goes out: `PatchTimesKernel`, the products of the patch with
the kernel, whose sum plus bias is the activation, compared with the model's own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from featviz import results
from featviz.data.from_python import Data
from featviz.errors import public
from featviz.maps import patch_times_kernel_figures as figures
from featviz.maps.patch_products import PatchProducts, measure_patch
from featviz.maps.unit_maps import open_picture, picture_source
from featviz.models.model import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOLERANCE = 1e-4
"""A larger difference between the sum and the model's activation is warned of."""


@dataclass(frozen=True, kw_only=True, repr=False)
class PatchTimesKernel(PatchProducts, results.Result):
    """One activation of a convolution as a sum of products."""

    kind: ClassVar[str] = "patch"

    @property
    def title(self) -> str:
        return figures.heading(self)

    def numbers(self) -> dict[str, results.Number]:
        number = results.Number
        products = f"of {self.product.numel():,} products, plus the bias"
        return {
            "activation": number(self.activation, "", "the model's own value"),
            "sum by hand": number(self.total, "", products),
            "difference": number(
                self.difference, "", "between the two, relative to the activation if above 1"
            ),
            "for": number(self.positive, "", "products above zero"),
            "against": number(self.negative, "", "those below zero"),
            "bias": number(self.bias),
            "likeness": number(
                self.likeness, "", "cosine of patch and kernel: 1 is the same pattern"
            ),
            "length of the patch": number(
                float(self.patch.norm()), "", "its contrast, as the convolution gets it"
            ),
            "length of the kernel": number(float(self.kernel.norm())),
            "rank": number(
                self.rank, "", f"among the {self.map.numel():,} positions of this picture"
            ),
        }

    def write(self, folder: results.Folder) -> None:
        folder.figure(
            "patch-times-kernel.svg",
            self.plot(),
            units=[f"{self.unit.layer}:{self.unit.index}"],
            caption=f"{self.unit}, number {self.rank} of {self.map.numel():,} positions. "
            f"{figures.in_words(self)} Patch values are as the convolution gets them"
            + (" (normalized)" if self.first else "")
            + "; each color bar is symmetric about zero and shared by the panels beside it"
            + (", hatched cells are padding." if bool(self.outside.any()) else "."),
            alt=f"Patch, kernel, their product and its sum for {self.unit}",
        )
        names = ("patch", "kernel", "outside", "map")
        folder.arrays(
            "patch-times-kernel.npz",
            {name: getattr(self, name).numpy() for name in names},
            caption="patch and kernel (C, k, k), padding (k, k), the unit's map (h, w).",
        )

    def tables(self) -> Iterator[results.Table]:
        height, width = self.patch.shape[1:]
        values = (self.patch, self.kernel, self.product)
        yield results.Table(
            "products.csv",
            ("channel", "row", "column", "patch", "weight", "product"),
            [
                (channel, y, x, *(results.significant(t[c, y, x], 9) for t in values))
                for c, channel in enumerate(self.channels)
                for y in range(height)
                for x in range(width)
            ],
            caption=f"Every product; their sum plus the bias {self.bias:.9g} is the activation.",
        )

    def plot(self) -> Figure:
        """The whole calculation as one figure."""
        return figures.calculation(self)


@public
def patch_times_kernel(
    model: Model,
    picture: Data,
    unit: str,
    *,
    position: tuple[int, int] | None = None,
) -> PatchTimesKernel:
    """Why one unit of a convolution responds as it does at one position: patch * kernel, summed.

    The sum is computed in float64 from the convolution's input and weights and compared with the
    model's activation. Channels of a first layer are red, green and blue also in models that take
    blue first.

    Args:
        model: the model.
        picture: A float tensor (C, H, W) in [0, 1], which keeps its size, or one picture of any
            kind that `as_pictures` takes.
        unit: "conv1:12", with its position "conv1:12@20,30", or a layer alone ("conv1"), which
            takes the unit with the largest activation.
        position: (row, column) in the unit's map; default: the largest activation.

    Returns:
        Patch, kernel, their products and the activation.

    Raises:
        UserError: for a unit that belongs to no convolution, a position off the map, and for what
            is not one picture.

    Example:
        featviz.patch_times_kernel(model, "zebra.jpg", "conv1:12").save("run/patch-conv1-12")
    """
    started = time.perf_counter()
    products = measure_patch(model, open_picture(model, picture), unit, position)
    parameters = {
        "picture": picture_source(picture),
        "unit": str(products.unit),
        "position": products.unit.position,
    }
    differs = (
        f"the sum by hand ({products.total:.6g}) and the model's activation "
        f"({products.activation:.6g}) differ by {products.difference:.1e}"
    )
    return PatchTimesKernel(
        **vars(products),
        origin=results.origin(model, started=started, parameters=parameters),
        warnings=(differs,) if products.difference > TOLERANCE else (),
    )
