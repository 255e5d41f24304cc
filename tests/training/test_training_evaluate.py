"""Accuracy with intervals: counted by hand, against closed forms, on broken and strange data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from featviz.errors import UserError
from featviz.models.load import load
from featviz.models.model import Model
from featviz.pictures.preprocessing import Preprocessing
from featviz.results import read_result
from featviz.statistics import share
from featviz.training.evaluation import evaluate, ten_crops

GRAYS = (
    ("n00000001", "black"),
    ("n00000002", "dark, dim"),
    ("n00000003", "gray"),
    ("n00000004", "light"),
    ("n00000005", "bright"),
    ("n00000006", "white"),
)


class ByBrightness(nn.Module):
    """Logits that fall with the distance between the mean brightness and i / 5."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Linear(1, 6)
        with torch.no_grad():  # -(x - c)^2 up to a constant: 2 c x - c^2
            c = torch.arange(6) / 5
            self.logits.weight.copy_(2 * c[:, None])
            self.logits.bias.copy_(-(c**2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.logits(x.mean((1, 2, 3))[:, None])
        return logits


@pytest.fixture
def model() -> Model:
    return Model(
        ByBrightness(),
        name="brightness",
        preprocessing=8,
        aliases={"logits": "logits"},
        classes=list(GRAYS),
    )


def paint(path: Path, level: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 8), (round(255 * level),) * 3).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """12 pictures: 4 of dark (3 right, one taken for black), 6 of white (2 right, 4 taken for
    black, for which white is the sixth of six guesses), and 2 of bright, taken for black too: the
    right answer is the fifth."""
    folder = tmp_path / "data"
    for i, level in enumerate([0.2, 0.2, 0.25, 0.0]):
        paint(folder / "n00000002" / f"{i}.png", level)
    for i, level in enumerate([1.0, 0.95, 0.0, 0.0, 0.02, 0.0]):
        paint(folder / "white" / f"{i}.png", level)
    for i in range(2):
        paint(folder / "n00000005" / f"{i}.png", 0.0)
    return folder


def test_top1_and_top5_are_those_counted_by_hand(model: Model, data: Path) -> None:
    result = evaluate(model, data)
    assert (result.top1.hits, result.top1.n) == (5, 12)
    assert (result.top_k.hits, result.top_k.n) == (8, 12)
    once, within = result.per_class[1]
    assert (once.hits, once.n, within.hits) == (3, 4, 4)
    once, within = result.per_class[5]
    assert (once.hits, once.n, within.hits) == (2, 6, 2)
    assert result.mistaken_for(5) == (0, 4)
    assert result.mistaken_for(3) is None
    assert result.warnings == ("3 of 6 classes of brightness have no picture: black, gray, light",)


def test_the_answer_does_not_depend_on_the_batch(model: Model, data: Path) -> None:
    results = [evaluate(model, data, batch_size=n) for n in (1, 3, 64)]
    for other in results[1:]:
        assert torch.equal(other.predictions, results[0].predictions)
        assert torch.equal(other.labels, results[0].labels)


def test_broken_pictures_and_strange_folders_do_not_count_and_are_named(
    model: Model, data: Path
) -> None:
    (data / "white" / "broken.png").write_bytes(b"no picture")
    paint(data / "zebra" / "1.png", 0.5)
    result = evaluate(model, data)
    assert (result.top1.hits, result.top1.n) == (5, 12)
    assert any("1 of 14 pictures do not count" in w and "zebra" in w for w in result.warnings)
    assert any("1 picture could not be read" in w for w in result.warnings)


def test_data_without_a_known_class_is_refused(model: Model, tmp_path: Path) -> None:
    paint(tmp_path / "zebra" / "1.png", 0.5)
    with pytest.raises(
        UserError, match=r"no folder of .* named after a class of brightness.*zebra"
    ):
        evaluate(model, tmp_path)


def test_the_result_folder_says_what_was_counted(model: Model, data: Path, tmp_path: Path) -> None:
    folder = evaluate(model, data).save(tmp_path / "out")
    numbers = read_result(folder)["numbers"]
    assert numbers["top-1"]["value"] == pytest.approx(5 / 12)
    assert "5 of 12" in numbers["top-1"]["meaning"]
    assert numbers["top-1"]["n"] == 12
    assert (numbers["top-1"]["low"], numbers["top-1"]["high"]) == pytest.approx(share(5, 12)[2:])
    lines = (folder / "classes.csv").read_text().splitlines()
    assert lines[1].startswith("bright,2,0.0,")  # the weakest first
    assert any(line.startswith('"dark, dim",4,0.75,') for line in lines)
    assert "white,6,0.3333,0.0968,0.7,0.3333,black,4" in lines


def test_ten_crops_are_torchvisions(generator: torch.Generator) -> None:
    load("resnet18")  # makes torchvision importable beside a CPU build of torch
    from torchvision.transforms.functional import ten_crop

    picture = torch.rand(2, 3, 13, 16, generator=generator)
    ours = ten_crops(picture, (8, 10))
    theirs = torch.stack(ten_crop(picture, [8, 10]))
    for crop in ours:  # the order is another one; the mean does not depend on it
        assert any(torch.equal(crop, other) for other in theirs)
    assert len({crop.numpy().tobytes() for crop in ours}) == 10


def test_ten_crops_average_probabilities(model: Model, tmp_path: Path) -> None:
    """A picture whose left half is white: crops see different shares of it."""
    picture = Image.new("RGB", (12, 12))
    picture.paste((255, 255, 255), (0, 0, 5, 12))
    (tmp_path / "gray").mkdir()
    picture.save(tmp_path / "gray" / "half.png")
    wider = Model(
        model.net,
        name="brightness",
        preprocessing=Preprocessing.of(8, resize=12),
        aliases={"logits": "logits"},
        classes=list(GRAYS),
    )
    found = evaluate(wider, tmp_path, ten_crop=True)
    # White columns seen: 5 of 8 at the left, 1 at the right, 3 in the center; mirrored the same.
    seen = torch.tensor([5 / 8, 1 / 8, 5 / 8, 1 / 8, 3 / 8], dtype=torch.double)
    c = torch.arange(6, dtype=torch.double) / 5
    expected = (2 * c * seen[:, None] - c**2).softmax(1).mean(0)
    assert float(found.confidences[0]) == pytest.approx(float(expected.max()), rel=1e-5)
    assert int(found.predictions[0, 0]) == int(expected.argmax())
    with pytest.raises(UserError, match="no ten different crops"):
        evaluate(model, tmp_path, ten_crop=True)


def test_top_k_counts_k_classes(model: Model, data: Path) -> None:
    assert evaluate(model, data, top=1).predictions.shape[1] == 1
    three = evaluate(model, data, top=3)
    assert set(three.numbers()) >= {"top-1", "top-3"}
    # Of the two darkest gray's twelve, bright's two and white's four wrong ones lie beyond 3.
    assert three.top_k.hits == 6
    assert evaluate(model, data, top=50).top == 5  # all classes would be right every time
    with pytest.raises(UserError, match="top is 0"):
        evaluate(model, data, top=0)
