"""An AlexNet in a file of one's own gives the bytes of the model that is loaded by name."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run
from PIL import Image
from safetensors.torch import save_file

from featviz.models.alexnet import AlexNet

FILE = """
import featviz
from featviz.models.alexnet import AlexNet as Named
from featviz.models.torchvision_schemas import supply_schemas

supply_schemas()
from torchvision.models import AlexNet

def make():
    return featviz.wrap(AlexNet(), input_size=224, aliases=Named.aliases)
"""
STATED: tuple[str, ...] = ("--input-size", "224", "--resize", "256", "--mean", "0.485,0.456,0.406")
STATED += ("--std", "0.229,0.224,0.225")
DATA, ONE = ("--data", "data"), "data/class 1/1.png"
COMMANDS: dict[str, tuple[str, ...]] = {
    "kernels": (),
    "maps": (ONE, "--layer", "conv1"),
    "maximize": ("--layer", "conv2", "--units", "0", "--steps", "3"),
    "redraw": (ONE, "--layer", "conv2", "--steps", "3"),
    "embed": ("--layer", "fc6", *DATA),
    "neighbors": ("--layer", "fc7", "--k", "2", *DATA),
    "attack": (ONE, "--steps", "2"),
    "attribute": (ONE, "--steps", "2"),
    "eval": DATA,
    "corrupt": ("--names", "fog", "--severities", "1", *DATA),
    "audit": (
        "--steps",
        "10",
        "--queries",
        "0",
        "--check-steps",
        "0",
        "--parts",
        "transfer",
        *DATA,
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights drawn at random, the file, and pictures of two classes."""
    folder = tmp_path_factory.mktemp("hand")
    (folder / "net.py").write_text(FILE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(AlexNet().state_dict(), folder / "weights.safetensors")
    values = np.random.default_rng(0).integers(0, 256, (4, 12, 16, 3), dtype=np.uint8)
    for row, pixels in enumerate(values):
        file = folder / "data" / f"class {row % 2}" / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((320, 260)).save(file)
    return folder


def without_times(value: Any) -> Any:
    """A record without what differs between two models of one network: name, time, notes."""
    if isinstance(value, dict):
        left_out = {"name", "architecture", "title", "created", "command", "warnings", "notes"}
        left_out |= {"seal", "memory"}
        return {
            key: without_times(one)
            for key, one in value.items()
            if key not in left_out and "second" not in key
        }
    return [without_times(one) for one in value] if isinstance(value, list) else value


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_gives_the_bytes_of_the_model_by_name(
    place: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    models: dict[str, tuple[str, ...]] = {"hand": ("net.py:make", *STATED), "name": ("alexnet",)}
    for out, model in models.items():
        words = (command, *COMMANDS[command], "--weights", "weights.safetensors", "--name", "A")
        ticks = itertools.count()
        monkeypatch.setattr(time, "perf_counter", lambda ticks=ticks: next(ticks) / 100)
        code, _, said = run(
            capsys, *words, "--model", *model, "--device", "cpu", "--out", f"{command}-{out}"
        )
        assert code == 0, said
    hand, named = (place / f"{command}-{out}" for out in models)
    files = {file.relative_to(hand) for file in hand.rglob("*") if file.is_file()}
    assert files == {file.relative_to(named) for file in named.rglob("*") if file.is_file()}
    for file in files:
        mine, theirs = ((folder / file).read_bytes() for folder in (hand, named))
        if file.suffix == ".json":
            mine, theirs = (without_times(json.loads(text)) for text in (mine, theirs))
        assert mine == theirs, file
