"""Quality of the default pictures: clean scores and the share of fine detail, one line of JSON.

    python benchmarks/picture_quality.py --weights alexnet.safetensors --out pictures.npz

Run it before and after a change of the optimization and compare the medians. `--against FILE`
prints the ratio of the scores to those of an earlier `--out`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import featviz


def fine_detail(images: torch.Tensor) -> torch.Tensor:
    """Share of the spectral energy above 1/4 cycle per pixel of (N, 3, H, W), Hann window: (N,)."""
    height, width = images.shape[-2:]
    window = torch.hann_window(height, periodic=False)[:, None]
    window = (window * torch.hann_window(width, periodic=False)).double()
    x = images.double()
    energy = torch.fft.fft2((x - x.mean((-2, -1), keepdim=True)) * window).abs().square().sum(1)
    rows = torch.fft.fftfreq(height)[:, None]
    frequency = torch.hypot(rows, torch.fft.fftfreq(width)[None])
    whole = energy[:, frequency > 0].sum(1).clamp(min=1e-30)
    share: torch.Tensor = energy[:, frequency > 0.25].sum(1) / whole
    return share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="alexnet")
    parser.add_argument("--weights", default=None)
    parser.add_argument("--layer", default="conv5")
    parser.add_argument("--units", type=int, default=32)
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--against", type=Path, default=None)
    asked = parser.parse_args()
    model = featviz.load(asked.model, weights=asked.weights, device="cpu")
    started = time.perf_counter()
    result = featviz.maximize(
        model, asked.layer, units=list(range(asked.units)), steps=asked.steps, seed=0
    )
    seconds = time.perf_counter() - started
    scores, detail = result.scores.double(), fine_detail(result.images)
    line = {
        "layer": asked.layer,
        "units": asked.units,
        "steps": asked.steps,
        "seconds": round(seconds, 1),
        "median_score": round(float(np.median(scores.numpy())), 3),
        "median_fine_detail": round(float(detail.median()), 4),
        "highest_fine_detail": round(float(detail.max()), 4),
    }
    if asked.out is not None:
        np.savez(asked.out, scores=scores, images=result.images, detail=detail)
    if asked.against is not None:
        earlier = np.load(asked.against)
        ratio = scores.numpy() / earlier["scores"]
        line["median_ratio"] = round(float(np.median(ratio)), 4)
        line["ratio_of_medians"] = round(
            float(np.median(scores.numpy())) / np.median(earlier["scores"]), 4
        )
    print(json.dumps(line))


if __name__ == "__main__":
    main()
