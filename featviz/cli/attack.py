"""`featviz attack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featviz.attacks import methods
from featviz.cli import options
from featviz.types import Restarts, Steps


def attack(
    *,
    pictures: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PICTURE]...", help="Picture files; default: a bundled one."),
    ] = None,
    eps: Annotated[
        str | None,
        typer.Option(
            "--eps",
            help="How far pixels may move: 8/255 (the default) or .03; in L2 a length (.5), in L1 "
            "a sum (12). Not for methods that search the smallest change.",
        ),
    ] = None,
    norm: Annotated[
        str | None,
        typer.Option("--norm", help="linf, l2, l1 or l0; default: the method's first."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="Class to reach (name or index); default: any other."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help=f"{methods.methods_in_words()}.",
        ),
    ] = "pgd",
    steps: Annotated[
        Steps | None,
        typer.Option(
            "--steps",
            help=f"Gradient steps at most; default: {methods.steps_in_words()}.",
        ),
    ] = None,
    restarts: Annotated[
        Restarts, typer.Option("--restarts", help="Attempts at most, of pgd and apgd.")
    ] = 1,
    diagnosis: Annotated[
        bool, typer.Option("--diagnosis", help="Measure what changes in the network, by layer.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            metavar="PATH",
            help="With --diagnosis: class folders with reference pictures of the classes; "
            "default: the bundled sample pictures.",
        ),
    ] = None,
    cuda_graph: options.CudaGraph = False,
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.CheckedOutput,
) -> None:
    """Change a picture so little that one hardly sees it, and so that the model errs.

    The adversarial PNG in the result folder is judged as it was saved.

    With --method minimal --norm l2 (or linf, l1, l0) the smallest change is looked for instead.

    Example: featviz attack --eps 8/255 --norm linf
    """
    if not diagnosis:
        options.refuse_unused("without --diagnosis", data=(data, None))
    radius = None if eps is None else options.parse_eps(eps)

    from featviz.attacks.attack import attack as run
    from featviz.cli.pictures import read_pictures
    from featviz.cli.run import open_data

    stem = pictures[0].stem if pictures else "sample"
    folder = output.folder(f"attack-{stem}")
    net = model.load()
    reference = open_data(data) if diagnosis else None
    names, batch = read_pictures(pictures, net)
    with output.progress() as progress:
        result = run(
            net,
            batch,
            norm=norm and norm.lower(),
            eps=radius,
            method=method,
            target=target,
            steps=steps,
            restarts=restarts,
            cuda_graph=cuda_graph,
            seed=seed,
            names=names,
            progress=progress,
        )
        if reference is not None:
            from dataclasses import replace

            from featviz.robustness.parts import diagnose_attack

            found = diagnose_attack(net, result, reference, seed=seed, progress=progress)
            result = replace(result, diagnosis=found)
    output.finish(result, folder)
