"""The Key Object Selection as a viewer reads it: which images, in which order, and how they are drawn on."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.domain import RESEARCH_USE, CTSeries, Volume
from dicom_node.results import to_bytes
from dicom_node.results.key_objects import build_key_objects
from dicom_node.results.presentation import build_presentation_states
from dicom_node.results.reading import Made, Reading
from dicom_node.series import read_series, to_volume
from tests.fakes.ct import make_ct_series
from tests.fakes.enhanced import make_enhanced_ct
from tests.fakes.readings import reading_of, two_balls


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> CTSeries:
    return read_series(make_ct_series(tmp_path_factory.mktemp("ct")))


@pytest.fixture(scope="module")
def volume(series: CTSeries) -> Volume:
    return to_volume(series)


def selection_of(reading: Reading, *made: Made) -> Dataset:
    """Built, written and read again."""
    built = build_key_objects(reading, made)
    assert built is not None
    return pydicom.dcmread(BytesIO(to_bytes(built)))


def images_of(selection: Dataset) -> list[Dataset]:
    return [item.ReferencedSOPSequence[0] for item in selection.ContentSequence if item.ValueType == "IMAGE"]


def evidence_of(selection: Dataset) -> set[str]:
    (study,) = selection.CurrentRequestedProcedureEvidenceSequence
    return {
        instance.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }


def test_key_images_are_the_measured_slices_the_highest_score_first(series: CTSeries, volume: Volume) -> None:
    first, second = two_balls(volume)
    reading = reading_of(series, volume, replace(second, score=0.95), first)

    selection = selection_of(reading)

    expected = [series.images[measured.slice_index].sop_instance_uid for measured in reading.measurements]
    assert [image.ReferencedSOPInstanceUID for image in images_of(selection)] == expected
    assert evidence_of(selection) == set(expected)


def test_a_slice_with_two_findings_is_listed_once(series: CTSeries, volume: Volume) -> None:
    first, _ = two_balls(volume)
    beside = replace(first, corner=(first.corner[0], first.corner[1] + 20, first.corner[2] + 20), score=0.6)

    assert len(images_of(selection_of(reading_of(series, volume, first, beside)))) == 1


def test_it_is_titled_of_interest_and_says_what_it_must_not_be_used_for(series: CTSeries, volume: Volume) -> None:
    selection = selection_of(reading_of(series, volume, *two_balls(volume)))

    (title,) = selection.ConceptNameCodeSequence
    assert (title.CodeValue, title.CodingSchemeDesignator) == ("113000", "DCM")
    assert selection.ContentTemplateSequence[0].TemplateIdentifier == "2010"
    (text,) = [item.TextValue for item in selection.ContentSequence if item.get("TextValue", "").startswith("Slices")]
    assert RESEARCH_USE in text


def test_key_images_refer_to_the_states_that_draw_on_them(series: CTSeries, volume: Volume) -> None:
    reading = reading_of(series, volume, *two_balls(volume))
    (state,) = build_presentation_states(reading)

    selection = selection_of(reading, Made(kind="presentation", ds=state))

    for image in images_of(selection):
        assert [item.ReferencedSOPInstanceUID for item in image.ReferencedSOPSequence] == [state.SOPInstanceUID]
    assert state.SOPInstanceUID in evidence_of(selection)
    assert all("ReferencedSOPSequence" not in image for image in images_of(selection_of(reading)))


def test_frames_of_a_multi_frame_source_are_named(tmp_path: Path) -> None:
    series = read_series(make_enhanced_ct(make_ct_series(tmp_path / "single"), tmp_path / "enhanced"))
    volume = to_volume(series)
    reading = reading_of(series, volume, *two_balls(volume))
    (state,) = build_presentation_states(reading)

    selection = selection_of(reading, Made(kind="presentation", ds=state))

    frames = [series.images[measured.slice_index].frame for measured in reading.measurements]
    assert [image.ReferencedFrameNumber for image in images_of(selection)] == frames
    assert all(image.ReferencedSOPSequence for image in images_of(selection))
    assert evidence_of(selection) == {series.images[0].sop_instance_uid, state.SOPInstanceUID}


def test_nothing_found_selects_nothing(series: CTSeries, volume: Volume) -> None:
    assert build_key_objects(reading_of(series, volume), ()) is None


def test_equal_readings_give_equal_bytes(series: CTSeries, volume: Volume) -> None:
    made = [selection_of(reading_of(series, volume, *two_balls(volume))) for _ in range(2)]

    assert to_bytes(made[0]) == to_bytes(made[1])
