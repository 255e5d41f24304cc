"""What a net gives in place of logits: probabilities, rows that are lost, numbers that vary."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import featviz


class After(nn.Module):
    """A net with a function behind it."""

    def __init__(self, function: Callable[[Tensor], Tensor], classes: int = 4):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, classes)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.head(8 * F.relu(self.conv(x)).mean((2, 3))))


def net(function: Callable[[Tensor], Tensor], classes: int = 4) -> After:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return After(function, classes).eval()


PICTURES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("function", "classes", "word"),
    [
        (nn.Softmax(1), 4, "softmax"),
        (lambda z: F.softmax(z, 1)[:, :].clone(), 4, "softmax"),
        (nn.Sigmoid(), 1, "sigmoid"),
        (lambda z: torch.sigmoid(z).squeeze(1), 1, "sigmoid"),
        (nn.LogSoftmax(1), 4, ""),
    ],
)
def test_probabilities_are_read_as_probabilities(
    function: Callable[[Tensor], Tensor], classes: int, word: str
) -> None:
    module = net(function, classes)
    with torch.no_grad():
        given = module(PICTURES)
    given = given.exp() if not word else given.view(6, -1)
    wanted = torch.cat([1 - given, given], 1) if classes == 1 else given
    model = featviz.wrap(module, input_size=16)
    assert torch.allclose(model(PICTURES).softmax(1), wanted, atol=1e-6)
    assert word in " ".join(model.notes)
    found = featviz.evaluate(model, PICTURES, wanted.argmax(1).tolist(), top=1).numbers()
    assert found["top-1"].value == 1
    assert found["mean confidence"].value == pytest.approx(float(wanted.amax(1).mean()), rel=1e-4)


def test_saturated_probabilities_have_finite_logits() -> None:
    for function, classes in (
        (lambda z: (1e4 * z).softmax(1), 4),
        (lambda z: (1e4 * z).sigmoid(), 1),
    ):
        assert featviz.wrap(net(function, classes), input_size=16)(PICTURES).isfinite().all()


def test_a_net_without_a_row_for_each_picture_is_refused() -> None:
    with pytest.raises(featviz.UserError, match="After does not give one row for one picture"):
        featviz.wrap(net(lambda z: z.squeeze()), input_size=16)
    flat = nn.Sequential(
        nn.Conv2d(3, 2, 1), nn.Flatten(0), nn.Unflatten(0, (-1, 512)), nn.Linear(512, 4)
    )
    model = featviz.wrap(flat, input_size=16)
    with pytest.raises(featviz.UserError, match="8 rows for 2 pictures of 32 pixels; give 16"):
        model(torch.rand(2, 3, 32, 32))


def test_numbers_that_vary_are_said() -> None:
    assert "draws random numbers" in " ".join(featviz.wrap(net(F.dropout), input_size=16).notes)
    norm = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), net(nn.Identity()))
    model = featviz.wrap(norm, input_size=16)
    assert "the mean of each batch" in " ".join(model.notes)
    plain = featviz.wrap(nn.Sequential(nn.BatchNorm2d(3), net(nn.Dropout())), input_size=16)
    assert not any("random" in note or "batch" in note for note in plain.notes)
