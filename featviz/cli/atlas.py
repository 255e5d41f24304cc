"""`featviz atlas`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from featviz.cli import options
from featviz.cli.embed import BatchSize, ClassNames, LayerName
from featviz.cli.neighbors import StoreFolder


def atlas(
    store: StoreFolder = None,
    icons: Annotated[
        Literal["sample", "synthetic", "both"],
        typer.Option("--icons", help="Photographs, pictures made for each square, or both."),
    ] = "sample",
    icon_side: Annotated[
        int, typer.Option("--icon-side", min=1, help="Squares a side that get synthetic icons.")
    ] = 8,
    icon_steps: Annotated[
        int, typer.Option("--icon-steps", min=1, help="Steps for each synthetic icon.")
    ] = 128,
    perplexity: Annotated[
        float, typer.Option("--perplexity", min=1, help="Neighbours that each picture minds.")
    ] = 30.0,
    data: options.Data = None,
    layer: LayerName = None,
    class_names: ClassNames = None,
    batch_size: BatchSize = 64,
    model: options.ModelName = "alexnet-mini",
    weights: options.Weights = None,
    classes: options.Classes = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Map a data set as a layer sees it: a page to walk through, prints, and how far to trust them.

    With --store the model is needed for synthetic icons only.

    Example: featviz atlas --icons sample --out run/atlas
    """
    from featviz.atlas.build import build_atlas
    from featviz.cli.embed import read_class_names
    from featviz.cli.run import check_out, finish, open_data, progress_bar
    from featviz.embedding.extract import default_layer, embed
    from featviz.embedding.store import open_store
    from featviz.models.load import load

    net = None
    if store is None or icons != "sample":
        net = load(model, weights=weights, classes=classes, device=device)
    if store is not None:
        space = open_store(store, data=data)
        folder = check_out(out, f"atlas-{space.layer}", overwrite)
    else:
        assert net is not None
        place = net.layer(layer or default_layer(net)).name
        folder = check_out(out, f"atlas-{place}", overwrite)
    with progress_bar(quiet) as progress:
        if store is None:
            assert net is not None
            space = embed(
                net, open_data(data), place, class_names=read_class_names(class_names),
                batch_size=batch_size, progress=progress,
            )  # fmt: skip
        result = build_atlas(
            net, space, icons=icons, icon_side=icon_side, icon_steps=icon_steps,
            perplexity=perplexity, seed=seed, progress=progress,
        )  # fmt: skip
    finish(result, folder, overwrite=overwrite, as_json=as_json, quiet=quiet)
