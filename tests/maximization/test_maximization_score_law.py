"""Scores are what the unmodified net reads of a saved picture, at every layer of every net."""

from __future__ import annotations

import pytest
import torch
from catalogue import OWN, calibrated, random_pictures
from catalogue_laws import FEW, check_scores, close, means
from torch import nn

import featviz
from featviz.maximization.evaluation.clean_scores import clean_scores
from featviz.maximization.maximize import unit_objective


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in {"relu reused in place", "tuples"}
        else pytest.param(name, marks=pytest.mark.long)
        for name in OWN
    ],
)
def test_the_score_of_a_saved_picture_is_what_the_net_reads(name: str) -> None:
    check_scores(name, size=32)


@pytest.mark.parametrize("layers", [("act", "norm"), ("logits",)])
def test_numbers_beside_a_picture_are_of_the_unmodified_net(layers: tuple[str, ...]) -> None:
    model = calibrated("relu reused")
    photographs = random_pictures(20, 32, 3)
    for layer in layers:
        place = model.layer(layer)
        made = featviz.maximize(
            model,
            layer,
            units=[0, 1],
            objective="channel",
            pictures=photographs,
            restarts=2,
            size=32,
            **FEW,
        )
        natural = means(model, place, photographs)[:, :2].amax(0)
        assert close(made.panel.numbers["natural"], natural), layer
        wanted, _ = unit_objective(model, place, [0, 1], "channel")
        assert close(clean_scores(model, wanted, made.images), made.scores)
        if layer == "logits":
            continue
        way = featviz.interpolate(
            model, layer, [0, 1], count=3, objective="channel", size=32, **FEW
        )
        assert close(way.scores, means(model, place, way.images)[:, :2])
        facets = featviz.draw_facets(
            model, layer, units=[0, 1], count=2, objective="channel", size=32, **FEW
        )
        for unit in (0, 1):
            own = means(model, place, facets.images[unit])[:, unit]
            assert close(facets.scores[unit], own)


def test_pictures_changed_for_a_unit_score_what_the_net_reads() -> None:
    model = calibrated("relu reused in place")
    x = random_pictures(2, 32, 4)
    made = featviz.accentuate(model, x, ["act:1"], anchor="one", steps=3)
    after = means(model, model.layer("act"), made.images[:, 0, 0])[:, 1]
    assert close(made.measured["score"][:, 0, 0], after)
    assert close(made.measured["score before"][:, 0, 0], means(model, model.layer("act"), x)[:, 1])


def test_a_unit_that_its_own_picture_leaves_at_zero_says_so() -> None:
    conv = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter[1] = -1.0
    net = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    made = featviz.maximize(featviz.wrap(net, input_size=8), "1", units=[1], size=8, **FEW)
    assert made.scores.tolist() == [0.0]
    assert made.panel.flags[0][0].name == "inactive"
    assert any("1:1" in text and "scores 0 on its own picture" in text for text in made.warnings)
