"""`featviz attack`: what it saves is what it says, also when it is loaded again."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest
import torch

from featviz.attacks.methods import METHODS
from featviz.cli import main as command_line
from featviz.models.model import Model
from featviz.pictures import images

EPS = {"linf": "16/255", "l2": "2", "l1": "60"}
QUICK = {"apgd": 10, "apgd-t": 5, "ensemble": 10, "square": 100, "sigma-zero": 60}
CASES = [
    *((name, method.norms[0], []) for name, method in METHODS.items()),
    ("bim", "l2", []),
    ("pgd", "l1", []),
    ("pgd", "linf", ["--target", "goldfish"]),
]
WEAK = {"noise", "deepfool", "superdeepfool", "fmn"}
"""random noise, and methods whose points lie so near to the boundary that 8 bits may miss it"""


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as left:
        command_line.main([str(word) for word in words])
    said = capsys.readouterr()
    return (left.value.code or 0), said.out, said.err


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of another size than the model's, as a file."""
    path = tmp_path_factory.mktemp("pictures") / "one.png"
    ramp = torch.linspace(0.2, 0.8, 80)
    colours = torch.stack(
        [
            ramp[:, None].expand(80, 90),
            ramp.flip(0)[:, None].expand(80, 90),
            torch.full((80, 90), 0.4),
        ]
    )
    images.write_png(images.quantize(colours), path)
    return path


@pytest.mark.parametrize(("method", "norm", "more"), CASES, ids=lambda v: str(v)[:14])
def test_what_it_saves_is_what_it_says_when_loaded(
    mini: Model,
    picture: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    method: str,
    norm: str,
    more: list[str],
) -> None:
    out = tmp_path / "attack"
    words = ["--method", method, "--norm", norm, "--out", out, "--json", "--quiet", *more]
    if METHODS[method].ball:
        words += ["--eps", EPS[norm]]
    if method in QUICK:
        words += ["--steps", QUICK[method]]
    code, said, err = run(capsys, "attack", picture, *words)
    assert code == 0, err
    document = json.loads(said)
    assert document["parameters"]["method"] == method
    original = images.read_image(out / "pictures" / "01-original.png")
    adversarial = images.read_image(out / "pictures" / "01-adversarial.png")
    with (out / "attack.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    before, after = mini(original[None]).argmax(), mini(adversarial[None]).argmax()
    assert row["before"] == mini.class_name(int(before))
    assert row["after"] == mini.class_name(int(after))
    assert row["success"] == row["success_8bit"]
    assert row["success"] == "1" or method in WEAK
    if "--target" in more:
        assert row["after"] == "goldfish"
    else:
        assert (before != after) == (row["success"] == "1")
    change = (adversarial.double() - original.double()).flatten()
    if METHODS[method].ball:
        top, _, bottom = EPS[norm].partition("/")
        size = {"linf": change.abs().max(), "l2": change.norm(), "l1": change.abs().sum()}[norm]
        assert 0 < float(size) <= float(top) / float(bottom or 1) + 1e-5


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_the_smallest_change_is_saved_with_its_certificate(
    mini: Model, picture: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, norm: str
) -> None:
    out = tmp_path / "attack"
    code, said, err = run(
        capsys,
        "attack",
        picture,
        "--method",
        "minimal",
        "--norm",
        norm,
        "--steps",
        "16",
        "--out",
        out,
        "--json",
        "--quiet",
    )
    assert code == 0, err
    assert json.loads(said)["parameters"]["eps"] is None
    original = images.read_image(out / "pictures" / "01-original.png")
    adversarial = images.read_image(out / "pictures" / "01-adversarial.png")
    with (out / "certificates.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    logits = mini(torch.stack([original, adversarial]))
    assert row["label"] == mini.class_name(int(logits[0].argmax()))
    assert row["becomes"] == mini.class_name(int(logits[1].argmax())) != row["label"]
    first, second = logits[1].topk(2).values.tolist()
    assert float(row["ahead"]) == pytest.approx(first - second, abs=1e-3)
    assert row["fools_as_saved"] == "1"
    change = (adversarial.double() - original.double()).flatten()
    sizes = {
        "linf": change.abs().max(),
        "l2": change.norm(),
        "l1": change.abs().sum(),
        "l0": (change != 0).sum(),
    }
    for name, size in sizes.items():
        assert float(row[name]) == pytest.approx(float(size), rel=1e-6)
    assert 0 <= float(row["lowest"]) <= float(row["highest"]) <= 1
    values = adversarial.contiguous().numpy().tobytes()
    assert row["sha256"] == hashlib.sha256(values).hexdigest()


def test_a_wrong_method_and_options_that_it_does_not_have_are_refused(
    picture: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "attack"
    for words, said in (
        (["--method", "bgd"], "did you mean pgd"),
        (["--method", "square", "--norm", "l1"], "unknown norm 'l1'"),
        (
            ["--method", "ensemble", "--target", "goldfish"],
            "ensemble has no target; for one take pgd",
        ),
        (["--method", "minimal", "--eps", "1/255"], "takes no eps"),
        (["--method", "pgd", "--norm", "l0"], "unknown norm 'l0'"),
        (["--method", "fgsm", "--restarts", "2"], "for one take pgd or apgd"),
    ):
        code, _, err = run(capsys, "attack", picture, "--out", out, *words)
        assert code == 2
        assert said in err
        assert not out.exists()
