"""featviz's `ensemble` against AutoAttack's standard suite: who falls, and what it costs.

    .peers/bin/python benchmarks/suites.py [--out FOLDER] [--data FOLDER] [--model NAME]
        [--weights FILE] [--classes FILE] [--count 16] [--norm linf] [--eps 0.5,1,2] [--quick]

Takes `count` pictures of class folders that the model gets right, evenly spread (without --data
the sample pictures, with the model's own answers). At each eps (in L-infinity in levels of 255)
both suites get the same pictures, AutoAttack all at once. Every picture that AutoAttack fools and
featviz does not is listed. Both are judged here: wrong in float32, inside the ball and [0, 1].

The ratio is one of processor time, so that other work on the machine does not count; passes are
those that each picture cost. AutoAttack spends some 8,000 forward passes on a picture that stands.
Each comparison is added to rows.jsonl in --out as soon as it is made, and a run that was stopped
goes on. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import _rounds
import torch
from _pictures import right_ones
from torch import Tensor

import featviz
from featviz.attacks.autoattack import autoattack, check_installed
from featviz.attacks.ensemble import ensemble
from featviz.errors import UserError


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
    file = out / "rows.jsonl"
    made = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    compared = []
    for value in options.eps.split(","):
        key = {"model": options.model, "norm": options.norm, "eps": float(value), "n": len(labels)}
        known = [row for row in made if key.items() <= row.items()]
        if not known:
            known = [key | at_one_eps(model, pictures, labels, options.norm, float(value))]
            with file.open("a") as opened:
                opened.write(json.dumps(known[0]) + "\n")
        row = known[0]
        compared.append(row)
        print(
            f"{row['model']} {row['norm']} {row['eps']:g}, n = {row['n']}: robust "
            f"{row['featviz']['standing']} and {row['autoattack']['standing']} (AutoAttack); "
            f"{row['ratio']:.1f} times less processor time; fooled by AutoAttack alone "
            f"{row['autoattack only']}, by featviz alone {row['featviz only']}",
            flush=True,
        )
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
    device = f"cpu, {torch.get_num_threads()} threads, {options.model}, n = {len(labels)}"
    _rounds.report("suites", rows, ratios, device)


def at_one_eps(
    model: Any, pictures: Tensor, labels: Tensor, norm: str, eps: float
) -> dict[str, Any]:
    """Both suites on the same pictures: who stands, seconds of processor time, passes."""
    radius = eps / 255 if norm == "linf" else eps
    row: dict[str, Any] = {}
    fell = {}
    for name, attack in (("featviz", ensemble), ("autoattack", autoattack)):
        started = time.process_time()
        found = attack(model, pictures, labels, eps=radius, norm=norm)
        row[name] = {
            "standing": int((~found.success).sum()),
            "seconds": time.process_time() - started,
            "forwards": float(found.forwards.double().mean()),
            "backwards": float(found.backwards.double().mean()),
        }
        fell[name] = found.success.cpu()
    theirs, ours = fell["autoattack"], fell["featviz"]
    row["autoattack only"] = (theirs & ~ours).nonzero()[:, 0].tolist()
    row["featviz only"] = (ours & ~theirs).nonzero()[:, 0].tolist()
    row["ratio"] = row["autoattack"]["seconds"] / row["featviz"]["seconds"]
    return row


if __name__ == "__main__":
    main()
