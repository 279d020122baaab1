"""The pictures: true lengths, the right way round, and every word on them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageColor

from dicom_node.domain import Finding, Volume
from dicom_node.results.measure import measure
from dicom_node.results.montage import render_finding, render_montage, to_png
from dicom_node.results.palette import colour
from tests.fakes.findings import ball, finding_of

AXIAL, CORONAL, SAGITTAL = 0, 1, 2


def volume_with(spacing_mm: tuple[float, float, float], *, prone: bool = False, from_head: bool = False) -> Volume:
    """A block of lung of 80 mm a side, centred on the origin of the patient."""
    shape = tuple(int(80 / mm) for mm in spacing_mm)
    sign = -1.0 if prone else 1.0
    affine = np.eye(4)
    affine[:3, 0] = (0, 0, -spacing_mm[0] if from_head else spacing_mm[0])
    affine[:3, 1] = (0, sign * spacing_mm[1], 0)
    affine[:3, 2] = (sign * spacing_mm[2], 0, 0)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Volume(hu=np.full(shape, -900, np.int16), affine=affine)


def panels(volume: Volume, finding: Finding) -> list[NDArray[np.int64]]:
    """The three planes as RGB arrays, without head and foot."""
    picture = render_finding(volume, finding, measure(finding, volume), 1)
    rgb = np.asarray(picture).astype(np.int64)
    return [rgb[58 : 58 + 336, 10 + 346 * n : 10 + 346 * n + 336] for n in range(3)]


def outline(panel: NDArray[np.int64]) -> NDArray[np.int64]:
    """(row, column) of the pixels in the finding's colour."""
    return np.argwhere(np.abs(panel - ImageColor.getrgb(colour(1))).max(axis=-1) < 40)


def center(volume: Volume) -> tuple[float, float, float]:
    k, r, c = ((n - 1) / 2 for n in volume.hu.shape)
    return k, r, c


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (3.0, 0.6, 0.6), (1.25, 0.9, 0.5)])
def test_ball_is_round_and_of_true_size_in_every_plane(spacing_mm: tuple[float, float, float]) -> None:
    volume = volume_with(spacing_mm)
    finding = ball(volume, center(volume), 9.0)
    pixels_per_mm = 336 / max(50.0, 2.6 * max(np.array(finding.mask.shape) * spacing_mm))

    for panel in panels(volume, finding):
        line = outline(panel)
        extent_mm = (line.max(axis=0) - line.min(axis=0)) / pixels_per_mm
        # As exact as the voxels are: one of them at each end.
        np.testing.assert_allclose(extent_mm, 18.0, atol=max(spacing_mm) + 0.6)


@pytest.mark.parametrize("prone", [False, True], ids=["supine", "prone"])
@pytest.mark.parametrize("from_head", [False, True], ids=["from feet", "from head"])
@pytest.mark.parametrize(
    ("toward", "plane", "side"),
    [
        ((1, 0, 0), AXIAL, "right"),  # the patient's left is at the right of the image
        ((0, -1, 0), AXIAL, "top"),  # the front above
        ((1, 0, 0), CORONAL, "right"),
        ((0, 0, 1), CORONAL, "top"),  # the head above
        ((0, 0, 1), SAGITTAL, "top"),
        ((0, 1, 0), SAGITTAL, "right"),  # the back at the right
    ],
)
def test_planes_are_the_right_way_round(
    toward: tuple[int, int, int], plane: int, side: str, prone: bool, from_head: bool
) -> None:
    volume = volume_with((2.0, 1.0, 1.0), prone=prone, from_head=from_head)
    bright = ball(volume, tuple(volume.to_index(np.array(toward) * 15.0)), 3.0)  # type: ignore[arg-type]
    volume.hu[bright.slices][bright.mask] = 100
    finding = ball(volume, center(volume), 4.0)

    panel = panels(volume, finding)[plane]

    # The scale bar and the letters at the edges are bright too.
    white = np.argwhere(panel[60:-60, 60:-60].min(axis=-1) > 220).mean(axis=0) + 60
    row, column = white - 168
    assert {"right": column > 40, "top": row < -40}[side]
    assert abs(row if side == "right" else column) < 12


def test_axial_plane_shows_the_slice_that_was_measured() -> None:
    volume = volume_with((4.0, 1.0, 1.0))
    mask = np.zeros(volume.hu.shape, np.bool_)
    mask[5:15, 38:43, 38:43] = True
    mask[14, 34:47, 34:47] = True
    volume.hu[14] = 100

    axial = panels(volume, finding_of(volume, mask))[AXIAL]

    assert np.median(axial[100:140, 100:140]) > 220


@pytest.mark.parametrize("index", [(0, 0, 0), (0, 40, 79), (39, 79, 0)])
def test_finding_at_the_border_is_shown_with_nothing_beyond(index: tuple[int, int, int]) -> None:
    volume = volume_with((2.0, 1.0, 1.0))
    for panel in panels(volume, ball(volume, index, 5.0)):
        assert len(outline(panel)) > 20
        assert (panel == ImageColor.getrgb("#0E1116")).all(axis=-1).any()


def test_single_voxel_and_large_mass_are_shown() -> None:
    volume = volume_with((2.0, 0.7, 0.7))
    mask = np.zeros(volume.hu.shape, np.bool_)
    mask[20, 57, 57] = True

    for finding in (finding_of(volume, mask), ball(volume, center(volume), 38.0)):
        for panel in panels(volume, finding):
            assert len(outline(panel)) > 4


def test_picture_carries_words_above_and_below() -> None:
    volume = volume_with((2.0, 1.0, 1.0))
    finding = ball(volume, center(volume), 5.0)

    rgb = np.asarray(render_finding(volume, finding, measure(finding, volume), 1)).astype(int)

    warning = np.abs(rgb[-34:, :300] - ImageColor.getrgb("#FFD166")).max(axis=-1) < 40
    assert warning.sum() > 300  # "Research use, not for diagnosis"
    assert (rgb[:58, 60:].min(axis=-1) > 150).sum() > 300  # the numbers


def test_montage_holds_every_finding_in_order() -> None:
    volume = volume_with((2.0, 1.0, 1.0))
    findings = [ball(volume, (10, 20, 20), 4.0), ball(volume, (30, 50, 50), 6.0)]
    measurements = [measure(finding, volume) for finding in findings]

    sheet = render_montage(volume, findings, measurements)

    single = [render_finding(volume, f, m, n) for n, (f, m) in enumerate(zip(findings, measurements, strict=True), 1)]
    np.testing.assert_array_equal(np.asarray(sheet), np.concatenate([np.asarray(s) for s in single]))


def test_montage_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no findings"):
        render_montage(volume_with((2.0, 1.0, 1.0)), [], [])


def test_png_of_one_picture_is_always_the_same() -> None:
    picture = Image.new("RGB", (8, 8), "#123456")

    assert to_png(picture) == to_png(picture.copy())
    assert to_png(picture).startswith(b"\x89PNG")
