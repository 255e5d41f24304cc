"""Train an AlexNet on ImageNet, by the paper's recipe or by a modern one.

    featviz pack imagenet/train --out packs/train  # once, 252 GB
    featviz pack imagenet/val --out packs/val
    python recipes/train_imagenet.py --data packs/train --validation packs/val --out run/paper
    torchrun --nproc-per-node 8 recipes/train_imagenet.py --recipe modern --data packs/train \
        --validation packs/val --out run/modern

Stopped anywhere, the same command goes on from the last epoch, also with another number of
processes. It leaves in --out: `result/` with weights.safetensors, curves and kernels, and
`center/` and `ten-crop/`, the accuracy on the validation pictures of one crop and of ten.

`--recipe paper` is Krizhevsky, Sutskever and Hinton 2012: two groups, response normalization,
overlapping pools; the shorter side resized to 256 pixels, crops of 227 (224 in the text, with which
the map sizes of the text do not come out), mirrors, colors shifted along their principal axes;
momentum .9, weight decay 5e-4, batches of 128, a rate of .01 that is divided by 10 whenever the
validation error stops improving, 90 epochs; weights from N(0, .01), biases of 1 in conv2, conv4,
conv5, fc6 and fc7; dropout .5; ten crops in the test. It differs from the paper in three things:
the mean is subtracted for each color and not for each pixel, colors are clipped to [0, 1], and
"stops improving" is five epochs without a new best (there it was a person's judgment).

`--recipe modern` is torchvision's one-column form with batch normalization, crops of 25% to 100% of
the area, label smoothing, Nesterov's momentum, batches of 1024, a cosine over 90 epochs, bfloat16.

Target of the paper's recipe: 18.2% top-5 error on the validation pictures with ten crops (40.7%
top-1), which is a single network of the paper; its 15.3% on the test set is seven networks, two of
them trained first on the ImageNet release of 2011. Not reached here yet: no ImageNet and no card
were at hand. docs/training.md has the expected hours.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

import featviz
from featviz.checkpoints import remove_checkpoint
from featviz.errors import UserError
from featviz.models.alexnet import AlexNet, AlexNet2012, with_batch_norm
from featviz.torchrun import is_first, speaks
from featviz.training.data import Augmentation, read_examples
from featviz.training.loop import TrainSettings, snapshot_schedule, train
from featviz.training.result import TrainResult, as_model

SIDE = 256  # pixels of the shorter side
EPOCHS = 90


@dataclass(frozen=True)
class Recipe:
    """A network and its training."""

    architecture: str
    settings: TrainSettings

    def build(self, classes: int) -> AlexNet | AlexNet2012:
        """The network with its first weights."""
        torch.manual_seed(0)
        if self.architecture == "alexnet-2012":
            return paper_net(classes)
        net = AlexNet(classes)
        with_batch_norm(net)
        return net


RECIPES = {
    "paper": Recipe(
        "alexnet-2012",
        TrainSettings(
            batch_size=128,
            lr=0.01,
            momentum=0.9,
            nesterov=False,
            weight_decay=5e-4,
            label_smoothing=0.0,
            schedule="plateau",
            warmup=0.0,
            augmentation=Augmentation(whole_pixels=True, brightness=0.0, color=0.1),
        ),
    ),
    "modern": Recipe(
        "alexnet",
        TrainSettings(
            batch_size=1024,
            lr=0.4,  # .1 for each 256 pictures of a batch is usual with batch normalization
            momentum=0.9,
            weight_decay=5e-5,
            label_smoothing=0.1,
            schedule="cosine",
            warmup=5 / EPOCHS,
            augmentation=Augmentation(
                area=(0.25, 1.0), aspect=0.2877, brightness=0.3
            ),  # 3:4 to 4:3
        ),
    ),
}

# The paper divides by (2 + 1e-4 * sum)^.75. Our alexnet-2012, like Caffe's, divides by
# (1 + 2e-5 * sum)^.75, which is the same for values in other units: a = UNIT * a' gives
# a / (2 + 1e-4 * sum a^2)^.75 = PASSED * a' / (1 + 2e-5 * sum a'^2)^.75.
UNIT = 0.4**0.5
PASSED = UNIT * 2**-0.75


def paper_net(classes: int) -> AlexNet2012:
    """The paper's network as it begins."""
    net = AlexNet2012(classes)
    for place in (2, 6):
        # torch divides alpha by the number of channels, the paper does not.
        net.features[place] = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
    ones = {net.aliases[name] for name in ("conv2", "conv4", "conv5", "fc6", "fc7")}
    for path, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, 1.0 if path in ones else 0.0)
    return net


@torch.no_grad()
def in_caffes_units(net: AlexNet2012) -> AlexNet2012:
    """The same function with Caffe's constants of the response normalization, in place."""
    conv1, conv2, conv3 = (net.get_submodule(net.aliases[f"conv{i}"]) for i in (1, 2, 3))
    for layer in (conv1, conv2):
        layer.get_parameter("weight").div_(UNIT)
        layer.get_parameter("bias").div_(UNIT)
    for layer in (conv2, conv3):
        layer.get_parameter("weight").mul_(PASSED)
    for place in (2, 6):
        net.features[place] = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)
    return net


def main() -> None:
    """Read the arguments, train, test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="PATH", help="pack or folder")
    parser.add_argument("--validation", type=Path, required=True, metavar="PATH")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--recipe", choices=RECIPES, default="paper")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--batch-size", type=int, help="the rate is changed in proportion")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    try:
        run(given)
    except UserError as error:
        if speaks():
            print(f"train_imagenet: {error}", file=sys.stderr)
        sys.exit(2)


def run(given: argparse.Namespace) -> None:
    """Train as the arguments say."""
    recipe = RECIPES[given.recipe]
    settings, first = recipe.settings, is_first()
    if given.batch_size:
        rate = settings.lr * given.batch_size / settings.batch_size
        settings = replace(settings, batch_size=given.batch_size, lr=rate)
    examples = read_examples(given.data, SIDE, progress=show if first else None)
    net = recipe.build(len(examples.classes))
    tested = read_examples(given.validation, net.input_size, resize=SIDE, classes=examples.classes)
    result = train(
        net,
        examples,
        validation=tested,
        epochs=given.epochs,
        settings=settings,
        snapshot_steps=snapshot_schedule(given.epochs * len(examples) // settings.batch_size)[:12],
        device=given.device,
        checkpoint=given.out / "training.partial",
        name=recipe.architecture,
        progress=show if first else None,
    )
    if not first:
        return
    if isinstance(net, AlexNet2012):
        plain = as_model(in_caffes_units(net), examples.classes, name=recipe.architecture)
        result = replace(result, model=plain)
    test(result, recipe, given)
    remove_checkpoint(given.out / "training.partial")


def test(result: TrainResult, recipe: Recipe, given: argparse.Namespace) -> None:
    """Save the network, and its accuracy as it loads."""
    result.save(given.out / "result", overwrite=True)
    file = given.out / "result" / "weights.safetensors"
    model = featviz.load(recipe.architecture, weights=file, device=given.device)
    for name in ("center", "ten-crop"):
        found = featviz.evaluate(model, given.validation, ten_crop=name == "ten-crop")
        found.save(given.out / name, overwrite=True)
        top1, top5 = (100 * (1 - (share.value or 0.0)) for share in (found.top1, found.top_k))
        print(f"{name}: {top1:.1f}% top-1 error, {top5:.1f}% top-5 error")


def show(done: int, total: int, text: str) -> None:
    """Progress as lines on standard error, so that a log of it reads well."""
    print(f"{done}/{total} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
