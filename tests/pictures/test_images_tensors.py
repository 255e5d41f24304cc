"""Pictures as tensors: 8 bits and back, sheets, films, boxes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.GifImagePlugin import GifImageFile

from featviz.errors import UserError
from featviz.pictures import films, images


def test_png_keeps_eight_bits_exactly(tmp_path: Path, generator: torch.Generator) -> None:
    picture = torch.rand(3, 9, 7, generator=generator)
    images.write_png(picture, tmp_path / "a.png")
    found = images.read_image(tmp_path / "a.png")
    assert torch.equal(found, images.quantize(picture))
    assert float((found - picture).abs().max()) <= 0.5 / 255 + 1e-6
    images.write_png(found, tmp_path / "b.png")
    assert torch.equal(images.read_image(tmp_path / "b.png"), found)


def test_values_outside_are_clipped_and_halves_rounded() -> None:
    values = torch.tensor([-1.0, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 7.0])
    assert images.to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255]


def test_all_256_values_survive() -> None:
    values = torch.arange(256).float() / 255
    assert images.to_uint8(values).tolist() == list(range(256))
    assert torch.equal(images.quantize(values), values)


def test_contact_sheet_puts_each_picture_in_its_place(generator: torch.Generator) -> None:
    pictures = torch.rand(5, 3, 4, 6, generator=generator)
    sheet = images.contact_sheet(pictures, columns=3, gap=2, background=0.25)
    assert sheet.shape == (3, 2 * 6 + 2, 3 * 8 + 2)
    for i, picture in enumerate(pictures):
        top, left = 2 + i // 3 * 6, 2 + i % 3 * 8
        assert torch.equal(sheet[:, top : top + 4, left : left + 6], picture)
    rest = sheet.sum() - pictures.sum()
    assert float(rest) == pytest.approx(0.25 * 3 * (14 * 26 - 5 * 24), rel=1e-5)


def test_enlarge_repeats_pixels() -> None:
    picture = torch.arange(12.0).view(3, 2, 2)
    big = images.enlarge(picture, 3)
    assert big.shape == (3, 6, 6)
    assert torch.equal(big[:, 1::3, 2::3], picture)
    assert torch.equal(big[:, ::3, ::3], picture)


def test_gray_is_zero_and_the_largest_weight_is_full(generator: torch.Generator) -> None:
    values = torch.randn(4, 3, 5, 5, generator=generator)
    pictures = images.around_gray(values)
    for picture, value in zip(pictures, values, strict=True):
        assert torch.allclose((picture - 0.5) * 2 * value.abs().max(), value, atol=1e-6)
    shared = images.around_gray(values, float(values.abs().max()))
    assert float((shared - 0.5).abs().max()) == pytest.approx(0.5)
    assert torch.equal(images.around_gray(torch.zeros(3, 2, 2)), torch.full((3, 2, 2), 0.5))


def test_crop_box_is_gray_outside(generator: torch.Generator) -> None:
    picture = torch.rand(3, 10, 8, generator=generator)
    crop = images.crop_box(picture, (-2, 5, 3, 12), gray=0.7)
    assert crop.shape == (3, 5, 7)
    assert torch.equal(crop[:, 2:, :3], picture[:, :3, 5:])
    assert bool((crop[:, :2] == 0.7).all())
    assert bool((crop[:, :, 3:] == 0.7).all())
    assert bool((images.crop_box(picture, (20, 20, 22, 25)) == images.OUTSIDE).all())


def test_film_has_every_frame_and_rests_on_the_last(tmp_path: Path) -> None:
    frames = [torch.full((3, 8, 8), value) for value in (0.0, 0.5, 1.0)]
    films.write_gif(frames, tmp_path / "a.gif", seconds_per_frame=0.1)
    with Image.open(tmp_path / "a.gif") as film:
        assert isinstance(film, GifImageFile)
        assert film.n_frames == 3
        assert film.info["loop"] == 0
        durations = []
        for i in range(3):
            film.seek(i)
            durations.append(film.info["duration"])
            assert film.convert("RGB").getpixel((4, 4)) == (round(255 * i / 2 + 0.01),) * 3
    assert durations == [100, 100, 400]


def test_signed_numbers_have_long_minuses_and_no_negative_zero() -> None:
    from featviz.plotting import signed_text

    assert signed_text(1.234) == "+1.23"
    assert signed_text(-1.234) == "\N{MINUS SIGN}1.23"
    assert signed_text(-0.001) == "+0.00"
    assert signed_text(-0.001, ".2f") == "0.00"
    assert signed_text(-12345.6, ".5g") == "\N{MINUS SIGN}12346"


def test_checked_pictures_are_a_batch_of_their_own(generator: torch.Generator) -> None:
    pictures = torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64).requires_grad_()
    batch = images.check_pictures(pictures.transpose(2, 3))
    assert torch.equal(batch, pictures.detach().transpose(2, 3))
    assert batch.is_contiguous()
    assert not batch.requires_grad
    assert batch.data_ptr() != pictures.data_ptr()
    assert images.check_pictures(pictures[0], single=True).shape == (1, 3, 4, 5)
    assert images.check_pictures(pictures[:0], empty=True).shape == (0, 3, 4, 5)


def test_the_rounding_of_computed_pictures_is_brought_back() -> None:
    found = images.check_pictures(torch.tensor([-3e-8, 1 + 1e-7, 0.5]).expand(1, 3, 1, 3))
    assert found[0, 0, 0].tolist() == [0.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (torch.zeros(2, 1, 4, 4), r"floats of shape \(N, 3, H, W\), got \(2, 1, 4, 4\)"),
        (torch.zeros(3, 4, 4), r"got \(3, 4, 4\)"),
        (torch.zeros(4, 4), r"got \(4, 4\) of torch.float32"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "got .* of torch.uint8"),
        (torch.zeros(0, 3, 4, 4), "there are no pictures"),
        (torch.full((1, 3, 4, 4), 255.0), r"must lie in \[0, 1\], these reach from 255 to 255"),
        (torch.full((1, 3, 4, 4), torch.nan), r"must lie in \[0, 1\]"),
        (torch.full((1, 3, 4, 4), -1e-5), r"must lie in \[0, 1\]"),
    ],
)
def test_what_is_no_pictures_is_refused_in_one_line(pictures: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        images.check_pictures(pictures)


def test_the_gaps_of_a_contact_sheet_can_be_transparent(generator: torch.Generator) -> None:
    pictures = torch.rand(3, 3, 4, 5, generator=generator)
    sheet = images.contact_sheet(pictures, columns=2, gap=1, background=None)
    on_white = images.contact_sheet(pictures, columns=2, gap=1)
    assert sheet.shape == (4, *on_white.shape[1:])
    assert int(sheet[3].sum()) == 3 * 4 * 5
    torch.testing.assert_close(images.visible(sheet), on_white)
