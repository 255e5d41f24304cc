"""`featviz atlas`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from featviz.cli import options
from featviz.cli.embed import BatchSize, ClassNames, LayerName
from featviz.cli.neighbors import StoreFolder

if TYPE_CHECKING:
    from featviz.embedding.store import Store
    from featviz.models.model import Model
    from featviz.types import Progress


def atlas(
    *,
    store: StoreFolder = None,
    icons: Annotated[
        Literal["sample", "synthetic", "both"] | None,
        typer.Option(
            "--icons",
            help="Pictures of the data, pictures optimized for each square, or both; default: "
            "sample, with --class both.",
        ),
    ] = None,
    sides: Annotated[
        str | None,
        typer.Option(
            "--sides",
            metavar="N,N...",
            help="Squares a side at each resolution; default: 5, 10, 20, 40 ... as there are "
            "pictures for it.",
        ),
    ] = None,
    icon_side: Annotated[
        str,
        typer.Option(
            "--icon-side", metavar="N,N...", help="Squares a side that get synthetic icons."
        ),
    ] = "10",
    icon_steps: Annotated[
        int, typer.Option("--icon-steps", min=1, help="Steps for each synthetic icon.")
    ] = 128,
    icon_power: Annotated[
        float,
        typer.Option(
            "--icon-power", min=0, help="Of the cosine in the icons' objective; 0: projection only."
        ),
    ] = 4.0,
    class_name: Annotated[
        str | None,
        typer.Option("--class", metavar="CLASS", help="An atlas of one class of the model."),
    ] = None,
    among: Annotated[
        Literal["attribution", "class"],
        typer.Option(
            "--among",
            help="With --class: the pictures with the largest attribution, or those labelled so.",
        ),
    ] = "attribution",
    beside: Annotated[
        Path | None,
        typer.Option(
            "--beside",
            metavar="STORE",
            help="A store of another layer or model: both as aligned maps side by side.",
        ),
    ] = None,
    align: Annotated[
        Literal["start", "procrustes"],
        typer.Option(
            "--align", help="With --beside: start from the first map, or only align to it."
        ),
    ] = "start",
    perplexity: Annotated[
        float,
        typer.Option("--perplexity", min=1, help="Neighbors that a picture tries to keep."),
    ] = 30.0,
    method: Annotated[
        str,
        typer.Option(
            "--method", help="Of the layout: auto, preview, tsne, openTSNE, scikit-learn or cuml."
        ),
    ] = "auto",
    seeds: Annotated[
        int,
        typer.Option("--seeds", min=1, help="Maps to make, to see how they depend on seeds."),
    ] = 1,
    most: Annotated[
        int, typer.Option("--most", min=2, help="Of more pictures an even sample is shown.")
    ] = 20_000,
    data: options.Data = None,
    layer: LayerName = None,
    class_names: ClassNames = None,
    batch_size: BatchSize = 64,
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Map a data set as a layer represents it: an interactive page, prints, and their quality.

    With --store the model is needed for synthetic icons and --class only. Icons that are finished
    when the command is stopped are kept; the same command goes on from them.

    Example: featviz atlas --icons sample --out run/atlas
    """
    from featviz.atlas.aligned import align_maps
    from featviz.atlas.build import build_atlas
    from featviz.atlas.classes import MOST, SIDE, build_class_atlas
    from featviz.atlas.icons import IconSettings
    from featviz.atlas.layout import LayoutSettings
    from featviz.checkpoints import partial_folder
    from featviz.embedding.extract import default_layer
    from featviz.embedding.store import open_store
    from featviz.errors import UserError
    from featviz.results import Result

    if beside is not None and class_name is not None:
        raise UserError("--beside and --class are two kinds of atlas; give one of them")
    cut = None if sides is None else numbers(sides, "--sides")
    with_icons = numbers(icon_side, "--icon-side")
    icons = icons or ("sample" if class_name is None else "both")
    icon = IconSettings(steps=icon_steps, power=icon_power)
    layout = LayoutSettings(perplexity=perplexity, method=method)
    net = None
    if store is None or icons != "sample" or class_name is not None:
        net = model.load()
    other = None if beside is None else open_store(beside)
    if store is not None:
        space = open_store(store, data=data)
        place = space.layer
    else:
        assert net is not None
        place = net.layer(layer or default_layer(net)).name
    kind = f"-{class_name.replace(' ', '-')}" if class_name else "-beside" if beside else ""
    folder = output.folder(f"atlas-{place}{kind}")
    partial = partial_folder(folder)
    with output.progress() as progress:
        if store is None:
            assert net is not None
            space = _embedded(net, data, place, class_names, batch_size, progress)
        result: Result
        if other is not None:
            result = align_maps(
                space,
                other,
                how=align,
                layout=layout,
                most=most,
                seed=seed,
                progress=progress,
            )
        elif class_name is not None:
            assert net is not None
            result = build_class_atlas(
                net,
                space,
                class_name,
                among=among,
                icons=icons,
                icon=icon,
                side=cut[0] if cut else SIDE,
                most=min(most, MOST),
                layout=replace(layout, perplexity=20.0),
                seed=seed,
                checkpoint=partial,
                progress=progress,
            )
        else:
            result = build_atlas(
                net,
                space,
                icons=icons,
                sides=cut,
                icon_side=with_icons,
                icon=icon,
                layout=layout,
                seeds=seeds,
                most=most,
                seed=seed,
                checkpoint=partial,
                progress=progress,
            )
    output.finish(result, folder)


def numbers(text: str, option: str) -> list[int]:
    """ "5,10" as [5, 10]. Raises UserError for anything else."""
    from featviz.errors import UserError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: give numbers with commas, as 5,10,20") from None


def _embedded(
    net: Model,
    data: Path | None,
    layer: str,
    class_names: Path | None,
    batch_size: int,
    progress: Progress | None,
) -> Store:
    from featviz.cli.embed import read_class_names
    from featviz.cli.run import open_data
    from featviz.embedding.extract import embed

    return embed(
        net,
        open_data(data),
        layer,
        class_names=read_class_names(class_names),
        batch_size=batch_size,
        progress=progress,
    )
