"""The command `featviz`: its commands, its exit codes.

0 done; 1 an error of featviz or of the machine; 2 a user's mistake, in one line; 130 stopped by
Ctrl-C, with what is finished kept.
"""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn

import typer

from featviz import __version__
from featviz.cli import (
    atlas,
    attack,
    attribute,
    audit,
    corrupt,
    demo,
    embed,
    eval,
    gallery,
    kernels,
    layers,
    maps,
    maximize,
    neighbors,
    redraw,
    train,
    universal,
)
from featviz.errors import UserError

INTERRUPTED = 130
"""exit code after Ctrl-C, as shells have it: 128 + SIGINT"""

app = typer.Typer(
    name="featviz",
    epilog="Start with: featviz demo",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class _Stopped(Exception):
    """Ctrl-C in a command, with what was kept; typer would turn KeyboardInterrupt into a code."""


def _stoppable(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt as stop:
            raise _Stopped(str(stop)) from stop

    return run


for module in (
    demo,
    layers,
    kernels,
    maps,
    maximize,
    redraw,
    embed,
    neighbors,
    atlas,
    attribute,
    attack,
    audit,
    corrupt,
    universal,
    train,
    eval,
    gallery,
):
    name = module.__name__.rpartition(".")[2]
    app.command(name)(_stoppable(getattr(module, name)))


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    debug = "--debug" in words
    earlier = signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(
            [word for word in words if word != "--debug"],
            prog_name="featviz",
            standalone_mode=False,
        )
        sys.exit(code if isinstance(code, int) else 0)
    except UserError as error:
        if debug:
            raise
        print(f"featviz: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `featviz layers | head`
        sys.stderr.close()
        sys.exit(1)
    except (KeyboardInterrupt, _Stopped, typer.Abort) as stop:
        print(f"featviz: stopped; {stop}".rstrip("; "), file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        # A wrong option or command; the class is typer's own and has no public name.
        if hasattr(error, "format_message"):
            _refuse(error)
        if debug:
            raise
        kind = type(error).__name__
        first = (str(error).splitlines() or [""])[0]
        print(f"featviz: {kind}: {first} (--debug shows where)", file=sys.stderr)
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _interrupt(*_: Any) -> NoReturn:
    """SIGTERM, which batch systems send before they kill, acts as Ctrl-C."""
    raise KeyboardInterrupt


def _refuse(error: Any) -> NoReturn:
    """A usage error as one line, like every other mistake."""
    context = getattr(error, "ctx", None)
    message = " ".join(error.format_message().split()).rstrip(".")
    path = context.command_path if context is not None else "featviz"
    print(f"featviz: {message} ({path} --help shows what there is)", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
