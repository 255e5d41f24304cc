"""The options that commands share, declared once.

A command takes a bundle (`ModelOptions`, `OutputOptions`) as one parameter; `expanded` shows it to
typer as the options that it holds. Bounds are of the option's type (`featviz.types`): `expanded`
writes them into the help and checks values by them.

    def kernels(
        *, layer: ... = None, model: options.ModelOptions, output: options.OutputOptions
    ) -> None:
        folder = output.folder("kernels")
        net = model.load()
        with output.progress() as progress:
            result = kernel_sheet(net, layer, progress=progress)
        output.finish(result, folder)
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer
from typer.models import ArgumentInfo

from featviz import types
from featviz.arguments import bare, bounds
from featviz.cli.run import leave_if_failed, print_checks, progress_bar, report
from featviz.errors import check_value
from featviz.torchrun import is_first
from featviz.types import Progress

if TYPE_CHECKING:
    from featviz.data.labels import LabelReport
    from featviz.models.model import Model
    from featviz.requirements import Check
    from featviz.results import Result

_MODEL, _OUTPUT = "Model", "Output"

ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        rich_help_panel=_MODEL,
        help="alexnet-mini (bundled), alexnet, alexnet-2012, a torchvision name, timm/NAME, "
        "hf/FOLDER, or FILE.py:FUNCTION, which returns your own module.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        "-w",
        rich_help_panel=_MODEL,
        metavar="FILE",
        help="Safetensors, torch or npz file (FILE#NAME: one of its sets of weights); DEFAULT for "
        "torchvision's own download.",
    ),
]
Label = Annotated[
    str | None,
    typer.Option(
        "--name",
        rich_help_panel=_MODEL,
        metavar="TEXT",
        help="Of the model in titles and results, as scratch-v2; default: that of --model.",
    ),
]
Classes = Annotated[
    Path | None,
    typer.Option(
        "--class-names",
        "--classes",
        rich_help_panel=_MODEL,
        metavar="FILE",
        help="Class names, one a line (name, or synset TAB name).",
    ),
]
InputSize = Annotated[
    str | None,
    typer.Option(
        "--input-size",
        rich_help_panel=_MODEL,
        metavar="SIZE",
        help="Pixels of the pictures, 224 or 32x48 (height x width), in place of the model's own.",
    ),
]
Resize = Annotated[
    str | None,
    typer.Option(
        "--resize",
        rich_help_panel=_MODEL,
        metavar="SIZE",
        help="Of the shorter side before the center crop, or 32x48: exactly that.",
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean",
        rich_help_panel=_MODEL,
        metavar="NUMBERS",
        help="Subtracted from pictures in [0, 1]: one number a channel, or one for all.",
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        "--std",
        rich_help_panel=_MODEL,
        metavar="NUMBERS",
        help="By which pictures are then divided.",
    ),
]
Channels = Annotated[
    types.Channels | None,
    typer.Option(
        "--channels",
        rich_help_panel=_MODEL,
        help="Of the pictures: 1 gray, 3 RGB, 4 RGBA; default: found out.",
    ),
]
Device = Annotated[
    str, typer.Option("--device", rich_help_panel=_MODEL, help="auto, cpu, cuda or cuda:N.")
]
PictureFiles = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[PICTURE]...", help="Picture files; default: a bundled one."),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        "-d",
        metavar="PATH",
        help="Folder of pictures (flat or class folders), .tar or .zip, or a list (.txt, .csv, "
        ".jsonl, .parquet) of paths and labels; "
        "default: the bundled sample pictures.",
    ),
]
Count = Annotated[
    types.Count, typer.Option("--count", help="At most so many pictures, evenly spread.")
]
BatchSize = Annotated[
    types.BatchSize, typer.Option("--batch-size", help="Pictures computed at once.")
]
Seed = Annotated[types.Seed, typer.Option("--seed", help="The same seed gives the same result.")]
Engine = Annotated[
    types.Engine,
    typer.Option(
        "--engine",
        help="ray: pieces are made by a Ray cluster (that at RAY_ADDRESS, or one on this machine).",
    ),
]
CudaGraph = Annotated[
    bool,
    typer.Option(
        "--cuda-graph",
        help="On CUDA: launch a step's passes as a whole, for few pictures. Not tried on a GPU.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        rich_help_panel=_OUTPUT,
        metavar="FOLDER",
        help="Result folder to write; default: run/ and the name of the result.",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", rich_help_panel=_OUTPUT, help="Replace an existing result.")
]
Json = Annotated[
    bool, typer.Option("--json", rich_help_panel=_OUTPUT, help="Print one JSON document instead.")
]
Require = Annotated[
    list[str] | None,
    typer.Option(
        "--require",
        rich_help_panel=_OUTPUT,
        metavar="TEXT",
        help='A number of the result that must hold, as "top1.low>=0.5"; may be given again. '
        "Exit code 3 if one does not.",
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        rich_help_panel=_OUTPUT,
        help="Exit code 3 if folders are no classes, classes have no pictures, or files cannot "
        "be read.",
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", rich_help_panel=_OUTPUT, help="No progress, no hints.")
]


@dataclass(frozen=True)
class ModelOptions:
    """Which model, with which weights, on which device."""

    name: ModelName = "alexnet-mini"
    weights: Weights = None
    classes: Classes = None
    input_size: InputSize = None
    resize: Resize = None
    mean: Mean = None
    std: Std = None
    channels: Channels = None
    device: Device = "auto"
    label: Label = None

    def load(self, *, seed: int = 0) -> Model:
        """The model. `seed` draws its weights where there are none."""
        from featviz.models.load import load

        return load(
            self.name,
            weights=self.weights,
            classes=self.classes,
            input_size=parse_size("--input-size", self.input_size),
            resize=parse_size("--resize", self.resize),
            mean=parse_numbers("--mean", self.mean),
            std=parse_numbers("--std", self.std),
            channels=self.channels,
            device=self.device,
            seed=seed,
            name=self.label,
        )


@dataclass(frozen=True)
class OutputOptions:
    """Where the result goes, and what is printed."""

    out: Out = None
    overwrite: Overwrite = False
    as_json: Json = False
    quiet: Quiet = False
    inputs: list[Path] = field(default_factory=list)
    """files and folders that other options name"""
    claims: ExitStack = field(default_factory=ExitStack)
    """what is held until the command ends"""

    def folder(self, default: str) -> Path:
        """--out or run/`default`, checked before the work begins. Raises UserError."""
        from featviz.folders import check_target

        folder = self.claim(self.out or Path("run") / default)
        check_target(folder, overwrite=self.overwrite)
        return folder

    def claim(self, folder: Path, *, replaced: bool = True) -> Path:
        """Keep other runs from writing a folder until the command ends; clear what they left.

        Raises UserError where a folder that may be `replaced` holds what the command reads.
        """
        from featviz.checkpoints import remove_finished
        from featviz.errors import UserError
        from featviz.folders import claimed, real_path

        target = real_path(folder)
        for path in self.inputs if replaced and self.overwrite else ():
            if real_path(path).is_relative_to(target) and os.path.exists(path):
                raise UserError(
                    f"{path} lies in the result folder {folder}, which would be replaced; choose "
                    "another --out"
                )
        if is_first():
            self.claims.enter_context(claimed(folder))
            remove_finished(folder, overwrite=self.overwrite)
        return folder

    def progress(self) -> AbstractContextManager[Progress | None]:
        """The progress to hand to an analysis."""
        return progress_bar(self.quiet or not is_first())

    def finish(
        self, result: Result, folder: Path, *, whole: bool = True, checks: Sequence[Check] = ()
    ) -> None:
        """Save the result and print it; its checkpoint is removed if the result is whole."""
        from featviz.checkpoints import announce_result, partial_folder, remove_checkpoint

        if not is_first():
            return
        if whole:
            announce_result(partial_folder(folder), result.origin)
        result.save(folder, overwrite=self.overwrite, checks=checks)
        if whole:
            remove_checkpoint(partial_folder(folder))
        self.report(result, folder)

    def report(self, result: Result, folder: Path) -> None:
        """Print a result that is saved in `folder`: a short text, or its result.json."""
        report(result, folder, as_json=self.as_json, quiet=self.quiet)


@dataclass(frozen=True)
class CheckedOutput(OutputOptions):
    """An output whose numbers can be required to hold."""

    require: Require = None

    def folder(self, default: str) -> Path:
        """As `OutputOptions.folder`; requirements that cannot be read are refused here."""
        from featviz.requirements import parse_requirement

        for text in self.require or []:
            parse_requirement(text)
        return super().folder(default)

    def finish(
        self, result: Result, folder: Path, *, whole: bool = True, checks: Sequence[Check] = ()
    ) -> None:
        """Save the result with what was required of it, print it, and leave with 3 if that fails.

        A result that a requirement does not fit is saved before the mistake is said.
        """
        from featviz.errors import UserError

        try:
            checks = (*checks, *result.require(*self.require or []))
        except UserError as error:
            super().finish(result, folder, whole=whole, checks=checks)
            raise UserError(f"{error} (the result is in {folder})") from None
        super().finish(result, folder, whole=whole, checks=checks)
        leave_if_failed(checks)


@dataclass(frozen=True)
class StrictOutput(CheckedOutput):
    """An output of labeled pictures, which can be required to fit the model's classes."""

    strict: Strict = False

    def check_labels(self, *reports: LabelReport) -> None:
        """With --strict, leave with 3 before the work where folders and classes do not fit."""
        from featviz.data.labels import strict_checks

        checks = [check for report in reports for check in strict_checks(report)]
        if self.strict and not all(check.met for check in checks):
            print_checks([vars(check) for check in checks if not check.met], as_json=self.as_json)
            leave_if_failed(checks)

    def finish(
        self, result: Result, folder: Path, *, whole: bool = True, checks: Sequence[Check] = ()
    ) -> None:
        """As `CheckedOutput.finish`; with --strict files that could not be read fail, too."""
        from featviz.data.labels import strict_checks

        report = getattr(result, "label_report", None)
        if self.strict and report is not None:
            checks = (*checks, *strict_checks(report))
        super().finish(result, folder, whole=whole, checks=checks)


@dataclass(frozen=True)
class Described:
    """An option or argument of a command."""

    parameter: inspect.Parameter
    spelling: str
    """--batch-size, or the name of an argument"""
    kind: Any
    """its type, with bounds"""
    field_of: tuple[str, type[Any]] | None
    """the parameter of the command that is a bundle, and its class"""


def describe_options(command: Callable[..., None]) -> dict[str, Described]:
    """The options and arguments of a command, those of its bundles among them."""
    found: dict[str, Described] = {}
    for name, parameter in _parameters(command).items():
        kind = parameter.annotation
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            for own in _parameters(kind).values():
                if own.name not in {"inputs", "claims"}:
                    found[own.name] = _described(own, (name, kind))
        else:
            found[name] = _described(parameter, None)
    return found


def _described(parameter: inspect.Parameter, field_of: tuple[str, type[Any]] | None) -> Described:
    *_, info = get_args(parameter.annotation)
    name = parameter.name if isinstance(info, ArgumentInfo) else f"--{parameter.name}"
    long = [word for word in info.param_decls or () if word.startswith("--")]
    spelling = long[0] if long else name.replace("_", "-")
    return Described(parameter, spelling, parameter.annotation, field_of)


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of its bundles as options of their own."""
    options = describe_options(command)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        values: dict[str, Any] = {}
        bundles: dict[tuple[str, type[Any]], dict[str, Any]] = {}
        for name, option in options.items():
            own = values if option.field_of is None else bundles.setdefault(option.field_of, {})
            own[name] = check_value(option.spelling, given[name], option.kind)
        packed = {name: kind(**fields) for (name, kind), fields in bundles.items()}
        with ExitStack() as held:
            for bundle in packed.values():
                if isinstance(bundle, OutputOptions):
                    bundle.inputs.extend(_inputs(given))
                    held.callback(bundle.claims.close)
            command(**values, **packed)

    shown = [one.parameter.replace(annotation=_for_typer(one.kind)) for one in options.values()]
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in shown}
    return run


def _inputs(values: Mapping[str, Any]) -> Iterator[Path]:
    """The paths among the values of options, but for --out."""
    for name, value in values.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Path) and name != "out":
                yield item
            elif name in ("weights", "other_weights") and item:
                yield Path(item)


def _for_typer(kind: Any) -> Any:
    """An option's type as typer takes it: without bounds, which are written into the help."""
    plain, info = bare(kind), copy(get_args(kind)[-1])
    limits = bounds(kind) or bounds(get_args(kind)[0])
    if limits is not None:
        info.help = f"{info.help} ({limits})"
    return Annotated[plain, info]


def _parameters(called: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a function or dataclass, all of them keywords, with evaluated types."""
    hints = get_type_hints(called, include_extras=True)
    return {
        name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, parameter in inspect.signature(called).parameters.items()
    }


def refuse_unused(why: str, **given: tuple[object, object]) -> None:
    """Raise UserError for options that would be ignored: (value, default) each."""
    from featviz.errors import UserError

    names = [name for name, (value, default) in given.items() if value != default]
    if names:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise UserError(
            f"{options} would have no effect {why}; leave {'it' if len(names) == 1 else 'them'} out"
        )


def name_and_weights(text: str) -> tuple[str, str | None]:
    """Both of "NAME" or "NAME:WEIGHTS"; a name may be FILE.py:FUNCTION."""
    head, colon, tail = text.rpartition(":")
    return (head, tail) if colon and not head.endswith(".py") else (text, None)


def parse_size(option: str, text: str | None) -> int | tuple[int, int] | None:
    """A side from "224", height and width from "32x48". Raises UserError."""
    from featviz.errors import UserError

    if text is None:
        return None
    sides = [part.strip() for part in text.lower().split("x")]
    if len(sides) > 2 or not all(side.isdigit() and int(side) for side in sides):
        raise UserError(f"{option} {text!r}: write 224, or 32x48 for height x width")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def parse_numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Numbers from "0.485,0.456,0.406". Raises UserError."""
    from featviz.errors import UserError

    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{option} {text!r}: write numbers, as in 0.485,0.456,0.406") from None


def parse_words(option: str, text: str) -> list[str]:
    """The words of a list with commas, in lower case; "none" is an empty list. Raises UserError."""
    from featviz.errors import UserError

    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    if not words:
        raise UserError(f"{option} {text!r} names nothing; write words with commas, or none")
    return [] if words == ["none"] else words


def parse_eps(text: str) -> float:
    """An eps in [0, 1] units from ".03" or "8/255". Raises UserError."""
    from featviz.errors import UserError

    top, slash, bottom = text.partition("/")
    try:
        value = float(top) / (float(bottom) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"eps {text!r} is no number; write .03 or 8/255") from None
    if not 0 <= value < float("inf"):
        raise UserError(f"eps {text!r} is out of range; it is a distance, 0 or more")
    return value


def parse_duration(text: str) -> float:
    """Seconds from "90", "90s", "10m" or "2h". Raises UserError."""
    from featviz.errors import UserError

    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"time {text!r} is no duration; write 90s, 10m or 2h")
    return seconds


def parse_severities(text: str) -> list[int]:
    """Severities from "1,3,5". Raises UserError."""
    from featviz.errors import UserError

    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--severities {text!r}: write numbers of 1 to 5, as 1,3,5") from None
