"""The requestor's side of an Association, on pynetdicom: open, one request at a time, a clean end.

pynetdicom 3.0.4 runs a thread beside each requested Association that takes messages from the queue on which a sender
waits for its reply, and then drops them: an answer that did arrive is lost. Here that thread is never started.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import ssl
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from io import BytesIO
from typing import Any

from pydicom.uid import UID
from pynetdicom import _handlers, evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_CANCEL, C_ECHO, C_STORE, N_ACTION
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import T_CONNECT, AddressInformation

from dicom_node.dimse.events import Event, event_answer, event_report
from dicom_node.dimse.tls import client_context
from dicom_node.dimse.transport import Connection
from dicom_node.errors import ConfigError, DeliveryError
from dicom_node.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.peers import PeerConfig

log = logging.getLogger(__name__)

MAX_CONTEXTS = 128  # PS3.8 9.3.2.2: odd numbers from 1 to 255
# PS3.7 9.1.2.1.6: more answers follow; 0xFF01 says that some optional keys were not matched.
PENDING = (0xFF00, 0xFF01)
# How often a wait for a reply looks whether the peer still takes our data.
_LOOK_S = 0.25

_NARRATORS = (
    (evt.EVT_DIMSE_RECV, _handlers.standard_dimse_recv_handler),
    (evt.EVT_DIMSE_SENT, _handlers.standard_dimse_sent_handler),
    (evt.EVT_PDU_RECV, _handlers.standard_pdu_recv_handler),
    (evt.EVT_PDU_SENT, _handlers.standard_pdu_sent_handler),
)


class CannotAssociate(DeliveryError):
    """No Association: the text says what to check."""

    retry_helps = True


class Rejected(CannotAssociate):
    """A DICOM application is there and refuses us."""


class NothingAccepted(CannotAssociate):
    """The peer accepted the Association but none of what we proposed."""

    retry_helps = False


class NoAnswer(DeliveryError):
    """The request went out and no reply came: whether the peer acted on it is unknown."""

    retry_helps = True


class Requested:
    """An established Association. `contexts`: (SOP Class UID, Transfer Syntax UID) -> context id.

    `broken` once a reply did not come: nothing more can be asked on it.
    """

    def __init__(self, association: _Outbound, response_timeout_s: float, clock: Callable[[], float]) -> None:
        self._association, self._timeout_s, self._clock = association, response_timeout_s, clock
        self._message_id = 0
        self.broken = False
        self.contexts = {
            (str(cx.abstract_syntax), str(cx.transfer_syntax[0])): int(cx.context_id or 0)
            for cx in association.accepted_contexts
        }
        # Those on which the peer may store to us: context id -> (SOP Class UID, Transfer Syntax UID).
        self.inbound = {
            int(cx.context_id or 0): (str(cx.abstract_syntax), str(cx.transfer_syntax[0]))
            for cx in association.accepted_contexts
            if cx.as_scp
        }

    def echo(self) -> int:
        """C-ECHO; the status of the reply. Raises NoAnswer."""
        request = C_ECHO()
        request.MessageID = self._next_id()
        request.AffectedSOPClassUID = "1.2.840.10008.1.1"
        (context_id,) = self.contexts.values()
        return int(self._exchange(request, context_id).Status)

    def store(self, context_id: int, sop_class_uid: str, sop_instance_uid: str, data_set: bytes) -> tuple[int, str]:
        """C-STORE of an encoded data set; status and error comment of the reply. Raises NoAnswer."""
        request = C_STORE()
        request.MessageID = self._next_id()
        request.AffectedSOPClassUID = sop_class_uid
        request.AffectedSOPInstanceUID = sop_instance_uid
        request.Priority = 0x00  # PS3.7 E.1: medium
        request.DataSet = BytesIO(data_set)
        reply = self._exchange(request, context_id)
        return int(reply.Status), str(reply.ErrorComment or "")

    def ask(
        self,
        request: Any,
        context_id: int,
        *,
        serve: Callable[[C_STORE, int], C_STORE] | None = None,
        goes_on: Callable[[], bool] = lambda: False,
    ) -> Generator[Any, None, None]:
        """The replies to a request that may have several, the pending ones first. Raises NoAnswer.

        Each may take the response time-out; then `goes_on` is asked whether the peer works on it all the same. Who
        stops before the last one leaves the Association broken. serve: answers the C-STORE requests that the peer
        sends meanwhile (C-GET, PS3.4 C.4.3).
        """
        request.MessageID = self._next_id()
        self._send(request, context_id)
        ended = False
        try:
            while not ended:
                came_on, message = self._message()
                if message is None and self._association.dul.is_alive() and goes_on():
                    continue
                if serve is not None and isinstance(message, C_STORE) and message.is_valid_request:
                    self._association.dimse.send_msg(serve(message, came_on), came_on)
                    continue
                reply = self._checked(message, request)
                ended = reply.Status not in PENDING
                yield reply
        finally:
            self.broken = self.broken or not ended

    def cancel(self, request: Any, context_id: int) -> None:
        """C-CANCEL: the peer may stop answering `request`; its last reply still comes."""
        message = C_CANCEL()
        message.MessageIDBeingRespondedTo = request.MessageID
        self._send(message, context_id)

    def action(
        self, context_id: int, sop_class_uid: str, sop_instance_uid: str, action_type: int, data_set: bytes
    ) -> int:
        """N-ACTION; status of the reply. Raises NoAnswer."""
        request = N_ACTION()
        request.MessageID = self._next_id()
        request.RequestedSOPClassUID = sop_class_uid
        request.RequestedSOPInstanceUID = sop_instance_uid
        request.ActionTypeID = action_type
        request.ActionInformation = BytesIO(data_set)
        reply = self._exchange(request, context_id)
        return int(reply.Status)

    def report(
        self, context_id: int, sop_class_uid: str, sop_instance_uid: str, event_type: int, data_set: bytes
    ) -> int:
        """N-EVENT-REPORT; status of the reply. Raises NoAnswer."""
        request = event_report(self._next_id(), sop_class_uid, sop_instance_uid, event_type, data_set)
        reply = self._exchange(request, context_id)
        return int(reply.Status)

    def event(self, timeout_s: float) -> Event | None:
        """An N-EVENT-REPORT of the peer; None when none comes in time, or the Association ends."""
        deadline = self._clock() + timeout_s
        while not self.broken and (left := deadline - self._clock()) > 0:
            with contextlib.suppress(queue.Empty):
                context_id, message = self._association.events.get(timeout=min(_LOOK_S, left))
                return Event(
                    context_id=context_id,
                    message_id=int(message.MessageID),
                    sop_class_uid=str(message.AffectedSOPClassUID),
                    sop_instance_uid=str(message.AffectedSOPInstanceUID),
                    type_id=int(message.EventTypeID),
                    data_set=message.EventInformation.getvalue() if message.EventInformation else b"",
                )
            if not self._association.dul.is_alive():
                self.broken = True
        return None

    def answer_event(self, event: Event, status: int) -> None:
        """N-EVENT-REPORT-RSP."""
        reply = event_answer(event.message_id, event.sop_class_uid, event.sop_instance_uid, event.type_id, status)
        self._association.dimse.send_msg(reply, event.context_id)

    def _next_id(self) -> int:
        self._message_id = self._message_id % 65535 + 1
        return self._message_id

    def _exchange(self, request: Any, context_id: int) -> Any:
        self._send(request, context_id)
        return self._checked(self._reply(), request)

    def _send(self, request: Any, context_id: int) -> None:
        if self.broken:
            raise NoAnswer("the Association is over")
        self._association.dimse.send_msg(request, context_id)

    def _checked(self, reply: Any, request: Any) -> Any:
        """`reply` if it is one to `request`."""
        if (
            reply is None
            or type(reply) is not type(request)
            or not reply.is_valid_response
            or reply.MessageIDBeingRespondedTo != request.MessageID
        ):
            self.broken = True
            raise NoAnswer("the peer did not answer" if reply is None else "the peer's answer is none to this request")
        return reply

    def _reply(self) -> Any:
        return self._message()[1]

    def _message(self) -> tuple[int, Any]:
        """The next message and its context id.

        (0, None) when the Association ends or the peer neither answers nor takes data any more.
        """
        outgoing = self._association.dul.to_provider_queue
        left, deadline = outgoing.qsize(), self._clock() + self._timeout_s
        while self._clock() < deadline:
            with contextlib.suppress(queue.Empty):
                context_id, message = self._association.dimse.msg_queue.get(timeout=_LOOK_S)
                return context_id or 0, message
            if outgoing.qsize() < left:
                # A large object over a slow line: the time to answer counts from its last PDU.
                left, deadline = outgoing.qsize(), self._clock() + self._timeout_s
            if not self._association.dul.is_alive():
                return 0, None
        return 0, None


@contextlib.contextmanager
def associate(
    peer: PeerConfig,
    calling_ae: str,
    contexts: Sequence[tuple[str, Sequence[str]]],
    *,
    as_scp: Sequence[str] = (),
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Requested]:
    """An Association with `peer`, released at the end of the block, aborted when the block fails.

    contexts: (SOP Class UID, Transfer Syntax UIDs in order of preference), at most 128.
    as_scp: those of the classes for which we, who request the Association, are the SCP.
    Raises CannotAssociate; NothingAccepted when the peer takes none of the contexts.
    """
    association = _Outbound(peer, calling_ae, contexts, as_scp)
    try:
        association.request()
        if not association.is_established:
            raise _reason(association, peer, calling_ae)
        requested = Requested(association, peer.response_timeout_s, clock)
        yield requested
        if not requested.broken:
            association.release()
    finally:
        association.end()


class _Outbound(Association):
    """A requested Association without a reactor of its own."""

    def __init__(
        self,
        peer: PeerConfig,
        calling_ae: str,
        contexts: Sequence[tuple[str, Sequence[str]]],
        as_scp: Sequence[str] = (),
    ) -> None:
        if peer.port is None:
            raise CannotAssociate(f"{peer.ae_title} has no port: set its port in config.yaml")
        try:
            remote = AddressInformation(peer.host, peer.port)
        except OSError as err:
            raise CannotAssociate(f"{peer.host} has no address: check the peer's host") from err
        ae = ApplicationEntity(calling_ae)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = peer.response_timeout_s
        ae.connection_timeout = peer.connect_timeout_s
        tls = _tls_of(peer)
        super().__init__(ae, "requestor")
        self._is_paused = True  # `release` waits until the reactor, which never runs here, stands still
        local = AddressInformation("0.0.0.0" if remote.is_ipv4 else "::", 0)  # noqa: S104  any local address
        self.socket = _Socket(self, address=local, tls=tls, host=peer.host)
        self.set_socket(self.socket)
        self.acceptor.ae_title, self.acceptor.address_info = peer.ae_title, remote
        self.requestor.ae_title, self.requestor.address_info = calling_ae, local
        self.requestor.maximum_length = peer.max_pdu_bytes
        self.requestor.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        self.requestor.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        self.requestor.requested_contexts = [_context(n, *context) for n, context in enumerate(contexts)]
        for uid in as_scp:
            self.requestor.add_negotiation_item(_as_scp(uid))
        self.events: queue.Queue[tuple[int, Any]] = queue.Queue()
        for event, narrator in _NARRATORS:
            self.unbind(event, narrator)  # they describe each PDU in prose, whether it is logged or not

    def _serve_request(self, msg: Any, context_id: int) -> None:
        """pynetdicom hands on each N-EVENT-REPORT at once, in a thread of its own; every other message is a reply."""
        self.events.put((context_id, msg))

    def end(self) -> None:
        """Abort what was not released. Nothing is left: neither the thread of the upper layer nor the socket."""
        if self.is_established and self.dul.to_provider_queue.empty():
            self.abort()
        # With PDUs still queued the peer takes none: it would not get the abort either.
        self.socket.shut()
        self.kill()
        self.dul.join()


def _tls_of(peer: PeerConfig) -> ssl.SSLContext | None:
    """Read anew for each Association, so that a renewed certificate is used without a restart."""
    if peer.tls is None:
        return None
    try:
        return client_context(peer.tls, f"tls of {peer.ae_title}")
    except ConfigError as err:
        # Not for ever: what waits for this peer goes on once the files are mended.
        raise CannotAssociate(str(err)) from err


class _Socket(Connection):
    """A connection that keeps why it could not be made, and sends small messages at once.

    `secured`: True once the TLS handshake, where there is one, is done.
    """

    def __init__(
        self, association: _Outbound, *, address: AddressInformation, tls: ssl.SSLContext | None, host: str
    ) -> None:
        super().__init__(association, address=address)
        self._connection = self.socket
        self._tls, self._host = tls, host
        self.connected, self.secured = False, False

    def connect(self, primitive: T_CONNECT) -> None:
        association, connection = self.assoc, self._connection
        assert connection is not None  # noqa: S101  made by the constructor
        try:
            connection.settimeout(association.connection_timeout)
            connection.connect(primitive.address_info.as_tuple)
            self.connected = True
            # Nagle's algorithm would hold back the end of each message for 40 ms.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = self._secure(connection)
            # pynetdicom reads and writes a PDU in one go: a peer that stops within one must not hold us for ever.
            connection.settimeout(association.network_timeout)
            association.requestor.address_info = AddressInformation.from_tuple(connection.getsockname())
        except OSError as err:
            self.error = err
            self.socket = None
            primitive.result = "Evt17"  # transport connection closed
        else:
            self._is_connected = True
            primitive.result = "Evt2"  # transport connection confirmed
        self.provider_queue.put(primitive)
        self._ready.set()

    def _secure(self, connection: socket.socket) -> socket.socket:
        if self._tls is None:
            return connection
        secured = self._tls.wrap_socket(connection, server_hostname=self._host, do_handshake_on_connect=False)
        # From here on the plain socket is an empty shell.
        self._connection = self.socket = secured
        secured.do_handshake()
        self.secured = True
        return secured

    def shut(self) -> None:
        # pynetdicom does not close a socket whose shutdown fails because the peer was quicker.
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            self._connection.close()


def _as_scp(sop_class_uid: str) -> SCP_SCU_RoleSelectionNegotiation:
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid = UID(sop_class_uid)
    role.scu_role, role.scp_role = False, True
    return role


def _context(number: int, sop_class_uid: str, transfer_syntaxes: Sequence[str]) -> PresentationContext:
    context = PresentationContext()
    context.context_id = 2 * number + 1
    context.abstract_syntax = sop_class_uid
    context.transfer_syntax = list(transfer_syntaxes)
    return context


def _reason(association: _Outbound, peer: PeerConfig, calling_ae: str) -> CannotAssociate:
    """Why there is no Association, in words that say what to check."""
    place, line = f"{peer.host} port {peer.port}", association.socket
    answer: Any = association.acceptor.primitive
    if answer is None:
        return CannotAssociate(_line_reason(line, peer, place))
    if answer.result == 0x00:
        return NothingAccepted(f"{peer.ae_title} accepts none of these SOP Classes and Transfer Syntaxes")
    # PS3.8 Table 9-21.
    known = {
        (0x01, 0x03): f"it does not know us as {calling_ae}: enter that AE title and our address there",
        (0x01, 0x07): f"it is not called {peer.ae_title}: check the peer's ae_title",
        (0x03, 0x01): "it is congested just now",
        (0x03, 0x02): "it has no Association left just now",
    }
    why = known.get((answer.result_source, answer.diagnostic), f"it gives no reason ({answer.reason_str})")
    return Rejected(f"{peer.ae_title} at {place} rejected the Association: {why}")


def _line_reason(line: _Socket, peer: PeerConfig, place: str) -> str:
    """Why nothing that is DICOM came back."""
    error = line.error
    if not line.connected:
        if isinstance(error, TimeoutError):
            return f"{place} does not answer: check host, port and firewall"
        why = "no answer" if error is None else error.strerror or type(error).__name__
        return f"cannot connect to {place} ({why}): is the peer running, and is its port right?"
    if line.speaks_tls:
        return f"{place} speaks TLS: give the peer a tls section in config.yaml"
    if isinstance(error, ssl.SSLError):
        return f"no TLS with {place}: {_tls_reason(error, peer)}"
    if peer.tls is not None and not line.secured:
        return f"{place} took the connection but no TLS: does it speak TLS on that port?"
    hint = ", and without TLS?" if peer.tls is None else ", and does it accept our certificate?"
    return f"{place} took the connection but not the Association: does a DICOM node listen there{hint}"


# X509_V_ERR_... of OpenSSL.
_NOT_YET_VALID, _EXPIRED, _HOST_MISMATCH, _ADDRESS_MISMATCH = 9, 10, 62, 64


def _tls_reason(error: ssl.SSLError, peer: PeerConfig) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return {
            _NOT_YET_VALID: "its certificate is not valid yet: are both clocks right?",
            _EXPIRED: "its certificate is expired: it must be renewed there",
            _HOST_MISMATCH: f"its certificate does not name {peer.host}: check host, or set check_host: false",
            _ADDRESS_MISMATCH: f"its certificate does not name {peer.host}: check host, or set check_host: false",
        }.get(
            error.verify_code, f"its certificate is not trusted ({error.verify_message}): check ca of its tls section"
        )
    shown = "a certificate" if peer.tls is not None and peer.tls.certificate is None else "another certificate"
    wants = f"it wants {shown} from us: check certificate and key of its tls section"
    return {
        "WRONG_VERSION_NUMBER": "it speaks plain DICOM on that port: check port, or take its tls section out",
        "UNSUPPORTED_PROTOCOL": "it speaks only an older version of TLS",
        "TLSV1_ALERT_PROTOCOL_VERSION": "it speaks no version of TLS that we do",
        "SSLV3_ALERT_HANDSHAKE_FAILURE": f"it breaks off the handshake; maybe {wants}",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED": wants,
        "TLSV1_ALERT_UNKNOWN_CA": f"it does not trust our certificate's CA; {wants}",
        "SSLV3_ALERT_BAD_CERTIFICATE": f"it refuses our certificate; {wants}",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it says that our certificate is expired",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN": f"it refuses our certificate; {wants}",
    }.get(error.reason or "", f"the handshake failed ({error.reason or type(error).__name__})")
