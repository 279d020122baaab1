"""N-EVENT-REPORT (PS3.7 10.1.1): a request that came, and the messages that we send."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

from pynetdicom.dimse_primitives import N_EVENT_REPORT


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An N-EVENT-REPORT request that came on an Association of ours."""

    context_id: int
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    type_id: int
    data_set: bytes


def event_report(
    message_id: int, sop_class_uid: str, sop_instance_uid: str, event_type: int, data_set: bytes
) -> N_EVENT_REPORT:
    """An N-EVENT-REPORT request (PS3.7 10.1.1)."""
    request = N_EVENT_REPORT()
    request.MessageID = message_id
    request.AffectedSOPClassUID = sop_class_uid
    request.AffectedSOPInstanceUID = sop_instance_uid
    request.EventTypeID = event_type
    request.EventInformation = BytesIO(data_set)
    return request


def event_answer(
    message_id: int, sop_class_uid: str, sop_instance_uid: str, event_type: int, status: int
) -> N_EVENT_REPORT:
    """The response to an N-EVENT-REPORT."""
    reply = N_EVENT_REPORT()
    reply.MessageIDBeingRespondedTo = message_id
    reply.AffectedSOPClassUID = sop_class_uid
    reply.AffectedSOPInstanceUID = sop_instance_uid
    reply.EventTypeID = event_type
    reply.Status = status
    return reply
