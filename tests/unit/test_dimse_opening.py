"""What a new connection must bring before an Association begins, and what is said where it does not."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.dimse.opening import NotOpened, open_connection
from tests.raw import associate_rq, p_data, pdu


@contextlib.contextmanager
def line() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection: ours, and the peer's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname(), timeout=10)
        ours, _ = listener.accept()
    with ours, theirs:
        yield ours, theirs


def said(data: bytes, timeout_s: float = 5.0) -> tuple[str, bytes]:
    """Why there is no Association when a peer sends this and no more, and what it is told."""
    with line() as (ours, theirs):
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(NotOpened) as caught:
            open_connection(ours, timeout_s)
        told = b""
        while piece := theirs.recv(65536):
            told += piece
    return str(caught.value), told


def abort(reason: int) -> bytes:
    return struct.pack(">BBIBBBB", 0x07, 0, 4, 0, 0, 2, reason)


def test_a_request_is_given_on_as_it_came() -> None:
    with line() as (ours, theirs):
        theirs.sendall(associate_rq())
        opened = open_connection(ours, 5.0)
    assert opened.request == associate_rq()
    assert opened.certificate_names == frozenset()


def test_only_the_first_bit_of_the_version_counts() -> None:
    with line() as (ours, theirs):
        theirs.sendall(associate_rq(version=0x0003))
        assert open_connection(ours, 5.0).request == associate_rq(version=0x0001)


@pytest.mark.parametrize(
    ("data", "why", "told"),
    [
        (b"", "closed without a word", b""),
        (associate_rq()[:50], "closed within the A-ASSOCIATE-RQ", b""),
        (p_data(0x02, b"x"), "what came is no A-ASSOCIATE-RQ", abort(2)),
        (b"GET / HTTP/1.1\r\n\r\n", "what came is no A-ASSOCIATE-RQ", abort(1)),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", "the peer speaks TLS on the plain port", abort(1)),
        (struct.pack(">BBI", 1, 0, 2**32 - 1), "what came is no A-ASSOCIATE-RQ", abort(1)),
        (pdu(0x01, bytes([0, 1]) + bytes(66) + b"\x99\0\0\1?"), "the A-ASSOCIATE-RQ cannot be read", abort(6)),
        (pdu(0x01, b""), "the A-ASSOCIATE-RQ cannot be read", abort(6)),
        (associate_rq(version=2), "another version of the protocol", struct.pack(">BBIBBBB", 3, 0, 4, 0, 1, 2, 2)),
    ],
)
def test_what_is_none_is_told_to_the_peer_and_the_log(data: bytes, why: str, told: bytes) -> None:
    assert said(data) == (why, told)


def test_the_last_word_arrives_though_the_peer_had_more_to_say() -> None:
    """Closing over unread bytes would be a reset, which may overtake what was said."""
    assert said(p_data(0x02, b"x") + bytes(100_000)) == ("what came is no A-ASSOCIATE-RQ", abort(2))


def test_a_look_whether_the_port_is_open_is_harmless() -> None:
    for data, harmless in ((b"", True), (b"\x01", False)):
        with line() as (ours, theirs):
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            with pytest.raises(NotOpened) as caught:
                open_connection(ours, 5.0)
        assert caught.value.harmless is harmless


def test_a_silent_peer_is_given_up() -> None:
    with line() as (ours, _), pytest.raises(NotOpened, match="in time"):
        open_connection(ours, 0.1)


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(body: bytes) -> None:
    with line() as (ours, theirs):
        theirs.sendall(pdu(0x01, body))
        theirs.shutdown(socket.SHUT_WR)
        with contextlib.suppress(NotOpened):
            open_connection(ours, 5.0)
