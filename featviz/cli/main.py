"""The command `featviz`: its commands, its exit codes.

0 done; 1 an error of featviz or of the machine; 2 a user's mistake, in one line; 3 a requirement
(--require, --strict) that does not hold; 130 stopped by Ctrl-C, with what is finished kept.
"""

from __future__ import annotations

import io
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from featviz import __version__
from featviz.arguments import Refused, accept
from featviz.cli import (
    ablate,
    atlas,
    attack,
    attribute,
    attribute_layer,
    audit,
    cards,
    circuit,
    classify,
    compare,
    concepts,
    corrupt,
    demo,
    describe,
    embed,
    eval,
    explore,
    facets,
    gallery,
    grid,
    interpolate,
    kernels,
    layers,
    maps,
    maximize,
    neighbors,
    pack,
    patch_activations,
    redraw,
    report,
    train,
    universal,
)
from featviz.cli.options import describe_options, expanded
from featviz.errors import UserError, system_text
from featviz.memory import lacks_memory, shortage
from featviz.torchrun import speaks

INTERRUPTED = 130
"""exit code after Ctrl-C, as shells have it: 128 + SIGINT"""

COMMANDS: dict[str, tuple[ModuleType, ...]] = {
    "Look (layers, units, pictures)": (
        classify,
        layers,
        kernels,
        maps,
        maximize,
        facets,
        interpolate,
        redraw,
        attribute,
        attribute_layer,
        grid,
        circuit,
        describe,
    ),
    "Space (activations of a data set)": (embed, neighbors, atlas, concepts, cards),
    "Break (units, attacks, corruptions)": (
        ablate,
        patch_activations,
        attack,
        audit,
        corrupt,
        universal,
    ),
    "Train": (pack, train, eval, compare),
    "Show": (demo, explore, gallery, report),
}
"""the groups of `featviz --help`; a module is named like its command, with _ for -"""


_OPTION_GROUPS = ["Arguments", "Options", "Training", "Model", "Output"]


class _Stopped(Exception):
    """Ctrl-C within a command; the text says what was kept."""


class _Command(TyperCommand):
    """A command that is recorded in its results, and whose help lists its options by group."""

    def invoke(self, ctx: Any) -> Any:
        from featviz.results import recording

        try:
            with recording(ctx.obj):
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:  # typer would drop the text
            raise _Stopped(*stop.args[:1]) from stop
        except EOFError as error:  # typer would take it for the end of what a user types
            raise RuntimeError(f"EOFError: {error}") from error

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            own = "Arguments" if parameter.param_type_name == "argument" else "Options"
            title = getattr(parameter, "rich_help_panel", None) or own
            if record is not None:
                groups.setdefault(title, []).append(record)
        for title in sorted(groups, key=_OPTION_GROUPS.index):
            with formatter.section(title):
                formatter.write_dl(groups[title])


class _Commands(TyperGroup):
    """The list of commands by group."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(len(name) for name in self.commands)
        for title, modules in COMMANDS.items():
            rows = []
            for name in map(_name, modules):
                text = self.commands[name].get_short_help_str(formatter.width - 6 - width)
                rows.append((f"{name:<{width}}", text))
            with formatter.section(title):
                formatter.write_dl(rows)


def _name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2].replace("_", "-")


app = typer.Typer(
    name="featviz",
    cls=_Commands,
    epilog="Start with: featviz demo",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _functions() -> dict[str, Callable[..., None]]:
    """The functions of the commands, by name."""
    modules = [module for group in COMMANDS.values() for module in group]
    return {_name(one): getattr(one, _name(one).replace("-", "_")) for one in modules}


for _called, _function in _functions().items():
    app.command(_called, cls=_Command)(expanded(_function))


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"featviz {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="The version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks of errors (anywhere on the line).")
    ] = False,
) -> None:
    """Look inside an image classifier: kernels, maps, synthetic images, the fc7 space, attacks."""


@cache
def _program() -> Any:
    """The program of all commands, which typer would make again at every call of `app`."""
    return get_command(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    words = [word for word in given if word != "--debug"]
    debug = len(words) < len(given)
    earlier = signal.signal(signal.SIGTERM, _interrupt)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        check_words(words)
        code = _program()(words, prog_name="featviz", standalone_mode=False, obj=recorded(words))
        if code == INTERRUPTED:  # Ctrl-C outside of a command: typer has made it an exit code
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except UserError as error:
        if debug:
            raise
        _say(str(error))
        sys.exit(2)
    except BrokenPipeError:  # `featviz layers | head`
        sys.stderr.close()
        sys.exit(1)
    except (_Stopped, KeyboardInterrupt, typer.Abort) as stop:
        kept = f"; {stop}" if isinstance(stop, _Stopped) and str(stop) else ""
        _say(f"stopped{kept}")
        sys.exit(INTERRUPTED)
    except Exception as error:
        # A wrong option or command; the class is typer's own and has no public name.
        if hasattr(error, "format_message"):
            _refuse(error)
        if debug:
            raise
        if lacks_memory(error):
            _say(shortage(error, options_of(words)))
            sys.exit(2)
        if isinstance(error, OSError) and error.filename is not None:
            _say(system_text(error))
            sys.exit(2)
        kind = type(error).__name__
        first = (str(error).splitlines() or [""])[0]
        _say(f"{kind}: {first} (--debug shows where)")
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _say(text: str) -> None:
    """One line on standard error, also where torchrun has started several processes."""
    if speaks():
        print(f"featviz: {text}", file=sys.stderr)


def check_words(words: Sequence[str]) -> None:
    """Raise UserError for an empty value, which a variable that is not set makes in a shell."""
    for before, word in zip(["", *words], words, strict=False):
        if not word.strip() or re.fullmatch(r"--[\w-]+=\s*", word):
            where = word.rstrip("= \t") or before
            raise UserError(f"an empty value (after {where!r}); leave it out, or give one")


def options_of(words: Sequence[str]) -> list[str]:
    """The names of the options that the command of a command line has."""
    commands = _functions()
    command = next((commands[word] for word in words if word in commands), None)
    return [] if command is None else list(describe_options(command))


def _interrupt(*_: Any) -> NoReturn:
    """SIGTERM, which batch systems send before they kill, acts as Ctrl-C."""
    raise KeyboardInterrupt


def recorded(words: Sequence[str]) -> str:
    """The command line as results record it: absolute paths by their last component."""
    return shlex.join(["featviz", *(_ABSOLUTE.sub(r"\1\2", word) for word in words)])


# A folder's or file's name may hold blanks, but " + " and " - " separate the terms of a query.
_NAME = r"(?:(?! [-+] )[^/,=])"
# An absolute path: a word of its own, or behind "=", a comma, a blank or a short option.
_ABSOLUTE = re.compile(rf"(^|[=,\s]|^-\w)(?:/{_NAME}*)*/({_NAME}+)/?(?=$|[,=\s])")


def _refuse(error: Any) -> NoReturn:
    """A usage error as one line, like every other mistake."""
    context = getattr(error, "ctx", None)
    message = " ".join((_wrong_value(error) or error.format_message()).split()).rstrip(".")
    path = context.command_path if context is not None else "featviz"
    _say(f"{message} ({path} --help shows what there is)")
    sys.exit(2)


def _wrong_value(error: Any) -> str:
    """What an option accepts in place of its value, in the words of Python's calls; or ""."""
    found = getattr(error.__cause__, "errors", None)  # of the library that typer converts with
    if found is None or error.ctx is None:
        return ""
    command = _functions()[error.ctx.info_name]
    option = describe_options(command)[error.param.name]
    try:
        accept(option.spelling, found()[0]["input"], option.kind)
    except Refused as refused:
        return str(refused)
    return ""


if __name__ == "__main__":
    main()
