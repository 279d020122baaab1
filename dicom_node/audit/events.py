"""A function for each kind of event that the node reports (PS3.15 A.5.3). Pure: values in, an Event out."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dicom_node.audit.message import Code, Event, Instances, Object, Participant

Outcome = Literal[0, 4, 8, 12]

# PS3.16 CID 400 (events), 401 (event types), 402 (roles), 404 (what an id is).
_APPLICATION = Code(value="110100", meaning="Application Activity")
_LOG_USED = Code(value="110101", meaning="Audit Log Used")
_BEGIN = Code(value="110102", meaning="Begin Transferring DICOM Instances")
_ACCESSED = Code(value="110103", meaning="DICOM Instances Accessed")
_TRANSFERRED = Code(value="110104", meaning="DICOM Instances Transferred")
_DELETED = Code(value="110105", meaning="DICOM Study Deleted")
_EXPORT = Code(value="110106", meaning="Export")
_QUERY = Code(value="110112", meaning="Query")
_ALERT = Code(value="110113", meaning="Security Alert")
_AUTHENTICATION = Code(value="110114", meaning="User Authentication")
_START = Code(value="110120", meaning="Application Start")
_STOP = Code(value="110121", meaning="Application Stop")
_LOGIN = Code(value="110122", meaning="Login")
_LOGOUT = Code(value="110123", meaning="Logout")
_ROLE_APPLICATION = Code(value="110150", meaning="Application")
_ROLE_LAUNCHER = Code(value="110151", meaning="Application Launcher")
_ROLE_DESTINATION = Code(value="110152", meaning="Destination Role ID")
_ROLE_SOURCE = Code(value="110153", meaning="Source Role ID")
_ROLE_MEDIA = Code(value="110154", meaning="Destination Media")
_MEDIA_URI = Code(value="110037", meaning="URI")
_ID_STUDY = Code(value="110180", meaning="Study Instance UID")
_ID_CLASS = Code(value="110181", meaning="SOP Class UID")
_ID_NODE = Code(value="110182", meaning="Node ID")
_ID_PATIENT = Code(value="2", meaning="Patient Number", system="RFC-3881")
_ID_URI = Code(value="12", meaning="URI", system="RFC-3881")
_ALERTS = {
    "node_authentication": Code(value="110126", meaning="Node Authentication"),
    "security_configuration": Code(value="110129", meaning="Security Configuration"),
    "software_configuration": Code(value="110131", meaning="Software Configuration"),
    "restricted_function": Code(value="110132", meaning="Use of Restricted Function"),
    "user_security": Code(value="110137", meaning="User Security Attributes Changed"),
}
AlertKind = Literal[
    "node_authentication", "security_configuration", "software_configuration", "restricted_function", "user_security"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who acts: a person of the web role or of the operating system. `address`: where from."""

    name: str
    address: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """As the DICOM header has it; empty where it doesn't say."""

    id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study, the part of it that was acted on, and whose it is."""

    uid: str
    patient: Patient = Patient()
    instances: tuple[Instances, ...] = ()
    series_uids: tuple[str, ...] = ()


def application_started(role: str, *, ae_title: str | None = None) -> Event:
    """A role of the node began."""
    return _application(_START, role, ae_title)


def application_stopped(role: str, *, ae_title: str | None = None) -> Event:
    """A role of the node ended in order."""
    return _application(_STOP, role, ae_title)


def begin_transferring(*, source: str, destination: str, address: str | None, study: Study) -> Event:
    """Instances are about to be sent. source, destination: AE titles; address: the destination's."""
    sender, receiver = _sender(source, _host()), _receiver(destination, address)
    return Event(id=_BEGIN, action="E", participants=(sender, receiver), objects=_studies([study]))


def instances_transferred(
    *,
    source: str,
    destination: str,
    study: Study,
    received: bool,
    address: str | None = None,
    outcome: Outcome = 0,
    text: str | None = None,
) -> Event:
    """Instances of one study were received or sent: once for a series and Association, not for each Instance.

    source, destination: AE titles. address: the peer's. received: else sent.
    """
    sender = _sender(source, address if received else _host())
    receiver = _receiver(destination, _host() if received else address)
    return Event(
        id=_TRANSFERRED,
        action="C" if received else "R",
        participants=(sender, receiver),
        outcome=outcome,
        text=text,
        objects=_studies([study]),
    )


def instances_accessed(
    user: User, studies: Sequence[Study], *, action: Literal["C", "R", "U", "D"] = "R", outcome: Outcome = 0
) -> Event:
    """Somebody looked at images or findings, or changed what is kept of them."""
    participants = (_person(user), _process(requestor=False))
    return Event(id=_ACCESSED, action=action, participants=participants, outcome=outcome, objects=_studies(studies))


def exported(user: User, studies: Sequence[Study], *, to: str, outcome: Outcome = 0) -> Event:
    """Data left the node by somebody's hand. to: an address, a path or a URI without a patient's data."""
    media = Participant(user_id=to, requestor=False, role=_ROLE_MEDIA, media=_MEDIA_URI)
    participants = (_person(user, _ROLE_SOURCE), media)
    return Event(id=_EXPORT, action="R", participants=participants, outcome=outcome, objects=_studies(studies))


def query(
    *, source: str, destination: str, address: str | None, sop_class_uid: str, identifier: bytes, outcome: Outcome = 0
) -> Event:
    """We asked a peer what it has. identifier: the keys of the query, in whatever form it went out."""
    asker = Participant(user_id=source, requestor=True, role=_ROLE_SOURCE, alternative_id=_pid(), address=_host())
    asked = Participant(user_id=destination, requestor=False, role=_ROLE_DESTINATION, address=address)
    what = Object(id=sop_class_uid, id_type=_ID_CLASS, type="2", role="3", query=identifier)
    return Event(id=_QUERY, action="E", participants=(asker, asked), outcome=outcome, objects=(what,))


def login(user: str, ok: bool, address: str | None) -> Event:
    """Somebody logged in, or tried to."""
    return _authentication(_LOGIN, user, address, 0 if ok else 4)


def logout(user: str, address: str | None) -> Event:
    """Somebody logged out."""
    return _authentication(_LOGOUT, user, address, 0)


def user_change(user: User, action: str, target: str, *, kind: AlertKind = "restricted_function") -> Event:
    """Somebody changed jobs, settings, models or users. action: "job retry"; target: a job's id, a name, a path."""
    what = Object(
        id=target, id_type=_ID_NODE, type="2", role="13", name=action, details=(("Alert Description", action),)
    )
    participants = (_person(user), _process(requestor=False))
    return Event(id=_ALERT, type=_ALERTS[kind], action="E", participants=participants, objects=(what,))


def settings_read_again(user: User, role: str, source: str, what: str, *, outcome: Outcome = 0) -> Event:
    """A role read its settings again. source: their file; what: the sections that changed, or the failure."""
    text = f"{role} read its settings again: {what}"
    details = (("Alert Description", text),)
    file = Object(id=source, id_type=_ID_URI, type="2", role="13", name="settings", details=details)
    return Event(
        id=_ALERT,
        type=_ALERTS["security_configuration"],
        action="E",
        participants=(_person(user), _process(requestor=False)),
        outcome=outcome,
        text=text,
        objects=(file,),
    )


def studies_deleted(studies: Sequence[Study], *, user: User | None = None, text: str | None = None) -> Event:
    """Files and rows were removed, by somebody or by the node's own retention."""
    who = _process(requestor=True) if user is None else _person(user)
    return Event(id=_DELETED, action="D", participants=(who,), text=text, objects=_studies(studies))


def security_alert(
    *, address: str | None, peer: str, why: str, kind: AlertKind = "node_authentication", outcome: Outcome = 4
) -> Event:
    """A peer was refused, or something else that who looks after security should see. peer: what it calls itself."""
    caller = Participant(user_id=peer or address or "unknown", requestor=True, address=address)
    details = (("Alert Description", why),)
    subject = Object(id=_host(), id_type=_ID_NODE, type="2", role="13", name="dicom-node", details=details)
    participants = (_process(requestor=False), caller)
    return Event(
        id=_ALERT,
        type=_ALERTS[kind],
        action="E",
        participants=participants,
        outcome=outcome,
        text=why,
        objects=(subject,),
    )


def audit_log_used(user: User, folder: str) -> Event:
    """Somebody read the audit trail."""
    log = Object(id=folder, id_type=_ID_URI, type="2", role="13", name="Security Audit Log")
    return Event(id=_LOG_USED, action="R", participants=(_person(user),), objects=(log,))


def _application(kind: Code, role: str, ae_title: str | None) -> Event:
    alternative = _pid() if ae_title is None else f"AETITLES={ae_title}"
    application = Participant(
        user_id=f"dicom-node/{role}",
        requestor=False,
        role=_ROLE_APPLICATION,
        alternative_id=alternative,
        address=_host(),
    )
    launcher = Participant(user_id=os_user(), requestor=True, role=_ROLE_LAUNCHER)
    return Event(id=_APPLICATION, type=kind, action="E", participants=(application, launcher))


def _authentication(kind: Code, user: str, address: str | None, outcome: Outcome) -> Event:
    person = Participant(user_id=user or "unknown", requestor=True, address=address)
    participants = (person, _process(requestor=False))
    return Event(id=_AUTHENTICATION, type=kind, action="E", participants=participants, outcome=outcome)


def _sender(ae_title: str, address: str | None) -> Participant:
    return Participant(user_id=ae_title or "unknown", requestor=True, role=_ROLE_SOURCE, address=address)


def _receiver(ae_title: str, address: str | None) -> Participant:
    return Participant(user_id=ae_title or "unknown", requestor=False, role=_ROLE_DESTINATION, address=address)


def _studies(studies: Sequence[Study]) -> tuple[Object, ...]:
    """Each study, then each patient once (PS3.15 A.5.3.6 and its like want both)."""
    objects = [
        Object(
            id=study.uid,
            id_type=_ID_STUDY,
            type="2",
            role="3",
            name="study",
            details=tuple(("Series Instance UID", uid) for uid in study.series_uids),
            instances=study.instances,
        )
        for study in studies
    ]
    patients = dict.fromkeys(study.patient for study in studies)
    objects += [Object(id=p.id, id_type=_ID_PATIENT, type="1", role="1", name=p.name) for p in patients]
    return tuple(objects)


def _person(user: User, role: Code | None = None) -> Participant:
    return Participant(user_id=user.name or "unknown", requestor=True, role=role, address=user.address)


def _process(*, requestor: bool) -> Participant:
    return Participant(user_id="dicom-node", requestor=requestor, alternative_id=_pid(), address=_host())


def os_user() -> str:
    """Who runs this process: the name behind sudo where there is one, else the account's."""
    import getpass

    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as containers have
        return str(os.getuid())


def process_user() -> User:
    """Whom this process runs as, whatever its environment says."""
    import pwd

    try:
        return User(name=pwd.getpwuid(os.getuid()).pw_name)
    except KeyError:  # an account without a name, as containers have
        return User(name=str(os.getuid()))


def _host() -> str:
    return socket.gethostname()


def _pid() -> str:
    return str(os.getpid())
