"""`featviz demo`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featviz.cli import options
from featviz.cli.embed import ClassNames

if TYPE_CHECKING:
    from featviz.tour import Outcome


def demo(
    *,
    data: options.Data = None,
    class_names: ClassNames = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer units, steps and pictures: a minute at most.")
    ] = False,
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Run every analysis once and build a gallery of all results.

    Offline, with the bundled model and pictures, or with your own. Results in --out that were made
    from the same model, data and seed are kept, so a run that was stopped goes on.

    Example: featviz demo --quick --out run/tour
    """
    from featviz.cli.embed import read_class_names
    from featviz.cli.run import open_data
    from featviz.errors import UserError
    from featviz.tour import QUICK, run_tour

    folder = output.claim(output.out or Path("run") / "demo", replaced=False)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a folder for the results")
    net = model.load(seed=seed)
    pictures, names = open_data(data), read_class_names(class_names)
    announce = None if output.quiet or output.as_json else _announce
    with output.progress() as progress:
        tour = run_tour(
            net,
            pictures,
            folder,
            budget=QUICK if quick else None,
            seed=seed,
            class_names=names,
            overwrite=output.overwrite,
            progress=progress,
            announce=announce,
        )
    if output.as_json:
        steps = [asdict(outcome) for outcome in tour.outcomes]
        document = {"gallery": tour.gallery, "seconds": tour.seconds, "steps": steps}
        print(json.dumps(document, indent=1, default=str))
        return
    made = sum(not outcome.refused for outcome in tour.outcomes)
    print(f"{made} results in {tour.seconds:.0f} s; open this in a browser:")
    print((tour.gallery / "index.html").resolve())


def _announce(outcome: Outcome) -> None:
    what = "kept" if outcome.kept else f"{outcome.seconds:5.1f} s"
    if outcome.refused:
        what = f"left out: {outcome.refused}"
    print(f"  {outcome.folder.name:<20} {what}", flush=True)
