"""What `concept_cards` returns: a card for each concept, and the concepts of some classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from featviz import results
from featviz.concepts.cards_figures import draw_card, draw_class, draw_overview, draw_together
from featviz.concepts.cards_measured import Change, MeasuredCards
from featviz.results import file_stem, significant
from featviz.statistics import middle
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RAISED, LOWERED = 3, 3
"""classes on a card"""
_LISTED = 5  # classes of either sign in the table
_COMPANIONS = 3


@dataclass(frozen=True, kw_only=True, repr=False)
class ConceptCards(MeasuredCards, results.Result):
    """Concepts and what they do to the classes, in words, tables and figures."""

    kind: ClassVar[str] = "cards"

    @property
    def title(self) -> str:
        return f"The concepts of {self.layer} in {self.model_name}"

    @property
    def parts(self) -> Mapping[str, results.Result]:
        described = {} if self.descriptions is None else {"descriptions": self.descriptions}
        return {"pictures": self.icons, **described}

    def numbers(self) -> dict[str, results.Number]:
        found = {
            "concepts": results.Number(len(self.names), "", f"of {self.layer}"),
            "pictures": results.Number(self.count, "", "searched"),
        }
        if self.effects is not None:
            best = max(range(len(self.names)), key=lambda i: self.changes(i)[0].removal)
            index, removal, low, high, _ = self.changes(best)[0]
            found["largest effect"] = results.Number(
                removal,
                "",
                f"that {self.names[best]} adds to the logit of {self.classes[index]}, above the "
                "mean of all logits",
                low,
                high,
                self.effects.pictures,
            )
            found["agreement"] = results.Number(
                middle(self.effects.agreement),
                "",
                "median rank correlation of the effects by the gradient and by removal",
            )
        for one in self.importance:
            first = one.order[0]
            found[f"importance for {self.classes[one.target]}"] = results.Number(
                significant(one.indices.total[first], 4),
                "",
                f"total Sobol index of {self.names[first]}, the highest of the class",
                significant(one.indices.low[first], 4),
                significant(one.indices.high[first], 4),
                one.indices.pictures,
            )
        return found

    def write(self, folder: results.Folder) -> None:
        folder.figure(
            "concepts.svg",
            self.plot(),
            caption=f"Concepts of {self.layer}, the largest first: the maximized picture, the "
            "pictures in which it is strongest (faded where it is not), and the classes whose "
            "logit falls and rises most when it is taken out.",
            alt=f"Maximized pictures and top patches of the concepts of {self.layer}",
        )
        for i, name in enumerate(self.names):
            folder.figure(
                f"cards/{file_stem(name)}.svg",
                draw_card(self, i),
                caption=f"{name}. {self._words(i)} Patches fade where the concept is not.",
                alt=f"Maximized picture, top patches and effects of {name}",
                units=[name],
            )
        for one in self.importance:
            label = self.classes[one.target]
            folder.figure(
                f"classes/logits-{one.target}.svg",
                draw_class(self, one),
                caption=f"The concepts that the logit of {label} depends on most: total Sobol "
                f"index, mean of {counted(one.indices.pictures, 'picture')}, with 95% interval.",
                alt=f"The most important concepts of {label}",
                units=[f"logits:{one.target}"],
            )
        folder.figure(
            "together.svg",
            draw_together(self),
            caption="Which concepts are in the same pictures: rank correlation of their largest "
            f"codes over {counted(self.count, 'picture')}. Concepts that occur together are "
            "neighbors.",
            alt="Matrix of correlations between concepts",
        )
        if self.effects is not None:
            names = ("gradient", "removal", "low", "high")
            folder.arrays(
                "effects.npz",
                {name: getattr(self.effects, name).numpy() for name in names},
                caption="Effects of all concepts on all logits, (k, classes).",
            )

    def _words(self, concept: int) -> str:
        share = f"Strong in {100 * float(self.strong[concept]):.0f}% of the pictures."
        changes = self.changes(concept)
        if not changes:
            return share
        first, last = changes[0], changes[-1]
        return (
            f"{share} It raises the logit of {self.classes[first.target]} most "
            f"({first.removal:+.2g} above the mean of all logits), and lowers that of "
            f"{self.classes[last.target]} most ({last.removal:+.2g})."
        )

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "concepts.csv",
            ("unit", "strong", "largest", "raises", "by", "lowers", "by_less"),
            [self._row(i) for i in range(len(self.names))],
            caption="Each concept: the share of pictures in which it is strong (half of its "
            "largest code), that code, and the classes that it raises and lowers most, by removal, "
            "less the mean of all logits.",
        )
        if self.effects is not None:
            yield results.Table(
                "effects.csv",
                ("unit", "class", "name", "removal", "low", "high", "gradient"),
                [
                    (f"logits:{c.target}", self.classes[c.target], name, *map(significant, c[1:]))
                    for i, name in enumerate(self.names)
                    for c in _ends(self.changes(i), _LISTED, _LISTED)
                ],
                caption=f"The {_LISTED} classes that each concept raises most and lowers most: by "
                "removal with its 95% interval, and by the gradient, both less the mean of all "
                "logits.",
            )
        if self.importance:
            yield results.Table(
                "importance.csv",
                ("unit", "class", "name", "total", "low", "high"),
                [
                    (
                        f"logits:{one.target}",
                        self.classes[one.target],
                        self.names[j],
                        *(significant(values[j], 4) for values in one.indices[:3]),
                    )
                    for one in self.importance
                    for j in one.order
                ],
                caption="The importance of each concept for each class: total Sobol index with its "
                "95% interval. Indices of concepts that act together overlap.",
            )
        yield results.Table(
            "together.csv",
            ("unit", "name", "correlation"),
            [
                (name, self.names[j], significant(self.together[i, j], 4))
                for i, name in enumerate(self.names)
                for j in self._companions(i)
            ],
            caption="The concepts that occur most in the same pictures as each.",
        )
        yield results.Table(
            "patches.csv",
            ("unit", "rank", "code", "row", "path", "y", "x"),
            [
                (name, rank, significant(p.value), p.row, p.path, *(p.position or ("", "")))
                for name, places in zip(self.names, self.places, strict=True)
                for rank, p in enumerate(places, 1)
            ],
            caption="The top patches of each concept.",
        )

    def _row(self, concept: int) -> tuple[object, ...]:
        ends = _ends(self.changes(concept), 1, 1)
        words = [cell for c in ends for cell in (self.classes[c.target], significant(c.removal, 4))]
        return (
            self.names[concept],
            round(float(self.strong[concept]), 4),
            significant(self.places[concept][0].value),
            *(words or ("", "", "", "")),
        )

    def _companions(self, concept: int) -> list[int]:
        values = self.together[concept].nan_to_num(-2)
        order: list[int] = values.argsort(descending=True, stable=True).tolist()
        return [j for j in order if j != concept and float(values[j]) > 0][:_COMPANIONS]

    def plot(self) -> Figure:
        """The first concepts, a row each."""
        return draw_overview(self)


def _ends(changes: Sequence[Change], first: int, last: int) -> list[Change]:
    """The first and the last of a list, none twice."""
    return [*changes[:first], *changes[first:][-last:]]
