"""`featviz train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featviz.cli import options

_TRAINING = "Training"


def train(
    *,
    data: options.Data = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            "--validation",
            metavar="PATH",
            help="Pictures to test on after each epoch, in the same class folders.",
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="alexnet-mini, alexnet or alexnet-2012.")
    ] = "alexnet-mini",
    epochs: Annotated[
        int, typer.Option("--epochs", min=1, rich_help_panel=_TRAINING, help="Passes over --data.")
    ] = 30,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=2, rich_help_panel=_TRAINING, help="Pictures a step.")
    ] = 128,
    lr: Annotated[
        float, typer.Option("--lr", rich_help_panel=_TRAINING, help="The highest learning rate.")
    ] = 0.1,
    weight_decay: Annotated[
        float, typer.Option("--weight-decay", rich_help_panel=_TRAINING, help="Pull towards zero.")
    ] = 5e-4,
    label_smoothing: Annotated[
        float,
        typer.Option(
            "--label-smoothing",
            min=0,
            max=1,
            rich_help_panel=_TRAINING,
            help="Share of each target that goes to all classes alike.",
        ),
    ] = 0.1,
    dropout: Annotated[
        float,
        typer.Option(
            "--dropout",
            min=0,
            max=0.99,
            rich_help_panel=_TRAINING,
            help="Share of values set to zero before fc6 and fc7.",
        ),
    ] = 0.2,
    schedule: Annotated[
        str,
        typer.Option(
            "--schedule", rich_help_panel=_TRAINING, help="cosine, linear, hold or constant."
        ),
    ] = "cosine",
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            min=1,
            rich_help_panel=_TRAINING,
            help="Threads that share each batch, one core each; 1 leaves it to torch.",
        ),
    ] = 1,
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            rich_help_panel=_TRAINING,
            help="float32, bf16, or auto: bf16 where it is fast.",
        ),
    ] = "auto",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--restart",
            rich_help_panel=_TRAINING,
            help="Go on from the last epoch of a stopped run, or begin anew.",
        ),
    ] = True,
    classes: options.Classes = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    output: options.OutputOptions,
) -> None:
    """Train an AlexNet on a folder of class folders; the same command goes on after a stop.

    The state of the run is in FOLDER.partial until it ends. Then FOLDER holds weights.safetensors
    (for --weights), curves and the first layer's kernels as they grew. Without --data it learns
    the bundled sample pictures: a toy that shows how it goes.

    Example: featviz train --epochs 2 --batch-size 32
    """
    import shutil

    import torch

    from featviz.datasets import open_pictures
    from featviz.errors import UserError, nearest
    from featviz.models.alexnet import with_batch_norm
    from featviz.models.weights import read_classes
    from featviz.samples import sample_pictures
    from featviz.training import loop

    forms = loop.FORMS
    if model not in forms:
        raise UserError(
            f"{model!r} cannot be trained here{nearest(model, forms)}; take {', '.join(forms)}"
        )
    folder = output.folder(f"train-{model}")
    form = forms[model]
    shorter = form.input_size if model == "alexnet-mini" else 256  # as `featviz.load` has it
    with output.progress() as progress:
        pictures = open_pictures(data) if data is not None else sample_pictures()
        examples = loop.read_examples(pictures, shorter, progress=progress)
        tested = None
        if validation is not None:
            tested = loop.read_examples(
                validation, form.input_size, resize=shorter, classes=examples.classes
            )
        names = dict(read_classes(classes, None, {}) or ())
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = with_batch_norm(form(len(examples.classes), dropout=dropout))
        steps = max(1, len(examples) // batch_size)
        unfinished = folder.with_name(folder.name + ".partial")
        result = loop.train(
            net,
            examples,
            validation=tested,
            out=unfinished,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            weight_decay=weight_decay,
            label_smoothing=label_smoothing,
            schedule=schedule,
            precision=precision,
            workers=workers,
            device=device,
            seed=seed,
            resume=resume,
            class_names=names,
            snapshot_steps=loop.moments(epochs * steps),
            progress=progress,
        )
    output.finish(result, folder)
    shutil.rmtree(unfinished, ignore_errors=True)
