"""The Basic Text SR as a viewer prints it: headings, sentences, key images, and no word that is not the narrative's."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage

from dicom_node.domain import CTSeries, Volume
from dicom_node.errors import Reason, SeriesRejected
from dicom_node.results import to_bytes
from dicom_node.results.build import read
from dicom_node.results.narrative import narrative, refusal_text
from dicom_node.results.reading import Predecessor, Reading, Refusal
from dicom_node.results.references import references_of
from dicom_node.results.sr_text import build_text_not_analysed, build_text_report
from dicom_node.series import read_series, to_volume
from tests.fakes.comparisons import EXAM, GONE, GROWN, NEW, NO_PRIOR, compared
from tests.fakes.ct import make_ct_series
from tests.fakes.findings import JOB, ball, detection_of


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> CTSeries:
    return read_series(make_ct_series(tmp_path_factory.mktemp("ct")))


@pytest.fixture(scope="module")
def volume(series: CTSeries) -> Volume:
    return to_volume(series)


def reading_of(series: CTSeries, volume: Volume, count: int = 2, **job: Any) -> Reading:
    findings = (ball(volume, (10, 20, 20), 4.0), ball(volume, (30, 40, 45), 6.0, score=0.7, side="right"))
    return read(series, volume, detection_of(*findings[:count]), **{**JOB, **job})


def refusal_of(reading: Reading) -> Refusal:
    return Refusal(
        rejected=SeriesRejected(Reason.SLICE_GAP, "gap of 5.00 mm after slice 12 of 44"),
        instances=tuple(references_of(reading.series)),
        origin=replace(reading.origin, model=None),
        grounds=reading.grounds,
    )


def printed(ds: Dataset) -> list[tuple[str, list[str]]]:
    """Heading -> its texts, as read from the file."""
    ds = pydicom.dcmread(BytesIO(to_bytes(ds)))
    return [
        (
            str(section.ConceptNameCodeSequence[0].CodeMeaning),
            [str(item.TextValue) for item in section.ContentSequence if item.ValueType == "TEXT"],
        )
        for section in ds.ContentSequence
        if section.ValueType == "CONTAINER"
    ]


def test_it_prints_caution_findings_comparison_and_grounds_under_headings(series: CTSeries, volume: Volume) -> None:
    reading = reading_of(series, volume, comparison=compared(GROWN, NEW, gone=(GONE,)))
    said = narrative(reading)

    pages = printed(build_text_report(reading))

    assert [heading for heading, _ in pages] == [
        "Summary", "Findings", "Previous Findings", "Current Procedure Descriptions", "Key Images",
    ]  # fmt: skip
    assert pages[0][1] == [said[-1], said[0]]
    assert pages[1][1] == list(said[2:4])
    assert pages[2][1] == [said[1], said[4]]
    assert pages[3][1] == list(said[5:-1])


def test_none_found_and_not_analysed_cannot_be_mixed_up(series: CTSeries, volume: Volume) -> None:
    none = reading_of(series, volume, 0)
    refusal = refusal_of(none)

    found_none, not_analysed = build_text_report(none), build_text_not_analysed(refusal)

    assert printed(found_none)[0] == ("Summary", [narrative(none)[-1], narrative(none)[0]])
    assert [heading for heading, _ in printed(found_none)] == ["Summary", "Current Procedure Descriptions"]
    assert "none found" in found_none.SeriesDescription
    assert found_none.CompletionFlag == "COMPLETE"
    assert printed(not_analysed) == [("Summary", list(refusal_text(refusal)))]
    assert "NOT ANALYSED" in not_analysed.SeriesDescription
    assert (not_analysed.CompletionFlag, not_analysed.CompletionFlagDescription) == (
        "PARTIAL", "Not analysed: SLICE_GAP",
    )  # fmt: skip


def test_key_images_stand_below_the_text_in_the_findings_order(series: CTSeries, volume: Volume) -> None:
    reading = reading_of(series, volume)

    *texts, last = (s for s in build_text_report(reading).ContentSequence if s.ValueType == "CONTAINER")

    assert last.ConceptNameCodeSequence[0].CodeMeaning == "Key Images"
    shown = [i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in last.ContentSequence]
    assert shown == [series.sop_instance_uids[m.slice_index] for m in reading.measurements]
    assert {item.ValueType for section in texts for item in section.ContentSequence} == {"TEXT"}


def test_title_is_that_of_no_radiologists_report(series: CTSeries, volume: Volume) -> None:
    report = build_text_report(reading_of(series, volume))

    assert report.SOPClassUID == BasicTextSRStorage
    assert report.ConceptNameCodeSequence[0].CodeMeaning == "Chest CAD Report"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "2000"


def test_no_prior_is_stated_under_its_heading(series: CTSeries, volume: Volume) -> None:
    pages = dict(printed(build_text_report(reading_of(series, volume, comparison=NO_PRIOR))))

    assert pages["Previous Findings"] == ["No earlier CT of the chest was found."]


def test_earlier_report_is_evidence_from_outside_the_study(series: CTSeries, volume: Volume) -> None:
    report = build_text_report(reading_of(series, volume, comparison=compared(GROWN, NEW)))

    (study,) = report.PertinentOtherEvidenceSequence
    assert study.StudyInstanceUID == EXAM.study_uid
    (instance,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert instance.ReferencedSOPInstanceUID == EXAM.report_sop_instance_uid


def test_a_revision_names_the_text_report_that_it_replaces(series: CTSeries, volume: Volume) -> None:
    old = Predecessor(study_uid=series.study_uid, series_uid="1.2.8", sop_instance_uid="1.2.9")

    new = build_text_report(reading_of(series, volume, predecessor=old))

    (replaced,) = new.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert (replaced.ReferencedSOPClassUID, replaced.ReferencedSOPInstanceUID) == (BasicTextSRStorage, "1.2.9")
    assert "This report replaces an earlier one of the same series (1.2.9)." in printed(new)[-2][1]


def test_the_same_reading_makes_the_same_bytes(series: CTSeries, volume: Volume) -> None:
    again = [to_bytes(build_text_report(reading_of(series, volume))) for _ in range(2)]

    assert again[0] == again[1]


def test_texts_that_are_lost_in_the_source_s_character_set_make_it_utf_8(tmp_path: Path) -> None:
    header = {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Äneas^Rüdiger"}
    series = read_series(make_ct_series(tmp_path / "ct", header=header))
    comparison = replace(NO_PRIOR, text="Kein früheres CT gefunden: «なし».")

    report = build_text_report(reading_of(series, to_volume(series), comparison=comparison))

    assert report.SpecificCharacterSet == "ISO_IR 192"
    assert dict(printed(report))["Previous Findings"] == [comparison.text]
