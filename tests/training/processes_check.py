"""Trainings by one, two and three processes, which a test starts: writes what differs as said.json.

    python processes_check.py FOLDER

Processes are forked, so that torch is imported once.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which torch.optim would import in every process
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from featviz.errors import UserError
from featviz.models.alexnet import with_batch_norm
from featviz.training.data import Examples, read_examples
from featviz.training.loop import TrainSettings, train

EPOCHS, BATCH = 4, 8
"""42 pictures: five steps an epoch"""


class Net(nn.Module):
    """Convolution and dense layers with batch normalization, and dropout of both."""

    input_size = 12

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Dropout(0.1), nn.AdaptiveAvgPool2d(3),
            nn.Flatten(), nn.Linear(54, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


def net() -> nn.Module:
    torch.manual_seed(0)
    return with_batch_norm(Net())


def write_pictures(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for i in range(42):
        place = folder / f"class{i % 3}" / f"{i:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 120, (12, 12, 3), generator=generator)
        pixels[..., i % 3] += 100
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(place)
    (folder / "class1" / "01.png").write_bytes(b"broken")


def training(folder: Path, checkpoint: Path | None, **options: Any) -> Callable[[], Any]:
    """Returns (weights, accuracy, loss, rows that this process read, nets that share gradients).

    The last are those that are left where the group of processes ends.
    """

    def run() -> Any:
        learner = net()
        # Read in every epoch, so that a picture that cannot be read is met on the way.
        data = read_examples(folder, 12, memory_limit=100)
        read: list[int] = []
        take = Examples.take

        def noted(self: Examples, rows: Tensor) -> tuple[Tensor, Tensor]:
            if self is data:
                read.extend(rows.tolist())
            return take(self, rows)

        Examples.take = noted  # type: ignore[method-assign]
        left: list[int] = []
        destroy = dist.destroy_process_group

        def counted(group: Any = None) -> None:
            left.append(sum(type(o) is DistributedDataParallel for o in gc.get_objects()))
            destroy(group)

        dist.destroy_process_group = counted
        settings = TrainSettings(batch_size=BATCH, lr=0.05, precision="float32")
        result = train(
            learner, data, validation=read_examples(folder, 12), epochs=EPOCHS, settings=settings,
            device="cpu", checkpoint=checkpoint, **options,
        )  # fmt: skip
        last = result.epochs[-1]
        return learner.state_dict(), last.top1, last.loss, read, left

    return run


def together(count: int, work: Callable[[], Any], place: Path) -> list[Any]:
    """What each of `count` processes returns, or the error that it ends with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }  # fmt: skip
            try:
                torch.save(work(), place / f"{rank}")
            except UserError as error:
                torch.save(str(error), place / f"{rank}")
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    files = [place / str(rank) for rank in range(count)]
    found = [torch.load(f, weights_only=False) if f.exists() else None for f in files]
    for file in files:
        file.unlink(missing_ok=True)
    return found


def furthest(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    names = [name for name in some if some[name].is_floating_point()]
    return max(float((some[n] - others[n]).abs().max()) for n in names)


def main(folder: Path) -> None:
    write_pictures(folder / "data")
    said: dict[str, Any] = {}
    (one,) = together(1, training(folder / "data", None), folder)
    start = net().state_dict()
    said["moved"] = furthest(one[0], start)
    two = together(2, training(folder / "data", None), folder)
    said["weights of 2"] = max(furthest(one[0], other[0]) for other in two)
    said["loss of 2"] = max(abs(one[2] - other[2]) for other in two)
    said["top-1"] = [one[1], *(other[1] for other in two)]
    said["rows"] = [other[3] for other in two]
    said["left"] = [other[4] for other in two]

    stop = folder / "stopped.partial"

    def killed() -> Any:
        """The second of two processes is killed within the third epoch."""
        second = os.environ["RANK"] == "1"

        def progress(done: int, total: int, text: str) -> None:
            if second and done > 10:
                os.kill(os.getpid(), signal.SIGKILL)

        return training(folder / "data", stop, progress=progress)()

    began = time.monotonic()
    said["killed"] = together(2, killed, folder)
    said["seconds"] = time.monotonic() - began
    resumed = together(3, training(folder / "data", stop), folder)
    said["resumed by 3"] = max(furthest(one[0], other[0]) for other in resumed)
    said["rows after the resume"] = sum(len(other[3]) for other in resumed)
    (folder / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
