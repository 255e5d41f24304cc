"""What changes inside: numbers against hand computation, exactness where a theorem gives it."""

from __future__ import annotations

import csv
import functools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attack_models import photographs, tiny_model
from flat_attacks import pgd
from torch import Tensor, nn

from featviz import results
from featviz.attacks.attack import attack
from featviz.attacks.projections import l2_distance
from featviz.data.datasets import open_pictures
from featviz.errors import UserError
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.pictures import images
from featviz.robustness.diagnosis import (
    Reference,
    activation_change,
    class_means,
    compared_layers,
    contribution_layers,
    diagnose_layers,
    equal_norm_changes,
    feature_path,
    first_flips,
    margin_change,
    nearness,
    pre_activation_layer,
    unit_contributions,
)
from featviz.robustness.diagnosis_result import diagnose
from featviz.robustness.parts import diagnose_attack

Fooled = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(5)


@pytest.fixture(scope="module")
def fooled(model: Model) -> Fooled:
    pictures = photographs(12)
    labels = model(pictures).argmax(1)
    found = pgd(model, pictures, labels, eps=16 / 255, steps=10, random_start=False, margin=0.05)
    rows = found.success.nonzero()[:, 0]
    assert len(rows) >= 8
    return pictures[rows], found.adversarial[rows], labels[rows], found.predicted[rows]


@pytest.fixture(scope="module")
def reference(model: Model, fooled: Fooled) -> Reference:
    pictures = photographs(200, seed=9)
    return Reference(pictures, model(pictures).argmax(1))


def test_noise_and_blur_are_as_long_as_the_adversarial_change_and_stay_in_the_box(
    fooled: Fooled,
) -> None:
    pictures, adversarial, *_ = fooled
    wanted = l2_distance(pictures, adversarial)
    for kind, moved in equal_norm_changes(pictures, adversarial).items():
        assert torch.allclose(l2_distance(pictures, moved), wanted, rtol=2e-3), kind
        assert float(moved.min()) >= 0
        assert float(moved.max()) <= 1
    order = torch.tensor([2, 0, 1])
    alone = equal_norm_changes(pictures[order], adversarial[order])
    assert torch.equal(alone["noise"], equal_norm_changes(pictures, adversarial)["noise"][order])


def test_a_comparison_says_what_plain_arithmetic_says(model: Model, fooled: Fooled) -> None:
    pictures, adversarial, *_ = fooled
    layers = compared_layers(model)
    found = activation_change(model, pictures, adversarial, layers, batch_size=3)
    for j, name in enumerate(layers):
        before = activations(model, pictures, [name])[name].detach().double().numpy()
        after = activations(model, adversarial, [name])[name].detach().double().numpy()
        for i in range(len(pictures)):
            h, g = before[i].ravel(), after[i].ravel()
            length = (h @ h) ** 0.5
            change = ((g - h) @ (g - h)) ** 0.5
            assert float(found.relative[i, j]) == pytest.approx(change / length, rel=1e-5)
            cosine = (h @ g) / (length * (g @ g) ** 0.5)
            assert float(found.cosine[i, j]) == pytest.approx(cosine, rel=1e-6)
            if model.layer(name).kind == "ReLU":
                assert float(found.switched[i, j]) == pytest.approx(((h > 0) != (g > 0)).mean())
            else:
                assert math.isnan(float(found.switched[i, j]))


def test_a_picture_that_does_not_change_moves_nothing(model: Model, fooled: Fooled) -> None:
    found = activation_change(model, fooled[0], fooled[0], compared_layers(model))
    assert float(found.relative.max()) == 0
    assert float(found.input_relative.max()) == 0
    assert torch.allclose(found.cosine, torch.ones_like(found.cosine))
    switched = found.switched[found.switched.isfinite()]
    assert len(switched)
    assert float(switched.max()) == 0


def test_nearness_is_one_at_the_own_mean_minus_one_at_the_false_and_zero_between() -> None:
    own, false = torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 2.0]])
    assert float(nearness(own, own, false)) == 1
    assert float(nearness(false, own, false)) == -1
    assert float(nearness((own + false) / 2, own, false)) == 0
    assert float(nearness(own + 0.25 * (false - own), own, false)) == pytest.approx(0.5)


def test_class_means_are_the_means_of_pooled_activations(
    model: Model, reference: Reference
) -> None:
    layer = compared_layers(model)[0]
    means = class_means(model, reference, [layer], batch_size=7)[layer]
    values = activations(model, reference.pictures, [layer])[layer].detach().mean((2, 3))
    for c in set(reference.labels.tolist()):
        assert torch.allclose(
            means[c].float(), values[reference.labels == c].mean(0), rtol=1e-5, atol=1e-6
        )


def test_the_flip_is_the_start_of_the_unbroken_run_to_the_end() -> None:
    layers = ["a", "b", "c", "d"]
    clean = torch.ones(4, 4)
    adversarial = torch.tensor([[1, 1, -1, -1], [-1, 1, 1, -1], [1, 1, 1, 1], [-1, -1, -1, -1.0]])
    assert first_flips(clean, adversarial, layers) == ["c", "d", None, "a"]
    clean[3, 1] = -1  # was nearer to the false class by itself
    assert first_flips(clean, adversarial, layers)[3] == "c"


def test_the_contributions_of_the_last_layer_are_exact(model: Model, fooled: Fooled) -> None:
    wanted = [p.requires_grad for p in model.parameters()]
    layer = contribution_layers(model)[-1]
    for x, x2, y, t in zip(*fooled, strict=True):
        parts, change, _ = unit_contributions(model, x, x2, int(y), int(t), layer)
        z, z2 = model(x[None]).double()[0], model(x2[None]).double()[0]
        assert change == pytest.approx(float((z2[t] - z2[y]) - (z[t] - z[y])), abs=1e-5)
        assert float(parts.sum()) == pytest.approx(change, abs=1e-5)
    assert [p.requires_grad for p in model.parameters()] == wanted


def test_each_contribution_is_weight_times_change_where_the_head_is_linear() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))
    model = Model(net, name="head", preprocessing=2)
    generator = torch.Generator().manual_seed(0)
    x, x2 = torch.rand(2, 3, 2, 2, generator=generator)
    parts, _, maps = unit_contributions(model, x, x2, 0, 2, "2")
    head = net[3].weight
    assert isinstance(head, Tensor)
    weight = head[2] - head[0]
    assert torch.allclose(parts.float(), weight * (maps["after"] - maps["before"]), atol=1e-6)
    found = margin_change(model, x, x2, 0, 2, "2", 6)
    assert sum(unit.logits for unit in found.top) == pytest.approx(found.change, abs=1e-5)
    pushes = [unit.logits * math.copysign(1, found.change) for unit in found.top]
    assert pushes == sorted(pushes, reverse=True)
    assert found.share == pytest.approx(1.0)
    assert found.named == "1"


def test_a_quadratic_net_is_explained_by_the_mean_of_both_ends() -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x

    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), Square(), nn.Linear(4, 3))
    model = Model(net, name="square", preprocessing=2)
    generator = torch.Generator().manual_seed(1)
    x, x2 = torch.rand(2, 3, 2, 2, generator=generator)
    parts, change, _ = unit_contributions(model, x, x2, 1, 0, "1")
    assert float(parts.sum()) == pytest.approx(change, abs=1e-6)


def test_a_relus_units_go_by_the_name_of_the_layer_before_it(model: Model) -> None:
    relu = next(la.name for la in model.layers.values() if la.kind == "ReLU")
    assert model.layer(pre_activation_layer(model, relu)).kind in {"BatchNorm2d", "Conv2d"}
    assert pre_activation_layer(model, "logits") == "logits"


def test_the_path_begins_at_the_picture_and_the_means_are_its_ends(
    model: Model, fooled: Fooled, reference: Reference
) -> None:
    x, x2, y, t = (part[0] for part in fooled)
    path = feature_path(model, x, x2, int(y), int(t), reference, k=3)
    assert path.predictions[0] == y
    assert path.predictions[-1] == t
    assert path.neighbors.shape == (9, 3)
    own, false = reference.labels == y, reference.labels == t
    assert torch.allclose(
        path.reference_xy[own].mean(0)[0], torch.zeros((), dtype=torch.float64), atol=1e-9
    )
    ends = path.reference_xy[false].mean(0)
    assert float(ends[0]) == pytest.approx(1, abs=1e-9)
    assert float(ends[1]) == pytest.approx(0, abs=1e-9)
    itself = Reference(
        torch.cat([reference.pictures, x[None]]), torch.cat([reference.labels, y[None]])
    )
    again = feature_path(model, x, x2, int(y), int(t), itself, k=1)
    assert int(again.neighbors[0, 0]) == len(reference.pictures)


def test_without_reference_there_are_no_means_and_no_picture_is_an_error(
    model: Model, fooled: Fooled
) -> None:
    found = diagnose_layers(model, *fooled)
    assert bool(found.clean_nearness.isnan().all())
    assert set(found.flips) == {None}
    x, x2, y, t = fooled
    with pytest.raises(UserError, match="no picture was fooled"):
        diagnose_layers(model, x[:0], x2[:0], y[:0], t[:0])


def test_everything_is_drawn_and_the_tables_agree_with_the_result(
    model: Model, fooled: Fooled, reference: Reference, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    names = [f"p{i}" for i in range(len(fooled[0]))]
    found = diagnose(
        model,
        *fooled,
        names=names,
        size="L-infinity 16/255",
        reference=reference,
        detailed=1,
        units=2,
        image_steps=0,
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    folder = results.Folder(tmp_path)
    folder.fill(found)
    assert {f["file"] for f in folder.figures} == {
        "layers.svg",
        "classes.svg",
        "01-picture.svg",
        "01-units.svg",
        "01-path.svg",
    }
    assert all(f["alt"] and f["caption"] for f in folder.figures)
    with (tmp_path / "units.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    last = [row for row in rows if row["layer"] == contribution_layers(model)[-1]]
    assert float(last[0]["explained"]) == pytest.approx(float(last[0]["change"]), abs=1e-5)
    units = next(f["units"] for f in folder.figures if f["file"] == "01-units.svg")
    assert [row["unit"] for row in rows] == units
    numbers = found.numbers()
    assert numbers["margin explained"].value == pytest.approx(1, abs=1e-4)
    assert float(numbers["moves the logits"].value or 0) > 1


def test_an_attack_shows_what_changes_inside_the_pictures_it_fooled(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    layers_only = functools.partial(diagnose, detailed=0)
    monkeypatch.setattr("featviz.robustness.parts.diagnose", layers_only)
    pictures = photographs(3)
    for i, picture in enumerate(pictures):
        folder = tmp_path / "data" / f"kind {int(model(picture[None]).argmax())}"
        folder.mkdir(parents=True, exist_ok=True)
        images.write_png(picture, folder / f"{i}.png")
    result = attack(model, pictures, eps=16 / 255, steps=10)
    rows = result.success.nonzero()[:, 0]
    assert len(rows)
    found = diagnose_attack(model, result, open_pictures(tmp_path / "data"))
    assert found is not None
    assert list(found.names) == [result.names[i] for i in rows.tolist()]
    assert torch.equal(found.predicted, result.predicted[rows])
    folder = replace(result, diagnosis=found).save(tmp_path / "attack")
    files = {f["file"] for f in results.read_result(folder)["figures"]}
    assert "diagnosis/layers.svg" in files
    still = attack(model, pictures, eps=0.0, steps=1)
    assert diagnose_attack(model, still, None) is None


def test_pictures_of_classes_that_the_reference_lacks_are_not_placed(
    model: Model, fooled: Fooled, reference: Reference
) -> None:
    _, _, labels, predicted = fooled
    gone = int(predicted[0])
    rest = reference.labels != gone
    partial = Reference(reference.pictures[rest], reference.labels[rest])
    found = diagnose_layers(model, *fooled, partial)
    shown = set(partial.labels.tolist())
    pairs = zip(labels.tolist(), predicted.tolist(), strict=True)
    unplaced = torch.tensor([not {a, b} <= shown for a, b in pairs])
    assert bool(unplaced[0])
    assert torch.equal(found.clean_nearness.isnan().all(1), unplaced)
    assert torch.equal(found.clean_nearness.isfinite().all(1), ~unplaced)
    assert all(flip is None for flip, lost in zip(found.flips, unplaced, strict=True) if lost)
    whole = diagnose_layers(model, *fooled, reference)
    # Without some pictures the batches of the reference differ, and so may the last bits.
    kept = whole.clean_nearness[~unplaced]
    assert torch.allclose(found.clean_nearness[~unplaced], kept, rtol=1e-5, atol=1e-7)
