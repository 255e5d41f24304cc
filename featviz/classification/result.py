"""What `classify` returns: the most likely classes of each picture, as text, JSON and figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from featviz import results
from featviz.classification.figures import Bar, Panel, draw_panels, percent
from featviz.statistics import share
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, repr=False)
class Classified(results.Result):
    """The most likely classes of each picture."""

    kind: ClassVar[str] = "classify"

    model_name: str
    classes: tuple[str, ...]
    """names of the model's classes"""
    synsets: tuple[str, ...]
    """their WordNet ids, "" where there is none"""
    names: tuple[str, ...]
    """of the N pictures that could be read"""
    labels: Tensor
    """(N,) the right class, -1 where it is not known"""
    ranks: Tensor
    """(N,) place of the right class, from 1; 0 where it is not known"""
    label_probabilities: Tensor
    """(N,) of the right class, NaN where it is not known"""
    predictions: Tensor
    """(N, k) the most likely classes, best first"""
    probabilities: Tensor
    """(N, k) their probabilities"""
    independent: bool
    """each class by itself (a sigmoid), so that probabilities do not add up to 1"""
    drawn: tuple[int, ...]
    """which of the N pictures are in figures"""
    pictures: Tensor
    """(len(drawn), C, H, W) in [0, 1], as the model takes them"""

    @property
    def best(self) -> tuple[tuple[str, float], ...]:
        """The most likely class of each picture with its probability."""
        return tuple((bars[0].name, bars[0].probability) for bars in map(self.bars, self._rows))

    @property
    def _rows(self) -> range:
        return range(len(self.names))

    def bars(self, i: int) -> list[Bar]:
        """The most likely classes of picture `i`."""
        pairs = zip(self.predictions[i].tolist(), self.probabilities[i].tolist(), strict=True)
        label = int(self.labels[i])
        return [Bar(self._short(c), probability, c == label) for c, probability in pairs]

    def _short(self, label: int) -> str:
        return self.classes[label].partition(",")[0]

    def right_class(self, i: int) -> str:
        """What is known of picture `i`: "goldfish, place 12 with 0.3%"; "" where nothing is."""
        rank, name = int(self.ranks[i]), self._short(int(self.labels[i]))
        if not rank:
            return ""
        missed = f", place {rank} with {percent(float(self.label_probabilities[i]))}"
        return name + (missed if rank > self.predictions.shape[1] else "")

    @property
    def title(self) -> str:
        whose = self.names[0] if len(self.names) == 1 else counted(len(self.names), "picture")
        return f"Classes of {whose} according to {self.model_name}"

    def numbers(self) -> dict[str, results.Number]:
        if len(self.names) == 1:
            return self._of_one()
        found = {}
        known = self.ranks[self.ranks > 0]
        for k in sorted({1, self.predictions.shape[1]}) if len(known) else ():
            found[f"top-{k}"] = share(int((known <= k).sum()), len(known)).number(
                "the right class is the most likely one"
                if k == 1
                else f"the right class is among the {k} most likely"
            )
        return found | {
            "median probability": results.Number(
                float(self.probabilities[:, 0].median()), "fraction", "of the most likely class"
            ),
            "pictures": results.Number(len(self.names), "", "that could be read"),
            "classes": results.Number(
                len(self.predictions[:, 0].unique()), "", "that are the most likely one of some"
            ),
        }

    def _of_one(self) -> dict[str, results.Number]:
        """The classes of the only picture."""
        found = {}
        for bar, index in zip(self.bars(0), self.predictions[0].tolist(), strict=True):
            name = f"{bar.name} ({index})" if bar.name in found else bar.name
            text = "probability of the right class" if bar.right else "probability"
            found[name] = results.Number(bar.probability, "fraction", text)
        return found

    def to_text(self) -> str:
        """Each picture with its classes, the right one marked with a star."""
        lines = [f"{self.title}{self._how_to_read}"]
        for i, name in enumerate(self.names):
            right = self.right_class(i)
            lines.append(f"{name}{f'  (right: {right})' if right else ''}")
            lines += [
                f"{'*' if bar.right else ' ':>3} {percent(bar.probability):>7}  {bar.name}"
                for bar in self.bars(i)
            ]
        return "\n".join(lines)

    @property
    def _how_to_read(self) -> str:
        return "; each class by itself, so that they do not add up to 100%" * self.independent

    def to_json(self, **more: Any) -> str:
        """One JSON document: the model, and for each picture its classes."""
        document = {
            **more,
            "model": self.origin.model,
            "independent": self.independent,
            "pictures": [self._record(i) for i in self._rows],
            "warnings": list(self.warnings),
        }
        return json.dumps(results.plain(document), indent=1, ensure_ascii=False)

    def _record(self, i: int) -> dict[str, Any]:
        label = int(self.labels[i])
        known = {
            "label": self.classes[label],
            "label_index": label,
            "label_rank": int(self.ranks[i]),
            "label_probability": float(self.label_probabilities[i]),
        }
        return {
            "picture": self.names[i],
            **(known if label >= 0 else {}),
            "classes": [
                {
                    "class": self.classes[index],
                    "index": index,
                    **({"synset": self.synsets[index]} if self.synsets[index] else {}),
                    "probability": probability,
                }
                for index, probability in zip(
                    self.predictions[i].tolist(), self.probabilities[i].tolist(), strict=True
                )
            ],
        }

    def write(self, folder: results.Folder) -> None:
        for n, i in enumerate(self.drawn):
            first, right = self.bars(i)[0], self.right_class(i)
            words = f"{self.names[i]}: {first.name}, {percent(first.probability)}."
            words += f" The right class is {right}." if right and not first.right else ""
            folder.figure(
                f"picture-{n + 1:02d}.svg",
                draw_panels(self._panels([n])),
                caption=words,
                alt=f"{self.names[i]} above bars of its most likely classes: "
                + ", ".join(f"{bar.name} {percent(bar.probability)}" for bar in self.bars(i)),
                units=[f"logits:{int(self.predictions[i, 0])}"],
            )
        if self.independent:
            folder.warn(
                "the probability of each class is computed by itself (a sigmoid), so those of a "
                "picture do not add up to 1"
            )

    def tables(self) -> Iterator[results.Table]:
        count = self.predictions.shape[1]
        pairs = [f"{what}_{k + 1}" for k in range(count) for what in ("class", "probability")]
        yield results.Table(
            "pictures.csv",
            ("picture", "right_class", "rank", *pairs),
            (self._cells(i) for i in self._rows),
            caption="Each picture: the right class and its rank, where they are known, and the "
            "most likely classes.",
        )

    def _cells(self, i: int) -> list[Any]:
        rank = int(self.ranks[i])
        known = [self._short(int(self.labels[i])), rank] if rank else ["", ""]
        pairs = [(bar.name, results.significant(bar.probability)) for bar in self.bars(i)]
        return [self.names[i], *known, *(cell for pair in pairs for cell in pair)]

    def plot(self) -> Figure:
        return draw_panels(self._panels(range(len(self.drawn))))

    def _panels(self, which: Sequence[int]) -> list[Panel]:
        rows = [self.drawn[n] for n in which]
        return [
            Panel(self.pictures[n], self.right_class(i) or self.names[i], self.bars(i))
            for n, i in zip(which, rows, strict=True)
        ]
