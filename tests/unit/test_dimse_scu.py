"""What a status means, and what is proposed to a peer."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless

from dicom_node.dimse import scu
from dicom_node.dimse.contexts import (
    CT_IMAGE,
    STORAGE_CLASSES,
    TRANSFER_SYNTAXES,
    accepted_classes,
    supported_contexts,
)
from dicom_node.dimse.scu import Outcome, outcome_of
from dicom_node.peers import PeerConfig
from tests.fakes.instances import fake_instance

HERE = Path("x.dcm")


@pytest.mark.parametrize(
    ("statuses", "kind"),
    [
        ((0x0000, 0xB000, 0xB006, 0xB007, 0x0111), "stored"),
        ((0xA700, 0xA701, 0xA7FF), "retry"),
        ((0xA900, 0xA9FF, 0xC000, 0xC123, 0xCFFF, 0x0122, 0x0110, 0x0117, 0x0124, 0xFE00, 0x1234, 0xA800), "refused"),
    ],
)
def test_each_status_has_its_kind(statuses: tuple[int, ...], kind: str) -> None:
    assert {status: outcome_of(HERE, status).kind for status in statuses} == dict.fromkeys(statuses, kind)


def test_success_has_nothing_to_say_and_everything_else_has() -> None:
    assert outcome_of(HERE, 0x0000).message == ""
    assert outcome_of(HERE, 0xB000).message == "stored, some elements coerced"
    assert outcome_of(HERE, 0xA700).message == "the peer is out of resources"
    assert "0xc123" in outcome_of(HERE, 0xC123).message


def test_each_file_s_own_syntax_is_proposed_and_one_that_all_can_read(tmp_path: Path) -> None:
    plain, packed = ExplicitVRLittleEndian, JPEGLSLossless
    files = [fake_instance(n, transfer_syntax=uid).write(tmp_path) for n, uid in enumerate((plain, packed, plain))]
    contexts = scu._contexts([scu.examined(path) for path in files])
    assert contexts == [(CTImageStorage, [plain]), (CTImageStorage, [packed]), (CTImageStorage, scu.FALLBACK)]


def test_a_folder_of_many_classes_is_split_into_associations() -> None:
    objects = [
        scu.SendObject(
            path=Path(f"{n}"),
            sop_class_uid=f"1.2.{n}",
            sop_instance_uid=f"1.3.{n}",
            transfer_syntax_uid=str(JPEGLSLossless),
            data_set_at=0,
            size_bytes=1,
        )
        for n in range(100)
    ]
    first = scu._batch(objects)
    assert len(first) == 64
    assert len(scu._contexts(first)) == 128
    assert len(scu._batch(objects[64:])) == 36


def test_files_that_are_no_objects_are_refused_without_a_peer(tmp_path: Path) -> None:
    (tmp_path / "text.dcm").write_text("hello")
    nobody = PeerConfig(ae_title="X", host="192.0.2.1")
    outcomes = list(scu.send([tmp_path / "text.dcm", tmp_path / "absent.dcm"], nobody, "NODE"))
    assert [o.kind for o in outcomes] == ["refused", "refused"]
    assert "not a DICOM file" in outcomes[0].message
    assert "No such file" in outcomes[1].message


def test_a_peer_without_a_port_can_be_sent_to_once_it_has_one(tmp_path: Path) -> None:
    path = fake_instance().write(tmp_path)
    assert list(scu.send([path], PeerConfig(ae_title="X", host="127.0.0.1"), "NODE")) == [
        Outcome(path=path, kind="retry", status=None, message="X has no port: set its port in config.yaml")
    ]


def test_nothing_to_send_is_no_association() -> None:
    assert list(scu.send([], PeerConfig(ae_title="X", host="192.0.2.1"), "NODE")) == []


# -- what the acceptor offers ------------------------------------------------------------------------


def test_ct_is_accepted_with_every_syntax_and_uncompressed_first() -> None:
    (ct,) = [cx for cx in supported_contexts(()) if cx.abstract_syntax == CT_IMAGE]
    assert tuple(map(str, ct.transfer_syntax)) == TRANSFER_SYNTAXES
    assert TRANSFER_SYNTAXES[0] == ExplicitVRLittleEndian


def test_groups_add_their_classes_and_share_none() -> None:
    assert accepted_classes(()) == (CT_IMAGE,)
    every = accepted_classes(STORAGE_CLASSES)
    assert len(every) == len(set(every)) > 150
    assert "1.2.840.10008.5.1.4.1.1.4" not in accepted_classes(["enhanced_ct"])
    assert "1.2.840.10008.5.1.4.1.1.4" in accepted_classes(["images"])
