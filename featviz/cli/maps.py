"""`featviz maps`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featviz.cli import options
from featviz.types import Top


def maps(
    *,
    picture: Annotated[
        Path | None,
        typer.Argument(help="A picture; default: a bundled photograph.", metavar="PICTURE"),
    ] = None,
    layer: Annotated[
        str | None, typer.Option("--layer", "-l", help="Whose maps; default: the first layer.")
    ] = None,
    units: Annotated[
        str | None,
        typer.Option("--units", "-u", help="0-7, 3,12 or all; default: the strongest 12."),
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            "--unit",
            metavar="UNIT",
            help="Instead: patch times kernel of conv1:12, at its strongest position or at "
            "conv1:12@20,30.",
        ),
    ] = None,
    top: Annotated[
        Top | None,
        typer.Option(
            "--top",
            help="Instead: so many top activating patches of --data for each unit (9).",
        ),
    ] = None,
    data: options.Data = None,
    engine: options.Engine = "here",
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Show where on a picture units are active, why one responds there, or their top patches.

    Example: featviz maps --layer conv1. With --unit conv1:12 it shows, product by product, why that
    unit responds at its strongest position; with --layer conv5 --units 0-7 --top 9 it finds the
    top activating patches of a data set, and goes on where it was when it is given again.
    """
    from featviz.cli.run import open_data
    from featviz.errors import UserError
    from featviz.models.first_layer import first_convolution
    from featviz.results import Result, file_stem

    examples = top is not None or data is not None
    if examples and (picture is not None or unit is not None):
        raise UserError("--top and --data search a data set; leave PICTURE and --unit out")
    if not examples:
        options.refuse_unused("without --top or --data", engine=(engine, "here"))
    if unit is not None and (layer is not None or units is not None):
        raise UserError(f"--unit {unit} names its layer; leave --layer and --units out")
    net = model.load()
    place = layer or first_convolution(net)
    if place is None:
        raise UserError(f"{model.name} has no convolution; name a layer with --layer")
    result: Result
    if examples:
        from featviz.checkpoints import partial_folder
        from featviz.maps.top_patches import top_patches

        folder = output.folder(f"examples-{file_stem(place)}")
        pictures = open_data(data)
        with output.progress() as progress:
            result = top_patches(
                net,
                pictures,
                place,
                units=units,
                k=top or 9,
                checkpoint=partial_folder(folder),
                engine=engine,
                progress=progress,
            )
    else:
        from featviz.data.samples import photograph_path
        from featviz.maps.activation_maps import activation_maps
        from featviz.maps.patch_times_kernel import patch_times_kernel

        shown = picture or photograph_path("china")
        if unit is not None:
            folder = output.folder(f"patch-{file_stem(unit)}")
            result = patch_times_kernel(net, shown, unit)
        else:
            folder = output.folder(f"maps-{file_stem(place)}")
            result = activation_maps(net, shown, place, units=units)
    output.finish(result, folder)
