"""P-DATA of an accepted Association -> C-STORE requests, whole, to a handler; every other message to pynetdicom.

pynetdicom 3.0.4 passes each fragment of an image through eight objects and two threads that sleep between looks.
Here a C-STORE is read, served and answered in the upper layer's own thread: 3 to 4 times as many images a second.
Negotiation, release, abort and all other DIMSE services stay pynetdicom's.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import P_DATA

from dicom_node.dimse.part10 import read_command
from dicom_node.dimse.transport import Connection
from dicom_node.errors import UnreadableInstance
from dicom_node.logs import describe

if TYPE_CHECKING:
    from pynetdicom.association import Association

log = logging.getLogger(__name__)

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
# Of other services than C-STORE: 16 MB of references are 100,000 Instances in one Storage Commitment.
_LONGEST_OTHER_BYTES = 16 * 1024**2
# A peer asks one thing at a time (PS3.7 D.3.3.3: without negotiation one operation may be outstanding).
_MOST_OUTSTANDING = 16
# Shorter fragments are gathered: a view on each would cost more memory than what it holds.
_SHORT_FRAGMENT_BYTES = 4096
# How long what is neither read nor a C-STORE may lie: releases, aborts, C-ECHO.
IDLE_LOOK_S = 0.01
# PS3.8 9.3.8: A-ABORT by the service provider, no reason given.
_ABORT_BY_PROVIDER = struct.pack(">BBIBBBB", 0x07, 0, 4, 0, 0, 0x02, 0x00)
# A peer sends its next image well within this; what the node itself wants to send waits for so long.
_NEXT_REQUEST_S = 0.02
# Held in memory until it is whole, where nobody sets another limit; PS3.5 lets a single element be 4 GB.
MAX_DATA_SET_BYTES = 2 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class RawStore:
    """One C-STORE request as it came. `data_set` is None where it was longer than allowed."""

    context_id: int
    message_id: int
    sop_class_uid: bytes
    sop_instance_uid: bytes
    data_set: bytes | None


class InvalidPDU(Exception):
    """The peer breaks the protocol: the Association is aborted."""


class StoreAssembler:
    """PDVs in, whole C-STORE requests out. Messages of other kinds go to `pass_on` as they are."""

    def __init__(self, pass_on: Callable[[int, bytes], None], max_data_set_bytes: int = MAX_DATA_SET_BYTES) -> None:
        self._pass_on = pass_on
        self._max_data_set_bytes = max_data_set_bytes
        self._command = bytearray()
        self._fields: dict[int, bytes] | None = None
        self._passing = False
        self._context_id = 0
        self._fragments: list[memoryview | bytearray] = []
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
            self._size += len(fragment)
            if self._size > _LONGEST_OTHER_BYTES:
                raise InvalidPDU("a message longer than any")
            self._passing = not control & _IS_LAST
            self._size = self._size if self._passing else 0
            self._pass_on(context_id, bytes([control]) + fragment)
            return None
        if self._fields is None or context_id != self._context_id:
            raise InvalidPDU("data without its command")
        self._keep(fragment)
        return self._complete() if control & _IS_LAST else None

    def _keep(self, fragment: memoryview) -> None:
        self._size += len(fragment)
        if self._size > self._max_data_set_bytes:
            self._fragments.clear()
        elif len(fragment) >= _SHORT_FRAGMENT_BYTES:
            self._fragments.append(fragment)
        elif self._fragments and isinstance(self._fragments[-1], bytearray):
            self._fragments[-1] += fragment
        else:
            self._fragments.append(bytearray(fragment))

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
            data_set=b"".join(self._fragments) if self._size <= self._max_data_set_bytes else None,
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


class InboundSocket(Connection):
    """A connection whose peer cannot claim all our memory."""

    def __init__(self, association: Association, connection: socket.socket, longest_pdu_bytes: int) -> None:
        super().__init__(association, client_socket=connection)
        self._longest_pdu_bytes = longest_pdu_bytes

    def recv(self, nr_bytes: int) -> bytearray:
        """As many bytes, fewer only where the peer closed the connection. Raises OSError."""
        if nr_bytes > self._longest_pdu_bytes:
            raise ConnectionError("the peer announces a PDU longer than any")
        return super().recv(nr_bytes)


class UpperLayer(DULServiceProvider):
    """pynetdicom's upper layer, which serves C-STORE by itself: `serve(request)` gives the response PDU."""

    def __init__(
        self,
        association: Association,
        serve: Callable[[RawStore], bytes | None],
        max_data_set_bytes: int = MAX_DATA_SET_BYTES,
    ) -> None:
        super().__init__(association)
        self._serve = serve
        self._serving = False
        self._assembler = StoreAssembler(self._pass_on, max_data_set_bytes)

    def run_reactor(self) -> None:
        """The life of this thread."""
        try:
            super().run_reactor()
        except Exception as err:  # noqa: BLE001  the top of this thread's loop
            # pynetdicom's state machine raises on what no state foresees, like an answer after the peer's abort.
            log.warning("association broken off", extra={"action": "abort", "error": describe(err)})
            if self.socket is not None:
                self.socket.send(_ABORT_BY_PROVIDER)
            self.assoc.is_aborted, self.assoc.is_established = True, False
            self._kill_thread = self.assoc._kill = True

    def idle_timer_expired(self) -> bool:
        # While we work the peer waits for us, so its silence is none.
        return not self._serving and super().idle_timer_expired()

    def _is_transport_event(self) -> bool:
        # pynetdicom looks a thousand times a second, which costs an idle Association 7 % of a processor core.
        if (
            self.state_machine.current_state == "Sta6"
            and self.to_provider_queue.empty()
            and isinstance(self.socket, InboundSocket)
        ):
            self.socket.readable(IDLE_LOOK_S)
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
        return connection.readable(_NEXT_REQUEST_S)

    def _pass_on(self, context_id: int, pdv: bytes) -> None:
        if self.assoc.dimse.msg_queue.qsize() >= _MOST_OUTSTANDING:
            raise InvalidPDU("requests without waiting for their answers")
        primitive = P_DATA()
        primitive.presentation_data_value_list.append((context_id, pdv))
        self.assoc.dimse.receive_primitive(primitive)
