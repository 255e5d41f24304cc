"""The audit: counts, curves that are known in closed form, doubts that must be raised, resuming."""

from __future__ import annotations

import csv
import functools
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attack_models import broken_model, photographs, tiny_model, two_classes

from featviz import images, results
from featviz.datasets import open_pictures
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.robustness.audit import audit, check_grids
from featviz.robustness.diagnosis_figures import look_inside
from featviz.robustness.masking import Check
from featviz.robustness.result import Level, doubts
from featviz.robustness.self_test import self_test, smallest

GRIDS = {"linf": [1 / 255, 2 / 255, 8 / 255], "l2": [0.1, 0.5]}
QUICK = {"steps": 12, "check_steps": 6, "queries": 10, "sections": (), "batch_size": 8}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(autouse=True, scope="module")
def one_selftest():
    """It is the same each time, and here there are many audits."""
    done = self_test()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featviz.robustness.audit.self_test", lambda: done)
        yield


@pytest.fixture(scope="module")
def labelled(model):
    pictures = photographs(24)
    labels = model(pictures).argmax(1)
    labels[::6] = (labels[::6] + 1) % 5  # four pictures are wrong when clean
    return pictures, labels


@pytest.fixture(scope="module")
def result(model, labelled):
    return audit(model, *labelled, eps=GRIDS, **QUICK)


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_accuracy_at_eps_0_is_the_measured_clean_accuracy(result) -> None:
    assert result.numbers()["clean accuracy"].value == pytest.approx(20 / 24)
    for part in result.norms:
        assert part.right(0.0) == 20
        assert part.right_8bit(0.0) == 20


def test_counts_add_up_and_accuracy_falls_with_eps(result) -> None:
    for part in result.norms:
        counts = [part.right(eps) for eps in (0.0, *part.eps)]
        assert counts == sorted(counts, reverse=True)
        wrong = part.distance == 0
        assert wrong.sum() == 4
        assert bool((part.predicted[wrong] == -1).all())
        assert bool((part.distance <= part.searched).all())
        assert part.one_step is not None
        assert bool((part.distance <= part.one_step).all())
        assert bool((part.distance <= part.distance_8bit * (1 + 1e-6)).all())
        for i, attack in enumerate(part.attack):
            fell = math.isfinite(part.distance[i]) and part.distance[i] > 0
            assert bool(attack) == fell == (int(part.predicted[i]) >= 0) == bool(part.sha256[i])
            if fell:
                assert float(part.judged[i]) > 0
                assert int(part.predicted[i]) != int(result.labels[i])
    rows = result.class_rows()
    first = result.norms[0]
    assert sum(row.n for row in rows) == 24
    assert sum(row.clean_right for row in rows) == 20
    assert sum(row.standing for row in rows) == first.right(result.telling_eps(first))
    fell = int((first.predicted >= 0).sum())
    assert sum(count for row in rows for _, count in row.becomes) == fell
    assert sum(count for _, (count, _) in result.flows()) == fell
    assert all(second <= count for _, (count, second) in result.flows())


def test_the_pictures_of_the_sheets_do_fool_at_the_distance_they_tell(model, result) -> None:
    for part in result.norms:
        assert part.easiest
        for fall in (*part.easiest, *part.hardest):
            assert int(model(fall.adversarial[None]).argmax()) == fall.predicted
            assert fall.predicted != int(result.labels[fall.row])
            change = (fall.adversarial - fall.original).double()
            size = change.abs().max() if part.norm == "linf" else change.norm()
            assert float(size) == pytest.approx(fall.distance, rel=1e-12)
        found = sorted(part.distance[part.predicted >= 0].tolist())
        assert [fall.distance for fall in part.easiest] == found[: len(part.easiest)]


def test_the_tables_say_what_the_result_says(result, tmp_path: Path) -> None:
    folder = result.save(tmp_path / "audit")
    for row in table(folder, "accuracy.csv"):
        part = next(p for p in result.norms if p.norm == row["norm"])
        if row["attack"] == "all":
            assert int(row["right"]) == part.right(float(row["eps"]))
        assert float(row["low"]) <= float(row["accuracy"]) <= float(row["high"])
        assert float(row["accuracy"]) == int(row["right"]) / int(row["n"])
    certificates = table(folder, "certificates.csv")
    assert len(certificates) == 48
    for norm in ("linf", "l2"):
        own = [c for c in certificates if c["norm"] == norm]
        assert [c["distance"] for c in own[:4]] == ["0.0"] * 4
        values = [float(c["distance"] or "inf") for c in own]
        assert values == sorted(values)
    assert {c["box"] for c in certificates} == {"[0, 1]"}
    assert sum(int(row["n"]) for row in table(folder, "classes.csv")) == 24
    assert {row["verdict"] for row in table(folder, "checks.csv")} <= {"passed", "not measured"}
    assert (folder / "easiest-linf.png").is_file()
    assert (folder / "curves.svg").is_file()
    assert "<img" in result._repr_html_()
    document = results.read_result(folder)
    assert "at most" in document["numbers"]["L∞ 1/255"]["meaning"]
    assert document["numbers"]["self-test"]["value"] == "passed"


def test_a_linear_model_gives_its_exact_curve(generator: torch.Generator) -> None:
    net, pictures = two_classes(generator)
    pictures = pictures.float()
    model = Model(net.float(), name="linear", input_size=4)
    w = (net.weights[0] - net.weights[1]).detach().double()
    logits = model(pictures).double()
    margins = (logits[:, 0] - logits[:, 1]).tolist()
    zeros = torch.zeros(8, dtype=torch.long)
    pairs = list(zip(pictures, margins, strict=True))
    exact = {
        norm: [smallest(w, p.flatten().double(), m, norm) for p, m in pairs]
        for norm in ("linf", "l2")
    }
    grids = {
        norm: [(a + b) / 2 for a, b in itertools.pairwise(sorted(values)) if b > 1.03 * a]
        for norm, values in exact.items()
    }
    found = audit(model, pictures, zeros, eps=grids, **QUICK | {"steps": 40})
    for part in found.norms:
        known = torch.tensor(exact[part.norm], dtype=torch.float64)
        for eps in part.eps:
            assert part.right(eps) == int((known > eps).sum())
        assert bool((part.distance >= known * (1 - 1e-5)).all())
        assert bool((part.distance <= known * 1.01).all())


def test_order_and_groups_do_not_matter(model) -> None:
    pictures = photographs(10)
    labels = model(pictures).argmax(1)
    options = QUICK | {"eps": {"linf": [0.5 / 255, 2 / 255]}, "norms": ["linf"], "batch_size": 2}
    whole = audit(model, pictures, labels, **options).norms[0]
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    parts = audit(model, pictures[order], labels[order], **options).norms[0]
    assert torch.equal(parts.searched, whole.searched[order])
    assert torch.equal(parts.distance_8bit, whole.distance_8bit[order])
    assert whole.noise_right is not None
    assert parts.noise_right is not None
    assert torch.equal(parts.noise_right, whole.noise_right[:, order])


def test_searching_in_bf16_changes_what_is_tried_not_what_counts(model, labelled, result) -> None:
    pictures, labels = labelled
    rough = audit(model, pictures, labels, eps=GRIDS, **QUICK, precision="bfloat16")
    assert rough.precision == {"search": "bfloat16", "judge": "float32"}
    assert result.precision == {"search": "float32", "judge": "float32"}
    assert torch.equal(rough.clean, result.clean)
    for one, other in zip(rough.norms, result.norms, strict=True):
        assert float((one.distance - other.distance).abs().max()) > 0
        fell = other.distance.isfinite() & (other.distance > 0)
        assert torch.equal(fell, one.distance.isfinite() & (one.distance > 0))
        ratio = one.distance[fell] / other.distance[fell]
        assert float(ratio.median()) == pytest.approx(1, abs=0.02)
        for fall in one.easiest:  # in float32, as it stands in the sheet
            answer = int(model(fall.adversarial[None]).argmax())
            assert answer == fall.predicted != int(labels[fall.row])


def test_every_norm_can_be_audited(model) -> None:
    found = audit(model, photographs(6), norms=["l1", "l0"], **QUICK)
    l1, l0 = found.norms
    assert l0.one_step is None
    assert bool((l0.distance == l0.distance.round()).all())
    assert bool((l1.distance[l1.distance.isfinite()] > 0).all())


def test_the_whole_suite_can_be_the_check(model) -> None:
    options = QUICK | {"norms": ["linf"], "eps": [1 / 255, 4 / 255], "queries": 0}
    weak = audit(model, photographs(12), **options)
    strong = audit(model, photographs(12), check="suite", **options)
    assert {point.attack for point in strong.norms[0].points} == {"the suite"}
    for point, other in zip(weak.norms[0].points, strong.norms[0].points, strict=False):
        assert point.eps == other.eps
        assert strong.norms[0].right(point.eps) <= weak.norms[0].right(point.eps)


def test_without_labels_the_models_own_answers_stand_in_and_it_says_so(model) -> None:
    found = audit(model, photographs(6), norms=["linf"], eps=[1 / 255], **QUICK)
    assert found.own_labels
    assert found.numbers()["clean accuracy"].value == 1.0
    assert "by construction" in found.numbers()["clean accuracy"].meaning
    assert any("own clean answers" in w for w in found.warnings)


def test_class_folders_are_the_labels_and_unknown_folders_are_left_out(
    model, tmp_path: Path
) -> None:
    for i, picture in enumerate(photographs(6)):
        folder = tmp_path / ("kind 0", "kind_3", "something else")[i % 3]
        folder.mkdir(exist_ok=True)
        images.write_png(picture, folder / f"{i}.png")
    (tmp_path / "kind 0" / "broken.png").write_text("no picture")
    found = audit(model, open_pictures(tmp_path), norms=["linf"], eps=[1 / 255], **QUICK)
    assert sorted(found.labels.tolist()) == [0, 0, 3, 3]
    assert any("2 of 7 pictures are left out" in w for w in found.warnings)
    assert any("1 pictures could not be read" in w for w in found.warnings)
    assert found.origin.data is not None
    assert found.origin.data["name"] == tmp_path.name


OWN_WARNING = {
    "quantised": "quantised input",
    "shattered": "shattered gradients",
    "stochastic": "stochastic model",
    "detached": "detached model",
    "scaled": "enormous logits",
    "softmax": "probabilities instead of logits",
    "undefined": "undefined gradients",
    "wants 255": "clean accuracy at chance",
}


@pytest.mark.parametrize("kind", ["healthy", *sorted(OWN_WARNING)])
def test_models_broken_on_purpose_trip_their_own_warning(kind: str) -> None:
    pictures = photographs(200)
    labels = tiny_model(5)(pictures).argmax(1)
    rows = torch.cat([(labels == c).nonzero()[:10, 0] for c in (0, 1, 3, 4)])
    options = QUICK | {"steps": 10, "queries": 0, "batch_size": 20}
    found = audit(
        broken_model(kind, 5),
        pictures[rows],
        labels[rows],
        norms=["linf"],
        eps=[8 / 255],
        **options,
    )
    if kind == "healthy":
        assert found.warnings == ()
    else:
        assert any(w.startswith(f"{OWN_WARNING[kind]}:") for w in found.warnings), found.warnings


@pytest.mark.parametrize(
    ("norm", "eps", "warning"),
    [
        ("linf", [0.5, 0.9], "eps beyond every picture"),
        ("l2", [50.0], "eps beyond every picture"),
        ("linf", [8 / 255 / 255], "eps below one level"),
    ],
)
def test_eps_in_the_wrong_unit_is_doubted(model, norm: str, eps, warning) -> None:
    found = audit(model, photographs(30), norms=[norm], eps=eps, **QUICK | {"queries": 0})
    assert any(w.startswith(f"{warning}:") for w in found.warnings), found.warnings


def test_pictures_outside_the_range_are_refused_with_their_range(model) -> None:
    with pytest.raises(UserError, match=r"must lie in \[0, 1\], these reach from 0 to 255"):
        audit(model, torch.tensor([0.0, 255.0]).view(2, 1, 1, 1).expand(2, 3, 16, 16))


def test_a_curve_that_its_check_beats_and_a_search_cut_short_are_doubted(result) -> None:
    part = result.norms[0]
    weak = replace(part, points=(part.points[0]._replace(fell=5),))
    said = doubts(replace(result, norms=(weak,)))
    assert any(w.startswith("curve beaten by its check") for w in said)
    cut = replace(part, levels=(Level(50, 0.2), Level(100, 0.1)))
    said = doubts(replace(result, norms=(cut,)))
    assert any("from 50 to 100 steps the median L∞ distance fell by 50%" in w for w in said)
    tripped = Check("some name", 1.0, 0.5, True, "what", "remedy")
    said = doubts(replace(result, checks=(tripped,)))
    assert any(w.startswith("some name: what (1, limit 0.5)") for w in said)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "result.json"
    }


def facts(folder: Path) -> dict[str, object]:
    document = json.loads((folder / "result.json").read_text())
    for key in ("created", "seconds"):
        del document[key]
    for key in ("seconds", "memory", "self-test"):
        del document["numbers"][key]
    return document


SETTINGS = {
    "norms": ["linf"],
    "eps": [1 / 255, 8 / 255],
    "steps": 12,
    "check_steps": 6,
    "queries": 10,
    "sections": (),
    "batch_size": 2,
}
SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from attack_models import photographs, tiny_model
from featviz.robustness.audit import audit
model, pictures = tiny_model(), photographs(16)
labels = model(pictures).argmax(1)
audit(model, pictures, labels, out=sys.argv[1], **{settings!r})
"""


@pytest.mark.slow
def test_a_killed_audit_goes_on_to_the_same_bytes(model, tmp_path: Path) -> None:
    script = SCRIPT.format(tests=str(Path(__file__).parent), settings=SETTINGS)

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", script, str(out)])

    partial = tmp_path / "killed.partial"
    process = start(tmp_path / "killed")
    while len(list(partial.glob("linf-*.npz"))) < 2 and process.poll() is None:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert partial.is_dir()
    assert not (tmp_path / "killed").exists()
    kept = {p.name: p.stat().st_mtime_ns for p in partial.glob("*.npz")}
    assert len(kept) >= 3
    assert start(tmp_path / "killed").wait() == 0
    assert not partial.exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pictures = photographs(16)
        labels = model(pictures).argmax(1)
        audit(model, pictures, labels, out=tmp_path / "whole", **SETTINGS)
    finally:
        torch.set_num_threads(threads)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert facts(tmp_path / "killed") == facts(tmp_path / "whole")


class Stop(Exception):
    pass


def test_work_of_other_arguments_is_not_taken_over(model, tmp_path: Path) -> None:
    pictures = photographs(8)
    options = QUICK | {"norms": ["linf"], "batch_size": 4, "out": tmp_path / "a"}
    seen = []

    def stop(done: int, total: int, text: str) -> None:
        seen.append(text)
        if text.startswith("checking"):
            raise Stop

    with pytest.raises(Stop):
        audit(model, pictures, progress=stop, **options)
    partial = tmp_path / "a.partial"
    before = {p.name: p.stat().st_mtime_ns for p in partial.glob("*.npz")}
    assert {"clean.npz", "probe.npz", "linf-0000.npz"} <= set(before)
    with pytest.raises(Stop):  # the same again: nothing is made twice
        audit(model, pictures, progress=stop, **options)
    assert {n: (partial / n).stat().st_mtime_ns for n in before} == before
    with pytest.raises(Stop):
        audit(model, pictures, progress=stop, **options | {"steps": 13})
    assert all((partial / n).stat().st_mtime_ns != before[n] for n in before)
    (partial / "linf-0000.npz").write_bytes(b"half a file")  # damaged: made again
    found = audit(model, pictures, **options | {"steps": 13})
    assert found.resumed >= 2
    fresh = audit(model, pictures, **options | {"steps": 13, "out": None})
    assert torch.equal(found.norms[0].distance, fresh.norms[0].distance)
    assert (found.forwards, found.backwards) == (fresh.forwards, fresh.backwards)
    assert not partial.exists()


def test_a_folder_that_is_not_ours_is_left_alone(model, tmp_path: Path) -> None:
    (tmp_path / "a.partial").mkdir()
    (tmp_path / "a.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="in the way and not ours"):
        audit(model, photographs(4), norms=["linf"], **QUICK | {"out": tmp_path / "a"})
    assert (tmp_path / "a.partial" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("norms", "eps", "message"),
    [
        (["linf", "l2"], [0.1], "one list of eps for two norms"),
        (["linf"], [-0.1], "out of range"),
        (["linf"], [8], "write 8/255"),
        (["linf"], [0.0], "no eps above 0"),
        (["l3"], [1.0], "unknown norm 'l3'"),
        ([], None, "no norm"),
    ],
)
def test_grids_that_make_no_sense_are_refused_in_words(norms, eps, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_grids(norms, eps)


def test_grids_are_sorted_and_without_doubles() -> None:
    assert check_grids(["linf"], [0.2, 0.1, 0.1, 0.0]) == {"linf": (0.1, 0.2)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 3}, "steps is 3"),
        ({"check": "sweet"}, "unknown check 'sweet'"),
        ({"sections": ["insight"]}, "unknown section 'insight'.*insid"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_words(model, options, message: str) -> None:
    with pytest.raises(UserError, match=message):
        audit(model, photographs(2), **options)


def test_sections_stand_on_the_audits_page_under_their_names(
    model, labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featviz.robustness.parts._UNIVERSAL_STEPS", 2)
    layers_only = functools.partial(look_inside, portraits=0)
    monkeypatch.setattr("featviz.robustness.parts.look_inside", layers_only)
    options = QUICK | {"sections": ("inside", "transfer", "universal"), "check_steps": 0}
    found = audit(
        model,
        *labelled,
        norms=["linf"],
        eps=[8 / 255],
        against={"other": tiny_model(3)},
        out=tmp_path / "a",
        **options,
    )
    assert [section.name for section in found.sections] == ["universal", "transfer", "inside"]
    document = results.read_result(tmp_path / "a")
    files = {figure["file"] for figure in document["figures"]}
    assert {"transfer/transfer.svg", "inside/inside-layers.svg"} <= files
    for item in (*document["figures"], *document["tables"]):
        assert (tmp_path / "a" / item["file"]).is_file()
    assert "transfer: tiny to other" in document["numbers"]
    rows = table(tmp_path / "a", "transfer/transfer.csv")
    own = next(r for r in rows if r["judge"] == "itself, again")
    assert float(own["rate"]) == 1.0
    assert int(own["n"]) <= 20


def test_a_section_that_cannot_be_made_is_named_and_the_rest_goes_on(model, tmp_path: Path) -> None:
    class Constant(torch.nn.Module):
        def forward(self, x):
            z = torch.zeros(len(x), 3) + 0 * x.flatten(1).sum(1, keepdim=True)
            return z + torch.tensor([1.0, 0.0, 0.0])

    unmoved = Model(Constant(), name="constant", input_size=16)
    labels = torch.zeros(6, dtype=torch.long)
    found = audit(
        unmoved,
        photographs(6),
        labels,
        norms=["linf"],
        eps=[8 / 255],
        **QUICK | {"sections": ("transfer", "inside")},
    )
    assert found.sections == ()
    assert sum("is left out: no picture was fooled" in w for w in found.warnings) == 2
    assert any(w.startswith("zero gradients:") for w in found.warnings)
    assert any(w.startswith("unlimited eps below 100%:") for w in found.warnings)
