"""`featviz compare`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featviz.cli import options
from featviz.cli.audit import grids_of
from featviz.errors import UserError
from featviz.types import Count, SearchSteps

if TYPE_CHECKING:
    from featviz.models.model import Model

PARTS = "robustness,corruptions,units"


def compare(
    *,
    first: Annotated[
        str,
        typer.Argument(
            metavar="FIRST",
            help="The model that is there: a file of weights for --model, NAME, NAME:WEIGHTS, or a "
            "result folder of eval, audit or corrupt.",
        ),
    ],
    second: Annotated[
        str, typer.Argument(metavar="SECOND", help="The model that may take its place, likewise.")
    ],
    data: options.Data = None,
    names: Annotated[
        str | None,
        typer.Option(
            "--names", metavar="LIST", help="Of the two models, as before,after; default: theirs."
        ),
    ] = None,
    parts: Annotated[
        str,
        typer.Option("--parts", help="Beside accuracy and calibration, with commas; or none."),
    ] = PARTS,
    norm: Annotated[
        str, typer.Option("--norm", help="Of robustness: any of linf, l2, l1, l0, with commas.")
    ] = "linf",
    eps: Annotated[
        str | None,
        typer.Option("--eps", metavar="LIST", help="Grid of robustness, as 1/255,2/255,4/255."),
    ] = None,
    steps: Annotated[
        SearchSteps, typer.Option("--steps", help="Passes of the search for the smallest change.")
    ] = 40,
    corruptions: Annotated[
        str | None,
        typer.Option(
            "--corruptions", metavar="LIST", help="As fog,snow; default: the benchmark's 15."
        ),
    ] = None,
    severities: Annotated[
        str, typer.Option("--severities", metavar="LIST", help="Of 1,2,3,4,5.")
    ] = "1,2,3,4,5",
    count: Annotated[
        Count,
        typer.Option("--count", help="Pictures for robustness and corruptions, evenly spread."),
    ] = 100,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            "-l",
            metavar="NAME",
            help="Layer whose units are matched, or NAME=NAME; may be given again. Default: the "
            "last convolution.",
        ),
    ] = None,
    engine: options.Engine = "here",
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.StrictOutput,
) -> None:
    """Compare two models on the same pictures: what was fixed, what broke, and is it chance.

    Two files of weights are read into --model; two result folders are compared as they are.

    Example: featviz compare before.safetensors after.safetensors --data val --names before,after
    """
    from featviz.cli.run import open_data
    from featviz.comparison.compare import compare as run
    from featviz.comparison.compare import compare_results

    called = _two_names(names)
    if model.label is not None:
        raise UserError(f"--name {model.label!r}: there are two models; give --names before,after")
    folder = output.folder("compare")
    places = Path(first), Path(second)
    wanted = options.parse_words("--parts", parts)
    robustness = {"norm": (norm, "linf"), "eps": (eps, None), "steps": (steps, 40)}
    table = {"corruptions": (corruptions, None), "severities": (severities, "1,2,3,4,5")}
    options.refuse_unused("beside FIRST and SECOND", weights=(model.weights, None))
    if any((place / "result.json").is_file() for place in places):
        options.refuse_unused(
            "on result folders",
            data=(data, None),
            parts=(parts, PARTS),
            count=(count, 100),
            layer=(layer, None),
            seed=(seed, 0),
            engine=(engine, "here"),
            strict=(output.strict, False),
            **robustness,
            **table,
        )
        output.finish(compare_results(*places, names=called), folder)
        return
    if "robustness" not in wanted:
        options.refuse_unused("without the part robustness", **robustness)
    if "corruptions" not in wanted:
        options.refuse_unused("without the part corruptions", **table)
    if "units" not in wanted:
        options.refuse_unused("without the part units", layer=(layer, None))
    chosen = None
    if corruptions is not None:
        chosen = options.parse_words("--corruptions", corruptions.replace("-", "_"))
    levels = options.parse_severities(severities)
    norms = options.parse_words("--norm", norm)
    grids = grids_of(norms, {norms[0]: eps} if norms else {})

    from featviz.checkpoints import partial_folder
    from featviz.corruptions import CORRUPTIONS

    pictures = open_data(data)
    one, other = _load(model, first), _load(model, second)
    output.check_labels(*(pictures.label_report(net) for net in (one, other)))
    with output.progress() as progress:
        result = run(
            one,
            other,
            pictures,
            parts=wanted,
            norms=norms,
            eps=grids,
            steps=steps,
            corruptions=CORRUPTIONS if chosen is None else chosen,
            severities=levels,
            count=count,
            layers=layer,
            names=called or (_short(first), _short(second)),
            seed=seed,
            checkpoint=partial_folder(folder),
            engine=engine,
            progress=progress,
        )
    output.finish(result, folder)


def _two_names(text: str | None) -> tuple[str, str] | None:
    """The names of --names. Raises UserError unless there are two."""
    if text is None:
        return None
    one, _, other = (word.strip() for word in text.partition(","))
    if not one or not other or "," in other or one == other:
        raise UserError(f"--names {text!r}: give two different names, as before,after")
    return one, other


def _load(model: options.ModelOptions, text: str) -> Model:
    """A model from a file of weights for --model, NAME or NAME:WEIGHTS."""
    if Path(text).is_file() and not text.endswith(".py"):
        return replace(model, weights=text).load()
    name, weights = options.name_and_weights(text)
    if Path(name).suffix in {".safetensors", ".pt", ".pth", ".ckpt", ".bin"}:
        raise UserError(f"{text}: no such file; give weights, a model or a result folder")
    return replace(model, name=name, weights=weights).load()


def _short(text: str) -> str:
    """A name for tables: the stem of a file, else the model's own."""
    path = Path(text)
    return path.stem if path.is_file() else options.name_and_weights(text)[0]
