"""Storage Commitment on one Association that a peer opened: its messages to a service, and the reports we owe it.

A report goes out on the Association that asked for it where that is still there after a moment; the service hears of
each that did not, and sends it on an Association of its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT

from dicom_node.dimse.commitment import PROCESSING_FAILURE, PUSH_MODEL_INSTANCE, Message, Report, encoded, write_report
from dicom_node.dimse.contexts import STORAGE_COMMITMENT
from dicom_node.dimse.events import event_answer, event_report
from dicom_node.logs import describe

if TYPE_CHECKING:
    from dicom_node.dimse.acceptor import Caller

log = logging.getLogger(__name__)

# A peer that wants its report on another Association releases this one within a moment; PS3.4 J.3.3 leaves it to us.
SAME_ASSOCIATION_S = 1.0

Key = tuple[str, str]  # peer, Transaction UID


class CommitmentService(Protocol):
    """Its methods are called from Associations' threads."""

    def requested(self, caller: Caller, message: Message) -> tuple[int, Key | None]:
        """The status of the N-ACTION response; on Success the key of the report that we now owe."""

    def reported(self, caller: Caller, message: Message) -> int:
        """The status of the N-EVENT-REPORT response."""

    def report(self, key: Key) -> Report | None:
        """What to report; None where it is not due any more."""

    def delivered(self, key: Key) -> None: ...

    def undelivered(self, key: Key) -> None: ...


@dataclass(slots=True, kw_only=True)
class _Owed:
    key: Key
    context_id: int
    due_at: float
    message_id: int | None = None


class CommitmentLink:
    """The Storage Commitment messages of one Association, each called from its one reactor thread."""

    def __init__(
        self,
        association: Any,
        service: CommitmentService,
        caller: Caller,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._association, self._service, self._caller, self._clock = association, service, caller, clock
        self._owed: list[_Owed] = []
        self._message_id = 0

    def serve(self, message: Any, context_id: int) -> bool:
        """False where the message is none of Storage Commitment."""
        context = self._association._accepted_cx.get(context_id)
        if context is None or context.abstract_syntax != STORAGE_COMMITMENT:
            return False
        syntax = str(context.transfer_syntax[0])
        if isinstance(message, N_ACTION) and message.is_valid_request:
            self._serve_request(message, context_id, syntax)
        elif isinstance(message, N_EVENT_REPORT) and message.is_valid_request:
            self._serve_report(message, context_id, syntax)
        elif isinstance(message, N_EVENT_REPORT) and message.is_valid_response:
            self._answered(message)
        else:
            return False
        return True

    def each_round(self) -> None:
        """Send what we owe and is due."""
        for owed in list(self._owed):
            if owed.message_id is None and owed.due_at <= self._clock():
                self._send_report(owed)

    def ended(self) -> None:
        """The Association is over: what it owes is owed elsewhere."""
        for owed in self._owed:
            self._guarded(self._service.undelivered, owed.key)
        self._owed.clear()

    def _serve_request(self, message: Any, context_id: int, syntax: str) -> None:
        received = _message(
            message.RequestedSOPClassUID,
            message.RequestedSOPInstanceUID,
            message.ActionTypeID,
            syntax,
            message.ActionInformation,
        )
        status, key = self._guarded(self._service.requested, self._caller, received) or (PROCESSING_FAILURE, None)
        reply = N_ACTION()
        reply.MessageIDBeingRespondedTo = message.MessageID
        reply.AffectedSOPClassUID = message.RequestedSOPClassUID
        reply.AffectedSOPInstanceUID = message.RequestedSOPInstanceUID
        reply.ActionTypeID = message.ActionTypeID
        reply.Status = status
        self._association.dimse.send_msg(reply, context_id)
        if key is not None:
            due_at = self._clock() + SAME_ASSOCIATION_S
            self._owed.append(_Owed(key=key, context_id=context_id, due_at=due_at))

    def _serve_report(self, message: Any, context_id: int, syntax: str) -> None:
        received = _message(
            message.AffectedSOPClassUID,
            message.AffectedSOPInstanceUID,
            message.EventTypeID,
            syntax,
            message.EventInformation,
        )
        status = self._guarded(self._service.reported, self._caller, received)
        reply = event_answer(
            message.MessageID,
            received.sop_class_uid,
            received.sop_instance_uid,
            received.type_id,
            PROCESSING_FAILURE if status is None else status,
        )
        self._association.dimse.send_msg(reply, context_id)

    def _send_report(self, owed: _Owed) -> None:
        report = self._guarded(self._service.report, owed.key)
        if report is None:
            self._owed.remove(owed)
            return
        self._message_id = owed.message_id = self._message_id % 65535 + 1
        syntax = str(self._association._accepted_cx[owed.context_id].transfer_syntax[0])
        data_set = encoded(write_report(report), syntax)
        request = event_report(owed.message_id, STORAGE_COMMITMENT, PUSH_MODEL_INSTANCE, report.event_type, data_set)
        self._association.dimse.send_msg(request, owed.context_id)

    def _answered(self, message: Any) -> None:
        for owed in self._owed:
            if owed.message_id == message.MessageIDBeingRespondedTo:
                self._owed.remove(owed)
                taken = message.Status == 0x0000
                self._guarded(self._service.delivered if taken else self._service.undelivered, owed.key)
                return

    @staticmethod
    def _guarded(function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except Exception as err:  # noqa: BLE001  the top of this Association's loop: the peer gets a status, not an abort
            log.error("Storage Commitment failed", extra={"action": "refuse", "error": describe(err)})
            return None


def _message(sop_class_uid: Any, sop_instance_uid: Any, type_id: Any, syntax: str, data_set: Any) -> Message:
    return Message(
        sop_class_uid=str(sop_class_uid),
        sop_instance_uid=str(sop_instance_uid),
        type_id=int(type_id),
        transfer_syntax_uid=syntax,
        data_set=data_set.getvalue() if data_set is not None else b"",
    )
