"""`featviz redraw`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featviz.cli import options

if TYPE_CHECKING:
    from torch import Tensor

    from featviz.models.model import Model
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
    pictures: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PICTURE]...", help="Picture files; default: a bundled one."),
    ] = None,
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
        int | None,
        typer.Option(min=1, help="invert, caricature: so many, from different noise; default 1."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of the optimization; deepdream: at each octave.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=16, help="Side of the pictures; default: the model's input size."),
    ] = None,
    octaves: Annotated[
        int | None, typer.Option(min=1, help="deepdream: number of sizes; default 3.")
    ] = None,
    power: Annotated[
        float | None,
        typer.Option(
            min=0, help="caricature: 0 exaggerates most, more keeps the mixture; default 2."
        ),
    ] = None,
    anchor: Annotated[
        str | None,
        typer.Option("--anchor", help="accentuate: the layer whose activations are to stay."),
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(min=0, help="accentuate: weight of the anchor, 0 for none; default 1."),
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
        int | None,
        typer.Option(min=1, help="Pictures at a time; less needs less memory."),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of the steps: auto, float32 or bfloat16 (numbers: float32).")
    ] = "auto",
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
    from featviz.datasets import open_pictures
    from featviz.films import check_kind

    own: dict[str, Any] = {
        "layer": layer,
        "units": units,
        "restarts": restarts,
        "octaves": octaves,
        "power": power,
        "anchor": anchor,
        "weight": weight,
        "data": data,
    }
    own = _own_options(method, {name: value for name, value in own.items() if value is not None})
    film = check_kind(film) if film else None
    stem = pictures[0].stem if pictures else "sample"
    folder = output.folder(f"{method}-{stem}")
    net = model.load()
    if "data" in own:
        own["others"] = open_pictures(own.pop("data"))
    names, batch = read_pictures(pictures, net, size)
    shared: dict[str, Any] = {
        "seed": seed,
        "names": names,
        "frames": 24 if film else 0,
        "film": film or "gif",
        "batch_size": batch_size,
        "precision": precision,
        "checkpoint": partial_folder(folder),
    }
    if steps is not None:
        shared["steps"] = steps
    with output.progress() as progress:
        result = _redraw(method, net, batch, own | shared | {"progress": progress})
    output.finish(result, folder)


def _own_options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options of one method; UserError for those that it would ignore."""
    from featviz.errors import UserError, nearest

    if method not in _TAKES:
        hint = nearest(method, _TAKES) or f"; take {', '.join(_TAKES)}"
        raise UserError(f"unknown method {method!r}{hint}")
    ignored = [f"--{name}" for name in given if name not in _TAKES[method]]
    if ignored:
        raise UserError(
            f"--method {method} takes no {', '.join(ignored)}; leave it out, or choose another "
            "method (featviz redraw --help says which takes what)"
        )
    return given


def _redraw(method: str, model: Model, pictures: Tensor, options: dict[str, Any]) -> Result:
    match method:
        case "accentuate":
            from featviz.from_picture.accentuation import accentuate

            return accentuate(model, pictures, **options)
        case "deepdream":
            from featviz.from_picture.deepdream import deepdream

            return deepdream(model, pictures, options.pop("layer", None), **options)
        case "caricature":
            from featviz.from_picture.caricature import caricature

            return caricature(model, pictures, options.pop("layer", None), **options)
        case _:
            from featviz.from_picture.inversion import invert

            return invert(model, pictures, options.pop("layer", None), **options)
