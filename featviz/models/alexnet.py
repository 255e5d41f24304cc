"""Three AlexNets as plain modules: normalized pictures in, logits out.

    AlexNet       torchvision's form: Krizhevsky, "One weird trick for parallelizing convolutional
                  neural networks", 2014 (arXiv:1404.5997); its names and shapes
    AlexNet2012   the paper's: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep
                  Convolutional Neural Networks", 2012, as Caffe's bvlc_alexnet computes it
    AlexNetMini   the same plan for 64 pixels and 200 classes; the model that comes with featviz

None of them normalizes its input (`featviz.load` adds that) and no operation is in-place, so a
value that a hook has read does not change later. Each class has `aliases`: the paper's name of a
layer to the module that computes it, in the order of the forward pass. `conv1` is the convolution's
output before its ReLU, `relu1` the output behind it.

`with_batch_norm` and `fold_batch_norm` put batch normalization behind the layers for training and
multiply it into their weights afterwards.
"""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor, nn


class _Plan(nn.Module):
    """Convolutions, an average pool and three fully connected layers."""

    features: nn.Sequential
    avgpool: nn.AdaptiveAvgPool2d
    classifier: nn.Sequential

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits (N, num_classes) of normalized pictures (N, 3, H, W)."""
        x = self.avgpool(self.features(pictures))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits


class AlexNet(_Plan):
    """torchvision's AlexNet: (N, 3, 224, 224) to (N, num_classes); 61,100,840 parameters."""

    aliases: ClassVar[dict[str, str]] = {
        "conv1": "features.0",
        "relu1": "features.1",
        "pool1": "features.2",
        "conv2": "features.3",
        "relu2": "features.4",
        "pool2": "features.5",
        "conv3": "features.6",
        "relu3": "features.7",
        "conv4": "features.8",
        "relu4": "features.9",
        "conv5": "features.10",
        "relu5": "features.11",
        "pool5": "features.12",
        "fc6": "classifier.1",
        "relu6": "classifier.2",
        "fc7": "classifier.4",
        "relu7": "classifier.5",
        "logits": "classifier.6",
    }
    mean: ClassVar[tuple[float, float, float]] = (0.485, 0.456, 0.406)
    std: ClassVar[tuple[float, float, float]] = (0.229, 0.224, 0.225)
    input_size: ClassVar[int] = 224

    def __init__(self, num_classes: int = 1000, dropout: float = 0.5):
        super().__init__()
        first = nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2)  # (N, 64, 55, 55)
        self.features = _features(first, 192, 384, 256)  # (N, 256, 6, 6)
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = _classifier(256 * 6 * 6, 4096, num_classes, dropout)


class AlexNet2012(_Plan):
    """The paper's AlexNet: (N, 3, 227, 227) to (N, num_classes); 60,965,224 parameters.

    Two groups in conv2, conv4 and conv5, local response normalization behind relu1 and relu2. The
    normalization is Caffe's: x / (1 + alpha/5 * sum of x^2 over 5 channels)^.75 with alpha 1e-4;
    the paper has k = 2 and does not divide alpha by 5.
    """

    aliases: ClassVar[dict[str, str]] = {
        "conv1": "features.0",
        "relu1": "features.1",
        "norm1": "features.2",
        "pool1": "features.3",
        "conv2": "features.4",
        "relu2": "features.5",
        "norm2": "features.6",
        "pool2": "features.7",
        "conv3": "features.8",
        "relu3": "features.9",
        "conv4": "features.10",
        "relu4": "features.11",
        "conv5": "features.12",
        "relu5": "features.13",
        "pool5": "features.14",
        "fc6": "classifier.1",
        "relu6": "classifier.2",
        "fc7": "classifier.4",
        "relu7": "classifier.5",
        "logits": "classifier.6",
    }
    # In [0, 1] and red first; Caffe itself works with 0 to 255 and blue first (see models/load.py).
    mean: ClassVar[tuple[float, float, float]] = (122.679 / 255, 116.669 / 255, 104.007 / 255)
    std: ClassVar[tuple[float, float, float]] = (1 / 255, 1 / 255, 1 / 255)
    input_size: ClassVar[int] = 227

    def __init__(self, num_classes: int = 1000, dropout: float = 0.5):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, kernel_size=11, stride=4),  # (N, 96, 55, 55)
            nn.ReLU(),
            nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
            _pool(),  # (N, 96, 27, 27)
            nn.Conv2d(96, 256, kernel_size=5, padding=2, groups=2),
            nn.ReLU(),
            nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
            _pool(),  # (N, 256, 13, 13)
            nn.Conv2d(256, 384, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 384, kernel_size=3, padding=1, groups=2),
            nn.ReLU(),
            nn.Conv2d(384, 256, kernel_size=3, padding=1, groups=2),
            nn.ReLU(),
            _pool(),  # (N, 256, 6, 6)
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = _classifier(256 * 6 * 6, 4096, num_classes, dropout)


class AlexNetMini(_Plan):
    """AlexNet's plan for small pictures: (N, 3, 64, 64) to (N, num_classes); 3.7 M parameters.

    conv1 keeps the large kernels (9x9) at stride 2; maps of 31, 15, 7 and 3 positions a side are
    halved by 3x3 pools that leave no edge over. As in torchvision's AlexNet an average pool to a
    fixed 3x3 is before the classifier: at 64 pixels it changes nothing, and with it the net can
    be trained on smaller pictures.
    """

    aliases: ClassVar[dict[str, str]] = AlexNet.aliases
    # Of the training pictures of Tiny ImageNet.
    mean: ClassVar[tuple[float, float, float]] = (0.4802, 0.4481, 0.3975)
    std: ClassVar[tuple[float, float, float]] = (0.2764, 0.2689, 0.2816)
    input_size: ClassVar[int] = 64

    def __init__(self, num_classes: int = 200, dropout: float = 0.2):
        super().__init__()
        first = nn.Conv2d(3, 64, kernel_size=9, stride=2, padding=3)  # (N, 64, 31, 31)
        self.features = _features(first, 128, 256, 256)  # (N, 256, 3, 3)
        self.avgpool = nn.AdaptiveAvgPool2d((3, 3))
        self.classifier = _classifier(256 * 3 * 3, 640, num_classes, dropout)


def _features(first: nn.Conv2d, second: int, third: int, last: int) -> nn.Sequential:
    """Convolutions of so many units: torchvision's plan, whose last two are of one width."""
    return nn.Sequential(
        first,
        nn.ReLU(),
        _pool(),
        nn.Conv2d(first.out_channels, second, kernel_size=5, padding=2),
        nn.ReLU(),
        _pool(),
        nn.Conv2d(second, third, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(third, last, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(last, last, kernel_size=3, padding=1),
        nn.ReLU(),
        _pool(),
    )


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel_size=3, stride=2)


def _classifier(inputs: int, hidden: int, num_classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )


class _Normalized(nn.Module):
    """A convolution or linear layer with batch normalization behind it."""

    def __init__(self, layer: nn.Conv2d | nn.Linear):
        super().__init__()
        self.layer = layer
        # The normalization subtracts any constant, so the layer's own bias has no effect.
        self.layer.bias = None
        outputs = layer.weight.shape[0]
        self.norm: nn.BatchNorm1d | nn.BatchNorm2d
        self.norm = (
            nn.BatchNorm2d(outputs) if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.layer(x))
        return y


def with_batch_norm(net: nn.Module) -> nn.Module:
    """The net with batch normalization behind each convolution and linear layer but the last.

    Works in place and returns the net; the paths of `aliases` still name the same places. The
    layers lose their biases (normalization has its own).
    """
    paths = [p for p, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for path in paths[:-1]:
        parent, name = _parent(net, path)
        setattr(parent, name, _Normalized(getattr(parent, name)))
    return net


def fold_batch_norm(net: nn.Module) -> nn.Module:
    """The net without the normalization of `with_batch_norm`, equal to it in eval mode.

    w' = w * gamma / sqrt(var + eps) and b' = beta - mean * gamma / sqrt(var + eps), per output.
    Works in place and returns the net; a net without such layers is left as it is.
    """
    for path in [p for p, m in net.named_modules() if isinstance(m, _Normalized)]:
        parent, name = _parent(net, path)
        setattr(parent, name, _folded(getattr(parent, name)))
    return net


def folded_weight(layer: nn.Module) -> Tensor:
    """A layer's weight after folding: (out, in, k, k) or (out, in)."""
    plain = _folded(layer) if isinstance(layer, _Normalized) else layer
    weight = plain.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


@torch.no_grad()
def _folded(normalized: _Normalized) -> nn.Conv2d | nn.Linear:
    layer, norm = normalized.layer, normalized.norm
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()  # (out,)
    shift = norm.bias.double() - norm.running_mean.double() * scale
    weight = layer.weight.double() * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    plain = copy.deepcopy(layer)
    plain.weight = nn.Parameter(weight.to(layer.weight.dtype))
    plain.bias = nn.Parameter(shift.to(layer.weight.dtype))
    return plain.train(normalized.training)


def _parent(net: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return net.get_submodule(parent), name
