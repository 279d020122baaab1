"""DIMSE statuses, each once: what we answer and when, what we make of an answer. Code and conformance statement read
the same tables (PS3.4 B.2.3, PS3.7 Annex C)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dicom_node.errors import DicomNodeError, InvalidUID, StorageError, UnreadableInstance

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
SOP_CLASS_NOT_SUPPORTED = 0x0122
OUT_OF_RESOURCES = 0xA700
DATA_SET_DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000

Class = Literal["Success", "Warning", "Failure", "Pending", "Cancel"]
# Of a C-STORE.
Kind = Literal["stored", "retry", "refused"]
# Of a query or a retrieval.
Ending = Literal["done", "pending", "partly", "retry", "failed"]


class DataSetMismatch(DicomNodeError):
    """The data set is not the Instance that the C-STORE request announced."""


class ClassNotNegotiated(DicomNodeError):
    """The request names another SOP Class than its Presentation Context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A status that we give. `after`: the errors that lead to it, none for those that the caller gives himself."""

    status: int
    status_class: Class
    meaning: str
    when: str
    after: tuple[type[Exception], ...] = ()


# The first row whose `after` holds decides.
STORE_ANSWERS = (
    Answer(
        status=SUCCESS,
        status_class="Success",
        meaning="Success",
        when="the Instance is flushed to the disk; also for one that is there already",
    ),
    Answer(
        status=SOP_CLASS_NOT_SUPPORTED,
        status_class="Failure",
        meaning="SOP Class not supported",
        when="the request names another SOP Class than its Presentation Context",
        after=(ClassNotNegotiated,),
    ),
    Answer(
        status=DATA_SET_DOES_NOT_MATCH,
        status_class="Failure",
        meaning="Data Set does not match SOP Class",
        # UIDs are Type 1 of every storage IOD: without valid ones the data set is readable but is no such object.
        when="SOP Class or Instance UID of the data set is not that of the request, or a Study, Series or SOP "
        "Instance UID is absent or no valid UID",
        after=(InvalidUID, DataSetMismatch),
    ),
    Answer(
        status=CANNOT_UNDERSTAND,
        status_class="Failure",
        meaning="Cannot understand",
        when="the data set is absent or can't be parsed",
        after=(UnreadableInstance,),
    ),
    Answer(
        status=OUT_OF_RESOURCES,
        status_class="Failure",
        meaning="Out of Resources",
        # 0xA7xx says that our resources failed, so the peer may try again. 0xCxxx would blame its data.
        when="less than `storage.min_free_gb` is free, the data set is larger than the node takes, or file or "
        "database can't be written: to be sent again later",
        after=(StorageError,),
    ),
    Answer(
        status=PROCESSING_FAILURE,
        status_class="Failure",
        meaning="Processing failure",
        when="an unexpected failure of the node",
        after=(Exception,),
    ),
)


def store_status(err: Exception) -> int:
    """The status of a C-STORE response after this error."""
    return next(answer.status for answer in STORE_ANSWERS if isinstance(err, answer.after))


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What a status from `first` to `last` of a C-STORE response means to us as SCU.

    kind: stored (the peer has it), retry (later), refused (an operator must look).
    """

    first: int
    last: int
    status_class: Class
    meaning: str
    kind: Kind
    text: str


def _one(status: int, status_class: Class, meaning: str, kind: Kind, text: str = "") -> Meaning:
    return Meaning(
        first=status, last=status, status_class=status_class, meaning=meaning, kind=kind, text=text or meaning.lower()
    )


STORE_MEANINGS = (
    _one(0x0000, "Success", "Success", "stored"),
    _one(0xB000, "Warning", "Coercion of Data Elements", "stored", "stored, some elements coerced"),
    _one(0xB006, "Warning", "Elements Discarded", "stored", "stored, some elements discarded"),
    _one(
        0xB007,
        "Warning",
        "Data Set does not match SOP Class",
        "stored",
        "stored, though the data set does not match its SOP Class",
    ),
    # Our UIDs follow content, so what is there under this UID is this object.
    _one(0x0111, "Failure", "Duplicate SOP Instance", "stored", "was there already"),
    Meaning(
        first=0xA700,
        last=0xA7FF,
        status_class="Failure",
        meaning="Out of Resources",
        kind="retry",
        text="the peer is out of resources",
    ),
    Meaning(
        first=0xA900,
        last=0xA9FF,
        status_class="Failure",
        meaning="Data Set does not match SOP Class",
        kind="refused",
        text="the data set does not match its SOP Class",
    ),
    Meaning(
        first=0xC000,
        last=0xCFFF,
        status_class="Failure",
        meaning="Cannot understand",
        kind="refused",
        text="the peer cannot understand the data set",
    ),
    _one(0x0110, "Failure", "Processing failure", "refused"),
    _one(0x0117, "Failure", "Invalid SOP Instance", "refused", "invalid SOP Instance"),
    _one(0x0122, "Failure", "SOP Class not supported", "refused", "SOP Class not supported"),
    _one(0x0124, "Failure", "Not authorized", "refused"),
    _one(0x0210, "Failure", "Duplicate invocation", "refused"),
    _one(0x0211, "Failure", "Unrecognized operation", "refused"),
    _one(0x0212, "Failure", "Mistyped argument", "refused"),
)
OTHER = Meaning(
    first=0x0000, last=0xFFFF, status_class="Failure", meaning="Other", kind="refused", text="unknown status"
)


def store_meaning(status: int) -> Meaning:
    """What a C-STORE status means to us as SCU; a status that no row names is a refusal."""
    return next((m for m in STORE_MEANINGS if m.first <= status <= m.last), OTHER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a status from `first` to `last` of a C-FIND, C-MOVE or C-GET response means to us as SCU.

    ending: done; pending (more replies follow); partly (not all came); retry (asking again can help); failed.
    """

    first: int
    last: int
    status_class: Class
    meaning: str
    ending: Ending
    text: str


def _reply(first: int, last: int, status_class: Class, meaning: str, ending: Ending, text: str = "") -> Reply:
    return Reply(
        first=first, last=last, status_class=status_class, meaning=meaning, ending=ending, text=text or meaning.lower()
    )


_COMMON = (
    _reply(
        0xA900,
        0xA9FF,
        "Failure",
        "Data Set does not match SOP Class",
        "failed",
        "it says that the keys do not fit the query model",
    ),
    _reply(0xC000, 0xCFFF, "Failure", "Unable to process", "retry", "it is unable to process it"),
    _reply(0x0122, 0x0122, "Failure", "SOP Class not supported", "failed", "SOP Class not supported"),
)
# PS3.4 Table C.4-1.
FIND_REPLIES = (
    _reply(0x0000, 0x0000, "Success", "Matching is complete", "done"),
    _reply(0xA700, 0xA7FF, "Failure", "Out of Resources", "retry", "it is out of resources"),
    *_COMMON,
    _reply(0x0124, 0x0124, "Failure", "Not authorized", "failed", "not authorized: it must let us query"),
    _reply(0xFE00, 0xFE00, "Cancel", "Matching terminated due to cancel", "failed", "cancelled"),
    _reply(0xFF00, 0xFF01, "Pending", "Matches are continuing", "pending"),
)
# PS3.4 Tables C.4-2 and C.4-3.
RETRIEVE_REPLIES = (
    _reply(0x0000, 0x0000, "Success", "Sub-operations complete", "done", "{failed} sub-operations failed"),
    _reply(0xB000, 0xB000, "Warning", "One or more failures", "partly", "{failed} sub-operations failed"),
    _reply(
        0xA701,
        0xA701,
        "Failure",
        "Out of Resources, unable to calculate number of matches",
        "retry",
        "it is out of resources and cannot count what matches",
    ),
    _reply(
        0xA702,
        0xA702,
        "Failure",
        "Out of Resources, unable to perform sub-operations",
        "retry",
        "it could not send: does our receiver run, is our address right there, and may it store to us",
    ),
    _reply(
        0xA801,
        0xA801,
        "Failure",
        "Move Destination unknown",
        "failed",
        "it does not know the AE title that it is to send to",
    ),
    *_COMMON,
    _reply(0x0124, 0x0124, "Failure", "Not authorized", "failed", "not authorized: it must let us retrieve"),
    _reply(0xFE00, 0xFE00, "Cancel", "Terminated due to cancel", "failed", "cancelled"),
    _reply(0xFF00, 0xFF00, "Pending", "Sub-operations are continuing", "pending"),
)
OTHER_REPLY = _reply(0x0000, 0xFFFF, "Failure", "Other", "failed", "unknown status")


def reply_of(replies: tuple[Reply, ...], status: int) -> Reply:
    """The row of a status; OTHER_REPLY where none has it."""
    return next((reply for reply in replies if reply.first <= status <= reply.last), OTHER_REPLY)
