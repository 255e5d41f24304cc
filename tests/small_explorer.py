"""The explorer's page of a small network that runs in plain loops (small_engine.js), for the tests
of its views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import featviz
from featviz.explorer.gathered import gather
from featviz.explorer.page import render_page

SIDE = 16
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


class SmallNet(nn.Module):
    """Two convolutions, a list of 12 numbers, five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.fc7 = nn.Linear(96, 12)
        self.relu7 = nn.ReLU()
        self.logits = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu2(self.conv2(self.pool1(self.relu1(self.conv1(x)))))
        out: Tensor = self.logits(self.relu7(self.fc7(x.flatten(1))))
        return out


def write_small_page(path: Path) -> Path:
    """The page at `path`, which is returned."""
    torch.manual_seed(0)
    net = SmallNet().eval()
    with torch.no_grad():  # answers that depend strongly on the picture
        for module in (net.conv1, net.conv2, net.fc7, net.logits):
            module.weight.mul_(2.5)
    classes = ["ant", "bee", "cat", "dog", "elk"]
    model = featviz.wrap(net, input_size=SIDE, mean=MEAN, std=STD, classes=classes)
    found = gather(model, featviz.sample_pictures(1))
    tensors: list[dict[str, Any]] = []

    def kept(values: Tensor) -> int:
        tensors.append({"shape": list(values.shape), "values": values.flatten().tolist()})
        return len(tensors) - 1

    def weights(module: nn.Conv2d | nn.Linear) -> dict[str, int]:
        assert module.bias is not None
        return {"weight": kept(module.weight.detach()), "bias": kept(module.bias.detach())}

    square = {"dilation": [1, 1], "groups": 1, "padding": [1, 1]}
    std = torch.tensor(STD)
    ops: list[dict[str, Any]] = [
        {
            "op": "affine",
            "shape": [3, 16, 16],
            "scale": kept(1 / std),
            "shift": kept(-torch.tensor(MEAN) / std),
        },
        {"op": "conv", "shape": [4, 8, 8], "stride": [2, 2], **square, **weights(net.conv1)},
        {"op": "relu", "shape": [4, 8, 8]},
        {
            "op": "maxpool",
            "shape": [4, 4, 4],
            "kernel": [2, 2],
            "stride": [2, 2],
            "padding": [0, 0],
        },
        {"op": "conv", "shape": [6, 4, 4], "stride": [1, 1], **square, **weights(net.conv2)},
        {"op": "relu", "shape": [6, 4, 4]},
        {"op": "reshape", "shape": [96]},
        {"op": "linear", "shape": [12], **weights(net.fc7)},
        {"op": "relu", "shape": [12]},
        {"op": "linear", "shape": [5], **weights(net.logits)},
    ]
    names = {2: "conv1", 3: "relu1", 4: "pool1", 5: "conv2", 6: "relu2", 8: "fc7", 9: "relu7"}
    first = ops[1]["weight"]
    moments = [torch.randn_like(net.conv1.weight), net.conv1.weight.detach()]
    document = {
        "model": {"name": "small"},
        "classes": classes,
        "input": {"channels": 3, "size": [SIDE, SIDE], "mean": MEAN, "std": STD},
        "ops": [{**op, "inputs": [i]} for i, op in enumerate(ops)],
        "layers": [{"name": n, "value": v} for v, n in (names | {10: "logits"}).items()],
        "logits": 10,
        "snapshots": [
            {"step": step, "top1": top1, "tensors": {str(first): kept(moment)}}
            for step, top1, moment in zip((0, 100), (0.2, 0.6), moments, strict=True)
        ],
        "tensors": tensors,
        "gathered": found.document,
        "pictures": found.document["pictures"],
    }
    engine = (Path(__file__).parent / "small_engine.js").read_text(encoding="utf-8")
    page = render_page(document, found.blocks, engine=engine, worker="")
    path.write_text(page, encoding="utf-8")
    return path
