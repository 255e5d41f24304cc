"""`featviz compare`: files of weights, result folders, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import run

from featviz.data.samples import sample_pictures
from featviz.models.model import Model
from featviz.training.files import save_weights

WORDS = ("compare", "--quiet", "--parts", "none")


@pytest.mark.slow
def test_two_checkpoints_and_their_results_give_one_verdict(
    mini: Model, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data, some = tmp_path / "data", sample_pictures()
    for row, kind in enumerate(some.folders):
        if kind in {"goldfish", "lemon"}:
            (data / kind).mkdir(parents=True, exist_ok=True)
            some.open(row).resize((64, 64)).save(data / kind / f"{row}.png")
    before, after = tmp_path / "before.safetensors", tmp_path / "after.safetensors"
    save_weights(mini, before)
    bias = mini.net.get_parameter("classifier.6.bias")
    kept = bias.detach().clone()
    with torch.no_grad():
        bias[mini.class_index("goldfish")] -= 100
    save_weights(mini, after)
    with torch.no_grad():
        bias.copy_(kept)

    words = (
        *WORDS,
        before,
        after,
        "--data",
        data,
        "--require",
        "broken==0",
        "--require",
        "classes worse==0",
    )
    code, out, err = run(capsys, *words, "--json", "--out", tmp_path / "live")
    assert code == 3, err
    live = json.loads(out)
    assert live["title"].startswith("before and after on ")
    assert live["numbers"]["classes worse"]["meaning"].endswith("goldfish")
    for name in ("before", "after"):
        weights = ("--weights", tmp_path / f"{name}.safetensors", "--name", name)
        place = ("--data", data, "--out", tmp_path / name)
        assert run(capsys, "eval", "-q", *weights, *place)[0] == 0
    folders = tmp_path / "before", tmp_path / "after"
    code, out, err = run(capsys, "compare", *folders, "--json", "--out", tmp_path / "read")
    assert code == 0, err
    read = json.loads(out)
    assert read["title"] == live["title"]
    for name in ("change of top-1", "fixed", "broken", "p of the flips"):
        assert read["numbers"][name] == live["numbers"][name]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("a.safetensors", "b.safetensors"), "no such file"),
        (("alexnet-mini", "alexnet-min"), "did you mean alexnet-mini"),
        (("alexnet-mini", "alexnet-mini", "--names", "a"), "two different names"),
        (("alexnet-mini", "alexnet-mini", "--name", "a"), "give --names"),
        (("alexnet-mini", "alexnet-mini", "--weights", "a"), "no effect beside FIRST"),
        (("alexnet-mini", "alexnet-mini", "--steps", "20"), "without the part robustness"),
        (("alexnet-mini", "alexnet-mini", "--severities", "1"), "without the part corruptions"),
    ],
)
def test_a_mistake_is_one_line(
    words: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *WORDS, *words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
