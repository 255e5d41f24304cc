"""Measure the colors and the spectrum that come with featviz, from Tiny ImageNet.

    python recipes/measure_statistics.py --data tiny-imagenet/train --name "Tiny ImageNet"

--data is any folder of pictures; 10,000 of it, evenly spread over the classes, are brought to 64
pixels a side and read twice, once for the covariance of their colors and once for the mean
amplitude of each frequency on the axes so found. What it leaves is featviz/assets/photographs.*,
which MACO's pictures are made with; the same command on your own pictures makes a file for
`featviz maximize --statistics`. Some twenty seconds on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import featviz
from featviz.cli.run import progress_bar
from featviz.maximization.image_statistics import load_statistics, measure_statistics


def main() -> None:
    """Read the arguments, measure, save, say what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("photographs.safetensors"))
    parser.add_argument("--count", type=int, default=10_000, help="how many pictures")
    parser.add_argument("--size", type=int, default=64, help="side in pixels")
    parser.add_argument("--name", help="what results call them; default: the folder's name")
    arguments = parser.parse_args()
    pictures = featviz.open_pictures(arguments.data).spread(arguments.count)
    with progress_bar(quiet=False) as progress:
        measured = measure_statistics(
            pictures, size=arguments.size, name=arguments.name, progress=progress
        )
    measured.save(arguments.out)
    again = load_statistics(arguments.out)
    print(f"{len(pictures)} pictures of {arguments.data}")
    print("colors (rows red, green, blue; one axis a column):")
    print(torch.tensor(again.colors.matrix))
    flat = again.spectrum.amplitudes
    for share in (2, 4, 8, 16, 31):
        row = flat[:, 0, min(share, flat.shape[2] - 1)].tolist()
        print(f"amplitude at {share} periods a side:", " ".join(f"{a:.3f}" for a in row))


if __name__ == "__main__":
    main()
