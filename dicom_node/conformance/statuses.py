"""What is answered and what answers mean, of DIMSE and of DICOMweb -> tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from requests.structures import CaseInsensitiveDict

from dicom_node.conformance.document import Table
from dicom_node.dicomweb.client import MEANINGS, PASSING, error_of_status
from dicom_node.dicomweb.stow import kind_of
from dicom_node.dimse import scu
from dicom_node.dimse.commitment import ACTION_ANSWERS, EVENT_ANSWERS, FAILURE_REASONS
from dicom_node.dimse.statuses import (
    FIND_REPLIES,
    OTHER,
    OTHER_REPLY,
    RETRIEVE_REPLIES,
    STORE_ANSWERS,
    STORE_MEANINGS,
    Ending,
    Kind,
    Meaning,
    Reply,
)
from dicom_node.peers import DicomWebConfig, PeerConfig

_AS_USER = ("Service Status", "Further Meaning", "Status Code", "Behavior")
_STORED: Mapping[Kind, str] = {
    "stored": "the object counts as stored; a warning is kept in the ledger",
    "retry": "the object is sent again later",
    "refused": "the object is parked for an operator, with status and comment",
}
_ENDED: Mapping[Ending, str] = {
    "done": "the answers are used",
    "pending": "the answer is checked and kept",
    "partly": "what came is kept; what is missing is reported",
    "retry": "the error is reported; a scheduled pull asks again at its next turn",
    "failed": "the error is reported, with what to check",
}
_RETRIEVED: Mapping[Ending, str] = {
    **_ENDED,
    "done": "what came is counted against what the peer has and sent",
    "pending": "the count of sub-operations is kept",
}
_WEB_STORED: Mapping[scu.Kind, str] = {
    "retry": "not stored: sent again later",
    "unknown": "may have been stored: sent again later",
    "refused": "parked for an operator",
}


def tables() -> Iterator[Table]:
    """All of them; the document says where each stands."""
    yield Table(
        name="store_scu_statuses",
        title="Status Codes C-STORE for the Storage SOP Classes - SCU",
        columns=_AS_USER,
        rows=tuple(
            (each.status_class, each.meaning, _codes(each), _STORED[each.kind]) for each in (*STORE_MEANINGS, OTHER)
        ),
    )
    yield Table(
        name="store_scp_statuses",
        title="Status Codes C-STORE of the Storage SOP Classes - SCP",
        columns=("Service Status", "Further Meaning", "Status Code", "Related Fields", "Condition"),
        rows=tuple(
            (each.status_class, each.meaning, f"{each.status:04X}", "(0000,0902)" if each.status else "N/A", each.when)
            for each in STORE_ANSWERS
        ),
    )
    title = "of the Storage Commitment Push Model SOP Class"
    yield _answers("commit_action_scp", f"Status Codes for N-ACTION {title} - SCP", ACTION_ANSWERS)
    yield _answers("commit_event_scu", f"Status Codes for N-EVENT-REPORT {title} - SCU", EVENT_ANSWERS)
    yield Table(
        name="commit_reasons",
        title="Failure Conditions on Storage Commitment SCP",
        columns=("Status Code", "Meaning", "Condition"),
        rows=tuple((f"{reason:04X}", meaning, when) for reason, (meaning, when) in FAILURE_REASONS.items()),
    )
    title = "Status Codes C-FIND for Query/Retrieve FIND SOP Classes - SCU"
    yield _replies("find_statuses", title, FIND_REPLIES, _ENDED)
    title = "Status Codes C-MOVE and C-GET for Query/Retrieve MOVE and GET SOP Classes - SCU"
    yield _replies("retrieve_statuses", title, RETRIEVE_REPLIES, _RETRIEVED)
    yield _web()


def _answers(name: str, title: str, answers: Mapping[int, tuple[str, str]]) -> Table:
    return Table(
        name=name,
        title=title,
        columns=("Service Status", "Further Meaning", "Status Code", "Condition"),
        rows=tuple(
            ("Failure" if status else "Success", meaning, f"{status:04X}", when)
            for status, (meaning, when) in answers.items()
        ),
    )


def _replies(name: str, title: str, replies: tuple[Reply, ...], behaviour: Mapping[Ending, str]) -> Table:
    return Table(
        name=name,
        title=title,
        columns=_AS_USER,
        rows=tuple(
            (each.status_class, each.meaning, _codes(each), behaviour[each.ending]) for each in (*replies, OTHER_REPLY)
        ),
    )


def _codes(row: Meaning | Reply) -> str:
    if row in (OTHER, OTHER_REPLY):
        return "anything else"
    return f"{row.first:04X}" + (f"-{row.last:04X}" if row.last != row.first else "")


def _web() -> Table:
    """What the code makes of each status that it knows, and of one of each further class."""
    peer = PeerConfig(ae_title="X", host="x", dicomweb=DicomWebConfig(url="http://x"))
    named = {str(status): status for status in sorted({*MEANINGS, *PASSING})}
    rows = []
    for shown, status in {**named, "any other 3xx": 302, "any other 4xx": 499, "any other 5xx": 599}.items():
        err = error_of_status(peer, status, CaseInsensitiveDict())
        meaning = str(err).partition(f" answered {status}: ")[2]
        again = "reported; may be asked again" if err.retry_helps else "reported, with what to check"
        rows.append((shown, meaning, _WEB_STORED[kind_of(err)], again))
    return Table(
        name="web_statuses",
        title="HTTP Status Codes of DICOM Web Services",
        columns=("Status", "Taken to mean", "Store", "Search and Retrieve"),
        rows=tuple(rows),
    )
