"""Every analysis runs where the model is on the (pretended) card, with pictures there or here.

The card is not waited for, and nothing sent to it, more than once in eight launches, beside what is
done once.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from every_analysis import ANALYSES, small_pictures
from pretend_cuda import CARD, PretendedCuda

import featviz

ORDINARY = (
    "activations", "activation_maps", "attack", "attribute", "embed", "maximize", "minimal in l2",
    "neighbors",
)  # fmt: skip
"""those of every day; the others are among the long tests"""


ONCE = 70
"""waits and copies to the card that do not grow with the work"""


def _run(name: str, folder: Path, place: str) -> None:
    with PretendedCuda() as card:
        model = featviz.load("alexnet-mini")
        assert model.device == CARD
        assert model.sha256  # a copy of each weight
        card.counts.clear()
        result = ANALYSES[name](model, small_pictures().to(place), folder / "store")
        stops = card.total("wait") + card.total("upload")
        assert stops <= ONCE + card.total("launch") / 8
        if hasattr(result, "save") and not (folder / "store").exists():
            result.save(folder / "result")


@pytest.mark.parametrize("place", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ORDINARY)
def test_an_analysis_runs_on_the_card(name: str, place: str, tmp_path: Path) -> None:
    _run(name, tmp_path, place)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in ANALYSES if name not in ORDINARY])
def test_every_other_analysis_runs_on_the_card(name: str, tmp_path: Path) -> None:
    _run(name, tmp_path, "cpu")
