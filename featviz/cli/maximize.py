"""`featviz maximize`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featviz.cli import options
from featviz.types import AutoPrecision

if TYPE_CHECKING:
    from featviz.maximization.layer_results import Several
    from featviz.maximization.result import Maximized


def maximize(
    layer: Annotated[
        str,
        typer.Option(
            "--layer",
            "-l",
            help="Where to look: conv1 ... conv5, fc6, fc7, logits; or several: a,b.",
        ),
    ] = "conv5",
    units: Annotated[
        str,
        typer.Option(
            "--units",
            "-u",
            help="3,12 or 0-15 or all; classes by name; neurons as 12@6,6 (row, column); "
            "of several layers conv3:5,logits:tabby.",
        ),
    ] = "0-15",
    preset: Annotated[
        str,
        typer.Option(help="Whose settings: featviz, none, lucid, distill, maco, yosinski-1 to -4."),
    ] = "featviz",
    parametrization: Annotated[
        str | None,
        typer.Option(
            help="fourier, pixels, raw-pixels, pyramid, cppn or maco; default: the preset's."
        ),
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Colours and spectrum of your own pictures (measure_statistics makes the file).",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of the ascent: 64 for a sketch, 512 for print; default: 256, or the preset's.",
        ),
    ] = None,
    tries: Annotated[
        int, typer.Option(min=1, help="Pictures to make of each unit, of which the best is kept.")
    ] = 1,
    size: Annotated[
        int | None,
        typer.Option(min=8, help="Side of the pictures; default: as the layer's field asks for."),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            help="centre (one thing), channel (a texture) or auto; or any other in words, in place "
            "of --layer and --units: 'conv5:12 - 0.5*conv4:7', several with ; between them."
        ),
    ] = "auto",
    film: Annotated[
        str | None,
        typer.Option("--film", help="Also a film of each ascent: gif, or mp4 for both kinds."),
    ] = None,
    facets: Annotated[
        int | None,
        typer.Option(
            "--facets",
            help="Instead: so many different pictures of each unit, driven apart, or with --data "
            "begun from groups of its strongest examples.",
        ),
    ] = None,
    diversity: Annotated[
        float | None,
        typer.Option("--diversity", help="Of facets: how hard they are driven apart; default: 1."),
    ] = None,
    between: Annotated[
        int | None,
        typer.Option("--between", help="Instead: so many pictures from one unit to another."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Most pictures at a time; less needs less memory.")
    ] = None,
    precision: Annotated[
        AutoPrecision,
        typer.Option(help="Of the network in the steps; scores are of float32."),
    ] = "auto",
    engine: Annotated[
        str,
        typer.Option(help="here, or ray: spread over a Ray cluster (RAY_ADDRESS, or one here)."),
    ] = "here",
    model: options.ModelName = "alexnet-mini",
    weights: options.Weights = None,
    classes: options.Classes = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            metavar="PATH",
            help="Photographs to compare the pictures with: scores, ranks, paths through the net.",
        ),
    ] = None,
    other: Annotated[
        str | None,
        typer.Option("--other", metavar="NAME", help="Another model: does it see the classes too?"),
    ] = None,
    other_weights: Annotated[
        str | None, typer.Option("--other-weights", metavar="FILE", help="Its weights.")
    ] = None,
    other_classes: Annotated[
        Path | None, typer.Option("--other-classes", metavar="FILE", help="Its class names.")
    ] = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw pictures that units, neurons or classes answer to most.

    A run that was stopped goes on where it was when the same command is given again.

    Example: featviz maximize --layer logits --units goldfish,tabby,teapot
    """
    from featviz.cli.run import check_out, finish, progress_bar
    from featviz.datasets import open_pictures
    from featviz.errors import UserError
    from featviz.films import check_kind
    from featviz.maximization import maximize, shards
    from featviz.models.load import load

    if other is None and (other_weights is not None or other_classes is not None):
        raise UserError("--other-weights and --other-classes are of --other; name that model too")
    if facets is not None or between is not None or diversity is not None:
        _refuse_with_several(preset != "featviz", "--preset")
        _refuse_with_several(parametrization is not None, "--parametrization")
        _refuse_with_several(statistics is not None, "--statistics")
        _refuse_with_several(tries > 1, "--tries")
        _refuse_with_several(engine != "here", "--engine")
        _refuse_with_several(other is not None, "--other")
        _several(
            layer,
            units,
            facets=facets,
            between=between,
            diversity=diversity,
            steps=steps or 256,
            size=size,
            objective=objective,
            film=film,
            batch_size=batch_size,
            precision=precision,
            model=model,
            weights=weights,
            classes=classes,
            data=data,
            device=device,
            seed=seed,
            out=out,
            overwrite=overwrite,
            as_json=as_json,
            quiet=quiet,
        )
        return
    if ":" in objective or "(" in objective:
        _joint(
            objective,
            preset=preset,
            parametrization=parametrization,
            statistics=statistics,
            steps=steps,
            tries=tries,
            size=size,
            film=film,
            batch_size=batch_size,
            precision=precision,
            model=model,
            weights=weights,
            classes=classes,
            device=device,
            seed=seed,
            out=out,
            overwrite=overwrite,
            as_json=as_json,
            quiet=quiet,
        )
        return
    kind = "gif" if film is None else check_kind(film)
    places = _places(layer, units)
    named = [places] if isinstance(places, str) else [p.partition(":")[0] for p in places]
    default = f"maximize-{'-'.join(dict.fromkeys(named))}"
    wanted = Path("run") / default if out is None else out
    overwrite = overwrite or shards.unfinished(wanted)
    folder = check_out(wanted, default, overwrite)
    net = load(model, weights=weights, classes=classes, device=device)
    pictures = None if data is None else open_pictures(data)
    second = (
        None
        if other is None
        else load(other, weights=other_weights, classes=other_classes, device=device)
    )
    try:
        with progress_bar(quiet) as progress:
            result = maximize.maximize(
                net,
                places,
                units=units,
                objective=objective,
                preset=preset,
                steps=steps,
                tries=tries,
                seed=seed,
                size=size,
                natural=pictures,
                other=second,
                film=24 if film else 0,
                batch_size=batch_size,
                precision=precision,
                engine=engine,
                partial=shards.partial_of(folder),
                progress=progress,
                parametrization=parametrization,
                statistics=statistics,
            )
    except maximize.Stopped as stopped:
        if stopped.result is not None:
            kept = _filmed(stopped.result, kind)
            finish(kept, folder, overwrite=overwrite, as_json=as_json, quiet=quiet)
        raise
    finish(_filmed(result, kind), folder, overwrite=overwrite, as_json=as_json, quiet=quiet)
    shards.remove(shards.partial_of(folder))


def _joint(
    objective: str,
    *,
    preset: str,
    parametrization: str | None,
    statistics: Path | None,
    steps: int | None,
    tries: int,
    size: int | None,
    film: str | None,
    batch_size: int | None,
    precision: AutoPrecision,
    model: str,
    weights: str | None,
    classes: Path | None,
    device: str,
    seed: int,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Objectives in words, one picture each."""
    from featviz.cli.run import check_out, finish, progress_bar
    from featviz.films import check_kind
    from featviz.maximization import maximize
    from featviz.models.load import load

    kind = "gif" if film is None else check_kind(film)
    folder = check_out(out, "maximize-objective", overwrite)
    net = load(model, weights=weights, classes=classes, device=device)
    words = [text.strip() for text in objective.split(";") if text.strip()]
    try:
        with progress_bar(quiet) as progress:
            result = maximize.maximize_objective(
                net,
                words,
                preset=preset,
                steps=steps,
                tries=tries,
                seed=seed,
                size=size,
                film=24 if film else 0,
                batch_size=batch_size,
                precision=precision,
                progress=progress,
                parametrization=parametrization,
                statistics=statistics,
            )
    except maximize.Stopped as stopped:
        if stopped.result is not None:
            kept = _filmed(stopped.result, kind)
            finish(kept, folder, overwrite=overwrite, as_json=as_json, quiet=quiet)
        raise
    finish(_filmed(result, kind), folder, overwrite=overwrite, as_json=as_json, quiet=quiet)


def _places(layer: str, units: str) -> str | list[str]:
    """One layer, several, or the units of any layers that --units names."""
    from featviz.models.units import split_units

    if ":" in units:
        return split_units(units)
    layers = [name.strip() for name in layer.split(",") if name.strip()]
    return layers[0] if len(layers) == 1 else layers


def _filmed(result: Maximized | Several, kind: str) -> Maximized | Several:
    """The result with its films to be saved as "gif", or "mp4" for both."""
    from featviz.maximization.result import Maximized

    if isinstance(result, Maximized):
        return replace(result, film=kind)
    return replace(result, layers=tuple(replace(part, film=kind) for part in result.layers))


def _refuse_with_several(given: bool, option: str) -> None:
    from featviz.errors import UserError

    if given:
        raise UserError(f"--facets and --between take no {option}; leave it out")


def _several(
    layer: str,
    units: str,
    *,
    facets: int | None,
    between: int | None,
    diversity: float | None,
    steps: int,
    size: int | None,
    objective: str,
    film: str | None,
    batch_size: int | None,
    precision: AutoPrecision,
    model: str,
    weights: str | None,
    classes: Path | None,
    data: Path | None,
    device: str,
    seed: int,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Several pictures of each unit (--facets), or on the way between two (--between)."""
    from featviz.cli.run import check_out, finish, progress_bar
    from featviz.datasets import open_pictures
    from featviz.errors import UserError
    from featviz.films import check_kind
    from featviz.models.load import load
    from featviz.results import Result

    if facets is None and between is None:
        raise UserError("--diversity is of facets; add --facets 4, or leave it out")
    if facets is not None and between is not None:
        raise UserError("--facets and --between are two different results; ask for one at a time")
    if between is not None and (
        data is not None or diversity is not None or batch_size is not None
    ):
        raise UserError("--between takes no --data, --diversity or --batch-size; leave them out")
    kind = None if film is None else check_kind(film)
    folder = check_out(out, f"{'interpolation' if facets is None else 'facets'}-{layer}", overwrite)
    net = load(model, weights=weights, classes=classes, device=device)
    pictures = None if data is None else open_pictures(data)
    result: Result
    with progress_bar(quiet) as progress:
        if between is not None:
            from featviz.maximization.interpolation import interpolate

            result = interpolate(
                net,
                layer,
                units,
                count=between,
                steps=steps,
                seed=seed,
                size=size,
                objective=objective,
                film_kind=kind,
                precision=precision,
                progress=progress,
            )
        else:
            from featviz.maximization.facets import draw_facets

            result = draw_facets(
                net,
                layer,
                units=units,
                count=facets or 0,
                natural=pictures,
                diversity=1.0 if diversity is None else diversity,
                steps=steps,
                seed=seed,
                size=size,
                objective=objective,
                film=24 if kind else 0,
                film_kind=kind or "gif",
                batch_size=batch_size,
                precision=precision,
                progress=progress,
            )
    finish(result, folder, overwrite=overwrite, as_json=as_json, quiet=quiet)
