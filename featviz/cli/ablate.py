"""`featviz ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from featviz.cli import options
from featviz.types import Count, Tries

if TYPE_CHECKING:
    from torch import Tensor

    from featviz.concepts.result import Concepts


def ablate(
    layer: Annotated[
        str, typer.Argument(metavar="LAYER|UNITS", help="conv5: all its units; or conv5:3,12-15.")
    ],
    *,
    data: options.Data = None,
    together: Annotated[
        bool, typer.Option("--together", help="All units at once; default: one by one.")
    ] = False,
    how: Annotated[
        Literal["zero", "mean", "resample"],
        typer.Option("--how", help="0, the mean over the data, or another picture's values."),
    ] = "zero",
    directions: Annotated[
        Path | None,
        typer.Option(
            "--directions",
            metavar="PATH",
            help="Silence directions in place of units: a result of `featviz concepts`, or a file "
            "(.npy, .safetensors) of an array (k, units).",
        ),
    ] = None,
    controls: Annotated[
        Tries, typer.Option("--controls", help="Random choices of as many units, to compare with.")
    ] = 20,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE", help="Also the logits of this picture."),
    ] = None,
    count: Annotated[
        Count | None, typer.Option("--count", help="At most so many pictures, evenly spread.")
    ] = None,
    batch_size: options.BatchSize = 64,
    engine: options.Engine = "here",
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.CheckedOutput,
) -> None:
    """Silence units or directions of a layer: what the accuracy and single classes lose.

    A run that was stopped goes on from its last piece when the same command is given again.

    Example: featviz ablate conv5 --data photos
    """
    from featviz.ablation.ablate import ablate as run
    from featviz.checkpoints import partial_folder
    from featviz.cli.run import open_data
    from featviz.results import file_stem

    folder = output.folder(file_stem(f"ablate-{layer}"))
    net = model.load()
    with output.progress() as progress:
        result = run(
            net,
            layer,
            open_data(data),
            directions=None if directions is None else read_directions(directions),
            together=together,
            how=how,
            controls=controls,
            picture=picture,
            count=count,
            batch_size=batch_size,
            seed=seed,
            checkpoint=partial_folder(folder),
            engine=engine,
            progress=progress,
        )
    output.finish(result, folder)


def read_directions(path: Path) -> Tensor | Concepts:
    """Directions of a result folder of concepts, or of a file of one array. Raises UserError."""
    import numpy as np
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from featviz.concepts.result import open_concepts
    from featviz.errors import UserError

    if path.is_dir():
        return open_concepts(path)
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
            if len(found) != 1:
                raise UserError(
                    f"{path} holds {len(found)} tensors; give a file of one, (k, units)"
                )
            return next(iter(found.values()))
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, EOFError, ValueError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{path} holds no directions ({error}); give .npy or .safetensors of (k, units)"
        ) from None
