"""Others' programs, where they are installed (`make peers`), agree with ours on the same pictures.

They run in an interpreter of their own; nothing of featviz needs them.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from attack_models import photographs, tiny_net
from flat_attacks import ddn, ensemble, minimal
from safetensors.torch import load_file
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".peers" / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PEERS.exists(), reason="no peers installed (make peers)"),
]
CLASSES, EPS = 12, 1.5 / 255
GIVEN = """
import sys, types
import torch
from torch import Tensor
from safetensors.torch import save_file
from attack_models import photographs, tiny_net
model = tiny_net(0, 12).eval()
for p in model.parameters():
    p.requires_grad_(False)
pictures = photographs(4)
labels = model(pictures).argmax(1)
"""
DDN = """
for missing, content in (("visdom", "Visdom"), ("adv_lib.distances.lpips", "LPIPS")):
    stand_in = types.ModuleType(missing)
    setattr(stand_in, content, object)
    sys.modules[missing] = stand_in
from adv_lib.attacks import ddn
found = ddn(model, pictures, labels, steps=100, levels=None)
"""
AUTOATTACK = """
from pyautoattack import AutoAttack
program = AutoAttack(model, norm="Linf", eps=1.5 / 255, seed=0, version="standard", device="cpu")
found, _ = program.run_standard_evaluation(pictures, labels, batch_size=4)
"""


def theirs(program: str, tmp_path: Path) -> Tensor:
    """The pictures that a program of theirs makes of the same model and pictures."""
    file = tmp_path / "found.safetensors"
    saving = f"save_file({{'found': found.contiguous()}}, {str(file)!r})\n"
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parents[1])])
    ran = subprocess.run(
        [str(PEERS), "-W", "ignore", "-c", GIVEN + program + saving],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return load_file(file)["found"]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_net(0, CLASSES).eval()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return photographs(4)


@pytest.fixture(scope="module")
def labels(model: nn.Module, pictures: Tensor) -> Tensor:
    labels: Tensor = model(pictures).argmax(1)
    return labels


def test_ddn_finds_what_adv_libs_ddn_finds_and_minimal_no_more(
    model: nn.Module, pictures: Tensor, labels: Tensor, tmp_path: Path
) -> None:
    found = theirs(DDN, tmp_path)
    wrong = model(found).argmax(1) != labels
    assert wrong.all()
    distance = (found.double() - pictures.double()).flatten(1).norm(dim=1)
    ours = ddn(model, pictures, labels, steps=100).distance
    assert float((ours / distance).median()) == pytest.approx(1, abs=0.1)
    smallest = minimal(model, pictures, labels, norm="l2", steps=100).distance
    assert float((smallest / distance).median()) <= 1
    assert float((smallest / distance).max()) <= 1.05


def test_whoever_falls_to_autoattack_falls_to_the_suite(
    model: nn.Module, pictures: Tensor, labels: Tensor, tmp_path: Path
) -> None:
    found = theirs(AUTOATTACK, tmp_path)
    inside = (found.double() - pictures.double()).abs().flatten(1).amax(1) <= EPS + 1e-6
    fell = (model(found).argmax(1) != labels) & inside
    assert 0 < int(fell.sum()) < len(pictures), "an eps that tells nothing"
    ours = ensemble(model, pictures, labels, eps=EPS)
    assert bool(ours.success[fell].all())
