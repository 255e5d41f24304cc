"""Dictionaries: codes, names, and what is read back from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import run

import featviz
from featviz.concepts.dictionary import ConceptName, parse_concept
from featviz.embedding.store import Store
from featviz.models.model import Model


@pytest.fixture(scope="module")
def store(mini: Model) -> Store:
    return featviz.embed(mini, featviz.sample_pictures(4), "relu5", positions=8)


def test_concepts_read_back_give_the_same_codes(store: Store, tmp_path: Path) -> None:
    concepts = featviz.find_concepts(store, count=6)
    concepts.save(tmp_path / "made")
    found = featviz.open_concepts(tmp_path / "made")
    rows = store.matrix()
    assert torch.equal(concepts.encode(rows), found.encode(rows))
    assert (found.names, found.layer, found.method) == (concepts.names, "relu5", "nmf")
    assert found.numbers() == concepts.numbers()


def test_names_of_concepts_are_read_and_those_of_units_are_none() -> None:
    name = ConceptName("features.3", "topk", 512, 7)
    assert parse_concept(str(name)) == name
    for unit in ("conv5:12", "features.3:1", "relu5/abc3:1", "relu5/nmf:1", "relu5/nmf32"):
        assert parse_concept(unit) is None


def test_the_command_finds_concepts_of_data_and_of_a_store(
    capsys: pytest.CaptureFixture[str], store: Store, tmp_path: Path
) -> None:
    words = ("concepts", "relu5", "--positions", "2", "--count", "3", "--seeds", "1", "--json")
    code, printed, _ = run(capsys, *words, "--out", tmp_path / "one")
    document = json.loads(printed)
    assert (code, document["kind"]) == (0, "concepts")
    assert featviz.open_concepts(tmp_path / "one").names[0] == "relu5/nmf3:0"
    store.save(tmp_path / "store")
    of_store = ("--store", tmp_path / "store", "--method", "kmeans", "--count", "3")
    assert run(capsys, "concepts", *of_store, "--out", tmp_path / "two")[0] == 0
    code, _, error = run(capsys, "concepts", "conv1", *of_store, "--out", tmp_path / "three")
    assert (code, error.count("\n")) == (2, 1)
    assert "is a store of relu5, not of conv1" in error
    assert "no layer was named" in run(capsys, "concepts")[2]


def test_concepts_of_layers_without_positions_and_with_channels_last(mini: Model) -> None:
    store = featviz.embed(mini, featviz.sample_pictures(2), "relu7")
    found = featviz.find_concepts(store, count=3)
    assert found.rows == (len(store) - round(len(store) / 4), round(len(store) / 4))
    found.check_model(mini)

    class Last(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.permute(0, 2, 3, 1).relu()

    net = torch.nn.Sequential(torch.nn.Conv2d(3, 7, 3), Last(), torch.nn.Flatten())
    net.append(torch.nn.Linear(7 * 36, 2))
    model = featviz.wrap(net, input_size=8)
    store = featviz.embed(model, featviz.sample_pictures(2), "1", positions=4)
    concepts = featviz.find_concepts(store, count=2)
    assert concepts.directions.shape == (2, store.dim)
    with pytest.raises(featviz.UserError, match="give the model that made them"):
        concepts.check_model(mini)
