"""--require on commands: exit code 3, a table of what failed, a result folder all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run

import featviz
from featviz.data.samples import sample_pictures
from featviz.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small pictures of each kind, in class folders."""
    root = tmp_path_factory.mktemp("pictures")
    some = sample_pictures(2)
    for row, kind in enumerate(some.folders):
        (root / kind).mkdir(exist_ok=True)
        some.open(row).resize((64, 64)).save(root / kind / f"{row}.png")
    return root


def test_a_requirement_that_fails_gives_3_and_keeps_the_result(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    words = ("eval", "--data", data, "-q", "--require", "top1.low>=0.9", "--require", "top5 > 50%")
    code, out, err = run(capsys, *words, "--out", tmp_path / "a")
    assert code == 3
    assert err == "featviz: 1 of 2 requirements fail: top1.low>=0.9\n"
    lines = out.splitlines()
    start = lines.index("requirements")
    assert lines[start + 1].split()[:4] == ["FAILS", "top-1.low", ">=", "90.0%"]
    assert lines[start + 2].split()[0] == "holds"
    kept = json.loads((tmp_path / "a" / "result.json").read_text())["requirements"]
    assert [check["met"] for check in kept] == [False, True]

    code, out, _ = run(capsys, *words, "--out", tmp_path / "b", "--json")
    assert code == 3
    assert json.loads(out)["requirements"] == kept


def test_requirements_that_hold_give_0(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    words = ("eval", "--data", data, "--quiet", "--require", "pictures>=20")
    assert run(capsys, *words, "--out", tmp_path / "a")[0] == 0


@pytest.mark.parametrize("command", ["eval", "audit", "corrupt", "attack"])
def test_a_requirement_that_cannot_be_read_is_refused_before_the_work(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "a"
    code, _, err = run(capsys, command, "--require", "top1 about 0.5", "--out", out)
    assert code == 2
    assert 'write "top1.low>=0.5"' in err
    assert not out.exists()


def test_a_misspelt_number_is_a_mistake_that_loses_nothing(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a"
    words = ("eval", "--data", data, "-q", "--require", "topp1.low>=0.5", "--out", out)
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "did you mean top-1.low" in err
    assert str(out) in err
    assert (out / "result.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("eval",),
        ("attack", "--steps", "5"),
        ("corrupt", "--names", "fog,contrast", "--severities", "1,2,3,4,5", "--count", "3"),
        pytest.param(
            (
                *("audit", "--count", "3", "--steps", "10", "--norm", "linf"),
                *("--check-steps", "2", "--queries", "0", "--parts", "transfer,diagnosis"),
            ),
            marks=pytest.mark.long,
        ),
    ],
    ids=lambda words: words[0],
)
def test_every_share_has_its_interval_and_its_count(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = run(capsys, *words, "--quiet", "--json", "--out", tmp_path / "a")
    assert code == 0, err
    numbers = json.loads(out)["numbers"]
    for name, number in numbers.items():
        if number["unit"] in {"fraction", "times"} and "margin explained" not in name:
            assert number["n"] >= 0, name
            value = number["value"]
            if value is not None:
                rounding = 1e-9
                assert number["low"] - rounding <= value <= number["high"] + rounding, name


@pytest.mark.parametrize("command", ["eval", "audit", "corrupt"])
def test_strict_fails_before_the_work_where_classes_have_no_pictures(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "a"
    code, said, err = run(capsys, command, "--strict", "--out", out)
    assert code == 3
    assert "classes without a picture" in err
    assert "186: " in said
    assert not out.exists()


def test_a_name_tells_two_versions_apart_and_keeps_the_architecture(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    words = ("eval", "--data", data, "--quiet", "--json", "--name", "scratch-v2")
    code, out, err = run(capsys, *words, "--out", tmp_path / "a")
    assert code == 0, err
    document = json.loads(out)
    assert document["title"] == "Accuracy of scratch-v2"
    model = document["model"]
    assert (model["name"], model["architecture"]) == ("scratch-v2", "alexnet-mini")


def test_a_name_of_another_model_is_refused() -> None:
    with pytest.raises(UserError, match=r"write load\('alexnet'\)"):
        featviz.load(name="alexnet")
    with pytest.raises(UserError, match="cannot be shown"):
        featviz.load(name=" ")
    assert featviz.load("alexnet-mini", name="a b").name == "a b"


def test_a_bound_that_is_no_number_is_refused_before_the_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for text in ("top1.low>=x", "top1<1/0", "top1>nan", "top1<=50 percent"):
        code, out, err = run(capsys, "eval", "--out", tmp_path / "e", "--require", text)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert not list(tmp_path.iterdir())
