"""Peers that are broken, greedy or hostile. Afterwards: nothing acknowledged is lost, threads and memory are bounded,
no half-written file is left, and the next honest peer is served."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGLosslessSV1,
)

from dicom_node.check import check
from dicom_node.config import Config
from dicom_node.dimse import scu
from dicom_node.dimse.acceptor import MOST_WAITING
from dicom_node.dimse.part10 import read_file_head, read_identifiers
from dicom_node.dimse.requestor import CannotAssociate, associate
from dicom_node.errors import ConfigError
from tests.conftest import RunningReceiver
from tests.fakes.instances import SERIES, STUDY, FakeInstance, fake_instance
from tests.raw import (
    ABORT,
    RELEASE_RQ,
    RawPeer,
    associate_rq,
    command,
    echo_command,
    p_data,
    pdu,
    pdv,
    store_fields,
    store_pdus,
)

pytestmark = pytest.mark.usefixtures("no_leaked_threads")

Start = Callable[..., RunningReceiver]
CT = [(str(CTImageStorage), [str(ExplicitVRLittleEndian)])]
MB = 1024**2
FUZZ = settings(
    deadline=None,
    max_examples=int(os.environ.get("DICOM_NODE_FUZZ_EXAMPLES", "60")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def wait_until(true: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


def acceptors() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("AcceptorThread")]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def assert_in_order(running: RunningReceiver, acknowledged: list[str] | None = None) -> None:
    """Each file is whole, lies where its UIDs say and has its row; each acknowledged instance is among them."""
    wait_until(lambda: not acceptors())
    found = set()
    for relative in running.files():
        assert relative.endswith(".dcm"), f"left behind: {relative}"
        data = running.storage.path(relative).read_bytes()
        head = read_file_head(data)
        uids = read_identifiers(data[head.data_set_at :], head.transfer_syntax_uid)
        assert relative == f"incoming/{uids.study_uid}/{uids.series_uid}/{uids.sop_instance_uid}.dcm"
        row = running.database.instance(uids.sop_instance_uid)
        assert row is not None
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        found.add(uids.sop_instance_uid)
    for answer in acknowledged or []:
        status, _, uid = answer.partition(" ")
        assert status != "0x0000" or not uid or uid in found, f"{uid} was acknowledged and is not there"


def assert_served(running: RunningReceiver) -> None:
    """The next honest peer stores an instance."""
    fake = fake_instance(999_999)
    with associate(running.peer, "HONEST", CT) as requested:
        assert requested.store(1, fake.sop_class_uid, fake.sop_instance_uid, fake.data_set)[0] == 0x0000


# -- PDUs ----------------------------------------------------------------------------------------------


@pytest.fixture
def fuzzed(start_receiver: Start) -> Iterator[RunningReceiver]:
    """One receiver for all examples of a test; it must serve an honest peer in the end."""
    running = start_receiver(receive={"associate_timeout_s": 5, "idle_timeout_s": 5})
    yield running
    assert_served(running)
    assert_in_order(running)


def conversation() -> list[bytes]:
    """A whole Association: two instances, one in small pieces, a C-ECHO between them, release."""
    return [
        associate_rq(),
        *store_pdus(fake_instance(1), 1, fragment_bytes=200),
        p_data(0x03, echo_command(2), 3),
        *store_pdus(fake_instance(2), 3),
        RELEASE_RQ,
    ]


PLACES = st.integers(0, len(conversation()) - 1)
SPOILED = st.one_of(
    st.tuples(st.just("drop"), PLACES),
    st.tuples(st.just("repeat"), PLACES),
    st.tuples(st.just("swap"), PLACES, PLACES),
    st.tuples(st.just("cut"), PLACES, st.integers(0, 400)),
    st.tuples(st.just("flip"), PLACES, st.integers(0, 400), st.integers(1, 255)),
    st.tuples(st.just("length"), PLACES, st.integers(0, 2**32 - 1)),
    st.tuples(st.just("insert"), PLACES, st.integers(0, 255), st.binary(max_size=200)),
    st.tuples(st.just("noise"), PLACES, st.binary(min_size=1, max_size=100)),
)


def spoil(pdus: list[bytes], how: tuple[Any, ...]) -> None:
    kind, at, *rest = how
    at = min(at, len(pdus) - 1)
    if kind == "drop":
        del pdus[at]
    elif kind == "repeat":
        pdus.insert(at, pdus[at])
    elif kind == "swap":
        other = min(rest[0], len(pdus) - 1)
        pdus[at], pdus[other] = pdus[other], pdus[at]
    elif kind == "cut":
        pdus[at] = pdus[at][: rest[0]]
    elif kind == "flip":
        place = rest[0] % max(1, len(pdus[at]))
        pdus[at] = pdus[at][:place] + bytes(b ^ rest[1] for b in pdus[at][place : place + 1]) + pdus[at][place + 1 :]
    elif kind == "length":
        pdus[at] = pdus[at][:2] + struct.pack(">I", rest[0]) + pdus[at][6:]
    elif kind == "insert":
        pdus.insert(at, pdu(rest[0], rest[1]))
    else:
        pdus.insert(at, rest[0])


@FUZZ
@given(spoils=st.lists(SPOILED, min_size=1, max_size=4))
def test_a_spoiled_conversation_harms_nobody(fuzzed: RunningReceiver, spoils: list[tuple[Any, ...]]) -> None:
    pdus = conversation()
    for how in spoils:
        if pdus:
            spoil(pdus, how)
    with RawPeer(fuzzed.port) as peer:
        peer.send(*pdus)
        peer.no_more()
        answers = peer.answers()
    assert_in_order(fuzzed, answers)


@FUZZ
@given(noise=st.binary(min_size=1, max_size=500), established=st.booleans())
def test_noise_harms_nobody(fuzzed: RunningReceiver, noise: bytes, established: bool) -> None:
    with RawPeer(fuzzed.port) as peer:
        if established:
            peer.established()
        peer.send(noise)
        peer.no_more()
        peer.answers()
    assert_in_order(fuzzed)


@FUZZ
@given(place=st.integers(0, 500), length=st.integers(0, 40), value=st.binary(max_size=40))
def test_a_spoiled_data_set_is_stored_whole_or_refused(
    fuzzed: RunningReceiver, place: int, length: int, value: bytes
) -> None:
    fake = fake_instance(7)
    data = fake.data_set[:place] + value + fake.data_set[place + length :]
    with RawPeer(fuzzed.port).established() as peer:
        peer.send(p_data(0x03, command(store_fields(fake))), p_data(0x02, data))
        answer = peer.answer()
        assert answer.split()[0] in ("0x0000", "0xa900", "0xc000")
        peer.send(RELEASE_RQ)
        assert peer.answer() == "release"
    assert_in_order(fuzzed, [answer])


ORDERS = {
    "data before its command": [p_data(0x02, b"data")],
    "two commands": [p_data(0x03, command(store_fields(fake_instance())))] * 2,
    "a second request": [associate_rq()],
    "an accept": [pdu(0x02, associate_rq()[6:])],
    "a reject": [pdu(0x03, bytes(4))],
    "a release response": [pdu(0x06, bytes(4))],
    "an unknown kind": [pdu(0x0B, b"?")],
    "another context": [p_data(0x03, command(store_fields(fake_instance()))), p_data(0x02, b"x", 5)],
    "a context that was not offered": [p_data(0x03, command(store_fields(fake_instance())), 9), p_data(0x02, b"x", 9)],
    "a PDV longer than its PDU": [pdu(0x04, struct.pack(">IBB", 5000, 1, 3))],
    "a PDU longer than any": [struct.pack(">BBI", 0x04, 0, 2**32 - 1)],
    "a command without end": [p_data(0x01, bytes(60_000)), p_data(0x01, bytes(60_000))],
    "an answer to nothing": [p_data(0x03, command({**store_fields(fake_instance()), 0x0100: b"\x01\x80"}))],
}


@pytest.mark.parametrize("name", ORDERS)
def test_what_is_out_of_order_ends_the_association_alone(start_receiver: Start, name: str) -> None:
    running = start_receiver(receive={"idle_timeout_s": 3})
    with RawPeer(running.port).established() as peer:
        peer.send(*store_pdus(fake_instance(1)))
        assert peer.answer().startswith("0x0000")
        peer.send(*ORDERS[name])
        answers = peer.answers()
    assert all(answer == "abort" for answer in answers), answers
    assert_in_order(running, [f"0x0000 {fake_instance(1).sop_instance_uid}"])
    assert_served(running)


def test_requests_that_wait_for_no_answer_are_cut_off(start_receiver: Start) -> None:
    running = start_receiver()
    with RawPeer(running.port).established() as peer:
        peer.send(p_data(0x03, echo_command(), 3) * 3000)
        answers = peer.answers()
    assert len(answers) < 100
    assert_served(running)


def test_another_version_of_the_protocol_is_rejected_and_its_other_bits_do_not_matter(start_receiver: Start) -> None:
    running = start_receiver()
    with RawPeer(running.port) as peer:
        peer.send(associate_rq(version=2))
        answer = peer.read_pdu()
        assert answer is not None
        # PS3.8 Table 9-21: permanent, service provider (ACSE), protocol version not supported.
        assert (answer[0], *answer[7:10]) == (0x03, 1, 2, 2)
    RawPeer(running.port).established(associate_rq(version=3)).line.close()
    assert_in_order(running)


# -- time ----------------------------------------------------------------------------------------------


def test_a_request_byte_by_byte_ends_at_the_deadline(start_receiver: Start) -> None:
    running = start_receiver(receive={"associate_timeout_s": 1.0, "idle_timeout_s": 60})
    request = associate_rq()
    with RawPeer(running.port) as peer:
        before = time.monotonic()
        peer.line.settimeout(0.1)
        for byte in request:
            with contextlib.suppress(OSError):
                peer.line.sendall(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                if not peer.line.recv(1):
                    break
        else:
            raise AssertionError("the whole request was taken")
        assert time.monotonic() - before < 10, "each byte had its own time limit"
    assert_served(running)


def test_many_slow_peers_keep_no_honest_one_out(start_receiver: Start) -> None:
    running = start_receiver(receive={"associate_timeout_s": 60, "max_associations": 2})
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            slow = stack.enter_context(RawPeer(running.port))
            slow.send(associate_rq()[:20])
        wait_until(lambda: len(acceptors()) == 50)
        assert_served(running)


def test_connections_beyond_the_bound_cost_no_more_threads(start_receiver: Start) -> None:
    running = start_receiver(receive={"associate_timeout_s": 60})
    before, most = threading.active_count(), 0
    with contextlib.ExitStack() as stack:
        for _ in range(3 * MOST_WAITING):
            stack.enter_context(RawPeer(running.port))
            most = max(most, threading.active_count())
        wait_until(lambda: len(acceptors()) <= MOST_WAITING)
        assert most - before <= MOST_WAITING + 10
        assert_served(running)


def test_200_callers_at_once_are_served_or_told_to_come_back(start_receiver: Start) -> None:
    running = start_receiver(receive={"max_associations": 20, "max_associations_per_peer": 500})
    ready, outcomes = threading.Barrier(200), []

    def call(number: int) -> None:
        ready.wait()
        try:
            with RawPeer(running.port, 60.0) as peer:
                peer.send(associate_rq())
                first = peer.answer()
                if first == "accept":
                    fake = fake_instance(number)
                    peer.send(*store_pdus(fake))
                    outcomes.append(peer.answer())
                    peer.send(RELEASE_RQ)
                    peer.answer()
                else:
                    outcomes.append(first)
        except OSError:
            outcomes.append("closed")

    callers = [threading.Thread(target=call, args=(number,)) for number in range(200)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(120)
    kinds = {outcome.split()[0] for outcome in outcomes}
    assert len(outcomes) == 200
    assert kinds <= {"0x0000", "reject", "closed"}
    assert sum(outcome.startswith("0x0000") for outcome in outcomes) >= 20
    assert_in_order(running, outcomes)
    assert_served(running)


def test_a_peer_that_drips_within_a_pdu_is_dropped(start_receiver: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicom_node.dimse.transport._LEAST_BYTES_PER_S", 100_000)
    running = start_receiver(receive={"idle_timeout_s": 1.0})
    with RawPeer(running.port).established() as peer:
        peer.send(struct.pack(">BBI", 0x04, 0, 50_000))
        before = time.monotonic()
        while acceptors():
            peer.send(b"x")
            time.sleep(0.1)
            assert time.monotonic() - before < 20
    assert_served(running)


# -- limits --------------------------------------------------------------------------------------------


def rejected(running: RunningReceiver, calling: str) -> tuple[int, ...]:
    """Result, source and diagnostic of the A-ASSOCIATE-RJ; empty when the Association is accepted."""
    with RawPeer(running.port) as peer:
        peer.send(associate_rq(calling=calling))
        answer = peer.read_pdu()
        assert answer is not None
        return tuple(answer[7:10]) if answer[0] == 0x03 else ()


# PS3.8 Table 9-21: transient, service provider (presentation), local limit exceeded.
LOCAL_LIMIT = (2, 3, 2)


def test_all_associations_in_use_is_a_transient_rejection(start_receiver: Start) -> None:
    running = start_receiver(receive={"max_associations": 2})
    with RawPeer(running.port).established(), RawPeer(running.port).established():
        assert rejected(running, "OTHER") == LOCAL_LIMIT
    wait_until(lambda: not acceptors())
    assert rejected(running, "OTHER") == ()


def test_a_peer_at_its_limit_keeps_no_other_out(start_receiver: Start) -> None:
    here = {"host": "127.0.0.1", "may_send": True}
    peers = {
        "ct": {"ae_title": "SCANNER", **here},
        "one": {"ae_title": "ONE", **here, "max_associations": 1},
        "pacs": {"ae_title": "PACS", **here},
    }
    running = start_receiver(receive={"max_associations_per_peer": 2, "unknown_peers": "refuse"}, peers=peers)
    with RawPeer(running.port).established(), RawPeer(running.port).established():
        assert rejected(running, "SCANNER") == LOCAL_LIMIT
        with RawPeer(running.port).established(associate_rq(calling="ONE")):
            assert rejected(running, "ONE") == LOCAL_LIMIT
            assert rejected(running, "PACS") == ()
    wait_until(lambda: not acceptors())
    assert rejected(running, "SCANNER") == ()


def test_strangers_are_counted_by_address_whatever_they_call_themselves(start_receiver: Start) -> None:
    running = start_receiver(receive={"max_associations_per_peer": 2, "unknown_peers": "accept"})
    with (
        RawPeer(running.port).established(associate_rq(calling="A")),
        RawPeer(running.port).established(associate_rq(calling="B")),
    ):
        assert rejected(running, "C") == LOCAL_LIMIT


def test_a_rejected_storm_leaves_no_thread_and_no_memory(start_receiver: Start) -> None:
    running = start_receiver(receive={"unknown_peers": "refuse"})
    for _ in range(20):
        rejected(running, "STRANGER")
    wait_until(lambda: not acceptors())
    gc.collect()
    before, threads = resident_bytes(), threading.active_count()
    for _ in range(200):
        assert rejected(running, "STRANGER") == (1, 1, 3)
    wait_until(lambda: not acceptors())
    gc.collect()
    assert threading.active_count() <= threads
    assert resident_bytes() - before < 20 * MB


def test_an_instance_over_the_limit_is_answered_and_never_held(start_receiver: Start) -> None:
    running = start_receiver(receive={"max_instance_mb": 1})
    fake = fake_instance(1)
    with RawPeer(running.port).established() as peer:
        peer.send(*store_pdus(fake))
        assert peer.answer() == f"0x0000 {fake.sop_instance_uid}"
        gc.collect()
        before, most = resident_bytes(), 0
        large = fake_instance(2)
        peer.send(p_data(0x03, command(store_fields(large, 2))))
        piece = p_data(0x00, bytes(128 * 1024))
        for _ in range(8 * 100):
            peer.send(piece)
            most = max(most, resident_bytes() - before)
        peer.send(p_data(0x02, b""))
        assert peer.answer() == f"0xa700 {large.sop_instance_uid}"
        assert most < 30 * MB, "100 MB came"
        peer.send(*store_pdus(fake_instance(3), 3))
        assert peer.answer().startswith("0x0000"), "the Association goes on"
        peer.send(RELEASE_RQ)
    assert_in_order(running)
    assert len(running.files()) == 2


def test_crumbs_cost_no_more_memory_than_they_hold(start_receiver: Start) -> None:
    running = start_receiver()
    fake = fake_instance(1)
    with RawPeer(running.port).established() as peer:
        peer.send(p_data(0x03, command(store_fields(fake))))
        crumbs = pdu(0x04, pdv(0x00, b"x") * 10_000)
        gc.collect()
        before, most = resident_bytes(), 0
        for _ in range(100):
            peer.send(crumbs)
            most = max(most, resident_bytes() - before)
        peer.send(p_data(0x02, b"x"))
        assert peer.answer().startswith("0xc000")
        assert most < 30 * MB, "a million bytes came, one by one"
        peer.send(RELEASE_RQ)
        assert peer.answer() == "release"
    assert_in_order(running)


# -- data sets -----------------------------------------------------------------------------------------


def explicit(group: int, number: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    length = len(value) if length is None else length
    if vr in (b"SQ", b"OW", b"OB", b"UN"):
        return struct.pack("<HH2sHI", group, number, vr, 0, length) + value
    return struct.pack("<HH2sH", group, number, vr, length) + value


def uid(value: str) -> bytes:
    return value.encode() + b"\0" * (len(value) % 2)


def data_set(before_uids: bytes = b"", pixels: bytes = b"") -> tuple[FakeInstance, bytes]:
    """An instance with something between its SOP UIDs and those of Study and Series."""
    fake = fake_instance(5)
    data = (
        explicit(0x0008, 0x0016, b"UI", uid(fake.sop_class_uid))
        + explicit(0x0008, 0x0018, b"UI", uid(fake.sop_instance_uid))
        + before_uids
        + explicit(0x0020, 0x000D, b"UI", uid(STUDY))
        + explicit(0x0020, 0x000E, b"UI", uid(SERIES))
        + pixels
    )
    return fake, data


UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = (struct.pack("<HHI", 0xFFFE, number, 0) for number in (0xE000, 0xE00D, 0xE0DD))
OPEN_ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED)


def nested(depth: int) -> bytes:
    opening = explicit(0x0008, 0x1140, b"SQ", b"", UNDEFINED) + OPEN_ITEM
    return opening * depth + (ITEM_END + SEQUENCE_END) * depth


def items(count: int) -> bytes:
    one = OPEN_ITEM + explicit(0x0008, 0x1155, b"UI", uid("1.2.3")) + ITEM_END
    return explicit(0x0008, 0x1140, b"SQ", b"", UNDEFINED) + one * count + SEQUENCE_END


SEQUENCES = {
    "10,000 items": (items(10_000), "0x0000"),
    "10,000 items of defined length": (
        explicit(0x0008, 0x1140, b"SQ", struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 10_000),
        "0x0000",
    ),
    "nested 10,000 deep": (nested(10_000), "0x0000"),
    "nested and never closed": (nested(10_000)[:160_000], "0xc000"),
    "more elements than any header has": (items(700_000), "0xc000"),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_without_measure_end_in_time(start_receiver: Start, name: str) -> None:
    running = start_receiver()
    before_uids, status = SEQUENCES[name]
    fake, data = data_set(before_uids)
    with associate(running.peer, "SCANNER", CT) as requested:
        before = time.monotonic()
        assert requested.store(1, fake.sop_class_uid, fake.sop_instance_uid, data)[0] == int(status, 16)
        assert time.monotonic() - before < 15
    assert_in_order(running)
    assert_served(running)


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def test_a_deflated_bomb_is_not_inflated(start_receiver: Start) -> None:
    running = start_receiver()
    behind = data_set(pixels=explicit(0x7FE0, 0x0010, b"OW", bytes(500 * MB)))[1]
    fake, before_uids = data_set(explicit(0x0009, 0x0010, b"OB", bytes(500 * MB)))
    bombs = {deflated(behind): 0x0000, deflated(before_uids): 0xC000}
    del behind, before_uids
    gc.collect()
    resident = resident_bytes()
    contexts = [(str(CTImageStorage), [str(DeflatedExplicitVRLittleEndian)])]
    with associate(running.peer, "SCANNER", contexts) as requested:
        for bomb, status in bombs.items():
            assert requested.store(1, fake.sop_class_uid, fake.sop_instance_uid, bomb)[0] == status
            assert resident_bytes() - resident < 100 * MB
    assert_in_order(running)


def test_a_jpeg_bomb_is_kept_as_it_is_and_never_decoded_here(start_receiver: Start) -> None:
    """A stream of 60 bytes that claims 65535 x 65535 pixels. Whether it may be decoded is the assembler's question."""
    running = start_receiver()
    frame = b"\xff\xd8" + struct.pack(">HHBHHBBBB", 0xFFC3, 11, 16, 65535, 65535, 1, 1, 0x11, 0) + b"\xff\xd9"
    encapsulated = ITEM + struct.pack("<HHI", 0xFFFE, 0xE000, len(frame) + len(frame) % 2)
    encapsulated += frame + b"\0" * (len(frame) % 2) + SEQUENCE_END
    fake, data = data_set(pixels=explicit(0x7FE0, 0x0010, b"OB", encapsulated, UNDEFINED))
    gc.collect()
    resident = resident_bytes()
    with associate(running.peer, "SCANNER", [(str(CTImageStorage), [str(JPEGLosslessSV1)])]) as requested:
        assert requested.store(1, fake.sop_class_uid, fake.sop_instance_uid, data)[0] == 0x0000
    assert resident_bytes() - resident < 50 * MB
    assert_in_order(running)


# -- Associations --------------------------------------------------------------------------------------


def test_aborts_within_transfers_leave_what_was_acknowledged(start_receiver: Start) -> None:
    running = start_receiver()
    choose, acknowledged = random.Random(4), []
    for number in range(30):
        fake = fake_instance(number, pixels=os.urandom(100_000))
        whole = b"".join(store_pdus(fake))
        with RawPeer(running.port).established() as peer:
            if number % 3 == 0:
                peer.send(whole)
                acknowledged.append(peer.answer())
            peer.send(whole[: choose.randrange(len(whole))])
            if number % 2:
                peer.send(ABORT)
            else:
                peer.line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert all(answer.startswith("0x0000") for answer in acknowledged)
    assert_in_order(running, acknowledged)
    assert len(running.files()) == len(acknowledged)
    assert_served(running)


def test_one_instance_on_two_associations_at_once_one_of_them_aborted(start_receiver: Start) -> None:
    running = start_receiver()
    fake = fake_instance(1, pixels=os.urandom(500_000))
    pdus = store_pdus(fake)
    with RawPeer(running.port).established() as whole, RawPeer(running.port).established() as broken:
        for part in pdus[:-1]:
            whole.send(part)
            broken.send(part)
        broken.send(ABORT)
        whole.send(pdus[-1])
        answer = whole.answer()
        assert answer == f"0x0000 {fake.sop_instance_uid}"
        whole.send(RELEASE_RQ)
        assert whole.answer() == "release"
    assert_in_order(running, [answer])
    assert len(running.files()) == 1


def test_a_wrong_calling_title_costs_nothing_and_stores_nothing(start_receiver: Start) -> None:
    peers = {"ct": {"ae_title": "HONEST", "host": "127.0.0.1", "may_send": True}}
    running = start_receiver(receive={"unknown_peers": "refuse"}, peers=peers)
    with RawPeer(running.port) as peer:
        # It does not wait for the answer, and stores all the same.
        peer.send(associate_rq(calling="MALLORY"), *store_pdus(fake_instance(1)))
        assert "0x0000" not in " ".join(peer.answers())
    assert running.files() == []
    with pytest.raises(CannotAssociate, match="does not know us as MALLORY"):
        scu.echo(running.peer, "MALLORY")
    assert_served(running)


# -- which Transfer Syntax is accepted -----------------------------------------------------------------

J2K, JPEG = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.70"


def test_a_peer_s_own_order_decides_what_is_accepted(start_receiver: Start) -> None:
    here = {"host": "127.0.0.1", "may_send": True}
    peers = {
        "archive": {"ae_title": "ARCHIVE", **here, "accept_first": [JPEG, J2K]},
        "ct": {"ae_title": "CT", **here},
    }
    running = start_receiver(peers=peers)
    offers = {
        ("ARCHIVE", (ExplicitVRLittleEndian, J2K, JPEG)): JPEG,
        ("ARCHIVE", (ExplicitVRLittleEndian, J2K)): J2K,
        ("ARCHIVE", (ExplicitVRLittleEndian, "1.2.840.10008.1.2")): ExplicitVRLittleEndian,
        ("CT", (JPEG, J2K, ExplicitVRLittleEndian)): ExplicitVRLittleEndian,
        ("NOBODY", (JPEG, ExplicitVRLittleEndian)): ExplicitVRLittleEndian,
    }
    for (calling, offered), accepted in offers.items():
        with associate(running.peer, calling, [(str(CTImageStorage), [str(s) for s in offered])]) as requested:
            assert list(requested.contexts) == [(CTImageStorage, accepted)]


def test_a_preference_for_what_is_never_received_is_told(
    start_receiver: Start, node_config: Callable[..., Config]
) -> None:
    mpeg = "1.2.840.10008.1.2.4.100"
    peers = {"a": {"ae_title": "A", "host": "127.0.0.1", "accept_first": [JPEG, mpeg]}}
    with pytest.raises(ConfigError, match=rf"peers\.a\.accept_first: {mpeg} is no Transfer Syntax"):
        start_receiver(peers=peers)
    items = {item.name: item for item in check(node_config(peers=peers))}
    assert not items["transfer syntaxes"].ok
    peers["a"]["accept_first"] = [JPEG]
    assert {item.name: item for item in check(node_config(peers=peers))}["transfer syntaxes"].ok
