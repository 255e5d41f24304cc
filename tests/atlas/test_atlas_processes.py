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
from featviz.atlas.layout import lay_out
rng = np.random.default_rng(0)
rows = np.maximum(rng.normal(size=(90, 48)) + 2 * rng.normal(size=(6, 48)).repeat(15, 0), 0)
layout = lay_out(torch.from_numpy(rows).float(), seed=0)
print(hashlib.sha256(np.ascontiguousarray(layout.xy).tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_a_layout_is_the_same_bytes_in_another_process() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", CODE, junk], capture_output=True, text=True, check=True
        ).stdout
        for junk in ("1", "12347", "400001")
    ]
    assert len(runs[0].strip()) == 64
    assert len(set(runs)) == 1
