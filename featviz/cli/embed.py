"""`featviz embed`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

import typer

from featviz import types
from featviz.cli import options
from featviz.types import AutoPrecision, Progress

if TYPE_CHECKING:
    from featviz.embedding.store import Store
    from featviz.models.model import Model

LayerName = Annotated[
    str | None,
    typer.Option(
        "--layer",
        "-l",
        help="Where to read; default: relu7, the fc7 space of the papers (fc7 after its ReLU).",
    ),
]
ClassNames = Annotated[
    Path | None,
    typer.Option(
        "--folder-names",
        metavar="FILE",
        help="Names of the data's class folders, lines of folder TAB name; "
        "default: the classes of the model.",
    ),
]
StoreFolder = Annotated[
    Path | None,
    typer.Option(
        "--store",
        "-s",
        metavar="FOLDER",
        help="A store made by featviz embed; default: embed --data now, in memory.",
    ),
]


@dataclass(frozen=True)
class SpaceOptions:
    """The activations that a command works on: a store, or a data set that is embedded now."""

    store: StoreFolder = None
    data: options.Data = None
    layer: LayerName = None
    class_names: ClassNames = None
    batch_size: options.BatchSize = 64

    def locate(self, net: Model | None) -> tuple[str, Callable[[Progress | None], Store]]:
        """The layer, and what opens the store or embeds the data with the model."""
        from featviz.cli.run import open_data
        from featviz.embedding.extract import default_layer
        from featviz.embedding.extract import embed as embed_one
        from featviz.embedding.store import open_store

        if self.store is not None:
            options.refuse_unused(
                "with --store",
                layer=(self.layer, None),
                class_names=(self.class_names, None),
                batch_size=(self.batch_size, 64),
            )
            store = open_store(self.store, data=self.data)
            return store.layer, lambda progress: store
        assert net is not None
        name = net.layer(self.layer or default_layer(net)).name
        return name, lambda progress: embed_one(
            net,
            open_data(self.data),
            name,
            class_names=read_class_names(self.class_names),
            batch_size=self.batch_size,
            progress=progress,
        )


class _Shared(TypedDict):
    out: Path
    position: Literal["mean", "max", "random"]
    positions: int | Literal["all"] | None
    seed: int
    precision: AutoPrecision
    decoder: Literal["exact", "fast"]
    engine: types.Engine
    class_names: Mapping[str, str]
    batch_size: int
    overwrite: bool
    progress: Progress | None


def embed(
    *,
    data: options.Data = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            "-l",
            help="Where to read; default: relu7, the fc7 space of the papers (fc7 after its "
            "ReLU). Given several times, each layer gets a store under --out, in one pass.",
        ),
    ] = None,
    position: Annotated[
        Literal["mean", "max", "random"],
        typer.Option(
            help="Of convolutional layers: mean or max over positions, or random, one for each "
            "picture."
        ),
    ] = "mean",
    positions: Annotated[
        str | None,
        typer.Option(
            metavar="K|all",
            help="Several rows a picture: K different random positions of its map, or all.",
        ),
    ] = None,
    class_names: ClassNames = None,
    batch_size: options.BatchSize = 64,
    precision: Annotated[
        AutoPrecision,
        typer.Option(
            help="bfloat16 is twice as fast on CPUs that compute in it; auto: bfloat16 there for "
            "10,000 pictures and more."
        ),
    ] = "auto",
    decoder: Annotated[
        Literal["exact", "fast"],
        typer.Option(
            help="exact, or fast: pixels that differ a little where JPEGs are large; by how much "
            "it moves the rows is measured."
        ),
    ] = "exact",
    engine: options.Engine = "here",
    seed: Annotated[types.Seed, typer.Option("--seed", help="Of random positions.")] = 0,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Store the activations of a data set at a layer or several, for `neighbors` and `atlas`.

    A run that was stopped goes on from its last piece when the same command is given again.

    Example: featviz embed --layer relu7 --out run/embed-relu7
    """
    from featviz.cli.run import open_data
    from featviz.embedding.extract import default_layer
    from featviz.embedding.extract import embed as one
    from featviz.embedding.extract import embed_layers as several
    from featviz.results import file_stem, read_result

    net = model.load()
    names = [net.layer(name).name for name in layer or [default_layer(net)]]
    folder = output.claim(output.out or Path("run") / f"embed-{'-'.join(map(file_stem, names))}")
    with output.progress() as progress:
        shared = _Shared(
            out=folder,
            position=position,
            positions=parse_positions(positions),
            seed=seed,
            precision=precision,
            decoder=decoder,
            engine=engine,
            class_names=read_class_names(class_names),
            batch_size=batch_size,
            overwrite=output.overwrite,
            progress=progress,
        )
        if len(names) == 1:
            stores = {folder: one(net, open_data(data), names[0], **shared)}
        else:
            found = several(net, open_data(data), names, **shared)
            stores = {folder / file_stem(name): store for name, store in found.items()}
    if output.as_json and len(stores) > 1:
        shown = [{"folder": str(place)} | read_result(place) for place in stores]
        print(json.dumps(shown, ensure_ascii=False, indent=1))
        return
    for place, store in stores.items():
        output.report(store, place)


def parse_positions(text: str | None) -> int | Literal["all"] | None:
    """The value of --positions. Raises UserError."""
    from featviz.errors import UserError

    if text is None or text == "all":
        return "all" if text else None
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UserError(f"--positions {text!r}: give a number, or all")
    return int(text)


def read_class_names(path: Path | None) -> Mapping[str, str]:
    """Folder to name, from a file of `folder<TAB>name` lines. Raises UserError."""
    from featviz.models.class_names import read_class_file

    pairs = [] if path is None else read_class_file(path, ordered=False)
    return {folder or str(index): name for index, (folder, name) in enumerate(pairs)}
