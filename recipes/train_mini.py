"""Train alexnet-mini, the model that comes with featviz, on Tiny ImageNet.

    python recipes/train_mini.py --data tiny-imagenet --teacher alexnet.safetensors --out run/mini

--data holds train/<synset>/ and val/<synset>/ with pictures of 64 pixels; --teacher is an AlexNet
for the same classes (torchvision's names, class names beside it), whose logits the small net
learns from. Stopped with Ctrl-C or killed, the same command goes on from the last epoch. What it
leaves in --out: the teacher's logits, a result folder `result/` with curves and kernels, and the
three files of featviz/assets.

Result (21 November 2026): top-1 50.0%, top-5 75.6% of 5,000 validation pictures for the fp16 file,
in 68 minutes on one core with bfloat16 instructions (573 pictures a second at 48 pixels, 482 at
64), after 6 minutes for the teacher's logits. The teacher itself reaches 51.1 / 76.9. On Linux both
are faster when memory is kept between steps, not given back and fetched anew (the teacher's pass by
a factor of two to three):

    export GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_MAX_=0 MALLOC_ARENA_MAX=1
    export MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=100000000
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import featviz
from featviz.checkpoints import remove_checkpoint
from featviz.errors import UserError
from featviz.models.alexnet import AlexNetMini, with_batch_norm
from featviz.models.model import Model
from featviz.training.data import Augmentation, Examples, read_examples
from featviz.training.files import save_growth, save_weights
from featviz.training.loop import TrainSettings, hold_then_decay, train
from featviz.training.result import TrainResult

EPOCHS = 21


def main() -> None:
    """Read the arguments, teach, train, export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--teacher", type=Path, required=True, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    # One thread: on a machine with other work, threads wait for each other within every operation.
    torch.set_num_threads(1)

    examples = read_examples(arguments.data / "train", 64, progress=show)
    validation = read_examples(arguments.data / "val", 64, classes=examples.classes)
    teacher = featviz.load("alexnet", weights=arguments.teacher)
    logits = teach(teacher, examples, arguments.out / "teacher.safetensors")
    names = dict(zip(teacher.synsets, teacher.classes, strict=True))

    torch.manual_seed(0)
    net = with_batch_norm(AlexNetMini(len(examples.classes), dropout=0.0))
    settings = TrainSettings(
        batch_size=256,
        lr=0.2,  # .1 for each 128 pictures of a batch is usual with batch normalization
        momentum=0.9,
        weight_decay=3e-4,  # little: a small net, few epochs, hardly any overfitting
        label_smoothing=0.0,  # the teacher's probabilities are soft already
        schedule=hold_then_decay(0.4),  # then linearly to zero
        warmup=0.0429,  # 351 of 8,190 steps
        # Pictures of 48 pixels cost half as much; the last epochs use the model's own size.
        sizes={0: 48, 11: 64},
        augmentation=Augmentation(area=(0.5, 1.0), aspect=0.15, brightness=0.2, flip=True),
        teacher_weight=0.7,
        temperature=2.0,
    )
    result = train(
        net,
        examples,
        validation=validation,
        epochs=arguments.epochs,
        settings=settings,
        teacher_logits=logits,
        # Dense at first, when the kernels change most.
        snapshot_steps=(0, 10, 25, 50, 100, 200, 400, 800, 1600, 3200, 4800, 6400),
        seed=0,
        checkpoint=arguments.out / "training.partial",
        class_names=names,
        progress=show,
    )
    result.save(arguments.out / "result", overwrite=True)
    export(result, arguments.data / "val", arguments.out)
    remove_checkpoint(arguments.out / "training.partial")


def teach(teacher: Model, examples: Examples, file: Path) -> Tensor:
    """The teacher's logits for the pictures as they are, mean of plain and mirrored: (N, classes).

    Enlarged bicubically to the teacher's size, computed in bfloat16, kept in `file` (fp16).
    """
    columns = [teacher.synsets.index(synset) for synset in examples.classes]
    if file.exists():
        with safe_open(file, "pt") as kept:
            if (kept.metadata() or {}).get("pictures") == examples.pictures.sha256:
                return load_file(file)["logits"]
        raise UserError(f"{file} was made for other pictures; choose another --out")
    assert examples.decoded is not None
    parts = []
    size = teacher.input_size
    for i in range(0, len(examples), 64):
        small = examples.decoded[i : i + 64].float() / 255
        large = nn.functional.interpolate(small, size=size, mode="bicubic").clamp(0, 1)
        with torch.inference_mode(), torch.autocast(large.device.type, torch.bfloat16):
            both = teacher(large) + teacher(large.flip(3))
        parts.append((both.float() / 2)[:, columns].half())
        show(i, len(examples), "teacher logits")
    file.parent.mkdir(parents=True, exist_ok=True)
    logits = torch.cat(parts)
    save_file({"logits": logits}, file, metadata={"pictures": examples.pictures.sha256})
    return logits


def export(result: TrainResult, validation: Path, out: Path) -> None:
    """The files of featviz/assets: weights in fp16 with what they reach, class names, kernels."""
    file = out / "alexnet-mini.safetensors"
    save_weights(result.model, file, dtype=torch.float16)
    # What is stated is measured on the file that is shipped, computed in float32.
    reached = featviz.evaluate(featviz.load("alexnet-mini", weights=file), validation)
    save_weights(
        result.model,
        file,
        dtype=torch.float16,
        top1=f"{reached.top1.value:.4f}",
        top5=f"{reached.top_k.value:.4f}",
        recipe=f"recipes/train_mini.py, {result.epochs[-1].epoch} epochs",
        data="Tiny ImageNet",
        date=datetime.now(UTC).date().isoformat(),
    )
    lines = zip(result.model.synsets, result.model.classes, strict=True)
    text = "".join(f"{synset}\t{name}\n" for synset, name in lines)
    (out / "alexnet-mini.classes.txt").write_text(text, encoding="utf-8")
    save_growth(
        out / "alexnet-mini.kernels.safetensors",
        result.kernels,
        result.kernel_steps,
        result.kernel_top1,
        dtype=torch.float16,
    )
    for name, number in reached.numbers().items():
        print(f"{name}: {number.value} {number.meaning}")


def show(done: int, total: int, text: str) -> None:
    """Progress as lines on standard error, so that a log of it reads well."""
    print(f"{done}/{total} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
