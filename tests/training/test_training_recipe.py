"""recipes/train_mini.py from pictures to the files of featviz/assets, on two classes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import featviz
from featviz.errors import UserError
from featviz.kernels.growth import kernel_growth
from featviz.models.model import Model
from featviz.training.data import read_examples

CLASSES = [("n02", "second"), ("n01", "first")]


class Teacher(nn.Module):
    """Logits that tell left from right, so that they differ for a mirrored view."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        means = x[..., :half].mean((1, 2, 3)), 2 * x[..., half:].mean((1, 2, 3))
        logits: torch.Tensor = self.logits(torch.stack(means, 1))
        return logits


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module = importlib.import_module("train_mini")
    load = featviz.load

    def loaded(name: str, **options: Any) -> Model:
        if name == "alexnet":
            return Model(
                Teacher(),
                name="teacher",
                preprocessing=32,
                classes=CLASSES,
                aliases={"logits": "logits"},
            )
        return load(name, **options)

    monkeypatch.setattr(featviz, "load", loaded)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for split, each in (("train", 4), ("val", 2)):
        for red, folder in ((40, "n01"), (200, "n02")):
            place = tmp_path / "data" / split / folder
            place.mkdir(parents=True)
            for i in range(each):
                picture = Image.new("RGB", (64, 64), (red, 10 * i, 0))
                picture.paste((0, 0, 0), (0, 0, 32, 64))
                picture.save(place / f"{i}.png")
    return tmp_path / "data"


@pytest.mark.slow
def test_the_recipe_runs_to_its_end_and_its_files_load(
    recipe: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ["train_mini.py", "--data", pictures, "--teacher", "t.safetensors", "--out", out]
    monkeypatch.setattr(sys, "argv", [*map(str, words), "--epochs", "1"])
    recipe.main()
    model = featviz.load("alexnet-mini", weights=out / "alexnet-mini.safetensors", device="cpu")
    assert list(zip(model.synsets, model.classes, strict=True)) == sorted(CLASSES)
    assert (out / "alexnet-mini.classes.txt").read_text() == "n01\tfirst\nn02\tsecond\n"
    growth = kernel_growth(out / "alexnet-mini.kernels.safetensors")
    assert growth.steps == (0, 1)
    first = model.net.get_parameter("features.0.weight")
    torch.testing.assert_close(growth.kernels[-1], first)


def test_the_teachers_logits_are_in_the_datas_order_and_of_both_views(
    recipe: Any, pictures: Path, tmp_path: Path
) -> None:
    examples = read_examples(pictures / "train", 64)
    teacher = featviz.load("alexnet")
    logits = recipe.teach(teacher, examples, tmp_path / "t.safetensors")
    # The left half is black: plain gives (0, 2 m), mirrored (m, 0), their mean (m / 2, m), with m
    # the mean of the right half; the teacher's classes are in the opposite order.
    m = torch.tensor([(red + 10 * i) / 3 / 255 for red in (40, 200) for i in range(4)])
    wanted = torch.stack([m, m / 2], 1)
    # The enlarged border between the halves is soft; bfloat16 and float16 keep 2 to 3 digits.
    torch.testing.assert_close(logits.float(), wanted, rtol=0.03, atol=0.003)
    assert torch.equal(recipe.teach(teacher, examples, tmp_path / "t.safetensors"), logits)
    fewer = read_examples(pictures / "val", 64)
    with pytest.raises(UserError, match="made for other pictures"):
        recipe.teach(teacher, fewer, tmp_path / "t.safetensors")
