"""The bundled alexnet-mini: what its file says of itself holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest

from featviz.kernels.growth import kernel_growth
from featviz.models.class_names import parse_classes
from featviz.models.load import bundled
from featviz.models.model import Model
from featviz.models.weights_file import WeightsFile, read_weights
from featviz.training.evaluation import evaluate


@pytest.fixture(scope="module")
def file() -> WeightsFile:
    return read_weights(bundled("alexnet-mini"))


def test_the_file_is_small_and_says_what_it_is(file: WeightsFile, mini: Model) -> None:
    path = bundled("alexnet-mini")
    assert path.stat().st_size <= 8_000_000
    assert {t.dtype for t in file.tensors.values()} == {torch.float16}
    facts = file.metadata
    assert facts["architecture"] == "alexnet-mini"
    assert int(facts["input_size"]) == mini.input_size[0]
    for name, buffer in (("mean", mini.mean), ("std", mini.std)):
        assert json.loads(facts[name]) == pytest.approx(buffer.flatten().tolist(), abs=1e-6)
    beside = parse_classes(path.with_suffix(".classes.txt").read_text(encoding="utf-8"))
    assert [tuple(pair) for pair in json.loads(facts["classes"])] == beside
    assert len(beside) == 200
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert f"**{float(facts['top1']):.1%}**" in card
    assert f"**{float(facts['top5']):.1%}**" in card


def test_the_kernels_that_grew_are_those_of_the_model(mini: Model) -> None:
    growth = kernel_growth()
    assert growth.steps[0] == 0
    assert sorted(set(growth.steps)) == list(growth.steps)
    assert torch.equal(growth.kernels[-1], mini.net.get_parameter("features.0.weight"))
    assert growth.top1[-1] == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
def test_the_accuracy_it_states_is_reached(
    file: WeightsFile, mini: Model, shared_data: Path, tmp_path: Path
) -> None:
    """5 validation pictures a class: the stated share must lie in the interval of these."""
    command = [sys.executable, str(shared_data / "unpack.py"), "tiny", str(tmp_path)]
    subprocess.run(
        [*command, "--split", "val", "--per-class", "5"], check=True, capture_output=True
    )
    result = evaluate(mini, tmp_path / "val")
    for share, stated in ((result.top1, "top1"), (result.top_k, "top5")):
        assert share.n == 1000
        low, high = binomtest(share.hits, share.n).proportion_ci(0.999, method="wilson")
        assert low < float(file.metadata[stated]) < high
