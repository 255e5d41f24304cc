"""`featviz redraw`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featviz.cli import options
from featviz.types import BatchSize, Octaves, Power, Restarts, Side, Steps, Weight

if TYPE_CHECKING:
    from featviz.results import Result

# What each method takes of the options that are not for all.
_TAKES = {
    "invert": {"layer", "restarts", "data"},
    "caricature": {"layer", "restarts", "power"},
    "deepdream": {"layer", "units", "octaves"},
    "accentuate": {"units", "anchor", "weight"},
}


def redraw(
    *,
    pictures: options.PictureFiles = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="invert (what a layer keeps), caricature (that, exaggerated), deepdream (more of "
            "what activates a layer), accentuate (what a unit detects).",
        ),
    ] = "invert",
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer",
            "-l",
            help="Layers, comma-separated; default: all of them (deepdream: conv3 to conv5).",
        ),
    ] = None,
    units: Annotated[
        str | None,
        typer.Option(
            "--units",
            "-u",
            help="accentuate: conv5:3,logits:tabby; default: the predictions. deepdream: of the "
            "one layer, 3,12.",
        ),
    ] = None,
    restarts: Annotated[
        Restarts | None,
        typer.Option(help="invert, caricature: so many, from different noise; default 1."),
    ] = None,
    steps: Annotated[
        Steps | None, typer.Option(help="Of the optimization; deepdream: at each octave.")
    ] = None,
    size: Annotated[
        Side | None,
        typer.Option(help="Side of the pictures; default: the model's input size."),
    ] = None,
    octaves: Annotated[
        Octaves | None, typer.Option(help="deepdream: number of sizes; default 3.")
    ] = None,
    power: Annotated[
        Power | None,
        typer.Option(help="caricature: 0 exaggerates most, more keeps the mixture; default 2."),
    ] = None,
    anchor: Annotated[
        str | None,
        typer.Option("--anchor", help="accentuate: the layer whose activations are to stay."),
    ] = None,
    weight: Annotated[
        Weight | None,
        typer.Option(help="accentuate: weight of the anchor, 0 for none; default 1."),
    ] = None,
    film: Annotated[
        str | None, typer.Option("--film", help="Also a film of each: gif, or mp4 for both kinds.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            metavar="PATH",
            help="invert: unrelated pictures, for comparison; default: the bundled ones.",
        ),
    ] = None,
    batch_size: Annotated[
        BatchSize | None,
        typer.Option(help="Pictures at a time; less needs less memory."),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of the steps: auto, float32 or bfloat16 (numbers: float32).")
    ] = "auto",
    engine: options.Engine = "here",
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Draw pictures again: what a layer keeps of them, or what activates it more.

    Finished pictures are kept in FOLDER.partial until the end: the same command goes on from there.

    Example: featviz redraw --layer conv1,conv3,conv5,fc7
    """
    from featviz.checkpoints import partial_folder
    from featviz.cli.pictures import read_pictures
    from featviz.cli.run import open_data
    from featviz.pictures.films import check_kind

    chosen: dict[str, Any] = {
        "layer": layer,
        "units": units,
        "restarts": restarts,
        "octaves": octaves,
        "power": power,
        "anchor": anchor,
        "weight": weight,
        "data": data,
    }
    own = {name: value for name, value in chosen.items() if value is not None}
    _check_options(method, own)
    film = check_kind(film) if film else None
    stem = pictures[0].stem if pictures else "sample"
    folder = output.folder(f"{method}-{stem}")
    net = model.load()
    if "data" in own:
        own["others"] = open_data(own.pop("data"))
    if "layer" in own:
        own["layers"] = own.pop("layer")
    if steps is not None:
        own["steps"] = steps
    names, batch = read_pictures(pictures, net, size)
    with output.progress() as progress:
        result = _function(method)(
            net,
            batch,
            seed=seed,
            names=names,
            frames=24 if film else 0,
            film=film or "gif",
            batch_size=batch_size,
            precision=precision,
            checkpoint=partial_folder(folder),
            engine=engine,
            progress=progress,
            **own,
        )
    output.finish(result, folder)


def _check_options(method: str, own: Iterable[str]) -> None:
    """Raise UserError for an unknown method and for options that it would ignore."""
    from featviz.errors import UserError, nearest

    if method not in _TAKES:
        hint = nearest(method, _TAKES) or f"; take {', '.join(_TAKES)}"
        raise UserError(f"unknown method {method!r}{hint}")
    ignored = [f"--{name}" for name in own if name not in _TAKES[method]]
    if ignored:
        raise UserError(
            f"--method {method} takes no {', '.join(ignored)}; leave it out, or choose another "
            "method (featviz redraw --help says which takes what)"
        )


def _function(method: str) -> Callable[..., Result]:
    from featviz.from_picture.accentuation import accentuate
    from featviz.from_picture.caricature import caricature
    from featviz.from_picture.deepdream import deepdream
    from featviz.from_picture.inversion import invert

    functions: dict[str, Callable[..., Result]] = {
        "accentuate": accentuate,
        "caricature": caricature,
        "deepdream": deepdream,
        "invert": invert,
    }
    return functions[method]
