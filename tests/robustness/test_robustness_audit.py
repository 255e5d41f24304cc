"""The audit: counts, curves that are known in closed form, its warnings, resuming."""

from __future__ import annotations

import csv
import functools
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from attack_models import OWN_CHECK, broken_model, photographs, tiny_model, two_classes
from torch import Tensor

from featviz import results
from featviz.checkpoints import Interrupted, partial_folder, remove_checkpoint
from featviz.corruptions.table import corruption_table
from featviz.data.datasets import open_pictures
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.pictures import images
from featviz.robustness.audit import audit, check_grids
from featviz.robustness.diagnosis_result import diagnose
from featviz.robustness.masking import Check
from featviz.robustness.norm_audit import Convergence
from featviz.robustness.result import Audit, audit_warnings
from featviz.robustness.self_test import self_test, smallest

GRIDS = {"linf": [1 / 255, 2 / 255, 8 / 255], "l2": [0.1, 0.5]}
QUICK: dict[str, Any] = {
    "steps": 12,
    "check_steps": 6,
    "queries": 10,
    "parts": (),
    "batch_size": 8,
}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(autouse=True, scope="module")
def one_self_test() -> Iterator[None]:
    """It is the same each time, and there are many audits here."""
    done = self_test()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featviz.robustness.audit.self_test", lambda: done)
        yield


@pytest.fixture(scope="module")
def labelled(model: Model) -> tuple[Tensor, Tensor]:
    pictures = photographs(24)
    labels = model(pictures).argmax(1)
    labels[::6] = (labels[::6] + 1) % 5  # four pictures are wrong when clean
    return pictures, labels


@pytest.fixture(scope="module")
def result(model: Model, labelled: tuple[Tensor, Tensor]) -> Audit:
    return audit(model, *labelled, eps=GRIDS, **QUICK)


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_accuracy_at_eps_0_is_the_measured_clean_accuracy(result: Audit) -> None:
    assert result.numbers()["clean accuracy"].value == pytest.approx(20 / 24)
    for part in result.norms:
        assert part.correct(0.0) == 20
        assert part.correct_8bit(0.0) == 20


def test_counts_add_up_and_accuracy_decreases_with_eps(result: Audit) -> None:
    for part in result.norms:
        counts = [part.correct(eps) for eps in (0.0, *part.eps)]
        assert counts == sorted(counts, reverse=True)
        wrong = part.distance == 0
        assert wrong.sum() == 4
        assert bool((part.predicted[wrong] == -1).all())
        assert bool((part.distance <= part.search_distance).all())
        assert part.one_step is not None
        assert bool((part.distance <= part.one_step).all())
        assert bool((part.distance <= part.distance_8bit * (1 + 1e-6)).all())
        for i, attack in enumerate(part.attack):
            fooled = bool(part.fooled[i])
            assert bool(attack) == fooled == (int(part.predicted[i]) >= 0) == bool(part.sha256[i])
            if fooled:
                assert float(part.margin[i]) > 0
                assert int(part.predicted[i]) != int(result.labels[i])
    rows = result.class_rows
    first = result.norms[0]
    assert sum(row.n for row in rows) == 24
    assert sum(row.clean for row in rows) == 20
    assert sum(row.robust for row in rows) == first.correct(first.half_eps)
    count = int((first.predicted >= 0).sum())
    assert sum(pictures for row in rows for _, pictures in row.predicted) == count
    assert sum(pair.pictures for pair in result.confusions) == count
    assert all(pair.second_choice <= pair.pictures for pair in result.confusions)


def test_the_pictures_of_the_sheets_fool_at_the_distance_written(
    model: Model, result: Audit
) -> None:
    for part in result.norms:
        assert part.least_robust
        for example in (*part.least_robust, *part.most_robust):
            assert int(model(example.adversarial[None]).argmax()) == example.predicted
            assert example.predicted != int(result.labels[example.row])
            change = (example.adversarial - example.original).double()
            size = change.abs().max() if part.norm == "linf" else change.norm()
            assert float(size) == pytest.approx(example.distance, rel=1e-12)
        found = sorted(part.distance[part.predicted >= 0].tolist())
        assert [e.distance for e in part.least_robust] == found[: len(part.least_robust)]


def test_the_tables_say_what_the_result_says(result: Audit, tmp_path: Path) -> None:
    folder = result.save(tmp_path / "audit")
    for row in table(folder, "accuracy.csv"):
        part = next(p for p in result.norms if p.norm == row["norm"])
        if row["attack"] == "all":
            assert int(row["right"]) == part.correct(float(row["eps"]))
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
    assert (folder / "least-robust-linf.svg").is_file()
    assert (folder / "curves.svg").is_file()
    assert "<img" in result._repr_html_()
    document = results.read_result(folder)
    accuracy = document["numbers"]["robust accuracy L∞ 1/255"]
    assert "at most" in accuracy["meaning"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert accuracy["n"] == 24
    assert document["numbers"]["self-test"]["value"] == "passed"


def test_a_linear_model_gives_its_exact_curve(generator: torch.Generator) -> None:
    net, pictures = two_classes(generator)
    pictures = pictures.float()
    model = Model(net.float(), name="linear", preprocessing=4)
    w = (net.weights[0] - net.weights[1]).detach().double()
    logits = model(pictures).detach().double()
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
            assert part.correct(eps) == int((known > eps).sum())
        assert bool((part.distance >= known * (1 - 1e-5)).all())
        assert bool((part.distance <= known * 1.01).all())


@pytest.mark.numeric
def test_pictures_do_not_mix() -> None:
    model, pictures = tiny_model().double(), photographs(10).double()
    labels = model(pictures).argmax(1)
    options = QUICK | {"eps": {"linf": [0.5 / 255, 2 / 255]}, "norms": ["linf"]}
    whole = audit(model, pictures, labels, **options | {"batch_size": 10}).norms[0]
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    moved = (pictures[order], labels[order])
    parts = audit(model, *moved, **options | {"batch_size": 3}).norms[0]
    for name in ("search_distance", "distance_8bit", "estimate"):
        one, other = getattr(parts, name), getattr(whole, name)[order]
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert whole.noise_correct is not None
    assert parts.noise_correct is not None
    assert torch.equal(parts.noise_correct, whole.noise_correct[:, order])


def test_a_search_in_bfloat16_is_judged_in_float32(
    model: Model, labelled: tuple[Tensor, Tensor], result: Audit
) -> None:
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
        for example in one.least_robust:
            predicted = int(model(example.adversarial[None]).argmax())
            assert predicted == example.predicted != int(labels[example.row])


def test_every_norm_can_be_audited(model: Model) -> None:
    found = audit(model, photographs(6), norms=["l1", "l0"], **QUICK)
    l1, l0 = found.norms
    assert l0.one_step is None
    assert bool((l0.distance == l0.distance.round()).all())
    assert bool((l1.distance[l1.distance.isfinite()] > 0).all())


def test_the_ensemble_can_be_the_second_attack(model: Model) -> None:
    options = QUICK | {"norms": ["linf"], "eps": [1 / 255, 4 / 255], "queries": 0}
    weak = audit(model, photographs(12), **options)
    strong = audit(model, photographs(12), check="ensemble", **options)
    assert {found.attack for found in strong.norms[0].second_attacks} == {"the ensemble"}
    pairs = zip(weak.norms[0].second_attacks, strong.norms[0].second_attacks, strict=False)
    for one, other in pairs:
        assert one.eps == other.eps
        assert strong.norms[0].correct(one.eps) <= weak.norms[0].correct(one.eps)


def test_without_labels_the_predictions_are_used_with_a_warning(model: Model) -> None:
    found = audit(model, photographs(6), norms=["linf"], eps=[1 / 255], **QUICK)
    assert found.predicted_labels
    assert found.numbers()["clean accuracy"].value == 1.0
    assert "by construction" in found.numbers()["clean accuracy"].meaning
    assert any("there are no labels" in w for w in found.warnings)


def test_class_folders_are_the_labels_and_unknown_folders_are_left_out(
    model: Model, tmp_path: Path
) -> None:
    for i, picture in enumerate(photographs(6)):
        folder = tmp_path / ("kind 0", "kind_3", "something else")[i % 3]
        folder.mkdir(exist_ok=True)
        images.write_png(picture, folder / f"{i}.png")
    (tmp_path / "kind 0" / "broken.png").write_text("no picture")
    found = audit(model, open_pictures(tmp_path), norms=["linf"], eps=[1 / 255], **QUICK)
    assert sorted(found.labels.tolist()) == [0, 0, 3, 3]
    assert any("2 of 7 pictures do not count" in w for w in found.warnings)
    assert any("1 picture could not be read" in w for w in found.warnings)
    assert found.origin.data is not None
    assert found.origin.data["name"] == tmp_path.name


OWN_WARNING = OWN_CHECK | {"wants 255": "clean accuracy at chance"}


@pytest.mark.parametrize("kind", ["healthy", *sorted(OWN_WARNING)])
def test_models_broken_on_purpose_raise_their_own_warning(kind: str) -> None:
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
def test_eps_in_the_wrong_unit_raises_a_warning(
    model: Model, norm: str, eps: list[float], warning: str
) -> None:
    found = audit(model, photographs(30), norms=[norm], eps=eps, **QUICK | {"queries": 0})
    assert any(w.startswith(f"{warning}:") for w in found.warnings), found.warnings


def test_pictures_outside_the_range_are_refused_with_their_range(model: Model) -> None:
    with pytest.raises(UserError, match=r"must lie in \[0, 1\], these reach from 0 to 255"):
        audit(model, torch.tensor([0.0, 255.0]).view(2, 1, 1, 1).expand(2, 3, 16, 16))


def test_a_weak_search_and_one_cut_short_raise_warnings(result: Audit) -> None:
    part = result.norms[0]
    weak = replace(part, second_attacks=(part.second_attacks[0]._replace(fooled=5),))
    found = audit_warnings(replace(result, norms=(weak,)))
    assert any(w.startswith("second attack stronger than the search") for w in found)
    cut = replace(part, convergence=(Convergence(50, 0.2), Convergence(100, 0.1)))
    found = audit_warnings(replace(result, norms=(cut,)))
    assert any("from 50 to 100 steps the median L∞ distance fell by 50%" in w for w in found)
    flagged = Check("some name", 1.0, 0.5, True, "what", "remedy")
    found = audit_warnings(replace(result, checks=(flagged,)))
    assert any(w.startswith("some name: what (1, limit 0.5)") for w in found)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "result.json"
    }


def facts(folder: Path) -> dict[str, object]:
    document: dict[str, Any] = json.loads((folder / "result.json").read_text())
    for key in ("created", "seconds"):
        del document[key]
    for key in ("seconds", "memory", "self-test"):
        del document["numbers"][key]
    return document


SETTINGS: dict[str, Any] = {
    "norms": ["linf"],
    "eps": [1 / 255, 8 / 255],
    "steps": 12,
    "check_steps": 6,
    "queries": 10,
    "parts": ("corruptions",),
    "batch_size": 1,
}


@pytest.mark.slow
def test_a_killed_audit_goes_on_to_the_same_bytes(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_names = functools.partial(corruption_table, names=["fog", "contrast"])
    monkeypatch.setattr("featviz.robustness.parts.corruption_table", two_names)
    pictures = photographs(4)
    labels = model(pictures).argmax(1)

    def work() -> None:
        partial = partial_folder(tmp_path / "killed")
        audit(model, pictures, labels, checkpoint=partial, **SETTINGS).save(tmp_path / "killed")
        remove_checkpoint(partial)

    partial = tmp_path / "killed.partial"
    process = forked.start(work)
    while len(list(partial.glob("linf-*.npz"))) < 2 and process.is_alive():
        time.sleep(0.02)
    process.kill()
    process.join()
    assert partial.is_dir()
    assert not (tmp_path / "killed").exists()
    kept = {p.name: p.stat().st_mtime_ns for p in partial.glob("*.npz")}
    assert len(kept) >= 3
    process = forked.start(work)
    process.join()
    assert process.exitcode == 0
    assert not partial.exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        audit(model, pictures, labels, **SETTINGS).save(tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert facts(tmp_path / "killed") == facts(tmp_path / "whole")


class Stop(Exception):
    pass


def stop(done: int, total: int, text: str) -> None:
    if text.startswith("APGD"):
        raise Stop


def test_finished_pieces_are_read_and_those_of_another_job_are_refused(
    model: Model, tmp_path: Path
) -> None:
    pictures, partial = photographs(8), tmp_path / "a.partial"
    options = QUICK | {"norms": ["linf"], "batch_size": 4}
    with pytest.raises(Stop):
        audit(model, pictures, progress=stop, checkpoint=partial, **options)
    before = {p.name: p.stat().st_mtime_ns for p in partial.glob("*.npz")}
    assert {"clean", "probe", "linf-0000"} <= {name.split(".")[0] for name in before}
    with pytest.raises(Stop):  # the same again: nothing is made twice
        audit(model, pictures, progress=stop, checkpoint=partial, **options)
    assert {p.name: p.stat().st_mtime_ns for p in partial.glob("*.npz")} == before
    with pytest.raises(UserError, match=r"another command \(steps 12, now 13\)"):
        audit(model, pictures, checkpoint=partial, **options | {"steps": 13})
    assert {p.name: p.stat().st_mtime_ns for p in partial.glob("*.npz")} == before
    next(partial.glob("linf-0000.*")).write_bytes(b"half a file")  # damaged: made again
    found = audit(model, pictures, checkpoint=partial, **options)
    assert found.resumed >= 2
    fresh = audit(model, pictures, **options)
    assert torch.equal(found.norms[0].distance, fresh.norms[0].distance)
    assert (found.forwards, found.backwards) == (fresh.forwards, fresh.backwards)


def test_ctrl_c_says_what_was_kept(model: Model, tmp_path: Path) -> None:
    def interrupt(done: int, total: int, text: str) -> None:
        if text.startswith("APGD"):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"kept \d+ pieces; give the same command again"):
        audit(model, photographs(8), progress=interrupt, checkpoint=tmp_path / "a", **QUICK)


def test_a_folder_that_is_no_checkpoint_is_left_alone(model: Model, tmp_path: Path) -> None:
    (tmp_path / "a.partial").mkdir()
    (tmp_path / "a.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"no job\.json"):
        audit(model, photographs(4), norms=["linf"], checkpoint=tmp_path / "a.partial", **QUICK)
    assert (tmp_path / "a.partial" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("norms", "eps", "message"),
    [
        (["linf", "l2"], [0.1], "one list of eps for several norms"),
        (["linf"], [-0.1], "out of range"),
        (["linf"], [8], "write 8/255"),
        (["linf"], [0.0], "no eps above 0"),
        (["l3"], [1.0], "unknown norm 'l3'"),
        ([], None, "no norm"),
    ],
)
def test_grids_that_make_no_sense_are_refused_in_words(
    norms: list[str], eps: list[float] | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_grids(norms, eps)


def test_grids_are_sorted_and_without_doubles() -> None:
    assert check_grids(["linf"], [0.2, 0.1, 0.1, 0.0]) == {"linf": (0.1, 0.2)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 3}, "steps is 3"),
        ({"check": "sweet"}, "unknown check 'sweet'"),
        ({"parts": ["diagnoses"]}, "unknown part 'diagnoses'.*diagnosis"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_words(
    model: Model, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        audit(model, photographs(2), **options)


def test_parts_are_written_into_folders_of_their_names(
    model: Model,
    labelled: tuple[Tensor, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("featviz.robustness.parts._UNIVERSAL_STEPS", 2)
    layers_only = functools.partial(diagnose, detailed=0)
    monkeypatch.setattr("featviz.robustness.parts.diagnose", layers_only)
    options = QUICK | {"parts": ("diagnosis", "transfer", "universal"), "check_steps": 0}
    against = {"other": tiny_model(3)}
    found = audit(model, *labelled, norms=["linf"], eps=[8 / 255], against=against, **options)
    assert list(found.parts) == ["universal", "transfer", "diagnosis"]
    document = results.read_result(found.save(tmp_path / "a"))
    files = {figure["file"] for figure in document["figures"]}
    assert {"transfer/transfer.svg", "diagnosis/layers.svg"} <= files
    for item in (*document["figures"], *document["tables"]):
        assert (tmp_path / "a" / item["file"]).is_file()
    assert "transfer: tiny to other" in document["numbers"]
    rows = table(tmp_path / "a", "transfer/transfer.csv")
    own = next(r for r in rows if r["judge"] == "itself, again")
    assert float(own["rate"]) == 1.0
    assert int(own["n"]) <= 20


def test_a_part_that_cannot_be_made_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    class Constant(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = torch.zeros(len(x), 3) + 0 * x.flatten(1).sum(1, keepdim=True)
            return z + torch.tensor([1.0, 0.0, 0.0])

    unmoved = Model(Constant(), name="constant", preprocessing=16)
    labels = torch.zeros(6, dtype=torch.long)
    found = audit(
        unmoved,
        photographs(6),
        labels,
        norms=["linf"],
        eps=[8 / 255],
        **QUICK | {"parts": ("transfer", "diagnosis")},
    )
    assert not found.parts
    assert sum("is left out: no picture was fooled" in w for w in found.warnings) == 2
    assert any(w.startswith("zero gradients:") for w in found.warnings)
    assert any(w.startswith("unbounded attack below 100%:") for w in found.warnings)
