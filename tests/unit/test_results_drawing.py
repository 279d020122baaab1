"""Slices as pictures: the lung window, true places, outlines where the mask ends, words that can be read."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw

from dicom_node.domain import Volume
from dicom_node.results import drawing, paper
from dicom_node.results.drawing import View, contrast
from dicom_node.results.measure import measure
from dicom_node.results.palette import COLOURS, colour
from tests.fakes.findings import ball, finding_of

SPACING_MM = (2.0, 0.8, 0.5)


@pytest.fixture
def volume() -> Volume:
    """Lung, 20 slices of 60 rows and 100 columns, rows and columns of other sizes."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *SPACING_MM, 1.0
    return Volume(hu=np.full((20, 60, 100), -850, np.int16), affine=affine)


def pixels(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image).astype(np.int64)


@pytest.mark.parametrize(
    ("hu", "value"), [(-32768, 0), (-1350, 0), (-600, 128), (-975, 64), (150, 255), (3071, 255), (32767, 255)]
)
def test_the_lung_window_is_linear_and_clipped(hu: int, value: int) -> None:
    assert drawing.grey(np.full((1, 1), hu, np.int16)).item() == value


def test_the_window_of_the_text_is_that_of_the_picture() -> None:
    low, high = drawing.LUNG_WINDOW_HU

    assert f"W {high - low:g} L {(low + high) / 2:g}" == drawing.LUNG_WINDOW_TEXT


def test_part_of_a_slice_that_is_not_contiguous_is_windowed_alike(volume: Volume) -> None:
    volume.hu[3] = np.arange(6000).reshape(60, 100) - 1500

    np.testing.assert_array_equal(drawing.grey(volume.hu[3, 5:9, 7:11]), drawing.grey(volume.hu[3])[5:9, 7:11])


def test_whole_slice_has_the_proportions_of_the_patient(volume: Volume) -> None:
    image = drawing.render_slice(volume, 3, within_px=500)

    assert image.size == (500, 480)  # 50 mm x 48 mm


def test_slice_alone_has_a_pixel_a_voxel_where_they_are_square(volume: Volume) -> None:
    square = Volume(hu=volume.hu[:, :, :60], affine=np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]])
    square.hu[4, 10, 20] = 150

    rgb = pixels(drawing.render_slice(square, 4))

    assert rgb.shape == (60, 60, 3)
    assert np.argwhere(rgb.min(axis=-1) > 200).tolist() == [[10, 20]]


def test_a_voxel_is_shown_where_the_view_says(volume: Volume) -> None:
    volume.hu[7, 30:33, 50:54] = 150
    view = View(index=7, box=(40.0, 20.0, 70.0, 45.0), size_px=(300, 400))

    bright = np.argwhere(pixels(drawing.render_view(volume, view)).min(axis=-1) > 170)

    low = view.to_screen(np.array([50.0, 30.0]))[::-1]
    high = view.to_screen(np.array([54.0, 33.0]))[::-1]
    np.testing.assert_allclose(bright.min(axis=0), low, atol=4)
    np.testing.assert_allclose(bright.max(axis=0) + 1, high, atol=4)


def test_beyond_the_slice_is_background_not_air(volume: Volume) -> None:
    view = View(index=0, box=(-10.0, -6.0, 10.0, 6.0), size_px=(200, 120))

    rgb = pixels(drawing.render_view(volume, view))

    background = (rgb == ImageColor.getrgb(drawing.BACKGROUND)).all(axis=-1)
    assert background[:60].all()
    assert background[:, :100].all()
    assert not background[60:, 100:].any()


@pytest.mark.parametrize("scale", [0.6, 1.0, 1.3, 7.0])
def test_outline_runs_along_the_edge_of_the_mask(volume: Volume, scale: float) -> None:
    mask = np.zeros(volume.hu.shape, np.bool_)
    mask[7, 20:40, 30:70] = True
    finding = finding_of(volume, mask)
    view = View(index=7, box=(0.0, 0.0, 100.0, 60.0), size_px=(round(100 * scale), round(60 * scale)))
    image = drawing.render_view(volume, view)

    drawing.draw_outline(image, view, finding, 1)

    line = np.argwhere(np.abs(pixels(image) - ImageColor.getrgb(colour(1))).max(axis=-1) < 60)
    np.testing.assert_allclose(line.min(axis=0), np.array([20, 30]) * scale, atol=1.5)
    np.testing.assert_allclose(line.max(axis=0) + 1, np.array([40, 70]) * scale, atol=1.5)
    inside = pixels(image)[round(25 * scale) : round(35 * scale), round(35 * scale) : round(65 * scale)]
    assert (inside == inside[0, 0, 0]).all()


def test_slices_without_the_finding_bear_no_mark_of_it(volume: Volume) -> None:
    finding = ball(volume, (10, 30, 50), 5.0)

    for index in (0, 7, 13, 19):
        assert drawing.render_slice(volume, index, [finding]).tobytes() == drawing.render_slice(volume, index).tobytes()
    assert drawing.render_slice(volume, 10, [finding]).tobytes() != drawing.render_slice(volume, 10).tobytes()


@pytest.mark.parametrize("at", [(10, 0, 0), (10, 59, 99), (10, 0, 99), (10, 59, 0)])
def test_findings_in_the_corners_are_outlined_and_numbered_within_the_picture(
    volume: Volume, at: tuple[int, int, int]
) -> None:
    image = drawing.render_slice(volume, 10, [ball(volume, at, 6.0)], within_px=500)

    near = np.abs(pixels(image) - ImageColor.getrgb(colour(1))).max(axis=-1) < 20
    rows = np.nonzero(near)[0]
    assert len(rows) > 300  # the chip, and a quarter of the outline
    assert rows.min() < 60 or rows.max() > 420
    chip = near[2:-2, 2:-2].sum() / near.sum()
    assert chip > 0.9


def test_surroundings_fill_their_picture_and_hold_the_finding_in_the_middle(volume: Volume) -> None:
    finding = ball(volume, (10, 30, 50), 6.0)
    view = drawing.around(volume, finding, measure(finding, volume), (360, 300))

    left, top, right, bottom = view.box
    assert (right - left) * SPACING_MM[2] / 360 == pytest.approx((bottom - top) * SPACING_MM[1] / 300)
    assert (left + right) / 2 == pytest.approx(50.5, abs=0.51)
    assert (top + bottom) / 2 == pytest.approx(30.5, abs=0.51)


@pytest.mark.parametrize(
    ("right", "down", "ends"),
    [
        ((1, 0, 0), (0, 1, 0), ("R", "L", "A", "P")),
        ((-1, 0, 0), (0, -1, 0), ("L", "R", "P", "A")),
        ((-1, 0, 0), (0, 1, 0), ("L", "R", "A", "P")),
    ],
)
def test_letters_say_where_the_sides_of_the_stored_slice_are(
    right: tuple[int, int, int], down: tuple[int, int, int], ends: tuple[str, str, str, str]
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.stack([(0, 0, 1), down, right], axis=1)

    assert drawing.ends_of(Volume(hu=np.zeros((2, 2, 2), np.int16), affine=affine)) == ends


@pytest.mark.parametrize(
    ("ink", "ground"),
    [
        (drawing.TEXT, drawing.BACKGROUND),
        (drawing.QUIET, drawing.BACKGROUND),
        (drawing.WARNING, drawing.BACKGROUND),
        (drawing.ON_WARNING, drawing.WARNING),
        (drawing.TEXT, "#000000"),  # letters on a picture, by their own edge
        (paper.INK, paper.PAPER),
        (paper.QUIET_INK, paper.PAPER),
        *((drawing.ink_on(chip), chip) for chip in COLOURS),
    ],
)
def test_text_stands_out(ink: str, ground: str) -> None:
    assert contrast(ink, ground) >= 4.5


@pytest.mark.parametrize(("a", "b", "ratio"), [("#000000", "#FFFFFF", 21.0), ("#777777", "#FFFFFF", 4.48)])
def test_contrast_is_that_of_wcag(a: str, b: str, ratio: float) -> None:
    assert contrast(a, b) == contrast(b, a) == pytest.approx(ratio, abs=0.005)


def test_outlines_stand_out_from_lung_and_from_tissue_by_themselves_or_by_their_halo() -> None:
    for number in range(1, len(COLOURS) + 1):
        line, halo = colour(number), drawing.ink_on(colour(number))
        for ground in ("#4A4A4A", "#E8E8E8"):
            assert max(contrast(line, ground), contrast(halo, ground)) > 2.3
        assert contrast(line, halo) >= 4.5


def test_what_the_font_lacks_is_a_question_mark() -> None:
    assert drawing.printable("Knötchen 12.3 mm ±") == "Kn?tchen 12.3 mm ?"
    font = drawing.font(20)
    empty = bytes(font.getmask("ö"))
    assert all(bytes(font.getmask(chr(code))) != empty for code in range(0x21, 0x7F))


def test_lines_are_broken_between_words_and_no_word_is_lost() -> None:
    text = "The series was analysed and no lung nodule candidate was found. " * 4 + "x" * 300

    lines = drawing.wrapped(text, 16, 400)

    assert " ".join(lines).split() == text.split()
    assert all(drawing.font(16).getlength(line) <= 400 for line in lines[:-1])


def test_a_chip_is_as_wide_as_its_number() -> None:
    widths = []
    for number in (1, 11, 111):
        image = Image.new("RGB", (120, 40))
        drawing.draw_chip(ImageDraw.Draw(image), (60, 20), number, height_px=26)
        widths.append(np.ptp(np.nonzero(pixels(image).max(axis=-1) > 60)[1]))
    assert widths[0] <= widths[1] < widths[2]
