"""`featviz train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from featviz.cli import options
from featviz.types import Dropout, Epochs, LearningRate, Share, TrainBatch, WeightDecay, WorkerCount

_TRAINING = "Training"


@dataclass(frozen=True)
class LearningOptions:
    """The settings of the training (`TrainSettings`) that the command line has."""

    batch_size: Annotated[
        TrainBatch, typer.Option("--batch-size", rich_help_panel=_TRAINING, help="Pictures a step.")
    ] = 128
    lr: Annotated[
        LearningRate,
        typer.Option("--lr", rich_help_panel=_TRAINING, help="The highest learning rate."),
    ] = 0.1
    weight_decay: Annotated[
        WeightDecay,
        typer.Option("--weight-decay", rich_help_panel=_TRAINING, help="L2 penalty on weights."),
    ] = 5e-4
    label_smoothing: Annotated[
        Share,
        typer.Option(
            "--label-smoothing",
            rich_help_panel=_TRAINING,
            help="Share of each target that is given to all classes equally.",
        ),
    ] = 0.1
    schedule: Annotated[
        str,
        typer.Option(
            "--schedule",
            rich_help_panel=_TRAINING,
            help="cosine, linear, hold, constant or plateau.",
        ),
    ] = "cosine"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(
            "--precision",
            rich_help_panel=_TRAINING,
            help="auto: bfloat16 where the processor computes in it.",
        ),
    ] = "auto"


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
        Epochs, typer.Option("--epochs", rich_help_panel=_TRAINING, help="Passes over --data.")
    ] = 30,
    learning: LearningOptions,
    dropout: Annotated[
        Dropout,
        typer.Option(
            "--dropout",
            rich_help_panel=_TRAINING,
            help="Share of values set to zero before fc6 and fc7.",
        ),
    ] = 0.2,
    workers: Annotated[
        WorkerCount,
        typer.Option(
            "--workers",
            rich_help_panel=_TRAINING,
            help="Threads that share each batch, one core each; 1: torch's own threads.",
        ),
    ] = 1,
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
    the bundled sample pictures, a toy example.

    Example: featviz train --epochs 2 --batch-size 32
    """
    import torch

    from featviz.checkpoints import partial_folder
    from featviz.cli.run import open_data
    from featviz.errors import UserError, nearest
    from featviz.models.alexnet import with_batch_norm
    from featviz.models.load import BUILTIN
    from featviz.models.weights import read_classes
    from featviz.training.data import read_examples
    from featviz.training.loop import TrainSettings, snapshot_schedule
    from featviz.training.loop import train as train_net

    if model not in BUILTIN:
        known = ", ".join(BUILTIN)
        raise UserError(f"{model!r} cannot be trained here{nearest(model, BUILTIN)}; take {known}")
    folder = output.folder(f"train-{model}")
    form = BUILTIN[model]
    shorter = form.input_size if model == "alexnet-mini" else 256  # as in `featviz.load`
    with output.progress() as progress:
        examples = read_examples(open_data(data), shorter, progress=progress)
        tested = None
        if validation is not None:
            tested = read_examples(
                validation, form.input_size, resize=shorter, classes=examples.classes
            )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = with_batch_norm(form(len(examples.classes), dropout=dropout))
        steps = max(1, len(examples) // learning.batch_size)
        result = train_net(
            net,
            examples,
            validation=tested,
            epochs=epochs,
            settings=TrainSettings(**vars(learning)),
            snapshot_steps=snapshot_schedule(epochs * steps),
            device=device,
            workers=workers,
            seed=seed,
            checkpoint=partial_folder(folder),
            resume=resume,
            class_names=dict(read_classes(classes, None, {}) or ()),
            progress=progress,
        )
    output.finish(result, folder)
