"""`featviz audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featviz.cli import options
from featviz.types import SearchSteps, Tries

PARTS = "corruptions,universal,transfer,diagnosis"


def audit(
    *,
    data: options.Data = None,
    eps: Annotated[
        str | None,
        typer.Option(
            "--eps",
            metavar="LIST",
            help="Grid for L-infinity (or for the only norm): 1/255,2/255,4/255; "
            "default: 1/8 to 8 levels of 255.",
        ),
    ] = None,
    eps_l2: Annotated[
        str | None,
        typer.Option("--eps-l2", metavar="LIST", help="Grid for L2; default: 1/32 to 2."),
    ] = None,
    eps_l1: Annotated[
        str | None,
        typer.Option("--eps-l1", metavar="LIST", help="Grid for L1; default: 0.5 to 32."),
    ] = None,
    eps_l0: Annotated[
        str | None,
        typer.Option("--eps-l0", metavar="LIST", help="Grid for L0 (values); default: 1 to 64."),
    ] = None,
    norm: Annotated[
        str, typer.Option("--norm", help="Any of linf, l2, l1, l0, with commas.")
    ] = "linf,l2",
    count: options.Count = 200,
    steps: Annotated[
        SearchSteps, typer.Option("--steps", help="Passes of the search for the smallest change.")
    ] = 60,
    check: Annotated[
        str,
        typer.Option(
            "--check", help="Second attack on the pictures left: apgd or ensemble (slower)."
        ),
    ] = "apgd",
    check_steps: Annotated[
        Tries, typer.Option("--check-steps", help="Of the second attack; 0: no check.")
    ] = 30,
    queries: Annotated[
        Tries, typer.Option("--queries", help="Of the attack without gradients; 0: none.")
    ] = 100,
    parts: Annotated[
        str,
        typer.Option(
            "--parts",
            help="Further results, with commas (attribution is one more); none: the curves alone.",
        ),
    ] = PARTS,
    stimuli: Annotated[
        Path | None,
        typer.Option(
            "--stimuli",
            metavar="FOLDER",
            help="Pictures whose shape and texture disagree (cat/cat4-truck2.png): shape bias.",
        ),
    ] = None,
    categories: Annotated[
        Path | None,
        typer.Option(
            "--categories",
            metavar="FILE",
            help="Which classes each category of the stimuli has; default: FOLDER_categories.tsv.",
        ),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            "--time", metavar="10m", help="Fit the work into 90s, 10m or 2h; says what is left out."
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="NAME[:WEIGHTS]",
            help="Another model that judges the adversarial pictures; may be given again.",
        ),
    ] = None,
    engine: options.Engine = "here",
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.StrictOutput,
) -> None:
    """Measure robust accuracy against the size of the attack, with checks of the measurement.

    Labels are the names of the class folders; without any, the model's predictions are used. A run
    that was stopped goes on when the same command is given again.

    Example: featviz audit --eps 1/255,2/255,4/255 --norm linf --count 24
    """
    if stimuli is None:
        options.refuse_unused("without --stimuli", categories=(categories, None))
    norms = options.parse_words("--norm", norm)
    grids = grids_of(norms, {"linf": eps, "l2": eps_l2, "l1": eps_l1, "l0": eps_l0})

    from featviz.checkpoints import partial_folder
    from featviz.cli.run import open_data
    from featviz.models.load import load
    from featviz.robustness.audit import audit as run
    from featviz.robustness.audit import check_grids

    check_grids(norms, grids)
    pictures = open_data(data)
    folder = output.folder(f"audit-{pictures.name}")
    net = model.load()
    output.check_labels(pictures.label_report(net))
    others = {}
    for word in against or []:
        name, file = options.name_and_weights(word)
        others[name] = load(name, weights=file, device=model.device)

    with output.progress() as progress:
        result = run(
            net,
            pictures,
            norms=norms,
            eps=grids,
            count=count,
            steps=steps,
            check=check.lower(),
            check_steps=check_steps,
            queries=queries,
            parts=options.parse_words("--parts", parts),
            stimuli=stimuli,
            categories=categories,
            time=None if time is None else options.parse_duration(time),
            against=others,
            seed=seed,
            checkpoint=partial_folder(folder),
            engine=engine,
            progress=progress,
        )
    output.finish(result, folder)


def grids_of(norms: list[str], texts: dict[str, str | None]) -> dict[str, list[float]]:
    """The grids that were given; --eps belongs to L-infinity, or to the only norm."""
    from featviz.errors import UserError

    given = {name: text for name, text in texts.items() if text is not None}
    if "linf" in given and len(norms) == 1:
        given = {norms[0]: given.pop("linf")} | given
    for name in given:
        if name not in norms:
            option = "--eps" if name == "linf" else f"--eps-{name}"
            raise UserError(f"{option} is given, but --norm leaves {name} out")
    return {
        name: [options.parse_eps(word.strip()) for word in text.split(",") if word.strip()]
        for name, text in given.items()
    }
