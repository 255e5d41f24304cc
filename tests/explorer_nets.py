"""Small networks with the structures of the known families, for the laws of the explorer."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import featviz
from featviz.models.model import Model

SIDE = 37
"""odd, so that windows do not divide it"""


def _norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def vgg() -> nn.Module:
    """Pairs of 3 x 3 kernels, pooling, two lists of numbers."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 12), (12, 20)):
        conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        layers += [conv, nn.ReLU(True), nn.MaxPool2d(2, 2)]
    head = [nn.Flatten(), nn.Linear(320, 33), nn.ReLU(True), nn.Dropout(), nn.Linear(33, 7)]
    return nn.Sequential(*layers, *head)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.down = None if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.down is None else self.down(x)
        found: Tensor = self.relu(out)
        return found


def resnet() -> nn.Module:
    """Residual sums, batch norm, a mean over positions."""
    start = [nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(True)]
    blocks = [nn.MaxPool2d(3, 2, 1), _Block(8, 8, 1), _Block(8, 16, 2)]
    return nn.Sequential(*start, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 7))


class _Branches(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one = _norm(inputs, 5, 1)
        self.three = nn.Sequential(_norm(inputs, 4, 1), _norm(4, 6, 3))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), _norm(inputs, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.pool(x)], 1)


def googlenet() -> nn.Module:
    """Concatenated branches, pools that round up."""
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    head = [nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(84, 7)]
    return nn.Sequential(_norm(3, 8, 5, stride=2), pool, _Branches(8), _Branches(14), *head)


class _Fire(nn.Module):
    def __init__(self, inputs: int, squeezed: int, outputs: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.one = nn.Conv2d(squeezed, outputs, 1)
        self.three = nn.Conv2d(squeezed, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], dim=1)


def squeezenet() -> nn.Module:
    """Its last layer is a convolution, then the mean of each map."""
    start = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(True), nn.MaxPool2d(3, 2, ceil_mode=True)]
    head = [nn.Conv2d(12, 7, 1), nn.ReLU(True), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten()]
    return nn.Sequential(*start, _Fire(8, 4, 6), _Fire(12, 4, 6), *head)


class _Gate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.less, self.more = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.hardsigmoid(self.more(F.relu(self.less(F.adaptive_avg_pool2d(x, 1)))))
        return gate * x


def mobilenet() -> nn.Module:
    """Kernels of one channel each, gates, hardswish, ReLU6."""
    deep = nn.Conv2d(10, 10, 5, 2, 2, groups=10, bias=False)
    body = [nn.Conv2d(3, 10, 3, 2, 1), nn.Hardswish(), deep, nn.BatchNorm2d(10), nn.ReLU6()]
    head = [nn.Conv2d(10, 12, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, _Gate(10), *head, nn.Linear(12, 7))


class Functional(nn.Module):
    """Everything but the weights in `forward`; dilation, groups, padding of one side."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, (5, 3), stride=(2, 1), padding=(1, 2))
        self.conv2 = nn.Conv2d(6, 9, 3, dilation=2, groups=3)
        self.fc = nn.Linear(36, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.local_response_norm(torch.relu(self.conv1(x)), 4, alpha=2.0, beta=0.6)
        x = F.avg_pool2d(x, 3, 2, padding=1, ceil_mode=True, count_include_pad=False)
        x = F.leaky_relu(self.conv2(F.pad(x, (1, 0, 2, 0))), 0.2)
        x = F.max_pool2d(x, 2) * 0.5 + 0.25
        out: Tensor = self.fc(torch.tanh(F.adaptive_avg_pool2d(x, 2)).reshape(x.shape[0], -1))
        return out


def gray() -> nn.Module:
    """Pictures of one channel, smooth activations, probabilities."""
    body = [nn.Conv2d(1, 6, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3), nn.Sigmoid()]
    head = [nn.AvgPool2d(3, 2, 1), nn.Flatten(), nn.Linear(512, 7), nn.Softmax(1)]
    return nn.Sequential(*body, *head)


NETS: dict[str, Callable[[], nn.Module]] = {
    "vgg": vgg,
    "resnet": resnet,
    "googlenet": googlenet,
    "squeezenet": squeezenet,
    "mobilenet": mobilenet,
    "functional": Functional,
    "gray": gray,
}


def small_net(name: str) -> Model:
    """One of `NETS`, random, with batch norms that fit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = NETS[name]()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = torch.rand(module.num_features) - 0.5
                module.running_var = 0.3 + torch.rand(module.num_features)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    channels = 1 if name == "gray" else 3
    return featviz.wrap(
        net.eval(), input_size=SIDE, mean=[0.4] * channels, std=[0.3] * channels, name=name
    )
