"""HuggingFace's image classifiers: from a local folder, and what their configuration says.

Only `load_folder` imports transformers. Nothing is downloaded, and no code in a folder is run.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from featviz.errors import UserError
from featviz.models.torchvision_schemas import supply_schemas
from featviz.models.transforms import stated_by_processor
from featviz.pictures.preprocessing import Stated


def load_folder(folder: str | Path) -> nn.Module:
    """The image classifier of a folder that `save_pretrained` has written.

    Raises:
        UserError: if transformers is not installed, or the folder holds no such model.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no config.json; hf/ takes a local folder that save_pretrained wrote"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, about itself
        supply_schemas()  # it imports torchvision
        try:
            from transformers import AutoModelForImageClassification
            from transformers.utils import logging
        except ImportError:
            raise UserError(
                f"hf/{folder} needs transformers; pip install -c constraints.txt transformers"
            ) from None
        logging.disable_progress_bar()
        try:
            net: nn.Module = AutoModelForImageClassification.from_pretrained(
                folder, local_files_only=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"{folder} holds no image classifier ({reason})") from None
    return net


def class_names(net: nn.Module) -> list[str] | None:
    """The names of the classes in a network's configuration, in order; None if it has none."""
    labels = getattr(getattr(net, "config", None), "id2label", None)
    if not isinstance(labels, dict) or not labels:
        return None
    named = sorted((int(index), str(name)) for index, name in labels.items())
    if all(name == f"LABEL_{index}" for index, name in named):
        return None
    return [name for _, name in named]


def stated(net: nn.Module) -> Stated:
    """What a network's configuration, and the image processor beside it, say."""
    config = getattr(net, "config", None)
    if config is None or not hasattr(config, "id2label"):
        return Stated()
    size: Any = getattr(config, "image_size", None)
    if isinstance(size, list | tuple):
        size = (int(size[0]), int(size[1]))
    known = Stated(
        size=size if isinstance(size, int | tuple) else None,
        channels=getattr(config, "num_channels", None),
    )
    beside = Path(str(getattr(config, "_name_or_path", ""))) / "preprocessor_config.json"
    if not beside.is_file():
        return known
    return stated_by_processor(json.loads(beside.read_text(encoding="utf-8"))).over(known)
