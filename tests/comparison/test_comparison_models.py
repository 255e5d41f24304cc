"""Two models on the same pictures: planted changes are found, in memory and from folders."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import featviz
from featviz.errors import UserError
from featviz.models.model import Model

CLASSES = ["red", "green", "blue", "gray"]
OPTIONS: dict[str, Any] = {
    "corruptions": ["fog", "contrast"],
    "severities": [1, 5],
    "steps": 10,
    "count": 8,
}


class Colors(nn.Module):
    """Four colors, told apart by linear channels and a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 9, 3, padding=1)
        self.head = nn.Linear(9, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(x).relu().mean((2, 3)))
        return logits


def model(net: nn.Module, name: str) -> Model:
    return featviz.wrap(net, input_size=12, classes=CLASSES, name=name)


def permuted(net: Colors, order: Tensor) -> Colors:
    """The same function with its channels in another order."""
    other = Colors()
    state = net.state_dict()
    for name, dim in (("conv.weight", 0), ("conv.bias", 0), ("head.weight", 1)):
        state[name] = state[name].index_select(dim, order)
    other.load_state_dict(state)
    return other


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.rand(40, 3, 12, 12, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def labels(pictures: Tensor) -> list[str]:
    """What the first model says, every fifth replaced, so that it is right on most."""
    found = model(Colors(), "a")(pictures).argmax(1).tolist()
    return [CLASSES[(c + (i % 5 == 0)) % 4] for i, c in enumerate(found)]


def test_a_permuted_model_has_no_flips_and_its_permutation_is_found(
    pictures: Tensor, labels: list[str]
) -> None:
    net, order = Colors(), torch.tensor([3, 1, 8, 0, 2, 7, 4, 6, 5])
    result = featviz.compare(
        model(net, "a"), model(permuted(net, order), "b"), pictures, labels, **OPTIONS
    )
    assert (result.flips.fixed, result.flips.broken, result.flips.p) == (0, 0, 1.0)
    assert set(result.units[0].pairs) == {(int(order[j]), j) for j in range(9)}
    assert all(point.first == point.second for point in result.curves if point.eps == 0)
    assert all(line.change.value == 0 for line in result.corruptions)
    numbers = result.numbers()
    assert numbers["change of top-1"].value == 0
    low, high = numbers["change of top-1"].low, numbers["change of top-1"].high
    assert low is not None
    assert high is not None
    assert low < 0 < high
    (check,) = result.require("change of top1.low>=-0.2")
    assert check.met


def test_a_class_that_is_never_predicted_again_is_worse(
    pictures: Tensor, labels: list[str], tmp_path: Path
) -> None:
    net = Colors()
    common = max(range(4), key=lambda c: labels.count(CLASSES[c]))
    with torch.no_grad():
        net.head.bias[common] -= 100
    result = featviz.compare(model(Colors(), "a"), model(net, "b"), pictures, labels, parts=())
    own = [label == CLASSES[common] for label in labels]
    right = model(Colors(), "a")(pictures).argmax(1)
    broken = sum(mine and int(c) == common for mine, c in zip(own, right.tolist(), strict=True))
    worst = result.classes[0]
    assert (worst.name, worst.flips.broken, worst.verdict) == (CLASSES[common], broken, "worse")
    assert result.numbers()["classes worse"].value == 1
    folder = result.save(tmp_path / "compare")
    with (folder / "pictures.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["change"] for row in rows].count("broken") == result.flips.broken
    assert rows[0]["change"] == "broken"
    assert (folder / "broken.svg").is_file()


@pytest.mark.slow
def test_saved_results_compare_as_the_models_do(
    pictures: Tensor, labels: list[str], tmp_path: Path
) -> None:
    net = Colors()
    with torch.no_grad():
        net.head.bias[0] += 0.15
    pair = model(Colors(), "a"), model(net, "b")
    data = featviz.as_pictures(pictures, labels)
    live = featviz.compare(*pair, data, norms=["linf"], eps=[0.01, 0.1], layers=[], **OPTIONS)
    folders = []
    for one in pair:
        evaluated = featviz.evaluate(one, data).save(tmp_path / f"eval-{one.name}")
        attacked = featviz.audit(
            one,
            data,
            norms=["linf"],
            eps=[0.01, 0.1],
            count=8,
            steps=10,
            check_steps=0,
            queries=0,
            parts=(),
        ).save(tmp_path / f"audit-{one.name}")
        table = featviz.corruption_table(
            one, data, names=["fog", "contrast"], severities=[1, 5], count=8
        ).save(tmp_path / f"corrupt-{one.name}")
        folders.append((evaluated, attacked, table))
    for kind, (first, second) in enumerate(zip(*folders, strict=True)):
        read = featviz.compare_results(first, second)
        if kind == 0:
            assert read.flips == live.flips
            assert read.first.predicted == live.first.predicted
            assert read.first.confidence is not None
            assert live.first.confidence is not None
            assert torch.allclose(read.first.confidence, live.first.confidence, atol=1e-4)
        elif kind == 1:
            shared = [p for p in live.curves if p.attack == "smallest changes"]
            assert [p[2:6] for p in read.curves] == [p[2:6] for p in shared]
        else:
            assert read.corruptions == live.corruptions


def test_results_of_other_pictures_are_refused(
    pictures: Tensor, labels: list[str], tmp_path: Path
) -> None:
    one = model(Colors(), "a")
    halves = [featviz.as_pictures(pictures[:k], labels[:k]) for k in (20, 30)]
    folders = [featviz.evaluate(one, half).save(tmp_path / str(k)) for k, half in enumerate(halves)]
    with pytest.raises(UserError, match="20 of 30 are in both"):
        featviz.compare_results(*folders)
    with pytest.raises(UserError, match="no result folder"):
        featviz.compare_results(folders[0], tmp_path / "absent")


def test_what_cannot_be_compared_is_one_line(pictures: Tensor, labels: list[str]) -> None:
    one = model(Colors(), "a")
    with pytest.raises(UserError, match="labels"):
        featviz.compare(one, one, pictures)
    with pytest.raises(UserError, match="did you mean units"):
        featviz.compare(one, one, pictures, labels, parts=["unit"])
    with pytest.raises(UserError, match="did you mean conv"):
        featviz.compare(one, one, pictures, labels, layers=["con"])


def test_a_file_that_cannot_be_read_is_said_and_left_out(pictures: Tensor, tmp_path: Path) -> None:
    for i in range(8):
        name = "red" if i % 2 else "blue"
        (tmp_path / name).mkdir(exist_ok=True)
        featviz.pictures.images.write_png(pictures[i], tmp_path / name / f"{i}.png")
    (tmp_path / "red" / "1.png").write_bytes(b"no picture")
    one = model(Colors(), "a")
    result = featviz.compare(one, one, featviz.open_pictures(tmp_path), parts=())
    assert result.flips.n == 7
    assert result.label_report is not None
    assert result.label_report.unreadable == ("red/1.png",)
    assert result.warnings[0].startswith("2 of 4 classes of a have no picture")
    assert any("could not be read" in text for text in result.warnings)
