"""What `draw_facets` returns: several pictures of each unit, their numbers, and the folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from featviz import results
from featviz.maximization.facet_examples import Cluster
from featviz.maximization.facets_figures import draw_beside_baseline, draw_clusters, draw_units
from featviz.models.units import Unit
from featviz.pictures import films, images
from featviz.results import file_stem
from featviz.statistics import middle
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_SAVED = ("scores", "baseline_scores", "likeness", "baseline_likeness")
"""numbers that go into facets.npz as they are"""


@dataclass(frozen=True, kw_only=True, repr=False)
class Facets(results.Result):
    """Several pictures of each unit."""

    kind: ClassVar[str] = "facets"

    model_name: str
    layer: str
    objective: str
    units: tuple[Unit, ...]
    titles: tuple[str, ...]
    images: Tensor
    """(U, G, 3, S, S) float32 in [0, 1], rounded to 8 bits"""
    scores: Tensor
    """(U, G): the objective of each, without transforms, in float32"""
    likeness: Tensor
    """(U,): mean cosine between the Gram matrices of a unit's pictures; 1 is one texture"""
    baseline: Tensor
    """(U, G, 3, S, S): what the same seeds give with neither diversity nor examples"""
    baseline_scores: Tensor
    baseline_likeness: Tensor
    clusters: tuple[tuple[Cluster, ...], ...]
    """(U, G): empty without examples"""
    own_cluster: Tensor
    """(U, G) bool: whether the picture is nearest to the center of its own cluster;
    empty without examples"""
    baseline_own_cluster: Tensor
    """the same of the baseline"""
    compared_at: str
    """the layer whose Gram matrices are compared"""
    frames: Tensor
    """(U, G, F, 3, S, S) uint8; or empty"""
    film_kind: str = "gif"

    @property
    def title(self) -> str:
        if len(self.units) == 1:
            return f"Facets of {self.titles[0]} in {self.model_name}"
        return f"Facets of units of {self.layer} in {self.model_name}"

    def numbers(self) -> dict[str, results.Number]:
        out = {
            "facets": results.Number(
                self.images.shape[1], "", f"of {counted(len(self.units), 'unit')}"
            ),
            "likeness": results.Number(
                middle(self.likeness),
                "",
                f"mean cosine between the textures of a unit's pictures at {self.compared_at}, "
                "median; 1 is one texture",
            ),
            "likeness without": results.Number(
                middle(self.baseline_likeness),
                "",
                "of the baseline: the same seeds without diversity",
            ),
            "score": results.Number(
                middle(self.scores),
                "",
                f"median, {self.objective}, of the saved pictures",
            ),
            "score without": results.Number(middle(self.baseline_scores), "", "of the baseline"),
        }
        if self.own_cluster.numel():
            count = self.images.shape[1]
            out["own group"] = results.Number(
                round(self.own_cluster.double().mean().item(), 4),
                "fraction",
                "of the facets are nearest to the center of their own cluster",
            )
            out["own group without"] = results.Number(
                round(self.baseline_own_cluster.double().mean().item(), 4),
                "fraction",
                f"of the baseline; by chance {100 / count:.0f}%",
            )
        return out

    def write(self, folder: results.Folder) -> None:
        names = ", ".join(self.titles[:12]) + (" ..." if len(self.titles) > 12 else "")
        how = "started from the means of clusters of its top activating pictures"
        apart = "optimized together so that their textures differ"
        folder.figure(
            "facets.svg",
            self.plot(),
            caption=f"{self.title}: {names}. A row a unit; its pictures were "
            f"{how if self.own_cluster.numel() else apart}. Below each its score "
            f"({self.objective}). Colors are not rescaled.",
            alt=f"Several pictures each of {names}",
        )
        pixelated = self.images.shape[-1] < 96
        for u, unit in enumerate(self.units):
            stem = file_stem(str(unit))
            folder.figure(
                f"units/{stem}.svg",
                self._unit_figure(u),
                caption=self._unit_caption(u),
                alt=f"Facets of {self.titles[u]} beside the baseline",
                units=[str(unit)],
            )
            for g in range(self.images.shape[1]):
                folder.figure(
                    f"units/{stem}-{g + 1}.png",
                    self.images[u, g],
                    caption=f"{self.titles[u]}, facet {g + 1}. Score {self.scores[u, g]:.3g}.",
                    alt=f"Facet {g + 1} of {self.titles[u]}",
                    units=[str(unit)],
                    pixelated=pixelated,
                    detail=True,
                )
                if self.frames.numel():
                    films.add_film(
                        folder,
                        f"films/{stem}-{g + 1}",
                        self.frames[u, g],
                        kind=self.film_kind,
                        caption=f"{self.titles[u]}, facet {g + 1}, in {self.frames.shape[2]} "
                        "stages.",
                        alt=f"Film of facet {g + 1} of {self.titles[u]}",
                        units=[str(unit)],
                    )
        folder.arrays(
            "facets.npz",
            {
                "images": images.to_uint8(self.images).numpy(),
                "baseline": images.to_uint8(self.baseline).numpy(),
                **{name: getattr(self, name).numpy() for name in _SAVED},
            },
            caption="Facets and the baseline as 8-bit values (U, facets, 3, H, W), "
            "their scores, and how alike those of a unit are.",
        )

    def tables(self) -> Iterator[results.Table]:
        columns = ["unit", "facet", "score", "score without", "likeness", "likeness without"]
        columns += ["examples", "own group", "nearest"] if self.own_cluster.numel() else []
        yield results.Table(
            "facets.csv",
            columns,
            [self._row(u, g) for u in range(len(self.units)) for g in range(self.images.shape[1])],
            caption="Each facet's score, and that of the baseline; the likeness is of "
            "all of a unit's pictures.",
        )

    def _row(self, u: int, g: int) -> list[Any]:
        scores = self.scores[u, g], self.baseline_scores[u, g]
        values = *scores, self.likeness[u], self.baseline_likeness[u]
        row: list[Any] = [str(self.units[u]), g + 1, *(round(v.item(), 5) for v in values)]
        if self.own_cluster.numel():
            cluster = self.clusters[u][g]
            row += [cluster.size, bool(self.own_cluster[u, g]), " ".join(cluster.paths[:3])]
        return row

    def _unit_figure(self, u: int) -> Figure:
        """With clusters a row a facet; without, the facets above the baseline."""
        shown = self.titles[u], self.images[u], self.scores[u]
        if self.clusters:
            return draw_clusters(*shown, self.clusters[u])
        return draw_beside_baseline(*shown, self.baseline[u], self.baseline_scores[u])

    def _unit_caption(self, u: int) -> str:
        name, title = str(self.units[u]), self.titles[u]
        text = (
            f"{name if title == name else f'{title} ({name})'}. "
            f"{self.images.shape[1]} facets. Likeness "
            f"{self.likeness[u]:.2f}, baseline {self.baseline_likeness[u]:.2f}; scores below."
        )
        if self.own_cluster.numel():
            return (
                text + " From left to right in each row: the picture, where it started (the mean "
                "of the examples beside it), and those examples, the nearest to the center of "
                "their cluster."
            )
        return text + " Above with diversity; below the baseline, from the same seeds without."

    def plot(self) -> Figure:
        """A row a unit (at most 16), its facets from left to right."""
        return draw_units(self.title, self.titles, self.images, self.scores)
