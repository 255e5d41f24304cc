"""`featviz corrupt` and `featviz universal`: examples, folders, mistakes, going on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run


@pytest.mark.slow
def test_corrupt_writes_the_table_and_leaves_nothing_unfinished(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = (
        "corrupt",
        "--names",
        "fog, jpeg-compression",
        "--severities",
        "1,5",
        "--count",
        "6",
        "--out",
        str(tmp_path / "run"),
        "--json",
    )
    code, out, err = run(capsys, *words)
    assert code == 0, err
    document = json.loads(out)
    assert document["kind"] == "corruptions"
    assert document["parameters"]["names"] == ["fog", "jpeg_compression"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_universal_and_its_patch_write_their_folders(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("universal", "--steps", "2", "--count", "8", "--eps", "10/255", "--quiet", "--json")
    for extra, kind in (((), "universal"), (("--patch",), "adversarial-patch")):
        code, out, err = run(capsys, *words, *extra, "--out", str(tmp_path / kind))
        assert code == 0, err
        assert json.loads(out)["kind"] == kind


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("corrupt", "--names", "frog"), "did you mean fog, frost"),
        (("corrupt", "--severities", "1,9"), "severities 1 to 5"),
        (("corrupt", "--severities", "all"), "write numbers of 1 to 5"),
        (("universal", "--eps", "ten"), "is no number"),
        (("universal", "--eps", "10"), "10/255"),
        (("universal", "--norm", "l7"), "unknown norm"),
        (("universal", "--target", "golfish"), "did you mean goldfish"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *words)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert out == ""
    assert not list(tmp_path.rglob("*"))
