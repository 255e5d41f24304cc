"""`FILE.py:FUNCTION`: a network or a model that a function in the user's own file makes."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from featviz.errors import UserError, nearest
from featviz.models.torchvision_schemas import supply_schemas

_ROOT = "featviz_own_"


def modules() -> list[ModuleType]:
    """The modules of users' files, and those that lie beside them."""
    tops = [path for name in sys.modules if _is_root(name) for path in sys.modules[name].__path__]
    found = []
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "/")
        beside = any(file.is_relative_to(top) for top in tops) and "site-packages" not in file.parts
        if name.startswith(_ROOT) or (
            beside and name.partition(".")[0] not in {"featviz", "__main__"}
        ):
            found.append(module)
    return found


def _is_root(name: str) -> bool:
    return name.startswith(_ROOT) and "." not in name


def is_own(name: str) -> bool:
    """Whether a model's name is that of a function in a file."""
    return name.rpartition(":")[0].endswith(".py") or name.endswith(".py")


def make(name: str) -> tuple[nn.Module, str]:
    """What "FILE.py:FUNCTION" names: what the function or class returns, or a module; a short name.

    What the file prints goes to standard error.

    Raises:
        UserError: if there is no such file or function, it needs arguments or fails (with the line
            of the file), or it returns no module.
    """
    made, short = returned(name)
    if not isinstance(made, nn.Module) and not hasattr(made, "graph_signature"):
        raise UserError(
            f"{name} returned a {type(made).__name__}; it must return a torch.nn.Module, or "
            "what featviz.wrap(module, mean=..., std=...) makes of one"
        )
    return made, short


def returned(name: str) -> tuple[Any, str]:
    """Whatever the function of "FILE.py:FUNCTION" returns, or a module; a short name.

    Raises:
        UserError: if there is no such file or function, it needs arguments or fails.
    """
    file, _, called = name.rpartition(":") if not name.endswith(".py") else (name, "", "")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{file}: no such file; write FILE.py:FUNCTION")
    with _import_path(path), redirect_stdout(sys.stderr):
        module = _imported(path)
        own = [
            known
            for known, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        has = f"it has {', '.join(own[:6]) or 'none'}"
        if not called:
            raise UserError(f"{file} names no function; write {file}:FUNCTION ({has})")
        function = getattr(module, called, None)
        if not callable(function):
            hint = nearest(called, own) or f"; {has}"
            raise UserError(f"{file} has no function {called!r}{hint}")
        made = function if isinstance(function, nn.Module) else _called(path, called, function)
    return made, f"{path.stem}:{called}"


def _called(path: Path, called: str, function: Callable[[], Any]) -> Any:
    try:
        needed = [
            one.name
            for one in inspect.signature(function).parameters.values()
            if one.default is one.empty and one.kind not in {one.VAR_POSITIONAL, one.VAR_KEYWORD}
        ]
    except (TypeError, ValueError):  # of compiled code
        needed = []
    if needed:
        raise UserError(
            f"{path}: {called}() needs arguments ({', '.join(needed)}); name a function without "
            "any, which calls it"
        )
    with _reported(path, f"{called}()"):
        return function()


@contextmanager
def _import_path(path: Path) -> Iterator[None]:
    """The file's folder on the path of imports, as Python has it for a script."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _imported(path: Path) -> ModuleType:
    """The file as a module of the package that its folder belongs to, so that it can import others.

    A file is run once; its package is known by its full path, so that neither two files of one
    name meet nor a file and an installed module.
    """
    full = path.resolve()
    top = full.parent
    while (top / "__init__.py").is_file() and top != top.parent:
        top = top.parent
    root = f"{_ROOT}{hashlib.sha256(os.fsencode(top)).hexdigest()[:16]}"
    if root not in sys.modules:
        sys.modules[root] = ModuleType(root, "Modules of the user's own.")
        sys.modules[root].__path__ = [str(top)]
    key = ".".join([root, *full.parent.relative_to(top).parts, full.stem.replace(".", ":")])
    if key in sys.modules:
        return sys.modules[key]
    supply_schemas()  # for the file's own `import torchvision`
    with _reported(path, "import"):
        importlib.import_module(key.rpartition(".")[0])
    spec = importlib.util.spec_from_file_location(key, full)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    try:
        with _reported(path, "import"):
            spec.loader.exec_module(module)
    except UserError:
        del sys.modules[key]
        raise
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
