"""`featviz maximize`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from featviz.cli import options
from featviz.types import AutoPrecision, BatchSize, Restarts, Side, Steps

if TYPE_CHECKING:
    from featviz.maximization.result import LayerResults, Maximized
    from featviz.models.model import Model

FRAMES = 24
"""stages of a film"""


@dataclass(frozen=True)
class PictureOptions:
    """How pictures are optimized."""

    steps: Annotated[
        Steps | None,
        typer.Option(help="64 for a sketch, 512 for print; default: 256, or the preset's."),
    ] = None
    size: Annotated[
        Side | None,
        typer.Option(help="Side of the pictures; default: by the receptive field."),
    ] = None
    film: Annotated[
        Literal["gif", "mp4"] | None,
        typer.Option("--film", help="Also films of the optimization; mp4 for both kinds."),
    ] = None
    batch_size: Annotated[
        BatchSize | None, typer.Option(help="Most pictures at a time; less needs less memory.")
    ] = None
    precision: Annotated[
        AutoPrecision, typer.Option(help="Of the network in the steps; scores are of float32.")
    ] = "auto"
    engine: options.Engine = "here"
    seed: options.Seed = 0

    @property
    def frames(self) -> int:
        return FRAMES if self.film is not None else 0


@dataclass(frozen=True)
class OtherModel:
    """A second classifier."""

    other: Annotated[
        str | None,
        typer.Option("--other", metavar="NAME", help="Another model: does it see the classes too?"),
    ] = None
    other_weights: Annotated[
        str | None, typer.Option("--other-weights", metavar="FILE", help="Its weights.")
    ] = None
    other_classes: Annotated[
        Path | None, typer.Option("--other-classes", metavar="FILE", help="Its class names.")
    ] = None

    def load(self, device: str) -> Model | None:
        from featviz.errors import UserError
        from featviz.models.load import load

        if self.other is not None:
            return load(
                self.other, weights=self.other_weights, classes=self.other_classes, device=device
            )
        if self.other_weights is not None or self.other_classes is not None:
            raise UserError(
                "--other-weights and --other-classes are of --other; name that model too"
            )
        return None


def maximize(
    *,
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
    objective: Annotated[
        str,
        typer.Option(
            help="center (one thing), channel (a texture) or auto; or any other in words, in place "
            "of --layer and --units: 'conv5:12 - 0.5*conv4:7', several with ; between them."
        ),
    ] = "auto",
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
            help="Colors and spectrum of your own pictures (measure_statistics makes the file).",
        ),
    ] = None,
    restarts: Annotated[
        Restarts, typer.Option(help="Pictures to make of each unit, of which the best is kept.")
    ] = 1,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            metavar="PATH",
            help="Photographs to compare the pictures with: scores, ranks, paths through the net.",
        ),
    ] = None,
    cuda_graph: options.CudaGraph = False,
    pictures: PictureOptions,
    other: OtherModel,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Draw pictures that activate units, neurons or classes most.

    A run that was stopped goes on where it was when the same command is given again.

    Example: featviz maximize --layer logits --units goldfish,tabby,teapot
    """
    from featviz.checkpoints import partial_folder
    from featviz.cli.run import open_data
    from featviz.maximization.batches import Stopped
    from featviz.maximization.maximize import maximize, maximize_layers, maximize_objective

    items, texts = _items(layer, units), _texts(objective)
    if texts:
        options.refuse_unused(
            "with an --objective in words",
            layer=(layer, "conv5"),
            units=(units, "0-15"),
            data=(data, None),
            other=(other.other, None),
        )
    named = ["objective"] if texts else [item.partition(":")[0] for item in items]
    default = f"maximize-{'-'.join(dict.fromkeys(named))}"
    output = _resumed(output, default)
    folder = output.folder(default)
    photographs = None if data is None else open_data(data)
    net, second = model.load(), other.load(model.device)
    try:
        with output.progress() as progress:
            shared: dict[str, Any] = {
                "preset": preset,
                "steps": pictures.steps,
                "size": pictures.size,
                "parametrization": parametrization,
                "statistics": statistics,
                "precision": pictures.precision,
                "cuda_graph": cuda_graph,
                "restarts": restarts,
                "seed": pictures.seed,
                "frames": pictures.frames,
                "batch_size": pictures.batch_size,
                "engine": pictures.engine,
                "checkpoint": partial_folder(folder),
                "progress": progress,
            }
            compared: dict[str, Any] = {
                "units": units,
                "objective": objective,
                "pictures": photographs,
                "other": second,
            }
            result: Maximized | LayerResults
            if texts:
                result = maximize_objective(net, texts, **shared)
            elif len(items) == 1 and ":" not in units:
                result = maximize(net, items[0], **compared, **shared)
            else:
                result = maximize_layers(net, items, **compared, **shared)
    except Stopped as stopped:
        if stopped.result is not None:
            output.finish(_with_films(stopped.result, pictures.film), folder, whole=False)
        raise
    output.finish(_with_films(result, pictures.film), folder)


def _items(layer: str, units: str) -> list[str]:
    """Layers, or the units of any layers that --units names."""
    from featviz.models.units import split_units

    if ":" in units:
        return split_units(units)
    return [name.strip() for name in layer.split(",") if name.strip()]


def _texts(objective: str) -> list[str]:
    """The objectives that are described in words."""
    if ":" not in objective and "(" not in objective:
        return []
    return [text.strip() for text in objective.split(";") if text.strip()]


def _resumed(output: options.OutputOptions, default: str) -> options.OutputOptions:
    """A result that was saved when its run was stopped is replaced without --overwrite."""
    from featviz.checkpoints import partial_folder
    from featviz.results import read_result

    folder = output.out if output.out is not None else Path("run") / default
    if not partial_folder(folder).is_dir() or not (folder / "result.json").is_file():
        return output
    stopped = any("stopped early" in str(text) for text in read_result(folder)["warnings"])
    return replace(output, overwrite=output.overwrite or stopped)


def _with_films(
    result: Maximized | LayerResults, kind: Literal["gif", "mp4"] | None
) -> Maximized | LayerResults:
    """The result with films to be saved as "gif", or "mp4" for both."""
    from featviz.maximization.result import Maximized

    if kind is None:
        return result
    if isinstance(result, Maximized):
        return replace(result, film_kind=kind)
    return replace(result, layers=tuple(replace(part, film_kind=kind) for part in result.layers))
