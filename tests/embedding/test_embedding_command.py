"""`featviz embed` from the words of the command line to the stores."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import forked
import pytest

from featviz.cli.main import main
from featviz.data.samples import sample_pictures
from featviz.embedding.store import open_store


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


def test_ctrl_c_keeps_finished_pieces_and_says_how_many_rows(tmp_path: Path) -> None:
    """300 pictures are two pieces, of 256 and 44 rows; SIGTERM acts as Ctrl-C."""
    some = sample_pictures(1)
    (tmp_path / "data").mkdir()
    for row in range(300):
        some.open(row % len(some)).resize((64, 64)).save(tmp_path / "data" / f"{row:03}.png")
    words = ["embed", "--data", tmp_path / "data", "--out", tmp_path / "out", "--quiet"]

    def work() -> None:
        with (tmp_path / "stderr").open("w") as sys.stderr:
            main(list(map(str, words)))

    process = forked.start(work)
    while process.is_alive() and not list(tmp_path.glob("out.partial/rows*.npz")):
        time.sleep(0.002)
    process.terminate()
    process.join()
    error = (tmp_path / "stderr").read_text()
    assert process.exitcode == 130, error
    assert error == (
        "featviz: stopped; kept 256 of 300 rows; give the same command again to go on\n"
    )
    before = (tmp_path / "out.partial" / "rows-00000000.npz").stat().st_mtime_ns
    assert run(*words[1:]) == 0
    assert before < (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    assert len(open_store(tmp_path / "out", verify=True)) == 300
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layer", "relu7", "--layer", "relu7"], "relu7 is given twice"),
        (["--layer", "relu7", "--position", "random"], "relu7 has no map"),
        (
            ["--layer", "relu3", "--position", "corner"],
            "'corner'; it must be one of mean, max, random",
        ),
        (["--precision", "fp8"], "must be one of auto, float32, bfloat16"),
        (["--decoder", "quick"], "must be one of exact, fast"),
        (["--engine", "spark"], "must be one of here, ray"),
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
