"""What `attribute` returns: the maps of each picture, checks of them, and their folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from featviz import results
from featviz.attribution.figures import draw
from featviz.attribution.methods import METHODS, Attributions
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, repr=False)
class Attributed(Attributions, results.Result):
    """Maps of what the logit of one class a picture depends on."""

    kind: ClassVar[str] = "attribute"

    @property
    def title(self) -> str:
        explained = {self.classes[t] for t in self.targets}
        whose = f"{explained.pop()} of " if len(explained) == 1 else "predictions of "
        count = self.names[0] if len(self.names) == 1 else counted(len(self.names), "picture")
        return f"Attributions for {whose}{self.model_name} in {count}"

    def numbers(self) -> dict[str, results.Number]:
        found = {
            "probability": results.Number(
                float(self.target_probabilities.mean()),
                "fraction",
                "of the explained class, mean over pictures",
            )
        }
        if self.completeness is not None:
            found["completeness error"] = results.Number(
                float(self.completeness.max()),
                "fraction",
                "of integrated gradients, largest of the pictures: how far the map's sum is from "
                "what it must be",
            )
        for method, left in self.deletion.items():
            found[f"left by {METHODS[method].title}"] = results.Number(
                float(left.mean()),
                "fraction",
                "probability once the map's highest fifth is deleted; at random positions "
                f"{100 * float(self.deletion_random[method].mean()):.1f}%",
            )
        return found

    def write(self, folder: results.Folder) -> None:
        for i, name in enumerate(self.names):
            target = self.classes[self.targets[i]]
            folder.figure(
                f"attribution-{i + 1:02d}.svg",
                self.plot_one(i),
                caption=f"{name}, explained: {target}. {self._reading()}",
                alt=f"{name} with attribution maps for {target}",
                units=[f"logits:{self.targets[i]}"],
            )
        folder.arrays(
            "maps.npz",
            {m: values.numpy() for m, values in self.maps.items()},
            caption="The maps (N, H, W), unscaled.",
        )

    def tables(self) -> Iterator[results.Table]:
        columns: dict[str, list[str] | list[float]] = {
            "picture": list(self.names),
            "target": [self.classes[target] for target in self.targets],
            "probability": self.target_probabilities.tolist(),
            "completeness": _column(self.completeness, len(self.names)),
            "completeness_logits": _column(self.completeness_logits, len(self.names)),
        }
        for method, left in self.deletion.items():
            columns[f"left_{method}"] = left.tolist()
            columns[f"left_{method}_moved"] = self.deletion_random[method].tolist()
        yield results.Table(
            "attribution.csv",
            list(columns),
            list(zip(*columns.values(), strict=True)),
            caption="Completeness error of integrated gradients (relative and in logits) and the "
            "probability left after deletion of each map's highest fifth, and of the same area at "
            "random positions (moved).",
        )

    def _reading(self) -> str:
        """How the maps are to be read, for the caption."""
        parts = ["Colors end at the 99.5th percentile of the absolute values."]
        if any(METHODS[method].signed for method in self.maps):
            parts.append(
                "Signed maps are red where the picture raises the class's logit and blue where it "
                "lowers it; white is zero."
            )
        if "grad_cam" in self.maps:
            parts.append(f"Layer of Grad-CAM: {self.layer}.")
        parts.append(f"Baseline, and cover of what is deleted: {self.baseline}.")
        parts.append(
            "Below each map: the class's probability once the map's highest fifth is deleted, and "
            "once the same area elsewhere is."
        )
        return " ".join(parts)

    def plot(self) -> Figure:
        return draw(self, range(len(self.names)))

    def plot_one(self, i: int) -> Figure:
        """The figure of one picture."""
        return draw(self, [i])


def _column(values: Tensor | None, count: int) -> list[str] | list[float]:
    return [""] * count if values is None else [float(value) for value in values]
