"""A class atlas: the directions that argue for one class, as a map of the pictures that hold them.

`build_class_atlas(model, store, "tabby")` takes of each picture the vector that speaks for the
class, lays these vectors out, cuts the map into cells, gives each cell an icon, and says how much
its mean raises the class's logit (Carter, Armstrong, Schubert, Johnson and Olah 2019,
"Activation Atlas", Distill, section "Focusing on a single classification").

What a vector says for a class is first order (`effects`): the effect on the class's logit less the
mean effect on all logits, since what raises all alike argues for nothing.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from featviz import plotting, results
from featviz.atlas.build import Atlas, Level, build_atlas, check_model, resize, standing
from featviz.atlas.effects import effect_on, logit_effects, names_of
from featviz.atlas.icons import cell_means
from featviz.errors import BadPicture, UserError
from featviz.models.frozen import frozen
from featviz.models.layers import activations
from featviz.statistics import rank_correlation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.embedding.store import Store
    from featviz.models.model import Model

Among = Literal["arguing", "class"]

SIDE = 8
"""squares a side, as published"""
MOST = 1000
"""pictures of a class atlas"""
FEWEST = 8
"""pictures without which there is no map"""
_BATCH = 32
_SHOWN = 5
"""cells for and against that are shown one by one"""


@dataclass(frozen=True, kw_only=True, repr=False)
class ClassAtlas(results.Result):
    """What argues for one class: an atlas of the vectors that do, and how much each cell says."""

    kind: ClassVar[str] = "atlas"

    atlas: Atlas
    """of the chosen rows; its first level has `side` squares and the icons"""
    target: int
    name: str
    """of the class"""
    among: str
    """"arguing": the pictures that argue for it most; "class": its own pictures"""
    arguments: Tensor
    """(N,) what each row says for the class"""
    cells: Tensor
    """(cells,) what the mean of each cell of the first level says"""
    own: Tensor
    """(N,) bool: whether a picture is of the class"""
    said: Tensor | None
    """(cells,) how far the class's logit is above the mean logit for each synthetic icon"""

    @property
    def title(self) -> str:
        return f"What argues for {self.name} in {self.atlas.store.title}"

    @property
    def level(self) -> Level:
        return self.atlas.levels[0]

    def numbers(self) -> dict[str, results.Number]:
        own = float(self.own.double().mean())
        shown = {
            "pictures": results.Number(len(self.arguments), "", "on the map"),
            "of the class": results.Number(own, "fraction", f"are labelled {self.name}"),
            "argument": results.Number(
                float(self.arguments.mean()),
                "logits",
                "what a picture says for the class above the mean of all classes, on average",
            ),
            "cells for it": results.Number(
                float((self.cells > 0).double().mean()),
                "fraction",
                "of the cells raise its logit above the mean logit",
            ),
        }
        if self.said is not None and len(self.cells) > 2:
            shown["icons agree"] = results.Number(
                rank_correlation(self.cells, self.said),
                "",
                "Spearman: what a cell says, and the logit that the model gives its icon",
            )
        return shown | {
            name: number for name, number in self.atlas.numbers().items() if name != "pictures"
        }

    def write(self, folder: results.Folder) -> None:
        figure = self.plot()
        for file in ("class.png", "class.pdf"):
            folder.figure(
                file,
                figure,
                caption=f"Left: the map cut into squares, each with its icon; the frame says what "
                f"the square's mean does to the logit of {self.name}, to first order, above the "
                "mean of all logits (green for, purple against). Right: the squares that say most, "
                "with the photograph nearest to their mean and the classes that they raise most.",
                alt="Grid of icons framed by their attribution, and a list of the strongest",
            )
        folder.table(
            "class_cells.csv",
            ("row", "column", "pictures", "argument", "of_class", "icon_logit", "effects"),
            [
                (
                    cell.row,
                    cell.column,
                    len(cell.members),
                    f"{self.cells[number]:.4f}",
                    f"{self.own[list(cell.members)].double().mean():.3f}",
                    "" if self.said is None else f"{self.said[number]:.3f}",
                    names_of((self.level.effects or [()] * len(self.cells))[number]),
                )
                for number, cell in enumerate(self.level.grid.cells)
            ],
            caption="What each square says for the class, above the mean of all classes, in "
            "logits; how much of it is labelled so; the logit of its icon above the mean logit.",
        )
        folder.table(
            "class_rows.csv",
            ("path", "class", "argument", "map_row", "map_column"),
            [
                (
                    self.atlas.store.pictures.paths[row],
                    self.atlas.store.pictures.folders[row],
                    f"{said:.4f}",
                    *where,
                )
                for row, said, where in zip(
                    self.atlas.rows, self.arguments.tolist(), self._positions(), strict=True
                )
            ],
            caption="What each picture says for the class, and at which position of the layer's "
            "map it was read, where it has one.",
        )
        self.atlas.write(folder)

    def _positions(self) -> list[tuple[Any, Any]]:
        where = self.atlas.store.positions
        if where is None:
            return [("", "")] * len(self.arguments)
        return [(int(where[row][0]), int(where[row][1])) for row in self.atlas.rows]

    def plot(self) -> Figure:
        return _figure(self)


def build_class_atlas(
    model: Model,
    store: Store,
    target: int | str,
    *,
    among: Among = "arguing",
    side: int = SIDE,
    most: int = MOST,
    icons: Literal["sample", "synthetic", "both"] = "both",
    icon_steps: int = 128,
    seed: int = 0,
    partial: str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> ClassAtlas:
    """The directions of a layer that argue for one class, as an atlas.

    store: activations at the layer, made by this model. Of a layer without positions its rows are
        taken. Of a map the pictures are read again, and of each the position that says most for
        the class is taken, so it does not matter which the store holds
    target: a class of the model, by index, synset or name
    among: "arguing": of all pictures the `most` that say most for the class, positive ones only;
        "class": the pictures labelled so, whatever they say
    side: squares a side of the map; icons are made for each
    icons, icon_steps, partial, options: see `featviz.atlas.build.build_atlas`

    Raises UserError for an unknown class, a model without a head or with other weights than the
    store's, and where fewer than FEWEST pictures are left.
    """
    started = time.perf_counter()
    if among not in ("arguing", "class"):
        raise UserError(f"unknown pictures {among!r}; take arguing or class")
    model.layer("logits")
    if len(store.shape) == 2:
        raise UserError(f"{store.layer} has tokens; a class atlas is of vectors or of a map")
    check_model(model, store)
    number = model.class_index(target)
    name = model.class_name(number)
    own = torch.tensor([model.find_class(f) == number for f in store.pictures.classes])
    of_class = {f for f, mine in zip(store.pictures.classes, own.tolist(), strict=True) if mine}
    candidates = [
        row for row, label in enumerate(store.labels) if among != "class" or label in of_class
    ]
    if len(candidates) < FEWEST:
        raise UserError(
            f"{len(candidates)} pictures of {name} in {store.source['name']} are too few for a "
            f"map ({FEWEST} or more); take --among arguing, or more pictures"
        )
    chosen, arguments, doubts = _arguing(model, store, candidates, number, progress)
    best = torch.sort(arguments, descending=True, stable=True).indices[:most]
    if among == "arguing":
        best = best[arguments[best] > 0]
    if len(best) < FEWEST:
        raise UserError(
            f"{len(best)} pictures argue for {name} in {store.layer}; {FEWEST} make a map"
        )
    best = best.sort().values
    some = _selected(chosen, best)
    atlas = build_atlas(
        model,
        some,
        icons=icons,
        sides=[side],
        icon_side=side,
        icon_steps=icon_steps,
        most=len(some),
        seed=seed,
        partial=partial,
        progress=progress,
        **{"perplexity": 20.0} | options,
    )
    level = atlas.levels[0]
    means = cell_means(some.matrix(), level.grid)
    effects = logit_effects(model, store.layer, means, **standing(model, some, level.samples))
    said = None
    if level.synthetic is not None:
        with torch.inference_mode():
            parts = level.synthetic.images.split(_BATCH)
            logits = torch.cat([model(part.to(model.device)).float().cpu() for part in parts])
        said = effect_on(logits, number).clone()
    made = results.origin(
        model,
        parameters=dict(atlas.origin.parameters)
        | {
            "class": name,
            "among": among,
            "side": side,
            "most": most,
            "store": None if store.folder is None else str(store.folder),
        },
        started=started,
        seed=seed,
    )
    return ClassAtlas(
        origin=replace(made, data=store.origin.data),
        warnings=(*doubts, *atlas.warnings),
        atlas=atlas,
        target=number,
        name=name,
        among=among,
        arguments=arguments[best],
        cells=effect_on(effects, number),
        own=torch.tensor([label in of_class for label in some.labels]),
        said=said,
    )


def _arguing(
    model: Model,
    store: Store,
    rows: list[int],
    target: int,
    progress: Callable[[int, int, str], None] | None,
) -> tuple[Store, Tensor, tuple[str, ...]]:
    """Candidates as a store of their own, what each says for the class (N,), and doubts."""
    if len(store.shape) == 1:
        found = []
        for start in range(0, len(rows), 1024):
            part = store.take(rows[start : start + 1024])
            found.append(effect_on(logit_effects(model, store.layer, part), target))
            if progress is not None:
                progress(start + len(part), len(rows), "asking what argues for the class")
        return _memory(store, rows, store.take(rows)), torch.cat(found), ()
    read: list[int] = []
    vectors, places, said = [], [], []
    for start in range(0, len(rows), _BATCH):
        pictures = []
        for row in rows[start : start + _BATCH]:
            try:
                pictures.append(store.pictures.read(row, model.resize, model.input_size))
                read.append(row)
            except BadPicture:
                continue
        if pictures:
            h, where, argument = strongest(model, store.layer, torch.stack(pictures), target)
            vectors.append(h)
            places.append(where)
            said.append(argument)
        if progress is not None:
            progress(min(start + _BATCH, len(rows)), len(rows), "asking what argues for the class")
    if not read:
        raise UserError(f"no picture of {store.source['name']} is there any more; give --data")
    doubts = [f"{len(rows) - len(read)} pictures could not be read"] * (len(read) < len(rows))
    chosen = _memory(store, read, torch.cat(vectors), torch.cat(places), model)
    return chosen, torch.cat(said), tuple(doubts)


def strongest(
    model: Model, layer: str, pictures: Tensor, target: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each picture (N, 3, S, S) the position of a layer that says most for a class.

    What a position says is the gradient there of the class's logit less the mean logit, times the
    activation; a position's effect is that of its own presence, to first order.

    Returns (activations (N, C), rows and columns (N, 2), what they say (N,)).
    """
    place = model.layer(layer)
    with torch.enable_grad(), frozen(model):
        seen = pictures.to(model.device).requires_grad_(True)
        values = activations_and_logits(model, seen, place.name)
        wanted = values[1][:, target] - values[1].mean(1)
        (slope,) = torch.autograd.grad(wanted.sum(), values[0])
    h = values[0].detach()
    said = (h * slope).sum(1)  # (N, H, W)
    best = said.flatten(1).argmax(1)
    rows = torch.arange(len(h), device=h.device)
    where = torch.stack([best // said.shape[2], best % said.shape[2]], 1)
    return (
        h.flatten(2)[rows, :, best].float().cpu(),
        where.cpu(),
        said.flatten(1)[rows, best].float().cpu(),
    )


def activations_and_logits(model: Model, pictures: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """A layer's activations and the logits of one pass, with their graph."""
    found = activations(model, pictures, [layer, "logits"])
    return found[layer], found["logits"]


def _memory(
    store: Store,
    rows: list[int],
    vectors: Tensor,
    positions: Tensor | None = None,
    model: Model | None = None,
) -> Store:
    """A store in memory of some rows of another, with vectors of their own."""
    field = None if model is None else model.layer(store.layer).receptive_field
    return replace(
        store,
        memory=vectors.half().numpy(),
        shards=(),
        folder=None,
        pictures=store.pictures.select(rows),
        sizes=store.sizes[rows],
        positions=None if positions is None else positions.int().numpy(),
        receptive_field=field if positions is not None else None,
    )


def _selected(store: Store, rows: Tensor) -> Store:
    """Some rows of a store in memory."""
    assert store.memory is not None
    some = rows.tolist()
    return replace(
        store,
        memory=store.memory[some],
        pictures=store.pictures.select(some),
        sizes=store.sizes[some],
        positions=None if store.positions is None else store.positions[some],
    )


def _figure(found: ClassAtlas) -> Figure:
    """The map of cells at the left, the strongest of them at the right."""
    from matplotlib.patches import Rectangle

    level, atlas = found.level, found.atlas
    samples = atlas.pictures_of(level.samples).float() / 255
    icons = samples if level.synthetic is None else level.synthetic.images
    limit = max(float(found.cells.abs().max()), 1e-9)
    figure = plotting.new_figure(11, 6.4)
    figure.set_layout_engine("none")
    figure.set_dpi(200)
    axes = figure.add_axes((0.01, 0.07, 0.53, 0.86))
    side = level.grid.side
    small = resize(icons, 96)
    for number, cell in enumerate(level.grid.cells):
        x, y = cell.column, cell.row
        axes.add_patch(
            Rectangle(
                (x + 0.02, y + 0.02), 0.96, 0.96, color=colour_of(found.cells[number] / limit)
            )
        )
        axes.imshow(
            small[number].permute(1, 2, 0).numpy(),
            extent=(x + 0.1, x + 0.9, y + 0.9, y + 0.1),
            interpolation="antialiased",
            zorder=2,
        )
    axes.set_xlim(0, side)
    axes.set_ylim(side, 0)
    axes.set_aspect("equal")
    plotting.bare(axes)
    _scale(figure, limit, found.name)
    figure.text(
        0.01,
        0.965,
        textwrap.shorten(found.title, 110),
        fontsize=11,
        weight="bold",
        color=plotting.INK,
        va="center",
    )
    order = torch.sort(found.cells, descending=True, stable=True).indices.tolist()
    shown = min(_SHOWN, len(order))
    strong = [*order[:shown], *[i for i in order[-2:] if i not in order[:shown]]]
    tall = 0.86 / (_SHOWN + 2)
    for line, number in enumerate(strong):
        cell = level.grid.cells[number]
        bottom = 0.93 - (line + 1) * tall
        pictures = (
            [samples[number]] if level.synthetic is None else [icons[number], samples[number]]
        )
        for place, picture in enumerate(pictures):
            axes = figure.add_axes((0.57 + 0.066 * place, bottom, 0.062, tall * 0.93))
            plotting.show_image(axes, resize(picture[None], 112)[0])
        effects = () if level.effects is None else level.effects[number][:4]
        raised = "\n".join(f"{textwrap.shorten(n, 26)} {value:+.1f}" for n, value in effects)
        share = float(found.own[list(cell.members)].double().mean())
        figure.text(
            0.575 + 0.066 * len(pictures),
            bottom + tall * 0.9,
            f"{found.cells[number]:+.2f} for {textwrap.shorten(found.name, 18)}\n"
            f"{len(cell.members)} pictures, {share:.0%} labelled so",
            fontsize=7.5,
            color=plotting.INK,
            va="top",
            linespacing=1.3,
        )
        figure.text(
            0.86,
            bottom + tall * 0.9,
            raised,
            fontsize=7,
            color="#444444",
            va="top",
            linespacing=1.25,
        )
    return figure


def colour_of(value: float | Tensor) -> tuple[float, float, float]:
    """Green for +1, purple for -1, light grey at 0."""
    from matplotlib import colormaps

    red, green, blue, _ = colormaps["PRGn"](0.5 + 0.5 * float(value))
    return float(red), float(green), float(blue)


def _scale(figure: Figure, limit: float, name: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes = figure.add_axes((0.1, 0.035, 0.35, 0.018))
    bar = figure.colorbar(
        ScalarMappable(Normalize(-limit, limit), "PRGn"), cax=axes, orientation="horizontal"
    )
    bar.ax.tick_params(labelsize=6.5, length=2)
    bar.outline.set_visible(False)
    figure.text(
        0.46,
        0.044,
        f"logits for {textwrap.shorten(name, 20)}",
        fontsize=7,
        color="#444444",
        va="center",
    )
