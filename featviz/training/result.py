"""`TrainResult`: a trained model, its history, and its first kernels on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from featviz import results
from featviz.models.alexnet import fold_batch_norm
from featviz.models.load import BUILTIN
from featviz.models.model import Model
from featviz.pictures import films, images
from featviz.pictures.preprocessing import Preprocessing
from featviz.statistics import share
from featviz.training.figures import draw_history
from featviz.training.files import save_growth, save_weights
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SCALING = "Each kernel is scaled by its own largest absolute weight; gray is 0."


@dataclass(frozen=True)
class Epoch:
    """Measurements of one epoch."""

    epoch: int
    """counted from 1"""
    step: int
    loss: float
    """mean training loss"""
    lr: float
    """learning rate at its end"""
    top1: float | None
    """validation accuracy, a fraction; None without validation pictures"""
    top5: float | None
    seconds: float
    pictures_per_second: float


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainResult(results.Result):
    """A trained model, its history, and its first kernels on the way."""

    kind: ClassVar[str] = "train"

    model: Model
    """batch normalization folded in; ready for every analysis"""
    epochs: tuple[Epoch, ...]
    validation_pictures: int
    kernels: Tensor
    """(S, N, 3, k, k): the first layer's kernels at S snapshots, the last at the end"""
    kernel_steps: tuple[int, ...]
    """training steps done at each snapshot"""
    kernel_top1: tuple[float | None, ...]
    """validation accuracy (a fraction) at each snapshot"""

    @property
    def title(self) -> str:
        return f"Training of {self.model.name}"

    def numbers(self) -> dict[str, results.Number]:
        last = self.epochs[-1]
        speed = sum(e.pictures_per_second for e in self.epochs) / len(self.epochs)
        accuracies = {"top-1": last.top1, "top-5": last.top5}
        return {
            **{name: self._accuracy(x) for name, x in accuracies.items() if x is not None},
            "loss": results.Number(last.loss, "", "of the training pictures in the last epoch"),
            "epochs": results.Number(last.epoch, "", counted(last.step, "step")),
            "speed": results.Number(round(speed), "pictures/s", "mean over epochs"),
            "time": results.Number(round(sum(e.seconds for e in self.epochs)), "s", "all epochs"),
        }

    def _accuracy(self, fraction: float) -> results.Number:
        n = self.validation_pictures
        return share(round(fraction * n), n).number(
            "of the validation pictures, after the last epoch"
        )

    def write(self, folder: results.Folder) -> None:
        save_weights(self.model, folder.path / "weights.safetensors")
        save_growth(
            folder.path / "kernels.safetensors", self.kernels, self.kernel_steps, self.kernel_top1
        )
        folder.figure(
            "history.svg",
            self.plot(),
            caption="Training loss (left) and validation accuracy (right) after each epoch. The "
            "loss includes what the training adds: smoothing, a teacher, changed pictures.",
            alt="Two line plots over epochs: the loss decreases, the accuracy increases",
        )
        self._write_kernels(folder)

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "history.csv",
            [f.name for f in fields(Epoch)],
            [astuple(e) for e in self.epochs],
            caption="One line an epoch.",
        )

    def _write_kernels(self, folder: results.Folder) -> None:
        frames = [images.contact_sheet(images.around_gray(k), gap=1) for k in self.kernels]
        larger = max(1, 440 // frames[0].shape[-1])
        folder.figure(
            "kernels.png",
            images.enlarge(frames[-1], larger),
            pixelated=True,
            caption=f"All {self.kernels.shape[1]} kernels of the first layer at the end. "
            f"{_SCALING}",
            alt="Contact sheet of the first layer's kernels",
        )
        if len(frames) == 1:
            return
        films.write_gif(
            [images.enlarge(frame, larger) for frame in frames],
            folder.path / "kernels.gif",
            seconds_per_frame=0.25,
        )
        steps = ", ".join(f"{step:,}" for step in self.kernel_steps)
        folder.figure(
            "kernels.gif",
            None,
            pixelated=True,
            caption=f"The kernels of the first layer after {steps} steps. {_SCALING}",
            alt="Film of the first layer's kernels, from noise to edges",
        )

    def plot(self) -> Figure:
        return draw_history(
            [e.epoch for e in self.epochs],
            [e.loss for e in self.epochs],
            {"top-5": [e.top5 for e in self.epochs], "top-1": [e.top1 for e in self.epochs]},
        )


def as_model(
    net: nn.Module,
    folders: Sequence[str],
    *,
    name: str | None = None,
    class_names: Mapping[str, str] | None = None,
) -> Model:
    """A copy of a trained net as `featviz.load` would give it: batch normalization folded in.

    Args:
        net: Takes normalized pictures.
        folders: The class folders in label order.
        name: Of the model. Default: that of a built-in net, else of its class.
        class_names: A readable name for each folder.
    """
    names = class_names or {}
    builtin: dict[type[nn.Module], str] = {form: known for known, form in BUILTIN.items()}
    plain = fold_batch_norm(deepcopy(net).cpu())
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    plain.eval().requires_grad_(False)
    return Model(
        plain,
        name=name or builtin.get(type(net), type(net).__name__),
        preprocessing=Preprocessing.of(
            int(getattr(net, "input_size", 64)),
            mean=getattr(net, "mean", None),
            std=getattr(net, "std", None),
        ),
        aliases=getattr(net, "aliases", None),
        classes=[(f, names[f]) if f in names else ("", f) for f in folders],
    )
