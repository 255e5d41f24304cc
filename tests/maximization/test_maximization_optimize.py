"""`maximize`: closed forms, independence of the batch, and a model left as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import scipy.stats
import torch
from torch import nn

import featviz
from featviz.maximization.batches import Stopped
from featviz.maximization.settings import settings_for
from featviz.maximization.transforms import Transforms
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.pictures.preprocessing import Preprocessing

QUICK: dict[str, Any] = {"steps": 6, "precision": "float32"}


def small_model(*layers: nn.Module, input_size: int = 32, **options: Any) -> Model:
    """A model of random weights; `Flatten` and so on are the caller's business."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.reset_parameters()
    return Model(
        nn.Sequential(*layers),
        name="small",
        preprocessing=Preprocessing.of(input_size, mean=(0.5,) * 3, std=(0.25,) * 3),
        **options,
    )


def part(model: Model, index: int) -> Any:
    """A layer of a sequential net."""
    return cast(nn.Sequential, model.net)[index]


def convolutional(*, inplace: bool = False) -> Model:
    return small_model(
        nn.Conv2d(3, 6, 5, stride=2),
        nn.ReLU(inplace=inplace),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(inplace=inplace),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
        aliases={"conv1": "0", "relu1": "1", "conv2": "2", "relu2": "3"},
    )


# What comes out


@pytest.mark.parametrize("form", ["fourier", "pixels"])
def test_the_best_picture_for_a_linear_unit_is_its_kernel(form: str) -> None:
    """The score is <w, x>, the penalty c/2 |x - 1/2|^2: the optimum is 1/2 + w / c."""
    model = small_model(nn.Conv2d(3, 4, 9), nn.Flatten(), input_size=9, aliases={"conv1": "0"})
    settings = settings_for(
        model, "conv1", parametrization=form, size=9, steps=200, precision="float32"
    )
    result = featviz.maximize(
        model,
        "conv1",
        units="all",
        settings=replace(
            settings,
            local_normalization=0.0,
            roughness_weight=0.0,
            saturation_weight=0.0,
            coarse_to_fine=0.0,
            contrast_weight=12.0,
            transforms=Transforms(),
        ),
    )
    weights = part(model, 0).weight
    for picture, kernel in zip(result.images, weights, strict=True):
        assert torch.corrcoef(torch.stack([(picture - 0.5).ravel(), kernel.ravel()]))[0, 1] > 0.99


@pytest.mark.slow
def test_the_pictures_of_the_bundled_first_layer_are_its_kernels(mini: Model) -> None:
    """With the settings that `maximize` takes by itself; the number is printed and saved."""
    result = featviz.maximize(mini, "conv1", units="0-11", steps=128)
    likeness = result.metrics["kernel"]
    conv1: Any = mini.net.get_submodule(mini.layer("conv1").path)
    kernels = conv1.weight[:12] / mini.std
    kernel_number = result.numbers()["kernel"].value
    assert isinstance(kernel_number, float)
    assert kernel_number > 0.95
    side, width = result.size, kernels.shape[-1]
    start = (side - width) // 2
    for i, kernel in enumerate(kernels):
        seen = result.images[i, :, start : start + width, start : start + width] - 0.5
        expected = scipy.stats.pearsonr(seen.flatten().numpy(), kernel.flatten().numpy())[0]
        assert likeness[i].item() == pytest.approx(expected, abs=1e-5)


def test_scores_are_those_of_the_saved_pictures(tmp_path: Path) -> None:
    model = convolutional()
    result = featviz.maximize(model, "conv2", units=[0, 7], objective="channel", **QUICK)
    result.save(tmp_path / "out")
    for i, unit in enumerate((0, 7)):
        saved = featviz.read_image(tmp_path / "out" / "units" / f"conv2-{unit}.png")
        assert torch.equal(saved, result.images[i])
        value = activations(model, saved[None], ["conv2"])["conv2"][0, unit].mean()
        assert result.scores[i].item() == pytest.approx(value.item(), rel=1e-5)


def test_the_ascent_beats_every_one_of_many_random_pictures() -> None:
    model = convolutional()
    result = featviz.maximize(model, "logits", units=[1], steps=40, precision="float32")
    random = torch.rand(256, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert result.scores[0] > model(random)[:, 1].max()
    assert result.trace[0, -5:].mean() > result.trace[0, :5].mean()


def test_a_neuron_is_drawn_where_it_looks() -> None:
    model = convolutional()
    settings = settings_for(model, "conv2", steps=20, size=model.input_size)
    settings = replace(settings, roughness_weight=0.0, transforms=Transforms())
    result = featviz.maximize(model, "conv2", units=["3@0,0"], settings=settings)
    change = (result.images[0] - 0.5).abs().amax(0)
    assert result.images.shape[-2:] == model.input_size
    field = model.layer("conv2").receptive_field
    assert field is not None
    seen = field.size[0]
    assert change[:seen, :seen].mean() > 2 * change[seen + 4 :, seen + 4 :].mean()


def test_classes_are_named_and_positions_need_maps() -> None:
    model = convolutional()
    with pytest.raises(featviz.UserError, match="position"):
        featviz.maximize(model, "logits", units=["1@0,0"], **QUICK)
    with pytest.raises(featviz.UserError, match="of conv2 or to none"):
        featviz.maximize(model, "conv2", units=["1", "1@0,0"], **QUICK)


# Batches, seeds, bits


@pytest.mark.numeric
@pytest.mark.parametrize("layer", ["conv1", "conv2", "logits"])
def test_pictures_do_not_depend_on_their_batch(layer: str) -> None:
    """Over the first steps; in float64 the loop's own tests have it to 1e-9."""
    model = convolutional()

    def trace(units: list[int], **options: Any) -> dict[int, torch.Tensor]:
        result = featviz.maximize(
            model, layer, units=units, steps=3, precision="float32", **options
        )
        return dict(zip(units, result.trace, strict=True))

    alone = trace([2])[2]
    for units in ([2, 0], [4, 3, 2, 1, 0], [1, 2, 3]):
        assert torch.allclose(trace(units)[2], alone, rtol=1e-4, atol=1e-5)
    for size in (1, 2, 3):
        assert torch.allclose(
            trace([0, 1, 2, 3, 4], batch_size=size)[2], alone, rtol=1e-4, atol=1e-5
        )


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    model = convolutional()
    one, two = (featviz.maximize(model, "conv2", units=[1], **QUICK) for _ in range(2))
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.trace, two.trace)
    other = featviz.maximize(model, "conv2", units=[1], seed=1, **QUICK)
    assert not torch.equal(one.images, other.images)


def test_the_global_random_state_is_untouched() -> None:
    model = convolutional()
    state = torch.get_rng_state()
    featviz.maximize(model, "conv2", units=[1], **QUICK)
    assert torch.equal(state, torch.get_rng_state())


# Dead, broken, in place


def test_a_dead_unit_is_named() -> None:
    model = convolutional()
    with torch.no_grad():
        part(model, 2).weight[4] = 0
    result = featviz.maximize(model, "conv2", units=[3, 4, 5], **QUICK)
    assert result.alive.tolist() == [True, False, True]
    assert len(result.warnings) == 1
    assert result.warnings[0].startswith("no gradient reaches conv2:4: dead")


def test_a_unit_blocked_by_its_relu_is_drawn_all_the_same() -> None:
    """Far below zero a ReLU gives no gradient; what goes into it does."""
    model = convolutional()
    with torch.no_grad():
        part(model, 2).bias[4] = -50
    result = featviz.maximize(model, "relu2", units=[4], **QUICK)
    assert result.alive.all()
    assert float(result.scores[0]) == 0  # what the net itself reads
    assert any(text.startswith("inactive: relu2:4") for text in result.warnings)
    twin = featviz.maximize(model, "conv2", units=[4], objective="channel", **QUICK)
    before = featviz.activations(model, result.images, ["conv2"])["conv2"][0, 4].mean()
    assert torch.isclose(before, twin.scores[0], atol=5)


def test_in_place_relus_do_not_reach_what_is_read() -> None:
    plain = featviz.maximize(convolutional(), "conv2", units="all", **QUICK)
    inplace = featviz.maximize(convolutional(inplace=True), "conv2", units="all", **QUICK)
    assert torch.equal(plain.images, inplace.images)
    assert torch.equal(plain.scores, inplace.scores)
    before = featviz.maximize(convolutional(), "relu2", units=[0, 1], **QUICK)
    before_inplace = featviz.maximize(convolutional(inplace=True), "relu2", units=[0, 1], **QUICK)
    assert torch.equal(before.scores, before_inplace.scores)


class Explodes(nn.Module):
    """Gives no numbers for pictures brighter than gray at their first pixel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x.abs().amax((1, 2, 3), keepdim=True) > 0.5, torch.nan, 1.0) * x


def test_a_score_that_is_no_number_is_named_with_its_step() -> None:
    model = small_model(Explodes(), nn.Conv2d(3, 2, 3), aliases={"conv1": "1"}, headless=True)
    result = featviz.maximize(model, "conv1", units=[0], steps=40, precision="float32")
    assert not result.alive.any()
    assert "was no number from step" in result.warnings[0]
    assert result.images.isfinite().all()


# Manners


def test_the_model_is_left_as_it_was_also_after_an_error() -> None:
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.requires_grad:
                raise RuntimeError("inside the model")
            return x

    model = small_model(nn.Conv2d(3, 4, 3), nn.ReLU(), Fails(), nn.Conv2d(4, 4, 3), headless=True)
    part(model, 0).train()
    part(model, 0).weight.requires_grad_(True)

    def state() -> list[object]:
        modules = list(model.modules())
        return [
            [m.training for m in modules],
            [p.requires_grad for p in model.parameters()],
            [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
            [p.grad for p in model.parameters()],
            [p.dtype for p in model.parameters()],
        ]

    before = state()
    with pytest.raises(RuntimeError, match="inside the model"):
        featviz.maximize(model, "3", units=[0], **QUICK)
    assert state() == before
    for precision in ("float32", "bfloat16"):
        featviz.maximize(model, "1", units=[0], steps=2, precision=precision)
        assert state() == before


def test_progress_counts_up_to_its_total() -> None:
    seen: list[tuple[int, int]] = []
    featviz.maximize(
        convolutional(),
        "conv2",
        units=[0, 1, 2],
        batch_size=2,
        steps=3,
        progress=lambda done, total, text: seen.append((done, total)),
    )
    assert seen[-1] == (9, 9)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_ctrl_c_keeps_what_is_finished() -> None:
    def interrupt(done: int, total: int, text: str) -> None:
        if done >= 9:
            raise KeyboardInterrupt

    model = convolutional()
    with pytest.raises(Stopped) as stopped:
        featviz.maximize(model, "conv2", units="all", batch_size=2, steps=3, progress=interrupt)
    result = stopped.value.result
    assert result is not None
    assert result.names == ("conv2:0", "conv2:1")
    assert "6 of 8 pictures not made" in result.warnings[-1]
    whole = featviz.maximize(model, "conv2", units=[0, 1], steps=3)
    assert torch.equal(result.images, whole.images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "middle"}, "take auto, center or channel"),
        ({"precision": "fp8"}, "precision is 'fp8'; it must be one of auto, float32, bfloat16"),
        ({"steps": 0}, "steps is 0"),
        ({"size": 4}, "size is 4; it must be a whole number, 8 to 4,096"),
        ({"units": "99"}, "units 0 to 7"),
        ({"restarts": 0}, "restarts is 0"),
        ({"preset": "lucidd"}, "did you mean lucid"),
        ({"engine": "spark"}, "engine is 'spark'"),
        ({"unitz": [1]}, "no option 'unitz'; did you mean units"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"units": [0], "steps": 2, **change}
    with pytest.raises(featviz.UserError, match=message):
        featviz.maximize(convolutional(), "conv2", **options)


# Directions


def test_the_direction_of_one_channel_is_that_channel() -> None:
    model = convolutional()
    aims = torch.eye(8)[[2, 5]]
    made = featviz.maximize_directions(model, "conv2", aims, power=0.0, steps=20)
    units = featviz.maximize(model, "conv2", units=[2, 5], objective="channel", steps=20)
    # The same score from another start.
    assert torch.allclose(made.scores, units.scores, rtol=0.2)


@pytest.mark.numeric
def test_a_direction_does_not_depend_on_its_row_or_batch() -> None:
    model = convolutional()
    aims = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    together = featviz.maximize_directions(model, "conv2", aims, steps=4)
    alone = featviz.maximize_directions(model, "conv2", aims[2:], steps=4)
    assert torch.allclose(together.trace[2], alone.trace[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("aims", "message"),
    [
        (torch.ones(2, 7), r"give \(N, 8\)"),
        (torch.zeros(1, 8), "zero or not finite"),
        (torch.full((1, 8), torch.nan), "zero or not finite"),
    ],
)
def test_impossible_directions_are_refused(aims: torch.Tensor, message: str) -> None:
    with pytest.raises(featviz.UserError, match=message):
        featviz.maximize_directions(convolutional(), "conv2", aims, steps=2)


# The folder


def test_the_folder_holds_all_and_reads_back(tmp_path: Path) -> None:
    model = convolutional()
    natural = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    result = featviz.maximize(model, "conv2", units=[1, 6], frames=3, pictures=natural, **QUICK)
    folder = result.save(tmp_path / "out")
    document = json.loads((folder / "result.json").read_text())
    assert document["kind"] == "maximize"
    assert document["parameters"]["units"] == ["conv2:1", "conv2:6"]
    listed = {figure["file"]: figure for figure in document["figures"]}
    assert listed["units/conv2-6.png"]["units"] == ["conv2:6"]
    assert {"sheet.png", "ascent.svg", "films/conv2-1.gif"} <= set(listed)
    for file in listed:
        assert (folder / file).stat().st_size > 0
    import numpy as np

    arrays = np.load(folder / "maximized.npz")
    assert arrays["images"] / 255 == pytest.approx(result.images.numpy())
    assert arrays["trace"].shape == (2, 6)
    lines = (folder / "scores.csv").read_text().splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("conv2:1,conv2:1,")
    assert result.frames.shape[:2] == (2, 3)
    assert "<img" in result._repr_html_()


# Other nets


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        pytest.param("vgg11", "features.3", marks=pytest.mark.long),
        ("squeezenet1_1", "features.3"),
        ("resnet18", "layer1"),
        ("resnet18", "layer1.0.relu"),
        ("resnet18", "logits"),
    ],
)
def test_other_nets_are_climbed(name: str, layer: str) -> None:
    model = featviz.load(name, device="cpu")
    size = 96 if layer == "logits" else 48
    result = featviz.maximize(model, layer, units=[0, 1], steps=4, size=size)
    assert result.alive.any()
    assert result.images.isfinite().all()
