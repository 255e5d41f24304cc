"""The structure that ARCHITECTURE.md promises: imports run downwards."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import featviz

ROOT = Path(featviz.__file__).parent


def imported(path: Path, modules: set[str]) -> set[str]:
    """The modules of the package that a file names, in functions and for annotations too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else node.module for name in names} & modules
    return found


def test_no_two_files_import_each_other() -> None:
    paths = [path for path in ROOT.rglob("*.py") if path.name != "__init__.py"]
    modules = {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path for path in paths
    }
    graph = {name: imported(path, set(modules)) for name, path in modules.items()}
    assert sum(map(len, graph.values())) > len(graph)
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError for a circle
    assert order.index("featviz.errors") < order.index("featviz.results")
