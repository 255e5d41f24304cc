"""How class folders fit the classes of a model: every misfit is a fact, and is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import featviz
from featviz.data.datasets import Pictures, open_pictures
from featviz.data.labeled import read_labeled
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.pictures import images
from featviz.pictures.preprocessing import Preprocessing


def save(path: Path, value: float = 0.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images.write_png(torch.full((3, 4, 4), value), path)


def model_of(*classes: tuple[str, str]) -> Model:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, len(classes)))
    return Model(net, name="m", preprocessing=Preprocessing.of(2), classes=classes)


@pytest.fixture
def model() -> Model:
    return model_of(
        ("n01", "tabby, tabby cat"),
        ("n02", "crane"),
        ("n03", "crane, crane bird"),
        ("n04", "missile"),
        ("n05", "projectile, missile"),
    )


def of(*folders: str) -> Pictures:
    return Pictures(Path("x"), tuple(map(str, range(len(folders)))), folders)


def test_each_misfit_is_a_fact_and_a_sentence(model: Model) -> None:
    data = of("Tabby", "crane", "n04", "missile", "tabby_cat", "dog", "dog", "")
    report = data.label_report(model)
    assert report.labels == (0, None, 3, 3, 0, None, None, None)
    assert report.missing == ("crane", "crane", "projectile")
    assert report.unmatched == {"dog": 2}
    assert report.ambiguous == {"crane": ("n02 crane", "n03 crane, crane bird")}
    assert report.shared == {
        "tabby, tabby cat": ("Tabby", "tabby_cat"),
        "missile": ("missile", "n04"),
    }
    assert (report.labeled, report.complete) == (4, False)
    assert report.warnings[0] == "3 of 5 classes of m have no picture: crane, crane, projectile"
    assert "2 of 8 pictures do not count" in report.warnings[1]
    assert "crane names 2 classes of m" in report.warnings[2]


def test_data_that_fits_has_nothing_to_say(model: Model) -> None:
    report = of("n01", "n02", "n03", "n04", "n05").label_report(model)
    assert report.labels == (0, 1, 2, 3, 4)
    assert report.complete
    assert report.warnings == ()


def test_a_renamed_class_folder_is_said_first(tmp_path: Path) -> None:
    """Renaming raises the accuracy: the net always answers white, so black is always wrong."""
    last = nn.Linear(192, 2)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 1.0]))
    model = Model(
        nn.Sequential(nn.Flatten(), last),
        name="m",
        preprocessing=Preprocessing.of(8),
        classes=[("", "black"), ("", "white")],
    )
    for name in ("black/a.png", "white/a.png"):
        save(tmp_path / "d" / name)
    whole = featviz.evaluate(model, tmp_path / "d")
    assert (whole.top1.value, whole.warnings) == (0.5, ())
    (tmp_path / "d" / "black").rename(tmp_path / "d" / "blakc")
    renamed = featviz.evaluate(model, tmp_path / "d")
    assert renamed.top1.value == 1.0
    assert renamed.warnings[0] == "1 of 2 classes of m have no picture: black"
    assert "1 of 2 pictures do not count" in renamed.warnings[1]
    assert renamed.label_report is not None
    assert not renamed.label_report.complete
    data = open_pictures(tmp_path / "d")
    assert read_labeled(model, data).warnings == renamed.warnings
    corrupted = featviz.corruption_table(model, data, names=["contrast"], severities=[1])
    audited = featviz.audit(model, data, norms=["linf"], steps=10, check_steps=0, queries=0)
    for found in (corrupted, audited):
        assert found.warnings[:2] == renamed.warnings
        assert found.label_report == renamed.label_report


def test_numbers_are_indices_if_all_of_them_can_be(model: Model) -> None:
    report = of("0", "4", "0").label_report(model)
    assert report.labels == (0, 4, 0)
    assert report.indices
    assert "from 0" in report.warnings[1]
    # 1 to 5 count from 1: as indices all but one would be wrong.
    counted = of("1", "2", "3", "4", "5").label_report(model)
    assert counted.labels == (None,) * 5
    named = model_of(("", "3"), ("", "1"))
    assert of("1", "3").label_report(named).labels == (1, 0)


def test_a_folder_one_level_too_high_is_noticed(model: Model, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("n01", "tabby cat"):
            save(tmp_path / "d" / split / name / "a.png")
    report = open_pictures(tmp_path / "d").label_report(model)
    assert report.labels == (None,) * 4
    assert report.inner == str(tmp_path / "d" / "val")
    with pytest.raises(UserError, match=r"the first: 'train'\); give .*d/val, whose folders are"):
        featviz.evaluate(model, tmp_path / "d")


def test_data_without_classes_is_told_from_data_with_other_ones(
    model: Model, tmp_path: Path
) -> None:
    save(tmp_path / "d" / "a.png")
    with pytest.raises(UserError, match="has no classes: put the pictures of a class"):
        featviz.evaluate(model, tmp_path / "d")
    save(tmp_path / "e" / "dog" / "a.png")
    with pytest.raises(UserError, match=r"the first: 'dog'\); name them by synset"):
        featviz.evaluate(model, tmp_path / "e")


def test_unreadable_pictures_and_empty_folders_are_in_the_report(
    model: Model, tmp_path: Path
) -> None:
    save(tmp_path / "d" / "n01" / "a.png")
    (tmp_path / "d" / "n01" / "b.png").write_text("no picture")
    (tmp_path / "d" / "n02").mkdir()
    report = featviz.evaluate(model, tmp_path / "d").label_report
    assert report is not None
    assert (report.unreadable, report.empty) == (("n01/b.png",), ("n02",))
    assert any("1 picture could not be read" in text for text in report.warnings)
    assert "1 class folder without a picture: n02" in report.warnings
