"""`wrap(module)`: any network as a `Model`.

What is not stated is found out: channels by the first convolution, the size by trial passes, a
normalization within the network by what reaches its first convolution. What cannot be found out is
assumed, and is said in `Model.preprocessing.assumed` and with every result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from featviz.errors import UserError, nearest, public
from featviz.models import huggingface
from featviz.models.frozen import evaluating
from featviz.models.model import Model
from featviz.models.outputs import Choice
from featviz.models.receptive_field import CONVOLUTIONS
from featviz.models.transforms import stated_by_transforms
from featviz.pictures.preprocessing import Preprocessing, Size, Stated, shown
from featviz.types import Channels

if TYPE_CHECKING:
    from torch.export import ExportedProgram

USUAL = (224, 32, 28, 64, 96, 128, 192, 227, 240, 256, 288, 299, 320, 384, 448, 512)
"""sides that are tried, in this order"""
_SUSPECT = (160, 288, 96)
"""sides that only a network takes that takes any"""


@public
def wrap(
    module: nn.Module | ExportedProgram,
    *,
    input_size: Size | None = None,
    resize: Size | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    preprocess: object = None,
    channels: Channels | None = None,
    output: Choice | None = None,
    classes: Sequence[str] | None = None,
    aliases: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Model:
    """Your own network as a `Model`, for every analysis of featviz.

    The module is used as it is and stays yours: it computes in eval mode and without gradients to
    its parameters while featviz calls it, and its mode and `requires_grad` are put back after each
    call. Of `DataParallel` and `torch.compile` the module within is used. Of TorchScript and
    `torch.export` only the outputs can be read, not the layers.

    What is not given is found out where it can be, or else assumed: see `model.preprocessing` and
    its field `assumed`, and `model.notes`.

    Args:
        module: takes pictures (N, channels, height, width), gives logits (N, classes).
        input_size: side of the pictures in pixels, or (height, width). Default: what the network's
            configuration says, or the usual size that it takes; 224 where it takes any.
        resize: length of the shorter side before the center crop, or (height, width). Default:
            `input_size`.
        mean: of each channel of pictures in [0, 1], or one for all, subtracted. Default: 0.
        std: of each channel, or one for all, by which pictures are then divided. Default: 1. A
            network that normalizes by itself is recognized, and not given normalized pictures.
        preprocess: torchvision's transforms of the evaluation or a HuggingFace image processor,
            from which size, resizing, interpolation, mean and std are read; or a function from
            pictures (N, C, H, W) in [0, 1] to the module's input, in place of `mean` and `std`.
        channels: of the pictures: 1 gray, 3 RGB, 4 RGBA. Default: those of the first convolution.
        output: which part of what the network gives are the logits: a name, an index, or a
            function. Default: the tensor itself, `logits`, or the one part (N, classes).
        classes: the name of each class in the order of the logits; default "class 0" ... Of one
            logit, which is read by a sigmoid, the name of class 1, or of both.
        aliases: short names of layers, each with the path of its module: {"conv1": "features.0"}.
            "logits" is the output of the whole module unless it is given here.
        name: for titles and result folders; default the name of the module's class.

    Returns:
        The model. Its `layers` are all modules that run in a forward pass, by alias or path; of a
        module that runs several times, each run ("relu#1").

    Raises:
        UserError: if `mean` or `std` have another count than the channels, an alias names no
            module, the module does not take such pictures or gives several outputs, or `classes`
            has another length than the logits.

    Example:
        net = torch.load("net.pt", weights_only=False)
        model = featviz.wrap(net, input_size=32, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
        featviz.maximize(model, "layer3", units=[0, 1]).save("run/layer3")
    """
    stated = Stated(
        size=input_size,
        resize=resize,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
        channels=channels,
    )
    function = None
    if preprocess is not None:
        read = stated_by_transforms(preprocess)
        if read is None and not callable(preprocess):
            raise UserError(
                f"preprocess is a {type(preprocess).__name__}; give torchvision's transforms, an "
                "image processor, or a function of pictures"
            )
        function = preprocess if read is None and callable(preprocess) else None
        if function is not None and (mean is not None or std is not None):
            raise UserError("give mean and std, or a preprocess that normalizes, not both")
        stated = stated if read is None else stated.over(read)
    return as_model(
        module,
        stated,
        name=name,
        function=function,
        output=output,
        aliases=aliases,
        classes=None if classes is None else [("", text) for text in classes],
    )


def as_model(
    module: nn.Module | ExportedProgram,
    stated: Stated,
    *,
    name: str | None = None,
    function: Callable[[Tensor], Tensor] | None = None,
    aliases: Mapping[str, str] | None = None,
    classes: Sequence[tuple[str, str]] | None = None,
    notes: Sequence[str] = (),
    **options: Any,
) -> Model:
    """A module as a `Model`, with what is stated of its preprocessing; see `wrap`."""
    net, wrappers = _plain_module(module)
    paths = dict(net.named_modules())
    for alias, path in (aliases or {}).items():
        if path not in paths:
            raise UserError(f"alias {alias}: no module {path!r}{nearest(path, paths)}")
    if classes is None:
        named = huggingface.class_names(net)
        classes = None if named is None else [("", text) for text in named]
    name = name or getattr(module, "original_name", None) or type(net).__name__
    preprocessing, found = find_preprocessing(net, name, stated, function)
    try:
        return Model(
            net,
            name=name,
            preprocessing=preprocessing,
            preprocess=function,
            aliases=aliases,
            classes=classes,
            notes=(*notes, *wrappers, *found),
            **options,
        )
    except _FAILURES as error:
        shape = (1, preprocessing.channels, *preprocessing.size)
        raise UserError(
            f"{name} does not take pictures {shape}: {_reason(error)}; check input_size, channels"
        ) from error


def _plain_module(module: Any) -> tuple[nn.Module, tuple[str, ...]]:
    """The module itself, out of what others have put around it, and what that was."""
    notes: list[str] = []
    if not isinstance(module, nn.Module) and hasattr(module, "graph_signature"):
        module = module.module()
        notes.append("an exported program: its layers cannot be read")
    if not isinstance(module, nn.Module):
        raise UserError(f"wrap takes a torch.nn.Module, not a {type(module).__name__}")
    while True:
        if isinstance(getattr(module, "_orig_mod", None), nn.Module):
            module = module._orig_mod
            notes.append("the module within torch.compile")
        elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            notes.append(f"the module within {type(module).__name__}")
            module = module.module
        else:
            break
    if isinstance(module, torch.jit.ScriptModule):
        module = _Scripted(module)
        notes.append("TorchScript: its layers cannot be read")
    return module, tuple(notes)


class _Scripted(nn.Module):
    """A module that takes hooks around one of TorchScript, which takes none."""

    def __init__(self, script: nn.Module):
        super().__init__()
        self.training = script.training
        self.script = script

    def forward(self, pictures: Tensor) -> Any:
        return self.script(pictures)


def find_preprocessing(
    net: nn.Module,
    name: str,
    stated: Stated,
    function: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Preprocessing, tuple[str, ...]]:
    """The preprocessing of a network, and what was found out, in words.

    Args:
        net: the network.
        name: for messages.
        stated: what is known.
        function: takes pictures to the network's input, in place of mean and std.

    Raises:
        UserError: if the network takes none of the usual sizes.
    """
    stated = stated.over(_configured(net))
    channels = stated.channels or _first_channels(net) or 3
    notes, assumed = [], []
    size = stated.size
    if size is None:
        size, several = _find_size(net, name, channels, function)
        if several:
            assumed.append("size")
        else:
            notes.append(f"takes pictures of {shown(size)} pixels")
    if stated.resize is None:
        assumed.append("resize")
    known = {"interpolation": stated.interpolation} if stated.interpolation else {}
    found = Preprocessing.of(
        size, resize=stated.resize, mean=stated.mean, std=stated.std, channels=channels, **known
    )
    own = _normalization(net, found, function)
    if own is not None and _agree(found, own, stated):
        inside = function is None
        found = replace(found, **own, inside=inside)
        what = "normalizes by itself" if inside else "preprocess normalizes"
        notes.append(f"{what}: mean {_listed(found.mean)}, std {_listed(found.std)}")
    else:
        assumed += [field for field in ("mean", "std") if getattr(stated, field) is None]
    return replace(found, assumed=tuple(assumed)), tuple(notes)


def _configured(net: nn.Module) -> Stated:
    """What the network's own configuration says: HuggingFace's or timm's."""
    timm = getattr(net, "pretrained_cfg", None) or getattr(net, "default_cfg", None)
    if isinstance(timm, Mapping) and len(timm.get("input_size") or ()) == 3:
        channels, height, width = timm["input_size"]
        return Stated(
            size=(height, width),
            resize=round(min(height, width) / (timm.get("crop_pct") or 1)),
            mean=tuple(timm.get("mean") or (0.0,)),
            std=tuple(timm.get("std") or (1.0,)),
            channels=channels,
        )
    return huggingface.stated(net)


def _first_channels(net: nn.Module) -> int | None:
    """The input channels of the first convolution, by the order of the modules."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    kernels = (p for p in net.parameters() if p.dim() == 4)
    return next((int(kernel.shape[1]) for kernel in kernels), None)


def _find_size(
    net: nn.Module, name: str, channels: int, function: Callable[[Tensor], Tensor] | None
) -> tuple[int, bool]:
    """The side of the pictures that a network takes, and whether it takes others, too."""
    trial = _Trial(net, channels, function)
    side = next((side for side in USUAL if trial.runs(side)), None)
    if side is not None:
        return side, any(trial.runs(other) for other in _SUSPECT if other != side)
    fitting = trial.fitting()
    if not fitting:
        raise UserError(
            f"{name} takes none of the usual sizes (of {USUAL[0]} pixels: {trial.reason}); "
            "state input_size, and channels if it is not "
            f"{channels}"
        )
    # The roundest: of 60 to 63 pixels 60.
    return max(fitting, key=lambda side: (side & -side, -side)), len(fitting) > 1


class _Trial:
    """Passes of a network with gray squares of different sizes."""

    def __init__(self, net: nn.Module, channels: int, function: Callable[[Tensor], Tensor] | None):
        self.net, self.channels, self.function = net, channels, function
        self.reason = ""
        """why the first size was refused"""

    def runs(self, side: int) -> bool:
        """Whether the network takes pictures of this side."""
        return self._run(side) is None

    def fitting(self) -> list[int]:
        """All sides with as many features as the first fully connected layer demands."""
        low, high = 1, 1024
        while low < high:
            side = (low + high) // 2
            seen, wanted = self._features(side)
            low, high = (side + 1, high) if seen < wanted else (low, side)
        found = []
        while low <= 1024 and self.runs(low):
            found.append(low)
            low += 1
        return found

    def _features(self, side: int) -> tuple[int, int]:
        """How many features reach the layer that refuses them, and how many it demands."""
        products = _Products()
        with products:
            self._run(side)
        return products.last

    def _run(self, side: int) -> Exception | None:
        gray = torch.full((1, self.channels, side, side), 0.5)
        try:
            with torch.no_grad(), evaluating(self.net):
                self.net(_as_input(self.net, gray, self.function))
        except _FAILURES as error:
            self.reason = self.reason or _reason(error)
            return error
        return None


class _Products(TorchDispatchMode):
    """Within it the last matrix product: features that came, and features that it has."""

    last = (0, 1)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # see receptive_field

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket.__name__ in {"addmm", "mm"}:
            left, right = args[-2:]
            self.last = (int(left.shape[-1]), int(right.shape[0]))
        return func(*args, **(kwargs or {}))


def _normalization(
    net: nn.Module, plain: Preprocessing, function: Callable[[Tensor], Tensor] | None
) -> dict[str, Any] | None:
    """Mean and std (and whether blue comes first) by which constant pictures are changed on their
    way to the first convolution; None if they reach it as they are, or changed in another way."""
    channels = plain.channels
    ramp = torch.arange(1, channels + 1) / (channels + 1)
    reached = []
    for color in (torch.zeros(channels), torch.ones(channels), ramp):
        picture = color.view(1, -1, 1, 1).expand(1, channels, *plain.size).contiguous()
        value = _reaching(net, _as_input(net, picture, function), channels)
        if value is None:
            return None
        reached.append(value)
    black, white, middle = reached
    std = 1 / (white - black)
    mean = -black * std
    if not bool((std.isfinite() & (std > 0)).all()):
        return None
    flipped = channels == 3 and not torch.allclose(middle, (ramp - mean) / std, atol=1e-3)
    expected = ((ramp.flip(0) if flipped else ramp) - mean) / std
    if not torch.allclose(middle, expected, rtol=1e-3, atol=1e-3):
        return None
    if not flipped and bool(((mean.abs() < 1e-4) & ((std - 1).abs() < 1e-4)).all()):
        return None
    if flipped:
        mean, std = mean.flip(0), std.flip(0)
    rounded = [tuple(float(f"{v:.5g}") + 0.0 for v in values.tolist()) for values in (mean, std)]
    return {"mean": rounded[0], "std": rounded[1], "blue_first": flipped}


def _reaching(net: nn.Module, values: Tensor, channels: int) -> Tensor | None:
    """(C,) what reaches the first convolution of a constant picture, in its middle."""
    first = _First()
    try:
        with torch.no_grad(), evaluating(net), first:
            net(values)
    except _FAILURES:
        pass
    taken = first.taken
    if taken is None or taken.dim() != 4 or taken.shape[1] != channels:
        return None
    height, width = taken.shape[-2:]
    middle = taken[0, :, height // 4 : height - height // 4, width // 4 : width - width // 4]
    flat = middle.flatten(1).double()
    spread = flat.amax(1) - flat.amin(1)
    return None if bool((spread > 1e-3 * (1 + flat.abs().amax(1))).any()) else flat.mean(1).float()


class _First(TorchDispatchMode):
    """Within it the input of the first convolution, behind which the pass ends."""

    taken: Tensor | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # see receptive_field

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket.__name__ in CONVOLUTIONS:
            self.taken = args[0].detach().clone()
            raise RuntimeError("the first convolution has been reached")
        return func(*args, **(kwargs or {}))


def _agree(plain: Preprocessing, own: Mapping[str, Any], stated: Stated) -> bool:
    """Whether what is stated is what the network does by itself, so not to be done twice."""
    return all(
        getattr(stated, field) is None
        or all(
            abs(a - b) <= 1e-3 * (1 + abs(b))
            for a, b in zip(getattr(plain, field), own[field], strict=True)
        )
        for field in ("mean", "std")
    )


def _as_input(
    net: nn.Module, pictures: Tensor, function: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """Pictures on the network's device and in its precision."""
    weight = next((p for p in net.parameters() if p.is_floating_point()), pictures)
    given = pictures.to(weight.device)
    return (given if function is None else function(given)).to(weight.dtype)


_FAILURES = (
    RuntimeError,
    ValueError,
    TypeError,
    AssertionError,
    LookupError,
    AttributeError,
    ArithmeticError,
)
"""what networks raise when they are given pictures that they cannot take"""


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 120 else text[:117] + "..."


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
