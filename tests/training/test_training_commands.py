"""`featviz train` and `featviz eval` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import featviz
from featviz.checkpoints import Arrays, Checkpoint
from featviz.cli import main as command_line


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        command_line.main([str(word) for word in words])
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


@pytest.fixture
def colors(tmp_path: Path) -> Path:
    """Pictures of three colors with a little noise, in class folders."""
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
    capsys: pytest.CaptureFixture[str], colors: Path, tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("n01_red\tred things\nn02_green\tgreen things\nn03_blue\tblue things\n")
    out = tmp_path / "trained"
    code, said, err = run(
        capsys,
        "train",
        "--data",
        colors,
        "--validation",
        colors,
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
        colors,
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
    capsys: pytest.CaptureFixture[str],
    colors: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words: list[str | Path] = [
        "train",
        "--data",
        colors,
        "--epochs",
        "2",
        "--batch-size",
        "12",
        "--out",
        tmp_path / "run",
    ]
    with monkeypatch.context() as stopped:
        write = Checkpoint.write

        def stop_after(self: Checkpoint, name: str, arrays: Arrays, *, size: int = 1) -> None:
            write(self, name, arrays, size=size)
            raise KeyboardInterrupt

        stopped.setattr(Checkpoint, "write", stop_after)
        code, _, err = run(capsys, *words, "--quiet")
    assert code == 130
    assert err == "featviz: stopped; kept 1 of 2 epochs; give the same command again to go on\n"
    assert (tmp_path / "run.partial" / "state.npz").is_file()
    assert not (tmp_path / "run").exists()
    written: list[int] = []

    def watched(self: Checkpoint, name: str, arrays: Arrays, *, size: int = 1) -> None:
        written.append(size)
        write(self, name, arrays, size=size)

    monkeypatch.setattr(Checkpoint, "write", watched)
    code, _, err = run(capsys, *words, "--quiet")
    assert code == 0, err
    assert written == [2], "the first epoch is not done again"
    assert (tmp_path / "run" / "weights.safetensors").is_file()
    assert not (tmp_path / "run.partial").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--model", "alexnet-mimi"], "did you mean alexnet-mini"),
        (["train", "--schedule", "cosin"], "did you mean cosine"),
        (["train", "--lr", "fast"], "--lr"),
        (["eval", "--precision", "int8"], "--precision is 'int8'; it must be one of"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said, err = run(capsys, *words, "--out", tmp_path / "out")
    assert (code, said) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
