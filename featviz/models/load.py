"""`load(name)`: a bundled, torchvision or timm classifier with its weights, as a `Model`."""

from __future__ import annotations

import importlib.resources
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from featviz.errors import UserError, nearest, public
from featviz.models import huggingface, own, zoo
from featviz.models.alexnet import AlexNet, AlexNet2012, AlexNetMini
from featviz.models.matching import Match, Shape, match
from featviz.models.model import Model
from featviz.models.receptive_field import record_modules
from featviz.models.weights import fill, listed, read_classes
from featviz.models.weights_file import WeightsFile, plain, read_weights
from featviz.models.wrap import as_model
from featviz.pictures.preprocessing import Preprocessing, Size, Stated
from featviz.types import Channels, Seed

BUILTIN: dict[str, type[AlexNetMini | AlexNet | AlexNet2012]] = {
    "alexnet-mini": AlexNetMini,
    "alexnet": AlexNet,
    "alexnet-2012": AlexNet2012,
}


@public
def load(
    architecture: str | nn.Module = "alexnet-mini",
    *,
    weights: str | Path | None = None,
    classes: str | Path | None = None,
    input_size: Size | None = None,
    resize: Size | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    channels: Channels | None = None,
    device: str = "auto",
    seed: Seed = 0,
    name: str | None = None,
) -> Model:
    """A classifier by name, with its weights.

    Args:
        architecture: "alexnet-mini" (bundled weights, 64 pixels), "alexnet" (torchvision's:
            Krizhevsky 2014), "alexnet-2012" (Krizhevsky et al. 2012: two groups, local response
            normalization, Caffe's blue-first input), any torchvision classifier, "timm/NAME",
            "hf/FOLDER" (a HuggingFace image classifier that `save_pretrained` wrote), or
            "FILE.py:FUNCTION": what a function of yours returns, a module or a `Model`. Of a
            module itself `featviz.wrap` makes a model.
        weights: a safetensors or torch file; "FILE#ema" where it holds several sets of weights and
            the one in its entry "ema" is meant. "DEFAULT", or torchvision's name of a set
            ("IMAGENET1K_V1"), is torchvision's own download. None is the bundled file for
            alexnet-mini and random weights (from `seed`) for all others.
        classes: a text file, one class a line (`name` or `synset<TAB>name`); default: the names
            that come with the weights.
        input_size: side of the pictures, or (height, width), in place of the model's own.
        resize: length of the shorter side before the center crop, or (height, width).
        mean: of each channel of pictures in [0, 1], or one for all, subtracted.
        std: of each channel, or one for all, by which pictures are then divided.
        channels: of the pictures; for your own module, where it is not found out.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1".
        seed: of random weights.
        name: in titles and results, as "scratch-v2"; default: the architecture's.

    Returns:
        The model, in eval mode and with `requires_grad` off; `notes` say how the weights were
        found. Without the weights of its last layers it has the layers before them, and no logits.
        For your own module take `featviz.wrap`.

    Raises:
        UserError: for an unknown name, weights that do not fit or are no numbers, an absent device.
    """
    if isinstance(architecture, nn.Module):
        raise UserError(
            "load takes a name, not a module; make a model of it with featviz.wrap (it is a "
            f"{type(architecture).__name__})"
        )
    label, name = name, architecture
    if label is not None and label != name and _is_architecture(label, name, weights):
        raise UserError(
            f"name {label!r} is another model's; write load({label!r}) for that one, or choose "
            "another name"
        )
    stated = Stated(
        size=input_size,
        resize=resize,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
        channels=channels,
    )
    loaded = _load(name, weights, classes, stated, device, seed)
    return loaded if label is None else loaded.called(label)


def _is_architecture(label: str, name: str, weights: str | Path | None) -> bool:
    """Whether a label is a model's name, as in load(name="resnet18")."""
    plain = name == "alexnet-mini" and weights is None  # torchvision is slow to import
    return label in BUILTIN or (plain and label in zoo.torchvision_names())


def _load(
    name: str,
    weights: str | Path | None,
    classes: str | Path | None,
    stated: Stated,
    device: str,
    seed: int,
) -> Model:
    place = resolve_device(device)
    if own.is_own(name) or name.startswith("hf/"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _users(name, weights, classes, stated).to(place)
    if name not in BUILTIN and not name.startswith("timm/"):
        names = [*BUILTIN, *zoo.torchvision_names()]
        if name not in names:
            raise UserError(
                f"unknown model {name!r}{nearest(name, names)} (or timm/NAME, hf/FOLDER, "
                "FILE.py:FUNCTION)"
            )
    source = _open_weights(name, weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if source is None:
            net = _construct(name)
            class_names = read_classes(classes, None, {})
            model = _frozen(net, _preprocessing(name, net), name=name, classes=class_names)
        else:
            model = _filled(name, source, classes)
        return _restated(model, stated).to(place)


def _restated(
    model: Model, stated: Stated, classes: Sequence[tuple[str, str]] | None = None
) -> Model:
    try:
        return model.restated(stated, classes)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{model.name} does not take such pictures: {reason}") from error


def _users(
    name: str, weights: str | Path | None, classes: str | Path | None, stated: Stated
) -> Model:
    """A model of the user's own: made by a function, or in a folder of HuggingFace's."""
    if own.is_own(name):
        made, name = own.make(name)
    else:
        folder = name.removeprefix("hf/")
        made, name = huggingface.load_folder(folder), Path(folder).name
    net = made.net if isinstance(made, Model) else made
    notes: list[str] = []
    path, metadata = None, {}
    if weights is not None:
        source = _open_weights(name, weights)
        assert source is not None
        shapes = {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}
        found = match(source.file, shapes)
        absent = fill(net, found, source.name, name)
        if absent:
            raise UserError(f"{source.name} has no weights of {listed(absent)} of {name}")
        notes, path, metadata = _notes(source, found, absent), source.path, source.file.metadata
    pairs = read_classes(classes, path, metadata)
    if isinstance(made, Model):
        return _restated(made, stated, pairs)
    return as_model(made, stated, name=name, classes=pairs, notes=notes)


class _Source(NamedTuple):
    """Where weights come from."""

    file: WeightsFile
    name: str
    """for people"""
    path: Path | None = None
    entry: str | None = None
    """torchvision's name of the weights, if they are its own"""


def bundled(name: str) -> Path:
    """The file of weights that comes with featviz."""
    return Path(str(importlib.resources.files("featviz") / "assets" / f"{name}.safetensors"))


def _open_weights(name: str, weights: str | Path | None) -> _Source | None:
    if name == "alexnet-mini" and str(weights) in {"None", "DEFAULT"}:
        weights = bundled(name)
    if weights is None:
        return None
    path, text = Path(weights), str(weights)
    if re.fullmatch("DEFAULT|IMAGENET1K_[A-Z0-9_]+", text) and not path.exists():
        file, entry = zoo.download(name, text)
        return _Source(file, f"torchvision's {entry}", entry=entry)
    part = ""
    if "#" in text and not os.path.lexists(path):
        text, _, part = text.rpartition("#")
        path = Path(text)
    file = read_weights(path)
    if part:
        inside = file.part(part)
        if not inside.tensors:
            tops = dict.fromkeys(key.partition(".")[0] for key in file.tensors)
            raise UserError(
                f"{path} has no weights under {part!r}; it has {plain(', '.join(tops))}"
            )
        file = inside
    return _Source(file, str(weights), path)


def _filled(name: str, source: _Source, classes: str | Path | None) -> Model:
    """The net with the weights of a file: with as many classes and for such pictures as these."""
    shapes, head = _outline(name)
    found = match(source.file, shapes)
    given = {key: tuple(tensor.shape) for key, tensor in found.tensors.items()}
    options = {} if name in BUILTIN else zoo.sizes(name, given, shapes)
    count = next((given[k][0] for k in head if k in given and _alike(given[k], shapes[k])), None)
    # Our own nets take a file's tensors as they are, so none need be drawn at random first.
    with torch.device("meta" if name in BUILTIN else "cpu"):
        net = _construct(name, **options | ({"num_classes": count} if count else {}))
    absent = fill(net, found, source.name, name)
    for path in absent:
        parent, _, last = path.rpartition(".")
        setattr(net.get_submodule(parent), last, nn.Identity())
    class_names = read_classes(classes, source.path, source.file.metadata)
    if class_names is None and count == 1000 and name not in BUILTIN:
        class_names = [("", text) for text in zoo.imagenet_names()]
    preprocessing = _of_weights(
        _preprocessing(name, net, source), source.file.metadata, count, name
    )
    if absent:
        _check_order(net.eval(), absent, preprocessing, f"{source.name} does not fit {name}")
    model = _frozen(
        net,
        preprocessing,
        name=name,
        classes=class_names,
        absent=absent,
        notes=_notes(source, found, absent),
    )
    _check_finite(model, source.name)
    return model


def _alike(one: Shape, two: Shape) -> bool:
    """Whether two shapes differ in the first side alone, if at all."""
    return len(one) == len(two) and one[1:] == two[1:] and one[0] > 0


def _outline(name: str) -> tuple[dict[str, Shape], list[str]]:
    """Names and shapes of a net's tensors, and those whose length is the number of classes."""
    unlikely = 1009  # no other side of a net's tensors is as long
    try:
        with torch.device("meta"):
            net = _construct(name, num_classes=unlikely)
    except NotImplementedError:  # RegNet computes with values while it is built
        net = _construct(name, num_classes=unlikely)
    shapes = {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}
    return shapes, [key for key, shape in shapes.items() if shape[:1] == (unlikely,)]


def _construct(name: str, **options: int) -> nn.Module:
    form = BUILTIN.get(name)
    if form is None:
        return zoo.construct(name, **options)
    return form(**{"num_classes": 200 if form is AlexNetMini else 1000} | options)


def _preprocessing(name: str, net: nn.Module, source: _Source | None = None) -> Preprocessing:
    form = BUILTIN.get(name)
    if form is None:
        return zoo.preprocessing(name, net, source and source.path, source and source.entry)
    return Preprocessing.of(
        form.input_size,
        resize=form.input_size if form is AlexNetMini else 256,
        mean=form.mean,
        std=form.std,
        blue_first=form is AlexNet2012,
    )


def _of_weights(
    usual: Preprocessing, metadata: Mapping[str, str], count: int | None, name: str
) -> Preprocessing:
    """As the file of weights states it, else as the architecture's definition does.

    Nets of torchvision and timm with a head of other classes were trained by somebody else, often
    on other pictures (a ResNet on 32 pixels): what theirs were is assumed.
    """
    try:
        mean, std = (tuple(map(float, json.loads(metadata[f]))) for f in ("mean", "std"))
        return usual.changed(Stated(mean=mean, std=std))
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
        pass
    if name in BUILTIN or count in {None, 1000}:
        return usual
    return replace(usual, assumed=("size", "resize", "mean", "std"))


def _frozen(net: nn.Module, preprocessing: Preprocessing, *, name: str, **options: Any) -> Model:
    net.eval().requires_grad_(False)
    aliases = BUILTIN[name].aliases if name in BUILTIN else None
    return Model(net, name=name, preprocessing=preprocessing, aliases=aliases, **options)


def _notes(source: _Source, found: Match, absent: list[str]) -> list[str]:
    """How the weights were found, where it is not the usual way."""
    name = source.path.name if source.path else source.name
    notes = []
    if found.others:
        others = " or ".join(f"{name}#{plain(place)}" for place in found.others)
        notes.append(
            f"{name} holds several sets of weights; that of {plain(found.place)!r} is taken "
            f"(--weights {others} takes another)"
        )
    if found.wrappers:
        notes.append(f"the names in {name} are read without {plain(', '.join(found.wrappers))}")
    if absent:
        notes.append(f"{name} has no weights of {listed(absent)}: there are no logits")
    return notes


def _check_order(
    net: nn.Module, absent: list[str], preprocessing: Preprocessing, unfit: str
) -> None:
    """Only the last layers may be absent: what is computed behind one of them has no meaning."""
    modules = dict(net.named_modules())
    behind = []
    try:
        picture = torch.zeros(1, preprocessing.channels, *preprocessing.size)
        order = list(record_modules(net, picture))
    except (RuntimeError, ValueError, TypeError):
        order = []
    else:
        first = min(order.index(path) for path in absent if path in order)
        behind = [path for path in order[first:] if path in modules and _computes(modules[path])]
    if behind or not order or not any(map(_computes, modules.values())):
        raise UserError(
            f"{unfit}: it has no weights of {listed(absent)}"
            + (f", but of {behind[0]} behind it" if behind else "")
            + "; give complete weights, or those of all layers before the absent ones"
        )


def _computes(module: nn.Module) -> bool:
    """Whether it is a layer with weights of its own."""
    return not list(module.children()) and bool(list(module.parameters()))


def _check_finite(model: Model, source: str) -> None:
    """Weights may be finite and what they compute not."""
    picture = torch.rand(model.blank().shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = model.net(model.normalize(picture.to(model.mean.dtype)))
    if isinstance(out, Tensor) and not out.isfinite().all():
        raise UserError(
            f"{source} gives NaN or infinite logits (of a random picture), though its weights are "
            "finite: they are too large for float32 arithmetic; give other weights"
        )


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
