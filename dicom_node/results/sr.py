"""What was found, not found or not analysed -> one Comprehensive 3D SR (PS3.16 TID 1500), never silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage

from dicom_node.domain import RESEARCH_USE, CTSeries, Detection
from dicom_node.identity import CODING_SCHEME, MANUFACTURER, MODEL_NAME
from dicom_node.results import sr_content as content
from dicom_node.results.headers import Kind, Origin, put_headers
from dicom_node.results.part10 import seal
from dicom_node.results.reading import Grounds, Reading, Refusal
from dicom_node.results.references import Reference, reference_to, references_of, study_item


def build_report(reading: Reading, seg: Dataset | None) -> Dataset:
    """The report on an analysed series. Finding n is segment n of `seg`; without findings there is none."""
    return _found(reading, seg) if reading.findings and seg is not None else _none_found(reading)


def _found(reading: Reading, seg: Dataset) -> Dataset:
    series, detection = reading.series, reading.detection
    groups: list[sr.ContentItem] = []
    for number, (finding, measurement, track) in enumerate(
        zip(detection.findings, reading.measurements, reading.tracking, strict=True), start=1
    ):
        image = series.images[measurement.slice_index]
        groups.append(content.volumetric_group(finding, measurement, track, number, seg, detection.model))
        groups.append(content.planar_group(finding, measurement, track, image, detection.model))
    count = len(detection.findings)
    shown = [series.images[index] for index in sorted({m.slice_index for m in reading.measurements})]
    sections = [
        *content.image_library(shown, series),
        content.container(codes.DCM.ImagingMeasurements, groups),
        _statements(
            f"{count} lung nodule candidate{'s' if count > 1 else ''} marked "
            f"(score at or above {detection.model.operating_point:g}).",
            codes.cid6047.AllAlgorithmsSucceededWithFindings,
            _analysis_statements(series, detection),
            reading.grounds,
        ),
    ]
    references = [*references_of(series), reference_to(seg)]
    return _document(sections, references, reading.origin, reading.grounds, Kind.REPORT, f"Lung nodules: {count} found")


def _none_found(reading: Reading) -> Dataset:
    series, detection = reading.series, reading.detection
    sections = [
        # Nothing is marked, so no image is referred to; one from the middle lets a viewer find the series.
        *content.image_library([series.images[sum(detection.analysed) // 2]], series),
        _statements(
            "The series was analysed and no lung nodule candidate was found "
            f"(no score at or above {detection.model.operating_point:g}).",
            codes.cid6047.AllAlgorithmsSucceededWithoutFindings,
            _analysis_statements(series, detection),
            reading.grounds,
        ),
    ]
    return _document(
        sections, references_of(series), reading.origin, reading.grounds, Kind.REPORT, "Lung nodules: none found"
    )


def build_not_analysed(refusal: Refusal) -> Dataset:
    """Report that no model saw the series, and why. Needs no geometry, no pixel and no CT."""
    why = f"{refusal.rejected.reason}: {refusal.rejected.text}"
    sections = [
        _statements(
            f"NOT ANALYSED. No statement about lung nodules is made. {why}",
            codes.cid6047.NoAlgorithmsSucceededWithoutFindings,
            [content.text(content.REASON, why)],
            refusal.grounds,
        )
    ]
    return _document(
        sections, refusal.instances, refusal.origin, refusal.grounds, Kind.REJECTION, "Lung nodules: NOT ANALYSED"
    )


def _analysis_statements(series: CTSeries, detection: Detection) -> list[sr.ContentItem]:
    first, end = detection.analysed
    total = len(series.images)
    z = [series.images[index].position_mm[2] for index in (first, end - 1)]
    statements: list[sr.ContentItem] = [
        content.text(
            content.SLICES_ANALYSED,
            f"{end - first} of {total}: slices {first + 1} to {end} counted from the feet, "
            f"z {z[0]:.1f} to {z[1]:.1f} mm. Not analysed: {first} below and {total - end} above, "
            "outside the lungs and their margin.",
        ),
        content.text(content.MODEL, content.model_text(detection.model)),
    ]
    if series.lossy is not None:
        statements.append(content.text(content.LOSSY, f"{series.lossy}. Small structures may be altered by it."))
    if series.left_out:
        reasons = Counter(series.left_out.values())
        listed = ", ".join(f"{count} x {why}" for why, count in sorted(reasons.items()))
        statements.append(content.text(content.LEFT_OUT, f"{len(series.left_out)} not part of the volume: {listed}"))
    return statements


def _statements(
    conclusion: str, summary: Code, further: Sequence[sr.ContentItem], grounds: Grounds
) -> sr.ContainerContentItem:
    """The report in plain words (PS3.16 TID 1500, row 12), for everyone who reads an SR as text."""
    items: list[sr.ContentItem] = [
        content.text(codes.DCM.Conclusion, conclusion),
        content.code(codes.DCM.CADProcessingAndFindingsSummary, summary),
        content.text(codes.DCM.Comment, f"{RESEARCH_USE}. Made by software, verified by nobody."),
        content.text(content.COMPLETENESS, grounds.evidence),
        *further,
    ]
    if grounds.predecessor is not None:
        items.append(content.text(content.REPLACES, grounds.predecessor.sop_instance_uid))
    return content.container(content.QUALITATIVE_EVALUATIONS, items)


def _document(
    sections: Sequence[sr.ContentItem],
    references: Sequence[Reference],
    origin: Origin,
    grounds: Grounds,
    kind: Kind,
    description: str,
) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID = Comprehensive3DSRStorage
    _put_content(ds, sections)
    ds.CompletionFlag = "COMPLETE" if grounds.complete and kind is Kind.REPORT else "PARTIAL"
    ds.VerificationFlag = "UNVERIFIED"
    ds.PreliminaryFlag = "PRELIMINARY"
    ds.PerformedProcedureCodeSequence = []
    ds.ReferencedPerformedProcedureStepSequence = []
    if references:
        ds.CurrentRequestedProcedureEvidenceSequence = [study_item(origin.study_uid, references)]
    if grounds.predecessor is not None:
        old = grounds.predecessor
        reference = Reference(
            sop_class_uid=Comprehensive3DSRStorage,
            sop_instance_uid=old.sop_instance_uid,
            series_uid=old.series_uid,
        )
        ds.PredecessorDocumentsSequence = [study_item(old.study_uid, [reference])]
    ds.CodingSchemeIdentificationSequence = [_own_coding_scheme()]
    put_headers(ds, origin, kind, description)
    return seal(ds, origin, kind)


def _put_content(ds: Dataset, sections: Sequence[sr.ContentItem]) -> None:
    """The root of PS3.16 TID 1500. highdicom's MeasurementReport refuses a report without a measurement."""
    root = sr.ContainerContentItem(name=codes.DCM.ImagingMeasurementReport, template_id="1500")
    procedure = sr.CodeContentItem(
        name=codes.DCM.ProcedureReported,
        value=codes.LN.CTUnspecifiedBodyRegion,
        relationship_type=sr.RelationshipTypeValues.HAS_CONCEPT_MOD,
    )
    root.ContentSequence = sr.ContentSequence(
        [
            *sr.LanguageOfContentItemAndDescendants(sr.CodedConcept("en-US", "RFC5646", "English (United States)")),
            *content.observer(),
            procedure,
            *sections,
        ]
    )
    for element in root:
        ds[element.tag] = element


def _own_coding_scheme() -> Dataset:
    scheme = Dataset()
    scheme.CodingSchemeDesignator = CODING_SCHEME
    scheme.CodingSchemeName = f"{MODEL_NAME} local codes"
    scheme.CodingSchemeResponsibleOrganization = MANUFACTURER
    return scheme
