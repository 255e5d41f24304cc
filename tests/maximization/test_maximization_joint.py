"""Joint objectives end to end: in Python, in words, on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import featviz
from featviz.cli.main import main
from featviz.maximization import objectives as obj
from featviz.maximization.image_statistics import measure_statistics
from featviz.maximization.maximize import maximize_objective
from featviz.models.model import Model


def test_a_joint_objective_is_climbed_and_scored(mini: Model) -> None:
    goal = obj.channel("conv2", [5, 9]) - 0.5 * obj.channel("conv1", [0, 3])
    made = maximize_objective(mini, goal, steps=24, size=32, names=["a", "b"])
    acts = featviz.activations(mini, made.images, ["conv1", "conv2"])
    expected = acts["conv2"][[0, 1], [5, 9]].mean((1, 2)) - 0.5 * acts["conv1"][
        [0, 1], [0, 3]
    ].mean((1, 2))
    assert torch.allclose(made.scores, expected, atol=1e-4)
    assert made.names == ("a", "b")
    assert made.layer == "conv2"  # the deeper one
    # the part that is subtracted does hold it back
    alone = maximize_objective(mini, obj.channel("conv2", [5, 9]), steps=24, size=32)
    acts = featviz.activations(mini, alone.images, ["conv1"])
    free = acts["conv1"][[0, 1], [0, 3]].mean((1, 2))
    held = featviz.activations(mini, made.images, ["conv1"])["conv1"][[0, 1], [0, 3]].mean((1, 2))
    assert (held < free).all()


def test_words_and_objects_give_the_same_picture(mini: Model) -> None:
    words = maximize_objective(mini, "conv2:5 - 0.5*conv1:3", steps=4, size=32, names=["x"])
    goal = obj.channel("conv2", [5]) - 0.5 * obj.channel("conv1", [3])
    start = maximize_objective(mini, ["conv2:5 - 0.5*conv1:3", "conv2:9"], steps=4, size=32)
    assert torch.equal(start.images[0], words.images[0])  # whatever is made beside it
    acts = featviz.activations(mini, words.images, ["conv1", "conv2"])
    assert words.scores[0].item() == pytest.approx(goal(acts, [0]).item(), abs=1e-4)


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        (obj.channel("conv2", [1, 2]) + obj.diversity("conv2", 2), "compares pictures"),
        (obj.total_variation(), "reads no layer"),
        ([], "no objective was given"),
        ("conv2:5 - ", "'5 -' is no unit of conv2"),
    ],
)
def test_what_has_no_picture_of_its_own_is_a_users_mistake(
    goal: Any, message: str, mini: Model
) -> None:
    with pytest.raises(featviz.UserError, match=message):
        maximize_objective(mini, goal, steps=2, size=32)


def test_a_relu_is_read_as_it_leaves(mini: Model) -> None:
    made = maximize_objective(mini, "relu2:5", steps=3, size=32)
    acts = featviz.activations(mini, made.images, ["conv2", "relu2"])
    after, before = acts["relu2"][0, 5].mean(), acts["conv2"][0, 5].mean()
    assert made.scores[0].item() == pytest.approx(after.item(), abs=1e-4)
    assert abs(after - before) > 2e-3
    assert torch.allclose(acts["relu2"], acts["conv2"].relu(), atol=1e-5)


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["maximize", *words, "--quiet"])
    return int(left.value.code or 0)


def test_the_command_takes_objectives_in_words(tmp_path: Path) -> None:
    words = ["--objective", "conv2:5 - 0.5*conv1:3; deepdream(conv1)", "--steps", "2"]
    assert run(*words, "--size", "32", "--out", str(tmp_path / "joint")) == 0
    said = (tmp_path / "joint" / "result.json").read_text()
    assert "conv2:5 - 0.5*conv1:3" in said
    assert len(list((tmp_path / "joint" / "units").glob("*.png"))) == 2
    assert run("--objective", "conv9:5", "--out", str(tmp_path / "wrong")) == 2
    assert not (tmp_path / "wrong").exists()


def test_the_command_takes_measured_statistics(tmp_path: Path) -> None:
    pictures = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    measure_statistics(pictures, name="mine").save(tmp_path / "mine.safetensors")
    words = ["--layer", "conv2", "--units", "5", "--parametrization", "maco", "--steps", "2"]
    words += ["--statistics", str(tmp_path / "mine.safetensors"), "--size", "32"]
    assert run(*words, "--out", str(tmp_path / "made")) == 0
    said = json.loads((tmp_path / "made" / "result.json").read_text())["parameters"]
    assert said["parametrization"]["spectrum"] == "mine"
