"""The training loop: resumed runs, learning, teachers, data that is broken, losses that explode."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Never

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import featviz.training.data as training_data
from featviz.data.datasets import Pictures
from featviz.errors import UserError
from featviz.kernels.growth import kernel_growth
from featviz.models.alexnet import folded_weight, with_batch_norm
from featviz.pictures.preprocessing import Preprocessing
from featviz.statistics import share
from featviz.training.data import Augmentation, Examples, read_examples
from featviz.training.loop import (
    SCHEDULES,
    TrainSettings,
    cosine,
    hold_then_decay,
    linear,
    lowered,
    train,
)
from featviz.training.result import TrainResult

STILL = Augmentation(area=(1.0, 1.0), aspect=0.0, brightness=0.0, flip=False)


class Tiny(nn.Module):
    """Two layers for pictures of 12 pixels, with dropout: enough to see every kind of state."""

    input_size = 12

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU())
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Dropout(0.2), nn.Linear(54, classes)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(x))
        return logits


def tiny_net(seed: int = 0, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return with_batch_norm(Tiny(classes))


def examples(count: int = 30, classes: int = 3, size: int = 12, seed: int = 0) -> Examples:
    """Noise with a color that tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    pictures = torch.randint(0, 120, (count, 3, size, size), generator=generator)
    pictures[torch.arange(count), labels] += 100
    names = tuple(f"class{i}" for i in range(classes))
    listed = Pictures(
        Path("made"), tuple(map(str, range(count))), tuple(names[i] for i in labels.tolist())
    )
    return Examples(listed, labels, names, Preprocessing.of(size), pictures.to(torch.uint8))


def decoded(data: Examples) -> torch.Tensor:
    assert data.decoded is not None
    return data.decoded


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in net.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


SHORT: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 10,
    "lr": 0.05,
    "precision": "float32",
    "device": "cpu",
}


SETTINGS = {field.name for field in fields(TrainSettings)}


def fit(net: nn.Module, data: Path | Examples, **options: Any) -> TrainResult:
    """`train`, with the options that are settings gathered into one object."""
    settings = {name: options.pop(name) for name in SETTINGS & options.keys()}
    return train(net, data, settings=TrainSettings(**settings), **options)


class Killed(Exception):
    pass


def killed_in_epoch(epoch: int) -> Callable[[int, int, str], None]:
    """A progress callback that stops the run as a kill would, in the middle of an epoch."""

    def progress(done: int, total: int, text: str) -> None:
        if done > 3 * (epoch - 1):
            raise Killed

    return progress


@pytest.mark.numeric
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path, precision: str) -> None:
    options = SHORT | {
        "precision": precision,
        "snapshot_steps": (0, 2, 5),
        "validation": examples(9),
    }
    straight, stopped = tiny_net(), tiny_net()
    whole = fit(straight, examples(), **options)
    with pytest.raises(Killed):
        fit(stopped, examples(), checkpoint=tmp_path / "p", progress=killed_in_epoch(2), **options)
    resumed_net = tiny_net(seed=99)  # everything must come from the checkpoint
    resumed = fit(resumed_net, examples(), checkpoint=tmp_path / "p", **options)
    assert same(weights(straight), weights(resumed_net))
    assert torch.equal(whole.kernels, resumed.kernels)
    assert resumed.kernel_steps == whole.kernel_steps == (0, 2, 5, 9)
    assert [e.loss for e in resumed.epochs] == [e.loss for e in whole.epochs]
    assert [e.top1 for e in resumed.epochs] == [e.top1 for e in whole.epochs]


def test_a_checkpoint_is_replaced_not_written_over(tmp_path: Path) -> None:
    """Who has the old file open still reads the old file: the new one came by renaming."""
    fit(tiny_net(), examples(), checkpoint=tmp_path / "p", **SHORT | {"epochs": 1})
    file = tmp_path / "p" / "state.npz"
    before = file.read_bytes()
    with file.open("rb") as old:
        fit(tiny_net(), examples(), checkpoint=tmp_path / "p", **SHORT)
        assert old.read() == before
    assert file.read_bytes() != before


def test_every_epoch_has_its_own_order_and_every_picture_once() -> None:
    seen = []
    net = tiny_net()
    net.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].clone()))
    data = examples(30)
    fit(net, data, augmentation=STILL, **SHORT)
    epochs = [torch.cat(seen[i : i + 3]) for i in (0, 3, 6)]
    assert not torch.allclose(epochs[0], epochs[1])
    for shown in epochs:
        for picture in decoded(data).float() / 255:
            assert int((shown - picture).abs().amax((1, 2, 3)).lt(1e-5).sum()) == 1


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    net = tiny_net()
    fit(net, examples(), checkpoint=tmp_path / "p", **SHORT)
    after = weights(net)
    steps = []
    fit(net, examples(), checkpoint=tmp_path / "p", progress=lambda *a: steps.append(a), **SHORT)
    assert same(weights(net), after)
    assert steps == []


def test_the_seed_decides_and_the_callers_random_numbers_do_not() -> None:
    nets = [tiny_net() for _ in range(3)]
    for i, (net, seed) in enumerate(zip(nets, (0, 0, 1), strict=True)):
        torch.manual_seed(i)
        fit(net, examples(), seed=seed, **SHORT)
    assert same(weights(nets[0]), weights(nets[1]))
    assert not same(weights(nets[0]), weights(nets[2]))
    net = tiny_net()
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    fit(net, examples(), **SHORT)
    assert torch.equal(torch.rand(3), wanted)


def test_it_learns_what_can_be_learned_and_nothing_from_shuffled_labels() -> None:
    true, wrong = examples(90), examples(90)
    shuffled = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    wrong.labels = wrong.labels[shuffled]
    options = SHORT | {"epochs": 8, "validation": examples(60, seed=7), "augmentation": STILL}
    assert (fit(tiny_net(), true, **options).epochs[-1].top1 or 0.0) > 0.95
    assert (fit(tiny_net(), wrong, **options).epochs[-1].top1 or 1.0) < 0.6


@pytest.mark.numeric
def test_one_step_is_nesterovs_step_of_the_written_loss() -> None:
    """float64-free oracle: autograd on the plain formula, then v = g + wd w; w -= lr (g + m v)."""
    data = examples(8)
    net = Tiny(3).eval()
    net.classifier[2] = nn.Identity()  # no dropout, so that the step has no luck in it
    oracle = Tiny(3).eval()
    oracle.classifier[2] = nn.Identity()
    oracle.load_state_dict(net.state_dict())
    teacher = torch.randn(8, 3, generator=torch.Generator().manual_seed(3))
    fit(
        net,
        data,
        epochs=1,
        batch_size=8,
        lr=0.1,
        momentum=0.9,
        weight_decay=0.01,
        warmup=0.0,
        label_smoothing=0.2,
        teacher_logits=teacher,
        teacher_weight=0.6,
        temperature=3.0,
        augmentation=STILL,
        precision="float32",
        device="cpu",
        schedule="constant",
    )
    logits = oracle(decoded(data).float() / 255)
    target = 0.8 * nn.functional.one_hot(data.labels, 3) + 0.2 / 3
    hard = -(target * logits.log_softmax(1)).sum(1).mean()
    p, q = (teacher / 3).softmax(1), (logits / 3).softmax(1)
    soft = 9 * (p * (p.log() - q.log())).sum(1).mean()
    (0.4 * hard + 0.6 * soft).backward()
    for mine, theirs in zip(net.parameters(), oracle.parameters(), strict=True):
        decay = 0.01 if theirs.dim() > 1 else 0.0
        assert theirs.grad is not None
        g = theirs.grad + decay * theirs.detach()
        wanted = theirs.detach() - 0.1 * (g + 0.9 * g)
        torch.testing.assert_close(mine.detach(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.numeric
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_crops_are_resampled_in_the_precision_of_the_net(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    original = training_data._resampled

    def noted(*given: Any) -> torch.Tensor:
        made = original(*given)
        seen.append(made.dtype)
        return made

    monkeypatch.setattr(training_data, "_resampled", noted)
    fit(tiny_net(), examples(), **SHORT | {"epochs": 1, "precision": precision})
    assert set(seen) == {getattr(torch, precision)}


def test_several_workers_take_the_step_of_the_whole_batch() -> None:
    """Without batch normalization the parts' gradients add up to the batch's, dropout included."""
    nets = []
    for workers in (1, 3):
        torch.manual_seed(0)
        net = Tiny(3)
        before = torch.get_num_threads()
        fit(net, examples(), workers=workers, **SHORT)
        assert torch.get_num_threads() == before
        nets.append(net)
    for one, three in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-6)


def test_snapshots_are_the_kernels_before_their_steps_and_at_the_end() -> None:
    net = tiny_net()
    first = folded_weight(net.get_submodule("features.0"))
    result = fit(net, examples(), snapshot_steps=(0, 4), **SHORT)
    assert result.kernels.shape == (3, 6, 3, 3, 3)
    assert result.kernel_steps == (0, 4, 9)
    assert torch.equal(result.kernels[0], first)
    last = result.model.net.get_parameter("features.0.weight")
    torch.testing.assert_close(result.kernels[2], last)
    assert not torch.allclose(result.kernels[1], result.kernels[2])


def test_the_rate_warms_up_and_follows_the_schedule() -> None:
    result = fit(tiny_net(), examples(100), **SHORT | {"epochs": 10, "warmup": 0.2, "lr": 1e-3})
    rates = [e.lr for e in result.epochs]
    assert rates[1] == pytest.approx(1e-3)  # 20 of 100 steps
    for epoch in (5, 9):
        t = (10 * epoch - 1 - 20) / 80
        assert rates[epoch - 1] == pytest.approx(1e-3 * (1 + math.cos(math.pi * t)) / 2)
    assert hold_then_decay(0.5)(0.4) == 1
    assert hold_then_decay(0.5)(0.75) == pytest.approx(0.5)
    for schedule in SCHEDULES.values():
        assert schedule(0.0) == 1
    assert cosine(1.0) == pytest.approx(0) == linear(1.0)


def test_plateau_divides_the_rate_when_the_accuracy_stops_improving() -> None:
    assert [lowered([0.1, 0.2, 0.3][:n], 2) for n in range(4)] == [0, 0, 0, 0]
    falling = [0.3, 0.2, 0.3, 0.4, 0.4, 0.1, 0.2, 0.3, None, 0.5]
    assert [lowered(falling[:n], 2) for n in range(11)] == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    options = SHORT | {"epochs": 8, "schedule": "plateau", "patience": 2, "lr": 1e-9}
    result = fit(tiny_net(), examples(), validation=examples(9), **options)
    top1 = [e.top1 for e in result.epochs]
    rates = [1e-9 * 0.1 ** lowered(top1[:n], 2) for n in range(8)]
    assert [e.lr for e in result.epochs] == rates
    assert rates[-1] < 1e-11
    with pytest.raises(UserError, match="plateau follows the validation top-1; give validation"):
        fit(tiny_net(), examples(), **options)


def test_sizes_change_with_the_epoch() -> None:
    seen = []
    net = tiny_net()
    net.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].shape[-1]))
    fit(net, examples(10), sizes={0: 8, 2: 12}, **SHORT)
    assert seen[:3] == [8, 8, 12]  # what follows is the finished model's own look at itself


def test_other_settings_are_refused_but_more_epochs_are_not(tmp_path: Path) -> None:
    place = tmp_path / "p"
    fit(tiny_net(), examples(), checkpoint=place, **SHORT)
    for resume in (True, False):
        with pytest.raises(UserError, match=r"another command \(lr 0.05, now 0.1\)"):
            fit(tiny_net(), examples(), checkpoint=place, resume=resume, **SHORT | {"lr": 0.1})
    with pytest.raises(UserError, match=r"another command \(other .*features"):
        fit(Tiny(3), examples(), checkpoint=place, **SHORT)
    longer = fit(tiny_net(), examples(), checkpoint=place, **SHORT | {"epochs": 4})
    assert [e.epoch for e in longer.epochs] == [1, 2, 3, 4]
    done: list[int] = []
    anew = fit(
        tiny_net(),
        examples(),
        checkpoint=place,
        resume=False,
        progress=lambda n, *_: done.append(n),
        **SHORT,
    )
    assert len(anew.epochs) == 3
    assert done == [3, 6, 9]


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    """It is not replaced without a word: it may be days of training."""
    fit(tiny_net(), examples(), checkpoint=tmp_path / "p", **SHORT)
    file = tmp_path / "p" / "state.npz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"the state in .* is damaged; begin anew \(--restart\)"):
        fit(tiny_net(), examples(), checkpoint=tmp_path / "p", **SHORT)
    fit(tiny_net(), examples(), checkpoint=tmp_path / "p", resume=False, **SHORT)


def test_the_kernels_of_a_training_under_way_can_be_shown(tmp_path: Path) -> None:
    options = SHORT | {"snapshot_steps": (0, 4), "validation": examples(9)}
    result = fit(tiny_net(), examples(), checkpoint=tmp_path / "p", **options)
    growth = kernel_growth(tmp_path / "p" / "state.npz")
    assert torch.equal(growth.kernels, result.kernels)
    assert growth.steps == result.kernel_steps == (0, 4, 9)
    assert growth.top1 == result.kernel_top1


def test_the_state_is_whole_even_when_writing_the_next_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(tiny_net(), examples(), checkpoint=tmp_path / "p", **SHORT | {"epochs": 1})
    before = (tmp_path / "p" / "state.npz").read_bytes()

    def full(handle: int) -> Never:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no space left"):
        fit(tiny_net(), examples(), checkpoint=tmp_path / "p", **SHORT)
    assert not list((tmp_path / "p").glob(".*"))
    assert (tmp_path / "p" / "state.npz").read_bytes() == before


@pytest.mark.numeric
def test_two_trainings_with_one_seed_write_identical_files(tmp_path: Path) -> None:
    for run in ("a", "b"):
        fit(tiny_net(), examples(), **SHORT | {"validation": examples(9)}).save(tmp_path / run)
    names = {p.name for p in (tmp_path / "a").iterdir()}
    assert {"weights.safetensors", "kernels.safetensors", "kernels.png"} <= names
    for name in names - {"result.json", "history.csv"}:  # those hold the time
        one, other = ((tmp_path / run / name).read_bytes() for run in ("a", "b"))
        assert one == other, name


def test_validation_accuracy_has_its_interval(tmp_path: Path) -> None:
    result = fit(tiny_net(), examples(), **SHORT | {"validation": examples(9)})
    number = result.numbers()["top-1"]
    assert result.epochs[-1].top1 is not None
    assert number.value == pytest.approx(result.epochs[-1].top1)
    assert number.n == 9
    assert (number.low, number.high) == share(round(9 * result.epochs[-1].top1), 9)[2:]
    assert "top-1" not in fit(tiny_net(), examples(), **SHORT).numbers()


def test_a_loss_that_is_no_number_stops_the_run_by_name(tmp_path: Path) -> None:
    fit(tiny_net(), examples(), checkpoint=tmp_path / "p", **SHORT | {"epochs": 1})
    net = tiny_net()
    net.register_forward_hook(lambda m, i, o: o * math.nan)
    with pytest.raises(UserError, match=r"no number in epoch 2 .* still has epoch 1"):
        fit(net, examples(), checkpoint=tmp_path / "p", **SHORT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean cosine"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"teacher_logits": torch.zeros(29, 3)}, r"teacher's logits are \(29, 3\)"),
    ],
)
def test_mistakes_are_named_before_the_first_step(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(tiny_net(), examples(), **SHORT | change)


def test_a_net_for_another_number_of_classes_is_refused() -> None:
    with pytest.raises(UserError, match="3 classes, the net gives 4 logits"):
        fit(tiny_net(classes=4), examples(), **SHORT)


# Pictures on disk


def write_classes(folder: Path, size: int = 12, each: int = 10) -> None:
    data = examples(3 * each, size=size)
    for i, (picture, label) in enumerate(zip(decoded(data), data.labels.tolist(), strict=True)):
        place = folder / data.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(place / f"{i:03d}.png")


def test_pictures_are_read_in_order_with_the_labels_of_their_folders(tmp_path: Path) -> None:
    write_classes(tmp_path)
    read = read_examples(tmp_path, 12)
    assert read.classes == ("class0", "class1", "class2")
    assert read.labels.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert torch.equal(decoded(read)[10:20], decoded(examples())[1::3])


def test_streamed_pictures_train_to_the_same_bytes_as_pictures_in_memory(tmp_path: Path) -> None:
    write_classes(tmp_path)
    nets = [tiny_net(), tiny_net()]
    for net, limit in zip(nets, (1 << 30, 100), strict=True):
        read = read_examples(tmp_path, 12, memory_limit=limit)
        assert (read.decoded is None) == (limit == 100)
        fit(net, read, **SHORT)
    assert same(weights(nets[0]), weights(nets[1]))


@pytest.mark.parametrize("limit", [1 << 30, 100], ids=["memory", "streamed"])
def test_broken_pictures_are_left_out_counted_and_named(tmp_path: Path, limit: int) -> None:
    write_classes(tmp_path)
    (tmp_path / "class1" / "broken.png").write_bytes(b"no picture")
    read = read_examples(tmp_path, 12, memory_limit=limit)
    result = fit(tiny_net(), read, **SHORT | {"epochs": 4})
    assert [s.path for s in read.skipped] == ["class1/broken.png"]
    assert any("1 training picture could not be read" in w for w in result.warnings)
    assert math.isfinite(result.epochs[-1].loss)
    if limit > 100:
        assert len(read) == 30


def test_pictures_without_classes_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (12, 12)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="class"):
        read_examples(tmp_path, 12, classes=("x",))


def test_data_without_one_readable_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="no picture of"):
        read_examples(tmp_path, 12)


def test_a_result_folder_holds_weights_that_load_and_compute_the_same(tmp_path: Path) -> None:
    import featviz
    from featviz.models.alexnet import AlexNetMini
    from featviz.results import read_result

    torch.manual_seed(0)
    net = with_batch_norm(AlexNetMini(3))
    data = examples(24, size=64)
    result = fit(
        net,
        data,
        validation=examples(6, size=64, seed=1),
        epochs=1,
        batch_size=12,
        snapshot_steps=(0,),
        class_names={"class1": "green things"},
        device="cpu",
        precision="float32",
    )
    folder = result.save(tmp_path / "run")
    document = read_result(folder)
    assert document["kind"] == "train"
    assert document["numbers"]["top-1"]["value"] == result.epochs[-1].top1
    assert "schedule" in document["parameters"]
    json.dumps(document, allow_nan=False)
    loaded = featviz.load("alexnet-mini", weights=folder / "weights.safetensors", device="cpu")
    assert loaded.classes == ("class0", "green things", "class2")
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(loaded(x), result.model(x))
    normal = (x - torch.tensor(AlexNetMini.mean).view(3, 1, 1)) / torch.tensor(
        AlexNetMini.std
    ).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), net(normal), rtol=1e-4, atol=1e-4)
    kernels = np.asarray(result.kernels)
    assert kernels.shape == (2, 64, 3, 9, 9)
    assert (folder / "kernels.gif").is_file()
