"""`Model`: a classifier that takes pictures in [0, 1], with its layers and classes by name.

`featviz.load` makes one by name, `featviz.wrap` from any `torch.nn.Module`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from featviz.errors import UserError, nearest, public
from featviz.images import check_pictures
from featviz.models.frozen import evaluating
from featviz.models.receptive_field import ModuleRecord, record_modules
from featviz.preprocessing import Preprocessing, Size


@dataclass(frozen=True, kw_only=True)
class Layer(ModuleRecord):
    """A named place in a model."""

    name: str
    """the alias if it has one, else the path"""

    @property
    def units(self) -> int:
        """How many units: channels, components or classes."""
        return self.shape[-1] if len(self.shape) == 2 else self.shape[0]

    @property
    def spatial(self) -> bool:
        """Whether it is a map (C, H, W) with more than one position."""
        return len(self.shape) == 3 and self.shape[1] * self.shape[2] > 1


class Model(nn.Module):
    """A classifier: pictures (N, C, H, W) in [0, 1] to logits (N, classes).

    Normalization is the first step of each call. The net computes in eval mode and without
    gradients to its parameters, whatever its own mode and `requires_grad` are; both are after a
    call what they were before.

    Attributes:
        name: for titles and result folders.
        net: the bare network, which takes normalized pictures.
        classes: the name of each class; `synsets`: its WordNet id, or "".
        preprocessing: size, channels and normalization of the pictures.
        aliases: layer name to module path.
        headless: a trunk without its last layers, which has no logits.
        absent: paths of layers without weights, in whose places are identities.
        notes: how the weights were found in their file, in words.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        preprocessing: Preprocessing | Size,
        aliases: Mapping[str, str] | None = None,
        classes: Sequence[tuple[str, str]] | None = None,
        headless: bool = False,
        absent: Sequence[str] = (),
        notes: Sequence[str] = (),
    ):
        """See `featviz.wrap`; `classes` are pairs of synset and name.

        A size in place of the preprocessing is that of RGB pictures that are not normalized.
        """
        super().__init__()
        self.training = False
        self.net = net
        self.name = name
        if not isinstance(preprocessing, Preprocessing):
            preprocessing = Preprocessing.of(preprocessing)
        self.preprocessing = preprocessing
        self.absent = tuple(absent)
        self.headless = headless or bool(absent)
        self.notes = tuple(notes)
        self.aliases = dict(aliases or {})
        if not self.headless:
            self.aliases.setdefault("logits", "")
        weight = next((p for p in net.parameters() if p.is_floating_point()), torch.zeros(()))
        for buffer, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            constant = torch.tensor(values, dtype=weight.dtype, device=weight.device)
            self.register_buffer(buffer, constant.view(-1, 1, 1), persistent=False)
        if self.headless:
            kept = {layer.path for layer in self.layers.values()}
            self.aliases = {a: path for a, path in self.aliases.items() if path in kept}
        count = 0 if self.headless else self.layers["logits"].shape[0]
        if classes is not None and len(classes) != count and not self.headless:
            raise UserError(
                f"{len(classes)} class names for a model of {count} classes; "
                "give --classes a file with one line for each"
            )
        pairs = classes or [("", f"class {i}") for i in range(count)]
        self.synsets: tuple[str, ...] = tuple(synset for synset, _ in pairs)
        self.classes: tuple[str, ...] = tuple(class_name for _, class_name in pairs)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits (N, classes) of pictures (N, C, H, W) in [0, 1]."""
        shape, channels = tuple(pictures.shape), self.preprocessing.channels
        if len(shape) != 4 or shape[1] != channels or not pictures.is_floating_point():
            raise UserError(
                f"{self.name} takes float pictures of shape (N, {channels}, H, W), "
                f"got {shape} of {pictures.dtype}"
            )
        with evaluating(self.net):
            logits: Tensor = self.net(self.normalize(pictures))
        if self.headless:
            raise self._no_logits()
        return logits

    def normalize(self, pictures: Tensor) -> Tensor:
        """The net's own input for pictures (N, C, H, W) in [0, 1]."""
        normal = (pictures - self.mean) / self.std
        return normal.flip(1) if self.preprocessing.blue_first else normal

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the pictures in pixels."""
        return self.preprocessing.size

    def blank(self, n: int = 1) -> Tensor:
        """Black pictures (n, C, H, W) on the model's device."""
        return self.mean.new_zeros(n, self.preprocessing.channels, *self.input_size)

    def check(self, pictures: Tensor, *, single: bool = False, empty: bool = False) -> Tensor:
        """Pictures as a batch (N, C, H, W) on the model's device: the check of every function.

        Args:
            pictures: (N, C, H, W) with the model's channels, floats in [0, 1].
            single: take one picture (C, H, W) as a batch of one.
            empty: take a batch of none.

        Raises:
            UserError: for another shape or type, values outside [0, 1] or NaN, and no pictures.
        """
        channels = self.preprocessing.channels
        batch = check_pictures(pictures, channels=channels, single=single, empty=empty)
        return batch.to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mean.device

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """Every module that a forward pass runs, by alias or else by path, in the order of use.

        Those before the first absent one.
        """
        with evaluating(self.net):
            records = record_modules(self.net, self.normalize(self.blank()))
        names = {path: alias for alias, path in self.aliases.items()}
        present = takewhile(lambda path: path not in self.absent, records)
        layers = [Layer(name=names.get(p, p), **vars(records[p])) for p in present]
        return {layer.name: layer for layer in layers}

    def layer(self, name: str) -> Layer:
        """The layer of an alias or a module path. Raises UserError with the nearest names."""
        if name in self.layers:
            return self.layers[name]
        by_path = {layer.path: layer for layer in self.layers.values()}
        if name and name in by_path:
            return by_path[name]
        if name == "logits" and self.headless:
            raise self._no_logits()
        hint = nearest(name, [*self.aliases, *self.layers])
        raise UserError(f"{self.name} has no layer {name!r}{hint} (featviz layers lists them)")

    def class_name(self, index: int) -> str:
        """The short name of a class: "goldfish" of "goldfish, Carassius auratus"."""
        return self.classes[index].partition(",")[0]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The short names of all classes."""
        return tuple(map(self.class_name, range(len(self.classes))))

    def find_class(self, name: str) -> int | None:
        """The class of a synset or a name, or None. Exact spelling first, then without case."""
        for spelled in (str, str.casefold):
            wanted = spelled(name.replace("_", " "))
            for index, (synset, full) in enumerate(zip(self.synsets, self.classes, strict=True)):
                names = {synset, full, *(part.strip() for part in full.split(","))}
                if wanted in {spelled(n.replace("_", " ")) for n in names if n}:
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
        """The model's entry in result.json."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "input_size": list(self.input_size),
            "classes": len(self.classes),
            "preprocessing": self.preprocessing.record(),
            **({"notes": list(self.notes)} if self.notes else {}),
        }

    def _no_logits(self) -> UserError:
        return UserError(
            f"the weights of {self.name} are a trunk without a head: it has features but no "
            "logits; use its layers, or give complete weights"
        )


@public
def wrap(
    module: nn.Module,
    *,
    input_size: Size,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    channels: int = 3,
    classes: Sequence[str] | None = None,
    aliases: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Model:
    """Your own network as a `Model`, for every analysis of featviz.

    The module is used as it is and stays yours: it computes in eval mode and without gradients to
    its parameters while featviz calls it, and its mode and `requires_grad` are put back after each
    call.

    Args:
        module: takes normalized pictures (N, channels, height, width), gives logits (N, classes).
        input_size: side of the pictures in pixels, or (height, width).
        mean: of each channel of pictures in [0, 1], or one for all, subtracted; default 0.
        std: of each channel, or one for all, by which pictures are then divided; default 1.
        channels: of the pictures.
        classes: the name of each class in the order of the logits; default "class 0" ...
        aliases: short names of layers, each with the path of its module: {"conv1": "features.0"}.
            "logits" is the output of the whole module unless it is given here.
        name: for titles and result folders; default the name of the module's class.

    Returns:
        The model. Its `layers` are all modules that run in a forward pass, by alias or path.

    Raises:
        UserError: if `mean` or `std` have another count than the channels, an alias names no
            module, the module does not take such pictures, or `classes` has another length than
            the logits.

    Example:
        net = torch.load("net.pt", weights_only=False)
        model = featviz.wrap(net, input_size=32, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
        featviz.maximize(model, "layer3", units=[0, 1]).save("run/layer3")
    """
    preprocessing = Preprocessing.of(input_size, mean=mean, std=std, channels=channels)
    paths = dict(module.named_modules())
    for alias, path in (aliases or {}).items():
        if path not in paths:
            raise UserError(f"alias {alias}: no module {path!r}{nearest(path, paths)}")
    try:
        return Model(
            module,
            name=name or type(module).__name__,
            preprocessing=preprocessing,
            aliases=aliases,
            classes=None if classes is None else [("", text) for text in classes],
        )
    except (RuntimeError, ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"the module does not take pictures {(1, channels, *preprocessing.size)}: {reason}; "
            "check input_size"
        ) from error
