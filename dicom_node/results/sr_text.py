"""What was found, not found or not analysed -> one Basic Text SR (PS3.16 TID 2000) for viewers that print reports."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import BasicTextSRStorage

from dicom_node.comparison import PriorExam
from dicom_node.results import narrative as words
from dicom_node.results.headers import Kind, Origin
from dicom_node.results.reading import Grounds, Reading, Refusal
from dicom_node.results.references import Reference, references_of
from dicom_node.results.sr_content import Item, Relationship, code, container, image, language, observer, text
from dicom_node.results.sr_document import document, incomplete, root_container


def build_text_report(reading: Reading) -> Dataset:
    """The narrative of an analysed series under the headings of CID 7001, with the key images."""
    comparison, count = reading.comparison, len(reading.findings)
    sections = [
        _section(codes.LN.Summary, codes.LN.Summary, [words.CAUTION, words.headline(reading)]),
    ]
    if count:
        findings = [words.finding_text(reading, number) for number in range(1, count + 1)]
        sections.append(_section(codes.LN.Findings, codes.DCM.Finding, findings))
    if comparison is not None:
        compared = [words.sentence(comparison.text), *words.earlier_texts(comparison)]
        sections.append(_section(codes.LN.PreviousFindings, codes.DCM.PreviousFinding, compared))
    how = words.how_made(reading)
    sections.append(_section(codes.LN.CurrentProcedureDescriptions, codes.DCM.ProcedureDescription, how))
    if count:
        sections.append(container(codes.LN.KeyImages, _key_images(reading)))
    return _document(
        sections,
        references_of(reading.series),
        reading.origin,
        reading.grounds,
        description=f"Lung nodules: {count or 'none'} found",
        unfinished=incomplete(reading.grounds),
        prior=None if comparison is None else comparison.prior,
    )


def build_text_not_analysed(refusal: Refusal) -> Dataset:
    """That no model saw the series, and why. Needs no geometry, no pixel and no CT."""
    said = words.refusal_text(refusal)
    return _document(
        [_section(codes.LN.Summary, codes.LN.Summary, said)],
        refusal.instances,
        refusal.origin,
        refusal.grounds,
        description="Lung nodules: NOT ANALYSED",
        unfinished=f"Not analysed: {refusal.rejected.reason}",
    )


def _key_images(reading: Reading) -> list[Item]:
    """In the findings' order. Below all text: viewers that print no images put a line of their own for each."""
    return [
        image(codes.DCM.BestIllustrationOfFinding, reading.series.images[measured.slice_index])
        for measured in reading.measurements
    ]


def _section(heading: Code, concept: Code, sentences: Sequence[str]) -> Item:
    return container(heading, [text(concept, sentence) for sentence in sentences])


def _document(
    sections: Sequence[Item],
    references: Sequence[Reference],
    origin: Origin,
    grounds: Grounds,
    *,
    description: str,
    unfinished: str,
    prior: PriorExam | None = None,
) -> Dataset:
    # No title of CID 7000, which can be added to: they are a radiologist's, and this must not pass for one's report.
    procedure = code(codes.DCM.ProcedureReported, codes.LN.CTUnspecifiedBodyRegion, Relationship.HAS_CONCEPT_MOD)
    items = [procedure, *language(), *observer(), *sections]
    return document(
        BasicTextSRStorage,
        root_container(codes.DCM.ChestCADReport, "2000", items),
        references,
        origin,
        grounds,
        kind=Kind.TEXT_REPORT,
        description=description,
        unfinished=unfinished,
        prior=prior,
    )
