"""`load(name)`: a bundled, torchvision or timm classifier with its weights, as a `Model`."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featviz.errors import UserError, nearest, public
from featviz.models import weights as weight_files
from featviz.models import zoo
from featviz.models.alexnet import AlexNet, AlexNet2012, AlexNetMini
from featviz.models.model import Model
from featviz.preprocessing import Preprocessing
from featviz.types import Seed

BUILTIN: dict[str, type[AlexNetMini | AlexNet | AlexNet2012]] = {
    "alexnet-mini": AlexNetMini,
    "alexnet": AlexNet,
    "alexnet-2012": AlexNet2012,
}


@public
def load(
    name: str = "alexnet-mini",
    *,
    weights: str | Path | None = None,
    classes: str | Path | None = None,
    device: str = "auto",
    seed: Seed = 0,
) -> Model:
    """A classifier by name, with its weights.

    Args:
        name: "alexnet-mini" (bundled weights, 64 pixels), "alexnet" (torchvision's: Krizhevsky
            2014), "alexnet-2012" (Krizhevsky et al. 2012: two groups, local response
            normalization, Caffe's blue-first input), any torchvision classifier, or "timm/NAME".
        weights: a safetensors or torch file; "DEFAULT" is torchvision's own download; None is the
            bundled file for alexnet-mini and random weights (from `seed`) for all others.
        classes: a text file, one class a line (`name` or `synset<TAB>name`); default: the names
            that come with the weights.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1".
        seed: of random weights.

    Returns:
        The model, in eval mode and with `requires_grad` off. For your own module take
        `featviz.wrap`.

    Raises:
        UserError: for an unknown name, weights that do not fit or an absent device.
    """
    place = resolve_device(device)
    if name not in BUILTIN and not name.startswith("timm/"):
        names = [*BUILTIN, *zoo.torchvision_names()]
        if name not in names:
            raise UserError(f"unknown model {name!r}{nearest(name, names)} (or timm/NAME)")
    file, class_names = _open_weights(name, weights, classes)
    # Our own nets take a file's tensors as they are, so none need be drawn at random first.
    drawn = torch.device("meta" if file is not None and name in BUILTIN else "cpu")
    with torch.random.fork_rng(devices=[]), drawn:
        torch.manual_seed(seed)
        net, options = _build(name, file)
    if file is not None:
        source = weights or bundled(name)
        if not weight_files.fill(net, file, source, name):
            options["headless"] = True
            _cut_head(net)
    imagenet = options.pop("imagenet", False)
    if class_names is None and imagenet:
        class_names = [("", n) for n in zoo.imagenet_names()]
    net.eval().requires_grad_(False)
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
    """A net with as many classes as the weights have, and the options of its `Model`."""
    form = BUILTIN.get(name)
    if form is not None:
        tensors = {} if file is None else weight_files.rename(file.tensors, _CONVOLUTIONS)
        head = tensors.get("classifier.6.weight")
        default = 200 if form is AlexNetMini else 1000
        net: nn.Module = form(num_classes=default if head is None else head.shape[0])
        resize = form.input_size if form is AlexNetMini else 256
        preprocessing = Preprocessing.of(
            form.input_size,
            resize=resize,
            mean=form.mean,
            std=form.std,
            blue_first=form is AlexNet2012,
        )
        return net, {"aliases": form.aliases, "preprocessing": preprocessing}
    net, preprocessing = zoo.build(name)
    imagenet = False
    if file is not None:
        count = weight_files.count_classes(weight_files.rename(file.tensors, net.state_dict()), net)
        if count is not None and count != 1000:
            net, preprocessing = zoo.build(name, count)
        imagenet = count == 1000
    return net, {"preprocessing": preprocessing, "imagenet": imagenet}


# Enough for Caffe's names to be recognised.
_CONVOLUTIONS: dict[str, Tensor] = {"features.0.weight": torch.empty(0)}


def _cut_head(net: nn.Module) -> None:
    """Replace the head by an identity; `Model.forward` raises the error about absent logits."""
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
