"""Objectives of one's own: what is found out about them, checked of them, and climbed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import featviz
from featviz.errors import UserError
from featviz.maximization.objectives import PICTURE
from featviz.models.model import Model

Acts = Mapping[str, Tensor]
FEW: dict[str, Any] = {"steps": 12, "size": 48, "precision": "float32"}


def both(acts: Acts) -> Tensor:
    """Units of two layers, one by its path, and a cost of the picture."""
    scores: Tensor = acts["conv3"][:, 5].mean((1, 2)) - 0.5 * acts["features.0"][:, 2].mean((1, 2))
    return scores - 0.1 * acts[PICTURE].square().mean((1, 2, 3))


def test_a_function_of_several_layers_is_maximized(mini: Model) -> None:
    made = featviz.maximize(mini, objective=both, **FEW)
    assert made.images.shape == (1, 3, 48, 48)
    names = ["conv3", "features.0"]
    acts = featviz.activations(mini, made.images, names)
    assert torch.allclose(made.scores, both({**acts, PICTURE: made.images}), rtol=1e-4, atol=1e-5)
    assert float(made.scores[0]) > float(made.trace[0, 0])
    assert made.objective == "both"
    several = featviz.maximize_objective(mini, both, count=2, **FEW)
    assert torch.equal(several.images[:1], made.images)
    assert not torch.equal(several.images[0], several.images[1])


def test_a_function_of_one_unit_gives_what_the_unit_does(mini: Model) -> None:
    plain = featviz.maximize_objective(mini, "conv3:5", **FEW)
    made = featviz.maximize(mini, objective=lambda acts: acts["conv3"][:, 5].mean((1, 2)), **FEW)
    assert made.scores[0] == pytest.approx(float(plain.scores[0]), rel=0.5)
    words = featviz.maximize(mini, objective="conv3:5 - conv2:1", **FEW)
    assert words.objective == "conv3:5 - conv2:1"


WRONG: dict[str, tuple[Callable[..., Any], str]] = {
    "shape": (lambda acts: acts["conv3"][:, 5], r"returns \(3, .*; return one score for each"),
    "number": (lambda acts: 1.0, "returns float for 3 pictures"),
    "mean": (lambda acts: acts["conv3"][:, 5].mean(), r"returns \(\) for 3 pictures"),
    "batch": (
        lambda acts: acts["conv3"][:, 5].mean((1, 2)) - acts["conv3"][:, 5].mean(),
        "another score alone than beside others",
    ),
    "rank": (
        lambda acts: acts["logits"][:, 1] * (1.0 + acts["logits"][:, 1].argsort()),
        "another score alone than beside others",
    ),
    "random": (
        lambda acts: acts["logits"][:, 1] * torch.rand(len(acts["logits"])),
        "another score alone than beside others",
    ),
    "not finite": (lambda acts: acts["relu3"][:, 5].amin((1, 2)).log(), "not finite"),
    "detached": (lambda acts: acts["conv3"][:, 5].mean((1, 2)).detach(), "no gradient passes"),
    "weights": (
        lambda acts: torch.ones(len(acts["conv3"]), requires_grad=True) * 2,
        "no gradient of the function reaches",
    ),
    "nothing": (lambda acts: acts[PICTURE].mean((1, 2, 3)), "reads no layer"),
    "unit": (lambda acts: acts["conv3"][:, 999].mean((1, 2)), "IndexError"),
    "layer": (lambda acts: acts["conf3"][:, 1].mean((1, 2)), "no layer 'conf3'; did you mean"),
    "arguments": (lambda: 1, "does not take a dictionary of activations"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_score_for_each_picture_is_refused_before_work(mini: Model, name: str) -> None:
    function, message = WRONG[name]
    done: list[Any] = []
    with pytest.raises(UserError, match=message) as error:
        featviz.maximize(mini, objective=function, progress=lambda *x: done.append(x), **FEW)
    assert not done
    assert "\n" not in str(error.value)


def test_a_layer_and_a_function_are_one_too_many(mini: Model) -> None:
    with pytest.raises(UserError, match="names its layers and units itself"):
        featviz.maximize(mini, "conv3", objective=both)
    with pytest.raises(UserError, match="no layer was named"):
        featviz.maximize(mini)


@pytest.mark.parametrize("factor", [255.0, -1.0, float("nan")])
def test_pictures_to_compare_with_lie_between_0_and_1(mini: Model, factor: float) -> None:
    done: list[Any] = []
    with pytest.raises(UserError, match=r"must lie in \[0, 1\]"):
        featviz.maximize(
            mini,
            "conv1",
            units=[0],
            pictures=factor * torch.rand(2, 3, 64, 64),
            progress=lambda *x: done.append(x),
            **FEW,
        )
    assert not done
