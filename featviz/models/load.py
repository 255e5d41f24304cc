"""`load(name)`: a classifier that takes pictures in [0, 1] and knows its layers and classes."""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featviz.errors import UserError, nearest
from featviz.models import weights as weight_files
from featviz.models import zoo
from featviz.models.alexnet import AlexNet, AlexNet2012, AlexNetMini
from featviz.models.layers import Layer, Unit, parse_unit, unknown_layer
from featviz.models.receptive_field import record_modules

OWN: dict[str, type[AlexNetMini | AlexNet | AlexNet2012]] = {
    "alexnet-mini": AlexNetMini,
    "alexnet": AlexNet,
    "alexnet-2012": AlexNet2012,
}


class Model(nn.Module):
    """A classifier in eval mode, its parameters' gradients off.

    Called with pictures (N, 3, H, W) in [0, 1] it gives logits (N, classes); normalisation is its
    first step. Attributes: `name`, `classes`, `synsets`, `input_size`, `resize` (shorter side
    before the centre crop), `aliases`, `layers`, `sha256`, `net` (the bare network).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        input_size: int,
        resize: int | None = None,
        mean: tuple[float, ...] = (0.0, 0.0, 0.0),
        std: tuple[float, ...] = (1.0, 1.0, 1.0),
        blue_first: bool = False,
        aliases: Mapping[str, str] | None = None,
        classes: list[tuple[str, str]] | None = None,
        headless: bool = False,
    ):
        super().__init__()
        self.net = net.eval().requires_grad_(False)
        self.name = name
        self.input_size = input_size
        self.resize = resize or input_size
        self.blue_first = blue_first
        self.headless = headless
        self.aliases = dict(aliases or {})
        if headless:
            there = dict(net.named_modules())
            self.aliases = {a: p for a, p in self.aliases.items() if p in there and a != "logits"}
        else:
            self.aliases.setdefault("logits", "")
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        count = 0 if headless else self.layers["logits"].shape[0]
        if classes is not None and len(classes) != count and not headless:
            raise UserError(
                f"{len(classes)} class names for a model of {count} classes; "
                "give --classes a file with one line for each"
            )
        named = classes or [("", f"class {i}") for i in range(count)]
        self.synsets: tuple[str, ...] = tuple(synset for synset, _ in named)
        self.classes: tuple[str, ...] = tuple(name for _, name in named)
        self.eval()

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits (N, classes) of pictures (N, 3, H, W) in [0, 1]."""
        if pictures.dim() != 4 or pictures.shape[1] != 3 or not pictures.is_floating_point():
            raise UserError(
                "a model takes float pictures of shape (N, 3, H, W), "
                f"got {tuple(pictures.shape)} of {pictures.dtype}"
            )
        logits: Tensor = self.net(self.normalize(pictures))
        if self.headless:
            raise headless_error(self.name)
        return logits

    def normalize(self, pictures: Tensor) -> Tensor:
        """What the net itself is given for pictures in [0, 1]."""
        normal = (pictures - self.mean) / self.std
        return normal.flip(1) if self.blue_first else normal

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mean.device

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """Every named place that one pass meets, in that order; aliases stand for their paths."""
        example = torch.zeros(1, 3, self.input_size, self.input_size, device=self.device)
        records = record_modules(self.net, self.normalize(example))
        names = {path: alias for alias, path in self.aliases.items()}
        table = {}
        for path, r in records.items():
            name = names.get(path, path)
            shape = (r.shape[2], *r.shape[:2]) if r.channels_last else r.shape
            table[name] = Layer(
                name,
                path,
                r.kind,
                shape,
                r.channels_last,
                r.calls,
                r.parameters,
                r.macs,
                r.receptive_field,
                r.whole,
            )
        return table

    def layer(self, name: str) -> Layer:
        """The layer of an alias or a module path. Raises UserError with the nearest names."""
        if name in self.layers:
            return self.layers[name]
        by_path = {layer.path: layer for layer in self.layers.values()}
        if name and name in by_path:
            return by_path[name]
        if name == "logits" and self.headless:
            raise headless_error(self.name)
        raise unknown_layer(self, name)

    def unit(self, text: str) -> Unit:
        """The unit that "conv5:12", "logits:tabby" or "conv5:12@6,6" names. Raises UserError."""
        return parse_unit(self, text)

    def unit_name(self, unit: Unit) -> str:
        """How people read a unit: "conv5:12", for a class its name."""
        if unit.layer == "logits" and unit.index < len(self.classes):
            return self.class_name(unit.index)
        return str(unit)

    def class_name(self, index: int) -> str:
        """The short name of a class: "goldfish" of "goldfish, Carassius auratus"."""
        return self.classes[index].partition(",")[0]

    def find_class(self, name: str) -> int | None:
        """The class of a synset or a name, or None. Exact spelling first, then without case."""
        for same in (_exact, str.casefold):
            wanted = same(name.replace("_", " "))
            for index, (synset, full) in enumerate(zip(self.synsets, self.classes, strict=True)):
                names = {synset, full, *(part.strip() for part in full.split(","))}
                if wanted in {same(n.replace("_", " ")) for n in names if n}:
                    return index
        return None

    def class_index(self, name: str | int) -> int:
        """The class of an index, a synset or a name. Raises UserError with the nearest names."""
        if isinstance(name, int) or name.isdigit():
            index = int(name)
            if index < len(self.classes):
                return index
            raise UserError(f"class {index} is out of range: {len(self.classes)} classes, from 0")
        found = self.find_class(name)
        if found is None:
            parts = {p.strip() for full in self.classes for p in full.split(",")}
            raise UserError(f"{self.name} has no class {name!r}{nearest(name, parts)}")
        return found

    @cached_property
    def sha256(self) -> str:
        """Hash of the weights as they compute (names, shapes, float32 bytes), not of a file."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.net.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """What result.json says of the model."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "input_size": self.input_size,
            "classes": len(self.classes),
        }


def _exact(text: str) -> str:
    return text


def headless_error(name: str) -> UserError:
    """The error for logits of a model that has none."""
    return UserError(
        f"the weights of {name} are a trunk without a head: it has features but no logits; "
        "use its layers, or give complete weights"
    )


def load(
    name: str = "alexnet-mini",
    *,
    weights: str | Path | None = None,
    classes: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Model:
    """A classifier ready to be looked into.

    name: "alexnet-mini" (bundled weights, 64 pixels), "alexnet" (torchvision's: Krizhevsky 2014),
        "alexnet-2012" (Krizhevsky et al. 2012: two groups, local response normalisation, Caffe's
        blue-first input), any torchvision classifier, or "timm/NAME"
    weights: a safetensors or torch file; "DEFAULT" is torchvision's own download; None is the
        bundled file for alexnet-mini and random weights (from `seed`) for all others
    classes: a text file, one class a line (`name` or `synset<TAB>name`); default: the names that
        come with the weights
    device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1"

    Raises UserError for an unknown name, weights that do not fit or an absent device.
    """
    place = resolve_device(device)
    if name not in OWN and not name.startswith("timm/"):
        names = [*OWN, *zoo.torchvision_names()]
        if name not in names:
            raise UserError(f"unknown model {name!r}{nearest(name, names)} (or timm/NAME)")
    file, class_names = _open_weights(name, weights, classes)
    # Our own nets take a file's tensors as they are, so none need be drawn at random first.
    drawn = torch.device("meta" if file is not None and name in OWN else "cpu")
    with torch.random.fork_rng(devices=[]), drawn:
        torch.manual_seed(seed)
        net, options = _build(name, file)
    if file is not None:
        source = weights or bundled(name)
        if not weight_files.fill(net, file, source, name):
            options["headless"] = True
            _cut_head(net)
    if class_names is None and file is not None and options.pop("imagenet", False):
        class_names = [("", n) for n in zoo.imagenet_names()]
    options.pop("imagenet", None)
    return Model(net, name=name, classes=class_names, **options).to(place)


def bundled(name: str) -> Path:
    """The file of weights that comes with featviz."""
    return Path(str(importlib.resources.files("featviz") / "assets" / f"{name}.safetensors"))


def _open_weights(
    name: str, weights: str | Path | None, classes: str | Path | None
) -> tuple[weight_files.WeightsFile | None, list[tuple[str, str]] | None]:
    if weights is None and name != "alexnet-mini":
        return None, weight_files.read_classes(classes, None, {})
    if str(weights) == "DEFAULT" and name != "alexnet-mini":
        tensors, categories = zoo.default_weights(name)
        given = weight_files.read_classes(classes, None, {})
        return weight_files.WeightsFile(tensors, {}), given or [("", c) for c in categories]
    path = bundled(name) if weights is None or str(weights) == "DEFAULT" else Path(weights)
    file = weight_files.read_weights(path)
    return file, weight_files.read_classes(classes, path, file.metadata)


def _build(name: str, file: weight_files.WeightsFile | None) -> tuple[nn.Module, dict[str, Any]]:
    """A net with as many classes as the weights have, and how `Model` is to treat it."""
    form = OWN.get(name)
    if form is not None:
        tensors = {} if file is None else weight_files.rename(file.tensors, _CONVOLUTIONS)
        head = tensors.get("classifier.6.weight")
        default = 200 if form is AlexNetMini else 1000
        net: nn.Module = form(num_classes=default if head is None else head.shape[0])
        resize = form.input_size if form is AlexNetMini else 256
        return net, _prepared(form.input_size, resize, form.mean, form.std) | {
            "aliases": form.aliases,
            "blue_first": form is AlexNet2012,
        }
    net, preparation = zoo.build(name)
    if file is not None:
        count = weight_files.count_classes(weight_files.rename(file.tensors, net.state_dict()), net)
        if count is not None and count != 1000:
            net, preparation = zoo.build(name, count)
        imagenet = count == 1000
    else:
        imagenet = False
    return net, _prepared(*preparation) | {"imagenet": imagenet}


# Enough for Caffe's names to be recognised.
_CONVOLUTIONS: dict[str, Tensor] = {"features.0.weight": torch.empty(0)}


def _prepared(
    input_size: int, resize: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Any]:
    return {"input_size": input_size, "resize": resize, "mean": mean, "std": std}


def _cut_head(net: nn.Module) -> None:
    """Put nothing in the head's place; `Model.forward` says in words that there are no logits."""
    for head in ("classifier", "fc", "head", "heads"):
        if hasattr(net, head):
            setattr(net, head, nn.Identity())
            return


def resolve_device(device: str) -> torch.device:
    """The torch device of "auto", "cpu" or "cuda". Raises UserError where it is absent."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise UserError(f"unknown device {device!r}; take auto, cpu or cuda") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {device}: torch sees no CUDA device here; use auto or cpu")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {device}: there are {torch.cuda.device_count()} CUDA devices")
    if place.type not in {"cpu", "cuda"}:
        raise UserError(f"--device {device} is not supported; take auto, cpu or cuda")
    return place
