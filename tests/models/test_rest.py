"""The rest of a network gives the logits of the whole, whatever shape the network has."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import featviz
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.models.rest import rest_of


class Around(nn.Module):
    """A branch whose input is joined to its output by a sum or a concatenation."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.branch = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(8 if how == "concatenation" else 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        y = self.act(self.branch(x))
        if self.how == "sum in place":
            x += y
        elif self.how == "sum":
            x = x + y
        else:
            x = torch.cat([x, y], 1)
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.mark.parametrize("how", ["sum", "sum in place", "concatenation"])
def test_versions_of_a_layer_give_the_logits_of_the_whole_network(how: str) -> None:
    torch.manual_seed(0)
    model = featviz.wrap(Around(how), input_size=8)
    place, picture = model.layer("branch"), torch.rand(1, 3, 8, 8)
    values = activations(model, picture, ["branch"])["branch"]
    versions = torch.cat([values, 0 * values, 2 * values])
    rest = rest_of(model, place, picture)
    expected = []
    for factor in (1.0, 0.0, 2.0):
        handle = model.net.get_submodule("branch").register_forward_hook(
            lambda module, inputs, output, by=factor: by * output
        )
        expected.append(model(picture)[0])
        handle.remove()
    torch.testing.assert_close(rest(versions), torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_the_rest_of_the_bundled_model_is_the_model(mini: Model) -> None:
    pictures = torch.rand(2, 3, *mini.input_size, generator=torch.Generator().manual_seed(0))
    for layer in ("conv3", "relu5", "fc7", "logits"):
        values = activations(mini, pictures, [layer])[layer]
        rest = rest_of(mini, mini.layer(layer), pictures[:1])
        found = rest(values)
        torch.testing.assert_close(found, mini(pictures), rtol=1e-4, atol=1e-4)
