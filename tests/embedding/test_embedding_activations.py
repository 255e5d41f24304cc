"""Activations of data sets: in memory and in stores, whole, reduced, or at several positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import featviz
from featviz.cli.main import main
from featviz.embedding.extract import Positions
from featviz.embedding.positions import draw_several
from featviz.errors import UserError
from featviz.models.model import Model

N, C, SIDE = 7, 4, 6
LAYERS = ["conv", "logits"]


@pytest.fixture(scope="module")
def net() -> Model:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, C, 3), nn.Flatten(), nn.Linear(C * SIDE * SIDE, 5))
    return featviz.wrap(module, input_size=8, aliases={"conv": "0"})


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def maps(net: Model, pictures: Tensor) -> Tensor:
    """The whole map of every picture, by the convolution itself."""
    conv = net.net[0]  # type: ignore[index]
    assert isinstance(conv, nn.Conv2d)
    with torch.no_grad():
        made: Tensor = conv(pictures)
    return made


def test_a_tensor_gives_activations_with_gradients(net: Model, pictures: Tensor) -> None:
    x = pictures.clone().requires_grad_()
    for reduce in ("map", "mean", "max"):
        found = featviz.activations(net, x, LAYERS, reduce=reduce)
        (gradient,) = torch.autograd.grad(found["conv"].sum(), x)
        assert gradient.abs().sum() > 0


def test_a_data_set_gives_the_same_in_batches(net: Model, pictures: Tensor, maps: Tensor) -> None:
    data = featviz.as_pictures(pictures)
    done: list[int] = []
    found = featviz.activations(
        net, data, LAYERS, batch_size=3, progress=lambda n, total, text: done.append(n)
    )
    assert done == [3, 6, 7]
    assert torch.allclose(found["conv"], maps, atol=1e-6)
    assert found["logits"].shape == (N, 5)
    mean = featviz.activations(net, data, ["conv"], reduce="mean")["conv"]
    largest = featviz.activations(net, data, ["conv"], reduce="max")["conv"]
    assert torch.allclose(mean, maps.mean((2, 3)), atol=1e-6)
    assert torch.allclose(largest, maps.amax((2, 3)), atol=1e-6)
    assert repr(found) == f"<Activations: conv ({N}, {C}, {SIDE}, {SIDE}), logits ({N}, 5)>"


def test_positions_are_recorded_and_different(net: Model, pictures: Tensor, maps: Tensor) -> None:
    found = featviz.activations(
        net, featviz.as_pictures(pictures), LAYERS, reduce="positions", k=5, seed=3
    )
    at = found.positions["conv"]
    assert found["conv"].shape == (N, 5, C)
    assert found["logits"].shape == (N, 5)
    assert at.shape == (N, 5, 2)
    assert at.min() >= 1
    assert at.max() <= SIDE - 2  # not at the border
    for picture in range(N):
        assert len({tuple(p) for p in at[picture].tolist()}) == 5
        for row, (y, x) in enumerate(at[picture]):
            assert torch.allclose(found["conv"][picture, row], maps[picture, :, y, x], atol=1e-6)


@pytest.mark.parametrize("reduce", ["map", "mean", "max", "positions"])
def test_stores_hold_the_same_in_float16(
    net: Model, pictures: Tensor, reduce: featviz.embedding.activations.Reduce, tmp_path: Path
) -> None:
    layers = ["conv"]
    memory = featviz.activations(net, pictures, layers, reduce=reduce, k=4)["conv"]
    made = featviz.activations(net, pictures, layers, reduce=reduce, k=4, to=tmp_path / "raw")
    store = featviz.open_store(tmp_path / "raw" / "conv")
    rows = memory.reshape(-1, store.dim).half().float()
    # Other batches may round the last bit of float32 in another way: one step of float16.
    torch.testing.assert_close(made["conv"].matrix(), rows, rtol=2**-10, atol=1e-7)
    assert torch.equal(store.matrix(), made["conv"].matrix())
    assert (store.reduced, store.shape) == (
        "random" if reduce == "positions" else reduce,
        (C, SIDE, SIDE),
    )


@pytest.mark.parametrize("positions", [3, "all"])
def test_stores_of_positions_say_what_each_row_is(
    net: Model, pictures: Tensor, maps: Tensor, positions: Positions, tmp_path: Path
) -> None:
    data = featviz.as_pictures(pictures, ["a", "b", "a", "b", "a", "b", "a"])
    made = featviz.embed(net, data, "conv", positions=positions, out=tmp_path / "s", batch_size=2)
    store = featviz.open_store(tmp_path / "s")
    count = SIDE * SIDE if positions == "all" else 3
    assert len(store) == N * count
    for one in (made, store):
        assert one.of_picture is not None
        assert one.positions is not None
        assert one.of_picture.tolist() == np.repeat(np.arange(N), count).tolist()
        assert one.labels[: 2 * count] == ("a",) * count + ("b",) * count
        y, x = one.positions.T
        expected = maps[torch.from_numpy(one.of_picture), :, y, x]
        assert torch.allclose(one.matrix(), expected, atol=2e-3)
        assert one.pictures.paths[::count] == tuple(map(str, range(N)))
    assert store.numbers()["rows"].meaning == f"positions of {N} pictures"
    frame = pytest.importorskip("pandas").read_csv(tmp_path / "s" / "ids.csv")
    assert list(frame.columns)[-3:] == ["y", "x", "picture"]


def test_a_picture_that_cannot_be_read_keeps_the_numbers_of_the_others(
    net: Model, tmp_path: Path
) -> None:
    for row in range(3):
        featviz.pictures.images.write_png(torch.full((3, 8, 8), row / 4), tmp_path / f"{row}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    store = featviz.embed(net, tmp_path, "conv", positions=2)
    assert store.of_picture is not None
    assert store.of_picture.tolist() == [0, 0, 2, 2]
    found = featviz.activations(net, tmp_path, ["conv"])
    assert found.pictures is not None
    assert found.pictures.paths == ("0.png", "2.png")
    assert [skipped.path for skipped in found.skipped] == ["1.png"]


def test_the_first_positions_do_not_depend_on_how_many_are_drawn() -> None:
    many = draw_several(5, range(100), 9, 7, 20)
    assert (draw_several(5, range(100), 9, 7, 4) == many[:, :4]).all()
    assert (draw_several(6, range(100), 9, 7, 4) != many[:, :4]).any()
    assert (draw_several(5, range(50, 60), 9, 7, 20) == many[50:60]).all()
    # Each of the 35 positions is drawn about equally often: 2,000 draws, 57 expected.
    counts = np.bincount((many - 1).reshape(-1, 2) @ np.array([5, 1]), minlength=35)
    assert counts.min() > 30
    assert counts.max() < 90


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": 17}, "conv has 16 positions inside its border, fewer than 17"),
        ({"positions": 2, "layer": "logits"}, "logits has no map to take positions from"),
        ({"positions": 2, "position": "max"}, "position max is one row a picture"),
    ],
)
def test_positions_that_are_not_there_are_refused(
    net: Model, pictures: Tensor, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        featviz.embed(net, pictures, **({"layer": "conv"} | options))  # type: ignore[arg-type]


def test_layers_of_different_positions_have_no_rows_in_common(net: Model, pictures: Tensor) -> None:
    with pytest.raises(UserError, match="different numbers of positions"):
        featviz.embed_layers(net, pictures, ["conv", "logits"], positions=2)


def test_what_does_not_fit_into_memory_is_refused_before_any_work(
    net: Model, pictures: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(featviz.embedding.activations, "MEMORY", 1000)
    with pytest.raises(UserError, match=r"give a folder \(to\)"):
        featviz.activations(net, featviz.as_pictures(pictures), ["conv"])


def test_the_command_takes_positions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["embed", "--layer", "conv2", "--data", str(_one_picture(tmp_path))]
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--positions", "2", "--out", str(tmp_path / "s")])
    assert len(featviz.open_store(tmp_path / "s")) == 2
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--positions", "x", "--out", str(tmp_path / "t")])
    assert "--positions 'x': give a number, or all" in capsys.readouterr().err


def _one_picture(folder: Path) -> Path:
    featviz.pictures.images.write_png(torch.rand(3, 64, 64), folder / "x.png")
    return folder / "x.png"
