"""`shape_bias`: does a model decide by shape or by texture?

Stimuli have the shape of one thing and the texture of another. A decision is the category with the
highest mean probability over its classes. Only decisions for the shape's or the texture's category
count; the shape bias is the share of shape decisions among them. Stimuli whose shape and texture
are of one category are left out.

    Geirhos et al., "ImageNet-trained CNNs are biased towards texture", 2019 (arXiv:1811.12231)
"""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from featviz import plotting, results
from featviz.data.datasets import Pictures, Skipped, batches, open_pictures
from featviz.errors import UserError, public
from featviz.models.frozen import frozen
from featviz.statistics import Share, share
from featviz.types import BatchSize, Progress
from featviz.wording import counted, unread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.models.model import Model

PEOPLE = (0.919, 0.987)
"""shape bias of ten people on the same stimuli, lowest and highest (Geirhos et al. 2019)"""


class Decisions(NamedTuple):
    """How the stimuli of one shape category were classified."""

    shape: int
    texture: int
    other: int

    @property
    def bias(self) -> Share:
        return share(self.shape, self.shape + self.texture)


@dataclass(frozen=True, kw_only=True, repr=False)
class ShapeBias(results.Result):
    """Decisions by shape and by texture."""

    kind: ClassVar[str] = "shape-bias"

    model_name: str
    data_name: str
    categories: tuple[str, ...]
    names: tuple[str, ...]
    """of the stimuli that count, (N,)"""
    shapes: Tensor
    """(N,) category of the shape"""
    textures: Tensor
    """(N,) category of the texture"""
    decided: Tensor
    """(N,) category of the decision"""

    @property
    def title(self) -> str:
        return f"Shape against texture: {self.model_name} on {self.data_name}"

    def decisions(self, category: int | None = None) -> Decisions:
        """Of all stimuli, or of those with the shape of one category."""
        mine = slice(None) if category is None else self.shapes == category
        by_shape = self.decided[mine] == self.shapes[mine]
        by_texture = self.decided[mine] == self.textures[mine]
        other = int((~by_shape & ~by_texture).sum())
        return Decisions(int(by_shape.sum()), int(by_texture.sum()), other)

    @property
    def bias(self) -> Share:
        """Shape decisions among those for shape or texture."""
        return self.decisions().bias

    def numbers(self) -> dict[str, results.Number]:
        found = self.decisions()
        n = len(self.names)
        counted = found.shape + found.texture
        low, high = (100 * end for end in PEOPLE)
        return {
            "shape bias": self.bias.number(
                "shape decisions among those for the shape or the texture; people: "
                f"{low:.0f}% to {high:.0f}% on the stimuli of Geirhos et al. 2019"
            ),
            "decided": share(counted, n).number("stimuli decided for their shape or their texture"),
        }

    def write(self, folder: results.Folder) -> None:
        folder.figure(
            "shape-bias.svg",
            self.plot(),
            caption="Share of shape decisions among decisions for the shape or the texture, for "
            "the stimuli of each shape, with 95% Wilson interval. Orange: all stimuli. Gray: where "
            "people were (Geirhos et al. 2019).",
            alt="Dot plot of the shape bias for each category",
        )

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "shape-bias.csv",
            ("category", "shape", "texture", "other", "bias", "low", "high"),
            [self._row(k) for k in range(len(self.categories))],
            caption="Decisions for the stimuli of each shape.",
        )
        words = self.categories
        columns = (self.shapes.tolist(), self.textures.tolist(), self.decided.tolist())
        yield results.Table(
            "decisions.csv",
            ("stimulus", "shape", "texture", "decision"),
            [
                (name, words[s], words[t], words[d])
                for name, s, t, d in zip(self.names, *columns, strict=True)
            ],
            caption="The decision of every stimulus.",
        )

    def _row(self, category: int) -> tuple[object, ...]:
        found = self.decisions(category)
        bias = found.bias
        value = "" if bias.value is None else bias.value
        return (self.categories[category], *found, value, bias.low, bias.high)

    def plot(self) -> Figure:
        rows = [(name, self.decisions(k).bias) for k, name in enumerate(self.categories)]
        rows = sorted((r for r in rows if r[1].n), key=lambda row: -(row[1].value or 0))
        figure = plotting.new_figure(6.0, 1.0 + 0.22 * max(4, len(rows)))
        ax = figure.subplots()
        ax.axvspan(*(100 * end for end in PEOPLE), color="#dddddd", linewidth=0)
        for y, (_, one) in enumerate(rows):
            ax.plot([100 * one.low, 100 * one.high], [y, y], color=plotting.SKY, linewidth=2)
            ax.plot(100 * (one.value or 0), y, "o", color=plotting.BLUE, markersize=4)
        ax.axvline(100 * (self.bias.value or 0), color=plotting.ORANGE, linewidth=1.6)
        plotting.lines(ax, xlabel="decisions by shape (%); the rest by texture", ylabel="")
        ax.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
        ax.set_xlim(-2, 102)
        ax.invert_yaxis()
        return figure


@public
def shape_bias(
    model: Model,
    stimuli: str | Path | Pictures,
    *,
    categories: str | Path | Mapping[str, Sequence[str]] | None = None,
    batch_size: BatchSize = 64,
    progress: Progress | None = None,
) -> ShapeBias:
    """The share of decisions by shape, on pictures whose shape and texture disagree.

    Args:
        model: A classifier.
        stimuli: A folder with one folder a shape category and files "cat4-truck2.png" (shape,
            number, texture, number), as Geirhos et al. publish them.
        categories: Which classes each category has: a mapping from category to synsets or class
            names, or a tab-separated file with the columns `category` and `synset` or `name` (and
            `index` of ImageNet's 1,000 classes, for models that know no synsets). Default:
            FOLDER_categories.tsv beside the folder, else categories.tsv within it.
        batch_size: Pictures a forward pass.
        progress: Called with (stimuli done, all stimuli, text).

    Raises:
        UserError: There is no category file, no stimulus, or fewer than two categories have
            classes of the model.

    Example:
        featviz.shape_bias(model, "cue_conflict").bias.value
    """
    started = time.perf_counter()
    pictures, classes, without, rows = open_stimuli(model, stimuli, categories)
    words = tuple(classes)
    pairs = [_cues(path) for path in pictures.paths]
    foreign = [path for path, pair in zip(pictures.paths, pairs, strict=True) if pair is None]
    counted = pictures.select(rows)
    skipped: list[Skipped] = []
    members = torch.zeros(len(model.classes), len(words), device=model.device)
    for k, word in enumerate(words):
        members[classes[word], k] = 1 / len(classes[word])
    decided, kept = [], []
    with frozen(model), torch.no_grad():
        for batch in batches(
            counted,
            model.preprocessing,
            batch_size=batch_size,
            skipped=skipped,
        ):
            probabilities = model(batch.images.to(model.device)).float().softmax(1)
            decided.append((probabilities @ members).argmax(1).cpu())
            kept += [rows[i] for i in batch.rows]
            if progress:
                progress(len(kept), len(rows), "shape and texture")
    chosen = [pair for pair in (pairs[row] for row in kept) if pair is not None]
    return ShapeBias(
        origin=results.origin(
            model,
            parameters={"categories": {w: len(classes[w]) for w in words}},
            started=started,
            data=pictures,
        ),
        warnings=_warnings(foreign, without, skipped),
        model_name=model.name,
        data_name=pictures.name,
        categories=words,
        names=tuple(pictures.paths[row] for row in kept),
        shapes=torch.tensor([words.index(shape) for shape, _ in chosen]),
        textures=torch.tensor([words.index(texture) for _, texture in chosen]),
        decided=torch.cat(decided),
    )


_NAME = re.compile(r"(?P<shape>\D+?)\d*-(?P<texture>\D+?)\d*")


def open_stimuli(
    model: Model,
    stimuli: str | Path | Pictures,
    categories: str | Path | Mapping[str, Sequence[str]] | None,
) -> tuple[Pictures, dict[str, list[int]], list[str], list[int]]:
    """(pictures, classes of each category, categories without any, rows that count).

    Raises UserError where no row counts.
    """
    pictures = stimuli if isinstance(stimuli, Pictures) else open_pictures(stimuli)
    classes, without = _classes(model, categories, pictures.root)
    pairs = [_cues(path) for path in pictures.paths]
    rows = [
        row
        for row, pair in enumerate(pairs)
        if pair is not None and pair[0] != pair[1] and set(pair) <= set(classes)
    ]
    if not rows:
        raise UserError(
            f"{pictures.root} holds no stimulus of two different categories of "
            f"{', '.join([*classes][:4])} ...; files are named as cat4-truck2.png (shape, texture)"
        )
    return pictures, classes, without, rows


def _cues(path: str) -> tuple[str, str] | None:
    """Categories of shape and texture of "cat/cat4-truck2.png", or None."""
    found = _NAME.fullmatch(Path(path).stem)
    return (found["shape"], found["texture"]) if found else None


def _classes(
    model: Model, categories: str | Path | Mapping[str, Sequence[str]] | None, root: Path
) -> tuple[dict[str, list[int]], list[str]]:
    """The model's classes of each category, and the categories without any."""
    if isinstance(categories, Mapping):
        entries = [(word, -1, name, "") for word, names in categories.items() for name in names]
    else:
        entries = _read_categories(_category_file(categories, root))
    found: dict[str, list[int]] = {word: [] for word, *_ in entries}
    for word, index, synset, name in entries:
        label = model.find_class(synset) if synset else None
        if label is None and name:
            label = model.find_class(name)
        # Without synsets a name may be spelled in another way; the order of ImageNet is known.
        if label is None and len(model.classes) == 1000 and not any(model.synsets):
            label = index if index >= 0 else None
        if label is not None and label not in found[word]:
            found[word].append(label)
    with_classes = {word: labels for word, labels in found.items() if labels}
    if len(with_classes) < 2:
        raise UserError(
            f"{model.name} has classes of {len(with_classes)} of the {len(found)} categories; "
            "shape and texture need two: give categories with synsets or names of its classes"
        )
    return with_classes, [word for word in found if word not in with_classes]


def _category_file(given: str | Path | None, root: Path) -> Path:
    root = root.resolve()
    beside = [root.parent / f"{root.name}_categories.tsv", root / "categories.tsv"]
    for path in [Path(given)] if given is not None else beside:
        if path.is_file():
            return path
    if given is not None:
        raise UserError(f"{given}: no such file; categories are columns `category` and `synset`")
    raise UserError(
        f"no {beside[0].name} beside {root}: say which classes each category has (--categories "
        "FILE with columns category and synset or name, separated by tabs)"
    )


def _read_categories(path: Path) -> list[tuple[str, int, str, str]]:
    """(category, index or -1, synset, name) of each line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error})") from None
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t"))
    if not rows or not {"category"} <= set(rows[0]) or not {"synset", "name"} & set(rows[0]):
        raise UserError(
            f"{path}: the first line must name the columns category and synset or name, separated "
            "by tabs"
        )
    return [
        (
            row["category"] or "",
            int(row["index"]) if (row.get("index") or "").isdecimal() else -1,
            row.get("synset") or "",
            row.get("name") or "",
        )
        for row in rows
    ]


def _warnings(
    foreign: Sequence[str], without: Sequence[str], skipped: Sequence[Skipped]
) -> tuple[str, ...]:
    found = []
    if without:
        found.append(f"no class of the model belongs to {', '.join(without)}: left out")
    if foreign:
        found.append(
            f"{counted(len(foreign), 'file')} not named shape-texture, left out, first {foreign[0]}"
        )
    if skipped:
        found.append(f"{unread(len(skipped))}, first {skipped[0].reason}")
    return tuple(found)
