"""featviz's `ensemble` against AutoAttack's standard suite: who falls, and what it costs.

    .peers/bin/python benchmarks/suites.py [--out FOLDER] [--data FOLDER] [--model NAME]
        [--weights FILE] [--classes FILE] [--count 16] [--norm linf] [--eps 0.5,1,2]
        [--suite both] [--quick]

Takes `count` pictures of class folders that the model gets right, evenly spread (without --data
the sample pictures, with the model's own answers). At each eps (in L-infinity in levels of 255)
both suites get the same pictures, AutoAttack all at once. Every picture that AutoAttack fools and
featviz does not is listed. Both are judged here: wrong in float32, inside the ball and [0, 1].

The ratio is one of processor time, so that other work on the machine does not count; passes are
those that each picture cost. AutoAttack spends some 8,000 forward passes on a picture that stands.
What a suite found is added to rows.jsonl in --out at once, and a run that was stopped goes on.
`--suite featviz` measures featviz anew beside what is known of AutoAttack; `--suite autoattack`
only adds its rows. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import _rounds
import torch
from _pictures import right_ones
from torch import Tensor

import featviz
from featviz.attacks.autoattack import autoattack, check_installed
from featviz.attacks.ensemble import ensemble
from featviz.attacks.options import AttackOptions
from featviz.attacks.pgd import fgsm
from featviz.attacks.result import AttackResult
from featviz.errors import UserError

SUITES: dict[str, Callable[..., AttackResult]] = {"featviz": ensemble, "autoattack": autoattack}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="within a minute on 2 cores")
    parser.add_argument("--out", type=Path, help="default: kept nowhere")
    parser.add_argument("--data", default="", help="class folders; default: the sample pictures")
    parser.add_argument("--model", default="alexnet-mini")
    parser.add_argument("--weights")
    parser.add_argument("--classes")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--eps", default="0.5,1,2", help="in L-infinity in levels of 255")
    parser.add_argument("--suite", choices=("both", *SUITES), default="both")
    options = parser.parse_args()
    if options.quick:
        options.count, options.eps = 4, "8"
    try:
        check_installed()
    except UserError as missing:
        print(missing)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(options, options.out or Path(folder))


def compare(options: argparse.Namespace, out: Path) -> None:
    model = featviz.load(options.model, weights=options.weights, classes=options.classes)
    kept = out / f"{options.model}-{options.count}.safetensors"
    pictures, labels = right_ones(model, options.data, options.count, kept)
    compared = []
    for value in options.eps.split(","):
        cell = {"model": options.model, "norm": options.norm, "eps": float(value), "n": len(labels)}
        names = tuple(SUITES) if options.suite != "autoattack" else ("autoattack",)
        ran = {
            name: kept_or_run(
                out / "rows.jsonl",
                {"suite": name} | cell,
                partial(run, SUITES[name], model, pictures, labels, cell),
                again=name == options.suite == "featviz",
            )
            for name in names
        }
        if len(ran) == 2:
            compared.append(cell | ran | difference(ran))
            print(described(compared[-1]), flush=True)
    if compared:
        report(compared, f"cpu, {torch.get_num_threads()} threads, {options.model}")


def kept_or_run(
    file: Path, key: dict[str, Any], work: Callable[[], dict[str, Any]], *, again: bool
) -> dict[str, Any]:
    """The last row with this key, or a new one, which is added."""
    made: list[dict[str, Any]] = (
        [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    )
    known = [row for row in made if key.items() <= row.items()]
    if known and not again:
        return known[-1]
    row = key | work()
    with file.open("a") as opened:
        opened.write(json.dumps(row) + "\n")
    return row


def run(
    suite: Callable[..., AttackResult],
    model: Any,
    pictures: Tensor,
    labels: Tensor,
    cell: dict[str, Any],
) -> dict[str, Any]:
    """Who falls by a suite, seconds of processor time, passes a picture."""
    radius = cell["eps"] / 255 if cell["norm"] == "linf" else cell["eps"]
    options = {}
    if suite is autoattack:
        options["options"] = AttackOptions(batch_size=len(labels))
    warm = AttackOptions(precision="bfloat16")
    fgsm(model, pictures[:1], labels[:1], eps=0.01, options=warm)
    started = time.process_time()  # imports and the like do not count
    found = suite(model, pictures, labels, eps=radius, norm=cell["norm"], **options)
    return {
        "seconds": time.process_time() - started,
        "standing": int((~found.success).sum()),
        "fell": found.success.nonzero()[:, 0].tolist(),
        "forwards": float(found.forwards.double().mean()),
        "backwards": float(found.backwards.double().mean()),
        "by": found.by.tolist(),
    }


def difference(ran: dict[str, Any]) -> dict[str, Any]:
    theirs, ours = set(ran["autoattack"]["fell"]), set(ran["featviz"]["fell"])
    return {
        "autoattack only": sorted(theirs - ours),
        "featviz only": sorted(ours - theirs),
        "ratio": ran["autoattack"]["seconds"] / ran["featviz"]["seconds"],
    }


def described(row: dict[str, Any]) -> str:
    return (
        f"{row['model']} {row['norm']} {row['eps']:g}, n = {row['n']}: robust "
        f"{row['featviz']['standing']} and {row['autoattack']['standing']} (AutoAttack); "
        f"{row['featviz']['seconds']:.2f} s for {row['autoattack']['seconds']:.2f} s: "
        f"{row['ratio']:.1f} times; fooled by AutoAttack alone "
        f"{row['autoattack only']}, by featviz alone {row['featviz only']}"
    )


def report(compared: list[dict[str, Any]], device: str) -> None:
    rows = [
        _rounds.row(f"{name}, {row['norm']} {row['eps']:g}: {what}", unit, [row[name][what]])
        for row in compared
        for name in ("featviz", "autoattack")
        for what, unit in (("standing", ""), ("seconds", "s"), ("forwards", "a picture"))
    ]
    ratios = {f"autoattack/featviz, {row['norm']} {row['eps']:g}": row["ratio"] for row in compared}
    ratios["autoattack/featviz, all"] = sum(r["autoattack"]["seconds"] for r in compared) / sum(
        r["featviz"]["seconds"] for r in compared
    )
    ratios["fooled by autoattack alone"] = float(sum(len(r["autoattack only"]) for r in compared))
    ratios["fooled by featviz alone"] = float(sum(len(r["featviz only"]) for r in compared))
    _rounds.report("suites", rows, ratios, f"{device}, n = {compared[0]['n']}")


if __name__ == "__main__":
    main()
