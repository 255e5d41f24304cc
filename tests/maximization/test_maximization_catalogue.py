"""Any classifier can be climbed: the catalogue, with random weights, a few steps each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import featviz
from featviz.maximization.settings import settings_for
from featviz.maximization.transforms import Transforms
from featviz.models.model import Model

# Model, and a layer in its middle; beside that one its logits are climbed.
CATALOGUE = {
    "alexnet": "conv3",
    "alexnet-2012": "conv4",
    "alexnet-mini": "relu5",
    "vgg11_bn": "features.8",
    "googlenet": "inception4a",
    "inception_v3": "Mixed_5b",
    "resnet18": "layer3.0",
    "squeezenet1_1": "features.6.expand1x1",
    "mobilenet_v2": "features.7",
    "mobilenet_v3_small": "features.6",
    "efficientnet_b0": "features.4",
    "densenet121": "features.denseblock2",
    "shufflenet_v2_x0_5": "stage3",
    "regnet_y_400mf": "trunk_output.block3",
    "convnext_tiny": "features.3.1.block.3",
    "swin_t": "features.3.1",
    "vit_b_32": "encoder.layers.encoder_layer_1",
    "timm/resnet10t": "layer3",
    "timm/convnext_atto": "stages.1.blocks.0.mlp.fc1",
    "timm/vit_tiny_patch16_224": "blocks.3",
    "timm/mixer_s32_224": "blocks.2",
}
# These take 224 pixels and no other size; the others are climbed on small pictures.
FIXED = ("vit", "swin", "mixer")
# Their logits take too long for a test.
TRUNK_ONLY = ("swin_t", "vit_b_32", "vgg11_bn")
# Large ones, of families that have a smaller member above.
LONG = ("inception_v3", "convnext_tiny", "vit_b_32", "vgg11_bn")


def load(name: str) -> Model:
    """A model with random weights; a head that begins at zero gets some too."""
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = featviz.load(name, device="cpu")
        for weight in model.parameters():
            if weight.dim() == 2 and not weight.any():
                nn.init.normal_(weight, std=0.02)
    return model


def few_steps(model: Model, layer: str, **options: Any) -> None:
    """Four steps on a picture that is not moved end above their beginning, and leave no trace."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    settings = settings_for(model, layer, steps=4, precision="float32", **options)
    settings = replace(settings, transforms=Transforms())
    result = featviz.maximize(model, layer, units=[1], settings=settings)
    assert result.alive.all(), result.warnings
    assert float(result.scores[0]) > float(result.trace[0, 0])
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in state.items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(weight.grad is None for weight in model.parameters())
    assert not model.training


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.long if n in LONG else ()) for n in CATALOGUE],
)
def test_a_few_steps_on_every_kind_of_net(name: str) -> None:
    model = load(name)
    size = {} if any(part in name for part in FIXED) else {"size": 96}
    few_steps(model, CATALOGUE[name], **size)
    if name not in TRUNK_ONLY:
        few_steps(model, "logits", **size)


class Odd(nn.Module):
    """One ReLU module used twice, one in place, one functional, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 6, 5, stride=2)
        self.bend = nn.ReLU()
        self.two = nn.Conv2d(6, 6, 3)
        self.sharp = nn.ReLU(inplace=True)
        self.three = nn.Conv2d(6, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bend(self.two(self.bend(self.one(x))))
        x = F.relu(self.three(self.sharp(self.two(x))), inplace=True)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


@pytest.mark.parametrize("layer", ["one", "bend", "two", "sharp", "three", "logits"])
def test_reused_modules_and_functional_relus_are_climbed_at_their_last_run(layer: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Model(Odd().eval(), name="odd", preprocessing=32)
    few_steps(model, layer, size=32)
