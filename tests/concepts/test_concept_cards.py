"""Cards of concepts: a planted concept is found where it is, with what it does to its class."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import featviz
from featviz.concepts.cards_result import ConceptCards
from featviz.concepts.dictionary import Dictionary
from featviz.concepts.patches import enlarge_maps
from featviz.concepts.result import Concepts
from featviz.errors import UserError
from featviz.models.model import Model

SIDE, BLOB = 32, 8


class Colors(nn.Module):
    """Three channels, one a color; the classes are how much of each there is."""

    def __init__(self, tokens: bool = False) -> None:
        super().__init__()
        self.tokens = tokens
        self.conv = nn.Conv2d(3, 3, 4, stride=4, bias=False)
        self.act = nn.Identity() if tokens else nn.ReLU()
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4) / 16)
            self.head.weight.copy_(10 * torch.eye(3))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        rows = self.act(maps.flatten(2).transpose(1, 2) if self.tokens else maps)
        logits: Tensor = self.head(rows.mean(1) if self.tokens else rows.mean((2, 3)))
        return logits


def _pictures() -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Black pictures, each with a square of one color; its color and corner."""
    random = np.random.default_rng(0)
    pictures, truth = torch.zeros(18, 3, SIDE, SIDE), []
    for i, picture in enumerate(pictures):
        color, (y, x) = i % 3, 4 * random.integers(0, (SIDE - BLOB) // 4, 2)
        picture[color, y : y + BLOB, x : x + BLOB] = 0.5 + i / 36
        truth.append((color, int(y), int(x)))
    return pictures, truth


def _concepts(model: Model, layer: str, pictures: Tensor) -> Concepts:
    """The three colors as concepts."""
    store = featviz.embed(
        model, pictures, layer, positions="all" if model.layer(layer).spatial else None
    )
    found = featviz.find_concepts(store, count=2)
    return replace(found, dictionary=Dictionary("nmf", torch.eye(3), torch.zeros(3)))


@pytest.fixture(scope="module")
def planted() -> tuple[ConceptCards, list[tuple[int, int, int]]]:
    pictures, truth = _pictures()
    model = featviz.wrap(Colors(), input_size=SIDE, classes=["red", "green", "blue"])
    concepts = _concepts(model, "act", pictures)
    made = featviz.concept_cards(model, concepts, pictures, patches=4, designs=16, steps=8)
    return made, truth


def test_a_planted_concept_is_found_at_its_place(
    planted: tuple[ConceptCards, list[tuple[int, int, int]]],
) -> None:
    cards, truth = planted
    for concept, places in enumerate(cards.places):
        assert len({place.row for place in places}) == len(places)
        for place in places:
            color, y, x = truth[place.row]
            assert color == concept
            top, left, bottom, right = place.box
            assert y <= top
            assert bottom <= y + BLOB
            assert x <= left
            assert right <= x + BLOB


def test_a_concept_raises_its_own_class_only(
    planted: tuple[ConceptCards, list[tuple[int, int, int]]],
) -> None:
    effects = planted[0].effects
    assert effects is not None
    torch.testing.assert_close(effects.removal, effects.gradient, rtol=1e-4, atol=1e-5)
    for concept in range(3):
        own = effects.removal[concept]
        assert own[concept] > 0.1
        assert own[torch.arange(3) != concept].abs().max() < 1e-5
        assert effects.low[concept, concept] <= own[concept] <= effects.high[concept, concept]


def test_the_importance_of_the_only_concept_in_a_picture_is_all(
    planted: tuple[ConceptCards, list[tuple[int, int, int]]],
) -> None:
    """Of a red picture red alone changes the logit, so that its total index is 1."""
    for one in planted[0].importance:
        assert one.order[0] == one.target
        assert one.indices.low[one.target] <= 1 <= one.indices.high[one.target]
        assert one.indices.total[torch.arange(3) != one.target].max() == 0


def test_cards_are_saved_and_name_the_pages_of_concepts_and_classes(
    planted: tuple[ConceptCards, list[tuple[int, int, int]]], tmp_path: Path
) -> None:
    cards, _ = planted
    cards.save(tmp_path / "run" / "cards")
    site = featviz.build_gallery(tmp_path / "run").parent
    pages = {page.stem: page.read_text() for page in site.rglob("units/*.html")}
    assert {"act-nmf3-0", "logits-0"} <= set(pages)
    assert "act/nmf3:0" in pages["logits-0"]
    assert "red" in pages["act-nmf3-0"]
    table = cards.to_pandas("importance")
    assert list(table.unit[:1]) == [f"logits:{cards.importance[0].target}"]


def test_pictures_with_labels_describe_their_concept() -> None:
    pictures, truth = _pictures()
    model = featviz.wrap(Colors(), input_size=SIDE, classes=["red", "green", "blue"])
    data = featviz.as_pictures(pictures, [str(color) for color, _, _ in truth])
    cards = featviz.concept_cards(
        model, _concepts(model, "act", pictures), data, patches=2, class_pictures=1, steps=1
    )
    assert [cards.described(i) for i in range(3)] == ["red", "green", "blue"]


def test_the_same_call_gives_the_same_numbers_and_goes_on_from_its_checkpoint(
    planted: tuple[ConceptCards, list[tuple[int, int, int]]], tmp_path: Path
) -> None:
    pictures, _ = _pictures()
    model = featviz.wrap(Colors(), input_size=SIDE, classes=["red", "green", "blue"])
    concepts = _concepts(model, "act", pictures)
    make = partial(
        featviz.concept_cards,
        model,
        concepts,
        pictures,
        patches=4,
        designs=16,
        steps=8,
        checkpoint=tmp_path / "x.partial",
    )
    for one in (make(), make()):
        assert torch.equal(one.icons.images, planted[0].icons.images)
        assert torch.equal(one.importance[0].indices.total, planted[0].importance[0].indices.total)
    with pytest.raises(UserError, match=r"seed|another"):
        make(seed=1)


@pytest.mark.parametrize("tokens", [False, True])
def test_layers_without_rows_and_columns_have_whole_pictures(tokens: bool) -> None:
    pictures, _ = _pictures()
    net = Colors(tokens=True) if tokens else nn.Sequential(Colors(), nn.Linear(3, 3))
    model = featviz.wrap(net, input_size=SIDE, classes=["red", "green", "blue"])
    layer = "act" if tokens else "0"
    concepts = _concepts(model, layer, pictures.clamp(min=0.01))
    cards = featviz.concept_cards(
        model, concepts, pictures, patches=2, designs=16, class_pictures=1, steps=2
    )
    assert cards.places[0][0].box == (0, 0, SIDE, SIDE)
    assert bool((cards.masks == 1).all())
    assert any("whole pictures" in text for text in cards.warnings)


def test_concepts_of_another_model_are_refused(mini: Model) -> None:
    pictures, _ = _pictures()
    model = featviz.wrap(Colors(), input_size=SIDE)
    with pytest.raises(UserError, match="give the model that made them"):
        featviz.concept_cards(mini, _concepts(model, "act", pictures), pictures)


def test_a_mask_is_zero_where_the_code_is_zero_and_the_code_in_the_middle(mini: Model) -> None:
    maps = torch.zeros(2, 7, 7)
    maps[0, 3, 5], maps[1, 0, 0] = 2.0, 1.0
    field = mini.layer("relu5").receptive_field
    assert field is not None
    whole = enlarge_maps(maps, field, (64, 64))
    for y in range(7):
        for x in range(7):
            top, left, bottom, right = field.box(y, x)
            middle = whole[:, (top + bottom - 1) // 2, (left + right - 1) // 2]
            torch.testing.assert_close(middle, maps[:, y, x])
    near = maps[0].clone()
    near[2:5, 4:7] = 1
    outside = enlarge_maps((near == 0).float()[None], field, (64, 64))[0] == 1
    assert not whole[0][outside].any()
