"""`Model`: a classifier that takes pictures in [0, 1], with its layers and classes by name.

`featviz.load` makes one by name, `featviz.wrap` from any `torch.nn.Module`.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from featviz.data.labels import class_finder
from featviz.errors import UserError, nearest
from featviz.indices import index_below, one_item
from featviz.models.frozen import evaluating, plain_float32
from featviz.models.graphed import RECORDING
from featviz.models.outputs import PROBABILITIES, Choice, Output
from featviz.models.receptive_field import ModuleRecord, record_modules
from featviz.models.torchvision_schemas import supply_schemas
from featviz.models.weights_file import plain
from featviz.pictures.images import check_pictures
from featviz.pictures.preprocessing import Preprocessing, Size, Stated, shown


def check_finite(values: Tensor, what: str) -> None:
    """Raise UserError where values are NaN or infinite; asked of no pass that is recorded."""
    if not RECORDING.get() and not bool(values.isfinite().all()):
        raise UserError(
            f"{what} are not finite (NaN or infinite); check the weights, and whether they are of "
            "this network"
        )


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


class Layers(dict[str, Layer]):
    """The layers of a model by name, in the order of use; a table in a notebook."""

    def __repr__(self) -> str:
        return f"<Layers: {', '.join(self)}>"

    def _repr_html_(self) -> str:
        head = ("layer", "module", "kind", "shape", "parameters")
        rows = [
            (one.name, one.path, one.kind, " x ".join(map(str, one.shape)), f"{one.parameters:,}")
            for one in self.values()
        ]
        lines = (
            f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in cells)}</tr>"
            for cells in (head, *rows)
        )
        return f"<table>{''.join(lines)}</table>"


class Model(nn.Module):
    """A classifier: pictures (N, C, H, W) in [0, 1] to logits (N, classes).

    A net with one logit z is read by a sigmoid, as two classes with logits -z/2 and z/2.
    A net that ends in a softmax or a sigmoid gives probabilities; its logits are their logarithms
    or log odds.

    Normalization is the first step of each call. The net computes in eval mode and without
    gradients to its parameters, whatever its own mode and `requires_grad` are; both are after a
    call what they were before.

    Attributes:
        name: for titles and result folders; `architecture`: the name that it was loaded by.
        net: the bare network, which takes normalized pictures.
        classes: the name of each class; `synsets`: its WordNet id, or "".
        preprocessing: size, channels and normalization of the pictures.
        aliases: layer name to module path.
        headless: a network without logits: a trunk, or one that gives maps. It has its layers.
        absent: paths of layers without weights, in whose places are identities.
        pick: the logits out of what the net gives.
        notes: what was found out about the net and its weights, in words.
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
        preprocess: Callable[[Tensor], Tensor] | None = None,
        output: Choice | None = None,
        notes: Sequence[str] = (),
    ):
        """See `featviz.wrap`; `classes` are pairs of synset and name.

        A size in place of the preprocessing is that of RGB pictures that are not normalized.
        """
        supply_schemas()  # for the caller's own `import torchvision`
        super().__init__()
        self.training = False
        self.net = net
        self.name = self.architecture = name
        if not isinstance(preprocessing, Preprocessing):
            preprocessing = Preprocessing.of(preprocessing)
        self.preprocessing = preprocessing
        self.preprocess = preprocess
        self.pick = Output(output, None if classes is None else len(classes))
        self.absent = tuple(absent)
        self.headless = headless or bool(absent)
        self.notes = tuple(notes)
        if preprocessing.assumption:
            self.notes += (f"the preprocessing of {name} is assumed: {preprocessing.assumption}",)
        # sizes that passed a trial, see `layers.check_size`
        self.taken: set[tuple[tuple[int, int], str | None]] = set()
        self.shares_rest: dict[str, bool] = {}  # of layers, see `rest.rest_of`
        self.aliases = dict(aliases or {})
        if not self.headless:
            self.aliases.setdefault("logits", "")
        weight = next((p for p in net.parameters() if p.is_floating_point()), torch.zeros(()))
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.low_precision: torch.dtype | None = None if weight.dtype == dtype else weight.dtype
        for buffer, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            constant = torch.tensor(values, dtype=dtype, device=weight.device)
            self.register_buffer(buffer, constant.view(-1, 1, 1), persistent=False)
        if self.headless:
            kept = {layer.path for layer in self.layers.values()}
            self.aliases = {a: path for a, path in self.aliases.items() if path in kept}
        elif len(self._output_shape) != 1:
            self._become_headless()
        self.notes += self._doubts()
        count = 0 if self.headless else self.layers["logits"].shape[0]
        if count:
            self._take_logits_of_probabilities()
        if count == 1:
            self.pick, count = replace(self.pick, one=True), 2
            self.notes += ("its one output is read by a sigmoid, as the logits of two classes",)
            self.aliases["logits"] = ""
            del self.__dict__["layers"]
            if classes is not None and len(classes) == 1:
                classes = [("", f"not {classes[0][1]}"), classes[0]]
        if classes is not None and len(classes) != count and not self.headless:
            raise UserError(
                f"{len(classes)} class names for a model of {count} classes; "
                "give --classes a file with one line for each"
            )
        pairs = classes or [("", f"class {i}") for i in range(count)]
        self.notes = tuple(dict.fromkeys(self.notes))  # those of the same net before
        self.synsets: tuple[str, ...] = tuple(synset for synset, _ in pairs)
        self.classes: tuple[str, ...] = tuple(class_name for _, class_name in pairs)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.input_size))
        return f"<Model {self.name}: {len(self.classes)} classes, pictures of {size}>"

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits (N, classes), on the model's device, of pictures (N, C, H, W) in [0, 1]."""
        shape, channels = tuple(pictures.shape), self.preprocessing.channels
        if len(shape) != 4 or shape[1] != channels or not pictures.is_floating_point():
            raise UserError(
                f"{self.name} takes float pictures of shape (N, {channels}, H, W), "
                f"got {shape} of {pictures.dtype}"
            )
        try:
            with evaluating(self.net), plain_float32():
                logits = self.pick(self.net(self.normalize(pictures.to(self.device))))
        except (AssertionError, RuntimeError, ValueError, IndexError) as error:
            if shape[2:] == self.input_size or "memory" in str(error):
                raise
            raise UserError(
                f"{self.name} does not take pictures of {shown(shape[2:])} pixels "
                f"({plain(error) or 'it checks their size'}); give {shown(self.input_size)}"
            ) from None
        if self.headless:
            raise self._no_logits()
        if len(logits) != shape[0]:
            raise UserError(
                f"{self.name} gives {len(logits)} rows for {shape[0]} pictures of "
                f"{shown(shape[2:])} pixels; give {shown(self.input_size)}"
            )
        check_finite(logits, f"logits of {self.name}")
        return logits.float() if self.low_precision else logits

    def normalize(self, pictures: Tensor) -> Tensor:
        """The net's own input for pictures (N, C, H, W) in [0, 1]."""
        if self.preprocess is not None:
            normal = self.preprocess(pictures)
        elif self.preprocessing.inside:
            normal = pictures
        else:
            normal = (pictures - self.mean) / self.std
            normal = normal.flip(1) if self.preprocessing.blue_first else normal
        return normal.to(self.low_precision) if self.low_precision else normal

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
    def layers(self) -> Layers:
        """Every module that a forward pass runs, by alias or else by path, in the order of use.

        Those before the first absent one. A module that runs several times is a layer with each
        run: "relu#1", "relu#2" ..., and the last by its plain name.
        """
        try:
            with evaluating(self.net), plain_float32():
                records = record_modules(self.net, self.normalize(self.blank()), self.pick)
        except AttributeError as error:  # of the net's own code: `nn.Module` would hide its text
            raise RuntimeError(str(error)) from error
        names = {path: alias for alias, path in self.aliases.items()}
        present = takewhile(lambda key: records[key].path not in self.absent, records)
        layers = [_named(records[key], names) for key in present]
        return Layers({layer.name: layer for layer in layers})

    def layer(self, name: str) -> Layer:
        """The layer of an alias or a module path. Raises UserError with the nearest names."""
        if name in self.layers:
            return self.layers[name]
        by_key = {layer.key: layer for layer in self.layers.values()}
        if name and name in by_key:
            return by_key[name]
        plain, _, call = name.rpartition("#")
        if plain and call.isdigit() and self.layer(plain).calls == int(call):
            return self.layer(plain)
        if name == "logits" and self.headless:
            raise self._no_logits()
        hint = nearest(name, [*self.aliases, *self.layers])
        if any(isinstance(one, torch.jit.ScriptModule) for one in self.net.modules()):
            hint = "; modules of TorchScript cannot be read, wrap the Python module instead"
        raise UserError(f"{self.name} has no layer {name!r}{hint} (featviz layers lists them)")

    def called(self, name: str) -> Model:
        """The model itself, with another name in titles and results. Raises UserError."""
        if not name.strip() or not name.isprintable():
            raise UserError(f"name {name!r} cannot be shown; write a short text, as scratch-v2")
        self.name = name.strip()
        return self

    def class_name(self, index: int) -> str:
        """The short name of a class: "goldfish" of "goldfish, Carassius auratus"."""
        return self.classes[index].partition(",")[0]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The short names of all classes."""
        return tuple(map(self.class_name, range(len(self.classes))))

    def find_classes(self, name: str) -> tuple[int, ...]:
        """All classes that a synset or a name fits: several where it is ambiguous."""
        return class_finder(self.synsets, self.classes)(name)

    def find_class(self, name: str) -> int | None:
        """The class of a synset or a name, or None if none fits, or several do."""
        found = self.find_classes(name)
        return found[0] if len(found) == 1 else None

    def class_index(self, name: str | int) -> int:
        """The class of an index (from 0), a synset or a name.

        Raises:
            UserError: for an unknown class with the nearest names, for an ambiguous name with the
                classes that it fits, and for an index below 0 or above the last.
        """
        name = one_item(name, "class")
        if isinstance(name, int) or name.isdecimal():
            return index_below(int(name), len(self.classes), f"{self.name}: class")
        found = self.find_classes(name)
        if not found:
            parts = {p.strip() for full in self.classes for p in full.split(",")}
            raise UserError(f"{self.name} has no class {name!r}{nearest(name, parts)}")
        if len(found) > 1:
            raise UserError(f"{name!r} is ambiguous: {self.described(found)}; give the number")
        return found[0]

    def described(self, classes: Sequence[int]) -> str:
        """Classes with all that names them: "134 (n02012849, crane), 517 (n03126707, crane)"."""
        shown = [
            f"{c} ({', '.join(text for text in (self.synsets[c], self.classes[c]) if text)})"
            for c in classes[:5]
        ]
        return ", ".join(shown) + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")

    @cached_property
    def sha256(self) -> str:
        """Hash of the weights as they compute (names, shapes, float32 bytes), not of a file."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.net.state_dict().items()):
            digest.update(_content(name, tensor))
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """The model's entry in result.json."""
        return {
            "name": self.name,
            **({"architecture": self.architecture} if self.architecture != self.name else {}),
            "sha256": self.sha256,
            "input_size": list(self.input_size),
            "classes": len(self.classes),
            "preprocessing": self.preprocessing.record(),
            **({"notes": list(self.notes)} if self.notes else {}),
        }

    def restated(self, stated: Stated, classes: Sequence[tuple[str, str]] | None = None) -> Model:
        """The same model with another preprocessing or other names of classes, where given."""
        preprocessing = self.preprocessing.changed(stated)
        if preprocessing == self.preprocessing and classes is None:
            return self
        return Model(
            self.net,
            name=self.name,
            preprocessing=preprocessing,
            aliases=self.aliases,
            classes=classes or list(zip(self.synsets, self.classes, strict=True)) or None,
            headless=self.headless,
            absent=self.absent,
            preprocess=self.preprocess,
            output=self.pick.choice,
            notes=[note for note in self.notes if not note.startswith("the preprocessing of")],
        )

    def need_classes(self) -> None:
        """Raise UserError unless the model tells classes apart."""
        if self.headless:
            raise self._no_logits()

    @property
    def _output_shape(self) -> tuple[int, ...]:
        if "logits" not in self.layers:
            raise UserError(
                f"{self.name} does not give one row for one picture; keep the axis of the pictures "
                "in it (no view(-1, ...) over it, no squeeze() without an axis)"
            )
        return self.layers["logits"].shape

    def _take_logits_of_probabilities(self) -> None:
        last = next((one.operation for one in self.layers.values() if not one.path), "")
        if last in PROBABILITIES:
            self.pick = replace(self.pick, operation=last)
            self.notes += (PROBABILITIES[last],)

    def _become_headless(self) -> None:
        """What gives maps or tokens has no logits; the whole is its layer "output"."""
        self.headless = True
        self.aliases["output"] = self.aliases.pop("logits")
        del self.layers

    def _doubts(self) -> tuple[str, ...]:
        """Why numbers of the model may differ from call to call, a sentence each."""
        doubts = []
        if any(layer.random for layer in self.layers.values()):
            doubts.append(
                "it draws random numbers in every pass (dropout without training=self.training?), "
                "so that no number is repeatable"
            )
        norms = [one for one in self.net.modules() if isinstance(one, _BatchNorm)]
        if any(norm.running_mean is None for norm in norms):
            doubts.append(
                "it normalizes by the mean of each batch (track_running_stats=False), so that "
                "every number depends on the other pictures and on batch_size"
            )
        return tuple(doubts)

    def _no_logits(self) -> UserError:
        if "output" in self.aliases:
            return UserError(
                f"{self.name} gives {self.layer('output').shape} for a picture and not one number "
                "a class; use its layers (the last is output), or choose numbers with output="
            )
        return UserError(
            f"the weights of {self.name} are a trunk without a head: it has features but no "
            "logits; use its layers, or give complete weights"
        )


def _named(record: ModuleRecord, names: Mapping[str, str]) -> Layer:
    """A record with the alias of its module, and the number of its run where it has one."""
    name = names.get(record.path, record.path) + record.key.removeprefix(record.path)
    return Layer(name=name, **vars(record))


def _content(name: str, value: Any) -> bytes:
    """An entry of a state_dict as bytes that are equal where it computes alike."""
    if isinstance(value, tuple | list):
        return b"".join(_content(f"{name}.{i}", part) for i, part in enumerate(value))
    if not isinstance(value, Tensor):
        return f"{name}{value}".encode()
    plain = value.detach().cpu().contiguous()
    start = f"{name}{tuple(plain.shape)}".encode()
    if plain.is_quantized:
        scales = f"{plain.qscheme()}" + (
            f"{plain.q_scale()}{plain.q_zero_point()}"
            if plain.qscheme() in {torch.per_tensor_affine, torch.per_tensor_symmetric}
            else f"{plain.q_per_channel_scales().tolist()}{plain.q_per_channel_zero_points()}"
        )
        return start + scales.encode() + plain.int_repr().numpy().tobytes()
    return start + plain.reshape(-1).view(torch.uint8).numpy().tobytes()
