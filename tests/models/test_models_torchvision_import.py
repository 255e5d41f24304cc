"""A caller's own `import torchvision` works once featviz has made a model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_WAYS = {
    "load": "featviz.load('alexnet-mini')",
    "wrap": "featviz.wrap(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), input_size=2)",
    "a file of one's own that begins with it": "featviz.load(sys.argv[1]).name",
}
_IMPORT = """
import torchvision
from torchvision import datasets, transforms
assert len(torchvision.models.list_models()) > 50
"""
_CODE = f"""
import json, os, sys, featviz
from torch import nn
codes = {{}}
for name, way in {_WAYS!r}.items():  # each in a copy of a process without torchvision
    assert "torchvision" not in sys.modules
    child = os.fork()
    if not child:
        exec(way + {_IMPORT!r})
        os._exit(0)
    codes[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, int], str]:
    """The exit code of each way to make a model and then import torchvision, and the errors."""
    own = tmp_path_factory.mktemp("own") / "net.py"
    own.write_text(
        "import torchvision\n\n\ndef net():\n    return torchvision.models.resnet18(weights=None)\n"
    )
    command = [sys.executable, "-c", _CODE, f"{own}:net"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(found.stdout), found.stderr


@pytest.mark.parametrize("way", _WAYS)
def test_torchvision_is_importable_after_a_model_is_made(
    way: str, ended: tuple[dict[str, int], str]
) -> None:
    codes, errors = ended
    assert codes[way] == 0, errors
