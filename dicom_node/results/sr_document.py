"""The content of a report -> the document that holds it: headers, evidence, what it replaces, its own codes."""

from __future__ import annotations

from collections.abc import Sequence

from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID

from dicom_node.comparison import PriorExam
from dicom_node.identity import CODING_SCHEME, MANUFACTURER, MODEL_NAME
from dicom_node.results.headers import Kind, Origin, put_headers
from dicom_node.results.part10 import seal
from dicom_node.results.reading import Grounds
from dicom_node.results.references import Reference, study_item


def document(
    sop_class: UID,
    root: sr.ContentItem,
    references: Sequence[Reference],
    origin: Origin,
    grounds: Grounds,
    *,
    kind: Kind,
    description: str,
    unfinished: str = "",
    prior: PriorExam | None = None,
) -> Dataset:
    """A sealed report (PS3.3 C.17.2).

    references: what it speaks of, all in its own study. description: of the series, without "research use".
    unfinished: why the report is PARTIAL; empty where it is not. prior: the earlier examination it compares with.
    """
    ds = Dataset()
    ds.SOPClassUID = sop_class
    for element in root:
        ds[element.tag] = element
    ds.CompletionFlag = "PARTIAL" if unfinished else "COMPLETE"
    if unfinished:
        ds.CompletionFlagDescription = unfinished[:64]
    ds.VerificationFlag = "UNVERIFIED"
    ds.PreliminaryFlag = "PRELIMINARY"
    ds.PerformedProcedureCodeSequence = []
    ds.ReferencedPerformedProcedureStepSequence = []
    _put_evidence(ds, references, origin, prior)
    _put_predecessor(ds, grounds)
    if _has_own_codes(ds):
        ds.CodingSchemeIdentificationSequence = [_own_coding_scheme()]
    put_headers(ds, origin, kind, description)
    return seal(ds, origin, kind)


def root_container(title: Code, template: str, items: Sequence[sr.ContentItem]) -> sr.ContentItem:
    root = sr.ContainerContentItem(name=title, is_content_continuous=False, template_id=template)
    root.ContentSequence = sr.ContentSequence(items)
    return root


def incomplete(grounds: Grounds) -> str:
    """Why a report on an analysed series is PARTIAL; empty where it is not."""
    return "" if grounds.complete else "The series was not held to be complete"


def _put_evidence(ds: Dataset, references: Sequence[Reference], origin: Origin, prior: PriorExam | None) -> None:
    """C.17.2.3: what was made for the same request, and what else was looked at."""
    current = list(references)
    if prior is not None:
        earlier = Reference(
            sop_class_uid=prior.report_sop_class_uid,
            sop_instance_uid=prior.report_sop_instance_uid,
            series_uid=prior.report_series_uid,
        )
        if prior.study_uid == origin.study_uid:
            current.append(earlier)
        else:
            ds.PertinentOtherEvidenceSequence = [study_item(prior.study_uid, [earlier])]
    if current:
        ds.CurrentRequestedProcedureEvidenceSequence = [study_item(origin.study_uid, current)]


def _put_predecessor(ds: Dataset, grounds: Grounds) -> None:
    """A report replaces one of its own kind only, so that has its SOP class."""
    if grounds.predecessor is not None:
        old = grounds.predecessor
        reference = Reference(
            sop_class_uid=ds.SOPClassUID, sop_instance_uid=old.sop_instance_uid, series_uid=old.series_uid
        )
        ds.PredecessorDocumentsSequence = [study_item(old.study_uid, [reference])]


def _has_own_codes(item: Dataset) -> bool:
    for element in item:
        if element.VR == "SQ" and any(_has_own_codes(each) for each in element.value):
            return True
    return str(item.get("CodingSchemeDesignator")) == CODING_SCHEME


def _own_coding_scheme() -> Dataset:
    """C.12.1.1.1: what the local designator stands for."""
    scheme = Dataset()
    scheme.CodingSchemeDesignator = CODING_SCHEME
    scheme.CodingSchemeName = f"{MODEL_NAME} local codes"
    scheme.CodingSchemeResponsibleOrganization = MANUFACTURER
    return scheme
