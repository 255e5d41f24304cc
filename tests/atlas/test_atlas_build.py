"""The whole atlas: from a store to a folder, with icons of both kinds."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from featviz.atlas import build
from featviz.atlas.build import build_atlas
from featviz.atlas.cells import cell_means
from featviz.atlas.icons import IconSettings, synthetic_icons
from featviz.atlas.layout import LayoutSettings
from featviz.atlas.result import Atlas
from featviz.atlas.thumbnails import GRAY
from featviz.atlas.viewer.data import encode_page
from featviz.atlas.viewer.page import render_page
from featviz.embedding.extract import embed
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.pictures.preprocessing import Preprocessing
from featviz.results import read_result

QUICK = LayoutSettings(perplexity=8, steps=(30, 40))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=3)
        self.relu = nn.ReLU()
        self.flat = nn.Flatten()
        self.fc = nn.Linear(8 * 4 * 4, 12)
        self.act = nn.ReLU()
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.act(self.fc(self.flat(self.relu(self.conv(x)))))
        logits: torch.Tensor = self.head(features)
        return logits


@pytest.fixture(scope="module")
def model() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Small()
    aliases = {"conv1": "conv", "fc7": "fc", "relu7": "act", "logits": "head"}
    return Model(
        net, name="small", preprocessing=Preprocessing.of(16, mean=(0.5,) * 3), aliases=aliases
    )


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Forty flat pictures of four colors, with noise."""
    generator = torch.Generator().manual_seed(0)
    colors = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.1, 0.2, 0.9], [0.9, 0.9, 0.2]])
    flat = colors.repeat_interleave(10, 0)[:, :, None, None].expand(-1, -1, 16, 16)
    return (flat + 0.08 * torch.randn(40, 3, 16, 16, generator=generator)).clamp(0, 1)


LABELS = [name for name in ("red", "green", "blue", "<b>yellow</b>") for _ in range(10)]


@pytest.fixture(scope="module")
def atlas(model: Model, pictures: torch.Tensor) -> Atlas:
    store = embed(model, pictures, labels=LABELS)
    return build_atlas(
        model, store, icons="both", icon_side=4, icon=IconSettings(steps=8), layout=QUICK
    )


def test_the_atlas_describes_what_it_shows(atlas: Atlas) -> None:
    assert atlas.rows == tuple(range(40))
    assert [level.grid.side for level in atlas.levels] == [4, 5]
    assert not (atlas.neighbors == torch.arange(40)[:, None]).any()
    assert atlas.quality.class_space == 1
    assert (torch.diff(atlas.distances, dim=1) >= 0).all()
    for level in atlas.levels:
        for cell, sample in zip(level.grid.cells, level.samples, strict=True):
            assert sample in cell.members
    made = [level.synthetic for level in atlas.levels]
    assert made[1] is None
    assert made[0] is not None
    assert len(made[0].images) == len(atlas.levels[0].grid.cells)
    assert made[0].cosines.abs().max() <= 1 + 1e-6


def test_synthetic_icons_point_where_their_cell_does(model: Model, pictures: torch.Tensor) -> None:
    store = embed(model, pictures, labels=LABELS)
    means = store.matrix().view(4, 10, -1).mean(1)
    (made,) = synthetic_icons(model, store.layer, means, icon=IconSettings(steps=24))
    found = nn.functional.normalize(
        embed(model, made.images, "relu7", batch_size=4).matrix(), dim=1
    )
    cosines = found @ nn.functional.normalize(means, dim=1).T
    torch.testing.assert_close(cosines.diag().double(), made.cosines, atol=2e-3, rtol=0)
    # each is nearer to its own mean than gray pictures are, and nearest to its own of the four
    gray = (
        nn.functional.normalize(embed(model, torch.full((1, 3, 16, 16), 0.5)).matrix(), dim=1)
        @ nn.functional.normalize(means, dim=1).T
    )
    assert (cosines.diag() > gray[0]).all()
    assert cosines.argmax(0).tolist() == [0, 1, 2, 3]


def test_the_folder_holds_pages_prints_and_tables(atlas: Atlas, tmp_path: Path) -> None:
    atlas.save(tmp_path / "a")
    document = read_result(tmp_path / "a")
    assert document["kind"] == "atlas"
    files = {figure["file"] for figure in document["figures"]}
    assert files == {"atlas.webp", "mosaic.webp", "cells-4.webp", "print.png", "print.pdf"}
    for name in ("atlas.webp", "mosaic.webp", "cells-4.webp"):  # the page is seen in the gaps
        with Image.open(tmp_path / "a" / name) as sheet:
            assert sheet.getchannel("A").getextrema() == (0, 255), name
    assert document["numbers"]["recall@10"]["value"] == pytest.approx(atlas.quality.recall)
    assert 0 <= document["numbers"]["icons' cosine"]["value"] <= 1
    arrays = np.load(tmp_path / "a" / "layout.npz")
    assert np.array_equal(arrays["xy"], atlas.layout.xy.numpy())
    with (tmp_path / "a" / "layout.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 40
    assert float(lines[7]["x"]) == pytest.approx(float(atlas.layout.xy[7, 0]), abs=1e-5)
    with (tmp_path / "a" / "cells.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert sum(int(cell["pictures"]) for cell in cells) == 40 * len(atlas.levels)
    assert "<svg" not in atlas._repr_html_()


def test_the_mosaic_shows_every_picture_once(atlas: Atlas) -> None:
    places, columns, rows = atlas.mosaic
    sheet = atlas.mosaic_picture(width=columns * 17)
    size = min(17, atlas.thumbnails.size)
    assert sheet.shape == (4, rows * size, columns * size)
    for row, (column, line) in enumerate(places.tolist()):
        here = sheet[
            :, line * size + 1 : (line + 1) * size - 2, column * size + 1 : (column + 1) * size - 2
        ]
        color = atlas.thumbnails[[row]][0].float().mean((1, 2)) / 255
        torch.testing.assert_close(here[:3].mean((1, 2)), color, atol=0.03, rtol=0)


def test_the_page_needs_nothing_else_and_escapes_names(atlas: Atlas) -> None:
    page = render_page(atlas.page())
    assert "<b>yellow</b>" not in page
    for forbidden in ("http://", "https://", "fetch(", 'type="module"', "import(", "@import"):
        assert forbidden not in page, forbidden
    start = page.index('id="data">') + len('id="data">')
    document = json.loads(page[start : page.index("</script>", start)])
    described, blocks = encode_page(atlas.page())
    assert document == json.loads(json.dumps(described))
    assert "<b>yellow</b>" in document["classes"]
    assert [document["classes"][i] for i in blocks["class"]] == LABELS


def test_the_same_seed_gives_the_same_page(model: Model, pictures: torch.Tensor) -> None:
    store = embed(model, pictures, labels=LABELS)
    pages = [render_page(build_atlas(None, store, layout=QUICK).page()) for _ in range(2)]
    assert pages[0] == pages[1]


def test_large_stores_are_sampled_and_say_so(model: Model, pictures: torch.Tensor) -> None:
    store = embed(model, pictures, labels=LABELS)
    some = build_atlas(None, store, most=20, layout=QUICK)
    assert some.rows == tuple(range(0, 40, 2))
    assert "an even sample is shown: 20 of 40" in some.warnings[0]
    assert torch.equal(some.neighbors, build_atlas(None, store, most=20, layout=QUICK).neighbors)
    means = cell_means(store.take(some.rows), some.levels[0].grid)
    assert len(means) == len(some.levels[0].grid.cells)


def test_pictures_that_are_gone_are_gray_or_an_error(
    mini: Model, tmp_path: Path, generator: torch.Generator
) -> None:
    from featviz.pictures import images

    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(9):
        images.write_png(torch.rand(3, 64, 64, generator=generator), folder / f"{number}.png")
    store = embed(mini, folder, out=tmp_path / "s")
    (folder / "4.png").unlink()
    atlas = build_atlas(None, store, layout=QUICK)
    assert "1 picture could not be read" in atlas.warnings[0]
    assert (atlas.thumbnails[[4]] == GRAY).all()
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="give --data"):
        build_atlas(None, store, layout=QUICK)
    from featviz.embedding.store import open_store

    build_atlas(None, open_store(tmp_path / "s", data=moved), layout=QUICK)


def test_mistakes_are_errors_of_one_line(
    model: Model, pictures: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = embed(model, pictures)
    with pytest.raises(UserError, match="icons is 'dots'"):
        build_atlas(model, store, icons="dots")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="synthetic icons are made by the model"):
        build_atlas(None, store, icons="both")
    other = Model(Small(), name="small", preprocessing=16)
    with pytest.raises(UserError, match="other weights"):
        build_atlas(other, store, icons="both")
    with pytest.raises(UserError, match="39 pictures for a store of 40 rows"):
        build_atlas(None, store, store.pictures.select(range(39)))
    monkeypatch.setattr(build, "lay_out", None)
    with pytest.raises(UserError, match="icons is"):  # before any work
        build_atlas(model, replace(store), icons="")  # type: ignore[arg-type]


def test_one_picture_is_no_map_and_two_alike_are_one(model: Model, tmp_path: Path) -> None:
    gray = torch.full((2, 3, 16, 16), 0.5)
    with pytest.raises(UserError, match="at least 2 pictures, there are 1"):
        build_atlas(None, embed(model, gray[:1]))
    twins = build_atlas(
        model, embed(model, gray), icons="both", icon_side=5, icon=IconSettings(steps=2)
    )
    assert twins.quality.recall == 1
    assert len({tuple(place) for place in twins.lattice[0].tolist()}) == 2
    (level,) = twins.levels
    assert level.classes == ((),)  # no labels, no classes
    assert float(level.cosines[0]) == pytest.approx(1)
    assert level.synthetic is not None
    assert (level.synthetic.images == 0.5).all()  # nothing sets their cell apart
    twins.save(tmp_path / "twins")
    assert read_result(tmp_path / "twins")["numbers"]["pictures"]["value"] == 2


def test_above_the_limit_medoids_and_an_even_spread_are_pictured(
    model: Model, pictures: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "PICTURED", 16)
    store = embed(model, pictures, labels=LABELS)
    few = build_atlas(None, store, sides=[2], layout=QUICK)
    pictured = few.thumbnails.rows.tolist()
    assert len(pictured) == len(few.thumbnails.images) == 16
    assert set(few.levels[0].samples) <= set(pictured)
    assert pictured == sorted(set(pictured))
    shown = few.thumbnails[range(40)]
    assert torch.equal(shown[pictured], few.thumbnails.images)
    others = sorted(set(range(40)) - set(pictured))
    assert (shown[others] == GRAY).all()
    assert few.map_picture(400).shape[0] == 4
    assert "pictured" in encode_page(few.page())[1]


def test_maps_of_several_seeds_are_compared(model: Model, pictures: torch.Tensor) -> None:
    store = embed(model, pictures, labels=LABELS)
    found = build_atlas(None, store, seeds=2, layout=QUICK)
    assert found.stability is not None
    assert 0 <= found.stability.procrustes <= 1
    assert 0 < found.stability.overlap <= 1
    assert found.numbers()["Procrustes distance"].value == found.stability.procrustes
    alone = build_atlas(None, store, layout=QUICK)
    assert alone.stability is None
    assert torch.equal(alone.layout.xy, found.layout.xy)


def test_classes_and_numbers_of_cells_add_up(atlas: Atlas) -> None:
    for level in atlas.levels:
        sizes = [len(cell.members) for cell in level.grid.cells]
        assert sum(sizes) == 40
        for name in set(LABELS):
            counted = sum(
                share * size
                for size, of in zip(sizes, level.classes, strict=True)
                for known, share in of
                if known == name
            )
            assert counted == pytest.approx(10)
        assert level.effects is not None
        whole = atlas.numbers()[f"cosine in cells at {level.grid.side}"].value
        mean = float((level.cosines * torch.tensor(sizes)).sum() / 40)
        assert whole == pytest.approx(mean)


class Enough(Exception):
    """A kill in the middle of the work."""


def test_a_killed_atlas_goes_on_in_the_layout_and_in_the_icons(
    model: Model, pictures: torch.Tensor, tmp_path: Path
) -> None:
    store = embed(model, pictures, labels=LABELS)
    seen: list[tuple[str, int]] = []

    def make(checkpoint: Path | None, stop: str = "", at: int = 0) -> Atlas:
        def progress(done: int, total: int, text: str) -> None:
            seen.append((text, done))
            if text == stop and done >= at:
                raise Enough

        return build_atlas(
            model,
            store,
            icons="both",
            icon_side=4,
            icon=IconSettings(steps=4, batch_size=2),
            layout=replace(QUICK, steps=(50, 20)),
            checkpoint=checkpoint,
            progress=progress,
        )

    whole = make(None)
    for stop, at in (("laying out", 60), ("making icons", 12)):
        with pytest.raises(Enough):
            make(tmp_path / "p", stop, at)
    assert seen.count(("laying out", 50)) == 2  # of the whole and the first: the second went on
    assert (tmp_path / "p" / "graph").is_dir()
    seen.clear()
    found = make(tmp_path / "p")
    assert next(done for text, done in seen if text == "making icons") == 8
    assert torch.equal(found.layout.raw, whole.layout.raw)
    icons = [next(lv.synthetic for lv in a.levels if lv.grid.side == 4) for a in (found, whole)]
    assert icons[0] is not None
    assert icons[1] is not None
    assert torch.equal(icons[0].images, icons[1].images)
    with pytest.raises(UserError, match="icons both, now sample"):
        build_atlas(model, store, layout=QUICK, checkpoint=tmp_path / "p")
