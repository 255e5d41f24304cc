"""Activations of one picture in another's run: what must not change, and what must arrive."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ablation_nets import Decides, Skips, Tokens, small
from torch import Tensor

import featviz
from featviz import results
from featviz.errors import UserError
from featviz.models.model import Model

LAYERS = ("conv3", "relu4", "fc6")


@pytest.fixture(scope="module")
def pair(mini: Model) -> tuple[Tensor, Tensor]:
    data = featviz.sample_pictures()
    goldfish, pizza = (
        data.read(data.paths.index(name), mini.preprocessing)
        for name in ("goldfish/03", "pizza/01")
    )
    return goldfish, pizza


def test_a_picture_in_itself_changes_nothing(mini: Model, pair: tuple[Tensor, Tensor]) -> None:
    found = featviz.patch_activations(mini, pair[0], pair[0], layers=LAYERS, target=0)
    for one in found.layers:
        assert one.whole == pytest.approx(0, abs=1e-4)
        assert float(one.units.abs().max()) < 1e-4
        assert one.positions is None or float(one.positions.abs().max()) < 1e-4


def test_a_whole_layer_gives_the_other_logits(mini: Model, pair: tuple[Tensor, Tensor]) -> None:
    found = featviz.patch_activations(mini, *pair, layers=LAYERS)
    source, base = found.scores
    assert found.target == int(mini(pair[0][None]).argmax())
    assert found.against == int(mini(pair[1][None]).argmax())
    for one in found.layers:
        assert one.whole == pytest.approx(source - base, abs=1e-3)


def test_in_the_last_layer_units_add_up(mini: Model, pair: tuple[Tensor, Tensor]) -> None:
    (one,) = featviz.patch_activations(mini, *pair, layers=["relu7"]).layers
    assert float(one.units.sum()) == pytest.approx(one.whole, abs=1e-3)


def test_one_position_and_one_unit_by_hand(generator: torch.Generator) -> None:
    model = small(Skips)
    source, base = torch.rand(2, 3, 16, 16, generator=generator)
    (one,) = featviz.patch_activations(
        model, source, base, layers=["second#1"], target=2, against=2, batch_size=7
    ).layers
    values = {}

    def hook(module: object, inputs: object, output: Tensor) -> Tensor | None:
        calls.append(1)
        if len(calls) != 1:
            return None
        if "source" not in values:
            values["source"] = output.clone()
            return None
        changed = output.clone()
        part = (0, slice(None), 3, 5) if what == "position" else (0, 4)
        changed[part] = values["source"][part]
        return changed

    handle = model.net.get_submodule("second").register_forward_hook(hook)
    calls: list[int] = []
    model(source[None])
    for what, expected in (("position", one.positions), ("unit", one.units)):
        calls.clear()
        logit = model(base[None])[0, 2]
        handle.remove()
        whole = model(base[None])[0, 2]
        assert expected is not None
        found = expected[3, 5] if what == "position" else expected[4]
        assert float(found) == pytest.approx(float(logit - whole), abs=1e-5)
        handle = model.net.get_submodule("second").register_forward_hook(hook)
    handle.remove()


@pytest.mark.parametrize(("net", "layer"), [(Tokens, "block"), (Decides, "conv")])
def test_other_nets(net: type[Tokens], layer: str, generator: torch.Generator) -> None:
    model = small(net)
    source, base = torch.rand(2, 3, 16, 16, generator=generator)
    found = featviz.patch_activations(model, source, base, layers=[layer], target=1, against=1)
    (one,) = found.layers
    assert one.whole == pytest.approx(found.scores[0] - found.scores[1], abs=1e-4)
    assert one.positions is not None
    if net is Tokens:  # behind the block the first token alone is read
        assert one.positions.shape == (17,)
        assert float(one.positions[0]) == pytest.approx(one.whole, abs=1e-5)
        assert float(one.positions[1:].abs().max()) < 1e-5
    found.plot()


def test_the_folder_and_mistakes(mini: Model, pair: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    found = featviz.patch_activations(mini, *pair, layers=["conv5", "fc7"])
    folder = found.save(tmp_path / "patching")
    assert results.read_result(folder)["numbers"]["conv5, all"]["value"] is not None
    assert found.to_pandas("units")["unit"].str.startswith("conv5:").sum() == 256
    with pytest.raises(UserError, match="source names 2 pictures"):
        featviz.patch_activations(mini, torch.stack(pair), pair[0])
