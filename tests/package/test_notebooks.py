"""The notebooks of the documentation run, and are kept without outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))


def test_notebooks_are_kept_without_outputs() -> None:
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "code":
                assert not cell.outputs
                assert cell.execution_count is None


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")  # of the kernel's own libraries
def test_notebooks_run(path: Path) -> None:
    pytest.importorskip("ipykernel")
    book = nbformat.read(path, 4)
    nbclient.NotebookClient(book, timeout=600, kernel_name="python3").execute()
    shown = [cell.outputs for cell in book.cells if cell.cell_type == "code"]
    assert any("text/html" in one.get("data", {}) for outputs in shown for one in outputs)
