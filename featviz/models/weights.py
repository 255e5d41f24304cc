"""Weights from a file into a net: read safely, names recognized, every mismatch named at once.

Read: safetensors, or a torch file with `weights_only=True`. Recognized: torchvision's names, the
same behind a wrapper's prefix ("module."), and Caffe conversions ("conv1.weight", "fc8.bias").
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from featviz.errors import UserError


class WeightsFile(NamedTuple):
    """The content of a file of weights."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    """strings stored beside the tensors (safetensors only)"""


CAFFE_LAYERS = {
    "conv1": "features.0",
    "conv2": "features.4",
    "conv3": "features.8",
    "conv4": "features.10",
    "conv5": "features.12",
    "fc6": "classifier.1",
    "fc7": "classifier.4",
    "fc8": "classifier.6",
}
"""Caffe's names in alexnet-2012's terms."""

_WRAPPERS = ("state_dict", "model_state_dict", "model", "model_state", "net")
_PREFIXES = ("module.", "model.", "net.", "_orig_mod.")
_SHOWN = 6  # mismatches written out before "and N more"


def read_weights(path: str | Path) -> WeightsFile:
    """The tensors of a file, by name. No code in it is ever run.

    Raises:
        UserError: if it is absent, cut short, of no known format, or a pickle that needs code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; --weights takes a .safetensors or a torch file")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return _read_safetensors(path)
    return _read_torch(path)


def _read_safetensors(path: Path) -> WeightsFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged, cut short or no safetensors file ({error}); get it again"
        ) from None
    return WeightsFile(tensors, metadata)


def _read_torch(path: Path) -> WeightsFile:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles; errors are reported below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = str(error).splitlines()[0].strip()
        raise UserError(
            f"{path} is refused: reading it could run code that it holds ({_short(wanted)}); "
            "save its state_dict alone, best as safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is no file of weights, or is cut short ({_short(str(error))}); get it again"
        ) from None
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = (
        {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise UserError(f"{path} holds no tensors by name; save a model's state_dict()")
    return WeightsFile(tensors, {})


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 120 else text[:117] + "..."


def rename(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the net's names, where their names are known ones."""
    renamed = dict(tensors)
    for prefix in _PREFIXES:
        if renamed and all(name.startswith(prefix) for name in renamed):
            renamed = {name.removeprefix(prefix): t for name, t in renamed.items()}
    if "conv1.weight" in renamed and "fc8.weight" in renamed and "features.0.weight" in wanted:
        renamed = {_from_caffe(name): t for name, t in renamed.items()}
    return renamed


def _from_caffe(name: str) -> str:
    layer, _, rest = name.partition(".")
    return f"{CAFFE_LAYERS[layer]}.{rest}" if layer in CAFFE_LAYERS else name


def count_classes(tensors: Mapping[str, Tensor], net: nn.Module) -> int | None:
    """How many classes the weights' last layer has, if the net's last layer is among them."""
    names = [n for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for name in reversed(names):
        if f"{name}.weight" in tensors:
            return int(tensors[f"{name}.weight"].shape[0])
    return None


def fill(net: nn.Module, file: WeightsFile, path: str | Path, name: str) -> bool:
    """Copy weights into the net.

    Returns:
        False where they are a trunk without a head.

    Raises:
        UserError: naming every missing, unknown and misshapen tensor.
    """
    wanted = net.state_dict()
    tensors = {
        key: t
        for key, t in rename(file.tensors, wanted).items()
        # Auxiliary heads are used in training only.
        if not (key.startswith(("aux1.", "aux2.", "AuxLogits.")) and key not in wanted)
    }
    unknown = [key for key in tensors if key not in wanted]
    missing = [k for k in wanted if k not in tensors and not k.endswith("num_batches_tracked")]
    shapes = [
        f"{key} is {_shape(tensors[key])}, not {_shape(wanted[key])}"
        for key in wanted
        if key in tensors and tensors[key].shape != wanted[key].shape
    ]
    head = ("classifier.", "fc.", "head.", "heads.")
    trunk_only = bool(missing) and all(key.startswith(head) for key in missing)
    if unknown or shapes or (missing and not trunk_only):
        problems = (
            shapes + [f"{k} is missing" for k in missing] + [f"{k} is unknown" for k in unknown]
        )
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise UserError(
            f"{path} does not fit {name}: {'; '.join(problems[:_SHOWN])}{more}; "
            "give weights of this architecture, or another --model"
        )
    bad = [key for key, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise UserError(f"{path} holds NaN or infinite weights ({', '.join(bad[:_SHOWN])})")
    # Whatever the file's precision (fp16, bf16), the net computes in float32.
    cast = {key: tensor.to(wanted[key].dtype) for key, tensor in tensors.items()}
    net.load_state_dict(cast, strict=False, assign=any(t.is_meta for t in wanted.values()))
    return not trunk_only


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def parse_classes(text: str) -> list[tuple[str, str]]:
    """(synset, name) of each class: lines "name" or "synset<TAB>name"; the synset may be ""."""
    found = []
    for line in text.splitlines():
        if line.strip():
            synset, tab, name = line.partition("\t")
            found.append((synset.strip(), name.strip()) if tab else ("", line.strip()))
    return found


def read_classes(
    file: str | Path | None, weights: str | Path | None, metadata: Mapping[str, str]
) -> list[tuple[str, str]] | None:
    """Class names from --classes, else from the weights' metadata, else FILE.classes.txt beside."""
    if file is not None:
        path = Path(file)
        if not path.is_file():
            raise UserError(f"{path}: no such file; --classes takes a text file, one class a line")
        return parse_classes(path.read_text(encoding="utf-8", errors="replace"))
    if "classes" in metadata:
        return [(str(synset), str(name)) for synset, name in json.loads(metadata["classes"])]
    if weights is not None:
        beside = Path(weights).with_suffix(".classes.txt")
        if beside.is_file():
            return parse_classes(beside.read_text(encoding="utf-8", errors="replace"))
    return None
