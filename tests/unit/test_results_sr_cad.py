"""The Chest CAD SR as a workstation reads it: templates to the row, marks on the nodules, success and failure."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ChestCADSRStorage

from dicom_node.domain import CTSeries, Volume
from dicom_node.errors import Reason, SeriesRejected
from dicom_node.results import to_bytes
from dicom_node.results.build import read
from dicom_node.results.reading import Predecessor, Reading, Refusal
from dicom_node.results.references import references_of
from dicom_node.results.sr_cad import build_cad_not_analysed, build_cad_report
from dicom_node.series import read_series, to_volume
from tests.fakes.ct import make_ct_series
from tests.fakes.enhanced import make_enhanced_ct
from tests.fakes.findings import JOB, ball, detection_of
from tests.templates import TID_4100, breaches

REJECTED = SeriesRejected(Reason.SLICE_GAP, "gap of 5.00 mm after slice 12 of 44, elsewhere 2.50 mm")


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> CTSeries:
    return read_series(make_ct_series(tmp_path_factory.mktemp("ct")))


@pytest.fixture(scope="module")
def volume(series: CTSeries) -> Volume:
    return to_volume(series)


def reading_of(series: CTSeries, volume: Volume, count: int = 2, **job: Any) -> Reading:
    findings = (ball(volume, (10, 20, 20), 4.0), ball(volume, (30, 40, 45), 6.0, score=0.7, side=None))
    return read(series, volume, detection_of(*findings[:count]), **{**JOB, **job})


@pytest.fixture(scope="module")
def reading(series: CTSeries, volume: Volume) -> Reading:
    return reading_of(series, volume)


@pytest.fixture(scope="module")
def report(reading: Reading) -> Dataset:
    return reread(build_cad_report(reading))


def refusal_of(reading: Reading, **origin: Any) -> Refusal:
    return Refusal(
        rejected=REJECTED,
        instances=tuple(references_of(reading.series)),
        origin=replace(reading.origin, **origin),
        grounds=reading.grounds,
    )


def reread(ds: Dataset) -> Dataset:
    """As a receiver sees it."""
    return pydicom.dcmread(BytesIO(to_bytes(ds)))


def items(ds: Dataset) -> Iterator[Dataset]:
    for item in ds.get("ContentSequence", ()):
        yield item
        yield from items(item)


def named(ds: Dataset, name: str) -> list[Dataset]:
    return [i for i in items(ds) if "ConceptNameCodeSequence" in i and i.ConceptNameCodeSequence[0].CodeMeaning == name]


def value(ds: Dataset, name: str) -> str:
    (item,) = named(ds, name)
    return str(item.ConceptCodeSequence[0].CodeMeaning)


def test_every_kind_follows_the_templates_to_the_row(series: CTSeries, volume: Volume, reading: Reading) -> None:
    refusal = refusal_of(reading)
    for ds in (
        build_cad_report(reading),
        build_cad_report(reading_of(series, volume, 0)),
        build_cad_not_analysed(refusal),
        build_cad_not_analysed(refusal_of(reading, model=None)),
    ):
        assert list(breaches(ds, TID_4100)) == []
        assert ds.ContentTemplateSequence[0].TemplateIdentifier == "4100"
        assert ds.SOPClassUID == ChestCADSRStorage


def test_templates_are_really_looked_at(report: Dataset) -> None:
    spoiled = deepcopy(report)
    (finding, *_) = named(spoiled, "Single Image Finding")
    del finding.ContentSequence[1]  # Rendering Intent

    assert list(breaches(spoiled, TID_4100)) == ["root/111017/111059: CODE 111056 is missing"]


def test_overall_impression_says_with_or_without_findings(
    series: CTSeries, volume: Volume, report: Dataset, reading: Reading
) -> None:
    none = build_cad_report(reading_of(series, volume, 0))

    assert value(report, "CAD Processing and Findings Summary") == "All algorithms succeeded; with findings"
    assert value(none, "CAD Processing and Findings Summary") == "All algorithms succeeded; without findings"
    for ds in (report, none):
        assert value(ds, "Summary of Detections") == "Succeeded"
        assert value(ds, "Detection Performed") == "Nodule"
        assert value(ds, "Summary of Analyses") == "Not Attempted"
        (looked_at,) = named(ds, "Series Instance UID")
        assert series.series_uid == looked_at.UID


def test_a_finding_is_a_nodule_to_be_shown_with_the_names_it_has_elsewhere(report: Dataset, reading: Reading) -> None:
    findings = named(report, "Single Image Finding")

    assert [value(f, "Single Image Finding Modifier") for f in findings] == ["Nodule", "Nodule"]
    assert {value(f, "Rendering Intent")[:21] for f in findings} == {"Presentation Required"}
    names = [(named(f, "Tracking Identifier")[0].TextValue, named(f, "Tracking Unique Identifier")[0].UID)
             for f in findings]  # fmt: skip
    assert names == [(tracking.identifier, tracking.uid) for tracking in reading.tracking]


def test_numbers_are_those_measured(report: Dataset, reading: Reading) -> None:
    for finding, measured, said in zip(
        reading.findings, reading.measurements, named(report, "Single Image Finding"), strict=True
    ):
        numbers = {
            str(i.ConceptNameCodeSequence[0].CodeMeaning): float(i.MeasuredValueSequence[0].NumericValue)
            for i in items(said)
            if i.ValueType == "NUM"
        }
        assert numbers == {
            "Certainty of Finding": pytest.approx(100 * finding.score),
            "Long axis": pytest.approx(measured.long_axis_mm, abs=1e-3),
            "Short axis": pytest.approx(measured.short_axis_mm, abs=1e-3),
            "Volume": pytest.approx(measured.volume_mm3, abs=1e-3),
            "Mean Attenuation Coefficient": pytest.approx(measured.mean_hu, abs=1e-3),
            "Standard Deviation of Attenuation Coefficient": pytest.approx(measured.sd_hu, abs=1e-3),
            "Median Attenuation Coefficient": pytest.approx(measured.percentiles_hu[50], abs=1e-3),
        }


def test_marks_lie_on_the_nodule_in_its_largest_slice(report: Dataset, reading: Reading, series: CTSeries) -> None:
    for (row, column), said, measured in zip(
        ((20, 20), (40, 45)), named(report, "Single Image Finding"), reading.measurements, strict=True
    ):
        (center,), (outline,) = named(said, "Center"), named(said, "Outline")
        # PS3.3 C.18.6.1.2: the centre of the top left pixel is at (0.5, 0.5).
        assert list(center.GraphicData) == [column + 0.5, row + 0.5]
        np.testing.assert_array_equal(np.reshape(outline.GraphicData, (-1, 2)), measured.contours[0])
        for mark in (center, outline, *named(said, "Path")):
            image = mark.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
            assert image == series.sop_instance_uids[measured.slice_index]


def test_side_is_said_where_it_is_known(report: Dataset) -> None:
    first, second = named(report, "Single Image Finding")

    assert value(first, "Laterality") == "Left"
    assert named(second, "Laterality") == []


def test_algorithm_is_named_with_what_it_is_not_for(report: Dataset) -> None:
    assert {i.TextValue for i in named(report, "Algorithm Name")} == {"nodules. Research use, not for diagnosis"}
    assert {i.TextValue for i in named(report, "Algorithm Version")} == {"1.2.3"}
    assert f"bundle_sha256={'5e' * 32}" in {i.TextValue for i in named(report, "Algorithm Parameters")}


def test_failed_is_not_the_same_as_not_attempted(reading: Reading) -> None:
    refused_by_the_model = build_cad_not_analysed(refusal_of(reading))
    refused_before = build_cad_not_analysed(refusal_of(reading, model=None))

    assert value(refused_by_the_model, "Summary of Detections") == "Failed"
    assert named(refused_by_the_model, "Failed Detections")
    assert value(refused_before, "Summary of Detections") == "Not Attempted"
    for ds in (refused_by_the_model, refused_before):
        assert value(ds, "CAD Processing and Findings Summary") == "No algorithms succeeded; without findings"
        assert ds.CompletionFlag == "PARTIAL"
        assert ds.CompletionFlagDescription == "Not analysed: SLICE_GAP. Research use, not for diagnosis"
        assert "NOT ANALYSED" in ds.SeriesDescription


def test_frames_of_multi_frame_images_are_named(tmp_path: Path) -> None:
    series = read_series(make_enhanced_ct(make_ct_series(tmp_path / "ct"), tmp_path / "enhanced"))
    reading = reading_of(series, to_volume(series), 1)
    (measured,) = reading.measurements
    frame = series.images[measured.slice_index].frame

    report = reread(build_cad_report(reading))

    images = [i for i in items(report) if i.ValueType == "IMAGE"]
    assert {i.ReferencedSOPSequence[0].ReferencedFrameNumber for i in images} == {frame}
    assert list(breaches(report, TID_4100)) == []


def test_single_voxel_is_marked_without_an_axis_of_no_length(series: CTSeries, volume: Volume) -> None:
    reading = read(series, volume, detection_of(ball(volume, (20, 30, 30), 0.3)), **JOB)
    assert reading.measurements[0].voxels == 1

    report = build_cad_report(reading)

    assert list(breaches(report, TID_4100)) == []
    (outline,) = named(report, "Outline")
    assert len(outline.GraphicData) // 2 > 5


def test_a_revision_names_the_cad_report_that_it_replaces(series: CTSeries, volume: Volume) -> None:
    old = Predecessor(study_uid=series.study_uid, series_uid="1.2.8", sop_instance_uid="1.2.9")

    new = build_cad_report(reading_of(series, volume, predecessor=old))

    (replaced,) = new.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert (replaced.ReferencedSOPClassUID, replaced.ReferencedSOPInstanceUID) == (ChestCADSRStorage, "1.2.9")


def test_an_incomplete_series_makes_a_partial_report(series: CTSeries, volume: Volume) -> None:
    report = build_cad_report(reading_of(series, volume, complete=False))

    assert (report.CompletionFlag, report.VerificationFlag) == ("PARTIAL", "UNVERIFIED")
