"""`featviz train` and `featviz eval` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import featviz
from featviz.cli import main as command_line
from featviz.training import loop


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        command_line.main([str(word) for word in words])
    said = capsys.readouterr()
    return (left.value.code or 0), said.out, said.err


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Pictures of three colours with a little noise, in class folders."""
    generator = torch.Generator().manual_seed(0)
    for channel, name in enumerate(["n01_red", "n02_green", "n03_blue"]):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(12):
            pixels = torch.randint(0, 100, (64, 64, 3), generator=generator, dtype=torch.uint8)
            pixels[:, :, channel] += 120
            Image.fromarray(pixels.numpy()).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


@pytest.mark.slow
def test_what_train_leaves_can_be_evaluated(
    capsys: pytest.CaptureFixture[str], colours, tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("n01_red\tred things\nn02_green\tgreen things\nn03_blue\tblue things\n")
    out = tmp_path / "trained"
    code, said, err = run(
        capsys,
        "train",
        "--data",
        colours,
        "--validation",
        colours,
        "--classes",
        names,
        "--epochs",
        "4",
        "--batch-size",
        "9",
        "--lr",
        "0.02",
        "--out",
        out,
        "--json",
    )
    assert code == 0, err
    document = json.loads(said)
    assert document["parameters"]["epochs"] == 4
    assert document["numbers"]["top-1"]["value"] > 0.9
    assert not out.with_name("trained.partial").exists()
    code, said, err = run(
        capsys,
        "eval",
        "--data",
        colours,
        "--weights",
        out / "weights.safetensors",
        "--out",
        tmp_path / "counted",
        "--json",
    )
    assert code == 0, err
    counted = json.loads(said)["numbers"]
    assert counted["pictures"]["value"] == 36
    # bf16 while training, float32 here: a picture near a border may fall to the other side.
    assert abs(counted["top-1"]["value"] - document["numbers"]["top-1"]["value"]) <= 2 / 36
    model = featviz.load("alexnet-mini", weights=out / "weights.safetensors")
    assert model.classes == ("red things", "green things", "blue things")


def test_ctrl_c_keeps_the_last_epoch_and_the_same_command_goes_on(
    capsys: pytest.CaptureFixture[str], colours, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "train",
        "--data",
        colours,
        "--epochs",
        "2",
        "--batch-size",
        "12",
        "--out",
        tmp_path / "run",
    ]
    kept = loop._write_state

    def stop_after(*arguments) -> None:
        kept(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_write_state", stop_after)
    code, _, err = run(capsys, *words)
    assert code == 130
    assert "stopped" in err
    assert (tmp_path / "run.partial" / "checkpoint.safetensors").is_file()
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(loop, "_write_state", kept)
    steps = []
    learn = loop.train

    def watched(*arguments, **options):
        options["progress"] = lambda done, total, text: steps.append(done)
        return learn(*arguments, **options)

    monkeypatch.setattr(loop, "train", watched)
    code, _, err = run(capsys, *words, "--quiet")
    assert code == 0, err
    assert steps == [6], "three steps an epoch, the first epoch is not done again"
    assert (tmp_path / "run" / "weights.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--model", "alexnet-mimi"], "did you mean alexnet-mini"),
        (["train", "--schedule", "cosin"], "did you mean cosine"),
        (["train", "--lr", "fast"], "--lr"),
        (["eval", "--precision", "int8"], "unknown precision 'int8'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said, err = run(capsys, *words, "--out", tmp_path / "out")
    assert (code, said) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
