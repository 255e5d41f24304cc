"""Inversion: what is invertible comes back, what is not stays free, numbers as counted again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import featviz
from featviz.from_picture import driver
from featviz.from_picture.inversion import invert
from featviz.from_picture.result import Inverted
from featviz.from_picture.settings import method_settings
from featviz.maximization.parametrizations import Pixels
from featviz.maximization.settings import Settings
from featviz.models.model import Model
from featviz.pictures.preprocessing import Preprocessing


def free(model: Model, steps: int, form: Pixels) -> Settings:
    """Settings without any penalty."""
    base = method_settings(
        "invert", model, "conv1", height=16, width=16, steps=steps, precision="float32"
    )
    return replace(
        base,
        parametrization=form,
        roughness_weight=0.0,
        contrast_weight=0.0,
        saturation_weight=0.0,
        coarse_to_fine=0.0,
    )


def picture(seed: int, side: int = 16) -> torch.Tensor:
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    fine = nn.functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)
    return (0.2 + 0.6 * fine[0]).clamp(0.05, 0.95)


def patchwork(rows: torch.Tensor) -> Model:
    """A model whose first layer maps each 4 x 4 patch (48 numbers) through the matrix `rows`."""
    net = nn.Sequential(
        nn.Conv2d(3, len(rows), 4, stride=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(len(rows), 5),
    )
    with torch.no_grad():
        net.get_parameter("0.weight").copy_(rows.reshape(-1, 3, 4, 4))
        net.get_parameter("4.weight").copy_(
            torch.randn(5, len(rows), generator=torch.Generator().manual_seed(2))
        )
    return Model(
        net,
        name="patchwork",
        preprocessing=Preprocessing.of(16, mean=(0.5,) * 3, std=(0.25,) * 3),
        aliases={"conv1": "0", "relu1": "1", "logits": "4"},
    )


@pytest.fixture(scope="module")
def invertible() -> Model:
    matrix = torch.randn(48, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return patchwork(torch.linalg.qr(matrix).Q.float())


def test_an_invertible_layer_gives_the_picture_back(invertible: Model) -> None:
    wanted = torch.stack([picture(0), picture(1)])
    made = invert(invertible, wanted, "conv1", settings=free(invertible, 250, Pixels(16, 16)))
    assert isinstance(made, Inverted)
    assert made.images.shape == (2, 1, 1, 3, 16, 16)
    assert (made.images[:, 0, 0] - wanted).abs().max() < 0.03
    assert made.measured["distance"].max() < 0.03


def test_what_a_layer_discards_is_free() -> None:
    """It keeps the brightness of each patch alone: that comes back, and the rest varies."""
    bright = patchwork(torch.full((1, 48), 1 / 48))
    wanted = picture(3)
    made = invert(
        bright,
        wanted,
        "conv1",
        restarts=2,
        settings=free(bright, 120, Pixels(16, 16, spread=0.5)),
    )
    one, two = made.images[0, 0]
    patches = nn.functional.avg_pool2d(torch.stack([wanted, one, two]).mean(1), 4)
    assert (patches[1:] - patches[0]).abs().max() < 0.02
    assert (one - two).square().mean().sqrt() > 0.1
    assert made.measured["distance"].max() < 0.1
    assert made.measured["pixel distance"].min() > 0.1


def test_the_numbers_are_those_of_the_saved_pictures(invertible: Model, tmp_path: Path) -> None:
    wanted = picture(0)
    made = invert(
        invertible,
        wanted,
        ["conv1", "logits"],
        steps=8,
        names=["a b.png"],
        precision="float32",
        others=torch.stack([picture(i) for i in (5, 6, 7)]),
    )
    folder = made.save(tmp_path / "out")
    assert torch.equal(featviz.read_image(folder / "pictures" / "a-b.png.png"), _rounded(wanted))
    weights, bias = (invertible.net.get_parameter(f"0.{n}").double() for n in ("weight", "bias"))

    def activation(one: torch.Tensor) -> torch.Tensor:
        patches = nn.functional.unfold((one[None].double() - 0.5) / 0.25, 4, stride=4)
        return (weights.flatten(1) @ patches[0] + bias[:, None]).flatten()

    saved = featviz.read_image(folder / "pictures" / "a-b.png-conv1.png")
    target = activation(wanted)
    far = (activation(saved) - target).norm() / target.norm()
    others = [(activation(picture(i)) - target).norm() / target.norm() for i in (5, 6, 7)]
    assert made.measured["distance"][0, 0, 0].item() == pytest.approx(far.item(), rel=1e-4)
    assert made.measured["distance of others"][0, 0, 0].item() == pytest.approx(
        torch.stack(others).median().item(), rel=1e-4
    )
    cosine = torch.cosine_similarity(activation(saved), target, dim=0).item()
    assert made.measured["cosine"][0, 0, 0].item() == pytest.approx(cosine, rel=1e-4)
    logits = invertible(saved[None])[0]
    rank = 1 + int((logits > logits[invertible(wanted[None])[0].argmax()]).sum())
    assert made.measured["class rank"][0, 0, 0] == rank
    lines = (folder / "pictures.csv").read_text().splitlines()
    assert lines[0].startswith("picture,column,restart,distance,")
    assert len(lines) == 3


def _rounded(one: torch.Tensor) -> torch.Tensor:
    return (one * 255).round() / 255


def test_a_picture_depends_on_its_own_picture_layer_restart_and_seed(mini: Model) -> None:
    """First steps agree to rounding in batches of any size; seeds and restarts differ."""
    pictures = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"steps": 3, "others": pictures[:2], "precision": "float32"}
    alone = invert(mini, pictures[1], "conv3", **options)
    among = invert(mini, pictures, ["conv2", "conv3"], restarts=2, batch_size=3, **options)
    assert torch.allclose(among.trace[1, 1, 0], alone.trace[0, 0, 0], rtol=1e-3)
    assert (among.images[1, 1, 0] - alone.images[0, 0, 0]).abs().max() < 2.5 / 255
    other = invert(mini, pictures[1], "conv3", seed=1, **options)
    for differs in (among.images[1, 1, 1], other.images[0, 0, 0]):
        assert (differs - alone.images[0, 0, 0]).abs().max() > 0.02


def test_pictures_do_not_mix_in_float64(precise: Model, given: torch.Tensor) -> None:
    options: dict[str, Any] = {"steps": 3, "others": given[:2], "precision": "float32"}
    alone = invert(precise, given[1], "conv2", **options)
    for size in (1, 2, 6):
        among = invert(precise, given, ["conv1", "conv2"], restarts=2, batch_size=size, **options)
        assert (among.images[1, 1, 0] - alone.images[0, 0, 0]).abs().max() < 1e-9
        assert torch.allclose(among.trace[1, 1, 0], alone.trace[0, 0, 0], rtol=0, atol=1e-9)


def test_a_stopped_run_keeps_finished_pictures_and_ends_with_the_same_bytes(
    invertible: Model, tmp_path: Path
) -> None:
    given = torch.stack([picture(i) for i in range(3)])
    options: dict[str, Any] = {"steps": 3, "others": given, "batch_size": 1}
    whole = invert(invertible, given, ["conv1", "logits"], **options)

    def stop(done: int, total: int, text: str) -> None:
        if done >= total // 2 + 1:
            raise KeyboardInterrupt

    options["checkpoint"] = tmp_path / "out.partial"
    with pytest.raises(KeyboardInterrupt, match=r"kept 9 of 18 steps"):
        invert(invertible, given, ["conv1", "logits"], progress=stop, **options)
    seen: list[int] = []
    again = invert(
        invertible,
        given,
        ["conv1", "logits"],
        progress=lambda done, total, text: seen.append(done),
        **options,
    )
    assert seen == sorted(seen)
    assert torch.equal(again.images, whole.images)
    assert torch.equal(again.trace, whole.trace)
    with pytest.raises(featviz.UserError, match="another command"):
        invert(invertible, given[:1], ["conv1", "logits"], **options)


@pytest.mark.slow
def test_early_layers_keep_the_picture_and_late_ones_the_class(mini: Model) -> None:
    samples = featviz.sample_pictures(1)
    rows = [samples.paths.index(name) for name in ("goldfish/00", "flower/00")]
    given = torch.stack([samples.shown(row, 64) for row in rows])
    made = invert(mini, given, ["conv1", "conv3", "fc7", "logits"], steps=160)
    distance, pixels = made.measured["distance"], made.measured["pixel distance"]
    assert distance[:, 0].max() < 0.1
    assert pixels[:, 0].max() < 0.06
    assert (distance < 0.35 * made.measured["distance of others"]).all()
    # Deeper layers keep less of the picture ...
    assert (pixels[:, 0] < pixels[:, 1]).all()
    assert (pixels[:, 1] < pixels[:, 3]).all()
    # ... and its predicted class.
    assert (made.measured["class rank"] == 1).all()
    assert made.numbers()["class kept"].value == 1.0


def test_a_model_without_a_head_has_no_ranks(mini: Model) -> None:
    trunk = Model(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
        name="trunk",
        preprocessing=12,
        headless=True,
        aliases={"conv1": "0"},
    )
    given = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0))
    made = invert(trunk, given, "conv1", steps=2, others=given[None])
    assert made.measured["class rank"].isnan().all()
    assert "class kept" not in made.numbers()


def test_the_model_and_the_random_numbers_are_found_as_they_were(invertible: Model) -> None:
    state = torch.random.get_rng_state()
    invertible.train()
    given = picture(0)
    before = given.clone()
    invert(invertible, given, "conv1", steps=2, others=given[None])
    assert invertible.net.training
    invertible.eval()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(given, before)
    assert not invertible.net.get_submodule("0")._forward_hooks
    assert not invertible.net._forward_pre_hooks


def test_a_film_begins_at_noise_and_ends_at_the_picture(invertible: Model, tmp_path: Path) -> None:
    options: dict[str, Any] = {"others": picture(1)[None], "precision": "float32"}
    made = invert(invertible, picture(0), "conv1", steps=20, frames=3, **options)
    assert made.frames.shape == (1, 1, 1, 3, 3, 16, 16)
    last = made.frames[0, 0, 0, -1].float() / 255
    assert (last - made.images[0, 0, 0]).abs().max() < 0.2
    assert (made.frames[0, 0, 0, 0].float() / 255 - 0.5).abs().max() < 0.1
    folder = made.save(tmp_path / "out")
    assert (folder / "films" / "picture-conv1.gif").read_bytes()[:6] == b"GIF89a"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": "conv9"}, "no layer 'conv9'"),
        ({"layers": ""}, "no layer was named"),
        ({"restarts": 0}, "restarts is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"names": ["a", "b"]}, "2 names for 1"),
        ({"step": 2}, "no option 'step'; did you mean steps"),
        ({"film": "avi"}, "'avi' is no kind of film"),
    ],
)
def test_mistakes_are_named(invertible: Model, options: dict[str, Any], words: str) -> None:
    with pytest.raises(featviz.UserError, match=words):
        invert(invertible, picture(0), **{"layers": "conv1", **options})


def test_pictures_must_be_pictures(invertible: Model) -> None:
    with pytest.raises(featviz.UserError, match="must lie in"):
        invert(invertible, 255 * picture(0), "conv1")
    with pytest.raises(featviz.UserError, match="shape"):
        invert(invertible, picture(0)[:1], "conv1")
    with pytest.raises(featviz.UserError, match="does not take pictures of 3 pixels"):
        invert(invertible, picture(0)[:, :3, :3], "conv1")
    with pytest.raises(featviz.UserError, match="for pictures of 8x8 pixels, and these have 16x16"):
        invert(invertible, picture(0), "conv1", settings=free(invertible, 2, Pixels(8, 8)))


def test_layers_are_chosen_where_none_is_named(mini: Model) -> None:
    every = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "logits"]
    assert driver.chosen_layers(mini, None) == every
    assert driver.chosen_layers(mini, "conv3, conv1,conv3") == ["conv3", "conv1"]
    many = Model(
        nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(15)), nn.Flatten()),
        name="many",
        preprocessing=8,
    )
    assert driver.chosen_layers(many, None) == ["0", "2", "4", "6", "8", "10", "12", "14"]
