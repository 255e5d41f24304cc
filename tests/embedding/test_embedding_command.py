"""`featviz embed` from the words of the command line to the stores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featviz.cli.main import main
from featviz.embedding.store import open_store
from featviz.samples import sample_pictures


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as left:
        main(["embed", *map(str, words)])
    return int(left.value.code or 0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    some = sample_pictures(1)
    (tmp_path / "data").mkdir()
    for row in range(6):
        some.open(row).resize((70, 70)).save(tmp_path / "data" / f"{row}.png")
    return tmp_path / "data"


def test_layers_given_several_times_get_a_store_each(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--data", data, "--layer", "relu3", "-l", "relu7", "--out", out, "--quiet"]
    words += ["--position", "random", "--seed", 3]
    assert run(*words, "--json") == 0
    documents = json.loads(capsys.readouterr().out)
    assert [Path(d["folder"]).name for d in documents] == ["relu3", "relu7"]
    assert documents[0]["parameters"]["position"] == "random"
    assert documents[0]["seed"] == 3
    for layer in ("relu3", "relu7"):
        assert open_store(out / layer).layer == layer
    assert run(*words) == 2
    assert "exists; add --overwrite" in capsys.readouterr().err
    assert run(*words, "--overwrite") == 0
    shown = capsys.readouterr().out
    assert str(out / "relu3") in shown
    assert str(out / "relu7") in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layer", "relu7", "--layer", "relu7"], "relu7 is given twice"),
        (["--layer", "relu7", "--position", "random"], "relu7 has no map"),
        (["--layer", "relu3", "--position", "corner"], "take mean, random"),
        (["--precision", "fp8"], "take auto, float32, bf16"),
        (["--decoder", "quick"], "take exact or fast"),
        (["--engine", "spark"], "take here or ray"),
        (["--layer", "relu77"], "did you mean"),
    ],
)
def test_a_mistake_is_named_and_leaves_nothing(
    words: list[str], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--data", data, "--out", tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert {p.name for p in tmp_path.iterdir()} == {"data"}
