"""Every analysis once at its smallest, by name: for laws that hold for all of them.

Each is a function of a model, pictures (4, 3, 64, 64) and a folder that does not exist.
`benchmarks/gpu.py` runs them on a card and compares what they find with the CPU's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import featviz
from featviz.atlas.layout import LayoutSettings, lay_out
from featviz.attacks.options import AttackOptions
from featviz.maximization.settings import PARAMETRIZATIONS, PRESETS
from featviz.models.alexnet import AlexNetMini
from featviz.models.model import Model
from featviz.training.data import read_examples

Analysis = Callable[[Model, Tensor, Path], Any]
FEW = AttackOptions(batch_size=3)
LAYOUT = LayoutSettings(perplexity=5, steps=(3, 5))


def _samples() -> Any:
    return featviz.sample_pictures(2)


def _labels(m: Model, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = m(x)
    return logits.argmax(1).to(x.device)


def _searched(name: str, **options: Any) -> Analysis:
    def run(m: Model, x: Tensor, _: Path) -> Any:
        return getattr(featviz, name)(m, x[:3], _labels(m, x[:3]), options=FEW, **options)

    return run


def _maximized(**options: Any) -> Analysis:
    def run(m: Model, x: Tensor, _: Path) -> Any:
        return featviz.maximize(m, "conv4", units=[0], steps=2, **options)

    return run


def _icons() -> Any:
    return featviz.IconSettings(steps=2)


def _train(m: Model, x: Tensor, folder: Path) -> Any:
    data = read_examples(_samples(), 64)
    net = AlexNetMini(len(data.classes))
    return featviz.train(
        net, data, validation=data, epochs=1, settings=featviz.TrainSettings(batch_size=16)
    )


def _found(m: Model, x: Tensor, _: Path) -> Any:
    store = featviz.embed(m, featviz.sample_pictures(4), "relu5", positions="all")
    return featviz.concept_cards(
        m, featviz.find_concepts(store, count=4), _samples(), patches=2,
        class_pictures=1, designs=4, steps=2,
    )  # fmt: skip


def _aligned(m: Model, x: Tensor, _: Path) -> Any:
    stores = [featviz.embed(m, featviz.sample_pictures(4), layer) for layer in ("relu7", "conv5")]
    return featviz.align_maps(*stores, layout=LAYOUT)


def _layout(m: Model, x: Tensor, _: Path) -> Any:
    rows = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    return lay_out(rows.to(x.device), LAYOUT).xy


def _neighbors(m: Model, x: Tensor, _: Path) -> Any:
    return featviz.find_neighbors(
        featviz.embed(m, featviz.sample_pictures(4)), [0, 3], k=3, model=m
    )


def _atlas(m: Model, x: Tensor, _: Path) -> Any:
    return featviz.build_atlas(
        m, featviz.embed(m, _samples()), icons="both", icon_side=2, icon=_icons(), layout=LAYOUT
    )


def _classes(m: Model, x: Tensor, _: Path) -> Any:
    store = featviz.embed(m, featviz.sample_pictures(4), "conv5", position="random")
    return featviz.build_class_atlas(m, store, 0, side=2, icon=_icons(), layout=LAYOUT)


ANALYSES: dict[str, Analysis] = {
    "activations": lambda m, x, _: featviz.activations(m, x, ["conv5", "relu7"]),
    "activation_maps": lambda m, x, _: featviz.activation_maps(m, x[0], "conv3", count=3),
    "attack": lambda m, x, _: featviz.attack(m, x[:2], steps=2),
    "attribute": lambda m, x, _: featviz.attribute(m, x[:1], steps=2, window=0.5, stride=0.5),
    "embed": lambda m, x, _: featviz.embed(m, x),
    "maximize": lambda m, x, _: featviz.maximize(m, "conv4", units=[0, 1], steps=3),
    "neighbors": _neighbors,
    "ablate": lambda m, x, _: featviz.ablate(m, "conv5", _samples(), units=[0, 1], controls=2),
    "accentuate": lambda m, x, _: featviz.accentuate(m, x[:1], steps=2),
    "activation_grid": lambda m, x, _: featviz.activation_grid(
        m, x[0], "conv5", groups=2, cells=2, steps=2
    ),
    "align_maps": _aligned,
    "attribute_layer": lambda m, x, _: featviz.attribute_layer(m, x[:1], "conv5", steps=2),
    "audit": lambda m, x, _: featviz.audit(
        m, x[:3], _labels(m, x[:3]).tolist(), steps=10, check_steps=4, queries=4, parts=()
    ),
    "build_atlas": _atlas,
    "build_class_atlas": _classes,
    "caricature": lambda m, x, _: featviz.caricature(m, x[:1], steps=2),
    "check_attributions": lambda m, x, _: featviz.check_attributions(m, x[:1], stages=2, steps=2),
    "classify": lambda m, x, _: featviz.classify(m, x),
    "compare": lambda m, x, _: featviz.compare(
        m, featviz.load("alexnet-mini", seed=1), x[:3], _labels(m, x[:3]).tolist(), parts=("units",)
    ),
    "concepts": _found,
    "corruption_table": lambda m, x, _: featviz.corruption_table(
        m, x[:1], _labels(m, x[:1]).tolist(), severities=(3,)
    ),
    "deepdream": lambda m, x, _: featviz.deepdream(m, x[:1], ["conv3"], octaves=2, steps=2),
    "draw_facets": lambda m, x, _: featviz.draw_facets(m, "conv4", units=[1], count=2, steps=2),
    "draw_facets of pictures": lambda m, x, _: featviz.draw_facets(
        m, "conv4", units=[1], count=2, steps=2, pictures=_samples(), examples=8
    ),
    "embed_layers in bfloat16": lambda m, x, folder: featviz.embed_layers(
        m, _samples(), ["conv5", "relu7"], out=folder, precision="bfloat16"
    ),
    "ensemble": _searched("ensemble", eps=2 / 255, steps=3, targets=2, queries=4),
    "ensemble in l2": _searched("ensemble", eps=0.3, norm="l2", steps=3, targets=2, queries=4),
    "evaluate": lambda m, x, _: featviz.evaluate(m, x, _labels(m, x).tolist()),
    "evaluate in bfloat16": lambda m, x, _: featviz.evaluate(
        m, x, _labels(m, x).tolist(), precision="bfloat16"
    ),
    "expanded_weights": lambda m, x, _: featviz.expanded_weights(m, "conv4:3", count=4),
    "describe_units": lambda m, x, _: featviz.describe_units(
        m, _samples(), "conv4", units=[0, 1, 2], labels=[0, 1] * (len(_samples()) // 2),
        permutations=60, tuning=True,
    ),
    "build_explorer": lambda m, x, _: featviz.build_explorer(m, _samples(), count=8),
    "interpolate": lambda m, x, _: featviz.interpolate(m, "conv4", [0, 1], count=3, steps=2),
    "invert": lambda m, x, _: featviz.invert(m, x[:1], ["conv3", "fc6"], steps=2),
    "layout by the grid": _layout,
    "kernel_sheet": lambda m, x, _: featviz.kernel_sheet(m),
    "maximize with films and restarts": lambda m, x, _: featviz.maximize(
        m, "conv5", units=[0], steps=4, restarts=2, frames=2, pictures=_samples()
    ),
    "maximize in bfloat16": lambda m, x, _: featviz.maximize(
        m, "logits", units=[0, 1], steps=3, precision="bfloat16"
    ),
    "maximize_directions": lambda m, x, _: featviz.maximize_directions(
        m, "conv4", torch.eye(m.layer("conv4").units)[:2].to(x.device), steps=2
    ),
    "maximize_objective": lambda m, x, _: featviz.maximize_objective(
        m, "conv4:1 - 0.5*conv3:2", steps=2
    ),
    "patch": lambda m, x, _: featviz.patch(m, x, target=3, steps=2, pictures_per_step=2),
    "patch_activations": lambda m, x, _: featviz.patch_activations(
        m, x[:1], x[1:2], layers=["conv5"]
    ),
    "patch_times_kernel": lambda m, x, _: featviz.patch_times_kernel(m, x[0], "conv3:2"),
    "spatial": lambda m, x, _: featviz.spatial(
        m, x[:2], _labels(m, x[:2]), angles=3, shifts=2, draws=2
    ),
    "summarize": lambda m, x, _: featviz.summarize(m),
    "top_patches": lambda m, x, _: featviz.top_patches(m, _samples(), "conv3", units=[0, 1], k=2),
    "trace_circuit": lambda m, x, _: featviz.trace_circuit(
        m, "conv4:3", _samples(), count=6, positions=4
    ),
    "trace_circuits": lambda m, x, _: featviz.trace_circuits(
        m, ["conv4:3"], _samples(), count=6, positions=4, icons="maximize"
    ),
    "train": _train,
    "transfer_matrix": lambda m, x, _: featviz.transfer_matrix(
        {"a": m, "b": m}, dict.fromkeys("ab", x[:2]), dict.fromkeys("ab", _labels(m, x[:2])),
        {"a": x[2:4], "b": x[:2]},
    ),
    "universal": lambda m, x, _: featviz.universal(m, x, steps=2, pictures_per_step=2),
    **{f"maximize by {name}": _maximized(preset=name) for name in PRESETS},
    **{f"maximize {name}": _maximized(parametrization=name) for name in PARAMETRIZATIONS},
    **{f"{name} in {norm}": _searched(name, norm=norm, **how)
       for name, norm, how in (
           ("minimal", "l2", {"steps": 10}), ("minimal", "linf", {"steps": 10}),
           ("minimal", "l1", {"steps": 10}),
           ("minimal", "l0", {"steps": 10}), ("fmn", "l2", {"steps": 3}),
           ("fmn", "l0", {"steps": 3}), ("deepfool", "linf", {"steps": 2}),
           ("apgd", "linf", {"eps": 0.01, "steps": 3}), ("apgd", "l1", {"eps": 3, "steps": 3}),
           ("apgd_targeted", "l2", {"eps": 0.3, "steps": 3, "targets": 2}),
           ("square", "linf", {"eps": 0.01, "queries": 4}),
           ("square", "l2", {"eps": 0.3, "queries": 4}),
           ("noise", "l2", {"eps": 0.3, "draws": 2}), ("pgd", "l1", {"eps": 3, "steps": 2}),
           ("mi_fgsm", "linf", {"eps": 0.01, "steps": 2}))},
    **{name: _searched(name, steps=2) for name in ("ddn", "superdeepfool", "sigma_zero")},
}  # fmt: skip


def small_pictures() -> Tensor:
    """Smooth pictures (4, 3, 64, 64)."""
    small = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.interpolate(small, 64, mode="bicubic").clamp(0, 1)
