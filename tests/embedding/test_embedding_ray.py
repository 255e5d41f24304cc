"""What of a model and its data travels to the workers of a Ray cluster."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from featviz.data.samples import sample_pictures
from featviz.embedding.extract import embed
from featviz.engine import _parcel
from featviz.errors import UserError
from featviz.models.load import load
from featviz.models.model import Model

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own deprecations and late sockets


def test_an_unknown_engine_is_refused(mini: Model) -> None:
    with pytest.raises(UserError, match="engine is 'spark'"):
        embed(mini, sample_pictures(1), engine="spark")  # type: ignore[arg-type]


BLOCKS = """
from torch import nn

class Block(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 3)
"""
NET = """
from torch import nn
from blocks_of_mine import Block
from .blocks_of_mine import Block as Same

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = Block(), Same()

    def forward(self, x):
        return (self.one(x) + self.two(x)).mean((2, 3))
"""


def test_a_model_of_a_file_is_sent_with_its_modules(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    (tmp_path / "blocks_of_mine.py").write_text(BLOCKS)
    (tmp_path / "net.py").write_text(NET)
    model = load(f"{tmp_path / 'net.py'}:Net", input_size=8)

    class Sent:
        """In place of Ray, whose workers lie elsewhere."""

        cloudpickle = ray.cloudpickle
        put = staticmethod(ray.cloudpickle.dumps)

    (tmp_path / "parcel").write_bytes(_parcel(Sent, model))
    (tmp_path / "blocks_of_mine.py").unlink()
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).classes)"
    command = [sys.executable, "-c", code, str(tmp_path / "parcel")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(model.classes), done.stderr
    model.net.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"cannot be sent .*_thread.lock.*leave --engine out"):
        _parcel(Sent, model)
    sys.modules.pop("blocks_of_mine")
