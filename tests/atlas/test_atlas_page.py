"""The data in the viewer's page: sheets, blocks, colors of classes."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from made_up_page import color_of, made_up_page
from numpy.typing import NDArray
from PIL import Image

from featviz.atlas.colors import COLORS, class_colors
from featviz.atlas.levels import SyntheticIcons
from featviz.atlas.viewer.data import Block, encode_page
from featviz.atlas.viewer.page import render_page
from featviz.atlas.viewer.sheets import Sheets, pack_sheets

KINDS = {"u8": "<u1", "u16": "<u2", "u32": "<u4"}


def cut_out(sheets: Sheets, number: int) -> NDArray[np.uint8]:
    """Picture `number` as the page finds it: columns first."""
    with Image.open(io.BytesIO(sheets.files[number // sheets.per_sheet])) as sheet:
        place = number % sheets.per_sheet
        x, y = place // sheets.rows * sheets.pitch, place % sheets.rows * sheets.pitch
        return np.asarray(sheet)[y : y + sheets.size, x : x + sheets.size]


@pytest.mark.parametrize(("count", "size", "side"), [(1, 20, 2048), (70, 20, 96), (131, 32, 128)])
def test_every_picture_is_on_its_sheet_and_no_color_crosses_over(
    count: int, size: int, side: int
) -> None:
    colors = color_of(torch.arange(count)).to(torch.uint8)
    sheets = pack_sheets(colors[:, :, None, None].expand(-1, -1, size, size), side=side)
    for number in range(count):
        seen = cut_out(sheets, number).reshape(-1, 3).astype(int)
        # Flat pictures come back flat: rounding of JPEG alone, at the borders too.
        assert np.abs(seen - colors[number].numpy()).max() <= 6
    assert all(max(Image.open(io.BytesIO(file)).size) <= side for file in sheets.files)


def array(block: Block) -> NDArray[Any]:
    assert isinstance(block, np.ndarray)
    return block


def blocks_of(page: str) -> dict[str, NDArray[Any]]:
    found = re.findall(r'id="block-([\w-]+)" data-kind="(u\d+)">([^<]*)</script>', page)
    return {
        name: np.frombuffer(base64.b64decode(text), dtype=KINDS[kind]) for name, kind, text in found
    }


def test_what_is_written_is_read_back() -> None:
    atlas = made_up_page(700, pictured=350)
    page = render_page(atlas)
    written = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert written is not None
    document = json.loads(written[1])
    found = blocks_of(page)
    np.testing.assert_allclose(found["xy"].reshape(-1, 2) / 65535, atlas.xy, atol=1 / 131070)
    np.testing.assert_array_equal(found["neighbors"].reshape(700, 10), atlas.neighbors)
    np.testing.assert_allclose(
        found["distances"].reshape(700, 10) * document["distance_unit"],
        atlas.distances,
        atol=document["distance_unit"],
    )
    bits = found["keeps"][:, None] >> np.arange(10) & 1
    np.testing.assert_array_equal(bits.astype(bool), atlas.kept)
    np.testing.assert_array_equal(found["pictured"], atlas.thumbnails.rows)
    np.testing.assert_array_equal(found["tint"].reshape(-1, 3), color_of(atlas.thumbnails.rows))
    assert bytes(found["paths"]).decode().split("\0") == list(atlas.paths)
    names = [document["classes"][own] for own in found["class"]]
    assert names == list(atlas.classes)
    for name, places in atlas.places.items():
        read = found[name].reshape(-1, 2)
        np.testing.assert_array_equal(read, places - places.min(0).values)
        assert [document["views"][name][side] for side in ("columns", "rows")] == list(
            read.max(0) + 1
        )
    for number, level in enumerate(atlas.levels):
        for cell, own in enumerate(level.grid.cells):
            assert set(np.flatnonzero(found[f"level{number}-of"] == cell)) == set(own.members)
            assert tuple(found[f"level{number}-place"].reshape(-1, 2)[cell]) == (
                own.column,
                own.row,
            )
        assert tuple(found[f"level{number}-sample"]) == level.samples


def test_effects_and_matches_of_cells_are_written() -> None:
    atlas = made_up_page(60)
    level = atlas.levels[0]
    cells = len(level.samples)
    effects = tuple(((f"k{i}", 2.0), (f"k{i + 1}", 1.0)) if i else () for i in range(cells))
    nearest = torch.arange(cells).flip(0)
    icons = SyntheticIcons(torch.rand(cells, 3, 8, 8), torch.linspace(-0.1, 1, cells), nearest)
    known = replace(level, effects=effects, synthetic=icons)
    document, blocks = encode_page(replace(atlas, levels=(known,)))
    names = [*document["levels"][0]["raised"], None]
    raised = [[names[i] for i in row if names[i]] for row in array(blocks["level0-raised"])]
    assert raised == [[name for name, _ in cell] for cell in effects]
    np.testing.assert_array_equal(blocks["level0-nearest"], nearest)
    cosines = icons.cosines.clamp_min(0)  # those below zero are written as zero
    np.testing.assert_allclose(array(blocks["level0-cosine"]) / 65535, cosines, atol=1e-5)


def test_an_atlas_without_classes_or_files_says_so() -> None:
    atlas = made_up_page(40)
    document, blocks = encode_page(replace(atlas, classes=("",) * 40))
    assert document["classes"] == []
    assert "class" not in blocks
    assert "pictured" not in blocks  # all are
    assert document["base"] is None


def test_large_numbers_of_rows_get_wider_types_and_small_pages() -> None:
    atlas = made_up_page(70_000, pictured=1000, classes=300)
    started = time.perf_counter()
    page = render_page(atlas)
    assert time.perf_counter() - started < 20
    found = blocks_of(page)
    assert found["neighbors"].dtype.itemsize == 4
    assert found["class"].dtype.itemsize == 2
    assert len(page) / 70_000 < 140  # bytes a row, of which the path takes 30


def test_classes_that_are_neighbors_have_colors_that_differ() -> None:
    # Ninety classes on a lattice: each must differ from those beside it.
    across = np.stack(np.meshgrid(np.arange(10.0), np.arange(9.0)), -1).reshape(-1, 2)
    xy = np.concatenate([across, across + 0.1])
    classes = np.concatenate([np.arange(90), np.arange(90)])
    chosen = np.array(class_colors(xy, classes, 90))
    beside = np.linalg.norm(across[:, None] - across[None], axis=2) == 1
    assert not ((chosen[:, None] == chosen[None]) & beside).any()
    assert set(chosen) == set(range(len(COLORS)))  # none is left unused
    assert len(set(class_colors(xy[:6], np.arange(6), 6))) == 6
