"""Any model: each kind of network runs through every analysis, or is refused in one line."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from own_models import Given, Gives, Normalized, layers
from torch import Tensor, nn

import featviz
from featviz.embedding.store import Store
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.pictures.images import write_png


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net: nn.Module = torch.ao.quantization.quantize_dynamic(
            layers().eval(), {nn.Linear}, dtype=torch.qint8
        )
    return net


def exported() -> Any:
    count = torch.export.Dim("count")
    example = (torch.rand(2, 3, 32, 32),)
    return torch.export.export(layers().eval(), example, dynamic_shapes=({0: count},))


def segmentation() -> nn.Module:
    return nn.Sequential(*list(layers())[:4], nn.Conv2d(8, 5, 1))


class Kind(NamedTuple):
    make: Callable[[], Any]
    options: dict[str, Any] = {}  # noqa: RUF012 - read only


KINDS: dict[str, Kind] = {
    "gray": Kind(lambda: layers(1)),
    "two channels": Kind(lambda: layers(2)),
    "RGBA": Kind(lambda: layers(4)),
    "five channels": Kind(lambda: layers(5)),
    "wide": Kind(layers, {"input_size": (24, 48)}),
    "tall gray": Kind(lambda: layers(1), {"input_size": (40, 24)}),
    "float16": Kind(lambda: layers().half()),
    "bfloat16": Kind(lambda: layers().bfloat16()),
    "quantized": Kind(quantized),
    "DataParallel": Kind(lambda: nn.DataParallel(layers())),
    "compiled": Kind(lambda: torch.compile(layers())),
    "TorchScript": Kind(lambda: torch.jit.script(layers())),
    "exported": Kind(exported),
    "normalizes itself": Kind(lambda: Normalized(layers())),
    "function": Kind(layers, {"preprocess": lambda x: 2 * x - 1}),
    "tuple": Kind(lambda: Gives(lambda logits, features: (logits, features[..., None]))),
    "list": Kind(lambda: Gives(lambda logits, features: [features[..., None], logits])),
    "dict": Kind(lambda: Gives(lambda a, b: {"features": b, "logits": a})),
    "dataclass": Kind(lambda: Gives(lambda a, b: Given(b, a))),
    "head by name": Kind(lambda: Gives(lambda a, b: {"b": b, "a": a}), {"output": "a"}),
    "regression": Kind(lambda: layers(classes=1)),
    "one number": Kind(lambda: Gives(lambda a, b: a[:, 0])),
    "segmentation": Kind(segmentation),
}


def model_of(kind: str) -> Model:
    made = KINDS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch, about TorchScript
        module = made.make()
    return featviz.wrap(module, **({"input_size": 32} | made.options))


class Trial(NamedTuple):
    """A model, and pictures and labels for it."""

    model: Model
    pictures: Tensor
    folder: Path

    @property
    def layer(self) -> str:
        """A convolution, or the last layer there is."""
        convolutions = [la.name for la in self.model.layers.values() if la.kind == "Conv2d"]
        return (convolutions or list(self.model.layers))[-1]

    @property
    def labels(self) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.model(self.pictures)
        return logits.argmax(1)

    def store(self) -> Store:
        return featviz.embed(self.model, self.pictures, self.layer)


def neighbors(t: Trial) -> Any:
    return featviz.find_neighbors(featviz.build_index(t.store()), [0, 1], k=2)


def evaluate(t: Trial) -> Any:
    for row, label in enumerate(t.labels.tolist()):
        file = t.folder / "data" / t.model.class_names[label] / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_png(t.pictures[row], file)
    return featviz.evaluate(t.model, t.folder / "data")


def atlas(t: Trial) -> Any:
    return featviz.build_atlas(t.model, t.store(), sides=[2], icons="sample")


ANALYSES: dict[str, Callable[[Trial], Any]] = {
    "layers": lambda t: featviz.summarize(t.model),
    "kernels": lambda t: featviz.kernel_sheet(t.model),
    "maps": lambda t: featviz.activation_maps(t.model, t.pictures[0], t.layer),
    "patch": lambda t: featviz.patch_times_kernel(t.model, t.pictures[0], f"{t.layer}:0"),
    "top patches": lambda t: featviz.top_patches(
        t.model, featviz.as_pictures(t.pictures), t.layer, units=[0]
    ),
    "maximize": lambda t: featviz.maximize(t.model, t.layer, units=[0, 1], steps=4),
    "invert": lambda t: featviz.invert(t.model, t.pictures[:1], [t.layer], steps=3),
    "deepdream": lambda t: featviz.deepdream(t.model, t.pictures[:1], [t.layer], steps=2),
    "embed": lambda t: t.store(),
    "neighbors": neighbors,
    "atlas": atlas,
    "attribute": lambda t: featviz.attribute(t.model, t.pictures[:2], steps=4),
    "attack": lambda t: featviz.attack(t.model, t.pictures[:4], steps=2),
    "square": lambda t: featviz.attack(t.model, t.pictures[:4], method="square", steps=5),
    "audit": lambda t: featviz.audit(t.model, t.pictures, t.labels, steps=10, queries=0, parts=()),
    "evaluate": evaluate,
    "corrupt": lambda t: featviz.corruption_table(
        t.model, t.pictures, t.labels, names=["contrast"], severities=[1]
    ),
}
UNREADABLE = {
    "kernels": "has no convolution",
    "maps": "has no map of positions",
    "patch": "not a convolution",
    "attribute": "which Grad-CAM needs",
}


def trial(kind: str, folder: Path) -> Trial:
    model = model_of(kind)
    height, width = model.input_size
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(6, model.preprocessing.channels, height, width, generator=generator)
    return Trial(model, pictures, folder)


# What a kind of model cannot do, and the beginning of the one line that says so.
REFUSED: dict[tuple[str, str], str] = {
    **{(kind, "corrupt"): "a JPEG has 1 or 3 channels" for kind in ("RGBA", "five channels")},
    ("five channels", "evaluate"): "the model takes pictures of 5 channels, and files",
    ("five channels", "invert"): "the model takes pictures of 5 channels, and files",
    **{
        ("quantized", analysis): "no gradient of logits reaches"
        for analysis in ("attribute", "attack", "audit", "atlas")
    },
    **{
        ("segmentation", analysis): "Sequential gives (5, 16, 16)"
        for analysis in ("attribute", "attack", "square", "audit", "corrupt", "evaluate")
    },
    **{
        (kind, analysis): message
        for kind in ("TorchScript", "exported")
        for analysis, message in UNREADABLE.items()
    },
}


# Kinds that differ little from others: what reads layers, outputs and gradients.
ALIKE = (
    *("DataParallel", "compiled", "function", "tuple", "list", "dict", "dataclass"),
    *("head by name", "normalizes itself", "bfloat16", "two channels", "tall gray"),
    *("exported", "regression", "one number"),
)
FEW = ("maximize", "embed", "attack")
# What takes long, and reads the layers and pictures that others read.
LONG = {"atlas": ("wide", "TorchScript", "quantized"), "audit": ("gray", "wide", "quantized")}
PAIRS = [
    (kind, one)
    for kind in KINDS
    for one in (FEW if kind in ALIKE else ANALYSES)
    if kind in LONG.get(one, KINDS)
]


@pytest.mark.long
@pytest.mark.parametrize(("kind", "analysis"), PAIRS)
def test_every_kind_of_model_runs_or_is_refused_in_one_line(
    kind: str, analysis: str, tmp_path: Path
) -> None:
    made, message = trial(kind, tmp_path), REFUSED.get((kind, analysis))
    if message is None:
        ANALYSES[analysis](made).save(tmp_path / "result")
        return
    with pytest.raises(UserError) as caught:
        ANALYSES[analysis](made)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
