"""The Storage SCP on loopback: what peers send, what they are told, and what is left afterwards."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)

from dicom_node import schema
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.dimse import scu
from dicom_node.dimse.announce import Announcer
from dicom_node.dimse.contexts import TRANSFER_SYNTAXES
from dicom_node.dimse.requestor import CannotAssociate, NoAnswer, NothingAccepted, Requested, associate
from dicom_node.dimse.scp import Receiver
from dicom_node.errors import DatabaseUnavailable, DicomNodeError
from dicom_node.peers import PeerConfig
from dicom_node.storage import Storage
from tests.conftest import RunningReceiver
from tests.fakes.instances import SERIES, STUDY, FakeInstance, fake_instance

pytestmark = pytest.mark.usefixtures("no_leaked_threads")

Start = Callable[..., RunningReceiver]
CT = [(str(CTImageStorage), [str(ExplicitVRLittleEndian)])]


def wait_until(true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


def acceptors() -> list[threading.Thread]:
    """The threads of Associations that peers opened."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("AcceptorThread")]


@contextlib.contextmanager
def association(running: RunningReceiver, contexts: Any = CT, calling_ae: str = "SCANNER") -> Iterator[Requested]:
    with associate(running.peer, calling_ae, contexts) as requested:
        yield requested


def store(requested: Requested, fake: FakeInstance, **changes: Any) -> int:
    values = {
        "context_id": 1,
        "sop_class_uid": fake.sop_class_uid,
        "sop_instance_uid": fake.sop_instance_uid,
        "data_set": fake.data_set,
        **changes,
    }
    return requested.store(**values)[0]


# -- what is accepted ----------------------------------------------------------------------------------


def test_echo_is_answered(start_receiver: Start) -> None:
    scu.echo(start_receiver().peer, "ANYBODY")


def test_a_series_is_durable_recorded_and_announced(start_receiver: Start) -> None:
    running = start_receiver(peers={"ct": {"ae_title": "SCANNER", "host": "127.0.0.1", "quiet_time_s": 3}})
    with association(running) as requested:
        assert [store(requested, fake_instance(n)) for n in range(1, 6)] == [0x0000] * 5
        running.settle()
        row = running.database.series(SERIES)
        assert row is not None
        assert not row["released"]
    wait_until(lambda: not acceptors() and (SERIES, 3.0) in running.bounced)
    row = running.database.series(SERIES)
    assert row is not None
    assert row["released"]
    assert (row["source_ae"], row["source_ip"]) == ("SCANNER", "127.0.0.1")
    assert len(running.database.instances(SERIES)) == 5
    assert running.files() == [f"incoming/{STUDY}/{SERIES}/{SERIES}.{n}.dcm" for n in range(1, 6)]


def test_a_database_that_is_away_holds_up_one_instance_and_not_each(
    start_receiver: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start_receiver()
    calls: list[str] = []

    def away(series_uid: str, _association: str) -> None:
        calls.append(series_uid)
        raise DatabaseUnavailable("away, after a long wait")

    with association(running) as requested:
        with monkeypatch.context() as patched:
            patched.setattr(running.database, "association_began", away)
            assert [store(requested, fake_instance(n)) for n in range(1, 6)] == [0x0000] * 5
        assert calls == [SERIES]
        monkeypatch.setattr(running.receiver, "_count_again_at", 0.0)
        assert store(requested, fake_instance(6)) == 0x0000
    wait_until(lambda: bool((running.database.series(SERIES) or {"released": False})["released"]))


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
    ids=lambda uid: uid.name,
)
def test_uncompressed_data_sets_are_kept_byte_for_byte(start_receiver: Start, syntax: UID) -> None:
    running = start_receiver()
    fake = fake_instance(transfer_syntax=syntax)
    with association(running, [(str(CTImageStorage), [str(syntax)])]) as requested:
        assert store(requested, fake) == 0x0000
    (path,) = running.files()
    assert running.storage.path(path).read_bytes().endswith(fake.data_set)


def test_each_syntax_of_ct_archives_is_accepted_and_kept(start_receiver: Start, shared_data: Path) -> None:
    running = start_receiver()
    files = sorted((shared_data / "dicom_edge_cases" / "ct_transfer_syntaxes").glob("*.dcm"))
    syntaxes = set()
    for path in files:
        head = scu.read_file_head(path.read_bytes())
        with (
            contextlib.suppress(NothingAccepted),
            association(running, [(head.sop_class_uid, [head.transfer_syntax_uid])]) as requested,
        ):
            data_set = path.read_bytes()[head.data_set_at :]
            assert requested.store(1, head.sop_class_uid, head.sop_instance_uid, data_set)[0] == 0x0000
            running.settle()
            row = running.database.instance(head.sop_instance_uid)
            assert row is not None
            assert row["transfer_syntax_uid"] == head.transfer_syntax_uid
            assert running.storage.path(row["path"]).read_bytes().endswith(data_set)
            syntaxes.add(head.transfer_syntax_uid)
    assert len(syntaxes) == 13, "all but the retired .53 and .55"
    assert syntaxes <= set(TRANSFER_SYNTAXES)


def test_uncompressed_is_chosen_where_a_peer_offers_several(start_receiver: Start) -> None:
    offered = ["1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"]
    with association(start_receiver(), [(str(CTImageStorage), offered)]) as requested:
        assert list(requested.contexts) == [(CTImageStorage, ExplicitVRLittleEndian)]


def test_disk_and_database_that_fail_after_success_lose_nothing(
    start_receiver: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start_receiver()
    failed = threading.Event()

    def flush(descriptor: int) -> None:
        failed.set()
        raise OSError(errno.ENOSPC, "no space")

    def away(received: Any) -> Any:
        failed.set()
        raise DatabaseUnavailable("the database does not answer: OperationalError")

    with association(running) as requested:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", flush)
            assert store(requested, fake_instance(1)) == 0x0000, "it is safe in the journal"
            assert failed.wait(10)
        failed.clear()
        with monkeypatch.context() as patched:
            patched.setattr(running.database, "record_instances", away)
            assert store(requested, fake_instance(2)) == 0x0000
            assert failed.wait(10)
            assert running.bounced == [], "nothing is decided on a series whose rows are not there"
    wait_until(lambda: bool(running.bounced))
    assert len(running.files()) == len(running.database.instances(SERIES)) == 2


@pytest.mark.slow
def test_memory_stays_flat_over_two_thousand_instances(start_receiver: Start) -> None:
    running = start_receiver()

    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6

    def send(first: int, last: int) -> None:
        for n in range(first, last):
            assert store(requested, fake_instance(n, pixels=bytes(100_000))) == 0x0000

    with association(running) as requested:
        send(1, 401)
        before = resident_mb()
        send(401, 2401)
        assert resident_mb() - before < 40, "200 MB went through"
    assert len(running.files()) == len(running.database.instances(SERIES)) == 2400


def test_a_resend_is_success_and_announces_nothing_new(start_receiver: Start) -> None:
    running = start_receiver()
    fake = fake_instance()
    with association(running) as requested:
        assert store(requested, fake) == 0x0000
        before = running.storage.path(running.files()[0]).stat()
        assert store(requested, fake) == 0x0000
    assert running.storage.path(running.files()[0]).stat().st_mtime_ns == before.st_mtime_ns
    assert len(running.database.instances(SERIES)) == 1


def test_one_instance_on_many_associations_at_once(start_receiver: Start) -> None:
    running = start_receiver()
    fakes = [fake_instance(n, pixels=os.urandom(100_000)) for n in range(5)]
    statuses: list[int] = []
    ready = threading.Barrier(4)

    def send() -> None:
        with association(running) as requested:
            ready.wait()
            statuses.extend(store(requested, fake) for fake in fakes)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [0x0000] * 20
    assert len(running.files()) == len(running.database.instances(SERIES)) == 5


def test_the_newest_of_two_versions_wins(start_receiver: Start) -> None:
    running = start_receiver()
    newer = fake_instance(pixels=bytes(128))
    with association(running) as requested:
        assert store(requested, fake_instance()) == 0x0000
        assert store(requested, newer) == 0x0000
    (path,) = running.files()
    assert running.storage.path(path).read_bytes().endswith(newer.data_set)


# -- what is refused -----------------------------------------------------------------------------------

IMPLICIT = fake_instance(transfer_syntax=ImplicitVRLittleEndian)
BAD = {
    "path in SOPInstanceUID": (fake_instance(SOPInstanceUID="../../../tmp/x"), {}, 0xA900),
    "path in SeriesInstanceUID": (fake_instance(SeriesInstanceUID="../../../../tmp/x"), {}, 0xA900),
    "path in command": (fake_instance(), {"sop_instance_uid": "../../../tmp/x"}, 0xA900),
    "path in both": (fake_instance(SOPInstanceUID="../../x"), {"sop_instance_uid": "../../x"}, 0xA900),
    "no StudyInstanceUID": (fake_instance(StudyInstanceUID=None), {}, 0xA900),
    "empty SeriesInstanceUID": (fake_instance(SeriesInstanceUID=""), {}, 0xA900),
    "65 characters": (fake_instance(StudyInstanceUID="1." + "2" * 63), {}, 0xA900),
    "other Instance": (fake_instance(), {"sop_instance_uid": "1.2.3"}, 0xA900),
    "other Class within": (fake_instance(SOPClassUID=MRImageStorage), {}, 0xA900),
    "other Class than negotiated": (fake_instance(), {"sop_class_uid": str(MRImageStorage)}, 0x0122),
    "unknown Class": (fake_instance(), {"sop_class_uid": "1.2.3.4.5"}, 0x0122),
    "cut": (fake_instance(), {"data_set": fake_instance().data_set[:70]}, 0xC000),
    "no DICOM": (fake_instance(), {"data_set": os.urandom(1000)}, 0xC000),
    "other syntax": (fake_instance(), {"data_set": IMPLICIT.data_set}, 0xC000),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_its_status_and_leaves_nothing(start_receiver: Start, name: str) -> None:
    running = start_receiver()
    fake, changes, status = BAD[name]
    with association(running) as requested:
        assert store(requested, fake, **changes) == status
        assert running.files() == []
        assert running.database.series_to_assemble() == []
        assert store(requested, fake_instance(9)) == 0x0000, "the Association goes on"
    assert len(running.files()) == 1


def test_the_error_comment_has_no_patient_data(start_receiver: Start) -> None:
    fake = fake_instance(StudyInstanceUID="Secret^Patient")
    with association(start_receiver()) as requested:
        _, comment = requested.store(1, fake.sop_class_uid, fake.sop_instance_uid, fake.data_set)
    assert comment == "StudyInstanceUID is no valid UID (14 characters)"


@pytest.mark.parametrize("folder", ["empty_uids_j2k_abdomen", "malformed", "missing_attributes_chest"])
def test_broken_files_of_the_wild_are_stored_or_refused_by_name(
    start_receiver: Start, shared_data: Path, folder: str
) -> None:
    running = start_receiver()
    expected = {"empty_uids_j2k_abdomen": {0xA900, None}}.get(folder, {0x0000, 0xA900, 0xC000, None})
    for path in sorted((shared_data / "dicom_edge_cases" / folder).iterdir()):
        (outcome,) = scu.send([path], running.peer, "SCANNER")
        assert outcome.status in expected, (path.name, outcome)
        assert outcome.kind in ("stored", "refused")
    assert all(not path.endswith(".part") for path in running.files())


def test_classes_off_the_list_are_refused_by_negotiation(start_receiver: Start) -> None:
    running = start_receiver(receive={"also_accept": []})
    with pytest.raises(NothingAccepted), association(running, [(str(MRImageStorage), [str(ExplicitVRLittleEndian)])]):
        pass
    mixed = [(str(MRImageStorage), [str(ExplicitVRLittleEndian)]), *CT]
    with association(running, mixed) as requested:
        assert list(requested.contexts) == [(CTImageStorage, ExplicitVRLittleEndian)]


def test_below_the_watermark_the_peer_may_try_again_later(start_receiver: Start) -> None:
    running = start_receiver(storage={"min_free_gb": 1e9})
    with association(running) as requested:
        status, comment = requested.store(1, CTImageStorage, fake_instance().sop_instance_uid, fake_instance().data_set)
    assert status == 0xA700
    assert "min_free_gb" in comment
    assert running.files() == []


@pytest.mark.parametrize("journal_mb", [0, 8])
def test_what_cannot_be_made_durable_is_no_success(
    start_receiver: Start, monkeypatch: pytest.MonkeyPatch, journal_mb: int
) -> None:
    running = start_receiver(receive={"journal_mb": journal_mb})

    def flush(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with association(running) as requested:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", flush)
            patched.setattr(os, "fdatasync", flush)
            assert store(requested, fake_instance()) == 0xA700
        assert running.files() == []
        assert store(requested, fake_instance()) == 0x0000


def test_an_unexpected_failure_is_a_status_and_not_the_end(
    start_receiver: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start_receiver(receive={"journal_mb": 0})
    with association(running) as requested:
        with monkeypatch.context() as patched:
            patched.setattr(running.database, "record_instance", lambda *args, **kwargs: 1 / 0)
            assert store(requested, fake_instance()) == 0x0110
        assert store(requested, fake_instance()) == 0x0000


# -- who is let in -------------------------------------------------------------------------------------


def test_strangers_are_rejected_with_the_reason(start_receiver: Start) -> None:
    running = start_receiver(receive={"unknown_peers": "refuse"})
    with pytest.raises(CannotAssociate, match="does not know us as STRANGER"):
        scu.echo(running.peer, "STRANGER")


def test_a_wrong_called_title_is_rejected_with_the_reason(start_receiver: Start) -> None:
    running = start_receiver()
    wrong = running.peer.model_copy(update={"ae_title": "OTHER"})
    with pytest.raises(CannotAssociate, match="it is not called OTHER"):
        scu.echo(wrong, "SCANNER")


def test_a_known_peer_must_call_from_its_address(start_receiver: Start) -> None:
    elsewhere = {"ae_title": "SCANNER", "host": "192.0.2.1", "may_send": True}
    here = {"ae_title": "PACS", "host": "localhost", "may_send": True, "from": ["127.0.0.0/8"]}
    running = start_receiver(receive={"unknown_peers": "refuse"}, peers={"ct": elsewhere, "pacs": here})
    with pytest.raises(CannotAssociate, match="does not know us as SCANNER"):
        scu.echo(running.peer, "SCANNER")
    scu.echo(running.peer, "PACS")


def test_one_association_too_many_is_told_to_come_back(start_receiver: Start) -> None:
    running = start_receiver(receive={"max_associations": 2})
    with association(running), association(running):
        with pytest.raises(CannotAssociate, match="no Association left") as caught:
            scu.echo(running.peer, "SCANNER")
        assert caught.value.retry_helps
    wait_until(lambda: not acceptors())
    scu.echo(running.peer, "SCANNER")


def test_a_failing_check_lets_nobody_in(start_receiver: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    running = start_receiver()
    monkeypatch.setattr(running.receiver, "admit", lambda caller: 1 / 0)
    with pytest.raises((CannotAssociate, NoAnswer)):
        scu.echo(running.peer, "SCANNER")


# -- Associations that end badly -----------------------------------------------------------------------


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBI", kind, 0, len(body)) + body


def raw_association(running: RunningReceiver) -> socket.socket:
    """A connection on which an Association for CT is established, to send wrong bytes on."""

    def item(kind: int, body: bytes) -> bytes:
        return struct.pack(">BBH", kind, 0, len(body)) + body

    context = item(0x20, bytes([1, 0, 0, 0]) + item(0x30, CTImageStorage.encode()) + item(0x40, b"1.2.840.10008.1.2.1"))
    user = item(0x50, item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3"))
    head = struct.pack(">HH16s16s32x", 1, 0, b"DICOMNODE".ljust(16), b"SCANNER".ljust(16))
    connection = socket.create_connection(("127.0.0.1", running.port), timeout=10)
    connection.sendall(pdu(0x01, head + item(0x10, b"1.2.840.10008.3.1.1.1") + context + user))
    assert connection.recv(1) == b"\x02"
    return connection


def half_of_an_instance() -> bytes:
    """The command of a C-STORE and the first fragment of its data set, as one P-DATA each."""

    def element(number: int, value: bytes) -> bytes:
        return struct.pack("<HHI", 0, number, len(value)) + value

    fake = fake_instance()
    uid = fake.sop_instance_uid.encode()
    command = b"".join(
        (
            element(0x0002, CTImageStorage.encode() + b"\0"),
            element(0x0100, b"\x01\0"),
            element(0x0110, b"\x01\0"),
            element(0x0700, b"\0\0"),
            element(0x0800, b"\x01\0"),
            element(0x1000, uid + b"\0" * (len(uid) % 2)),
        )
    )
    command = element(0x0000, struct.pack("<I", len(command))) + command

    def p_data(control: int, fragment: bytes) -> bytes:
        return pdu(0x04, struct.pack(">IBB", len(fragment) + 2, 1, control) + fragment)

    return p_data(0x03, command) + p_data(0x00, fake.data_set[:100])


def test_an_abort_within_an_instance_leaves_only_whole_instances(start_receiver: Start) -> None:
    running = start_receiver()
    with association(running) as requested:
        store(requested, fake_instance(1))
    wait_until(lambda: bool(running.bounced) and not acceptors())
    running.bounced.clear()
    with raw_association(running) as connection:
        connection.sendall(half_of_an_instance())
        connection.sendall(pdu(0x07, bytes(4)))
    wait_until(lambda: not acceptors())
    assert len(running.files()) == 1
    assert running.bounced == []


def test_an_abort_is_no_evidence_of_completeness_but_is_announced(start_receiver: Start) -> None:
    running = start_receiver()
    with contextlib.suppress(ZeroDivisionError), association(running) as requested:
        assert store(requested, fake_instance()) == 0x0000
        raise ZeroDivisionError  # leaves the Association by an abort
    wait_until(lambda: bool(running.bounced) and not acceptors())
    row = running.database.series(SERIES)
    assert row is not None
    assert not row["released"]


def test_two_associations_that_carry_one_series_must_both_be_released(start_receiver: Start) -> None:
    running = start_receiver()

    def is_released() -> bool:
        row = running.database.series(SERIES)
        return row is not None and bool(row["released"])

    with association(running) as slow:
        store(slow, fake_instance(1))
        with association(running) as quick:
            store(quick, fake_instance(2))
            store(slow, fake_instance(3))
        wait_until(lambda: len(acceptors()) == 1)
        assert not is_released(), "one still brings images"
        store(slow, fake_instance(4))
    wait_until(lambda: not acceptors())
    assert is_released()


def test_an_association_that_brings_nothing_new_holds_up_no_proof(start_receiver: Start) -> None:
    running = start_receiver()
    with association(running) as requested:
        store(requested, fake_instance(1))
    wait_until(lambda: not acceptors())
    with association(running) as again:
        store(again, fake_instance(1))
        row = running.database.series(SERIES)
        assert row is not None
        assert row["released"]


def test_a_receiver_that_was_killed_leaves_no_association_open(start_receiver: Start) -> None:
    running = start_receiver()
    with association(running) as requested:
        store(requested, fake_instance(1))
    running.receiver.stop(5.0)
    running.database.association_began(SERIES, "a")  # as of an Association that the kill cut off
    again, _ = restarted(running)
    again.start()
    again.stop(0.0)
    row = running.database.series(SERIES)
    assert row is not None
    assert (row["released"], row["aborted"]) == (False, True)
    with running.database.engine.connect() as connection:
        assert connection.execute(sa.select(schema.carrier)).all() == []


@pytest.mark.parametrize("reset", [True, False])
def test_a_vanished_peer_leaves_nothing(start_receiver: Start, reset: bool) -> None:
    running = start_receiver()
    connection = raw_association(running)
    connection.sendall(half_of_an_instance() + b"\x04\x00\x00\x01")
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    wait_until(lambda: not acceptors())
    assert running.files() == []


def test_a_peer_that_stops_within_a_pdu_is_dropped(start_receiver: Start) -> None:
    running = start_receiver(receive={"idle_timeout_s": 0.3})
    with raw_association(running) as connection:
        connection.sendall(half_of_an_instance() + b"\x04\x00\x00\x01\x00\x00only a part")
        wait_until(lambda: not acceptors())
    assert running.files() == []


def test_an_idle_association_is_aborted(start_receiver: Start) -> None:
    running = start_receiver(receive={"idle_timeout_s": 0.3})
    with raw_association(running) as connection:
        while data := connection.recv(4096):
            last = data
        assert last[-10:-4] == pdu(0x07, bytes(4))[:6]


@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/1.0\r\n\r\n", os.urandom(200), b"\x01\x00\xff\xff\xff\xff" + bytes(50), b""]
)
def test_what_is_no_dicom_ends_without_harm(start_receiver: Start, noise: bytes) -> None:
    running = start_receiver(receive={"associate_timeout_s": 0.3})
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(noise)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(4096):
                pass
    scu.echo(running.peer, "SCANNER")


# -- start and stop ------------------------------------------------------------------------------------


def test_stop_lets_a_running_association_end(start_receiver: Start) -> None:
    running = start_receiver()
    with association(running) as requested:
        store(requested, fake_instance(1))
        stopping = threading.Thread(target=running.receiver.stop, args=(30.0,))
        stopping.start()
        wait_until(lambda: not _accepts(running.port))
        assert store(requested, fake_instance(2)) == 0x0000
    stopping.join(10)
    assert not stopping.is_alive()
    row = running.database.series(SERIES)
    assert row is not None
    assert row["released"]
    assert running.bounced[-1][0] == SERIES


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def test_stop_aborts_what_does_not_end_in_time(start_receiver: Start) -> None:
    running = start_receiver()
    with association(running) as requested:
        store(requested, fake_instance(1))
        running.receiver.stop(0.0)
        with pytest.raises(NoAnswer):
            store(requested, fake_instance(2))
    assert {uid for uid, _ in running.bounced} == {SERIES}
    assert len(running.files()) == 1


def test_stop_does_not_wait_for_a_peer_that_stopped_within_a_pdu(start_receiver: Start) -> None:
    running = start_receiver(receive={"idle_timeout_s": 60})
    with raw_association(running) as connection:
        connection.sendall(half_of_an_instance() + b"\x04\x00\x00\x01\x00\x00only a part")
        wait_until(lambda: bool(acceptors()))
        before = time.monotonic()
        running.receiver.stop(0.0)
        assert time.monotonic() - before < 10
    assert running.files() == []


def test_a_port_in_use_is_said_in_one_line(start_receiver: Start, tmp_path: Path) -> None:
    running = start_receiver()
    with pytest.raises(DicomNodeError, match=f"port {running.port}.*in use"):
        start_receiver(receive={"port": running.port}, storage={"root": str(tmp_path / "second")})


def restarted(running: RunningReceiver) -> tuple[Receiver, list[tuple[str, float]]]:
    bounced: list[tuple[str, float]] = []
    announcer = Announcer(lambda uid, quiet_time_s: bounced.append((uid, quiet_time_s)), running.config.quiet_time_s)
    return Receiver(running.config, running.storage, running.database, announcer), bounced


def test_start_mends_what_a_crash_left(start_receiver: Start) -> None:
    running = start_receiver()
    with association(running) as requested:
        store(requested, fake_instance(1))
    running.receiver.stop(5.0)
    fake = fake_instance(2)
    folder = running.storage.root / "incoming" / STUDY / SERIES
    fake.write(folder)
    (folder / ".0a1b.part").write_bytes(b"half an instance")
    again, bounced = restarted(running)
    again.start()
    again.stop(0.0)
    assert running.database.instance(fake.sop_instance_uid) is not None
    assert not list(folder.glob("*.part"))
    assert {uid for uid, _ in bounced} == {SERIES}, "what grew is announced, though nobody sends"


# A receiver on another machine, stopped in the middle of writing a file; an Association brings it.
_ELSEWHERE = """
import os, sys, uuid
from pathlib import Path
from dicom_node.db import Database
from dicom_node.storage import Storage

root, url, study, series, instance = sys.argv[1:]
storage, database, flush = Storage(Path(root)), Database(url), os.fsync

def slow(descriptor):
    if Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".part":
        print("writing", flush=True)
        sys.stdin.readline()
    flush(descriptor)

os.fsync = slow
database.association_began(series, storage.mark.on(uuid.uuid4().hex))
storage.write_instance(study, series, instance, b"from elsewhere")
print("written", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def elsewhere(start_receiver: Start) -> Iterator[tuple[RunningReceiver, subprocess.Popen[str]]]:
    """The first receiver is gone; the second lives, and writes an Instance whose row is yet to come."""
    running = start_receiver()
    where = [str(running.storage.root), running.config.database_url(), STUDY, SERIES, "1.2.999"]
    with subprocess.Popen(
        [sys.executable, "-c", _ELSEWHERE, *where], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        running.receiver.stop(5.0)
        yield running, process
        process.kill()


def bringing(running: RunningReceiver) -> int:
    return len(running.database.association_marks())


def test_one_that_starts_leaves_alone_what_a_living_one_elsewhere_is_doing(
    elsewhere: tuple[RunningReceiver, subprocess.Popen[str]],
) -> None:
    running, process = elsewhere
    assert process.stdin is not None
    assert process.stdout is not None
    third, _ = restarted(running)
    third.start()
    third.stop(0.0)
    assert bringing(running) == 1
    process.stdin.write("go on\n")
    process.stdin.flush()
    assert process.stdout.readline() == "written\n", "its file had its name still"
    fourth, _ = restarted(running)
    fourth.start()
    fourth.stop(0.0)
    file = running.storage.path(f"incoming/{STUDY}/{SERIES}/1.2.999.dcm")
    assert file.read_bytes() == b"from elsewhere"
    assert running.database.instance("1.2.999") is None, "who sent it only the other one knows"


def test_one_that_starts_mends_what_a_dead_one_elsewhere_was_doing(
    elsewhere: tuple[RunningReceiver, subprocess.Popen[str]],
) -> None:
    running, process = elsewhere
    process.kill()
    process.wait()
    third, _ = restarted(running)
    third.start()
    third.stop(0.0)
    assert bringing(running) == 0
    assert not list(running.storage.root.rglob("*.part"))
    assert [path.stem for path in running.storage.root.glob("marks/*")] == [running.storage.mark.name]


@pytest.mark.peers
def test_the_same_on_postgresql(node_config: Callable[..., Config], postgres_url: str) -> None:
    config = node_config(database={"url": postgres_url})
    storage, database = Storage(config.storage.root), Database(postgres_url)
    database.migrate()
    bounced: list[str] = []
    receiver = Receiver(config, storage, database, Announcer(lambda uid, _: bounced.append(uid), config.quiet_time_s))
    peer = PeerConfig(ae_title="DICOMNODE", host="127.0.0.1", port=receiver.start())
    with associate(peer, "SCANNER", CT) as requested:
        statuses = [store(requested, fake) for fake in (fake_instance(1), fake_instance(1), fake_instance(2))]
    receiver.stop(10.0)
    assert statuses == [0x0000] * 3
    assert len(database.instances(SERIES)) == 2
    assert set(bounced) == {SERIES}
    database.close()
