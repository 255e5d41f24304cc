"""The only module of featviz that imports torchvision and timm.

On Linux some indexes have torchvision only as a CUDA build. Beside a CPU torch its compiled part
does not load, and `import torchvision` fails for want of two operator schemas. They are supplied
here, after which its models work (its compiled operators and decoders do not; we use neither).
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featviz.errors import UserError, nearest
from featviz.preprocessing import Preprocessing

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[Any] = []  # a torch.library.Library lives as long as it is referenced


@cache
def _torchvision() -> Any:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise UserError("torchvision is not installed; pip install -c constraints.txt torchvision")
    compiled = next(iter(Path(spec.origin).parent.glob("_C*")), None)
    loaded = False
    if compiled is not None:
        try:
            torch.ops.load_library(str(compiled))
            loaded = True
        except OSError:
            pass
    if not loaded and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            library.define(schema)
        _libraries.append(library)
    import torchvision

    return torchvision


def torchvision_names() -> list[str]:
    """Names of torchvision's classifiers."""
    models = _torchvision().models
    return list(models.list_models(module=models))


def is_installed(package: str) -> bool:
    """Whether a package is there, without importing it."""
    return importlib.util.find_spec(package) is not None


def build(name: str, num_classes: int = 1000) -> tuple[nn.Module, Preprocessing]:
    """A torchvision net, or one of timm ("timm/NAME"), with random weights.

    Raises:
        UserError: for an unknown name or an absent package.
    """
    if name.startswith("timm/"):
        return _build_timm(name.removeprefix("timm/"), num_classes)
    models = _torchvision().models
    options: dict[str, Any] = {"weights": None, "num_classes": num_classes}
    if name in {"googlenet", "inception_v3"}:
        # Auxiliary heads are used in training only; random initialization by scipy is slow.
        options |= {"init_weights": False, "aux_logits": False}
    net = models.get_model(name, **options)
    return net, _preprocessing(models.get_model_weights(name).DEFAULT)


def _preprocessing(weights: Any) -> Preprocessing:
    transforms = weights.transforms()
    return Preprocessing.of(
        transforms.crop_size[0],
        resize=transforms.resize_size[0],
        mean=transforms.mean,
        std=transforms.std,
    )


def _build_timm(name: str, num_classes: int) -> tuple[nn.Module, Preprocessing]:
    if not is_installed("timm"):
        raise UserError(f"timm/{name} needs timm; pip install 'featviz[timm]'")
    _torchvision()  # timm imports torchvision, which must be loaded as above
    import timm
    from timm.data.config import resolve_model_data_config

    if name not in timm.list_models():
        raise UserError(f"timm has no model {name!r}{nearest(name, timm.list_models())}")
    net = timm.create_model(name, pretrained=False, num_classes=num_classes)
    data = resolve_model_data_config(net)
    channels, height, width = data["input_size"]
    resize = round(min(height, width) / data["crop_pct"])
    return net, Preprocessing.of(
        (height, width), resize=resize, mean=data["mean"], std=data["std"], channels=channels
    )


def default_weights(name: str) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """torchvision's own weights and class names, by its own download.

    Raises:
        UserError: where there is no network and nothing in torch's cache.
    """
    if name.startswith("timm/"):
        raise UserError("--weights DEFAULT works for torchvision's models; give timm a file")
    weights = _torchvision().models.get_model_weights(name).DEFAULT
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise UserError(
            f"the weights of {name} could not be downloaded ({error}); fetch {weights.url} on a "
            "machine with network and give it as --weights FILE"
        ) from None
    return state, tuple(weights.meta["categories"])


def imagenet_names() -> tuple[str, ...]:
    """torchvision's names of ImageNet's 1,000 classes, in its order."""
    return tuple(_torchvision().models.AlexNet_Weights.DEFAULT.meta["categories"])
