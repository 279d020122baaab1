"""The requestor's side of an Association, on pynetdicom: open, one request at a time, a clean end.

pynetdicom 3.0.4 runs a thread beside each requested Association that takes messages from the queue on which a sender
waits for its reply, and then drops them: an answer that did arrive is lost. Here that thread is never started.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from io import BytesIO
from typing import Any

from pydicom.uid import UID
from pynetdicom import _handlers, evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_CANCEL, C_ECHO, C_STORE
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import T_CONNECT, AddressInformation, AssociationSocket

from dicom_node.errors import DeliveryError
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

    def ask(self, request: Any, context_id: int) -> Generator[Any, None, None]:
        """The replies to a request that may have several, the pending ones first. Raises NoAnswer.

        Each may take the response time-out. Who stops before the last one leaves the Association broken.
        """
        request.MessageID = self._next_id()
        self._send(request, context_id)
        ended = False
        try:
            while not ended:
                reply = self._checked(self._reply(), request)
                ended = reply.Status not in PENDING
                yield reply
        finally:
            self.broken = self.broken or not ended

    def cancel(self, request: Any, context_id: int) -> None:
        """C-CANCEL: the peer may stop answering `request`; its last reply still comes."""
        message = C_CANCEL()
        message.MessageIDBeingRespondedTo = request.MessageID
        self._send(message, context_id)

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
        """The next message, None when the Association ends or the peer neither answers nor takes data any more."""
        outgoing = self._association.dul.to_provider_queue
        left, deadline = outgoing.qsize(), self._clock() + self._timeout_s
        while self._clock() < deadline:
            with contextlib.suppress(queue.Empty):
                return self._association.dimse.msg_queue.get(timeout=_LOOK_S)[1]
            if outgoing.qsize() < left:
                # A large object over a slow line: the time to answer counts from its last PDU.
                left, deadline = outgoing.qsize(), self._clock() + self._timeout_s
            if not self._association.dul.is_alive():
                return None
        return None


@contextlib.contextmanager
def associate(
    peer: PeerConfig,
    calling_ae: str,
    contexts: Sequence[tuple[str, Sequence[str]]],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Requested]:
    """An Association with `peer`, released at the end of the block, aborted when the block fails.

    contexts: (SOP Class UID, Transfer Syntax UIDs in order of preference), at most 128.
    Raises CannotAssociate; NothingAccepted when the peer takes none of the contexts.
    """
    association = _Outbound(peer, calling_ae, contexts)
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

    def __init__(self, peer: PeerConfig, calling_ae: str, contexts: Sequence[tuple[str, Sequence[str]]]) -> None:
        if peer.port is None:
            raise CannotAssociate(f"{peer.ae_title} has no port: set its port in config.yaml")
        try:
            remote = AddressInformation(peer.host, peer.port)
        except OSError as err:
            raise CannotAssociate(f"{peer.host} has no address: check the peer's host") from err
        ae = ApplicationEntity(calling_ae)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = peer.response_timeout_s
        ae.connection_timeout = peer.connect_timeout_s
        super().__init__(ae, "requestor")
        self._is_paused = True  # `release` waits until the reactor, which never runs here, stands still
        local = AddressInformation("0.0.0.0" if remote.is_ipv4 else "::", 0)  # noqa: S104  any local address
        self.socket = _Socket(self, address=local)
        self.set_socket(self.socket)
        self.acceptor.ae_title, self.acceptor.address_info = peer.ae_title, remote
        self.requestor.ae_title, self.requestor.address_info = calling_ae, local
        self.requestor.maximum_length = peer.max_pdu_bytes
        self.requestor.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        self.requestor.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        self.requestor.requested_contexts = [_context(n, *context) for n, context in enumerate(contexts)]
        for event, narrator in _NARRATORS:
            self.unbind(event, narrator)  # they describe each PDU in prose, whether it is logged or not

    def end(self) -> None:
        """Abort what was not released. Nothing is left: neither the thread of the upper layer nor the socket."""
        if self.is_established and self.dul.to_provider_queue.empty():
            self.abort()
        # With PDUs still queued the peer takes none: it would not get the abort either.
        self.socket.shut()
        self.kill()
        self.dul.join()


class _Socket(AssociationSocket):
    """A connection that keeps why it could not be made, and sends small messages at once."""

    error: OSError | None = None

    def __init__(self, association: _Outbound, *, address: AddressInformation) -> None:
        super().__init__(association, address=address)
        self._connection = self.socket

    def connect(self, primitive: T_CONNECT) -> None:
        association, connection = self.assoc, self._connection
        assert connection is not None  # noqa: S101  made by the constructor
        try:
            connection.settimeout(association.connection_timeout)
            connection.connect(primitive.address_info.as_tuple)
            # Nagle's algorithm would hold back the end of each message for 40 ms.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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

    def shut(self) -> None:
        # pynetdicom does not close a socket whose shutdown fails because the peer was quicker.
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            self._connection.close()


def _context(number: int, sop_class_uid: str, transfer_syntaxes: Sequence[str]) -> PresentationContext:
    context = PresentationContext()
    context.context_id = 2 * number + 1
    context.abstract_syntax = sop_class_uid
    context.transfer_syntax = list(transfer_syntaxes)
    return context


def _reason(association: _Outbound, peer: PeerConfig, calling_ae: str) -> CannotAssociate:
    """Why there is no Association, in words that say what to check."""
    place = f"{peer.host} port {peer.port}"
    error = association.socket.error
    if isinstance(error, TimeoutError):
        return CannotAssociate(f"{place} does not answer: check host, port and firewall")
    if error is not None:
        why = error.strerror or type(error).__name__
        return CannotAssociate(f"cannot connect to {place} ({why}): is the peer running, and is its port right?")
    answer: Any = association.acceptor.primitive
    if answer is None:
        return CannotAssociate(f"{place} took the connection but not the Association: does a DICOM node listen there?")
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
