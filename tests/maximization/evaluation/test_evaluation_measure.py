"""The panel as a whole: ranks by brute force, transfer, batches, flags, words and the folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from featviz.maximization import objectives
from featviz.maximization.evaluation import flags
from featviz.maximization.evaluation.figures import frame_flagged, top_picture_strip
from featviz.maximization.evaluation.measure import measure_panel, spread
from featviz.maximization.evaluation.metrics import METRICS, describe, metric_of
from featviz.maximization.evaluation.panel import Panel
from featviz.maximization.maximize import maximize
from featviz.models.frozen import frozen
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.models.units import Unit
from featviz.pictures.preprocessing import Preprocessing


def small(classes: list[tuple[str, str]] | None = None, seed: int = 1) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 5, stride=2),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, len(classes or "five!")),
        )
    return Model(
        net,
        name=f"small-{seed}",
        preprocessing=Preprocessing.of(32, mean=(0.5,) * 3, std=(0.25,) * 3),
        aliases={"conv1": "0", "relu1": "1", "conv2": "2"},
        classes=classes,
    )


def some_pictures(count: int, seed: int = 0) -> torch.Tensor:
    x = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return x.mul(255).round().div(255)


def measured(model: Model, units: list[int], pictures: torch.Tensor, **options: Any) -> Panel:
    objective = objectives.center("conv2", units)
    named = [Unit("conv2", unit) for unit in units]
    with frozen(model):
        return measure_panel(
            model,
            model.layer("conv2"),
            objective,
            range(len(units)),
            pictures,
            units=named,
            **options,
        )


def test_ranks_are_counted_in_standard_deviations_over_the_data_set() -> None:
    model, pictures, natural = small(), some_pictures(3, seed=4), some_pictures(40)
    found = measured(model, [2, 5, 7], pictures, data=natural)
    maps = activations(model, natural, ["conv2"])["conv2"].detach()
    size = maps.shape[-1]
    width = 2 - size % 2
    table = maps.unfold(2, width, 1).unfold(3, width, 1).mean((4, 5)).transpose(0, 1).flatten(1)
    start = (size - width) // 2
    own = activations(model, pictures, ["conv2"])["conv2"].detach()
    own = own[:, :, start : start + width, start : start + width].mean((2, 3))
    z = (own - table.mean(1)) / table.std(1, correction=0)
    expected = [1 + sum(float(v) > float(z[i, u]) for v in z[i]) for i, u in enumerate((2, 5, 7))]
    assert found.numbers["rank"].tolist() == expected
    raw = measured(model, [2, 5, 7], pictures).numbers["rank"].tolist()
    assert raw == [1 + int((own[i] > own[i, u]).sum()) for i, u in enumerate((2, 5, 7))]
    assert torch.allclose(found.scores, own[range(3), [2, 5, 7]], atol=1e-5)
    best = table.amax(1)[[2, 5, 7]]
    assert torch.allclose(found.numbers["natural"], best, atol=1e-5)
    ratio = torch.where(best > 0, found.scores / best, math.nan)  # no multiple of 0 or less
    assert torch.allclose(found.numbers["of natural"], ratio, rtol=1e-3, equal_nan=True)
    assert ratio.isnan().any()


def test_a_picture_is_measured_alike_in_any_batch() -> None:
    model, pictures, natural = small(), some_pictures(3, seed=4), some_pictures(40)
    together = measured(model, [2, 5, 7], pictures, data=natural)
    alone = measured(model, [5], pictures[1:2], data=natural)
    for name, values in alone.numbers.items():
        assert values[0].item() == pytest.approx(
            together.numbers[name][1].item(), rel=1e-4, abs=1e-5, nan_ok=True
        ), name
    assert alone.flags[0] == together.flags[1]
    assert alone.top_pictures[0].values == pytest.approx(together.top_pictures[1].values)


def test_top_pictures_are_cut_where_the_score_was_found() -> None:
    model, natural = small(), some_pictures(40)
    found = measured(model, [2, 5], some_pictures(2, seed=4), data=natural)
    for row, unit in enumerate((2, 5)):
        kept = found.top_pictures[row]
        assert list(kept.values) == sorted(kept.values, reverse=True)
        assert kept.values[0] == pytest.approx(found.numbers["natural"][row].item())
        start, end = None, None
        for cut, box, side, value in zip(
            kept.pictures, kept.boxes, kept.sides, kept.values, strict=True
        ):
            assert box is not None
            assert cut.shape[-1] == side == 32
            # Wherever it was found, it is in the same place of the crop, which shows all of it.
            start, end = start or box[:2], end or box[2:]
            assert (box[:2], box[2:]) == (start, end)
            seen = cut[None, :, box[0] : box[2], box[1] : box[3]].float() / 255
            there = activations(model, seen, ["conv2"])["conv2"][0, unit].mean()
            assert there.item() == pytest.approx(value, abs=0.02)  # pixels have 8 bits


def test_classes_are_found_in_another_model_by_synset_then_name() -> None:
    ours = small([("n01", "tench, Tinca tinca"), ("", "tabby, tabby cat"), ("n03", "axolotl")])
    theirs = small([("", "wool"), ("n01", "a fish"), ("", "tabby"), ("", "tench")], seed=2)
    pictures = some_pictures(3, seed=4)
    objective = objectives.channel("logits", [0, 1, 2])
    units = [Unit("logits", i) for i in range(3)]
    with frozen(ours), frozen(theirs):
        found = measure_panel(
            ours, ours.layer("logits"), objective, [0, 1, 2], pictures, units=units, other=theirs
        )
        logits = theirs(pictures)
    ranks = found.numbers["transfer rank"]
    for row, index in ((0, 1), (1, 2)):
        assert ranks[row] == 1 + int((logits[row] > logits[row, index]).sum())
    assert ranks[2].isnan()
    assert "small-2 has no class axolotl" in found.notes[0]
    own = ours(pictures)
    assert found.numbers["rank"].tolist() == [1 + int((own[i] > own[i, i]).sum()) for i in range(3)]


def test_a_unit_of_maps_has_no_counterpart_and_that_is_said() -> None:
    found = measured(small(), [2], some_pictures(1), other=small(seed=2))
    assert found.numbers["transfer rank"].isnan().all()
    assert "conv2 have no counterpart in small-2" in found.notes[0]


def test_a_few_pictures_make_no_path_and_that_is_said() -> None:
    found = measured(small(), [2], some_pictures(1), data=some_pictures(10))
    assert found.path is None
    assert found.notes == ("10 pictures are too few to compare paths with; give at least 16",)


def test_the_model_is_left_as_it_was() -> None:
    model = small().train()
    measured(model, [2], some_pictures(1), data=some_pictures(20), other=small(seed=2))
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_spread_is_standard_deviation_over_median() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [4.0, math.nan, 4.0], [1.0, math.nan, math.nan]])
    found = spread(scores)
    assert found[0].item() == pytest.approx(0.5)
    assert found[1].item() == 0
    assert found[2].isnan()


WELL = {
    "held out": 8.0,
    "natural": 2.0,
    "rank": 1.0,
    "path": 0.6,
    "path confidence": 1.0,
    "path own": 0.3,
    "path others": 0.1,
    "overlap": 0.5,
    "overlap usual": 0.5,
    "slope": -1.3,
    "high share": 0.02,
    "lattice 4": 1.0,
    "lattice 8": 1.1,
    "spread": 0.05,
}
SETTING: dict[str, Any] = {
    "rectified": True,
    "side": 64,
    "units": 100,
    "ranked": True,
    "count": 900,
    "natural_slope": (-1.25, 0.2),
    "before": "relu4",
}
PICTURE: dict[str, Any] = {"score": 10.0, "alive": True, "peak": 2.5}


@pytest.mark.parametrize(
    ("change", "raised", "words"),
    [
        ({}, None, ""),
        ({"alive": False}, "no gradient", "no gradient"),
        ({"score": math.nan}, "not finite", "not a number"),
        ({"peak": 0.0}, "inactive", "no picture of 900"),
        ({"peak": 0.0, "rectified": False}, None, ""),
        ({"score": -1.0, "natural": -2.0}, "inactive", "on its own picture"),
        ({"natural": 10.1}, "below natural", "a picture of the data set scores 10.1"),
        ({"natural": 9.9}, None, ""),
        ({"held out": 2.4}, "fine detail", "keeps 24%"),
        ({"held out": 2.6}, None, ""),
        ({"held out": 2.4, "side": 19}, None, ""),
        ({"rank": 4.0}, "others respond more", "3 of the 99 other units"),
        ({"rank": 3.0}, None, ""),
        ({"rank": 4.0, "ranked": False}, None, ""),
        ({"overlap": 0.24}, "unnatural path", "only 24% of the score"),
        ({"overlap": 0.26}, None, ""),
        ({"path confidence": 0.02}, "unnatural path", "less like those of the unit"),
        ({"path confidence": 0.02, "path": math.nan}, None, ""),
        ({"slope": -0.4}, "spectrum", "much flatter"),
        ({"slope": -2.1}, "spectrum", "much steeper"),
        ({"slope": -0.5}, None, ""),
        ({"high share": 0.6}, "spectrum", "60% of its energy"),
        ({"lattice 8": 2.6}, "lattice", "a grid of 8 pixels"),
        ({"spread": 0.6}, "restarts differ", "60% of their median"),
    ],
)
def test_each_flag_is_raised_at_its_limit_and_not_before(
    change: dict[str, float], raised: str | None, words: str
) -> None:
    numbers = WELL | {k: v for k, v in change.items() if k in WELL}
    setting, picture = (
        given | {k: v for k, v in change.items() if k in given} for given in (SETTING, PICTURE)
    )
    found = flags.find_flags(numbers, flags.Setting(**setting), **picture)
    assert [flag.name for flag in found] == ([raised] if raised else [])
    assert all(words in flag.words for flag in found)


def test_flags_are_summarized_by_reason() -> None:
    one, two = flags.Flag("lattice", "a grid"), flags.Flag("inactive", "no picture")
    lines = flags.summarize(["a", "b", "c"], [[one], [one, two], [flags.Flag("no gradient", "no")]])
    assert lines == ("lattice: a, b (a: a grid)", "inactive: b (no picture)")


def test_every_number_of_a_panel_has_a_meaning_without_gaps() -> None:
    found = measured(small(), [2], some_pictures(1), data=some_pictures(40), seconds=1.0)
    assert {"path", "overlap", "lattice 2"} <= found.numbers.keys()
    for line in describe(found, 0):
        assert line.value
        assert not {"{", "}"} & set(line.value + line.meaning + line.short)
    assert all(metric_of(name).meaning for name in [*METRICS, *found.numbers])


def test_a_frame_lies_in_the_gap_and_touches_no_picture() -> None:
    from featviz.pictures.images import contact_sheet

    pictures = some_pictures(5)[..., :8, :8]
    sheet = contact_sheet(pictures, 3, gap=4)
    framed = frame_flagged(sheet, [False, True, False, False, True], 8, 3, 4)
    for i, picture in enumerate(pictures):
        top, left = 4 + (i // 3) * 12, 4 + (i % 3) * 12
        assert torch.equal(framed[:, top : top + 8, left : left + 8], picture)
        changed = not torch.equal(framed[:, top - 1, left : left + 8], torch.ones(3, 8))
        assert changed == (i in (1, 4))


def test_the_folder_holds_everything(tmp_path: Path) -> None:
    model = small()
    result = maximize(
        model, "conv2", units=[2, 5], pictures=some_pictures(40), steps=4, precision="float32"
    )
    folder = result.save(tmp_path / "out")
    document = json.loads((folder / "result.json").read_text())
    figures = {figure["file"]: figure for figure in document["figures"]}
    for file in ("natural/conv2-2.jpg", "paths/conv2-2.svg"):
        assert figures[file]["detail"] is True
        assert figures[file]["units"] == ["conv2:2"]
    assert (folder / "panel.svg").stat().st_size > 0
    assert document["numbers"]["flagged"]["value"] == sum(result.flagged)
    rows = (folder / "panel.csv").read_text().splitlines()
    assert rows[0] == "picture,what,value,meaning"
    assert sum(row.startswith("conv2:5,") for row in rows) == len(describe(result.panel, 1))
    header, first, _ = (folder / "scores.csv").read_text().splitlines()
    cells = dict(zip(header.split(","), first.split(","), strict=False))
    assert float(cells["rank"]) == result.panel.numbers["rank"][0]
    assert cells["flags"].split("; ") == ([f.name for f in result.panel.flags[0]] or [""])
    listed = {table["file"] for table in document["tables"]}
    assert ("flags.csv" in listed) == any(result.flagged)
    assert {"paths.csv", "panel.csv", "scores.csv"} <= listed


def test_the_strip_frames_what_was_scored() -> None:
    found = measured(small(), [2], some_pictures(1, seed=4), data=some_pictures(40))
    picture = top_picture_strip(found.top_pictures[0], height=160)
    assert picture.shape[1] == 160
    orange = (picture - torch.tensor([230, 159, 0])[:, None, None] / 255).abs().amax(0) < 1e-6
    assert orange.any()


def test_a_sum_is_compared_with_the_data_set_by_itself_and_has_no_rank() -> None:
    model, natural, pictures = small(), some_pictures(40), some_pictures(2, seed=4)
    objective = objectives.channel("conv2", [1, 3, 5]) - 0.5 * objectives.channel(
        "conv1", [2, 4, 0]
    )
    with frozen(model):
        found = measure_panel(
            model, model.layer("conv2"), objective, [2, 0], pictures, data=natural
        )
        acts = activations(model, natural, ["conv1", "conv2"])
    for row, (plus, minus) in enumerate(((5, 0), (1, 2))):
        scores = acts["conv2"][:, plus].mean((1, 2)) - 0.5 * acts["conv1"][:, minus].mean((1, 2))
        assert found.numbers["natural"][row].item() == pytest.approx(scores.max().item(), abs=1e-5)
        assert found.top_pictures[row].values[0] == pytest.approx(scores.max().item(), abs=1e-5)
        assert found.top_pictures[row].boxes[0] is None
    assert "rank" not in found.numbers
    assert found.path is None


def test_a_picture_without_gradient_does_not_change_the_others() -> None:
    model, natural = small(), some_pictures(40)
    with torch.no_grad():
        convolution = model.net.get_submodule("2")
        for parameter in convolution.parameters():
            parameter[5] = 0
    pictures = some_pictures(2, seed=4)
    found = measured(model, [2, 5], pictures, data=natural, alive=torch.tensor([True, False]))
    alone = measured(model, [2], pictures[:1], data=natural)
    assert found.numbers["rank"][0] == alone.numbers["rank"][0]
    assert [flag.name for flag in found.flags[1]] == ["no gradient"]


def test_a_model_ranks_its_classes_alike_when_it_is_its_own_other(tmp_path: Path) -> None:
    from featviz.cli.main import main

    out = tmp_path / "out"
    options = ["--layer", "logits", "--units", "goldfish,teapot", "--steps", "2", "--quiet"]
    with pytest.raises(SystemExit) as left:
        main(["maximize", *options, "--other", "alexnet-mini", "--out", str(out), "--json"])
    assert left.value.code == 0
    header, *rows = (out / "scores.csv").read_text().splitlines()
    at = {name: i for i, name in enumerate(header.split(","))}
    for row in rows:
        cells = row.split(",")
        assert cells[at["rank"]] == cells[at["transfer rank"]]
    assert json.loads((out / "result.json").read_text())["parameters"]["other"] == "alexnet-mini"


def test_weights_of_an_other_model_need_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    from featviz.cli.main import main

    with pytest.raises(SystemExit) as left:
        main(["maximize", "--other-weights", "file.safetensors"])
    assert left.value.code == 2
    assert "--other" in capsys.readouterr().err
