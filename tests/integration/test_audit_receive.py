"""What the receiver tells the audit trail: series that came, peers that were refused, what a kill cut off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lxml import etree

from dicom_node.audit import Auditor
from dicom_node.audit.trail import Trail
from dicom_node.dimse.announce import Announcer
from dicom_node.dimse.requestor import CannotAssociate
from dicom_node.dimse.scp import Receiver
from tests.conftest import RunningReceiver
from tests.fakes.instances import SERIES, STUDY, fake_instance
from tests.integration.test_receive import association, store, wait_until
from tests.unit.test_audit_messages import SCHEMA

Start = Callable[..., RunningReceiver]


def messages(running: RunningReceiver) -> list[Any]:
    parsed = [etree.fromstring(entry.message) for entry in Trail(running.storage.root / "audit").entries()]
    for one in parsed:
        SCHEMA.assertValid(one)
    return parsed


def test_a_series_is_one_message_however_many_instances_came(start_receiver: Start) -> None:
    running = start_receiver()
    with association(running) as requested:
        for number in (1, 2, 3, 3):
            assert store(requested, fake_instance(number)) == 0x0000
    wait_until(lambda: len(messages(running)) == 1)
    (message,) = messages(running)
    identification = message.find("EventIdentification")
    assert (identification.get("EventActionCode"), identification.get("EventOutcomeIndicator")) == ("C", "0")
    study, _patient = message.findall("ParticipantObjectIdentification")
    assert study.get("ParticipantObjectID") == STUDY
    assert study.find(".//SOPClass").get("NumberOfInstances") == "4"
    users = [one.get("UserID") for one in message.findall("ActiveParticipant")]
    assert users == ["SCANNER", running.config.receive.ae_title]


def test_an_association_whose_instances_are_all_refused_is_a_transfer_that_failed(start_receiver: Start) -> None:
    running = start_receiver()
    with association(running) as requested:
        for number in (1, 2):
            assert store(requested, fake_instance(number, StudyInstanceUID="no UID")) != 0x0000
    wait_until(lambda: len(messages(running)) == 1)
    (message,) = messages(running)
    identification = message.find("EventIdentification")
    assert identification.find("EventID").get("csd-code") == "110104"
    assert identification.get("EventOutcomeIndicator") == "8"
    assert identification.findtext("EventOutcomeDescription") == "all 2 instances of the Association were refused"
    assert message.find("ActiveParticipant").get("NetworkAccessPointID") == "127.0.0.1"
    study, patient = message.findall("ParticipantObjectIdentification")
    assert study.find(".//SOPClass").get("NumberOfInstances") == "2"
    assert (study.get("ParticipantObjectID"), patient.get("ParticipantObjectID")) == ("unknown", "")


def test_an_association_that_only_echoes_leaves_no_message(start_receiver: Start) -> None:
    running = start_receiver()
    with association(running):
        pass
    with association(running) as requested:
        assert store(requested, fake_instance(1)) == 0x0000
    wait_until(lambda: len(messages(running)) == 1)
    assert messages(running)[0].find("EventIdentification").get("EventOutcomeIndicator") == "0"


def test_a_refused_peer_is_a_security_alert_with_its_address(start_receiver: Start) -> None:
    running = start_receiver(receive={"unknown_peers": "refuse"})
    with pytest.raises(CannotAssociate), association(running, calling_ae="STRANGER"):
        pass
    wait_until(lambda: len(messages(running)) == 1)
    (message,) = messages(running)
    assert message.find("EventIdentification/EventTypeCode").get("csd-code") == "110126"
    stranger = message.findall("ActiveParticipant")[1]
    assert (stranger.get("UserID"), stranger.get("NetworkAccessPointID")) == ("STRANGER", "127.0.0.1")


def test_what_a_killed_receiver_could_not_tell_the_next_one_tells(start_receiver: Start) -> None:
    running = start_receiver()
    with association(running) as requested:
        assert store(requested, fake_instance(1)) == 0x0000
    wait_until(lambda: len(messages(running)) == 1)
    running.receiver.stop(5.0)
    running.database.association_began(SERIES, "of one that was killed")
    again = Receiver(
        running.config,
        running.storage,
        running.database,
        Announcer(lambda uid, _: None, running.config.quiet_time_s),
        Auditor.of(running.config),
    )
    again.start()
    again.stop(0.0)
    late = messages(running)[1]
    assert late.find("EventIdentification").get("EventOutcomeIndicator") == "8"
    assert late.find("ParticipantObjectIdentification").get("ParticipantObjectID") == STUDY
