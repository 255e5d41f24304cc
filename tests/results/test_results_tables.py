"""One declaration of rows: CSV, DataFrame and Parquet say the same."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import featviz
from featviz import results
from featviz.atlas.result import Atlas
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.results import Result

pandas = pytest.importorskip("pandas")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def made(mini: Model) -> dict[str, Result]:
    """A result of each kind that is quick to make."""
    pictures = featviz.sample_pictures(2)
    picture = torch.stack([pictures.read(row, mini.preprocessing) for row in range(2)])
    store = featviz.embed(mini, pictures, "conv5", position="random")
    return {
        "layers": featviz.summarize(mini),
        "kernels": featviz.kernel_sheet(mini),
        "maps": featviz.activation_maps(mini, picture[0], "conv5"),
        "examples": featviz.top_patches(mini, pictures, "conv5", units=[0, 1], k=2),
        "store": store,
        "neighbors": featviz.find_neighbors(store, [0, 1], k=3),
        "attack": featviz.attack(mini, picture, method="fgsm"),
        "eval": featviz.evaluate(mini, pictures),
        "atlas": featviz.build_atlas(None, store),
    }


@pytest.fixture(scope="module")
def saved(made: dict[str, Result], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each result."""
    root = tmp_path_factory.mktemp("saved")
    return {name: result.save(root / name) for name, result in made.items()}


def test_data_frames_hold_the_rows_of_the_csv_files(
    made: dict[str, Result], saved: dict[str, Path]
) -> None:
    for name, result in made.items():
        folder = saved[name]
        listed = json.loads((folder / "result.json").read_text())["tables"]
        assert listed
        for entry in listed:
            read = pandas.read_csv(folder / entry["file"], keep_default_na=False, na_values=[""])
            frame = result.to_pandas(Path(entry["file"]).stem)
            assert list(frame.columns[: len(read.columns)]) == list(read.columns)
            for column in read.columns:
                numbers = pandas.api.types.is_numeric_dtype(read[column])
                mine = frame[column]
                if numbers and not read[column].isna().all():
                    assert pandas.api.types.is_numeric_dtype(mine), (name, entry["file"], column)
                    assert mine.astype(float).tolist() == pytest.approx(
                        read[column].astype(float).tolist(), nan_ok=True
                    )
                elif not read[column].isna().any():
                    assert [str(value) for value in mine] == read[column].astype(str).tolist()


def test_parquet_files_hold_the_same_as_the_data_frame(
    made: dict[str, Result], saved: dict[str, Path]
) -> None:
    found = set()
    for name, result in made.items():
        folder = saved[name]
        for entry in json.loads((folder / "result.json").read_text())["tables"]:
            if "parquet" in entry:
                found.add(entry["parquet"])
                read = parquet.read_table(folder / entry["parquet"]).to_pylist()
                stem = Path(entry["file"]).stem
                frame = result.to_pandas(stem)
                assert list(frame.columns) == list(read[0])
                assert [row["path"] for row in read] == frame["path"].tolist()
    assert found == {"ids.parquet", "neighbors.parquet", "layout.parquet"}


def test_the_layout_has_the_columns_that_embedding_atlas_reads(
    made: dict[str, Result], tmp_path: Path
) -> None:
    atlas = made["atlas"]
    assert isinstance(atlas, Atlas)
    rows = parquet.read_table(atlas.save(tmp_path / "a") / "layout.parquet").to_pylist()
    assert len(rows) == len(atlas.rows)
    for number, row in enumerate(rows):
        assert row["identifier"] == atlas.paths[number]
        assert row["label"] == atlas.classes[number]
        assert row["neighbors"]["ids"] == atlas.neighbors[number].tolist()
        assert row["neighbors"]["distances"] == atlas.distances[number].tolist()
        assert (row["x"], row["y"]) == pytest.approx(atlas.layout.xy[number].tolist(), abs=1e-5)


def test_a_result_of_parts_gives_the_rows_of_all(mini: Model) -> None:
    layers = featviz.maximize_layers(mini, ["conv1", "conv2"], units=[0, 1], steps=1)
    frame = layers.to_pandas()
    assert frame["part"].tolist() == ["conv1", "conv1", "conv2", "conv2"]
    assert frame["picture"].tolist() == list(layers.names)


def test_an_unknown_table_names_those_there_are(made: dict[str, Result]) -> None:
    with pytest.raises(UserError, match=r"no table rows; its tables are neighbors"):
        made["neighbors"].to_pandas("rows")


def test_without_pyarrow_there_is_no_parquet(
    made: dict[str, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    folder = made["neighbors"].save(tmp_path / "n")
    assert (folder / "neighbors.csv").is_file()
    assert not list(folder.glob("*.parquet"))


def test_missing_numbers_are_missing_values() -> None:
    table = results.Table("t.csv", ("a", "b"), [(1, "x"), ("", ""), (None, "y")], "Rows.")
    assert table.by_column() == {"a": [1, None, None], "b": ["x", "", "y"]}
