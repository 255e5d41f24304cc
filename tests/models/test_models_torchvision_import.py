"""A caller's own `import torchvision` works once featviz has made a model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_LOAD = "import featviz; featviz.load('alexnet-mini')"
_WRAP = (
    "import torch, featviz\n"
    "net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))\n"
    "featviz.wrap(net, input_size=2)"
)


@pytest.mark.parametrize("made", [_LOAD, _WRAP], ids=["load", "wrap"])
def test_torchvision_is_importable_after_a_model_is_made(made: str) -> None:
    code = f"{made}\nimport torchvision\nprint(len(torchvision.models.list_models()) > 50)"
    code += "\nfrom torchvision import datasets, transforms"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout.strip()) == (0, "True"), found.stderr


def test_a_file_of_ones_own_may_begin_with_it(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torchvision\n\n\ndef net():\n    return torchvision.models.resnet18(weights=None)\n"
    )
    code = f"import featviz\nprint(featviz.load({str(tmp_path / 'net.py:net')!r}).name)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout.strip()) == (0, "net:net"), found.stderr
