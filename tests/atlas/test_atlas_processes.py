"""The same seed makes the same map, also in another process with its memory laid out otherwise."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import hashlib, sys
import numpy as np
import torch
junk = bytearray(int(sys.argv[1]))
from featviz.atlas.layout import LayoutSettings, lay_out
rng = np.random.default_rng(0)
for size, steps in ((15, None), (80, (20, 80))):  # over all pairs, and by the grid
    rows = rng.normal(size=(6 * size, 48)) + 2 * rng.normal(size=(6, 48)).repeat(size, 0)
    rows = torch.from_numpy(np.maximum(rows, 0)).float()
    layout = lay_out(rows, LayoutSettings(steps=steps), seed=0)
    print(hashlib.sha256(np.ascontiguousarray(layout.xy).tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_a_layout_is_the_same_bytes_in_another_process() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", CODE, junk], capture_output=True, text=True, check=True
        ).stdout
        for junk in ("1", "400001")
    ]
    assert [len(line) for line in runs[0].split()] == [64, 64]
    assert runs[0] == runs[1]
