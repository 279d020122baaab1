"""Every kind of audit message is what PS3.15 A.5 asks for, whatever its values are."""

from __future__ import annotations

import base64
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from dicom_node import audit
from dicom_node.audit import Event, Outcome, Patient, Study, User, events
from dicom_node.audit.events import AlertKind
from dicom_node.audit.message import Instances, to_xml
from dicom_node.audit.syslog import syslog_message

SCHEMA = etree.RelaxNG(etree.parse(Path(__file__).parents[1] / "data" / "audit" / "audit_message.rng"))
STUDY = Study(
    uid="1.2.3",
    patient=Patient(id="P-1", name="Doe^Jane"),
    instances=(Instances(sop_class_uid="1.2.840.10008.5.1.4.1.1.2", count=300),),
    series_uids=("1.2.3.4",),
)
USER = User(name="radiologist", address="192.0.2.7")
EVENTS: dict[str, tuple[Callable[[], Event], str]] = {
    "start": (lambda: audit.application_started("receive", ae_title="NODE"), "110100"),
    "stop": (lambda: audit.application_stopped("work"), "110100"),
    "begin": (
        lambda: audit.begin_transferring(source="NODE", destination="PACS", address="192.0.2.1", study=STUDY),
        "110102",
    ),
    "received": (
        lambda: audit.instances_transferred(
            source="PACS", destination="NODE", address="192.0.2.1", received=True, study=STUDY
        ),
        "110104",
    ),
    "sent in part": (
        lambda: audit.instances_transferred(
            source="NODE",
            destination="PACS",
            address="pacs.example",
            received=False,
            study=STUDY,
            outcome=4,
            text="1 of 2 instances stored",
        ),
        "110104",
    ),
    "accessed": (lambda: audit.instances_accessed(USER, [STUDY]), "110103"),
    "exported": (lambda: audit.exported(USER, [STUDY], to="192.0.2.7"), "110106"),
    "query": (
        lambda: audit.query(
            source="NODE", destination="PACS", address="192.0.2.1", sop_class_uid="1.2.3", identifier=b"{}"
        ),
        "110112",
    ),
    "login": (lambda: audit.login("radiologist", True, "192.0.2.7"), "110114"),
    "failed login": (lambda: audit.login("", False, None), "110114"),
    "logout": (lambda: audit.logout("radiologist", "192.0.2.7"), "110114"),
    "change": (lambda: audit.user_change(USER, "job retry", "1.2.3.4-abc"), "110113"),
    "settings read again": (
        lambda: audit.settings_read_again(USER, "receive", "/etc/dicom-node/config.yaml", "peers"),
        "110113",
    ),
    "deleted": (lambda: audit.studies_deleted([STUDY], text="older than 30 days"), "110105"),
    "deleted by hand": (lambda: audit.studies_deleted([STUDY], user=USER), "110105"),
    "alert": (lambda: audit.security_alert(address="192.0.2.9", peer="STRANGER", why="is no peer"), "110113"),
    "log used": (lambda: audit.audit_log_used(USER, "/var/lib/dicom-node/audit"), "110101"),
}


def parsed(event: Event) -> Any:
    xml = to_xml(event, at=1_700_000_000.25, source_id="NODE@host")
    assert "\n" not in xml
    return etree.fromstring(xml)


@pytest.mark.parametrize("name", EVENTS)
def test_each_kind_of_message_is_valid_by_the_schema_and_has_its_event_id(name: str) -> None:
    make, code = EVENTS[name]
    message = parsed(make())
    SCHEMA.assertValid(message)
    assert message.find("EventIdentification/EventID").get("csd-code") == code


def test_every_function_that_makes_an_event_is_among_them() -> None:
    made = [
        name
        for name, function in inspect.getmembers(events, inspect.isfunction)
        if not name.startswith("_") and inspect.signature(function).return_annotation == "Event"
    ]
    assert len(made) >= 14
    source = "".join(inspect.getsource(make) for make, _ in EVENTS.values())
    assert [name for name in made if f"audit.{name}(" not in source] == []
    assert set(made) <= set(audit.__all__)


@pytest.mark.parametrize("outcome", [0, 4, 8, 12])
@pytest.mark.parametrize("kind", ["node_authentication", "security_configuration", "software_configuration",
                                  "restricted_function", "user_security"])  # fmt: skip
def test_each_kind_of_alert_is_valid_with_each_outcome(kind: AlertKind, outcome: Outcome) -> None:
    for event in (
        audit.user_change(USER, "x", "y", kind=kind),
        audit.security_alert(address=None, peer="", why="w", kind=kind, outcome=outcome),
        audit.instances_accessed(USER, [STUDY, Study(uid="unknown")], action="D", outcome=outcome),
        audit.exported(USER, [], to="file:///x", outcome=outcome),
    ):
        SCHEMA.assertValid(parsed(event))


def test_the_schema_refuses_what_the_standard_does_not_allow() -> None:
    message = parsed(EVENTS["received"][0]())
    message.find("EventIdentification").set("EventOutcomeIndicator", "1")
    assert not SCHEMA.validate(message)
    message = parsed(EVENTS["received"][0]())
    message.remove(message.find("AuditSourceIdentification"))
    assert not SCHEMA.validate(message)


def test_a_transfer_names_both_ends_study_patient_and_count() -> None:
    message = parsed(EVENTS["received"][0]())
    roles = {p.find("RoleIDCode").get("csd-code"): p for p in message.findall("ActiveParticipant")}
    assert (roles["110153"].get("UserID"), roles["110152"].get("UserID")) == ("PACS", "NODE")
    assert roles["110153"].get("NetworkAccessPointID") == "192.0.2.1"
    study, patient = message.findall("ParticipantObjectIdentification")
    assert study.get("ParticipantObjectID") == "1.2.3"
    assert study.find(".//SOPClass").get("NumberOfInstances") == "300"
    assert (patient.get("ParticipantObjectID"), patient.findtext("ParticipantObjectName")) == ("P-1", "Doe^Jane")


def test_a_query_keeps_its_keys_in_base64() -> None:
    message = parsed(EVENTS["query"][0]())
    assert base64.b64decode(message.findtext(".//ParticipantObjectQuery")) == b"{}"


@given(st.text(), st.text(), st.text())
def test_no_value_of_a_peer_breaks_a_message(patient: str, peer: str, why: str) -> None:
    study = Study(uid="1.2", patient=Patient(id=patient, name=patient))
    transfer = audit.instances_transferred(source=peer, destination="N", received=True, study=study, text=why)
    for event in (transfer, audit.security_alert(address=None, peer=peer, why=why)):
        SCHEMA.assertValid(parsed(event))


def test_a_syslog_message_has_the_header_of_rfc_5424_and_utf_8() -> None:
    message = syslog_message("<AuditMessage/>", at=1_700_000_000.25, host="node 1.example", process="77")
    assert message == (
        b"<85>1 2023-11-14T22:13:20.250Z node1.example dicom-node 77 DICOM+RFC3881 - \xef\xbb\xbf<AuditMessage/>"
    )


def test_the_audit_trail_needs_neither_torch_nor_pydicom() -> None:
    probe = "import sys, dicom_node.audit; print([m for m in ('torch', 'pydicom', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True).stdout.strip() == "[]"
