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

from dicom_node.comparison import Comparison, DoublingTime, NoduleChange
from dicom_node.domain import CTSeries, Volume
from dicom_node.errors import Reason, SeriesRejected
from dicom_node.results import (
    Predecessor,
    Results,
    build_rejection,
    build_results,
    finding_rows,
    nodule_type,
    to_bytes,
)
from dicom_node.results.build import read
from dicom_node.results.narrative import finding_text
from dicom_node.results.seg import build_seg
from dicom_node.results.sr import build_report
from dicom_node.results.sr_codes import NODULE_TYPE, TEXTURE, UNDETERMINED
from dicom_node.series import read_series, to_volume
from tests.fakes.comparisons import EARLIER, EXAM, GONE, GROWN, NEW, NO_PRIOR, compared
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
        if item.RelationshipType == "CONTAINS"
    }


def name(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning)


def named(ds: Dataset, meaning: str) -> list[Dataset]:
    return [item for item in items(ds) if name(item) == meaning]


def test_numbers_of_a_finding_are_those_measured(found: Results) -> None:
    content = report_of(found.sr).content

    for number, measured in enumerate(found.measurements):
        uid = found.tracking_uids[number]
        (group,) = content.get_volumetric_roi_measurement_groups(tracking_uid=uid)
        assert group.tracking_identifier == f"Nodule {number + 1}"
        assert group.finding_type == codes.SCT.Nodule
        assert numbers_of(group) == [
            ("Volume", "", near(measured.volume_mm3), "mm3"),
            ("Long axis", "", near(measured.long_axis_mm), "mm"),
            ("Short axis", "", near(measured.short_axis_mm), "mm"),
            ("Diameter", "Mean", measured.mean_diameter_mm, "mm"),
            ("Attenuation Coefficient", "Mean", near(measured.mean_hu), "[hnsf'U]"),
            ("Standard deviation of the volume", "", near(measured.volume_error_mm3), "mm3"),
            ("Attenuation Coefficient", "Standard Deviation", near(measured.sd_hu), "[hnsf'U]"),
            ("Attenuation Coefficient", "5th percentile", near(measured.percentiles_hu[5]), "[hnsf'U]"),
            ("Attenuation Coefficient", "25th percentile", near(measured.percentiles_hu[25]), "[hnsf'U]"),
            ("Attenuation Coefficient", "Median", near(measured.percentiles_hu[50]), "[hnsf'U]"),
            ("Attenuation Coefficient", "75th percentile", near(measured.percentiles_hu[75]), "[hnsf'U]"),
            ("Attenuation Coefficient", "95th percentile", near(measured.percentiles_hu[95]), "[hnsf'U]"),
            ("Diameter", "", near(measured.equivalent_diameter_mm), "mm"),
            ("Detection score", "", (0.9, 0.7)[number], "1"),
        ]


def near(value: float) -> Any:
    return pytest.approx(value, abs=1e-3)


def numbers_of(group: Any) -> list[tuple[str, str, float, str]]:
    """Name, derivation, value and unit of a group's measurements, as highdicom reads them."""
    return [
        (m.name.meaning, m.derivation.meaning if m.derivation else "", float(m.value), m.unit.value)
        for m in group.get_measurements()
    ]


def test_a_score_stands_with_the_threshold_that_it_passed(found: Results) -> None:
    for score in named(found.sr, "Detection score"):
        (threshold,) = score.ContentSequence
        assert (name(threshold), threshold.RelationshipType) == ("Operating point", "INFERRED FROM")
        assert float(threshold.MeasuredValueSequence[0].NumericValue) == 0.5


def test_each_finding_has_a_type_a_box_and_names_that_agree_in_all_its_groups(found: Results) -> None:
    content = report_of(found.sr).content

    for uid, measured in zip(found.tracking_uids, found.measurements, strict=True):
        (group,) = content.get_volumetric_roi_measurement_groups(tracking_uid=uid)
        (texture,) = group.get_qualitative_evaluations(name=TEXTURE)
        assert texture.value == (NODULE_TYPE[measured.nodule_type] if measured.nodule_type else UNDETERMINED)
        groups = [
            item for item in named(found.sr, "Measurement Group")
            if uid == named(item, "Tracking Unique Identifier")[0].UID
        ]  # fmt: skip
        assert len(groups) == 3
        assert {named(item, "Tracking Identifier")[0].TextValue for item in groups} == {group.tracking_identifier}
        low, high = (f"x {x:.1f}, y {y:.1f}, z {z:.1f} mm" for x, y, z in measured.box_mm)
        (box,) = named(groups[0], "Bounding box")
        assert box.TextValue == f"{low} to {high} (patient coordinates, LPS)"


def test_calipers_are_lines_between_the_ends_that_were_measured(found: Results, series: CTSeries) -> None:
    groups = report_of(found.sr).content.get_image_measurement_groups()

    for group, measured in zip(groups, found.measurements, strict=True):
        for axis, measurement in zip((measured.long_axis, measured.short_axis), group.get_measurements(), strict=True):
            (path,) = measurement.referenced_coordinates
            ends = np.reshape(path.GraphicData, (-1, 2))
            # Pixels to mm by the spacing of the image: the line that a viewer draws is as long as is said.
            assert float(np.linalg.norm((ends[1] - ends[0]) * 0.7)) == pytest.approx(float(measurement.value), abs=2e-3)
            np.testing.assert_allclose(ends, [(e[2] + 0.5, e[1] + 0.5) for e in axis.ends_index], atol=1e-3)
            image = path.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
            assert image == series.sop_instance_uids[measured.slice_index]


def test_without_a_segmentation_the_outline_s_group_has_all_numbers(series: CTSeries, volume: Volume) -> None:
    findings = (ball(volume, (10, 20, 20), 4.0), ball(volume, (30, 40, 45), 6.0, score=0.7, side="right"))
    reading = read(series, volume, detection_of(*findings), **JOB)
    with_seg = build_report(reading, build_seg(reading), narrative=True)

    alone = build_report(reading, None, narrative=True)

    content = report_of(alone).content
    assert content.get_volumetric_roi_measurement_groups() == []
    for uid in (tracking.uid for tracking in reading.tracking):
        (planar,) = content.get_planar_roi_measurement_groups(tracking_uid=uid)
        (volumetric,) = report_of(with_seg).content.get_volumetric_roi_measurement_groups(tracking_uid=uid)
        assert numbers_of(planar) == numbers_of(volumetric)
        assert planar.get_qualitative_evaluations()
    assert evidence(alone) == set(series.sop_instance_uids)


def test_narrative_is_the_profile_s_choice(series: CTSeries, volume: Volume) -> None:
    reading = read(series, volume, detection_of(ball(volume, (10, 20, 20), 4.0)), **JOB)

    with_words, without = (build_report(reading, None, narrative=choice) for choice in (True, False))

    (statements,) = named(with_words, "Qualitative Evaluations")
    assert finding_text(reading, 1) in [item.TextValue for item in statements.ContentSequence if "TextValue" in item]
    (statements,) = named(without, "Qualitative Evaluations")
    assert "Finding" not in [name(item) for item in statements.ContentSequence]


def test_statements_come_before_the_numbers(found: Results) -> None:
    sections = [name(item) for item in found.sr.ContentSequence if item.ValueType == "CONTAINER"]

    assert sections == ["Qualitative Evaluations", "Image Library", "Imaging Measurements"]


def test_outline_of_a_pixel_is_no_rectangle_for_ohif(series: CTSeries, volume: Volume) -> None:
    sr = build_results(series, volume, detection_of(ball(volume, (20, 30, 30), 0.3)), **JOB).sr

    (region,) = named(sr, "Image Region")
    points = np.reshape(region.GraphicData, (-1, 2))
    assert len(points) > 5
    np.testing.assert_array_equal(points[0], points[-1])
    assert np.abs(points - (30.5, 30.5)).max() <= 0.5


def test_side_is_the_laterality_of_the_finding_site(found: Results) -> None:
    groups = report_of(found.sr).content.get_volumetric_roi_measurement_groups()

    sites = [group.finding_sites[0] for group in groups]
    assert [(site.value.meaning, site.laterality.meaning) for site in sites] == [("Lung", "Left"), ("Lung", "Right")]


def test_algorithm_is_named_once_for_all_measurements(found: Results, none_found: Results) -> None:
    for ds, section in ((found.sr, "Imaging Measurements"), (none_found.sr, "Qualitative Evaluations")):
        (container,) = named(ds, section)
        by = [item for item in container.ContentSequence if item.RelationshipType == "HAS CONCEPT MOD"]
        assert [(name(item), item.TextValue) for item in by] == [
            ("Algorithm Name", "nodules"),
            ("Algorithm Version", "1.2.3"),
            ("Algorithm Parameters", f"bundle_sha256={'5e' * 32}"),
            ("Algorithm Parameters", "operating_point=0.5, link_iou=0.3, min_diameter_mm=3.0"),
        ]


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
    said = texts(found.sr)

    assert {key: value for key, value in said.items() if key not in ("Finding", "How it was measured")} == {
        "Conclusion": "2 lung nodule candidates marked (score at or above 0.5).",
        "CAD Processing and Findings Summary": "All algorithms succeeded; with findings",
        "Comment": "Research use, not for diagnosis. Made by software, verified by nobody.",
        "Series completeness": "44 of 44 instances, contiguous; quiet time 10 s",
        "Slices analysed": "40 of 44, slices 3 to 42 counted from the feet, z -105.5 to -8.0 mm. "
        "Not analysed: 2 below and 2 above, outside the lungs and their margin.",
        "Model": f"nodules 1.2.3, bundle sha256 {'5e' * 32}, operating_point=0.5, link_iou=0.3, min_diameter_mm=3.0",
    }


def test_how_sizes_and_types_were_come_by_is_stated(found: Results) -> None:
    rules = " ".join(item.TextValue for item in named(found.sr, "How it was measured"))

    assert "a voxel counts wholly or not at all" in rules
    assert nodule_type.RULE in rules
    assert "Fleischner" in rules


def growth_of(series: CTSeries, volume: Volume, comparison: Comparison) -> Dataset:
    findings = (ball(volume, (10, 20, 20), 4.0), ball(volume, (30, 40, 45), 6.0, score=0.7, side="right"))
    return build_results(series, volume, detection_of(*findings), **JOB, comparison=comparison).sr


def test_growth_is_told_in_numbers_and_codes(series: CTSeries, volume: Volume) -> None:
    content = report_of(growth_of(series, volume, compared(GROWN, NEW))).content

    grown, new = content.get_volumetric_roi_measurement_groups()
    assert grown.tracking_uid == EARLIER.tracking_uid
    numbers = {m.name.meaning: (float(m.value), m.unit.value) for m in grown.get_measurements()}
    assert {key: value for key, value in numbers.items() if "earlier" in key or "doubling" in key} == {
        "Change of volume since the earlier CT": (82.1, "%"),
        "Volume doubling time": (421.4, "d"),
        "Volume doubling time, lower bound of 95 % interval": (350.2, "d"),
        "Volume doubling time, upper bound of 95 % interval": (600.8, "d"),
        "Volume at the earlier CT": (150.0, "mm3"),
        "Long axis at the earlier CT": (6.24, "mm"),
        "Short axis at the earlier CT": (5.06, "mm"),
        "Time since the earlier CT": (365.0, "d"),
    }
    for group, change in ((grown, "Increase in size"), (new, "New")):
        (evaluation,) = group.get_qualitative_evaluations(name=codes.DCM.QualitativeDifference)
        assert evaluation.value.meaning == change
    assert not any("earlier" in m.name.meaning for m in new.get_measurements())
    assert len(content.get_volumetric_roi_measurement_groups(tracking_uid=EARLIER.tracking_uid)) == 1


def test_a_bound_that_is_infinite_is_left_out_and_a_change_not_judged_has_its_reason(
    series: CTSeries, volume: Volume
) -> None:
    endless = replace(GROWN, doubling_time=DoublingTime(days=421.4, low=350.2, high=None))
    unknown = NoduleChange(
        number=2, change="not_judged", prior=None, volume_change_percent=None, doubling_time=None,
        note="The earlier CT does not show the place.",
    )  # fmt: skip

    sr = growth_of(series, volume, compared(endless, unknown))

    assert len(named(sr, "Volume doubling time, lower bound of 95 % interval")) == 1
    assert named(sr, "Volume doubling time, upper bound of 95 % interval") == []
    (why,) = named(sr, "Reason for no statement on change")
    assert why.TextValue == "The earlier CT does not show the place."
    assert "Indeterminate" in [i.ConceptCodeSequence[0].CodeMeaning for i in named(sr, "Qualitative Difference")]


def test_what_was_compared_and_how_well_is_stated(series: CTSeries, volume: Volume) -> None:
    said = texts(growth_of(series, volume, compared(GROWN, NEW, gone=(GONE,))))

    assert said["Comparison with an earlier CT"] == "Compared with the CT of 2025-01-02, 365 days before."
    assert said["Quality of the registration"] == "lung overlap (Dice) 0.971"
    assert said["Compared with report"] == EXAM.report_sop_instance_uid
    assert said["Compared with series"] == EXAM.series_uid
    assert said["Earlier nodule without a finding now"].startswith('Earlier nodule "Nodule 3"')
    assert said["Rule of growth"].startswith("Grown or shrunk: the volume changed by 25 % or more")


def test_no_prior_and_no_registration_are_stated(series: CTSeries, volume: Volume) -> None:
    for comparison in (NO_PRIOR, Comparison(outcome="not_registered", text="The earlier CT could not be aligned.")):
        sr = growth_of(series, volume, comparison)
        assert texts(sr)["Comparison with an earlier CT"] == comparison.text
        assert named(sr, "Qualitative Difference") == []
        assert "PertinentOtherEvidenceSequence" not in sr


@pytest.mark.parametrize("same_study", [True, False])
def test_earlier_report_is_evidence_of_its_own_study(series: CTSeries, volume: Volume, same_study: bool) -> None:
    exam = replace(EXAM, study_uid=series.study_uid) if same_study else EXAM

    sr = growth_of(series, volume, compared(GROWN, NEW, prior=exam))

    (current,) = sr.CurrentRequestedProcedureEvidenceSequence
    others = [sr.PertinentOtherEvidenceSequence[0]] if "PertinentOtherEvidenceSequence" in sr else []
    holder = current if same_study else others[0]
    listed = [i.ReferencedSOPInstanceUID for s in holder.ReferencedSeriesSequence for i in s.ReferencedSOPSequence]
    assert holder.StudyInstanceUID == exam.study_uid
    assert listed.count(EXAM.report_sop_instance_uid) == 1
    assert len(others) == (0 if same_study else 1)


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
