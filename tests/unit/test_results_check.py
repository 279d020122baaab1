"""The self-check sees each way in which SEG and SR could disagree with each other or with their source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy

import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicom_node.domain import CTSeries
from dicom_node.errors import ResultError
from dicom_node.results import build_results
from dicom_node.results.check import check_results
from dicom_node.series import read_series, to_volume
from tests.fakes.ct import make_ct_series
from tests.fakes.findings import JOB, ball, detection_of


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset, CTSeries]:
    series = read_series(make_ct_series(tmp_path_factory.mktemp("ct")))
    volume = to_volume(series)
    findings = (ball(volume, (10, 20, 20), 4.0), ball(volume, (30, 40, 45), 6.0))
    results = build_results(series, volume, detection_of(*findings), **JOB)
    assert results.seg is not None
    return results.seg, results.sr, series


def items(ds: Dataset) -> Iterator[Dataset]:
    for item in ds.get("ContentSequence", ()):
        yield item
        yield from items(item)


def named(sr: Dataset, meaning: str) -> list[Dataset]:
    return [item for item in items(sr) if item.ConceptNameCodeSequence[0].CodeMeaning == meaning]


def empty_second_segment(seg: Dataset, sr: Dataset) -> None:
    size = seg.Rows * seg.Columns // 8
    pixels = bytearray(seg.PixelData)
    for number, frame in enumerate(seg.PerFrameFunctionalGroupsSequence):
        if frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 2:
            pixels[number * size : (number + 1) * size] = bytes(size)
    seg.PixelData = bytes(pixels)


def lose_one_voxel(seg: Dataset, sr: Dataset) -> None:
    pixels = np.frombuffer(seg.PixelData, np.uint8).copy()
    at = int(np.flatnonzero(pixels)[0])
    pixels[at] &= pixels[at] - 1
    seg.PixelData = pixels.tobytes()


def state_another_volume(seg: Dataset, sr: Dataset) -> None:
    named(sr, "Volume")[0].MeasuredValueSequence[0].NumericValue = "1.0"


def state_no_volume(seg: Dataset, sr: Dataset) -> None:
    named(sr, "Volume")[0].ConceptNameCodeSequence[0].CodeValue = "0"


def track_by_another_uid(seg: Dataset, sr: Dataset) -> None:
    named(sr, "Tracking Unique Identifier")[0].UID = "1.2.3"


def share_one_tracking_uid(seg: Dataset, sr: Dataset) -> None:
    seg.SegmentSequence[1].TrackingUID = seg.SegmentSequence[0].TrackingUID


def drop_the_outline(seg: Dataset, sr: Dataset) -> None:
    (measurements,) = named(sr, "Imaging Measurements")
    del measurements.ContentSequence[1]


def refer_elsewhere_in_the_report(seg: Dataset, sr: Dataset) -> None:
    named(sr, "Image Region")[0].ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def refer_elsewhere_in_the_segmentation(seg: Dataset, sr: Dataset) -> None:
    frame = seg.PerFrameFunctionalGroupsSequence[3]
    frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def belong_to_another_study(seg: Dataset, sr: Dataset) -> None:
    sr.StudyInstanceUID = "1.2.3"


def share_one_instance_uid(seg: Dataset, sr: Dataset) -> None:
    sr.SOPInstanceUID = seg.SOPInstanceUID


def join_the_source_series(seg: Dataset, sr: Dataset) -> None:
    sr.SeriesInstanceUID = seg.ReferencedSeriesSequence[0].SeriesInstanceUID


def look_diagnostic_in_the_list(seg: Dataset, sr: Dataset) -> None:
    seg.SeriesDescription = "Lung nodules"


def look_diagnostic_in_the_text(seg: Dataset, sr: Dataset) -> None:
    named(sr, "Comment")[0].TextValue = "none"


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (empty_second_segment, "segment 2 is empty"),
        (lose_one_voxel, "volume .* of segment 1"),
        (state_another_volume, "volume .* of segment 1"),
        (state_no_volume, "volume .* of segment 1"),
        (track_by_another_uid, "Tracking UIDs are not those"),
        (share_one_tracking_uid, "two segments have one Tracking UID"),
        (drop_the_outline, "no outline"),
        (refer_elsewhere_in_the_report, "SR: refers to 1 unknown"),
        (refer_elsewhere_in_the_segmentation, "SEG: refers to 1 unknown"),
        (belong_to_another_study, "another study"),
        (share_one_instance_uid, "SOPInstanceUID .* is taken"),
        (join_the_source_series, "SeriesInstanceUID .* is taken"),
        (look_diagnostic_in_the_list, "SeriesDescription lacks"),
        (look_diagnostic_in_the_text, "content lacks"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_unsound_results_do_not_leave(
    sound: tuple[Dataset, Dataset, CTSeries], spoil: Callable[[Dataset, Dataset], None], complaint: str
) -> None:
    seg, sr, series = deepcopy(sound[0]), deepcopy(sound[1]), sound[2]
    check_results(seg, sr, series)

    spoil(seg, sr)

    with pytest.raises(ResultError, match=complaint):
        check_results(seg, sr, series)


def test_groups_without_a_segmentation_do_not_leave(sound: tuple[Dataset, Dataset, CTSeries]) -> None:
    _, sr, series = sound
    report = deepcopy(sr)
    for item in named(report, "Referenced Segment"):
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = series.sop_instance_uids[0]
    for study in report.CurrentRequestedProcedureEvidenceSequence:
        del study.ReferencedSeriesSequence[1]

    with pytest.raises(ResultError, match="4 measurement groups, but there is no SEG"):
        check_results(None, report, series)
