"""The reports as a reader sees them: groups, references, and statements in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from dicom_node.domain import CTSeries, Volume
from dicom_node.errors import Reason, SeriesRejected
from dicom_node.results import Predecessor, Results, build_rejection, build_results, finding_rows, to_bytes
from dicom_node.series import read_series, to_volume
from tests.fakes.ct import make_ct_series
from tests.fakes.findings import JOB, ball, detection_of

REJECTED = SeriesRejected(Reason.SLICE_GAP, "gap of 5.00 mm after slice 12 of 44, elsewhere 2.50 mm")


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> CTSeries:
    return read_series(make_ct_series(tmp_path_factory.mktemp("ct")))


@pytest.fixture(scope="module")
def volume(series: CTSeries) -> Volume:
    return to_volume(series)


@pytest.fixture(scope="module")
def found(series: CTSeries, volume: Volume) -> Results:
    findings = (ball(volume, (10, 20, 20), 4.0), ball(volume, (30, 40, 45), 6.0, score=0.7, side="right"))
    return build_results(series, volume, detection_of(*findings), **JOB)


@pytest.fixture(scope="module")
def none_found(series: CTSeries, volume: Volume) -> Results:
    return build_results(series, volume, detection_of(), **JOB)


def rejection(series: CTSeries, **job: Any) -> Dataset:
    instances = [(str(image.header.SOPClassUID), image.sop_instance_uid) for image in series.images]
    return build_rejection(series.header, instances, REJECTED, **{**JOB, **job})


def report_of(ds: Dataset) -> hd.sr.Comprehensive3DSR:
    """As a reader gets it from the file."""
    return hd.sr.Comprehensive3DSR.from_dataset(pydicom.dcmread(BytesIO(to_bytes(ds))))


def items(ds: Dataset) -> Iterator[Dataset]:
    for item in ds.get("ContentSequence", ()):
        yield item
        yield from items(item)


def texts(ds: Dataset) -> dict[str, str]:
    """Meaning of the concept -> text, of the statements in plain words."""
    (statements,) = (item for item in ds.ContentSequence if name(item) == "Qualitative Evaluations")
    return {
        name(item): item.TextValue if item.ValueType == "TEXT" else item.ConceptCodeSequence[0].CodeMeaning
        for item in statements.ContentSequence
    }


def name(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning)


def test_numbers_of_a_finding_are_those_measured(found: Results) -> None:
    content = report_of(found.sr).content

    for number, measured in enumerate(found.measurements):
        uid = found.tracking_uids[number]
        (group,) = content.get_volumetric_roi_measurement_groups(tracking_uid=uid)
        assert group.tracking_identifier == f"Nodule {number + 1}"
        assert group.finding_type == codes.SCT.Nodule
        values = [(m.name.meaning, float(m.value), m.unit.value) for m in group.get_measurements()]
        assert values == [
            ("Volume", pytest.approx(measured.volume_mm3, abs=1e-3), "mm3"),
            ("Long axis", pytest.approx(measured.long_axis_mm, abs=1e-3), "mm"),
            ("Short axis", pytest.approx(measured.short_axis_mm, abs=1e-3), "mm"),
            ("Attenuation Coefficient", pytest.approx(measured.mean_hu, abs=1e-3), "[hnsf'U]"),
            ("Attenuation Coefficient", pytest.approx(measured.sd_hu, abs=1e-3), "[hnsf'U]"),
            ("Detection score", (0.9, 0.7)[number], "1"),
        ]


def test_side_is_the_laterality_of_the_finding_site(found: Results) -> None:
    groups = report_of(found.sr).content.get_volumetric_roi_measurement_groups()

    sites = [group.finding_sites[0] for group in groups]
    assert [(site.value.meaning, site.laterality.meaning) for site in sites] == [("Lung", "Left"), ("Lung", "Right")]


def test_every_measurement_names_its_algorithm(found: Results) -> None:
    numbers = [item for item in items(found.sr) if item.ValueType == "NUM" and item.RelationshipType == "CONTAINS"]

    assert len(numbers) == 2 * (6 + 2)
    for number in numbers:
        said = [item.TextValue for item in number.ContentSequence if item.ValueType == "TEXT"]
        assert said == [
            "nodules", "1.2.3", f"bundle_sha256={'5e' * 32}", "operating_point=0.5, link_iou=0.3, min_diameter_mm=3.0"
        ]  # fmt: skip


def test_volumetric_group_points_at_its_segment(found: Results, series: CTSeries) -> None:
    assert found.seg is not None
    groups = report_of(found.sr).content.get_volumetric_roi_measurement_groups()

    for number, group in enumerate(groups, start=1):
        segment, source_series = group.referenced_segment
        (reference,) = segment.ReferencedSOPSequence
        assert reference.ReferencedSOPInstanceUID == found.seg.SOPInstanceUID
        assert reference.ReferencedSegmentNumber == number
        assert series.series_uid == source_series.UID


def test_planar_group_outlines_the_finding_on_its_largest_slice(found: Results, series: CTSeries) -> None:
    content = report_of(found.sr).content

    for uid, measured in zip(found.tracking_uids, found.measurements, strict=True):
        (group,) = content.get_planar_roi_measurement_groups(tracking_uid=uid)
        assert group.roi.graphic_type == hd.sr.GraphicTypeValues.POLYLINE
        np.testing.assert_array_equal(group.roi.value, measured.contours[0])
        np.testing.assert_array_equal(group.roi.value[0], group.roi.value[-1])
        image = group.roi.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        assert image == series.sop_instance_uids[measured.slice_index]
        assert [m.name.meaning for m in group.get_measurements()] == ["Long axis", "Short axis"]


def test_image_library_lists_the_images_referred_to_and_no_other(found: Results, series: CTSeries) -> None:
    (library,) = (item for item in found.sr.ContentSequence if name(item) == "Image Library")

    listed = [i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in items(library) if i.ValueType == "IMAGE"]
    assert listed == [series.sop_instance_uids[m.slice_index] for m in found.measurements]


def evidence(ds: Dataset) -> set[str]:
    (study,) = ds.CurrentRequestedProcedureEvidenceSequence
    return {
        str(instance.ReferencedSOPInstanceUID)
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }


def test_evidence_is_the_whole_series_and_the_segmentation(
    found: Results, none_found: Results, series: CTSeries
) -> None:
    assert found.seg is not None
    images = set(series.sop_instance_uids)

    assert evidence(found.sr) == images | {found.seg.SOPInstanceUID}
    assert evidence(none_found.sr) == images
    assert evidence(rejection(series)) == images


def test_report_of_findings_says_what_it_rests_on(found: Results) -> None:
    assert texts(found.sr) == {
        "Conclusion": "2 lung nodule candidates marked (score at or above 0.5).",
        "CAD Processing and Findings Summary": "All algorithms succeeded; with findings",
        "Comment": "Research use, not for diagnosis. Made by software, verified by nobody.",
        "Series completeness": "44 of 44 instances, contiguous; quiet time 10 s",
        "Slices analysed": "40 of 44: slices 3 to 42 counted from the feet, z -105.5 to -8.0 mm. "
        "Not analysed: 2 below and 2 above, outside the lungs and their margin.",
        "Model": f"nodules 1.2.3, bundle sha256 {'5e' * 32}, operating_point=0.5, link_iou=0.3, min_diameter_mm=3.0",
    }


def test_none_found_cannot_be_taken_for_not_analysed(none_found: Results, series: CTSeries) -> None:
    none, rejected = texts(none_found.sr), texts(rejection(series))

    assert none["Conclusion"].startswith("The series was analysed and no lung nodule candidate was found")
    assert none["CAD Processing and Findings Summary"] == "All algorithms succeeded; without findings"
    assert "none found" in none_found.sr.SeriesDescription
    assert rejected["Conclusion"].startswith("NOT ANALYSED. No statement about lung nodules is made.")
    assert rejected["CAD Processing and Findings Summary"].startswith("No algorithms succeeded")
    assert "NOT ANALYSED" in rejection(series).SeriesDescription
    for ds in (none_found.sr, rejection(series)):
        assert not any(name(item) in ("Imaging Measurements", "Measurement Group") for item in items(ds))


def test_rejection_gives_the_reason_code_and_its_text(series: CTSeries) -> None:
    assert texts(rejection(series))["Reason for no analysis"] == f"SLICE_GAP: {REJECTED.text}"


def test_rejection_needs_nothing_but_uids() -> None:
    header = Dataset()
    header.StudyInstanceUID, header.SeriesInstanceUID = "1.2.3", "1.2.4"
    instances = [("1.2.840.10008.5.1.4.1.1.7", "1.2.5"), ("1.2.840.10008.5.1.4.1.1.7", "1.2.6")]

    report = build_rejection(header, instances, SeriesRejected(Reason.NOT_CT, "no CT image"), **JOB)

    assert evidence(report) == {"1.2.5", "1.2.6"}
    assert report_of(report).StudyInstanceUID == "1.2.3"


@pytest.mark.parametrize("complete", [True, False])
def test_incomplete_series_makes_a_partial_report(series: CTSeries, volume: Volume, complete: bool) -> None:
    findings = (ball(volume, (20, 30, 30), 4.0),)
    for detection in (detection_of(), detection_of(*findings)):
        sr = build_results(series, volume, detection, **JOB, complete=complete).sr
        assert sr.CompletionFlag == ("COMPLETE" if complete else "PARTIAL")
        assert sr.VerificationFlag == "UNVERIFIED"


def test_rejection_is_never_a_complete_report(series: CTSeries) -> None:
    assert rejection(series).CompletionFlag == "PARTIAL"


def test_revision_names_the_report_that_it_replaces(series: CTSeries, volume: Volume) -> None:
    old = Predecessor(study_uid=series.study_uid, series_uid="1.2.8", sop_instance_uid="1.2.9")

    new = build_results(series, volume, detection_of(), **JOB, predecessor=old).sr

    (study,) = new.PredecessorDocumentsSequence
    assert study.StudyInstanceUID == series.study_uid
    assert study.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.8"
    assert study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.9"
    assert texts(new)["Replaces report"] == "1.2.9"


def test_instances_left_out_are_counted_by_reason(series: CTSeries, volume: Volume) -> None:
    odd = replace(series, left_out={"1.2.3": "localizer", "1.2.4": "localizer", "1.2.5": "no CT image"})

    said = texts(build_results(odd, volume, detection_of(), **JOB).sr)

    assert said["Instances left out"] == "3 not part of the volume: 2 x localizer, 1 x no CT image"


def test_rows_for_programs_hold_the_same_numbers(found: Results, volume: Volume) -> None:
    findings = (ball(volume, (10, 20, 20), 4.0), ball(volume, (30, 40, 45), 6.0, score=0.7, side="right"))

    rows = finding_rows(findings, found.measurements, found.tracking_uids)

    assert [row["number"] for row in rows] == [1, 2]
    assert rows[1] == {
        "number": 2,
        "tracking_uid": found.tracking_uids[1],
        "center_mm": pytest.approx([volume.to_mm((30, 40, 45))[axis] for axis in range(3)], abs=1e-3),
        "volume_mm3": pytest.approx(found.measurements[1].volume_mm3, abs=1e-3),
        "long_axis_mm": pytest.approx(found.measurements[1].long_axis_mm, abs=1e-3),
        "short_axis_mm": pytest.approx(found.measurements[1].short_axis_mm, abs=1e-3),
        "mean_hu": pytest.approx(found.measurements[1].mean_hu, abs=1e-3),
        "side": "right",
        "score": 0.7,
    }
