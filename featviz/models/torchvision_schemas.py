"""`import torchvision` beside a torch for which its compiled part was not built.

On Linux some indexes have torchvision only as a CUDA build. Beside a CPU torch its compiled part
does not load, and `import torchvision` fails for want of two operator schemas. They are supplied
here, after which its models, data sets and transforms work (its compiled operators and decoders do
not).
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[Any] = []  # a torch.library.Library lives as long as it is referenced


@cache
def supply_schemas() -> bool:
    """Make sure that `import torchvision` works; whether torchvision is installed at all."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    compiled = next(iter(Path(spec.origin).parent.glob("_C*")), None)
    if compiled is not None:
        try:
            torch.ops.load_library(str(compiled))
        except OSError:
            pass
        else:
            return True
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            library.define(schema)
        _libraries.append(library)
    return True
