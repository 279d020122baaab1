"""P-DATA of an accepted Association -> C-STORE requests, whole, to a handler; every other message to pynetdicom.

pynetdicom 3.0.4 passes each fragment of an image through eight objects and two threads that sleep between looks.
Here a C-STORE is read, served and answered in the upper layer's own thread: 3 to 4 times as many images a second.
Negotiation, release, abort and all other DIMSE services stay pynetdicom's.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket

from dicom_node.dimse.part10 import read_command
from dicom_node.errors import UnreadableInstance

if TYPE_CHECKING:
    from pynetdicom.association import Association

# PS3.7 E.1: the command's elements.
_CLASS, _FIELD, _MESSAGE_ID, _DATA_SET_TYPE, _INSTANCE = 0x00000002, 0x00000100, 0x00000110, 0x00000800, 0x00001000
_COMMAND = (_CLASS, _FIELD, _MESSAGE_ID, _DATA_SET_TYPE, _INSTANCE)
_C_STORE_RQ, _C_STORE_RSP, _NO_DATA_SET = 0x0001, 0x8001, 0x0101
_P_DATA_TF = 0x04
# PS3.8 E.2: bits of a message control header.
_IS_COMMAND, _IS_LAST = 0x01, 0x02
# 128 Presentation Contexts with all Transfer Syntaxes are not half as long.
LONGEST_ASSOCIATE_BYTES = 1024**2
_LONGEST_COMMAND_BYTES = 65536
# How long what is neither read nor a C-STORE may lie: releases, aborts, C-ECHO.
IDLE_LOOK_S = 0.01
# A peer sends its next image well within this; what the node itself wants to send waits for so long.
_NEXT_REQUEST_S = 0.02
# Held in memory until it is whole; PS3.5 lets a single element be 4 GB.
MAX_DATA_SET_BYTES = 2 * 1024**3
# Of requests that are no C-STORE, which pynetdicom gathers in memory: 10,000 references are half as long.
_LONGEST_OTHER_BYTES = 4 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class RawStore:
    """One C-STORE request as it came. `data_set` is None where it was longer than MAX_DATA_SET_BYTES."""

    context_id: int
    message_id: int
    sop_class_uid: bytes
    sop_instance_uid: bytes
    data_set: bytes | None


class InvalidPDU(Exception):
    """The peer breaks the protocol: the Association is aborted."""


class StoreAssembler:
    """PDVs in, whole C-STORE requests out. Messages of other kinds go to `pass_on` as they are."""

    def __init__(self, pass_on: Callable[[int, bytes], None]) -> None:
        self._pass_on = pass_on
        self._command = bytearray()
        self._fields: dict[int, bytes] | None = None
        self._passing = False
        self._context_id = 0
        self._fragments: list[memoryview] = []
        self._size = 0

    @property
    def within_request(self) -> bool:
        """True while a C-STORE request has begun and is not whole yet."""
        return bool(self._command) or self._fields is not None

    def feed(self, body: memoryview) -> Iterator[RawStore]:
        """The requests that the PDVs of one P-DATA-TF complete. Raises InvalidPDU."""
        at = 0
        while at < len(body):
            if at + 6 > len(body):
                raise InvalidPDU("a PDV without its header")
            length, context_id, control = struct.unpack_from(">IBB", body, at)
            end = at + 4 + length
            if length < 2 or end > len(body):
                raise InvalidPDU("a PDV of a wrong length")
            request = self._feed(context_id, control, body[at + 6 : end])
            if request is not None:
                yield request
            at = end

    def _feed(self, context_id: int, control: int, fragment: memoryview) -> RawStore | None:
        if control & _IS_COMMAND:
            return self._feed_command(context_id, control, fragment)
        if self._passing:
            self._passing = not control & _IS_LAST
            self._size = self._size + len(fragment) if self._passing else 0
            if self._size > _LONGEST_OTHER_BYTES:
                raise InvalidPDU("a message longer than any but an image")
            self._pass_on(context_id, bytes([control]) + fragment)
            return None
        if self._fields is None or context_id != self._context_id:
            raise InvalidPDU("data without its command")
        self._size += len(fragment)
        if self._size > MAX_DATA_SET_BYTES:
            self._fragments.clear()
        else:
            self._fragments.append(fragment)
        return self._complete() if control & _IS_LAST else None

    def _feed_command(self, context_id: int, control: int, fragment: memoryview) -> RawStore | None:
        if self._fields is not None or self._passing:
            raise InvalidPDU("a command within a message")
        self._command += fragment
        if len(self._command) > _LONGEST_COMMAND_BYTES:
            raise InvalidPDU("a command longer than any")
        if not control & _IS_LAST:
            return None
        command, self._command = bytes(self._command), bytearray()
        try:
            fields = read_command(command, _COMMAND)
        except UnreadableInstance as err:
            raise InvalidPDU("an unreadable command") from err
        has_data_set = _us(fields, _DATA_SET_TYPE) != _NO_DATA_SET
        if _us(fields, _FIELD) != _C_STORE_RQ:
            self._passing = has_data_set
            self._pass_on(context_id, bytes([_IS_COMMAND | _IS_LAST]) + command)
            return None
        self._context_id, self._fields = context_id, fields
        return None if has_data_set else self._complete()

    def _complete(self) -> RawStore:
        assert self._fields is not None  # noqa: S101  the callers looked
        request = RawStore(
            context_id=self._context_id,
            message_id=_us(self._fields, _MESSAGE_ID),
            sop_class_uid=self._fields.get(_CLASS, b""),
            sop_instance_uid=self._fields.get(_INSTANCE, b""),
            data_set=b"".join(self._fragments) if self._size <= MAX_DATA_SET_BYTES else None,
        )
        self._fields, self._size = None, 0
        self._fragments = []
        return request


def store_response(request: RawStore, status: int, comment: str) -> bytes:
    """The P-DATA-TF PDU of a C-STORE-RSP (PS3.7 9.3.1.2)."""
    elements = b"".join(
        (
            _element(_CLASS, request.sop_class_uid),
            _element(_FIELD, struct.pack("<H", _C_STORE_RSP)),
            _element(0x00000120, struct.pack("<H", request.message_id)),
            _element(_DATA_SET_TYPE, struct.pack("<H", _NO_DATA_SET)),
            _element(0x00000900, struct.pack("<H", status)),
            # PS3.5 6.2: LO is at most 64 characters.
            _element(0x00000902, comment[:64].encode("ascii", "replace")) if comment else b"",
            _element(_INSTANCE, request.sop_instance_uid),
        )
    )
    command = _element(0x00000000, struct.pack("<I", len(elements))) + elements
    pdv = struct.pack(">IBB", len(command) + 2, request.context_id, _IS_COMMAND | _IS_LAST) + command
    return struct.pack(">BBI", _P_DATA_TF, 0, len(pdv)) + pdv


def _element(tag: int, value: bytes) -> bytes:
    value += b" " * (len(value) % 2) if tag == 0x00000902 else b"\0" * (len(value) % 2)
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value


def _us(fields: dict[int, bytes], tag: int) -> int:
    value = fields.get(tag, b"")
    if len(value) != 2:
        raise InvalidPDU("a command without one of its fields")
    return int(struct.unpack("<H", value)[0])


class InboundSocket(AssociationSocket):
    """A connection that is read a PDU at a time, not 4096 bytes, and whose peer cannot claim all our memory."""

    def __init__(self, association: Association, connection: socket.socket, longest_pdu_bytes: int) -> None:
        super().__init__(association, client_socket=connection)
        self._longest_pdu_bytes = longest_pdu_bytes
        self._unread = b""

    def recv(self, nr_bytes: int) -> bytearray:
        """As many bytes, fewer only where the peer closed the connection. Raises OSError."""
        if nr_bytes > self._longest_pdu_bytes:
            raise ConnectionError("the peer announces a PDU longer than any")
        assert self.socket is not None  # noqa: S101  only read while connected
        data = bytearray(nr_bytes)
        got = len(self._unread)
        data[:got], self._unread = self._unread, b""
        with memoryview(data) as view:
            while got < nr_bytes:
                with view[got:] as rest:
                    count = self.socket.recv_into(rest)
                if not count:
                    break
                got += count
        del data[got:]
        return data

    def unread(self, data: bytes) -> None:
        """The next `recv` begins with these bytes."""
        self._unread = data


class UpperLayer(DULServiceProvider):
    """pynetdicom's upper layer, which serves C-STORE by itself: `serve(request)` gives the response PDU."""

    def __init__(self, association: Association, serve: Callable[[RawStore], bytes | None]) -> None:
        super().__init__(association)
        self._serve = serve
        self._serving = False
        self._assembler = StoreAssembler(self._pass_on)

    def idle_timer_expired(self) -> bool:
        # While we work the peer waits for us, so its silence is none.
        return not self._serving and super().idle_timer_expired()

    def _is_transport_event(self) -> bool:
        # pynetdicom looks a thousand times a second, which costs an idle Association 7 % of a processor core.
        if self.state_machine.current_state == "Sta6" and self.to_provider_queue.empty() and self.socket is not None:
            self._readable(self.socket, IDLE_LOOK_S)
        return bool(super()._is_transport_event())

    def _read_pdu_data(self) -> None:
        """One PDU, or as many as belong to C-STORE requests that follow each other without a pause."""
        while self.state_machine.current_state == "Sta6" and isinstance(self.socket, InboundSocket):
            try:
                header = self.socket.recv(6)
            except OSError:
                self.event_queue.put("Evt17")  # transport connection closed
                return
            if len(header) < 6 or header[0] != _P_DATA_TF:
                self.socket.unread(bytes(header))
                break
            if not self._read_p_data(self.socket, int.from_bytes(header[2:], "big")):
                return
            if not self._assembler.within_request and not self._more(self.socket):
                return
        super()._read_pdu_data()

    def _read_p_data(self, connection: InboundSocket, length: int) -> bool:
        """False when the Association cannot go on."""
        try:
            body = connection.recv(length)
            self._idle_timer.restart()
            if len(body) < length:
                raise ConnectionError
            for request in self._assembler.feed(memoryview(body)):
                self._answer(connection, request)
        except OSError:
            self.event_queue.put("Evt17")
            return False
        except InvalidPDU:
            self.event_queue.put("Evt19")
            return False
        return True

    def _answer(self, connection: InboundSocket, request: RawStore) -> None:
        self._serving = True
        try:
            response = self._serve(request)
            if response is not None:
                connection.send(response)
        finally:
            self._idle_timer.restart()
            self._serving = False

    def _more(self, connection: InboundSocket) -> bool:
        """Whether to go on reading at once: the peer's next request is there, and we have nothing to send."""
        if self._kill_thread or not self.to_provider_queue.empty() or not self.event_queue.empty():
            return False
        return self._readable(connection, _NEXT_REQUEST_S)

    @staticmethod
    def _readable(connection: AssociationSocket, timeout_s: float) -> bool:
        line = connection.socket
        if line is None:
            return False
        pending: Any = getattr(line, "pending", None)  # of TLS: read from the line but not by us
        if pending is not None and pending():
            return True
        with contextlib.suppress(OSError, ValueError):  # closed meanwhile
            return bool(select.select([line], [], [], timeout_s)[0])
        return False

    def _pass_on(self, context_id: int, pdv: bytes) -> None:
        primitive = P_DATA()
        primitive.presentation_data_value_list.append((context_id, pdv))
        self.assoc.dimse.receive_primitive(primitive)
