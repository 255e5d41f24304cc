"""Effects of concepts: gradients that add up, removals, and total Sobol indices with oracles."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import featviz
from featviz.concepts.effects import concept_effects, logit_gradients
from featviz.concepts.importance import sample_function, total_indices
from featviz.concepts.parts import like_layer, parts_of, rows_of
from featviz.errors import UserError
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.models.rest import rest_of


def _parts(model: Model, layer: str, picture: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Activations at a layer, and random parts of them with the residual last."""
    random = torch.Generator().manual_seed(1)
    place = model.layer(layer)
    values = activations(model, picture, [layer])[layer].detach()
    rows = rows_of(values, place)[0]
    codes = torch.rand(len(rows), count, generator=random)
    directions = torch.randn(count, rows.shape[1], generator=random)
    parts = like_layer(parts_of(codes, directions), values, place) * 0.1
    return values, torch.cat([parts, values - parts.sum(0, keepdim=True)])


@pytest.mark.parametrize("layer", ["conv4", "relu5", "fc7"])
def test_attributions_and_residual_sum_to_gradient_times_activation(
    mini: Model, layer: str
) -> None:
    picture = torch.rand(1, 3, *mini.input_size, generator=torch.Generator().manual_seed(0))
    values, parts = _parts(mini, layer, picture, 6)
    rest = rest_of(mini, mini.layer(layer), picture)
    effects = concept_effects(rest, values, parts, batch_size=4)
    gradients = logit_gradients(rest, values, torch.arange(200))
    whole = (gradients * values).flatten(1).sum(1)
    scale = float(effects.gradient.abs().max())
    torch.testing.assert_close(effects.gradient.sum(0), whole, rtol=0, atol=1e-4 * scale)


def test_where_the_rest_is_linear_removal_is_the_gradient(mini: Model) -> None:
    picture = torch.rand(1, 3, *mini.input_size, generator=torch.Generator().manual_seed(0))
    values, parts = _parts(mini, "relu7", picture, 4)
    effects = concept_effects(rest_of(mini, mini.layer("relu7"), picture), values, parts)
    torch.testing.assert_close(effects.removal, effects.gradient, rtol=1e-3, atol=1e-3)


def test_removing_nothing_changes_nothing(mini: Model) -> None:
    picture = torch.rand(1, 3, *mini.input_size, generator=torch.Generator().manual_seed(0))
    values, parts = _parts(mini, "relu5", picture, 3)
    effects = concept_effects(rest_of(mini, mini.layer("relu5"), picture), values, 0 * parts)
    # Of several rows at a time the last bits may differ.
    torch.testing.assert_close(effects.removal, 0 * effects.removal, rtol=0, atol=1e-4)
    assert not effects.gradient.any()


def test_total_indices_of_present_and_absent_are_those_of_enumeration() -> None:
    """A small network of five concepts that are present or not: all 32 cases are counted."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1)).double()

    def score(factors: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = net((factors >= 0.5).double())[:, 0]
        return found

    cases = torch.tensor(list(itertools.product([0.0, 1.0], repeat=5)))
    values = score(cases)
    exact = []
    for j in range(5):
        flipped = cases.clone()
        flipped[:, j] = 1 - flipped[:, j]
        exact.append((values - score(flipped)).square().mean() / 4 / values.var(correction=0))
    found = total_indices([sample_function(score, 5, designs=4096)])
    torch.testing.assert_close(found.total, torch.stack(exact), rtol=0.05, atol=0.005)
    assert bool(((found.low <= found.total) & (found.total <= found.high)).all())
    few = total_indices([sample_function(score, 5, designs=64)])
    assert bool(((few.low <= torch.stack(exact)) & (torch.stack(exact) <= few.high)).all())


def test_total_indices_of_sobols_function_g_are_its_closed_form() -> None:
    a = torch.tensor([0.0, 1.0, 4.5, 9.0, 99.0])
    variances = 1 / 3 / (1 + a).square()
    others = torch.stack([(1 + variances[torch.arange(5) != j]).prod() for j in range(5)])
    exact = variances * others / ((1 + variances).prod() - 1)
    found = total_indices(
        [sample_function(lambda x: ((4 * x - 2).abs() + a).div(1 + a).prod(1), 5, designs=4096)]
    )
    torch.testing.assert_close(found.total.float(), exact, rtol=0.03, atol=1e-4)


def test_what_no_concept_changes_has_no_importance() -> None:
    found = total_indices([sample_function(lambda x: 7.0 + 0 * x[:, 0], 3)] * 2)
    assert not found.total.any()
    assert not found.high.any()


def test_designs_that_are_not_balanced_are_refused() -> None:
    with pytest.raises(UserError, match="30 designs"):
        sample_function(lambda x: x[:, 0], 3, designs=30)


def test_tokens_are_rows(mini: Model) -> None:
    """Activations of every shape come back from their rows."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(3 * 16, 6)
            self.head = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.embed(
                x.unfold(2, 4, 4)
                .unfold(3, 4, 4)
                .flatten(4)
                .permute(0, 2, 3, 1, 4)
                .flatten(3)
                .flatten(1, 2)
            )
            logits: Tensor = self.head(tokens.mean(1))
            return logits

    model = featviz.wrap(Tokens(), input_size=8)
    for net, layer in ((model, "embed"), (mini, "relu5"), (mini, "fc6")):
        values = activations(net, torch.rand(1, 3, *net.input_size), [layer])[layer]
        rows = rows_of(values, net.layer(layer))
        assert rows.shape[2] == net.layer(layer).units
        torch.testing.assert_close(like_layer(rows, values, net.layer(layer)), values)
