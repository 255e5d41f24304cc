"""The only module of featviz that imports torchvision and timm."""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from featviz.errors import UserError, nearest
from featviz.models.matching import Shape
from featviz.models.torchvision_schemas import supply_schemas
from featviz.models.weights_file import WeightsFile, from_content, plain
from featviz.pictures.preprocessing import Preprocessing


def _torchvision() -> Any:
    if not supply_schemas():
        raise UserError("torchvision is not installed; pip install -c constraints.txt torchvision")
    import torchvision

    return torchvision


def torchvision_names() -> list[str]:
    """Names of torchvision's classifiers."""
    models = _torchvision().models
    return list(models.list_models(module=models))


def is_installed(package: str) -> bool:
    """Whether a package is there, without importing it."""
    return importlib.util.find_spec(package) is not None


def construct(name: str, **options: int) -> nn.Module:
    """A torchvision net, or one of timm ("timm/NAME" or "timm/NAME.TAG"), with random weights.

    Args:
        name: of the net.
        options: `num_classes`, and what `sizes` found.

    Raises:
        UserError: for an unknown name or an absent package.
    """
    if name.startswith("timm/"):
        return _timm_net(name.removeprefix("timm/"), {"num_classes": 1000} | options)
    fixed: dict[str, Any] = {}
    if name in {"googlenet", "inception_v3"}:
        # As torchvision builds them for its weights: pictures of the usual normalization are
        # rescaled to that of the training. Auxiliary heads are used in training only.
        fixed = {"transform_input": True, "init_weights": False, "aux_logits": False}
    net: nn.Module = _torchvision().models.get_model(name, weights=None, **fixed, **options)
    return net


def sizes(name: str, given: Mapping[str, Shape], usual: Mapping[str, Shape]) -> dict[str, int]:
    """The size of pictures that weights of these shapes are for, as options of `construct`."""
    place, patch = "encoder.pos_embedding", "conv_proj.weight"
    length = given.get(place, usual.get(place, ()))
    if not name.startswith("vit_") or length == usual.get(place) or len(length) != 3:
        return {}
    side = math.isqrt(max(length[1] - 1, 0))
    return {"image_size": side * usual[patch][-1]} if side * side == length[1] - 1 > 0 else {}


def preprocessing(
    name: str, net: nn.Module, path: Path | None = None, entry: str | None = None
) -> Preprocessing:
    """How the library prepares pictures for a net.

    torchvision has up to four sets of weights for a net, with different preprocessing: that of
    `entry` is taken, else that of the set whose file `path` is, else that of the default set.
    """
    if name.startswith("timm/"):
        return _timm_preprocessing(net)
    known = _torchvision().models.get_model_weights(name)
    side: Any = getattr(net, "image_size", None)  # of nets that take one size only
    fitting = [w for w in known if side in {None, w.transforms().crop_size[0]}]
    weights = known[entry] if entry else path and _torchvisions_own(path, fitting)
    if weights:
        return _stated(weights)
    if not fitting:
        return replace(_stated(known.DEFAULT), size=(side, side), resize=side, assumed=("resize",))
    weights = known.DEFAULT if known.DEFAULT in fitting else fitting[0]
    taken = _stated(weights)
    if path is None:
        return taken
    others = [_stated(w) for w in fitting]
    fields = ("size", "resize", "mean", "std", "interpolation")
    unclear = (f for f in fields if any(getattr(o, f) != getattr(taken, f) for o in others))
    return replace(taken, assumed=tuple(unclear))


def _stated(weights: Any) -> Preprocessing:
    transforms = weights.transforms()
    return Preprocessing.of(
        transforms.crop_size[0],
        resize=transforms.resize_size[0],
        mean=transforms.mean,
        std=transforms.std,
        interpolation=transforms.interpolation.value,
    )


def _torchvisions_own(path: Path, known: list[Any]) -> Any:
    """The weights whose file of torchvision's this is: by its name, else by the hash in it."""
    if len(known) < 2:
        return None
    names = {Path(weights.url).name: weights for weights in known}
    if path.name in names:
        return names[path.name]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return next((w for n, w in names.items() if digest.startswith(Path(n).stem[-8:])), None)


def _timm_net(name: str, options: dict[str, Any]) -> nn.Module:
    if not is_installed("timm"):
        raise UserError(f"timm/{name} needs timm; pip install 'featviz[timm]'")
    _torchvision()  # timm imports torchvision, which must be loaded as above
    import timm

    plain_name, _, tag = name.partition(".")
    if plain_name not in timm.list_models():
        raise UserError(f"timm has no model {name!r}{nearest(plain_name, timm.list_models())}")
    tagged = timm.list_pretrained(f"{plain_name}.*")
    if tag and name not in tagged:
        raise UserError(f"timm's {plain_name} has no tag {tag!r}{nearest(name, tagged)}")
    net: nn.Module = timm.create_model(name, pretrained=False, **options)
    return net


def _timm_preprocessing(net: nn.Module) -> Preprocessing:
    from timm.data.config import resolve_model_data_config

    data = resolve_model_data_config(net)
    channels, height, width = data["input_size"]
    before = [math.floor(side / data["crop_pct"]) for side in (height, width)]
    return Preprocessing.of(
        (height, width),
        # A mode beside these ("border", for 6 of 1,826 sets of weights) pads pictures.
        resize=(before[0], before[1]) if data["crop_mode"] == "squash" else min(before),
        mean=data["mean"],
        std=data["std"],
        channels=channels,
        interpolation=data["interpolation"],
        assumed=() if data["crop_mode"] in {"center", "squash"} else ("resize",),
    )


def download(name: str, entry: str) -> tuple[WeightsFile, str]:
    """torchvision's own weights with their class names, by its own download, and their name.

    Args:
        name: of the net.
        entry: torchvision's name of the weights ("IMAGENET1K_V1"), or "DEFAULT".

    Raises:
        UserError: for an unknown name, and where there is no network and nothing in torch's cache.
    """
    if name not in torchvision_names():
        raise UserError(f"--weights {entry} works for torchvision's models; give {name} a file")
    known = _torchvision().models.get_model_weights(name)
    names = list(known.__members__)
    if entry not in {"DEFAULT", *names}:
        raise UserError(f"torchvision has no weights {entry} of {name}; it has {', '.join(names)}")
    weights = known[entry] if entry in names else known.DEFAULT
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise UserError(
            f"the weights of {name} could not be downloaded ({plain(error)}); fetch {weights.url} "
            "on a machine with network and give it as --weights FILE"
        ) from None
    pairs = [["", category] for category in weights.meta["categories"] or ()]
    metadata = {"classes": json.dumps(pairs)} if pairs else {}
    return replace(from_content(state), metadata=metadata), weights.name


def imagenet_names() -> tuple[str, ...]:
    """torchvision's names of ImageNet's 1,000 classes, in its order."""
    return tuple(_torchvision().models.AlexNet_Weights.DEFAULT.meta["categories"])
