"""Presentation States as a viewer applies them: graphics on the right pixels of the right images, lung window."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from highdicom.color import CIELabColor
from matplotlib.path import Path as Outline
from numpy.typing import NDArray
from PIL import ImageColor
from pydicom.dataset import Dataset

from dicom_node.domain import RESEARCH_USE, CTSeries, Finding, Volume
from dicom_node.results import to_bytes
from dicom_node.results.palette import colour
from dicom_node.results.presentation import build_presentation_states
from dicom_node.series import read_series, to_volume
from tests.fakes.ct import PRONE, SUPINE, make_ct_series
from tests.fakes.enhanced import make_enhanced_ct
from tests.fakes.findings import ball, ball_mask, finding_of
from tests.fakes.readings import reading_of, two_balls


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> CTSeries:
    return read_series(make_ct_series(tmp_path_factory.mktemp("ct")))


@pytest.fixture(scope="module")
def volume(series: CTSeries) -> Volume:
    return to_volume(series)


def states_of(series: CTSeries, volume: Volume, *findings: Finding) -> list[Dataset]:
    """Built, written and read again."""
    made = build_presentation_states(reading_of(series, volume, *findings))
    return [pydicom.dcmread(BytesIO(to_bytes(ds))) for ds in made]


def painted(state: Dataset, series: CTSeries, layer: str) -> NDArray[np.bool_]:
    """(slice, row, column): the pixels whose centre lies within the closed lines of a layer."""
    number = {image.sop_instance_uid: index for index, image in enumerate(series.images)}
    rows, columns = np.mgrid[: series.rows, : series.columns] + 0.5
    centres = np.stack([columns, rows], axis=-1).reshape(-1, 2)
    mask = np.zeros((len(series.images), series.rows, series.columns), np.bool_)
    for item in state.GraphicAnnotationSequence:
        if item.GraphicLayer != layer:
            continue
        (image,) = item.ReferencedImageSequence
        index = number[image.ReferencedSOPInstanceUID]
        for graphic in item.GraphicObjectSequence:
            points = np.array(graphic.GraphicData, dtype=float).reshape(-1, 2)
            assert len(points) == graphic.NumberOfGraphicPoints
            if (points[0] == points[-1]).all():
                mask[index] |= Outline(points).contains_points(centres).reshape(mask.shape[1:])
    return mask


def full(volume: Volume, finding: Finding) -> NDArray[np.bool_]:
    mask = np.zeros(volume.hu.shape, np.bool_)
    mask[finding.slices] = finding.mask
    return mask


@pytest.mark.parametrize("orientation", [SUPINE, PRONE], ids=["supine", "prone"])
def test_outlines_hold_the_findings_voxels_and_no_others(tmp_path: Path, orientation: Sequence[float]) -> None:
    series = read_series(make_ct_series(tmp_path, orientation=orientation))
    volume = to_volume(series)
    pieces = finding_of(volume, ball_mask(volume, (12, 20, 20), 4.0) | ball_mask(volume, (13, 45, 45), 3.0))
    findings = [*two_balls(volume), pieces]

    (state,) = states_of(series, volume, *findings)

    for number, finding in enumerate(findings, start=1):
        np.testing.assert_array_equal(painted(state, series, f"NODULE_{number}"), full(volume, finding))


def test_calipers_have_the_length_that_is_reported(series: CTSeries, volume: Volume) -> None:
    findings = two_balls(volume)
    reading = reading_of(series, volume, *findings)
    (state,) = build_presentation_states(reading)

    for number, measured in enumerate(reading.measurements, start=1):
        key = series.images[measured.slice_index].sop_instance_uid
        layer = [item for item in state.GraphicAnnotationSequence if item.GraphicLayer == f"NODULE_{number}"]
        (item,) = [one for one in layer if one.ReferencedImageSequence[0].ReferencedSOPInstanceUID == key]
        lines = [np.array(graphic.GraphicData, dtype=float).reshape(-1, 2) for graphic in item.GraphicObjectSequence]
        lengths = [np.linalg.norm((line[1] - line[0]) * (0.7, 0.7)) for line in lines if len(line) == 2]
        np.testing.assert_allclose(lengths, [measured.long_axis_mm, measured.short_axis_mm], atol=0.01)
        (text,) = item.TextObjectSequence
        assert text.UnformattedTextValue == (
            f"Nodule {number}: {measured.long_axis_mm:.1f} x {measured.short_axis_mm:.1f} mm"
        )


def test_the_state_is_for_the_slices_with_findings_alone(series: CTSeries, volume: Volume) -> None:
    findings = two_balls(volume)

    (state,) = states_of(series, volume, *findings)

    (item,) = state.ReferencedSeriesSequence
    assert item.SeriesInstanceUID == series.series_uid
    occupied = np.flatnonzero(np.any([full(volume, finding).any(axis=(1, 2)) for finding in findings], axis=0))
    assert [image.ReferencedSOPInstanceUID for image in item.ReferencedImageSequence] == [
        series.images[index].sop_instance_uid for index in occupied
    ]


def test_grey_values_go_from_stored_ones_to_the_lung_window(series: CTSeries, volume: Volume) -> None:
    (state,) = states_of(series, volume, *two_balls(volume))

    assert (state.RescaleSlope, state.RescaleIntercept) == (
        series.header.RescaleSlope,
        series.header.RescaleIntercept,
    )
    (window,) = state.SoftcopyVOILUTSequence
    assert (window.WindowCenter, window.WindowWidth) == (-600, 1500)
    assert state.PresentationLUTShape == "IDENTITY"
    (area,) = state.DisplayedAreaSelectionSequence
    assert list(area.DisplayedAreaTopLeftHandCorner) == [1, 1]
    assert list(area.DisplayedAreaBottomRightHandCorner) == [series.columns, series.rows]


def test_slices_of_another_rescale_have_a_state_of_their_own(tmp_path: Path) -> None:
    paths = make_ct_series(tmp_path)
    for path in paths[20:]:
        ds = pydicom.dcmread(path)
        stored = np.frombuffer(ds.PixelData, "<i2") + np.int16(24)
        ds.PixelData, ds.RescaleIntercept = stored.tobytes(), str(int(ds.RescaleIntercept) - 24)
        ds.save_as(path)
    series = read_series(paths)
    volume = to_volume(series)

    states = states_of(series, volume, ball(volume, (20, 30, 30), 6.0))

    assert len({state.RescaleIntercept for state in states}) == len(states) == 2
    assert len({state.SeriesInstanceUID for state in states}) == 1
    assert [state.InstanceNumber for state in states] == [1, 2]
    shown = np.sum([painted(state, series, "NODULE_1") for state in states], axis=0)
    np.testing.assert_array_equal(shown, full(volume, ball(volume, (20, 30, 30), 6.0)))


def test_each_finding_has_a_layer_in_its_colour_and_its_number_in_text(series: CTSeries, volume: Volume) -> None:
    (state,) = states_of(series, volume, *two_balls(volume))

    layers = {layer.GraphicLayer: layer for layer in state.GraphicLayerSequence}
    assert list(layers) == ["NODULE_1", "NODULE_2", "RESEARCH_USE"]
    for number in (1, 2):
        lab = layers[f"NODULE_{number}"].GraphicLayerRecommendedDisplayCIELabValue
        rgb = CIELabColor.from_dicom_value(lab).to_rgb()
        np.testing.assert_allclose(rgb, ImageColor.getrgb(colour(number)), atol=2)
    for item in state.GraphicAnnotationSequence:
        if item.GraphicLayer != "RESEARCH_USE":
            assert item.GraphicLayer.removeprefix("NODULE_") in item.TextObjectSequence[0].UnformattedTextValue


def test_research_use_is_written_on_every_image(series: CTSeries, volume: Volume) -> None:
    (state,) = states_of(series, volume, *two_balls(volume))

    (item,) = [item for item in state.GraphicAnnotationSequence if item.GraphicLayer == "RESEARCH_USE"]
    assert "ReferencedImageSequence" not in item
    assert item.TextObjectSequence[0].UnformattedTextValue == RESEARCH_USE


@pytest.mark.parametrize("index", [(20, 0, 0), (20, 63, 63), (20, 0, 63), (20, 63, 0), (20, 32, 63)])
def test_texts_at_the_border_stay_within_the_image(
    series: CTSeries, volume: Volume, index: tuple[int, int, int]
) -> None:
    (state,) = states_of(series, volume, ball(volume, index, 4.0))

    for item in state.GraphicAnnotationSequence:
        for text in item.TextObjectSequence:
            low, high = np.array(text.BoundingBoxTopLeftHandCorner), np.array(text.BoundingBoxBottomRightHandCorner)
            most = 1 if text.BoundingBoxAnnotationUnits == "DISPLAY" else 64
            assert (low >= 0).all()
            assert (low < high).all()
            assert (high <= most).all()


def test_frames_of_a_multi_frame_source_are_drawn_on_by_number(tmp_path: Path) -> None:
    series = read_series(make_enhanced_ct(make_ct_series(tmp_path / "single"), tmp_path / "enhanced"))
    volume = to_volume(series)
    finding = ball(volume, (20, 30, 30), 6.0)

    (state,) = states_of(series, volume, finding)

    # The frames of the file are not in the order of the body.
    occupied = [image.frame for image in series.images[finding.slices[0]]]
    (image,) = state.ReferencedSeriesSequence[0].ReferencedImageSequence
    assert list(image.ReferencedFrameNumber) == sorted(number or 0 for number in occupied)
    drawn = [
        item.ReferencedImageSequence[0].ReferencedFrameNumber
        for item in state.GraphicAnnotationSequence
        if "ReferencedImageSequence" in item
    ]
    assert drawn == occupied


def test_nothing_found_needs_no_state(series: CTSeries, volume: Volume) -> None:
    assert build_presentation_states(reading_of(series, volume)) == ()


def test_equal_readings_give_equal_bytes(series: CTSeries, volume: Volume) -> None:
    made = [build_presentation_states(reading_of(series, volume, *two_balls(volume))) for _ in range(2)]

    assert [to_bytes(ds) for ds in made[0]] == [to_bytes(ds) for ds in made[1]]
