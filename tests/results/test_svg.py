"""Plots as SVG: the light form is matplotlib's own; a dark page turns grays, and grays only."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
from PIL import Image

from featviz import plotting, svg
from featviz.results import figure_bytes


def drawn(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None = None) -> str:
    figure = plotting.new_figure(3, 2)
    ax = figure.add_subplot()
    ax.plot([0, 1], [0, 1], color=plotting.BLUE)
    plotting.lines(ax, xlabel="eps", ylabel="accuracy")
    if pixels is not None:
        ax.imshow(pixels, extent=(0, 1, 0, 1))
    return figure_bytes(figure, "svg").decode()


def test_every_gray_has_an_opposite_and_colors_have_none() -> None:
    text = drawn()
    style = re.search(r"prefers-color-scheme: dark\)\{(.*)\}</style>", text)
    assert style is not None
    rules = dict(re.findall(r'\[style\*="((?:fill|stroke): #\w{6})"\]\{\w+: (#\w{6})', style[1]))
    grays = set(
        re.findall(r"(?:fill|stroke): #(?:([0-9a-f]{2})\1\1)\b", text.replace(style[0], ""))
    )
    assert {rule[-2:] for rule in rules} == grays
    assert {"ff", "00", "dd"} <= grays
    assert plotting.BLUE.lower() not in style[1].lower()
    for rule, other in rules.items():  # light becomes dark, and the order is reversed
        assert (int(rule[-2:], 16) > 0x80) == (int(other[1:3], 16) < 0x80)


def test_colors_may_be_attributes() -> None:
    text = svg.finish('<svg width="9"><rect fill="#ffffff"/><path stroke="#0072b2"/></svg>')
    assert '[fill="#ffffff"]{fill: #151517 !important}' in text
    assert text.index("</style>") < text.index("<rect")
    assert "0072b2" not in text[: text.index("<rect")]


def test_words_stand_out_from_the_ground_on_a_dark_page() -> None:
    style = drawn()
    ground = re.search(r'fill: #ffffff"\]\{fill: #(\w{2})', style)
    words = re.search(r"svg\{fill: #(\w{2})", style)
    assert ground is not None
    assert words is not None
    assert int(words[1], 16) - int(ground[1], 16) > 0xC0


def test_large_photographs_inside_are_jpeg_and_nearly_the_same() -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize((200, 200), 3)
    text = drawn(np.asarray(smooth))
    content = re.search(r'data:image/jpeg;base64,([^"]+)"', text)
    assert content is not None
    with Image.open(io.BytesIO(base64.b64decode(content[1]))) as shown:
        size = shown.size
        upright = shown.transpose(Image.Transpose.FLIP_TOP_BOTTOM)  # the SVG turns it
        middle = np.asarray(upright.resize((6, 6), Image.Resampling.BOX), float)
    assert size > (100, 100)
    expected = np.asarray(smooth.resize((6, 6), Image.Resampling.BOX), float)
    assert np.abs(middle - expected).mean() < 6
    flat = np.zeros((40, 40, 3), np.uint8)
    assert "image/jpeg" not in drawn(flat)


def pictures_inside(text: str) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    found = re.findall(r'data:image/\w+;base64,([^"]+)"', text)
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB")) for one in found
    ]


def test_pictures_beside_each_other_stay_apart_and_those_of_few_colors_exact() -> None:
    colors = np.random.default_rng(1).integers(0, 255, (3, 200, 3), dtype=np.uint8)
    figure = plotting.new_figure(3, 2)
    ax = figure.add_subplot()
    for at, row in enumerate(colors):
        ax.imshow(row.reshape(10, 20, 3), extent=(at, at + 0.9, 0, 1), interpolation="nearest")
    ax.set(xlim=(0, 3), ylim=(0, 1))
    inside = pictures_inside(figure_bytes(figure, "svg").decode())
    assert len(inside) == 3
    for picture, row in zip(inside, colors, strict=True):
        assert set(map(tuple, picture.reshape(-1, 3))) == set(map(tuple, row))


def test_coordinates_keep_their_place_to_a_hundredth_of_a_point() -> None:
    text = 'd="M 0.0049 861.696 \nL -766.0251 -0.001 \nz\n" x="4.738283" viewBox="0 0 1.23456 2"'
    short = svg.finish(f"<svg><metadata>Matplotlib 3</metadata><path {text}/></svg>")
    shown = re.sub("<style>.*</style>", "", short)
    assert shown == ('<svg><path d="M0 861.7L-766.03 0z" x="4.74" viewBox="0 0 1.23456 2"/></svg>')
    assert "Matplotlib" not in drawn()


def test_the_family_of_fonts_stands_once() -> None:
    text = drawn()
    assert text.count("DejaVu Sans") == 1
    assert "DejaVu Sans" in text[: text.index("<defs>")]
    assert text.count("<text") > 4


def test_the_same_figure_gives_the_same_bytes() -> None:
    assert drawn() == drawn()
