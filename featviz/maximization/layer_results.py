"""Pictures of units of several layers: one result with a part for each layer.

The layers' pictures differ in size, so that each part is a `Maximized` of its own, in a folder of
its own within the result's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from featviz import plotting, results
from featviz.maximization.result import Maximized

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.models.model import Model

# Pictures of each layer in the figure of all.
_SHOWN = 8


@dataclass(frozen=True, kw_only=True, repr=False)
class Several(results.Result):
    """Pictures that units of several layers answer to most."""

    kind: ClassVar[str] = "maximize"

    model_name: str
    layers: tuple[Maximized, ...]
    """one a layer, in the order in which the layers were named"""

    @property
    def names(self) -> tuple[str, ...]:
        """Of each picture, layer by layer."""
        return tuple(name for part in self.layers for name in part.names)

    @property
    def pictures(self) -> dict[str, Tensor]:
        """Each picture (3, H, W) by its name."""
        return {
            name: image
            for part in self.layers
            for name, image in zip(part.names, part.images, strict=True)
        }

    @property
    def title(self) -> str:
        layers = ", ".join(part.layer for part in self.layers)
        return f"What units of {layers} in {self.model_name} answer to most"

    def numbers(self) -> dict[str, results.Number]:
        out = {
            "pictures": results.Number(len(self.names), "", f"of {len(self.layers)} layers"),
        }
        for part in self.layers:
            for name, number in part.numbers().items():
                out[f"{part.layer}: {name}"] = number
        return out

    @property
    def parts(self) -> dict[str, results.Result]:
        return {part.layer: part for part in self.layers}

    def write(self, folder: results.Folder) -> None:
        """Nothing of its own: each layer is written as a part."""

    def plot(self) -> Figure:
        """The first pictures of each layer."""
        shown = [
            (image, title)
            for part in self.layers
            for image, title in zip(part.images[:_SHOWN], part.titles, strict=False)
        ]
        return plotting.image_grid(
            [image for image, _ in shown], [title for _, title in shown], columns=_SHOWN, cell=1.5
        )


def several(
    model: Model, parts: Sequence[Maximized], missing: int, *, seed: int, started: float
) -> Several:
    """Parts as one result. `missing`: how many pictures were asked for and not made."""
    layers: dict[str, Any] = {part.layer: dict(part.origin.parameters) for part in parts}
    warnings = [f"{part.layer}: {text}" for part in parts for text in part.warnings]
    if missing:
        made = sum(len(part.names) for part in parts)
        warnings.append(f"stopped early: {missing} of {missing + made} pictures were not made")
    return Several(
        origin=results.origin(model, seed=seed, started=started, parameters={"layers": layers}),
        warnings=tuple(warnings),
        model_name=model.name,
        layers=tuple(parts),
    )
