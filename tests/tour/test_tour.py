"""The tour: every step makes its result, a stopped tour goes on, a foreign result is made again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from featviz import results
from featviz.data.samples import sample_pictures
from featviz.models.model import Model
from featviz.tour import QUICK, Tour, run_tour

KINDS = {
    "layers",
    "classify",
    "growth",
    "eval",
    "kernels",
    "maximize",
    "examples",
    "circuit",
    "concepts",
    "cards",
    "grid",
    "ablation",
    "attribution",
    "patching",
    "maps",
    "patch",
    "embed",
    "inversion",
    "accentuation",
    "neighbors",
    "atlas",
    "attribute",
    "attack",
    "audit",
    "describe",
    "explorer",
}


SMALL = replace(
    QUICK,
    units=2,
    concepts=2,
    cells=1,
    maximize_steps=8,
    silenced=16,
    compared=16,
    searched=48,
    embedded=48,
    concept_steps=4,
    invert_steps=6,
    accentuate_steps=4,
    audited=2,
    audit_steps=10,
    check_steps=4,
    square_queries=5,
)


@pytest.fixture(scope="module")
def quick_tour(mini: Model, tmp_path_factory: pytest.TempPathFactory) -> Tour:
    folder = tmp_path_factory.mktemp("tour") / "run"
    return run_tour(mini, sample_pictures(4), folder, budget=SMALL)


@pytest.mark.slow
def test_every_analysis_makes_its_result(quick_tour: Tour) -> None:
    assert {t.folder.name.partition("-")[0] for t in quick_tour.outcomes} == KINDS
    assert [t.refused for t in quick_tour.outcomes if t.refused] == []
    assert (quick_tour.gallery / "index.html").is_file()


@pytest.mark.slow
def test_every_result_is_whole_and_names_its_model(quick_tour: Tour, mini: Model) -> None:
    for outcome in quick_tour.outcomes:
        document = results.read_result(outcome.folder)
        if document["model"] is not None:
            assert document["model"]["sha256"] == mini.sha256
        for figure in document["figures"]:
            assert figure["alt"], figure
            assert figure["caption"], figure
            assert (outcome.folder / figure["file"]).is_file()
        for table in document["tables"]:
            assert (outcome.folder / table["file"]).is_file()


@pytest.mark.slow
def test_units_of_one_layer_meet_on_one_page(quick_tour: Tour) -> None:
    seen: dict[str, set[str]] = {}
    for outcome in quick_tour.outcomes:
        for figure in results.read_result(outcome.folder)["figures"]:
            for unit in figure["units"]:
                seen.setdefault(unit, set()).add(outcome.folder.name.partition("-")[0])
    assert any({"maximize", "examples", "maps"} <= kinds for kinds in seen.values()), seen


@pytest.mark.slow
def test_a_second_tour_keeps_what_is_there_and_makes_what_is_not(
    quick_tour: Tour, mini: Model
) -> None:
    folder = quick_tour.outcomes[0].folder.parent
    gone, foreign = folder / "kernels-conv1", folder / "layers" / "result.json"
    for path in sorted(gone.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    gone.rmdir()
    document = json.loads(foreign.read_text())
    document["model"]["sha256"] = "0" * 64
    foreign.write_text(json.dumps(document))
    again = run_tour(mini, sample_pictures(4), folder, budget=SMALL)
    made = {Path(t.folder).name for t in again.outcomes if not t.kept}
    assert made == {"kernels-conv1", "layers"}


@pytest.mark.long
def test_a_trunk_without_a_head_takes_the_tour_without_its_answers(
    shared_data: Path, tmp_path: Path
) -> None:
    import featviz

    trunk = featviz.load("alexnet", weights=shared_data / "alexnet_trunk.safetensors")
    tour = run_tour(trunk, sample_pictures(2), tmp_path / "run", budget=QUICK)
    assert [t.refused for t in tour.outcomes if t.refused] == []
    kinds = {t.folder.name.partition("-")[0] for t in tour.outcomes}
    without = {"classify", "growth", "eval", "accentuation", "attribute", "attack", "audit"}
    assert kinds == KINDS - without - {"ablation", "attribution", "patching", "describe"}


@pytest.mark.slow
def test_the_explorer_shows_the_units_of_the_tour_and_leads_to_the_gallery(
    quick_tour: Tour,
) -> None:
    made = quick_tour.outcomes[-1].folder / "explorer.html"
    assert 'id="block-conv5-0-made"' in made.read_text()
    shown = (quick_tour.gallery / "results" / "explorer" / "explorer.html").read_text()
    site = json.loads(shown.partition('id="site">')[2].partition("<")[0])
    for address in site.values():
        assert (quick_tour.gallery / "results" / "explorer" / address).is_file(), address
    assert set(site) == {"gallery", "atlas"}
