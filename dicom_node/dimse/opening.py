"""A new connection -> TLS, where its port speaks it -> one whole A-ASSOCIATE-RQ, all within one time limit.

Nothing of pynetdicom's runs before: a peer that is silent, slow or no DICOM application costs one thread, briefly.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from dataclasses import dataclass

from pynetdicom.pdu import A_ASSOCIATE_RQ

from dicom_node.dimse.tls import names_of
from dicom_node.dimse.upper_layer import LONGEST_ASSOCIATE_BYTES

_ASSOCIATE_RQ, _ASSOCIATE_RJ, _ABORT = 0x01, 0x03, 0x07
_VERSION_1 = 0x0001
_TLS_HANDSHAKE = b"\x16\x03"
_LAST_WORD_S = 0.5
# PS3.8 Table 9-26: by the service provider.
_BY_PROVIDER, _UNRECOGNIZED_PDU, _UNEXPECTED_PDU, _INVALID_PARAMETER = 0x02, 0x01, 0x02, 0x06


class NotOpened(Exception):
    """The connection carries no Association. The text is for the log, and repeats nothing of what came.

    harmless: nothing was tried; whoever watches whether a port is open does so every few seconds.
    """

    def __init__(self, text: str, *, harmless: bool = False) -> None:
        super().__init__(text)
        self.harmless = harmless


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What an opened connection brought. `request`: its A-ASSOCIATE-RQ PDU.

    certificate_names: those of the caller's verified certificate; none without one.
    """

    request: bytes
    certificate_names: frozenset[str]


def secured(connection: socket.socket, tls: ssl.SSLContext) -> ssl.SSLSocket:
    """The connection for TLS, before its handshake; `connection` itself is no longer of use. Raises NotOpened."""
    try:
        return tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
    except (OSError, ValueError) as err:
        raise _closed(connection, "the connection failed before TLS began") from err


def open_connection(connection: socket.socket, timeout_s: float | None) -> Opened:
    """Raises NotOpened, with the connection closed after the peer was told why, where it can be told."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    if isinstance(connection, ssl.SSLSocket):
        _shake_hands(connection, timeout_s)
    try:
        request = _read_request(connection, deadline)
    except TimeoutError as err:
        raise _closed(connection, "no A-ASSOCIATE-RQ in time (receive.associate_timeout_s)") from err
    except OSError as err:
        raise _closed(connection, f"the connection failed: {_tls_reason(err)}") from err
    _check(connection, request)
    names = names_of(connection.getpeercert()) if isinstance(connection, ssl.SSLSocket) else frozenset()
    # PS3.8 9.3.2: of the version only this bit is to be tested; pynetdicom wants it alone.
    return Opened(request=request[:6] + struct.pack(">H", _VERSION_1) + request[8:], certificate_names=names)


def _shake_hands(connection: ssl.SSLSocket, timeout_s: float | None) -> None:
    # The socket's timeout is the limit of the whole handshake, not of each of its reads.
    connection.settimeout(timeout_s)
    try:
        connection.do_handshake()
    except TimeoutError as err:
        raise _closed(connection, "no TLS handshake in time (receive.associate_timeout_s)") from err
    except OSError as err:
        harmless = isinstance(err, ssl.SSLEOFError)
        raise _closed(connection, f"no TLS: {_tls_reason(err)}", harmless=harmless) from err


def _tls_reason(err: OSError) -> str:
    if isinstance(err, ssl.SSLCertVerificationError):
        return f"the client certificate is refused ({err.verify_message})"
    known = {
        "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer shows no client certificate",
        "WRONG_VERSION_NUMBER": "the peer does not speak it",
        "UNEXPECTED_EOF_WHILE_READING": "closed within the handshake",
        "HTTP_REQUEST": "the peer does not speak it",
        "UNSUPPORTED_PROTOCOL": "the peer speaks only an older version",
        "NO_SHARED_CIPHER": "the peer offers no cipher suite of BCP 195",
        "TLSV1_ALERT_UNKNOWN_CA": "the peer does not trust our certificate",
    }
    reason = getattr(err, "reason", None) or err.strerror or type(err).__name__
    return known.get(reason, str(reason))


def _read_request(connection: socket.socket, deadline: float | None) -> bytes:
    """One PDU. Raises OSError, NotOpened when it is no A-ASSOCIATE-RQ."""
    header = _read(connection, 6, deadline)
    if not header:
        raise _closed(connection, "closed without a word", harmless=True)
    kind, length = header[0], int.from_bytes(header[2:], "big")
    if kind != _ASSOCIATE_RQ or length > LONGEST_ASSOCIATE_BYTES:
        _last_word(connection, _abort(_UNEXPECTED_PDU if 0x01 < kind <= _ABORT else _UNRECOGNIZED_PDU))
        is_tls = header[:2] == _TLS_HANDSHAKE
        raise _closed(
            connection, "the peer speaks TLS on the plain port" if is_tls else "what came is no A-ASSOCIATE-RQ"
        )
    body = _read(connection, length, deadline)
    if len(body) < length:
        raise _closed(connection, "closed within the A-ASSOCIATE-RQ")
    return header + body


def _read(connection: socket.socket, count: int, deadline: float | None) -> bytes:
    """Fewer bytes only at the connection's end. Raises TimeoutError at the deadline, however the bytes drip."""
    data = bytearray()
    while len(data) < count:
        if deadline is not None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            connection.settimeout(left_s)
        piece = connection.recv(min(count - len(data), 65536))
        if not piece:
            break
        data += piece
    return bytes(data)


def _check(connection: socket.socket, request: bytes) -> None:
    """pynetdicom gets only what it can read: it would wait out a time limit after all else."""
    if len(request) >= 8 and not int.from_bytes(request[6:8], "big") & _VERSION_1:
        # PS3.8 Table 9-21: permanent, by the service provider (ACSE), protocol version not supported.
        _last_word(connection, struct.pack(">BBIBBBB", _ASSOCIATE_RJ, 0, 4, 0, 0x01, 0x02, 0x02))
        raise _closed(connection, "another version of the protocol")
    try:
        pdu = A_ASSOCIATE_RQ()
        pdu.decode(request)
        pdu.to_primitive()
    except Exception as err:
        # The decoder raises whatever its parts raise.
        _last_word(connection, _abort(_INVALID_PARAMETER))
        raise _closed(connection, "the A-ASSOCIATE-RQ cannot be read") from err


def _abort(reason: int) -> bytes:
    return struct.pack(">BBIBBBB", _ABORT, 0, 4, 0, 0, _BY_PROVIDER, reason)


def _last_word(connection: socket.socket, pdu: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(pdu)


def _closed(connection: socket.socket, why: str, *, harmless: bool = False) -> NotOpened:
    """Closed so that a last word, be it a TLS alert, still arrives: what lies unread would make it a reset."""
    deadline = time.monotonic() + _LAST_WORD_S
    with contextlib.suppress(OSError):
        # Under TLS, not through it.
        socket.socket.shutdown(connection, socket.SHUT_WR)
        while (left_s := deadline - time.monotonic()) > 0:
            connection.settimeout(left_s)
            if not socket.socket.recv(connection, 65536):
                break
    connection.close()
    return NotOpened(why, harmless=harmless)
