"""Fixtures of all tests: real data if it is there, models, random numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import featviz
from featviz.models.model import Model

# Two cores are enough for tests. Of several processes each takes one: with two threads each they
# would wait for each other at every barrier. Programs that tests start use as many threads, so
# that they round alike.
_THREADS = 1 if os.environ.get("PYTEST_XDIST_WORKER") else min(2, torch.get_num_threads())
torch.set_num_threads(_THREADS)
os.environ["OMP_NUM_THREADS"] = str(_THREADS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process of two waits long for the other.

    It counts with `--no-loadscope-reorder`: xdist alone begins with the files of most tests.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def _shared_data() -> Path | None:
    given = os.environ.get("FEATVIZ_SHARED_DATA")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    return folder if (folder / "alexnet_trunk.safetensors").is_file() else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real weights and photographs that are not part of the project.

    shared/data beside the checkout, or the value of FEATVIZ_SHARED_DATA.
    """
    folder = _shared_data()
    if folder is None:
        pytest.skip("real weights and photographs are not here (FEATVIZ_SHARED_DATA)")
    return folder


@pytest.fixture(scope="session")
def real_alexnet(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The complete AlexNet of shared/data: torchvision's trunk under a head of 200 classes."""
    out = tmp_path_factory.mktemp("weights") / "alexnet.safetensors"
    command = [sys.executable, str(shared_data / "unpack.py"), "alexnet", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return featviz.load("alexnet", weights=out, device="cpu")


@pytest.fixture(scope="session")
def mini() -> Model:
    """The bundled model."""
    return featviz.load("alexnet-mini", device="cpu")


@pytest.fixture
def generator() -> torch.Generator:
    """Random numbers from a fixed seed."""
    return torch.Generator().manual_seed(0)
