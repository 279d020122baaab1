"""A data set's header -> what it refers to: Tracking UIDs, Instances, series, frame of reference. Decodes no pixel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ExtensibleSRStorage,
    RTStructureSetStorage,
    SegmentationStorage,
)

from dicom_node.corrections.words import UNREADABLE, Kind
from dicom_node.errors import CorrectionUnusable
from dicom_node.growth.prior import is_ours
from dicom_node.logs import describe

LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
# What a correction may be, by its SOP Class.
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        str(SegmentationStorage): "seg",
        LABEL_MAP: "seg",
        str(EnhancedSRStorage): "sr",
        str(ComprehensiveSRStorage): "sr",
        str(Comprehensive3DSRStorage): "sr",
        str(ExtensibleSRStorage): "sr",
        str(RTStructureSetStorage): "rtstruct",
    }
)
_MOST_ELEMENTS = 2_000_000
# PS3.5 9.1. Rows are looked for by it, and PostgreSQL takes no text with a NUL.
_UID = re.compile(r"[0-9.]{1,64}")
# PS3.5 6.2: DA, TM. Senders write other texts there, of any length.
_DATE = re.compile(r"[0-9]{4}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])")
_TIME = re.compile(r"([01][0-9]|2[0-3])([0-5][0-9](([0-5][0-9]|60)(\.[0-9]{1,6})?)?)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """instances: SOP Instance UIDs that it names; replaced: those among its predecessors (PS3.3 C.17.2).

    equipment_is_ours: its Manufacturer and model name are this software's. made: content date and time, which sort.
    """

    kind: Kind
    sop_instance_uid: str
    study_uid: str
    patient_id: str
    tracking_uids: frozenset[str]
    instances: frozenset[str]
    replaced: frozenset[str]
    series_uids: frozenset[str]
    frames_of_reference: frozenset[str]
    equipment_is_ours: bool
    made: str


def references_of(header: Dataset) -> References:
    """Raises CorrectionUnusable where it is no object of KINDS, can't be read, or is larger than any reader makes."""
    try:
        return _references(header)
    except UNREADABLE as err:
        raise CorrectionUnusable(f"it can't be read: {describe(err)}") from err


def _references(header: Dataset) -> References:
    kind = KINDS.get(str(header.get("SOPClassUID") or ""))
    if kind is None:
        raise CorrectionUnusable("no Segmentation, report or Structure Set")
    found: dict[str, set[str]] = {name: set() for name in ("tracking", "instances", "series", "frames")}
    _collect(header, found)
    replaced: dict[str, set[str]] = {name: set() for name in found}
    for item in header.get("PredecessorDocumentsSequence") or ():
        _collect(item, replaced)
    own = {str(header.get("SeriesInstanceUID") or ""), str(header.get("SOPInstanceUID") or "")}
    return References(
        kind=kind,
        sop_instance_uid=str(header.get("SOPInstanceUID") or ""),
        study_uid=str(header.get("StudyInstanceUID") or ""),
        patient_id=str(header.get("PatientID") or "").strip(),
        tracking_uids=frozenset(found["tracking"]),
        instances=frozenset(found["instances"] - own),
        replaced=frozenset(replaced["instances"]),
        series_uids=frozenset(found["series"] - own),
        frames_of_reference=frozenset(found["frames"]),
        equipment_is_ours=is_ours(header),
        made=_made(header),
    )


_WHERE = {
    "TrackingUID": "tracking",
    "UID": "tracking",  # of a UIDREF content item: a Tracking UID, or one that is none of ours
    "ReferencedSOPInstanceUID": "instances",
    "SeriesInstanceUID": "series",
    "FrameOfReferenceUID": "frames",
    "ReferencedFrameOfReferenceUID": "frames",
}


def _collect(root: Dataset, found: Mapping[str, set[str]]) -> None:
    """Without recursion: how deep sequences lie is the sender's choice."""
    waiting, left = [root], _MOST_ELEMENTS
    while waiting:
        for element in waiting.pop():
            left -= 1
            if left < 0:
                raise CorrectionUnusable(f"more than {_MOST_ELEMENTS} attributes")
            if isinstance(element.value, Sequence):
                waiting += list(element.value)
            elif (where := _WHERE.get(element.keyword)) and _UID.fullmatch(uid := str(element.value)):
                found[where].add(uid)


def _made(header: Dataset) -> str:
    """Content date and time, of which only what is one is kept; a Structure Set has dates of its own."""
    for prefix in ("Content", "StructureSet", "InstanceCreation", "Series"):
        date = _matching(_DATE, header.get(f"{prefix}Date"))
        if date:
            return f"{date} {_matching(_TIME, header.get(f'{prefix}Time'))}"
    return ""


def _matching(form: re.Pattern[str], value: object) -> str:
    text = str(value or "").strip()
    return text if form.fullmatch(text) else ""
