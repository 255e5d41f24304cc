"""Any model: found out or assumed, wrapped by hand or loaded, the same numbers come out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run
from own_models import Gives, Normalized, layers
from torch import Tensor, nn

import featviz
from featviz.errors import UserError
from featviz.models.alexnet import AlexNetMini
from featviz.models.model import Model
from featviz.models.torchvision_schemas import supply_schemas
from featviz.results import read_result

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def numbers(model: Model, pictures: Tensor, layer: str) -> dict[str, Tensor]:
    """What the analyses of a model compute."""
    label = torch.zeros(len(pictures), dtype=torch.long)
    return {
        "logits": model(pictures),
        "kernels": featviz.kernel_sheet(model, layer).weights,
        "drawn": featviz.maximize(model, layer, units=[0, 1], steps=4).images,
        "vectors": featviz.embed(model, pictures, layer).matrix(),
        "attacked": featviz.pgd(model, pictures, label, eps=8 / 255, steps=3).adversarial,
        "explained": featviz.attribute(model, pictures[:1], methods=["saliency"]).maps["saliency"],
    }


def test_an_alexnet_wrapped_by_hand_gives_the_numbers_of_load(mini: Model) -> None:
    net = AlexNetMini()
    net.load_state_dict(mini.net.state_dict())
    hand = featviz.wrap(
        net,
        input_size=64,
        mean=AlexNetMini.mean,
        std=AlexNetMini.std,
        classes=mini.classes,
        aliases=AlexNetMini.aliases,
    )
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mine, theirs = (numbers(model, pictures, "conv2") for model in (hand, mini))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


class Bare(Normalized):
    """The same network under the same names, that normalizes nothing."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


def test_normalization_inside_is_found_and_equals_that_outside() -> None:
    inside = featviz.wrap(Normalized(layers()), input_size=32)
    outside = featviz.wrap(Bare(layers()), input_size=32, mean=MEAN, std=STD)
    stated = featviz.wrap(Normalized(layers()), input_size=32, mean=MEAN, std=STD)
    assert inside.preprocessing.inside
    assert (inside.preprocessing.mean, inside.preprocessing.std) == (MEAN, STD)
    assert "normalizes by itself" in " ".join(inside.notes)
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(inside(pictures), stated(pictures)), "normalized twice"
    first, second = (numbers(one, pictures, "net.2") for one in (inside, outside))
    for name in second:
        torch.testing.assert_close(first[name], second[name], atol=1e-3, rtol=1e-3)


def test_a_normalization_that_is_stated_beside_another_is_done() -> None:
    model = featviz.wrap(Normalized(layers()), input_size=32, mean=[0.0], std=[1 / 255])
    assert not model.preprocessing.inside
    pictures = torch.rand(1, 3, 32, 32)
    assert torch.equal(model.normalize(pictures), pictures / torch.tensor(1 / 255))


def test_a_gray_net_equals_its_twin_of_three_channels() -> None:
    gray, color = layers(1), layers(3)
    kernels = gray.get_parameter("0.weight").expand(-1, 3, -1, -1) / 3
    color.load_state_dict(gray.state_dict() | {"0.weight": kernels})
    one, three = (featviz.wrap(net, input_size=32) for net in (gray, color))
    assert one.preprocessing.channels == 1
    pictures = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    same = pictures.expand(-1, 3, -1, -1).contiguous()
    torch.testing.assert_close(one(pictures), three(same), atol=1e-4, rtol=1e-4)
    for layer in ("0", "2", "6"):
        left = featviz.embed(one, pictures, layer).matrix()
        torch.testing.assert_close(left, featviz.embed(three, same, layer).matrix())
    # A gray file is read as what three equal channels are.
    files = featviz.sample_pictures(1)
    read = files.read(3, one.preprocessing)
    assert read.shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("net", "size", "assumed"),
    [
        (layers, (224, 224), ("size", "resize", "mean", "std")),
        (
            lambda: nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(676, 5)
            ),
            (28, 28),
            ("resize", "mean", "std"),
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Flatten(), nn.Linear(4 * 24 * 24, 5)),
            (50, 50),
            ("size", "resize", "mean", "std"),
        ),
    ],
    ids=["any size", "one usual size", "what the layer demands"],
)
def test_the_size_is_found_or_said_to_be_assumed(
    net: Callable[[], nn.Module], size: tuple[int, int], assumed: tuple[str, ...]
) -> None:
    model = featviz.wrap(net())
    assert model.input_size == size
    assert model.preprocessing.assumed == assumed
    assert model.record()["preprocessing"]["assumed"] == list(assumed)
    assert any("is assumed: " in note for note in model.notes)


def test_several_heads_are_named_in_one_line() -> None:
    net = Gives(lambda logits, features: {"age": logits, "kind": features})
    with pytest.raises(UserError, match=r"several outputs, age \(1, 5\), kind \(1, 32\)"):
        featviz.wrap(net, input_size=32)
    assert len(featviz.wrap(net, input_size=32, output="kind").classes) == 32
    assert len(featviz.wrap(net, input_size=32, classes=list("abcde")).classes) == 5
    with pytest.raises(UserError, match="no output 'kin'; did you mean kind"):
        featviz.wrap(net, input_size=32, output="kin")


def test_each_run_of_a_module_is_a_layer() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.relu = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU()
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.relu(self.two(self.relu(self.one(x)))).mean((2, 3)))
            return out

    model = featviz.wrap(Twice(), input_size=12)
    assert list(model.layers) == ["one", "relu#1", "two", "relu", "head", "logits"]
    pictures = torch.rand(2, 3, 12, 12)
    found = featviz.activations(model, pictures, ["one", "relu#1", "two", "relu", "relu#2"])
    assert torch.equal(found["relu#1"], found["one"].relu())
    assert torch.equal(found["relu"], found["two"].relu())
    assert torch.equal(found["relu#2"], found["relu"])
    fields = [model.layer(name).receptive_field for name in ("relu#1", "relu")]
    assert [field and field.size for field in fields] == [(3, 3), (5, 5)]
    drawn = featviz.maximize(model, "relu#1", units=["1"], steps=2)
    assert drawn.names == ("relu#1:1",)
    with pytest.raises(UserError, match="no layer 'relu#3'"):
        model.layer("relu#3")


FILE = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

def fails():
    return undefined

def text():
    return "a net"

def wide(width, *rest, depth=2):
    return make()

def pair():
    return make(), {"mean": 0.5}
"""


def test_a_file_of_ones_own_in_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(FILE)
    options = ("--input-size", "24x32", "--mean", "0.5", "--std", "0.25", "--out", "k")
    code, _, err = run(capsys, "kernels", "--model", "my.py:make", *options)
    assert code == 0, err
    assert "the preprocessing of my:make is assumed: resize 24, 32 (state resize)" in err
    entry = read_result(tmp_path / "k")["model"]
    assert entry["input_size"] == [24, 32]
    assert entry["preprocessing"]["channels"] == 1
    assert entry["preprocessing"]["mean"] == [0.5]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my.py:fails", "my.py, line 8: NameError: name 'undefined' is not defined"),
        ("my.py:text", "returned a str; it must return a torch.nn.Module"),
        ("my.py:wide", "wide() needs arguments (width); name a function without any"),
        ("my.py:pair", "returned a tuple; it must return a torch.nn.Module, or what featviz.wrap("),
        ("my.py:mak", "has no function 'mak'; did you mean make?"),
        ("my.py", "my.py:FUNCTION (it has make, fails, text, wide, pair)"),
        ("my.py:", "my.py:FUNCTION (it has make, fails, text, wide, pair)"),
        ("yours.py:make", "no such file; write FILE.py:FUNCTION"),
    ],
)
def test_mistakes_in_ones_own_file_are_one_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "my.py").write_text(FILE)
    with pytest.raises(UserError) as caught:
        featviz.load(str(tmp_path / name))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


SPOKEN = """
from torch import nn
from .sides import width

print("a file that prints")

class Net(nn.Sequential):
    def __init__(self, classes=3):
        print("a class that prints")
        from wider import classes
        super().__init__(nn.Conv2d(1, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.append(nn.Linear(width, classes))

ready = Net()
"""


# Names that installed modules have, too; a folder that is a package, and one that is not.
@pytest.mark.parametrize("name", ["my.py", "numpy.py", "my.second.py"])
@pytest.mark.parametrize("package", [False, True])
def test_a_file_imports_what_lies_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, package: bool
) -> None:
    folder = tmp_path / "nets"
    folder.mkdir()
    (folder / name).write_text(SPOKEN.replace(".sides", "..sides") if package else SPOKEN)
    ((tmp_path if package else folder) / "sides.py").write_text("width = 5")
    (folder / "wider.py").write_text("classes = 4")
    if package:
        (folder / "__init__.py").touch()
        (tmp_path / "__init__.py").touch()
    path, known = list(sys.path), sys.modules.get("numpy")
    for called in ("Net", "ready"):
        model = featviz.load(f"{folder / name}:{called}", input_size=12)
        assert [layer.units for layer in model.layers.values()] == [5, 5, 5, 4, 4]
    assert sys.path == path
    assert sys.modules.get("numpy") is known
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "a file that prints" in printed.err
    sys.modules.pop("wider")


def test_load_of_a_module_names_wrap() -> None:
    with pytest.raises(UserError, match=r"featviz\.wrap"):
        featviz.load(layers())


def test_what_is_stated_replaces_a_models_own() -> None:
    model = featviz.load("alexnet", input_size=128, mean=[0.5], std=(0.5, 0.4, 0.3))
    assert model.input_size == (128, 128)
    assert model.preprocessing.resize == 146
    assert model.preprocessing.mean == (0.5, 0.5, 0.5)
    with pytest.raises(UserError, match="takes pictures of 3 channels, not 1"):
        featviz.load("alexnet", channels=1)


def test_a_huggingface_classifier_is_read_from_its_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    supply_schemas()  # transformers imports torchvision
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=32,
        patch_size=8,
        id2label={0: "cat", 1: "dog", 2: "bird"},
        label2id={"cat": 0, "dog": 1, "bird": 2},
    )
    net = transformers.ViTForImageClassification(config)
    net.save_pretrained(tmp_path)
    record = '{"do_resize": true, "size": {"height": 32, "width": 32}, "resample": 3, '
    record += '"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.5, 0.5]}'
    (tmp_path / "preprocessor_config.json").write_text(record)
    model = featviz.load(f"hf/{tmp_path}")
    assert model.classes == ("cat", "dog", "bird")
    assert model.input_size == (32, 32)
    assert model.preprocessing.mean == (0.5, 0.4, 0.3)
    assert model.preprocessing.interpolation == "bicubic"
    assert not model.preprocessing.assumed
    pictures = torch.rand(2, 3, 32, 32)
    hand = featviz.wrap(net, preprocess={"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5] * 3})
    torch.testing.assert_close(hand(pictures), model(pictures))
    assert featviz.embed(model, pictures, "vit.layernorm").dim == 8


def test_torchvisions_transforms_are_read() -> None:
    class CenterCrop:
        size = (24, 24)

    class Resize:
        size, interpolation = 32, "bicubic"

    class Normalize:
        mean, std = MEAN, STD

    class Compose:
        transforms: Any = (Resize(), CenterCrop(), Normalize())

    how = featviz.wrap(layers(), preprocess=Compose()).preprocessing
    assert (how.size, how.resize, how.mean, how.std) == ((24, 24), 32, MEAN, STD)
    assert (how.interpolation, how.assumed) == ("bicubic", ())
    random = type("RandomCrop", (), {})()
    Compose.transforms = (random,)
    with pytest.raises(UserError, match="RandomCrop cannot be read; take the transforms"):
        featviz.wrap(layers(), preprocess=Compose())
