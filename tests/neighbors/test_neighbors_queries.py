"""Sums and differences of rows, classes and pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import featviz
from featviz.errors import UserError
from featviz.neighbors.exact import build_index
from featviz.neighbors.find import find_neighbors
from featviz.neighbors.queries import Space, read_queries


def test_a_sum_in_a_cosine_space_adds_directions(generator: torch.Generator) -> None:
    base = torch.randn(12, 5, generator=generator)
    labels = ["a", "b", "c"] * 4
    index = build_index(base)
    (query,), vector = read_queries(["3 - class:b + 7"], Space(index, labels))
    unit = base / base.norm(dim=1, keepdim=True)
    mean = base[1::3].mean(0)
    assert torch.allclose(vector[0], unit[3] - mean / mean.norm() + unit[7], atol=1e-6)
    assert [sign for sign, _ in query.parts] == ["+", "-", "+"]
    assert query.own_rows == (3, 7)


def test_a_sum_in_a_euclidean_space_adds_vectors(generator: torch.Generator) -> None:
    base = torch.randn(12, 5, generator=generator)
    space = Space(build_index(base, metric="l2"), [""] * 12)
    _, vector = read_queries(["0 + 1 - 2"], space)
    assert torch.allclose(vector[0], base[0] + base[1] - base[2], atol=1e-6)


def test_rows_of_the_question_are_no_answer() -> None:
    base = torch.eye(6) + 0.1
    result = find_neighbors(base, ["0 + 1", "2"], k=3, metric="l2")
    assert not {0, 1} & set(result.rows[0].tolist())
    assert 2 not in result.rows[1].tolist()


def test_the_planted_analogy_is_answered(generator: torch.Generator) -> None:
    # rows are kind + color: kind 0 red - kind 0 blue + kind 1 blue must be kind 1 red
    kinds, colors = (
        torch.randn(3, 40, generator=generator),
        torch.randn(2, 40, generator=generator),
    )
    base = torch.stack([kind + color for kind in kinds for color in colors])
    result = find_neighbors(base, ["0 - 1 + 3"], k=1, metric="l2")
    assert result.rows[0].tolist() == [2]


def test_names_with_a_hyphen_are_names(tmp_path: Path) -> None:
    model = featviz.load("alexnet-mini", device="cpu")
    store = featviz.embed(model, featviz.sample_pictures(), "fc7")
    picture = featviz.sample_pictures().shown(0, 64)
    from featviz.pictures.images import write_png

    path = tmp_path / "a - b.png"
    write_png(picture, path)
    plain = tmp_path / "a-b.png"
    write_png(picture, plain)
    result = find_neighbors(store, [str(path), f"{plain} + {plain}"], k=3, model=model)
    assert result.queries[0].parts == ()
    assert len(result.queries[1].parts) == 2
    assert torch.equal(result.rows[0], result.rows[1])
    result.save(tmp_path / "out")
    assert (tmp_path / "out" / "sheet-0.svg").is_file()


def test_an_unknown_term_is_named() -> None:
    with pytest.raises(UserError, match="row 99 is out of range"):
        find_neighbors(torch.eye(4), ["0 - 99"])
