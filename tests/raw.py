"""PDUs by hand (PS3.8 9.3), right or wrong on purpose, and a peer that sends them and tells what came back."""

from __future__ import annotations

import contextlib
import socket
import struct
from types import TracebackType

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicom_node.dimse.part10 import read_command
from tests.fakes.instances import FakeInstance

RELEASE_RQ = struct.pack(">BBII", 0x05, 0, 4, 0)
ABORT = struct.pack(">BBII", 0x07, 0, 4, 0)
VERIFICATION = "1.2.840.10008.1.1"


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBI", kind, 0, len(body)) + body


def associate_rq(
    abstract_syntax: str = CTImageStorage,
    *transfer_syntaxes: str,
    calling: str = "SCANNER",
    called: str = "DICOMNODE",
    version: int = 1,
) -> bytes:
    """Context 1 has the class and syntaxes given (or Explicit VR Little Endian), context 3 Verification."""

    def item(kind: int, body: bytes) -> bytes:
        return struct.pack(">BBH", kind, 0, len(body)) + body

    def context(number: int, abstract: str, syntaxes: tuple[str, ...]) -> bytes:
        parts = item(0x30, abstract.encode()) + b"".join(item(0x40, syntax.encode()) for syntax in syntaxes)
        return item(0x20, bytes([number, 0, 0, 0]) + parts)

    user = item(0x50, item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3"))
    head = struct.pack(">HH16s16s32x", version, 0, called.encode().ljust(16), calling.encode().ljust(16))
    contexts = context(1, abstract_syntax, transfer_syntaxes or (ExplicitVRLittleEndian,))
    contexts += context(3, VERIFICATION, ("1.2.840.10008.1.2",))
    return pdu(0x01, head + item(0x10, b"1.2.840.10008.3.1.1.1") + contexts + user)


def command(fields: dict[int, bytes]) -> bytes:
    """A command set (PS3.7 6.3.1) with its group length."""
    elements = b"".join(
        struct.pack("<HHI", 0, number, len(value) + len(value) % 2) + value + b"\0" * (len(value) % 2)
        for number, value in sorted(fields.items())
    )
    return struct.pack("<HHII", 0, 0, 4, len(elements)) + elements


def store_fields(fake: FakeInstance, message_id: int = 1) -> dict[int, bytes]:
    return {
        0x0002: fake.sop_class_uid.encode(),
        0x0100: b"\x01\0",
        0x0110: struct.pack("<H", message_id),
        0x0700: b"\0\0",
        0x0800: b"\x01\0",
        0x1000: fake.sop_instance_uid.encode(),
    }


def echo_command(message_id: int = 1) -> bytes:
    fields = {0x0002: VERIFICATION.encode(), 0x0100: b"\x30\0", 0x0110: struct.pack("<H", message_id)}
    return command({**fields, 0x0800: b"\x01\x01"})


def pdv(control: int, fragment: bytes, context_id: int = 1) -> bytes:
    return struct.pack(">IBB", len(fragment) + 2, context_id, control) + fragment


def p_data(control: int, fragment: bytes, context_id: int = 1) -> bytes:
    return pdu(0x04, pdv(control, fragment, context_id))


def store_pdus(fake: FakeInstance, message_id: int = 1, *, fragment_bytes: int = 16000) -> list[bytes]:
    """One P-DATA-TF for the command, and as many as are needed for the data set."""
    data = fake.data_set
    cuts = range(0, len(data), fragment_bytes)
    fragments = [data[at : at + fragment_bytes] for at in cuts]
    last = len(fragments) - 1
    return [
        p_data(0x03, command(store_fields(fake, message_id))),
        *(p_data(0x02 if n == last else 0x00, fragment) for n, fragment in enumerate(fragments)),
    ]


class RawPeer:
    """A connection to send any bytes on."""

    def __init__(self, port: int, timeout_s: float = 30.0) -> None:
        self.line = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        self.line.close()

    def send(self, *pdus: bytes) -> None:
        """As much as the other side takes."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.line.sendall(b"".join(pdus))

    def established(self, request: bytes | None = None) -> RawPeer:
        self.send(associate_rq() if request is None else request)
        answer = self.read_pdu()
        assert answer is not None
        assert answer[0] == 0x02, answer
        return self

    def read_pdu(self) -> bytes | None:
        """None at the connection's end, however it ended."""
        header = self._read(6)
        body = self._read(int.from_bytes(header[2:], "big")) if len(header) == 6 else b""
        return header + body if len(header) == 6 else None

    def _read(self, count: int) -> bytes:
        data = b""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while len(data) < count:
                piece = self.line.recv(count - len(data))
                if not piece:
                    break
                data += piece
        return data

    def no_more(self) -> None:
        """Nothing further is sent: what the other side reads next is the end."""
        with contextlib.suppress(OSError):
            self.line.shutdown(socket.SHUT_WR)

    def answers(self) -> list[str]:
        """All that comes until the connection ends: "0x0000 1.2.3" for each response, "abort", "release" ..."""
        found = []
        while (answer := self.read_pdu()) is not None:
            found.append(_meaning(answer))
        return found

    def answer(self) -> str:
        answer = self.read_pdu()
        return "closed" if answer is None else _meaning(answer)


def _meaning(answer: bytes) -> str:
    kinds = {0x02: "accept", 0x03: "reject", 0x05: "release?", 0x06: "release", 0x07: "abort"}
    if answer[0] != 0x04:
        return kinds.get(answer[0], f"{answer[0]:#04x}")
    fields = read_command(answer[12:], (0x0900, 0x1000))
    (status,) = struct.unpack("<H", fields[0x0900])
    instance = fields.get(0x1000, b"").rstrip(b"\0 ").decode("latin-1")
    return f"{status:#06x} {instance}".strip()
