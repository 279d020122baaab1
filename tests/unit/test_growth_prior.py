"""An earlier report is read as it was written, by whatever version and in whatever form; and doubted."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from datetime import datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import RLELossless

from dicom_node.domain import CTSeries, Volume
from dicom_node.errors import PriorUnusable, Reason, SeriesRejected
from dicom_node.growth import acquired_at, is_ours, read_prior
from dicom_node.profiles import BUILT_IN_PROFILES
from dicom_node.results import Results, build_rejection, build_results, to_bytes
from dicom_node.series import read_series, to_volume
from tests.fakes.ct import PRONE, make_ct_series
from tests.fakes.findings import JOB, ball, detection_of

OLD = Path(__file__).parent.parent / "data" / "report_0_1"


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> CTSeries:
    return read_series(make_ct_series(tmp_path_factory.mktemp("ct")))


@pytest.fixture(scope="module")
def volume(series: CTSeries) -> Volume:
    return to_volume(series)


@pytest.fixture(scope="module")
def found(series: CTSeries, volume: Volume) -> Results:
    return results_of(series, volume)


def results_of(series: CTSeries, volume: Volume, form: str = "binary", frames: str = "sparse") -> Results:
    profile = BUILT_IN_PROFILES["ohif"].model_copy(update={"segmentation": form, "segmentation_frames": frames})
    findings = (ball(volume, (10, 20, 20), 4.0), ball(volume, (30, 40, 45), 6.0, score=0.7, side="right"))
    return build_results(series, volume, detection_of(*findings), **JOB, profile=profile)


def received(ds: Dataset | None) -> Dataset:
    """As it comes back from an archive."""
    assert ds is not None
    return pydicom.dcmread(BytesIO(to_bytes(ds)))


def copies(found: Results) -> tuple[Dataset, Dataset]:
    return received(found.sr), received(found.seg)


def group_of(report: Dataset) -> Dataset:
    """The first group with a segment, whose numbers are read."""
    (measurements,) = (i for i in report.ContentSequence if named(i, codes.DCM.ImagingMeasurements.value))
    return next(
        group
        for group in measurements.ContentSequence
        if any(named(item, codes.DCM.ReferencedSegment.value) for item in group.get("ContentSequence", ()))
    )


def item_of(report: Dataset, code_value: str) -> Dataset:
    return next(item for item in group_of(report).ContentSequence if named(item, code_value))


def named(item: Dataset, code_value: str) -> bool:
    return bool(item.ConceptNameCodeSequence[0].CodeValue == code_value)


@pytest.mark.parametrize("frames", ["sparse", "full"])
@pytest.mark.parametrize("form", ["binary", "fractional", "labelmap"])
def test_nodules_are_read_back_from_every_form_of_segmentation(
    series: CTSeries, volume: Volume, form: str, frames: str
) -> None:
    made = results_of(series, volume, form, frames)

    prior = read_prior(received(made.sr), received(made.seg))

    findings = made.reading.findings
    assert [nodule.tracking_uid for nodule in prior.nodules] == list(made.tracking_uids)
    for nodule, finding, measured in zip(prior.nodules, findings, made.measurements, strict=True):
        assert nodule.center_mm == pytest.approx(finding.center_mm, abs=1e-3)
        assert nodule.volume_mm3 == pytest.approx(measured.volume_mm3, abs=1e-3)
        assert nodule.volume_error_mm3 == pytest.approx(measured.volume_error_mm3, rel=1e-6)
        assert nodule.long_axis_mm == pytest.approx(measured.long_axis_mm, abs=1e-3)
        assert nodule.short_axis_mm == pytest.approx(measured.short_axis_mm, abs=1e-3)


def test_the_exam_is_that_of_the_images(series: CTSeries, found: Results) -> None:
    prior = read_prior(*copies(found), series.header)

    assert (prior.study_uid, prior.series_uid) == (series.study_uid, series.series_uid)
    assert prior.report_sop_instance_uid == found.sr.SOPInstanceUID
    assert prior.report_series_uid == found.sr.SeriesInstanceUID
    assert prior.acquired_at == datetime(2026, 1, 2, 10, 11, 12)


def test_a_prone_patient_and_wide_slices_keep_their_nodules_in_place(tmp_path: Path) -> None:
    prone = read_series(make_ct_series(tmp_path, orientation=PRONE, spacing_mm=(2.4, 0.9, 0.6)))
    made = results_of(prone, to_volume(prone))

    prior = read_prior(*copies(made))

    for nodule, finding in zip(prior.nodules, made.reading.findings, strict=True):
        assert nodule.center_mm == pytest.approx(finding.center_mm, abs=1e-3)


def test_a_report_of_version_0_1_is_read() -> None:
    prior = read_prior(pydicom.dcmread(OLD / "sr.dcm"), pydicom.dcmread(OLD / "seg.dcm"))

    assert [nodule.tracking_identifier for nodule in prior.nodules] == ["Nodule 1", "Nodule 2"]
    assert [nodule.volume_mm3 for nodule in prior.nodules] == pytest.approx([268.0, 904.8], rel=0.02)


def test_a_segmentation_that_an_archive_compressed_is_read(series: CTSeries, volume: Volume) -> None:
    made = results_of(series, volume, "fractional")
    compressed = received(made.seg)
    compressed.compress(RLELossless, generate_instance_uid=False)

    assert read_prior(received(made.sr), compressed) == read_prior(received(made.sr), received(made.seg))


def test_a_report_of_no_nodule_needs_no_segmentation(series: CTSeries, volume: Volume) -> None:
    made = build_results(series, volume, detection_of(), **JOB)

    assert read_prior(received(made.sr), None).nodules == ()


def test_what_others_made_is_told_by_its_header(series: CTSeries, found: Results) -> None:
    assert is_ours(found.sr)
    assert found.seg is not None
    assert is_ours(found.seg)
    assert not is_ours(series.header)


def _foreign(report: Dataset, seg: Dataset) -> None:
    report.ManufacturerModelName = "another"


def _other_volume(report: Dataset, seg: Dataset) -> None:
    item_of(report, codes.SCT.Volume.value).MeasuredValueSequence[0].NumericValue = "300"


def _volume_that_is_none(report: Dataset, seg: Dataset) -> None:
    measured = item_of(report, codes.SCT.Volume.value).MeasuredValueSequence[0]
    measured["NumericValue"].value = "-1"


def _other_unit(report: Dataset, seg: Dataset) -> None:
    units = item_of(report, codes.SCT.LongAxis.value).MeasuredValueSequence[0].MeasurementUnitsCodeSequence
    units[0].CodeValue = "cm"


def _other_tracking(report: Dataset, seg: Dataset) -> None:
    seg.SegmentSequence[0].TrackingUID, seg.SegmentSequence[1].TrackingUID = (
        seg.SegmentSequence[1].TrackingUID,
        seg.SegmentSequence[0].TrackingUID,
    )


def _name_that_is_no_name_of_ours(report: Dataset, seg: Dataset) -> None:
    item_of(report, codes.DCM.TrackingIdentifier.value).TextValue = "Doe^John"


def _other_segmentation(report: Dataset, seg: Dataset) -> None:
    seg.SOPInstanceUID = "1.2.3"


def _segment_missing(report: Dataset, seg: Dataset) -> None:
    del group_of(report).ContentSequence[:]


def _fewer_pixels(report: Dataset, seg: Dataset) -> None:
    seg.PixelData = seg.PixelData[:8]


def _huge_frames(report: Dataset, seg: Dataset) -> None:
    seg.Rows = seg.Columns = 65535
    seg.NumberOfFrames = 2**31 - 1


def _no_geometry(report: Dataset, seg: Dataset) -> None:
    del seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence


def _frame_beside_the_grid(report: Dataset, seg: Dataset) -> None:
    position = seg.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0]
    position.ImagePositionPatient = [float(v) + 0.3 for v in position.ImagePositionPatient]


def _two_series(report: Dataset, seg: Dataset) -> None:
    items = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    other = deepcopy(items[0])
    other.SeriesInstanceUID = "1.2.3"
    items.append(other)


def _no_date(report: Dataset, seg: Dataset) -> None:
    report.StudyDate = ""


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_foreign, "not made by this software"),
        (_other_volume, r"300\.000 mm3 in the report, .* mm3 in its segment"),
        (_volume_that_is_none, "Volume is -1"),
        (_other_unit, "Long axis is not in mm"),
        (_other_tracking, "Tracking UIDs of report and segmentation differ"),
        (_name_that_is_no_name_of_ours, "none of ours"),
        (_other_segmentation, "not the one that the report refers to"),
        (_segment_missing, "disagree"),
        (_fewer_pixels, "fewer pixels"),
        (_huge_frames, "unknown form or size"),
        (_no_geometry, "can't be read: AttributeError"),
        (_frame_beside_the_grid, "do not lie on one grid"),
        (_two_series, "about 2 CT series"),
        (_no_date, "no date"),
    ],
)
def test_what_cannot_be_trusted_is_refused_with_its_reason(
    found: Results, spoil: Callable[[Dataset, Dataset], None], why: str
) -> None:
    report, seg = copies(found)
    spoil(report, seg)

    with pytest.raises(PriorUnusable, match=why) as raised:
        read_prior(report, seg)
    assert "Doe" not in str(raised.value)


def test_items_nested_thousands_deep_are_no_way_to_stop_the_reader(found: Results) -> None:
    report, seg = copies(found)
    inner = report.ContentSequence[-1]
    for _ in range(3000):
        child = Dataset()
        child.ValueType = "CONTAINER"
        inner.ContentSequence = [*inner.get("ContentSequence", ()), child]
        inner = child

    assert read_prior(report, seg) == read_prior(*copies(found))


def test_a_report_with_nodules_is_useless_without_its_segmentation(found: Results) -> None:
    with pytest.raises(PriorUnusable, match="its segmentation is not there"):
        read_prior(received(found.sr), None)


def test_a_report_on_a_series_that_was_not_analysed_is_no_statement(series: CTSeries) -> None:
    instances = [(str(image.header.SOPClassUID), image.sop_instance_uid) for image in series.images]
    rejected = SeriesRejected(Reason.SLICE_GAP, "gap of 5.00 mm after slice 12 of 44, elsewhere 2.50 mm")

    with pytest.raises(PriorUnusable, match="not analysed"):
        read_prior(received(build_rejection(series.header, instances, rejected, **JOB)), None)


def test_images_of_another_series_say_nothing_of_this_one(series: CTSeries, found: Results) -> None:
    other = deepcopy(series.header)
    other.SeriesInstanceUID = "1.2.3"

    with pytest.raises(PriorUnusable, match="none of the earlier report's series"):
        read_prior(*copies(found), other)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"AcquisitionDateTime": "20200304101112.5+0100", "StudyDate": "20200301"}, datetime(2020, 3, 4, 10, 11, 12)),
        ({"AcquisitionDate": "20200304", "AcquisitionTime": "101112.123"}, datetime(2020, 3, 4, 10, 11, 12)),
        ({"AcquisitionDate": "", "SeriesDate": "20200304", "StudyTime": "08"}, datetime(2020, 3, 4, 12)),
        ({"StudyDate": "20200304", "StudyTime": "0815"}, datetime(2020, 3, 4, 8, 15)),
        ({"AcquisitionDate": "20201399", "StudyDate": "20200304"}, datetime(2020, 3, 4, 12)),
        ({"StudyDate": "20200304", "StudyTime": "235960"}, datetime(2020, 3, 4, 12)),
        ({"ContentDate": "20200304"}, None),
    ],
)  # fmt: skip
def test_the_first_usable_date_counts_with_its_own_time(attributes: dict[str, str], expected: datetime | None) -> None:
    header = Dataset()
    for keyword, value in attributes.items():
        setattr(header, keyword, value)

    assert acquired_at(header) == expected


def test_segments_are_where_their_frames_say_in_any_order(found: Results) -> None:
    report, seg = copies(found)
    frames = int(seg.NumberOfFrames)
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")[: frames * 64 * 64]
    seg.PixelData = np.packbits(bits.reshape(frames, -1)[::-1], bitorder="little").tobytes()
    seg.PerFrameFunctionalGroupsSequence = list(seg.PerFrameFunctionalGroupsSequence)[::-1]

    for turned, straight in zip(
        read_prior(report, seg).nodules, read_prior(*copies(found)).nodules, strict=True
    ):  # fmt: skip
        assert turned.center_mm == pytest.approx(straight.center_mm, abs=1e-6)
        assert turned.volume_error_mm3 == pytest.approx(straight.volume_error_mm3)
