"""One series of a peer's archive -> us: by C-MOVE to our receiver, or by C-GET on the same Association.

PS3.4 C.4.2 and C.4.3. What arrived is for the caller to count; here is what the peer says.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from pynetdicom.dimse_primitives import C_GET, C_MOVE, C_STORE
from pynetdicom.dsutils import encode

from dicom_node.dimse import part10
from dicom_node.dimse.contexts import TRANSFER_SYNTAXES, UNCOMPRESSED
from dicom_node.dimse.intake import StoreAnswer, StoreRequest
from dicom_node.dimse.query import SYNTAXES, QueryFailed, chosen_model, identifier
from dicom_node.dimse.requestor import MAX_CONTEXTS, PENDING, NothingAccepted, Requested, associate
from dicom_node.dimse.statuses import RETRIEVE_REPLIES, SUCCESS, reply_of
from dicom_node.errors import UnreadableInstance
from dicom_node.peers import PeerConfig
from dicom_node.transfer_syntaxes import EXPLICIT_BIG, IMPLICIT_LITTLE

log = logging.getLogger(__name__)

# Study Root first, Patient Root second.
MOVE = ("1.2.840.10008.5.1.4.1.2.2.2", "1.2.840.10008.5.1.4.1.2.1.2")
GET = ("1.2.840.10008.5.1.4.1.2.2.3", "1.2.840.10008.5.1.4.1.2.1.3")
# PS3.7 C.5.6: refused, not authorized. Said to a peer that sends what was not asked for.
_NOT_ASKED_FOR = 0x0124
_MOVE_DESTINATION_UNKNOWN = 0xA801
# A peer that fetches from tape says for long that it goes on; one that never ends must not hold us for ever.
_LONGEST_STILL_S = 600.0

Store = Callable[[StoreRequest], StoreAnswer]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesKey:
    """Where a series lies in the archive. The Patient ID is needed by peers with Patient Root alone."""

    study_uid: str
    series_uid: str
    patient_id: str = field(default="", repr=False)

    def keys(self) -> dict[str, str]:
        return {
            "PatientID": self.patient_id,
            "StudyInstanceUID": self.study_uid,
            "SeriesInstanceUID": self.series_uid,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the peer says of a retrieval. sent: completed sub-operations, those with a warning too.

    problem: why it is not all, with the mend; empty on success. It never repeats the peer's own words.
    """

    sent: int
    failed: int
    status: int
    problem: str


def move(
    peer: PeerConfig,
    calling_ae: str,
    destination_ae: str,
    series: SeriesKey,
    *,
    our_port: int | None = None,
    goes_on: Callable[[], bool] = lambda: False,
    on_response: Callable[[int], None] = lambda sent: None,
) -> Said:
    """C-MOVE to `destination_ae`. goes_on: whether instances still arrive, asked when the peer is silent for long.

    Raises CannotAssociate, NoAnswer.
    """
    with associate(peer, calling_ae, [(model, [syntax]) for model in MOVE for syntax in SYNTAXES]) as association:
        model, syntax, context_id = chosen_model(association.contexts, MOVE)
        request = C_MOVE()
        request.MoveDestination = destination_ae
        _fill(request, peer, series, model, syntax)
        with contextlib.closing(association.ask(request, context_id, goes_on=goes_on)) as replies:
            sent, failed, status = _followed(replies, on_response, goes_on)
    problem = _problem(peer, status, failed)
    where = "this machine's address" + (f" and port {our_port}" if our_port is not None else "")
    if status == _MOVE_DESTINATION_UNKNOWN:
        problem = f"{peer.ae_title} does not know {destination_ae}: enter that AE title there with {where}"
    elif status >> 12 == 0xC:
        # Orthanc answers so where it does not know the destination, and where it cannot reach it.
        problem += f"; does it know {destination_ae} with {where}, and does our receiver run?"
    return Said(sent=sent, failed=failed, status=status, problem=problem)


def get(
    peer: PeerConfig,
    calling_ae: str,
    series: SeriesKey,
    storage_classes: Sequence[str],
    store: Store,
    *,
    on_response: Callable[[int], None] = lambda sent: None,
) -> Said:
    """C-GET: the peer stores to `store` on this very Association. Raises CannotAssociate, NoAnswer."""
    contexts = _get_contexts(storage_classes)
    inbound = list(dict.fromkeys(uid for uid, _ in contexts[len(GET) * len(SYNTAXES) :]))
    with associate(peer, calling_ae, contexts, as_scp=inbound) as association:
        model, syntax, context_id = chosen_model(association.contexts, GET)
        if not association.inbound:
            raise NothingAccepted(f"{peer.ae_title} does not store to us on C-GET: set its retrieve_by to c_move")
        request = C_GET()
        _fill(request, peer, series, model, syntax)
        serve = _Server(association, peer, series.series_uid, store)
        with contextlib.closing(association.ask(request, context_id, serve=serve.answer)) as replies:
            sent, failed, status = _followed(replies, on_response, serve.goes_on)
    return Said(sent=sent, failed=failed, status=status, problem=_problem(peer, status, failed))


def sends_on_get(peer: PeerConfig, calling_ae: str, storage_classes: Sequence[str]) -> set[str]:
    """Which of the classes the peer is ready to store to us on C-GET. Raises CannotAssociate, NothingAccepted."""
    contexts = _get_contexts(storage_classes)
    with associate(peer, calling_ae, contexts, as_scp=storage_classes) as association:
        chosen_model(association.contexts, GET)
        return {abstract_syntax for abstract_syntax, _ in association.inbound.values()}


class _Server:
    """We as the SCP of what a C-GET brings."""

    def __init__(self, association: Requested, peer: PeerConfig, series_uid: str, store: Store) -> None:
        self._inbound, self._peer, self._series_uid, self._store = association.inbound, peer, series_uid, store
        self._came = self._seen = 0

    def goes_on(self) -> bool:
        """Whether something came since it was asked last."""
        before, self._seen = self._seen, self._came
        return self._seen > before

    def answer(self, message: C_STORE, context_id: int) -> C_STORE:
        response = C_STORE()
        response.MessageIDBeingRespondedTo = message.MessageID
        response.AffectedSOPClassUID = message.AffectedSOPClassUID
        response.AffectedSOPInstanceUID = message.AffectedSOPInstanceUID
        response.Status = self._status(message, context_id)
        return response

    def _status(self, message: C_STORE, context_id: int) -> int:
        abstract_syntax, transfer_syntax = self._inbound.get(context_id, ("", IMPLICIT_LITTLE))
        request = StoreRequest(
            sop_class_uid=str(message.AffectedSOPClassUID),
            sop_instance_uid=str(message.AffectedSOPInstanceUID),
            abstract_syntax=abstract_syntax,
            transfer_syntax_uid=transfer_syntax,
            data_set=message.DataSet.getvalue() if message.DataSet is not None else b"",
            source_ae=self._peer.ae_title,
            source_ip=self._peer.host[:45],
        )
        if not belongs(request, self._series_uid):
            extra = {"action": "refuse", "status": f"{_NOT_ASKED_FOR:#06x}", "source_ae": self._peer.ae_title}
            log.warning("instance of another series refused", extra=extra)
            return _NOT_ASKED_FOR
        self._came += 1
        return self._store(request).status


def belongs(request: StoreRequest, series_uid: str) -> bool:
    """Whether the data set is of the series that was asked for; True also where it cannot be read: intake says why."""
    try:
        found = part10.read_identifiers(request.data_set, request.transfer_syntax_uid)
    except UnreadableInstance:
        return True
    return found.series_uid == series_uid


def _get_contexts(storage_classes: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    """C-GET itself; each class uncompressed; then, while there is room, compressed as archives hold it.

    One context a compressed syntax: in one for all, the archive would accept one of them and could send no other.
    """
    contexts: list[tuple[str, Sequence[str]]] = [(model, [syntax]) for model in GET for syntax in SYNTAXES]
    plain = [syntax for syntax in UNCOMPRESSED if syntax != EXPLICIT_BIG]
    contexts += [(uid, plain) for uid in storage_classes]
    compressed = [syntax for syntax in TRANSFER_SYNTAXES if syntax not in UNCOMPRESSED]
    contexts += [(uid, [syntax]) for uid in storage_classes for syntax in (*compressed, EXPLICIT_BIG)]
    return contexts[:MAX_CONTEXTS]


def _fill(request: Any, peer: PeerConfig, series: SeriesKey, model: str, syntax: str) -> None:
    request.AffectedSOPClassUID = model
    request.Priority = 0x00  # PS3.7 E.1: medium
    encoded = encode(identifier(peer, "SERIES", series.keys(), model), syntax == IMPLICIT_LITTLE, True)
    if encoded is None:
        raise QueryFailed("the keys of the series cannot be encoded")
    request.Identifier = BytesIO(encoded)


def _followed(
    replies: Iterable[Any], on_response: Callable[[int], None], goes_on: Callable[[], bool]
) -> tuple[int, int, int]:
    """Sent, failed and the last status; PENDING of a peer that went on saying so while nothing came."""
    sent = failed = status = 0
    deadline = time.monotonic() + _LONGEST_STILL_S
    for reply in replies:
        before = sent, failed
        # PS3.4 C.4.2.1.6: the counts are optional in some replies; what was told last holds.
        if reply.NumberOfCompletedSuboperations is not None:
            sent = reply.NumberOfCompletedSuboperations + (reply.NumberOfWarningSuboperations or 0)
        if reply.NumberOfFailedSuboperations is not None:
            failed = reply.NumberOfFailedSuboperations
        status = int(reply.Status)
        if status not in PENDING:
            continue
        on_response(sent)
        if (sent, failed) != before or goes_on():
            deadline = time.monotonic() + _LONGEST_STILL_S
        elif time.monotonic() > deadline:
            break
    return sent, failed, status


def _problem(peer: PeerConfig, status: int, failed: int) -> str:
    """The last status of a retrieval (PS3.4 Tables C.4-2 and C.4-3) in words that say what to check."""
    if status == SUCCESS and not failed:
        return ""
    if status in PENDING:
        return f"{peer.ae_title} says that it goes on, and sent nothing for {_LONGEST_STILL_S:g} s"
    what = reply_of(RETRIEVE_REPLIES, status).text.format(failed=failed)
    return f"{peer.ae_title}: {what} ({status:#06x})"
