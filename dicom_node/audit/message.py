"""Event -> the XML of one DICOM audit message, in the order and with the attributes of the schema (PS3.15 A.5.1)."""

from __future__ import annotations

import base64
import ipaddress
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from xml.etree.ElementTree import Element, SubElement, tostring

Action = Literal["C", "R", "U", "D", "E"]

# Application Server process (PS3.15 A.5.1.2.1).
_SOURCE_TYPE = "4"
_MACHINE_NAME, _IP_ADDRESS = "1", "2"
# XML 1.0 has no place for these, not even escaped: what a peer sends may hold any of them.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A coded value; DCM unless said otherwise (PS3.16 Annex D)."""

    value: str
    meaning: str
    system: str = "DCM"


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """A person, process or node that took part. `address`: an IP address or a host name. `media`: only of an export."""

    user_id: str
    requestor: bool
    role: Code | None = None
    alternative_id: str | None = None
    name: str | None = None
    address: str | None = None
    media: Code | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Instances:
    """How many Instances of a SOP Class."""

    sop_class_uid: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """What was acted on. type, role: as in PS3.15 A.5.1. `query`: takes the place of the name.

    details: (type, value), written in base64 so that no value can pass for XML.
    """

    id: str
    id_type: Code
    type: str
    role: str
    name: str = ""
    query: bytes | None = None
    details: tuple[tuple[str, str], ...] = ()
    instances: tuple[Instances, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One audit message but for its time and its source, which the Auditor knows.

    outcome: 0 success, 4 minor, 8 serious, 12 major failure. text: EventOutcomeDescription, no patient's data.
    """

    id: Code
    action: Action
    participants: tuple[Participant, ...]
    type: Code | None = None
    outcome: Literal[0, 4, 8, 12] = 0
    text: str | None = None
    objects: tuple[Object, ...] = ()

    def __post_init__(self) -> None:
        if not self.participants:
            raise ValueError("an audit message needs an ActiveParticipant")


def to_xml(event: Event, *, at: float, source_id: str) -> str:
    """One line of XML. at: seconds since the epoch. source_id: AuditSourceID, which node reports it."""
    root = Element("AuditMessage")
    when = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    identification = SubElement(
        root,
        "EventIdentification",
        EventActionCode=event.action,
        EventDateTime=when,
        EventOutcomeIndicator=str(event.outcome),
    )
    _coded(identification, "EventID", event.id)
    if event.type is not None:
        _coded(identification, "EventTypeCode", event.type)
    if event.text:
        SubElement(identification, "EventOutcomeDescription").text = _clean(event.text)
    for participant in event.participants:
        _participant(root, participant)
    source = SubElement(root, "AuditSourceIdentification", AuditSourceID=_clean(source_id))
    SubElement(source, "AuditSourceTypeCode", {"csd-code": _SOURCE_TYPE})
    for each in event.objects:
        _object(root, each)
    # Line breaks within values become references, so one message is one line, whatever a peer sent.
    return tostring(root, encoding="unicode").replace("\r", "&#13;").replace("\n", "&#10;")


def _participant(root: Element, one: Participant) -> None:
    element = SubElement(
        root, "ActiveParticipant", UserID=_clean(one.user_id), UserIsRequestor="true" if one.requestor else "false"
    )
    if one.alternative_id:
        element.set("AlternativeUserID", _clean(one.alternative_id))
    if one.name:
        element.set("UserName", _clean(one.name))
    if one.address:
        element.set("NetworkAccessPointID", _clean(one.address))
        element.set("NetworkAccessPointTypeCode", _IP_ADDRESS if _is_ip(one.address) else _MACHINE_NAME)
    if one.role is not None:
        _coded(element, "RoleIDCode", one.role)
    if one.media is not None:
        _coded(SubElement(element, "MediaIdentifier"), "MediaType", one.media)


def _object(root: Element, one: Object) -> None:
    element = SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=_clean(one.id),
        ParticipantObjectTypeCode=one.type,
        ParticipantObjectTypeCodeRole=one.role,
    )
    _coded(element, "ParticipantObjectIDTypeCode", one.id_type)
    if one.query is not None:
        SubElement(element, "ParticipantObjectQuery").text = base64.b64encode(one.query).decode()
    else:
        SubElement(element, "ParticipantObjectName").text = _clean(one.name)
    for kind, value in one.details:
        encoded = base64.b64encode(value.encode("utf-8", "replace")).decode()
        SubElement(element, "ParticipantObjectDetail", type=kind, value=encoded)
    if one.instances:
        description = SubElement(element, "ParticipantObjectDescription")
        for some in one.instances:
            uid = _clean(some.sop_class_uid)
            SubElement(description, "SOPClass", UID=uid, NumberOfInstances=str(some.count))


def _coded(parent: Element, tag: str, code: Code) -> None:
    attributes = {"csd-code": code.value, "codeSystemName": code.system, "originalText": code.meaning}
    SubElement(parent, tag, attributes)


def _clean(text: str) -> str:
    return _NOT_XML.sub("?", text)


def _is_ip(address: str) -> bool:
    try:
        ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return True
