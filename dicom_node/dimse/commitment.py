"""Storage Commitment Push Model (PS3.4 J): data sets of requests and reports; asking a peer, reporting to one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

from pydicom.dataset import Dataset
from pynetdicom.dsutils import decode, encode

from dicom_node.dimse.contexts import STORAGE_COMMITMENT
from dicom_node.dimse.requestor import associate
from dicom_node.errors import DeliveryError, DicomNodeError, InvalidUID
from dicom_node.peers import PeerConfig
from dicom_node.storage import checked_uid
from dicom_node.transfer_syntaxes import EXPLICIT_LITTLE, IMPLICIT_LITTLE

# PS3.4 J.3.5: the well-known Instance that all requests and reports are about.
PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1.1"
# PS3.4 J.3.2.1.1 and J.3.3.1.1.
REQUEST_COMMITMENT = 1
ALL_KEPT, FAILURES_EXIST = 1, 2
# PS3.7 10.1.1.1.8 and 10.1.4.1.10.
SUCCESS, PROCESSING_FAILURE, NO_SUCH_INSTANCE = 0x0000, 0x0110, 0x0112
NO_SUCH_EVENT_TYPE, INVALID_ARGUMENT, NO_SUCH_CLASS = 0x0113, 0x0115, 0x0118
CLASS_INSTANCE_CONFLICT, NO_SUCH_ACTION, NOT_AUTHORIZED = 0x0119, 0x0123, 0x0124
RESOURCE_LIMITATION = 0x0213
MAX_REFERENCES = 10_000

# What we answer, and when; also for the conformance statement.
_INVALID: Mapping[int, tuple[str, str]] = {
    PROCESSING_FAILURE: ("Processing failure", "an unexpected failure of the node"),
    NO_SUCH_INSTANCE: ("No such SOP Instance", "it is not about the well-known Instance of the Push Model"),
    INVALID_ARGUMENT: ("Invalid argument value", "the data set can't be read, or lacks a valid UID or all references"),
    NO_SUCH_CLASS: ("No such SOP Class", "it is about another SOP Class"),
    RESOURCE_LIMITATION: (
        "Resource limitation",
        f"more than {MAX_REFERENCES} references, or the database can't be written",
    ),
}
ACTION_ANSWERS: Mapping[int, tuple[str, str]] = {
    SUCCESS: ("Success", "the request is recorded; its report follows, also after a restart"),
    **_INVALID,
    NO_SUCH_ACTION: ("No such action", "an Action Type other than 1"),
    NOT_AUTHORIZED: ("Refused: Not authorized", "the caller is no peer with `may_send`"),
}
EVENT_ANSWERS: Mapping[int, tuple[str, str]] = {
    SUCCESS: ("Success", "the ledger has what is reported; also for a report that comes again"),
    **_INVALID,
    INVALID_ARGUMENT: (
        "Invalid argument value",
        "the data set can't be read, or the Transaction UID or all references are none of ours",
    ),
    NO_SUCH_EVENT_TYPE: ("No such event type", "an Event Type other than 1 and 2"),
    NOT_AUTHORIZED: ("Refused: Not authorized", "another destination was asked in that transaction"),
}
FAILURE_REASONS: Mapping[int, tuple[str, str]] = {
    NO_SUCH_INSTANCE: ("No such object instance", "not received, or not kept any more"),
    CLASS_INSTANCE_CONFLICT: ("Class / Instance conflict", "received under another SOP Class"),
}

Reference = tuple[str, str]  # SOP Class UID, SOP Instance UID

SYNTAXES = (EXPLICIT_LITTLE, IMPLICIT_LITTLE)

_CONTEXTS = [(STORAGE_COMMITMENT, SYNTAXES)]


class InvalidMessage(DicomNodeError):
    """A request or report that is none. `status`: what its sender is told."""

    def __init__(self, text: str, status: int = INVALID_ARGUMENT) -> None:
        super().__init__(text)
        self.status = status


class CommitmentRefused(DeliveryError):
    """The peer answered, and does not take the request or the report."""

    retry_helps = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """An N-ACTION or N-EVENT-REPORT as it came. type_id: its Action Type or Event Type."""

    sop_class_uid: str
    sop_instance_uid: str
    type_id: int
    transfer_syntax_uid: str
    data_set: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of a transaction. reasons: 0 where the object is kept, else its Failure Reason (PS3.3 C.14.1.1)."""

    transaction_uid: str
    reasons: Mapping[Reference, int]

    @property
    def event_type(self) -> int:
        return FAILURES_EXIST if any(self.reasons.values()) else ALL_KEPT


def read_request(message: Message) -> tuple[str, list[Reference]]:
    """Transaction UID and references. Raises InvalidMessage."""
    _check_addressed(message)
    if message.type_id != REQUEST_COMMITMENT:
        raise InvalidMessage("no such action type", NO_SUCH_ACTION)
    data_set = _decoded(message)
    references = _references(data_set, "ReferencedSOPSequence")
    if not references:
        raise InvalidMessage("the request names no object")
    return _transaction_uid(data_set), list(references)


def read_report(message: Message) -> Report:
    """Raises InvalidMessage, also where a reference is reported both kept and failed: nothing is guessed."""
    _check_addressed(message)
    if message.type_id not in (ALL_KEPT, FAILURES_EXIST):
        raise InvalidMessage("no such event type", NO_SUCH_EVENT_TYPE)
    data_set = _decoded(message)
    kept = dict.fromkeys(_references(data_set, "ReferencedSOPSequence"), 0)
    failed = _references(data_set, "FailedSOPSequence")
    if failed.keys() & kept.keys():
        raise InvalidMessage("an object is reported both kept and failed")
    if not kept and not failed:
        raise InvalidMessage("the report names no object")
    return Report(transaction_uid=_transaction_uid(data_set), reasons={**kept, **failed})


def write_request(transaction_uid: str, references: Sequence[Reference]) -> Dataset:
    """The Action Information of a request (PS3.4 Table J.3-1)."""
    data_set = Dataset()
    data_set.TransactionUID = transaction_uid
    data_set.ReferencedSOPSequence = [_item(reference) for reference in references]
    return data_set


def write_report(report: Report) -> Dataset:
    """The Event Information of a report (PS3.4 Table J.3-2)."""
    data_set = Dataset()
    data_set.TransactionUID = report.transaction_uid
    kept = [_item(reference) for reference, reason in report.reasons.items() if not reason]
    failed = [_item(reference, reason) for reference, reason in report.reasons.items() if reason]
    if kept:
        data_set.ReferencedSOPSequence = kept
    if failed:
        data_set.FailedSOPSequence = failed
    return data_set


def encoded(data_set: Dataset, transfer_syntax_uid: str) -> bytes:
    """Little endian, as all that we negotiate for Storage Commitment."""
    data = encode(data_set, transfer_syntax_uid == IMPLICIT_LITTLE, True)
    assert data is not None  # noqa: S101  made of UIDs and numbers alone
    return data


def ask(
    peer: PeerConfig,
    calling_ae: str,
    transaction_uid: str,
    references: Sequence[Reference],
    *,
    on_taken: Callable[[], None],
    on_report: Callable[[Message], int],
    wait_s: float,
) -> None:
    """Request Storage Commitment; its report is answered where it comes on this Association within `wait_s`.

    Raises CannotAssociate, CommitmentRefused, NoAnswer (whether the peer took it is unknown).
    """
    with associate(peer, calling_ae, _CONTEXTS) as association:
        ((_, syntax), context_id) = next(iter(association.contexts.items()))
        status = association.action(
            context_id,
            STORAGE_COMMITMENT,
            PUSH_MODEL_INSTANCE,
            REQUEST_COMMITMENT,
            encoded(write_request(transaction_uid, references), syntax),
        )
        if status != SUCCESS:
            raise CommitmentRefused(_refusal(peer, status))
        on_taken()
        event = association.event(wait_s)
        if event is not None:
            association.answer_event(
                event,
                on_report(
                    Message(
                        sop_class_uid=event.sop_class_uid,
                        sop_instance_uid=event.sop_instance_uid,
                        type_id=event.type_id,
                        transfer_syntax_uid=syntax,
                        data_set=event.data_set,
                    )
                ),
            )


def report_to(peer: PeerConfig, calling_ae: str, report: Report) -> None:
    """Send a report on an Association of its own. Raises CannotAssociate, CommitmentRefused, NoAnswer."""
    # PS3.4 J.3.1 and PS3.7 D.3.3.4: who requests the Association and is the SCP says so by role selection.
    with associate(peer, calling_ae, _CONTEXTS, as_scp=(STORAGE_COMMITMENT,)) as association:
        ((_, syntax), context_id) = next(iter(association.contexts.items()))
        status = association.report(
            context_id,
            STORAGE_COMMITMENT,
            PUSH_MODEL_INSTANCE,
            report.event_type,
            encoded(write_report(report), syntax),
        )
    if status != SUCCESS:
        raise CommitmentRefused(_refusal(peer, status))


def negotiate(peer: PeerConfig, calling_ae: str) -> None:
    """Whether the peer would take a request. Raises CannotAssociate with what to check."""
    with associate(peer, calling_ae, _CONTEXTS):
        pass


def _refusal(peer: PeerConfig, status: int) -> str:
    # Not its comment, which is about many objects and may quote any of them.
    return f"{peer.ae_title} refused Storage Commitment with status {status:#06x}"


def _check_addressed(message: Message) -> None:
    if message.sop_class_uid != STORAGE_COMMITMENT:
        raise InvalidMessage("no such SOP Class", NO_SUCH_CLASS)
    if message.sop_instance_uid != PUSH_MODEL_INSTANCE:
        raise InvalidMessage("no such SOP Instance", NO_SUCH_INSTANCE)


def _decoded(message: Message) -> Dataset:
    try:
        data_set: Dataset = decode(BytesIO(message.data_set), message.transfer_syntax_uid == IMPLICIT_LITTLE, True)
        list(data_set.iterall())  # pydicom reads what is nested only when it is asked for
    except Exception as err:  # noqa: BLE001  pydicom raises whatever it stumbles over, and quotes the data set
        raise InvalidMessage(f"the data set cannot be read ({type(err).__name__})") from None
    return data_set


def _transaction_uid(data_set: Dataset) -> str:
    return _uid(data_set, "TransactionUID")


def _references(data_set: Dataset, keyword: str) -> dict[Reference, int]:
    """References of a sequence with their Failure Reasons; a failed one without a reason is a processing failure."""
    items = data_set.get(keyword) or []
    if len(items) > MAX_REFERENCES:
        raise InvalidMessage(f"more than {MAX_REFERENCES} objects in one message", RESOURCE_LIMITATION)
    references: dict[Reference, int] = {}
    for item in items:
        reference = (_uid(item, "ReferencedSOPClassUID"), _uid(item, "ReferencedSOPInstanceUID"))
        reason = item.get("FailureReason")
        references[reference] = reason if isinstance(reason, int) and 0 < reason <= 0xFFFF else PROCESSING_FAILURE
    return references


def _uid(data_set: Dataset, keyword: str) -> str:
    try:
        return checked_uid(data_set.get(keyword), keyword)
    except InvalidUID as err:
        raise InvalidMessage(str(err)) from err


def _item(reference: Reference, reason: int = 0) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = reference
    if reason:
        item.FailureReason = reason
    return item
