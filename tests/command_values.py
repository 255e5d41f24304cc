"""Wrong values for every option of every command, made from the commands' own description."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
from PIL import Image

from featviz.arguments import Bounds, bare, bounds
from featviz.cli.main import COMMANDS
from featviz.cli.options import describe_options

# A cheap run of each command; the option that is tried comes after these and so replaces them.
CHEAP: dict[str, list[str]] = {
    "classify": [],
    "layers": [],
    "kernels": ["--units", "0"],
    "maps": ["--layer", "conv1", "--units", "0"],
    "maximize": ["--layer", "conv1", "--units", "0", "--steps", "1", "--size", "16"],
    "facets": ["--layer", "conv1", "--units", "0", "--count", "2", "--steps", "1", "--size", "16"],
    "interpolate": ["--layer", "conv1", "--count", "3", "--steps", "1", "--size", "16"],
    "redraw": ["--layer", "conv1", "--steps", "1"],
    "attribute": ["--methods", "saliency"],
    "embed": ["--layer", "conv1"],
    "neighbors": ["--layer", "conv1"],
    "atlas": ["--layer", "conv1", "--method", "preview", "--most", "100"],
    "attack": ["--steps", "1"],
    "audit": ["--count", "2", "--norm", "linf", "--eps", "8/255", "--parts", "none"],
    "corrupt": ["--names", "brightness", "--severities", "1", "--count", "2"],
    "universal": ["--steps", "1", "--count", "4"],
    "train": ["--epochs", "1", "--batch-size", "2"],
    "eval": [],
    "demo": ["--quick"],
    "gallery": ["."],
    "compare": ["alexnet-mini", "alexnet-mini"],
    "describe": ["conv2", "--units", "0-3", "--permutations", "60"],
    "circuit": ["conv2:1", "--count", "4", "--depth", "1", "--height", "0"],
    "report": ["."],
    "grid": ["--layer", "conv1", "--cells", "1", "--groups", "1", "--steps", "1"],
    "cards": ["."],
    "concepts": ["fc7", "--count", "2"],
    "ablate": ["fc7:0", "--count", "4"],
    "attribute-layer": ["fc7", "--steps", "1"],
    "patch-activations": ["one.png", "other.png"],
    "explore": ["--count", "8"],
    "pack": ["."],
}

# What the options that take text or a path hold. A new option has to be put here.
KINDS = {
    "picture": ("pictures", "picture", "source", "base"),
    "pictures": ("data", "validation", "stimuli"),
    "weights": ("weights", "other_weights"),
    "names": ("classes", "class_names", "other_classes", "categories"),
    "store": ("store", "beside", "concepts", "directions"),
    "file": ("statistics", "growth", "groups", "vocabulary", "snapshots"),
    "out": ("out",),
    "run": ("run", "folders"),
    "model": ("model", "text_model", "other", "against", "first", "second"),
    "device": ("device",),
    "layer": ("layer", "layers", "anchor", "expand"),
    "units": ("units",),
    "unit": ("unit",),
    "class": ("target", "targets", "class_name", "right_class"),
    "eps": ("eps", "eps_l2", "eps_l1", "eps_l0"),
    "choice": (
        "norm",
        "method",
        "methods",
        "preset",
        "parametrization",
        "names",
        "parts",
        "check",
        "schedule",
        "film",
        "precision",
        "objective",
        "corruptions",
        "baseline",
    ),
    "count": ("positions",),
    "numbers": ("severities", "sides", "icon_side"),
    "query": ("query",),
    "requirement": ("require",),
    "time": ("time",),
    "pixels": ("input_size", "resize"),
    "color": ("mean", "std"),
    "free": ("title", "label", "name"),
}

WORDS: dict[str, tuple[str, ...]] = {
    "choice": ("nonsense", ",", "lin f", "-1", "é"),
    "count": ("0", "-1", "a", "1.5", "nan", "²", "9" * 400, ""),
    "numbers": ("0", "-1", "a", "1,,2x", "99999999999", "1.5", "nan"),
    "model": ("alexnet-min", "timm/", "torch.nn.Linear", "../x", "é", ":"),
    "device": ("cuda:99", "gpu", "cpu:", "cuda:-1", "mps", "meta"),
    "layer": ("conv9", "conv1.weight", "-", ",", "0"),
    "unit": ("conv1", "conv1:", "conv1:999999", "conv1:-1", "nope:1", "conv1:1@", "conv1:1@99,99",
             "conv1:1-0", "conv1:1@1", "conv1:x", ":", "conv1:1:2", "conv1:1@-1,0"),
    "units": ("", "conv1:", "999999", "-1", "nope:1", "1@", "0@99,99", "1-0", "x", ",", "0@1",
              "conv1:1-0", "0-999999999999", "1.5", "--"),
    "class": ("goldfsh", "999999", "-1", "1.5", " ", "é", "nan"),
    "eps": ("-1", "nan", "inf", "1/0", "abc", "8/255/2", "1e400", "/", "300", ","),
    "query": ("999999999", "-1", "class:nope", "missing.jpg", "1 +", "+", "class:", "1 - 1", ","),
    "requirement": ("nonsense", ">=", "top1.low"),
    "time": ("1x", "-1m", "0", "nan", "inf", "nans", "1e400s", "m"),
    "pixels": ("0", "-1", "abc", "224x", "x", "0x0", "99999999", "1e3", "nan", "2x3x4"),
    "color": ("abc", "nan", "inf", "1,2", "1,,2", "1e999", ","),
    "free": (),
}  # fmt: skip


@dataclass(frozen=True)
class Option:
    """An option or argument of a command."""

    command: str
    name: str
    spelling: str
    """--batch-size; of an argument its name"""
    kind: Any
    """its type, with bounds"""

    @property
    def kinds(self) -> tuple[Any, ...]:
        plain = bare(get_args(self.kind)[0])
        members = get_args(plain) if get_origin(plain) in {Union, UnionType} else (plain,)
        return tuple(one for one in members if one is not NoneType)

    @property
    def limits(self) -> Bounds | None:
        return bounds(self.kind) or bounds(get_args(self.kind)[0])

    @property
    def number(self) -> bool:
        return self.kinds in {(int,), (float,)}

    @property
    def choices(self) -> tuple[str, ...]:
        """Of options that take one of some words."""
        return get_args(self.kinds[0]) if get_origin(self.kinds[0]) is Literal else ()

    @property
    def content(self) -> str:
        """The kind of text or path."""
        return next(kind for kind, names in KINDS.items() if self.name in names)

    def words(self, value: str) -> list[str]:
        """The command line with this value."""
        if self.spelling.startswith("--"):
            return [self.command, *CHEAP[self.command], f"{self.spelling}={value}"]
        given = CHEAP[self.command]
        return [
            self.command,
            *(given[1:] if self.command in {"gallery", "compare", "report"} else given),
            value,
        ]


def all_options() -> list[Option]:
    """Every option and argument of every command that takes a value."""
    found = []
    for modules in COMMANDS.values():
        for module in modules:
            function = module.__name__.rpartition(".")[2]
            for name, one in describe_options(getattr(module, function)).items():
                option = Option(function.replace("_", "-"), name, one.spelling, one.kind)
                if option.kinds != (bool,):
                    found.append(option)
    return found


def wrong_numbers(option: Option) -> list[str]:
    """Texts that are no number of the option's type, and numbers outside of its bounds."""
    limits = option.limits
    assert limits is not None
    return [
        text
        for text in (*_TRIED, f"{limits.low - 1:.17g}", f"{limits.high * 2:.17g}")
        if not _fits(option, text)
    ]


def few_wrong_numbers(option: Option) -> list[str]:
    """Three of them, of each kind one."""
    assert option.limits is not None
    return ["1e3x", "nan", f"{option.limits.low - 1:.17g}"]


_TRIED = ("abc", "nan", "inf", "-inf", "0x10", "1,000", "½", "²", "--", "1 2", "", "-1", "0", "0.5",
          "1e308", "1e400", str(2**31), str(2**63), str(10**400))  # fmt: skip


def _fits(option: Option, text: str) -> bool:
    assert option.limits is not None
    try:
        value = int(text) if option.kinds == (int,) else float(text)
    except ValueError:
        return False
    return value in option.limits


def make_files(folder: Path) -> None:
    """Files and folders that are not what an option wants."""
    (folder / "empty.bin").write_bytes(b"")
    (folder / "text.txt").write_text("no path here\nneither here\n")
    (folder / "text.jpg").write_text("no picture")
    (folder / "bytes.bin").write_bytes(bytes(range(256)) * 8)
    (folder / "empty").mkdir()
    (folder / "folder").mkdir()
    (folder / "folder" / "letter.txt").write_text("dear reader")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    (folder / "cut.png").write_bytes((folder / "picture.png").read_bytes()[:900])
    os.mkfifo(folder / "pipe")
    (folder / "dangling").symlink_to(folder / "nowhere")
    with open(os.fsencode(folder) + b"/\xff\xfe.txt", "wb") as odd:
        odd.write(b"\xff\xfe")


_ODD = os.fsdecode(b"\xff\xfe.txt")
_FILES = ("absent", "empty.bin", "text.txt", "bytes.bin", "empty", "folder", "picture.png", "pipe",
          "dangling", "/dev/null", "/dev/zero", _ODD, "x" * 300, "picture.png/x", "")  # fmt: skip
_WRONG_FILES = {
    "picture": [*(set(_FILES) - {"picture.png"}), "text.jpg", "cut.png"],
    "pictures": [*(set(_FILES) - {"picture.png"})],
    "weights": _FILES,
    "names": [*(set(_FILES) - {"text.txt"})],
    "store": _FILES,
    "file": _FILES,
    "out": ("picture.png", "folder", "picture.png/x", "/dev/null", "pipe", "x" * 300, ""),
    "run": [*(set(_FILES))],
}


def wrong_texts(option: Option) -> list[str]:
    """Values that an option of text or a path cannot take."""
    if option.choices:
        return ["nonsense", option.choices[0].upper() + "x", "", ","]
    return sorted({*_WRONG_FILES.get(option.content, ()), *WORDS.get(option.content, ())})
