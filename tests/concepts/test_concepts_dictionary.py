"""Dictionaries: codes, names, and what is read back from a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

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
