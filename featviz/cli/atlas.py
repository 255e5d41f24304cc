"""`featviz atlas`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from featviz.cli import options
from featviz.cli.embed import SpaceOptions
from featviz.types import Most, Perplexity, Power, Seeds, Steps

if TYPE_CHECKING:
    from featviz.results import Result


@dataclass(frozen=True)
class IconOptions:
    """Cells and their icons."""

    icons: Annotated[
        Literal["sample", "synthetic", "both"] | None,
        typer.Option(
            "--icons",
            help="Pictures of the data, pictures optimized for each square, or both; default: "
            "sample, with --class both.",
        ),
    ] = None
    sides: Annotated[
        str | None,
        typer.Option(
            "--sides",
            metavar="N,N...",
            help="Squares a side at each resolution; default: 5, 10, 20, 40 ... as there are "
            "pictures for it.",
        ),
    ] = None
    icon_side: Annotated[
        str,
        typer.Option(
            "--icon-side", metavar="N,N...", help="Squares a side that get synthetic icons."
        ),
    ] = "10"
    icon_steps: Annotated[
        Steps, typer.Option("--icon-steps", help="Steps for each synthetic icon.")
    ] = 128
    icon_power: Annotated[
        Power,
        typer.Option(
            "--icon-power", help="Of the cosine in the icons' objective; 0: projection only."
        ),
    ] = 4.0
    engine: options.Engine = "here"


@dataclass(frozen=True)
class ViewOptions:
    """An atlas of one class, or two maps side by side."""

    class_name: Annotated[
        str | None,
        typer.Option("--class", metavar="CLASS", help="An atlas of one class of the model."),
    ] = None
    among: Annotated[
        Literal["attribution", "class"],
        typer.Option(
            "--among",
            help="With --class: the pictures with the largest attribution, or those labeled so.",
        ),
    ] = "attribution"
    beside: Annotated[
        Path | None,
        typer.Option(
            "--beside",
            metavar="STORE",
            help="A store of another layer or model: both as aligned maps side by side.",
        ),
    ] = None
    align: Annotated[
        Literal["start", "procrustes"],
        typer.Option(
            "--align", help="With --beside: start from the first map, or only align to it."
        ),
    ] = "start"


@dataclass(frozen=True)
class LayoutOptions:
    """How the map is laid out."""

    perplexity: Annotated[
        Perplexity | None,
        typer.Option(
            "--perplexity", help="Neighbors that a picture tries to keep; default 30, --class: 20."
        ),
    ] = None
    method: Annotated[
        str,
        typer.Option(
            "--method", help="Of the layout: auto, preview, tsne, openTSNE, scikit-learn or cuml."
        ),
    ] = "auto"


def atlas(
    *,
    space: SpaceOptions,
    cells: IconOptions,
    view: ViewOptions,
    mapping: LayoutOptions,
    seeds: Annotated[
        Seeds,
        typer.Option("--seeds", help="Maps to make, to see how they depend on seeds."),
    ] = 1,
    most: Annotated[
        Most, typer.Option("--most", help="Of more pictures an even sample is shown.")
    ] = 20_000,
    links: Annotated[
        bool,
        typer.Option(
            "--links",
            help="Link the pictures' files from the page, by their place on this machine.",
        ),
    ] = False,
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Map a data set as a layer represents it: an interactive page, prints, and their quality.

    With --store the model is needed for synthetic icons and --class only. Neighbors, layouts and
    icons are kept while they are made; the same command goes on where it was stopped.

    Example: featviz atlas --icons sample --out run/atlas
    """
    from featviz.atlas.aligned import align_maps
    from featviz.atlas.build import build_atlas
    from featviz.atlas.classes import CLASS_LAYOUT, MOST, SIDE, build_class_atlas
    from featviz.atlas.icons import IconSettings
    from featviz.atlas.layout import LayoutSettings
    from featviz.checkpoints import partial_folder
    from featviz.embedding.store import open_store
    from featviz.errors import UserError

    if view.beside is not None and view.class_name is not None:
        raise UserError("--beside and --class are two kinds of atlas; give one of them")
    _refuse_unused(cells, view, seeds)
    sides = None if cells.sides is None else numbers(cells.sides, "--sides")
    icon_sides = numbers(cells.icon_side, "--icon-side")
    icons = cells.icons or ("sample" if view.class_name is None else "both")
    icon = IconSettings(steps=cells.icon_steps, power=cells.icon_power, engine=cells.engine)
    usual = LayoutSettings() if view.class_name is None else CLASS_LAYOUT
    layout = replace(
        usual, perplexity=mapping.perplexity or usual.perplexity, method=mapping.method
    )
    net = None
    if space.store is None or icons != "sample" or view.class_name is not None:
        net = model.load()
    other = None if view.beside is None else open_store(view.beside)
    layer, load = space.locate(net)
    kind = "-beside" if view.beside else ""
    if view.class_name:
        kind = f"-{view.class_name.replace(' ', '-')}"
    folder = output.folder(f"atlas-{layer}{kind}")
    partial = partial_folder(folder)
    result: Result
    with output.progress() as progress:
        store = load(progress)
        if other is not None:
            result = align_maps(
                store,
                other,
                how=view.align,
                layout=layout,
                most=most,
                seed=seed,
                checkpoint=partial,
                progress=progress,
            )
        elif view.class_name is not None:
            assert net is not None
            result = build_class_atlas(
                net,
                store,
                view.class_name,
                among=view.among,
                icons=icons,
                icon=icon,
                side=sides[0] if sides else SIDE,
                most=min(most, MOST),
                layout=layout,
                seed=seed,
                links=links,
                checkpoint=partial,
                progress=progress,
            )
        else:
            result = build_atlas(
                net,
                store,
                icons=icons,
                sides=sides,
                icon_side=icon_sides,
                icon=icon,
                layout=layout,
                seeds=seeds,
                most=most,
                seed=seed,
                links=links,
                checkpoint=partial,
                progress=progress,
            )
    output.finish(result, folder)


def _refuse_unused(cells: IconOptions, view: ViewOptions, seeds: int) -> None:
    """Raise UserError for options that the kind of atlas does not have."""
    if view.beside is not None:
        made = {
            name: (getattr(cells, name), default) for name, default in vars(IconOptions()).items()
        }
        options.refuse_unused("with --beside", seeds=(seeds, 1), **made)
    else:
        options.refuse_unused("without --beside", align=(view.align, "start"))
    if view.class_name is None:
        options.refuse_unused("without --class", among=(view.among, "attribution"))
    else:
        options.refuse_unused("with --class", seeds=(seeds, 1), icon_side=(cells.icon_side, "10"))


def numbers(text: str, option: str) -> list[int]:
    """ "5,10" as [5, 10]. Raises UserError for anything else."""
    from featviz.errors import UserError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: give numbers with commas, as 5,10,20") from None
