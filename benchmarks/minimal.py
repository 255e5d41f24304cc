"""Smallest changes: featviz's `minimal` against adv-lib's attacks, at equal passes.

    python benchmarks/minimal.py [--quick] [--data FOLDER] [--out FOLDER] [--model NAME]
        [--weights FILE] [--classes FILE] [--steps 100] [--count 100]
        [--peers .peers/bin/python] [--only a,b]

Takes `count` pictures of class folders that the model gets right, evenly spread (without --data
the sample pictures, with the model's own answers), and gives every attack the same pictures and
`steps` forward and backward passes for each. --quick: 8 pictures, 30 passes, one peer a norm.
The peers run in an interpreter of their own (adv-lib wants visdom and torchvision at import: stood
in for by empty modules). What an attack returns is judged here, in the same way for all: wrong in
float32, distance in float64, inf where it failed. Each attack's pictures are kept in --out, so that
a run that was stopped goes on, and `--only` adds one attack at a time. Ends with one JSON line.

adv-lib's settings are its defaults, but: DDN without its 256 levels (they only make it worse), FMN
in L-infinity with a first step of 10 as well as 1 (the better counts), targeted APGD as its
`minimal_apgd` with one target and steps/10 iterations in each of 10 halvings.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import torch
from _pictures import right_ones
from safetensors.torch import load_file, save_file
from torch import Tensor

import featviz
from featviz.attacks.projections import vector_norm
from featviz.statistics import median

PEERS = {
    "l0": ("sigma-zero", "fmn-l0"),
    "l1": ("pdpgd-l1", "fmn-l1", "apgd-t-l1"),
    "l2": ("ddn", "fmn-l2", "apgd-t-l2"),
    "linf": ("fmn-linf", "fmn-linf-10", "apgd-t-linf"),
}
WIDEST = {"l1": 40.0, "l2": 2.0, "linf": 0.03}  # where the halvings of APGD begin
SLOTS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="within a minute on 2 cores")
    parser.add_argument("--data", help="class folders; default: the sample pictures")
    parser.add_argument("--out", type=Path, help="default: kept nowhere")
    parser.add_argument("--model", default="alexnet-mini")
    parser.add_argument("--weights")
    parser.add_argument("--classes")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--peers", default=".peers/bin/python")
    parser.add_argument("--only", default="", help="attacks to run; all that is there is told")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.steps, options.count = 30, 8
    if options.out is None:
        with tempfile.TemporaryDirectory() as folder:
            options.out = Path(folder)
            compare(options)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    model = featviz.load(options.model, weights=options.weights, classes=options.classes)
    kept = options.out / "pictures.safetensors"
    pictures, labels = right_ones(model, options.data or "", options.count, kept)
    if options.peer:
        run_peer(options.peer, model, pictures, labels, options)
        return
    wanted = [name for name in options.only.split(",") if name]
    rows = []
    for norm, peers in PEERS.items():
        for name in (f"featviz-{norm}", *(peers[:1] if options.quick else peers)):
            file = options.out / f"{name}-{options.steps}.safetensors"
            if not file.exists() and (not wanted or name in wanted):
                if name.startswith("featviz"):
                    run_ours(norm, model, pictures, labels, file, options.steps)
                elif Path(options.peers).exists():
                    command = [options.peers, *sys.argv, "--out", str(options.out), "--peer", name]
                    subprocess.run(command, check=True)
                else:
                    print(f"{name}: no peers at {options.peers} (make peers)")
            if file.exists():
                rows.append(judged(name, norm, model, pictures, labels, file))
                r = rows[-1]
                middle = "none" if r["median"] is None else f"{r['median']:.5g}"
                print(
                    f"{name:<14} median {middle} [{r['low']:.5g}, {r['high']:.5g}], "
                    f"{r['failed']} of {r['n']} failed, {r['seconds']:.0f} s",
                    flush=True,
                )
    print(
        json.dumps(
            {
                "benchmark": "minimal",
                "model": options.model,
                "steps": options.steps,
                "device": f"cpu, {torch.get_num_threads()} threads",
                "rows": rows,
                "ratios": ratios(rows),
            }
        )
    )


def run_ours(
    norm: str, model: Any, pictures: Tensor, labels: Tensor, file: Path, steps: int
) -> None:
    from featviz.attacks.minimal import minimal
    from featviz.attacks.options import AttackOptions

    started = time.perf_counter()
    batch_size = min(SLOTS, len(pictures))
    options = AttackOptions(batch_size=batch_size)
    found = minimal(model, pictures, labels, norm=norm, steps=steps, options=options)
    seconds = time.perf_counter() - started
    assert int(found.forwards.max()) <= steps
    assert int(found.backwards.max()) <= steps
    save_file({"adversarial": found.adversarial, "seconds": torch.tensor([seconds])}, file)


def run_peer(
    name: str, model: Any, pictures: Tensor, labels: Tensor, options: argparse.Namespace
) -> None:
    """To be run by the peers' interpreter."""
    for missing, content in (("visdom", "Visdom"), ("adv_lib.distances.lpips", "LPIPS")):
        stand_in = types.ModuleType(missing)
        setattr(stand_in, content, object)
        sys.modules[missing] = stand_in
    from adv_lib.attacks import ddn, fmn, pdpgd, sigma_zero  # type: ignore[import-not-found]
    from adv_lib.attacks.auto_pgd import minimal_apgd  # type: ignore[import-not-found]

    steps, power = options.steps, {"l0": 0, "l1": 1, "l2": 2, "linf": math.inf}

    def attack(x: Tensor, y: Tensor) -> Any:
        if name == "ddn":
            return ddn(model, x, y, steps=steps, levels=None)
        if name == "sigma-zero":
            return sigma_zero(model, x, y, num_steps=steps)
        if name == "pdpgd-l1":
            return pdpgd(model, x, y, 1, num_steps=steps)
        if name.startswith("fmn"):
            first = 10.0 if name.endswith("10") else 1.0
            return fmn(model, x, y, power[name.split("-")[1]], steps=steps, α_init=first)
        norm = name.removeprefix("apgd-t-")
        return minimal_apgd(
            model,
            x,
            y,
            power[norm],
            max_eps=WIDEST[norm],
            binary_search_steps=10,
            targeted_version=True,
            n_iter=steps // 10,
            num_targets=1,
        )

    torch.manual_seed(0)
    started = time.perf_counter()
    parts = [
        attack(pictures[i : i + SLOTS], labels[i : i + SLOTS])
        for i in range(0, len(pictures), SLOTS)
    ]
    seconds = time.perf_counter() - started
    save_file(
        {"adversarial": torch.cat(parts), "seconds": torch.tensor([seconds])},
        options.out / f"{name}-{steps}.safetensors",
    )


def judged(
    name: str, norm: str, model: Any, pictures: Tensor, labels: Tensor, file: Path
) -> dict[str, Any]:
    kept = load_file(file)
    adversarial = kept["adversarial"]
    with torch.no_grad():
        wrong = torch.cat([model(part).argmax(1) for part in adversarial.split(SLOTS)]) != labels
    inside = bool(((adversarial >= 0) & (adversarial <= 1)).all())
    change = (adversarial.double() - pictures.double()).flatten(1)
    distance = torch.where(wrong, vector_norm(change, norm), torch.inf)
    middle = median(distance)
    return {
        "what": name,
        "norm": norm,
        "median": middle.value,
        "low": middle.low,
        "high": middle.high,
        "mean": float(distance.mean()),
        "n": middle.n,
        "failed": middle.censored,
        "inside [0, 1]": inside,
        "seconds": float(kept["seconds"]),
    }


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """featviz's median over the best peer's, in each norm."""
    found = {}
    for norm, peers in PEERS.items():
        ours = [r["median"] for r in rows if r["what"] == f"featviz-{norm}"]
        theirs = [r["median"] for r in rows if r["what"] in peers and r["median"] is not None]
        if ours and theirs:
            found[f"featviz/best peer, {norm}"] = ours[0] / min(theirs)
    return found


if __name__ == "__main__":
    main()
