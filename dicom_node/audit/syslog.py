"""An audit message -> one syslog message (RFC 5424, PS3.15 A.6) -> a server, by UDP (RFC 5426) or TLS (RFC 5425)."""

from __future__ import annotations

import fcntl
import socket
import ssl
import struct
import termios
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

# Facility 10 (security, authorization), severity 5 (notice).
_PRIORITY = 10 * 8 + 5
_MSGID = "DICOM+RFC3881"
_BOM = b"\xef\xbb\xbf"
_LOOK_S = 0.01


def syslog_message(xml: str, *, at: float, host: str, process: str) -> bytes:
    """RFC 5424 6: header without structured data, a byte order mark, the XML in UTF-8. at: seconds since the epoch."""
    when = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    header = f"<{_PRIORITY}>1 {when} {_word(host, 255)} dicom-node {_word(process, 128)} {_MSGID} - "
    return header.encode("ascii") + _BOM + xml.encode()


def _word(text: str, longest: int) -> str:
    """PRINTUSASCII of at most so many characters; a dash where nothing is left."""
    return "".join(c for c in text if "!" <= c <= "~")[:longest] or "-"


class Link(Protocol):
    """A way to a server. `send` raises OSError; what it then did with the message is unknown."""

    def send(self, message: bytes) -> None: ...

    def close(self) -> None: ...


class UDPLink:
    """RFC 5426: one datagram a message. Nothing tells whether it arrived."""

    def __init__(self, host: str, port: int) -> None:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        self._socket = socket.socket(family, kind, protocol)
        try:
            # Connected, so that "port unreachable" becomes an error of the next message.
            self._socket.connect(address)
        except OSError:
            self._socket.close()
            raise

    def send(self, message: bytes) -> None:
        self._socket.send(message)

    def close(self) -> None:
        self._socket.close()


class TLSLink:
    """RFC 5425: octet counts before messages, over TLS.

    Syslog has no answers. What the server's system has taken is the best that can be known, so `send` waits for that.
    """

    def __init__(
        self, host: str, port: int, *, ca: Path, certificate: Path | None, key: Path | None, timeout_s: float
    ) -> None:
        context = ssl.create_default_context(cafile=str(ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        self._timeout_s = timeout_s
        plain = socket.create_connection((host, port), timeout_s)
        try:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._socket = context.wrap_socket(plain, server_hostname=host)
        except (OSError, ValueError):
            plain.close()
            raise

    def send(self, message: bytes) -> None:
        self._check_open()
        self._socket.sendall(str(len(message)).encode() + b" " + message)
        deadline = time.monotonic() + self._timeout_s
        while struct.unpack("i", fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]:
            if time.monotonic() > deadline:
                raise TimeoutError("the syslog server takes nothing")
            time.sleep(_LOOK_S)
        # A dead server resets what comes too late; the reset is here by the time our bytes are acknowledged.
        self._check_open()

    def _check_open(self) -> None:
        """A server sends nothing (RFC 5425 4.4) but the end of its side."""
        self._socket.settimeout(0.0)
        try:
            if not self._socket.recv(4096):
                raise ConnectionResetError("the syslog server closed the connection")
        except (ssl.SSLWantReadError, BlockingIOError):
            pass
        finally:
            self._socket.settimeout(self._timeout_s)

    def close(self) -> None:
        self._socket.close()
