"""Aliases that the signatures of all analyses share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated, Literal

from featviz.arguments import Bounds

Progress = Callable[[int, int, str], None]
"""progress(done, total, text), called now and then by long work; total 0: a message"""

Precision = Literal["float32", "bfloat16"]
"""number format in which a network computes"""

AutoPrecision = Literal["auto", "float32", "bfloat16"]
""""auto": bfloat16 where the processor computes in it and the model's operations exist in it"""

Probability = Literal["auto", "softmax", "sigmoid"]
"""how logits become probabilities of classes"""

Engine = Literal["here", "ray"]
"""where pieces of work are made: in this process, or on a Ray cluster"""

Seed = Annotated[int, Bounds(0, 2**63 - 1)]
"""start of all random numbers"""

Steps = Annotated[int, Bounds(1, 1_000_000)]
"""of an optimization or a search"""

BatchSize = Annotated[int, Bounds(1, 65_536)]
"""pictures that the model sees at once"""

Restarts = Annotated[int, Bounds(1, 10_000)]
"""attempts from different starts"""

Pixels = Annotated[int, Bounds(1, 32_768)]
"""of a side of any picture"""

Channels = Annotated[int, Bounds(1, 1024)]
"""of pictures"""

Side = Annotated[int, Bounds(8, 4096)]
"""of a picture, pixels"""

Canvas = Side | tuple[Side, Side]
"""a side, or height and width"""

Frames = Annotated[int, Bounds(0, 1000)]
"""stages that are kept"""

Count = Annotated[int, Bounds(1, 100_000_000)]
"""of pictures, neighbors, rows"""

Rate = Annotated[float, Bounds(0, 1e9, above=True)]
"""how far a step goes"""

Weight = Annotated[float, Bounds(0, 1e6)]
"""of a term beside others"""

Share = Annotated[float, Bounds(0, 1)]
"""of a whole"""

Depth = Annotated[int, Bounds(1, 20)]
"""layers that are followed back"""

Height = Annotated[int, Bounds(0, 20)]
"""layers that are followed to the logits"""

Octaves = Annotated[int, Bounds(1, 20)]
"""sizes of a picture, from small to large"""

Power = Annotated[float, Bounds(0, 100)]
"""of a cosine in an objective"""

Tries = Annotated[int, Bounds(0, 1_000_000)]
"""steps or queries of a part that 0 leaves out"""

SearchSteps = Annotated[int, Bounds(10, 1_000_000)]
"""passes of a search for the smallest change"""

FacetCount = Annotated[int, Bounds(2, 1000)]
"""pictures of one unit that differ"""

Examples = Annotated[int, Bounds(4, 1_000_000)]
"""photographs of a unit that are put into groups"""

WayCount = Annotated[int, Bounds(3, 1000)]
"""pictures on a way, the two ends among them"""

Top = Annotated[int, Bounds(1, 10_000)]
"""so many of the best: patches of a unit, classes"""

HalvedCount = Annotated[int, Bounds(2, 100_000_000)]
"""pictures of which one part is learned from and the other judged on"""

Perplexity = Annotated[float, Bounds(1, 10_000)]
"""neighbors that a row of a map tries to keep"""

Seeds = Annotated[int, Bounds(1, 100)]
"""maps from different seeds"""

Most = Annotated[int, Bounds(2, 10_000_000)]
"""rows on a map"""

Epochs = Annotated[int, Bounds(1, 100_000)]
"""passes over the data"""

TrainBatch = Annotated[int, Bounds(2, 65_536)]
"""pictures a step of training: batch normalization needs two"""

LearningRate = Annotated[float, Bounds(0, 100, above=True)]
"""of stochastic gradient descent"""

WeightDecay = Annotated[float, Bounds(0, 10)]
"""L2 penalty on weights"""

Dropout = Annotated[float, Bounds(0, 0.99)]
"""share of values set to zero"""

WorkerCount = Annotated[int, Bounds(1, 1024)]
"""threads or processes"""

Seconds = Annotated[float, Bounds(0, 1e7, above=True)]
"""that work may take"""

ConceptCount = Annotated[int, Bounds(1, 65_536)]
"""directions that are sought in a layer"""

Megabytes = Annotated[float, Bounds(0.1, 1000)]
"""size of a file, in millions of bytes"""

HeldOut = Annotated[float, Bounds(0.01, 0.9)]
"""share of the pictures on which nothing is fitted"""


def seed_32(seed: int) -> int:
    """A seed for libraries that take 32 bits of it: a small one as it is, others by their hash."""
    if seed < 2**32:
        return seed
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "big")
