"""What an ablation reports: a planted unit, paired tests, resuming, folders, mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import featviz
from featviz import results
from featviz.ablation.result import Ablation
from featviz.checkpoints import Interrupted
from featviz.comparison.paired import holm, mcnemar
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.models.wrap import wrap
from featviz.statistics import paired_difference
from featviz.types import Progress


@pytest.fixture(scope="module")
def planted() -> Model:
    """Class k is the color k, carried by unit 2 k + 1 alone; the other units carry nothing."""
    net = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Linear(6, 3, bias=False)
    with torch.no_grad():
        weight = net[0].weight
        assert isinstance(weight, torch.Tensor)
        weight.zero_()
        head.weight.zero_()
        for k in range(3):
            weight[2 * k + 1, k] = 1.0
            head.weight[k, 2 * k + 1] = 1.0
    return wrap(
        nn.Sequential(net, head), input_size=8, channels=3, classes=["red", "green", "blue"]
    )


@pytest.fixture(scope="module")
def colors() -> tuple[torch.Tensor, list[int]]:
    """20 pictures of each color, on a ground that is a little blue."""
    ground = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1).expand(3, 8, 8)
    pictures = torch.stack([ground.clone() for _ in range(60)])
    for i, picture in enumerate(pictures):
        picture[i % 3] += 0.5
    return pictures, [i % 3 for i in range(60)]


def test_a_planted_unit_hurts_its_class_only(
    planted: Model, colors: tuple[torch.Tensor, list[int]]
) -> None:
    found = featviz.ablate(planted, "0.0", *colors)
    assert found.accuracy.value == 1.0
    rows = {row["unit"]: row for row in found.to_pandas("units").to_dict("records")}
    for k, name in enumerate(("red", "green", "blue")):
        assert rows[f"0.0:{2 * k}"]["change"] == 0
        assert rows[f"0.0:{2 * k + 1}"]["change"] == pytest.approx(-1 / 3, abs=1e-4)
        assert rows[f"0.0:{2 * k + 1}"]["classes_hurt"].startswith(name)
    needed = found.to_pandas("needed")
    assert needed["unit"].tolist() == ["logits:0", "logits:1", "logits:2"]
    assert needed["needs"].tolist() == ["0.0:1", "0.0:3", "0.0:5"]
    one, every = found.held_out
    assert one.tolist() == pytest.approx([0, 1, 0, 1, 0, 1])
    assert every.tolist() == pytest.approx([0, 1 / 3, 0, 1 / 3, 0, 1 / 3])
    numbers = found.numbers()
    assert numbers["change accuracy"].value == 3
    assert numbers["hurt a class"].value == 3


def test_tests_and_intervals_are_those_of_the_pairs(mini: Model) -> None:
    found = featviz.ablate(mini, "conv5", featviz.sample_pictures(), count=48)
    before = found.before == found.labels
    raw = []
    for run, after in enumerate(found.after == found.labels):
        effect = found.effects[run]
        assert effect.change == paired_difference(before, after)
        raw.append(mcnemar(int((~before & after).sum()), int((before & ~after).sum())))
    assert [one.corrected for one in found.effects] == holm(raw)
    label = int(found.shown_classes[2])
    own = found.labels == label
    for run in (0, 77):
        expected = paired_difference(before[own], (found.after[run] == label)[own])
        assert found.class_effect(run, 2).change == expected
        assert float(found.class_logits[run, 2]) == pytest.approx(
            float(found.logit_change[run][own].mean()), abs=1e-5
        )


def test_the_control_is_of_other_units(mini: Model) -> None:
    data = featviz.sample_pictures()
    found = featviz.ablate(mini, "conv5:0-249", data, together=True, count=4)
    assert len(found.control_after) == 0
    assert "control" not in found.numbers()
    found = featviz.ablate(mini, "conv5:3,4", data, together=True, count=4, controls=5)
    assert found.numbers()["control"].n == 5


def test_a_stopped_run_goes_on(mini: Model, tmp_path: Path) -> None:
    data = featviz.sample_pictures()

    def stop(done: int, total: int, text: str) -> None:
        if done > 0.95 * total:
            raise KeyboardInterrupt

    def run(
        checkpoint: Path | None, progress: Progress | None = None, units: str = "0-9"
    ) -> Ablation:
        return featviz.ablate(
            mini,
            "fc6",
            data,
            units=units,
            count=140,
            how="mean",
            checkpoint=checkpoint,
            progress=progress,
        )

    with pytest.raises(Interrupted, match="kept 3,840 of 4,200"):
        run(tmp_path / "x.partial", stop)
    found = run(tmp_path / "x.partial")
    assert torch.equal(found.logit_change, run(None).logit_change)
    with pytest.raises(UserError, match="another command"):
        run(tmp_path / "x.partial", units="0-8")


def test_the_folder(mini: Model, tmp_path: Path) -> None:
    data = featviz.sample_pictures()
    found = featviz.ablate(mini, "conv5:0-9", data, count=20, picture=data.select([3]))
    folder = found.save(tmp_path / "run" / "ablation")
    assert results.read_result(folder)["kind"] == "ablation"
    with np.load(folder / "ablation.npz") as arrays:
        assert arrays["after"].shape == (10, len(found.labels))
        assert arrays["picture_after"].shape == (10, 200)
    site = featviz.build_gallery(tmp_path / "run")
    page = (Path(site) if Path(site).is_dir() else Path(site).parent) / "units" / "conv5-3.html"
    text = page.read_text()
    assert "Effect when silenced" in text


def test_without_labels_right_means_unchanged(mini: Model) -> None:
    pictures = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    found = featviz.ablate(mini, "conv5:3", pictures)
    assert found.predicted_labels
    assert found.accuracy.value == 1.0


@pytest.mark.parametrize(
    ("give", "text"),
    [
        ({"directions": torch.ones(2, 7)}, r"directions of shape \(2, 7\) do not fit conv5"),
        ({"directions": torch.zeros(1, 256)}, "a direction is zero"),
        ({"directions": torch.ones(1, 256), "units": "3"}, "units and directions are both given"),
        ({"units": "256"}, "unit 256 is out of range"),
        ({"count": 1, "how": "resample"}, "give 2 or more pictures"),
    ],
)
def test_mistakes(mini: Model, give: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        featviz.ablate(mini, "conv5", featviz.sample_pictures(), **give)
