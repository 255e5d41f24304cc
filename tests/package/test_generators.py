"""A generator that is left half-way, as by an error, must not leave torch's settings changed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import featviz

SETTINGS = ("no_grad", "enable_grad", "inference_mode", "frozen", "evaluating", "plain_float32")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def _yields_within(node: ast.AST, inside: tuple[str, ...] = ()) -> Iterator[str]:
    """The settings of each block of `with` around a `yield` of one function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.Lambda | ast.ClassDef):
            continue
        blocks = inside
        if isinstance(child, ast.With):
            blocks += tuple(ast.unparse(item.context_expr) for item in child.items)
        if isinstance(child, ast.Yield | ast.YieldFrom):
            yield from blocks
        yield from _yields_within(child, blocks)


def _left_changed(text: str) -> list[str]:
    return [
        f"{function.name}: {block}"
        for function in ast.walk(ast.parse(text))
        if isinstance(function, Function)
        and not any("contextmanager" in ast.unparse(d) for d in function.decorator_list)
        for block in _yields_within(function)
        if any(f"{name}(" in block for name in SETTINGS)
    ]


def test_no_generator_gives_values_while_settings_are_changed() -> None:
    planted = "def read():\n    with torch.no_grad():\n        yield 1\n"
    assert _left_changed(planted) == ["read: torch.no_grad()"]
    files = list(Path(featviz.__file__).parent.rglob("*.py"))
    assert len(files) > 100
    found = {str(file): _left_changed(file.read_text(encoding="utf-8")) for file in files}
    assert {file: names for file, names in found.items() if names} == {}
