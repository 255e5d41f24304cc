"""Turns and shifts, and whose adversarial pictures fool whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from attack_models import photographs, tiny_model
from flat_attacks import pgd
from scipy import ndimage
from torch import Tensor

from featviz.attacks.result import AttackResult
from featviz.attacks.spatial import STILL, motion_grid, moved, spatial
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.pictures.resampling import bilinear, magnified, pixel_grid
from featviz.robustness.transfer import SELF_CHECKS, shared_labels, shift, transfer_matrix


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return photographs(10, seed=9)


def motions(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_the_still_motion_gives_back_the_same_bits(pictures: Tensor) -> None:
    assert torch.equal(moved(pictures, motions(STILL).expand(10, 3)), pictures)
    y, x = pixel_grid(16, 16, pictures.device)
    for border in ("zeros", "edge", "reflect", "reflect101"):
        assert torch.equal(bilinear(pictures, y, x, border=border), pictures)
    assert torch.equal(magnified(pictures, 1.0), pictures)


def test_whole_pixels_and_right_angles_need_no_interpolation(pictures: Tensor) -> None:
    x = pictures[:1]
    right = moved(x, motions((0, 3, 0)))
    assert torch.equal(right[..., 3:], x[..., :-3])
    assert not right[..., :3].any()
    down = moved(x, motions((0, 0, 2)))
    assert torch.equal(down[..., 2:, :], x[..., :-2, :])
    quarter = moved(x, motions((90, 0, 0)))
    torch.testing.assert_close(quarter, x.rot90(1, (2, 3)), rtol=0, atol=1e-5)
    # First the turn, then the shift: what was turned lies two pixels lower.
    both = moved(x, motions((90, 0, 2)))
    torch.testing.assert_close(both[..., 2:, :], quarter[..., :-2, :], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "mode", [("reflect", "reflect"), ("reflect101", "mirror"), ("edge", "nearest")]
)
def test_borders_are_those_of_scipy(mode: tuple[str, str]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 1, 7, 7, generator=generator, dtype=torch.float64)
    y, z = (14 * torch.rand(9, 9, generator=generator, dtype=torch.float64) - 4 for _ in range(2))
    theirs = ndimage.map_coordinates(x[0, 0].numpy(), [y.numpy(), z.numpy()], order=1, mode=mode[1])
    torch.testing.assert_close(
        bilinear(x, y, z, border=mode[0])[0, 0], torch.from_numpy(theirs), rtol=0, atol=1e-12
    )


def test_the_grid_is_the_papers_and_begins_far_out() -> None:
    grid = motion_grid(30.0, 22.4, 31, 5)
    assert len(grid) == len(set(grid)) == 775
    assert grid[-1] == STILL
    assert abs(grid[0].degrees) == 30
    assert {m.degrees for m in grid} == {float(a) for a in range(-30, 31, 2)}
    assert {m.right for m in grid} == {-22.4, -11.2, 0.0, 11.2, 22.4}
    assert motion_grid(0.0, 0.0, 31, 5) == (STILL,)


def test_leaving_early_finds_the_same_pictures_as_trying_everything(
    model: Model, pictures: Tensor
) -> None:
    labels = model(pictures).argmax(1)
    labels[4] = (labels[4] + 1) % 5
    found = spatial(model, pictures, labels, degrees=6, shift=0.06, angles=5, shifts=3, draws=1)
    before = (found.random_predicted != labels).any(0) | (found.clean != labels)
    wrong = torch.stack(
        [model(moved(pictures, motions(m).expand(10, 3))).argmax(1) != labels for m in found.grid]
    )
    beaten = before | wrong.any(0)
    assert bool(before.any() and (beaten & ~before).any() and (~beaten).any())
    assert torch.equal(~found.fooled_by.isnan().any(1), beaten)
    assert found.worst_of_grid.hits == int((~beaten).sum())
    assert found.worst_of_grid.hits <= found.worst_of_random.hits <= found.clean_accuracy.hits
    assert found.fooled_by[4].tolist() == [0, 0, 0]
    # One clean pass, two for the one draw, and the grid up to the first success; its still
    # point, the last, is the clean picture and costs nothing.
    first = torch.where(wrong.any(0), wrong.int().argmax(0) + 1, len(found.grid) - 1)
    assert torch.equal(found.forwards, 3 + torch.where(before, 0, first))


def test_what_fooled_fools_again(model: Model, pictures: Tensor) -> None:
    labels = model(pictures).argmax(1)
    found = spatial(model, pictures, labels, degrees=30, shift=0.3, angles=5, shifts=3, draws=2)
    fooled = ~found.fooled_by.isnan().any(1)
    assert bool(fooled.any())
    answers = model(moved(pictures[fooled], found.fooled_by[fooled])).argmax(1)
    assert torch.equal(answers, found.predicted[fooled])
    assert bool((answers != labels[fooled]).all())


def test_without_turn_and_shift_the_answers_are_the_clean_ones(
    model: Model, pictures: Tensor
) -> None:
    labels = torch.arange(10) % 5
    found = spatial(model, pictures, labels, degrees=0, shift=0, draws=2)
    assert torch.equal(found.random_predicted, found.clean.expand(2, 10))
    assert torch.equal(found.padding_predicted, found.clean.expand(2, 10))
    assert found.worst_of_grid == found.clean_accuracy
    assert found.average_of_random == found.clean_accuracy.value


def test_padding_alone_is_the_unmoved_picture_under_the_black_corners(model: Model) -> None:
    # On white pictures a motion and its padding are the same thing.
    white = torch.ones(3, 3, 16, 16)
    same = spatial(model, white, model(white).argmax(1), degrees=40, shift=0.3, draws=4)
    assert torch.equal(same.random_predicted, same.padding_predicted)


def test_order_and_neighbours_do_not_matter(model: Model, pictures: Tensor) -> None:
    labels = model(pictures).argmax(1)
    arguments: dict[str, Any] = {
        "degrees": 30,
        "shift": 0.2,
        "angles": 3,
        "shifts": 3,
        "draws": 3,
        "batch_size": 4,
    }
    one = spatial(model, pictures, labels, **arguments)
    other = spatial(model, pictures.flip(0)[:6], labels.flip(0)[:6], **arguments)
    assert torch.equal(one.random_predicted.flip(1)[:, :6], other.random_predicted)
    torch.testing.assert_close(
        one.fooled_by.flip(0)[:6], other.fooled_by, rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize(
    "arguments", [{"degrees": -1}, {"degrees": math.nan}, {"shift": 2}, {"angles": 0}, {"draws": 0}]
)
def test_motions_of_no_sense_are_refused(
    model: Model, pictures: Tensor, arguments: dict[str, Any]
) -> None:
    with pytest.raises(UserError):
        spatial(model, pictures, torch.zeros(10, dtype=torch.long), **arguments)


# Transfer.


Attacked = tuple[dict[str, Model], dict[str, Tensor], dict[str, Tensor], dict[str, AttackResult]]


@pytest.fixture(scope="module")
def attacked(model: Model, pictures: Tensor) -> Attacked:
    other = tiny_model(seed=1)
    models = {"one": model, "twin": tiny_model(), "other": other}
    labels = {name: model(pictures).argmax(1) for name in models}
    found = pgd(model, pictures, labels["one"], eps=0.1, steps=20)
    assert int(found.success.sum()) > 3
    return models, dict.fromkeys(models, pictures), labels, {"one": found}


def test_a_twin_is_fooled_by_all_and_another_by_what_is_counted_again(
    attacked: Attacked, pictures: Tensor
) -> None:
    models, views, labels, found = attacked
    matrix = transfer_matrix(models, views, labels, found, batch_size=4)
    made = found["one"]
    n = int(made.success.sum())
    for judge in ("one", "twin"):
        cell = matrix.cells["one", judge]
        assert (cell.fooled.hits, cell.fooled.n) == (n, n)
    both = made.success & (models["other"](pictures).argmax(1) == labels["other"])
    answers = models["other"](made.adversarial).argmax(1)
    cell = matrix.cells["one", "other"]
    assert cell.fooled.n == int(both.sum())
    assert cell.fooled.hits == int((answers != labels["other"])[both].sum())
    assert cell.noise.hits <= cell.fooled.n
    assert matrix.cells["one", "one"].noise.hits <= n


def test_the_models_own_checks_are_counted_again(attacked: Attacked, model: Model) -> None:
    models, views, labels, found = attacked
    matrix = transfer_matrix(models, views, labels, found)
    rows = found["one"].success
    still = {check: matrix.checks["one", check] for check in SELF_CHECKS}
    assert still["again"].hits == still["again"].n == int(rows.sum())
    assert still["8 bits"].hits == int(found["one"].success_8bit.sum())
    fooled = torch.ones(int(rows.sum()), dtype=torch.bool)
    for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        answers = model(shift(found["one"].adversarial[rows], down, right)).argmax(1)
        fooled &= answers != labels["one"][rows]
    assert still["shifted by a pixel"].hits == int(fooled.sum())
    assert len(matrix.rows()) == 3 + len(SELF_CHECKS)


def test_a_pixels_shift_repeats_the_border() -> None:
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert shift(x, 1, 0)[0, 0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
    assert shift(x, 0, -1)[0, 0].tolist() == [[1, 2, 2], [4, 5, 5], [7, 8, 8]]


def test_pictures_of_classes_that_a_model_lacks_do_not_count(attacked: Attacked) -> None:
    models, views, labels, found = attacked
    fewer = labels | {"twin": torch.where(torch.arange(10) < 5, labels["twin"], -1)}
    matrix = transfer_matrix(models, views, fewer, found)
    assert matrix.cells["one", "twin"].fooled.n == int(found["one"].success[:5].sum())
    none = labels | {"other": torch.full((10,), -1)}
    assert ("one", "other") not in transfer_matrix(models, views, none, found).cells


def test_labels_are_matched_by_name(model: Model) -> None:
    found = shared_labels({"one": model}, ["kind 2", "kind 0", "zebra"])
    assert found["one"].tolist() == [2, 0, -1]


def test_a_judge_of_another_size_sees_the_pictures_resampled(
    attacked: Attacked, pictures: Tensor
) -> None:
    models, _, labels, found = attacked
    enlarged = torch.nn.functional.interpolate(
        found["one"].adversarial, (24, 24), mode="bilinear", antialias=True
    )
    seen: list[Tensor] = []

    class Wide(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            logits: Tensor = models["twin"](torch.nn.functional.interpolate(x, (16, 16)))
            return logits

    wide = Model(
        Wide(), name="wide", preprocessing=24, classes=[("", f"kind {i}") for i in range(5)]
    )
    large = torch.nn.functional.interpolate(pictures, (24, 24))
    matrix = transfer_matrix(
        {"one": models["one"], "wide": wide},
        {"one": pictures, "wide": large},
        {"one": labels["one"], "wide": wide(large).argmax(1)},
        found,
        batch_size=10,
    )
    fooling = found["one"].success
    assert matrix.cells["one", "wide"].fooled.n == int(fooling.sum())
    wanted = enlarged[fooling].clamp(0, 1)
    shown = [x[: len(wanted)] for x in seen if len(x) >= len(wanted)]
    assert any(torch.allclose(x, wanted, atol=1e-6) for x in shown)


def test_what_does_not_fit_together_is_refused(attacked: Attacked) -> None:
    models, views, labels, found = attacked
    with pytest.raises(UserError, match="differ in number"):
        transfer_matrix(models, views | {"twin": views["twin"][:3]}, labels, found)
    with pytest.raises(UserError, match="none of the models"):
        transfer_matrix(models, views, labels, {"third": found["one"]})
    with pytest.raises(UserError, match="no pictures or no labels"):
        transfer_matrix(models, {}, labels, found)
