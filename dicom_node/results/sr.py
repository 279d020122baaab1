"""What was found, not found or not analysed -> one Comprehensive 3D SR (PS3.16 TID 1500), never silence."""

from __future__ import annotations

from collections.abc import Sequence

from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import Comprehensive3DSRStorage, CTImageStorage

from dicom_node.comparison import RULE, Comparison
from dicom_node.domain import CTImage, CTSeries
from dicom_node.results import narrative as words
from dicom_node.results import sr_codes
from dicom_node.results.headers import Kind, Origin
from dicom_node.results.reading import Grounds, Reading, Refusal
from dicom_node.results.references import Reference, reference_to, references_of
from dicom_node.results.sr_content import (
    Item,
    Relationship,
    algorithm,
    code,
    container,
    language,
    observer,
    parameters,
    text,
)
from dicom_node.results.sr_document import document, incomplete, root_container
from dicom_node.results.sr_groups import groups_of


def build_report(reading: Reading, seg: Dataset | None, *, narrative: bool) -> Dataset:
    """The report on an analysed series.

    seg: finding n is its segment n; None without findings, or where the destination gets no segmentation.
    narrative: the findings as English text, too.
    """
    series, count = reading.series, len(reading.findings)
    sections = [_statements(reading, narrative), *_image_library(_shown(reading), series)]
    if count:
        groups = [group for number in range(1, count + 1) for group in groups_of(reading, number, seg)]
        # Row 6b: once for all measurements, since none was made by anything else.
        by = algorithm(reading.model, Relationship.HAS_CONCEPT_MOD)
        sections.append(container(codes.DCM.ImagingMeasurements, [*by, *groups]))
    return _document(
        sections,
        [*references_of(series), *([] if seg is None else [reference_to(seg)])],
        reading.origin,
        reading.grounds,
        kind=Kind.REPORT,
        description=f"Lung nodules: {count or 'none'} found",
        unfinished=incomplete(reading.grounds),
        comparison=reading.comparison,
    )


def build_not_analysed(refusal: Refusal) -> Dataset:
    """Report that no model saw the series, and why. Needs no geometry, no pixel and no CT."""
    why = words.reason(refusal)
    statements = [
        text(codes.DCM.Conclusion, f"NOT ANALYSED. No statement about lung nodules is made. {why}"),
        text(codes.DCM.Comment, words.CAUTION),
        code(codes.DCM.CADProcessingAndFindingsSummary, codes.cid6047.NoAlgorithmsSucceededWithoutFindings),
        text(sr_codes.REASON, why),
        text(sr_codes.COMPLETENESS, refusal.grounds.evidence),
        *_replaces(refusal.grounds),
    ]
    return _document(
        [container(sr_codes.QUALITATIVE_EVALUATIONS, statements)],
        refusal.instances,
        refusal.origin,
        refusal.grounds,
        kind=Kind.REJECTION,
        description="Lung nodules: NOT ANALYSED",
        unfinished=f"Not analysed: {refusal.rejected.reason}",
    )


def _statements(reading: Reading, narrative: bool) -> Item:
    """What is said of the whole series (row 12); first in the document, since many viewers print it from the top.

    TID 1500's order is not significant.
    """
    with_findings = bool(reading.findings)
    items = [
        text(codes.DCM.Conclusion, words.headline(reading)),
        text(codes.DCM.Comment, words.CAUTION),
        code(
            codes.DCM.CADProcessingAndFindingsSummary,
            codes.cid6047.AllAlgorithmsSucceededWithFindings
            if with_findings
            else codes.cid6047.AllAlgorithmsSucceededWithoutFindings,
        ),
    ]
    comparison = reading.comparison
    if comparison is not None:
        items.append(text(sr_codes.COMPARISON, comparison.text))
    if narrative:
        items += [text(codes.DCM.Finding, words.finding_text(reading, n + 1)) for n in range(len(reading.findings))]
    if comparison is not None:
        items += _comparison(comparison)
    items += _grounds(reading)
    return container(sr_codes.QUALITATIVE_EVALUATIONS, items)


def _comparison(comparison: Comparison) -> list[Item]:
    items = [text(sr_codes.EARLIER_NODULE, sentence) for sentence in words.earlier_texts(comparison)]
    if comparison.quality:
        items.append(text(sr_codes.REGISTRATION, words.quality_text(comparison)))
    if comparison.changes:
        items.append(text(sr_codes.GROWTH_RULE, RULE))
    if comparison.prior is not None:
        items.append(text(sr_codes.COMPARED_REPORT, comparison.prior.report_sop_instance_uid))
        items.append(text(sr_codes.COMPARED_SERIES, comparison.prior.series_uid))
    return items


def _grounds(reading: Reading) -> list[Item]:
    series, model = reading.series, reading.model
    items = [
        text(sr_codes.SLICES_ANALYSED, words.slices_analysed(series, reading.detection)),
        text(sr_codes.COMPLETENESS, reading.grounds.evidence),
    ]
    if series.left_out:
        items.append(text(sr_codes.LEFT_OUT, words.left_out(series)))
    if series.lossy is not None:
        items.append(text(sr_codes.LOSSY, words.lossy(series)))
    if reading.findings:
        items += [text(sr_codes.HOW_MEASURED, rule) for rule in words.measuring_rules()]
    described = f"{model.name} {model.version}, bundle sha256 {model.bundle_sha256}, {parameters(model)}"
    return [*items, text(sr_codes.MODEL, described), *_replaces(reading.grounds)]


def _replaces(grounds: Grounds) -> list[Item]:
    return [] if grounds.predecessor is None else [text(sr_codes.REPLACES, grounds.predecessor.sop_instance_uid)]


def _document(
    sections: Sequence[Item],
    references: Sequence[Reference],
    origin: Origin,
    grounds: Grounds,
    *,
    kind: Kind,
    description: str,
    unfinished: str,
    comparison: Comparison | None = None,
) -> Dataset:
    """highdicom's MeasurementReport refuses a report without a measurement, so the root is made here."""
    procedure = code(codes.DCM.ProcedureReported, codes.LN.CTUnspecifiedBodyRegion, Relationship.HAS_CONCEPT_MOD)
    items = [*language(), *observer(), procedure, *sections]
    return document(
        Comprehensive3DSRStorage,
        root_container(codes.DCM.ImagingMeasurementReport, "1500", items),
        references,
        origin,
        grounds,
        kind=kind,
        description=description,
        unfinished=unfinished,
        prior=None if comparison is None else comparison.prior,
    )


def _shown(reading: Reading) -> list[CTImage]:
    """The images that groups refer to. Without any, one from the middle lets a viewer find the series."""
    shown = sorted({measured.slice_index for measured in reading.measurements})
    return [reading.series.images[index] for index in shown or [sum(reading.detection.analysed) // 2]]


def _image_library(images: Sequence[CTImage], series: CTSeries) -> sr.ImageLibrary:
    """TID 1600 of the images that the report refers to, not of the whole series."""
    library = sr.ImageLibrary([_library_entry(image, series) for image in images])
    # highdicom 0.28 has no way to name a frame here, and takes geometry from single-frame headers only.
    entries = [item for item in library[0].ContentSequence[0].ContentSequence if item.ValueType == "IMAGE"]
    for entry, image in zip(entries, images, strict=True):
        reference = entry.ReferencedSOPSequence[0]
        reference.ReferencedSOPClassUID = image.sop_class_uid
        if image.frame is not None:
            reference.ReferencedFrameNumber = image.frame
    return library


def _library_entry(image: CTImage, series: CTSeries) -> Dataset:
    entry = Dataset()
    for keyword in (
        "SOPInstanceUID", "FrameOfReferenceUID", "Rows", "Columns", "PixelSpacing",
        "ImageOrientationPatient", "ImagePositionPatient",
    ):  # fmt: skip
        entry[keyword] = image.header[keyword]
    entry.SOPClassUID = CTImageStorage
    entry.Modality = "CT"
    entry.SliceThickness = float(image.header.get("SliceThickness") or series.spacing_mm[0])
    return entry
