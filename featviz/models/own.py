"""`FILE.py:FUNCTION`: a network or a model that a function in the user's own file makes."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from featviz.errors import UserError, nearest


def is_own(name: str) -> bool:
    """Whether a model's name is that of a function in a file."""
    return name.rpartition(":")[0].endswith(".py") or name.endswith(".py")


def make(name: str) -> tuple[nn.Module, str]:
    """What the function of "FILE.py:FUNCTION" returns, and a short name for it.

    Raises:
        UserError: if there is no such file or function, it fails (with the line of the file), or it
            returns no module.
    """
    file, _, called = name.rpartition(":") if not name.endswith(".py") else (name, "", "")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{file}: no such file; --model takes FILE.py:FUNCTION")
    module = _imported(path)
    own = [
        known
        for known, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    if not called:
        raise UserError(f"{name} names no function; write {name}:{own[0] if own else 'FUNCTION'}")
    function = getattr(module, called, None)
    if not callable(function):
        hint = nearest(called, own) or f"; it has {', '.join(own[:6]) or 'none'}"
        raise UserError(f"{file} has no function {called!r}{hint}")
    with _reported(path, f"{called}()"):
        made = function()
    if not isinstance(made, nn.Module) and not hasattr(made, "graph_signature"):
        raise UserError(
            f"{name} returned a {type(made).__name__}; it must return a torch.nn.Module or a "
            "featviz.Model, without arguments"
        )
    return made, f"{path.stem}:{called}"


def _imported(path: Path) -> ModuleType:
    """The file as a module, with its folder on the path of imports, as Python has it for a script.

    A file is run once; it is known by its full path, so that two files of one name do not meet.
    """
    full = path.resolve()
    key = f"{full.stem}@{full}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, full)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(full.parent))
    sys.modules[key] = module
    try:
        with _reported(path, "import"):
            spec.loader.exec_module(module)
    except UserError:
        del sys.modules[key]
        raise
    finally:
        sys.path.remove(str(full.parent))
    return module


@contextmanager
def _reported(path: Path, doing: str) -> Iterator[None]:
    """Whatever the user's code raises, as one line with the place in the user's file."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
        place = _line(path, error)
        at = f"{path}, line {place}" if place else str(path)
        raise UserError(f"{at}: {reason[:300]} (in {doing})") from error


def _line(path: Path, error: BaseException) -> int | None:
    """The last line of the file that was running, or that cannot be read."""
    same: Any = os.path.realpath(path)
    if isinstance(error, SyntaxError) and os.path.realpath(error.filename or "") == same:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if os.path.realpath(frame.filename) == same]
    return lines[-1] if lines else None
