"""What was found, not found or not analysed -> one Comprehensive 3D SR (PS3.16 TID 1500), never silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage

from dicom_node.domain import RESEARCH_USE, CTSeries, Detection
from dicom_node.errors import SeriesRejected
from dicom_node.identity import CODING_SCHEME, MANUFACTURER, MODEL_NAME
from dicom_node.results import sr_content as content
from dicom_node.results.headers import Kind, Origin, put_headers
from dicom_node.results.measure import Measurement
from dicom_node.results.part10 import seal
from dicom_node.results.tracking import Tracking


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One Instance somewhere in the study."""

    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Predecessor:
    """The report that this one replaces."""

    study_uid: str
    series_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounds:
    """What the statement of a report rests on.

    evidence: why the node holds the series to be complete, e.g. "133 of 133 instances, contiguous".
    complete: False where the node gave up waiting: the report is flagged PARTIAL.
    predecessor: the report on the same series that this one replaces.
    """

    evidence: str
    complete: bool = True
    predecessor: Predecessor | None = None


def build_findings_report(
    series: CTSeries,
    detection: Detection,
    measurements: Sequence[Measurement],
    tracking: Sequence[Tracking],
    seg: Dataset,
    origin: Origin,
    grounds: Grounds,
) -> Dataset:
    """Report of at least one finding; finding n is segment n of `seg`."""
    if not detection.findings:
        raise ValueError("no findings: use build_none_found_report")
    groups: list[sr.ContentItem] = []
    for number, (finding, measurement, track) in enumerate(
        zip(detection.findings, measurements, tracking, strict=True), start=1
    ):
        image = series.images[measurement.slice_index]
        groups.append(content.volumetric_group(finding, measurement, track, number, seg, detection.model))
        groups.append(content.planar_group(finding, measurement, track, image, detection.model))
    count = len(detection.findings)
    shown = [series.images[index] for index in sorted({m.slice_index for m in measurements})]
    sections = [
        *content.image_library(shown, series),
        content.container(codes.DCM.ImagingMeasurements, groups),
        _statements(
            f"{count} lung nodule candidate{'s' if count > 1 else ''} marked "
            f"(score at or above {detection.model.operating_point:g}).",
            codes.cid6047.AllAlgorithmsSucceededWithFindings,
            _analysis_statements(series, detection),
            grounds,
        ),
    ]
    references = [*_images(series), _reference(seg)]
    return _document(sections, references, origin, grounds, Kind.REPORT, f"Lung nodules: {count} found")


def build_none_found_report(series: CTSeries, detection: Detection, origin: Origin, grounds: Grounds) -> Dataset:
    """Report of an analysis that ended without a finding."""
    if detection.findings:
        raise ValueError(f"{len(detection.findings)} findings: use build_findings_report")
    sections = [
        # Nothing is marked, so no image is referred to; one from the middle lets a viewer find the series.
        *content.image_library([series.images[sum(detection.analysed) // 2]], series),
        _statements(
            "The series was analysed and no lung nodule candidate was found "
            f"(no score at or above {detection.model.operating_point:g}).",
            codes.cid6047.AllAlgorithmsSucceededWithoutFindings,
            _analysis_statements(series, detection),
            grounds,
        ),
    ]
    return _document(sections, _images(series), origin, grounds, Kind.REPORT, "Lung nodules: none found")


def build_not_analysed_report(
    rejected: SeriesRejected, instances: Iterable[Reference], origin: Origin, grounds: Grounds
) -> Dataset:
    """Report that no model saw the series, and why. Needs no geometry, no pixel and no CT."""
    sections = [
        _statements(
            f"NOT ANALYSED. No statement about lung nodules is made. {rejected.reason}: {rejected.text}",
            codes.cid6047.NoAlgorithmsSucceededWithoutFindings,
            [content.text(content.REASON, f"{rejected.reason}: {rejected.text}")],
            grounds,
        )
    ]
    return _document(sections, list(instances), origin, grounds, Kind.REJECTION, "Lung nodules: NOT ANALYSED")


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
    ds.CurrentRequestedProcedureEvidenceSequence = [_study_item(origin.study_uid, references)]
    if grounds.predecessor is not None:
        old = grounds.predecessor
        reference = Reference(
            sop_class_uid=Comprehensive3DSRStorage,
            sop_instance_uid=old.sop_instance_uid,
            series_uid=old.series_uid,
        )
        ds.PredecessorDocumentsSequence = [_study_item(old.study_uid, [reference])]
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


def _study_item(study_uid: str, references: Sequence[Reference]) -> Dataset:
    """References by study, series and Instance (PS3.3 C.17.2.1)."""
    by_series: dict[str, list[Dataset]] = {}
    for reference in references:
        instance = Dataset()
        instance.ReferencedSOPClassUID = reference.sop_class_uid
        instance.ReferencedSOPInstanceUID = reference.sop_instance_uid
        by_series.setdefault(reference.series_uid, []).append(instance)
    study = Dataset()
    study.StudyInstanceUID = study_uid
    study.ReferencedSeriesSequence = []
    for series_uid, instances in by_series.items():
        series = Dataset()
        series.SeriesInstanceUID = series_uid
        series.ReferencedSOPSequence = instances
        study.ReferencedSeriesSequence.append(series)
    return study


def _images(series: CTSeries) -> list[Reference]:
    """Each Instance once, however many of its frames were looked at."""
    references = (
        Reference(
            sop_class_uid=image.sop_class_uid, sop_instance_uid=image.sop_instance_uid, series_uid=series.series_uid
        )
        for image in series.images
    )
    return list(dict.fromkeys(references))


def _reference(ds: Dataset) -> Reference:
    return Reference(sop_class_uid=ds.SOPClassUID, sop_instance_uid=ds.SOPInstanceUID, series_uid=ds.SeriesInstanceUID)


def _own_coding_scheme() -> Dataset:
    scheme = Dataset()
    scheme.CodingSchemeDesignator = CODING_SCHEME
    scheme.CodingSchemeName = f"{MODEL_NAME} local codes"
    scheme.CodingSchemeResponsibleOrganization = MANUFACTURER
    return scheme
