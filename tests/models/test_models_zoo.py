"""Nets of torchvision and timm: logits are those of the library's own builder and preprocessing.

The weights are random and calibrated, so that every answer depends on the picture.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from calibrated import calibrate, distance, pictures, torchvision_state
from safetensors.torch import save_file
from torch import Tensor, nn

import featviz
from featviz.errors import UserError
from featviz.models import zoo
from featviz.models.model import Model
from featviz.pictures.preprocessing import Preprocessing

FAMILIES = {
    "googlenet": False,
    "mnasnet0_5": False,
    "mobilenet_v3_small": False,
    "shufflenet_v2_x0_5": False,
    "squeezenet1_1": False,
    "alexnet": True,
    "convnext_tiny": True,
    "densenet121": True,
    "efficientnet_b0": True,
    "inception_v3": True,
    "maxvit_t": True,
    "mobilenet_v2": True,
    "regnet_x_400mf": True,
    "resnet18": True,
    "swin_t": True,
    "swin_v2_t": True,
    "vgg11_bn": True,
    "vit_b_32": True,
}
"""One small member of each family of torchvision, and whether it takes long."""

TIMM = {
    "resnet10t.c3_in1k": False,  # 224 pixels behind a crop of .95 of 176, bicubic
    "mobilenetv3_small_050.lamb_in1k": False,
    "test_vit": False,
    "convnext_atto.d2_in1k": True,
    "efficientnet_b0.ra_in1k": True,
    "regnetx_002.pycls_in1k": True,
    "deit_tiny_distilled_patch16_224.fb_in1k": True,
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k": True,
    "levit_128s.fb_dist_in1k": True,
    "coat_lite_tiny.in1k": True,
    "vit_medium_patch16_clip_224.tinyclip_yfcc15m": True,
}


def cases(names: dict[str, bool]) -> list[Any]:
    return [pytest.param(n, marks=pytest.mark.long if long else ()) for n, long in names.items()]


def models() -> Any:
    zoo.torchvision_names()  # torchvision must be imported through this door
    import torchvision

    return torchvision.models


def ours(model: Model, folder: Path) -> Tensor:
    read = []
    for number, picture in enumerate(pictures()):
        picture.save(folder / f"{number}.png")
        read.append(featviz.read_picture(folder / f"{number}.png", model.preprocessing))
    with torch.no_grad():
        logits: Tensor = model(torch.stack(read))
    return logits


def theirs(net: nn.Module, transform: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = net.eval()(torch.stack([transform(p) for p in pictures()]))
    return logits


@pytest.mark.parametrize("name", cases(FAMILIES))
def test_a_net_of_torchvision_answers_as_its_own_builder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = models().get_model_weights(name).DEFAULT
    state = torchvision_state(name, models())
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: copy.copy(state))
    expected = theirs(models().get_model(name, weights=weights), weights.transforms())
    torch.save({"epoch": 1, "model": state}, tmp_path / "w.pth")
    if not FAMILIES[name]:
        save_file({n: t.clone() for n, t in state.items()}, tmp_path / "w.safetensors")
    sources = (tmp_path / "w.pth", "DEFAULT", tmp_path / "w.safetensors")
    for source in sources[:1] if FAMILIES[name] else sources:
        model = featviz.load(name, weights=source, device="cpu")
        # The same pixels through the same layers.
        assert distance(ours(model, tmp_path), expected) < 1e-4, source


@pytest.mark.parametrize("name", cases(TIMM))
def test_a_net_of_timm_answers_as_its_own_builder(name: str, tmp_path: Path) -> None:
    models()
    timm = pytest.importorskip("timm")
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = timm.create_model(name, pretrained=False, num_classes=1000)
    data = resolve_model_data_config(net)
    calibrate(net, data["input_size"][1:])
    torch.save(net.state_dict(), tmp_path / "w.pth")
    model = featviz.load(f"timm/{name}", weights=tmp_path / "w.pth", device="cpu")
    expected = theirs(net, create_transform(**data, is_training=False))
    assert distance(ours(model, tmp_path), expected) < 1e-4


def test_every_set_of_torchvisions_weights_has_its_own_pixels() -> None:
    from featviz.pictures.images import fit, from_pillow

    for name in zoo.torchvision_names():
        for weights in models().get_model_weights(name):
            how = zoo.preprocessing(name, nn.Identity(), entry=weights.name)
            for picture in pictures():
                mean, std = (torch.tensor(v).view(3, 1, 1) for v in (how.mean, how.std))
                seen = (from_pillow(fit(picture, how)) - mean) / std
                assert torch.equal(seen, weights.transforms()(picture)), (name, weights.name)


def test_torchvisions_own_files_are_known_by_name_and_by_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepared(file: str) -> Preprocessing:
        (tmp_path / file).write_bytes(b"weights")
        return zoo.preprocessing("mobilenet_v2", nn.Identity(), tmp_path / file)

    assert (prepared("mine.pth").resize, prepared("mine.pth").assumed) == (232, ("resize",))
    for file, resize in (("mobilenet_v2-b0353104.pth", 256), ("mobilenet_v2-7ebf99e0.pth", 232)):
        assert (prepared(file).resize, prepared(file).assumed) == (resize, ())
    digest = SimpleNamespace(hexdigest=lambda: "b0353104" + "0" * 56)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: digest)
    assert (prepared("mine.pth").resize, prepared("mine.pth").assumed) == (256, ())


@pytest.mark.long
def test_weights_for_another_size_of_pictures_build_such_a_net(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = models().vit_b_32(image_size=96, num_classes=7)
    calibrate(net, (96, 96))
    torch.save(net.state_dict(), tmp_path / "w.pth")
    model = featviz.load("vit_b_32", weights=tmp_path / "w.pth", device="cpu")
    assert (model.input_size, len(model.classes)) == ((96, 96), 7)
    assert "resize" in model.preprocessing.assumed
    with torch.no_grad():
        x = torch.rand(2, 3, 96, 96)
        assert torch.allclose(model(x), net(model.normalize(x)), atol=1e-5)


def test_unknown_tags_and_sets_of_weights_name_the_known_ones() -> None:
    if not zoo.is_installed("timm"):
        pytest.skip("timm is not installed")
    with pytest.raises(UserError, match=r"has no tag 'a9'; did you mean resnet10t\.c3_in1k"):
        featviz.load("timm/resnet10t.a9")
    with pytest.raises(UserError, match=r"timm has no model 'resnet10'; did you mean"):
        featviz.load("timm/resnet10")
    with pytest.raises(
        UserError, match=r"no weights IMAGENET1K_V7 of resnet18; it has IMAGENET1K_V"
    ):
        featviz.load("resnet18", weights="IMAGENET1K_V7")
    with pytest.raises(UserError, match=r"give alexnet-2012 a file"):
        featviz.load("alexnet-2012", weights="DEFAULT")
