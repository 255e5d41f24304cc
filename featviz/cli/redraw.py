"""`featviz redraw`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featviz.cli import options

_METHODS = ("invert", "caricature", "deepdream", "accentuate")


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
            "what a layer sees), accentuate (what a unit finds).",
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
            help="accentuate: conv5:3,logits:tabby; default: the answers. deepdream: those of the "
            "one layer, 3,12.",
        ),
    ] = None,
    tries: Annotated[
        int, typer.Option(min=1, help="invert, caricature: so many, from seeds of their own.")
    ] = 1,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of the ascent; deepdream: at each octave.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=16, help="Side of the pictures; default: the model's input size."),
    ] = None,
    octaves: Annotated[int, typer.Option(min=1, help="deepdream: sizes to work in.")] = 3,
    power: Annotated[
        float,
        typer.Option(min=0, help="caricature: 0 exaggerates most, more keeps to the photograph."),
    ] = 2.0,
    anchor: Annotated[
        str | None,
        typer.Option("--anchor", help="accentuate: the layer whose answer is to stay."),
    ] = None,
    weight: Annotated[
        float, typer.Option(min=0, help="accentuate: how firmly it is held; 0 not at all.")
    ] = 1.0,
    film: Annotated[
        str | None, typer.Option("--film", help="Also a film of each: gif, or mp4 for both kinds.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            metavar="PATH",
            help="invert: unrelated pictures, to tell what is far; default: the bundled ones.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Most pictures at a time; less needs less memory.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of the ascent: fp32, bf16 or auto (numbers are fp32 always).")
    ] = "auto",
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Draw photographs again: what a layer keeps of them, or would like to see in them.

    Example: featviz redraw --layer conv1,conv3,conv5,fc7
    """
    from featviz.cli.pictures import read_pictures
    from featviz.datasets import open_pictures
    from featviz.errors import UserError, nearest
    from featviz.films import check_kind
    from featviz.results import Result

    if method not in _METHODS:
        hint = nearest(method, _METHODS) or f"; take {', '.join(_METHODS)}"
        raise UserError(f"unknown method {method!r}{hint}")
    _check_options(
        method,
        {
            "--layer": layer is not None and method == "accentuate",
            "--units": units is not None and method not in {"deepdream", "accentuate"},
            "--tries": tries != 1 and method not in {"invert", "caricature"},
            "--octaves": octaves != 3 and method != "deepdream",
            "--power": power != 2.0 and method != "caricature",
            "--anchor": anchor is not None and method != "accentuate",
            "--weight": weight != 1.0 and method != "accentuate",
            "--data": data is not None and method != "invert",
        },
    )
    kind = "gif" if film is None else check_kind(film)
    stem = pictures[0].stem if pictures else "sample"
    folder = output.folder(f"{method}-{stem}")
    net = model.load()
    natural = None if data is None else open_pictures(data)
    names, batch = read_pictures(pictures, net, size)
    result: Result
    with output.progress() as progress:
        shared: dict[str, Any] = {
            "seed": seed,
            "names": names,
            "film": 24 if film else 0,
            "film_kind": kind,
            "batch_size": batch_size,
            "precision": precision,
            "progress": progress,
        }
        if steps is not None:
            shared["steps"] = steps
        if method == "invert":
            from featviz.from_picture.inversion import invert

            result = invert(net, batch, layer, tries=tries, natural=natural, **shared)
        elif method == "caricature":
            from featviz.from_picture.deepdream import caricature

            result = caricature(net, batch, layer, tries=tries, power=power, **shared)
        elif method == "deepdream":
            from featviz.from_picture.deepdream import deepdream

            result = deepdream(net, batch, layer, units=units, octaves=octaves, **shared)
        else:
            from featviz.from_picture.accentuation import accentuate

            result = accentuate(net, batch, units, anchor=anchor, weight=weight, **shared)
    output.finish(result, folder)


def _check_options(method: str, astray: dict[str, bool]) -> None:
    """Raise UserError for options that the method would pass over in silence."""
    from featviz.errors import UserError

    named = [option for option, wrong in astray.items() if wrong]
    if named:
        raise UserError(
            f"--method {method} takes no {', '.join(named)}; leave it out, or choose another "
            "method (featviz redraw --help says which takes what)"
        )
