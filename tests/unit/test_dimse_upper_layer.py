"""PDVs of any cut become the same requests; what breaks the protocol is refused and nothing else happens."""

from __future__ import annotations

import struct
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.dimse.part10 import read_command
from dicom_node.dimse.upper_layer import MAX_DATA_SET_BYTES, InvalidPDU, RawStore, StoreAssembler, store_response
from tests.fakes.instances import fake_instance

FAKE = fake_instance()
UID, CLASS = FAKE.sop_instance_uid.encode() + b"\0", FAKE.sop_class_uid.encode() + b"\0"


def element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, number, len(value)) + value


def command(field: int = 0x0001, data_set_type: int = 0x0001, message_id: int = 7) -> bytes:
    elements = (
        element(0x0002, CLASS)
        + element(0x0100, struct.pack("<H", field))
        + element(0x0110, struct.pack("<H", message_id))
        + element(0x0700, b"\0\0")
        + element(0x0800, struct.pack("<H", data_set_type))
        + element(0x1000, UID)
    )
    return element(0x0000, struct.pack("<I", len(elements))) + elements


def pdv(control: int, fragment: bytes, context_id: int = 1) -> bytes:
    return struct.pack(">IBB", len(fragment) + 2, context_id, control) + fragment


STORE = pdv(0x03, command()) + pdv(0x02, FAKE.data_set)


def fed(*bodies: bytes, most: int = MAX_DATA_SET_BYTES) -> tuple[list[RawStore], list[tuple[int, bytes]]]:
    """The requests of these P-DATA-TF bodies, and what was passed on."""
    passed: list[tuple[int, bytes]] = []
    assembler = StoreAssembler(lambda context_id, data: passed.append((context_id, data)), most)
    requests = [request for body in bodies for request in assembler.feed(memoryview(body))]
    assert not assembler.within_request
    return requests, passed


def test_a_request_in_one_pdu_is_whole() -> None:
    (request,), passed = fed(STORE)
    assert request == RawStore(
        context_id=1, message_id=7, sop_class_uid=CLASS, sop_instance_uid=UID, data_set=FAKE.data_set
    )
    assert passed == []


@given(
    command_cuts=st.sets(st.integers(1, len(command()) - 1), max_size=4),
    data_cuts=st.sets(st.integers(1, len(FAKE.data_set) - 1), max_size=8),
)
def test_however_it_is_cut_the_request_is_the_same(command_cuts: set[int], data_cuts: set[int]) -> None:
    bodies = []
    for bit, data, cuts in ((0x01, command(), command_cuts), (0x00, FAKE.data_set, data_cuts)):
        places = [0, *sorted(cuts), len(data)]
        for start, end in pairwise(places):
            bodies.append(pdv(bit | (0x02 if end == len(data) else 0), data[start:end]))
    assert fed(*bodies) == fed(STORE)
    assert fed(b"".join(bodies)) == fed(STORE)


def test_other_services_are_passed_on_with_their_data() -> None:
    echo = command(field=0x0030, data_set_type=0x0101)
    find = command(field=0x0020)
    requests, passed = fed(pdv(0x03, echo), STORE, pdv(0x03, find, 3), pdv(0x00, b"ab", 3) + pdv(0x02, b"cd", 3), STORE)
    assert len(requests) == 2
    assert passed == [(1, b"\x03" + echo), (3, b"\x03" + find), (3, b"\x00ab"), (3, b"\x02cd")]


def test_a_request_that_announces_no_data_set_has_an_empty_one() -> None:
    (request,), _ = fed(pdv(0x03, command(data_set_type=0x0101)))
    assert request.data_set == b""


def test_a_data_set_beyond_all_measure_is_dropped_but_answered() -> None:
    (request, next_one), _ = fed(
        pdv(0x03, command()) + pdv(0x00, bytes(99)),
        pdv(0x00, bytes(2)) + pdv(0x02, bytes(50)),
        pdv(0x03, command()) + pdv(0x02, b"x"),
        most=100,
    )
    assert request.data_set is None
    assert next_one.data_set == b"x"


def test_a_data_set_in_crumbs_costs_no_more_than_it_holds() -> None:
    assembler = StoreAssembler(lambda context_id, data: None)
    crumbs = pdv(0x00, b"x") * 10_000
    list(assembler.feed(memoryview(pdv(0x03, command()))))
    tracemalloc.start()
    for _ in range(20):
        assert not list(assembler.feed(memoryview(crumbs)))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    (request,) = assembler.feed(memoryview(pdv(0x02, b"y")))
    assert request.data_set == b"x" * 200_000 + b"y"
    assert held < 1_000_000


def test_a_message_of_another_service_cannot_grow_without_end() -> None:
    assembler = StoreAssembler(lambda context_id, data: None)
    list(assembler.feed(memoryview(pdv(0x03, command(field=0x0020)))))
    endless = memoryview(pdv(0x00, bytes(1024**2)) * 20)
    with pytest.raises(InvalidPDU, match="longer than any"):
        list(assembler.feed(endless))


@pytest.mark.parametrize(
    "body",
    [
        b"\0",
        struct.pack(">IBB", 0, 1, 3),
        struct.pack(">IBB", 1, 1, 3) + b"x",
        struct.pack(">IBB", 500, 1, 3) + b"short",
        pdv(0x02, b"data without its command"),
        pdv(0x03, b"no command at all"),
        pdv(0x03, element(0x0100, b"\x01\0")),
        pdv(0x03, command()) + pdv(0x02, b"of another context", context_id=3),
        pdv(0x03, command()) + pdv(0x03, command()),
    ],
)
def test_what_breaks_the_protocol_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidPDU):
        fed(body)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_refused(body: bytes) -> None:
    assembler = StoreAssembler(lambda context_id, data: None)
    try:
        list(assembler.feed(memoryview(body)))
    except InvalidPDU:
        return


def test_a_response_says_what_it_answers() -> None:
    (request,), _ = fed(STORE)
    pdu = store_response(request, 0xA700, "ä" + "x" * 100)
    kind, _, length, pdv_length, context_id, control = struct.unpack_from(">BBIIBB", pdu)
    assert (kind, length, pdv_length, context_id, control) == (4, len(pdu) - 6, len(pdu) - 10, 1, 3)
    fields = read_command(pdu[12:], range(0x10000))
    assert fields == {
        0x0000: struct.pack("<I", len(pdu) - 24),
        0x0002: CLASS,
        0x0100: b"\x01\x80",
        0x0120: b"\x07\x00",
        0x0800: b"\x01\x01",
        0x0900: b"\x00\xa7",
        0x0902: b"?" + b"x" * 63,
        0x1000: UID,
    }
