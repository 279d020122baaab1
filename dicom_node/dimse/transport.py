"""A connection, plain or TLS, that says truly whether something can be read, and keeps why it failed."""

from __future__ import annotations

import select
import ssl
import time
from typing import TYPE_CHECKING

from pynetdicom.transport import AssociationSocket

if TYPE_CHECKING:
    import socket

    from pynetdicom.association import Association
    from pynetdicom.transport import AddressInformation

# A peer that stays below this within one PDU is not slow but stuck, or holds us up on purpose.
_LEAST_BYTES_PER_S = 1000
_TLS_ALERT = b"\x15\x03"


class Connection(AssociationSocket):
    """pynetdicom's socket, for reading whole PDUs.

    `error`: the first failure of reading, or None. `speaks_tls`: a TLS alert came where a PDU was expected.
    """

    def __init__(
        self,
        association: Association,
        client_socket: socket.socket | None = None,
        address: AddressInformation | None = None,
    ) -> None:
        super().__init__(association, client_socket=client_socket, address=address)
        self._unread = b""
        self.error: OSError | None = None
        self.speaks_tls = False

    @property
    def ready(self) -> bool:
        if self.socket is None or not self._is_connected:
            return False
        return self.readable(0.0)

    def readable(self, timeout_s: float) -> bool:
        """Whether bytes of a PDU, or the connection's end, can be read now or within the time."""
        line = self.socket
        if line is None:
            return False
        if self._unread:
            return True
        try:
            if isinstance(line, ssl.SSLSocket):
                # What came may be a part of a record, or a message of TLS itself: reading would wait for what follows.
                return self._takes_a_byte(line) or (_is_readable(line, timeout_s) and self._takes_a_byte(line))
            return _is_readable(line, timeout_s)
        except (OSError, ValueError) as err:  # ValueError: closed meanwhile
            if isinstance(err, OSError):
                self.error = self.error or err
            # Reading finds out how it ended.
            return self._is_connected

    def _takes_a_byte(self, line: ssl.SSLSocket) -> bool:
        before = line.gettimeout()
        line.settimeout(0.0)
        try:
            self._unread = line.recv(1)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        finally:
            line.settimeout(before)
        return True

    def recv(self, nr_bytes: int) -> bytearray:
        """As many bytes, fewer only where the peer closed the connection. Raises OSError."""
        line = self.socket
        if line is None:
            raise ConnectionError("the connection is closed")
        data = bytearray(nr_bytes)
        got = min(len(self._unread), nr_bytes)
        data[:got], self._unread = self._unread[:got], self._unread[got:]
        try:
            self._fill(line, data, got)
        except OSError as err:
            self.error = self.error or err
            raise
        self.speaks_tls = self.speaks_tls or data[:2] == _TLS_ALERT
        return data

    def _fill(self, line: socket.socket, data: bytearray, got: int) -> None:
        """Read until `data` is full; it is cut where the connection ends before."""
        patience_s = line.gettimeout()
        # Each read may take its own timeout: a peer that sends a byte now and then must come to an end too.
        deadline = time.monotonic() + patience_s + len(data) / _LEAST_BYTES_PER_S if patience_s is not None else None
        with memoryview(data) as view:
            while got < len(data):
                with view[got:] as rest:
                    count = line.recv_into(rest)
                if not count:
                    break
                got += count
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError("the peer is too slow within a PDU")
        del data[got:]

    def unread(self, data: bytes) -> None:
        """The next `recv` begins with these bytes."""
        self._unread = data


def _is_readable(line: socket.socket, timeout_s: float) -> bool:
    poll = select.poll()  # select itself ends at file number 1023
    poll.register(line, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))
