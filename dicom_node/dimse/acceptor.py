"""The acceptor's side of an Association, on pynetdicom: admission, C-ECHO, C-STORE requests to a service, a clean end.

pynetdicom 3.0.4 keeps its threads and its state machine; what it would do wrong for a server is done here: it leaks
the socket of a peer that resets, waits for ever on a peer that stops within a PDU, and aborts on an unknown SOP Class.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import socketserver
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from pynetdicom import _handlers, evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, AssociationServer, RequestHandler

from dicom_node import metrics
from dicom_node.dimse.admission import Rejection, Welcome, over_limit
from dicom_node.dimse.commit_link import CommitmentLink, CommitmentService
from dicom_node.dimse.contexts import preferring, with_results, without_storage
from dicom_node.dimse.intake import StoreAnswer, StoreRequest
from dicom_node.dimse.opening import NotOpened, open_connection, secured
from dicom_node.dimse.part10 import uid_text
from dicom_node.dimse.statuses import OUT_OF_RESOURCES, PROCESSING_FAILURE
from dicom_node.dimse.upper_layer import (
    IDLE_LOOK_S,
    LONGEST_ASSOCIATE_BYTES,
    MAX_DATA_SET_BYTES,
    InboundSocket,
    RawStore,
    UpperLayer,
    store_response,
)
from dicom_node.errors import DicomNodeError
from dicom_node.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.logs import describe

log = logging.getLogger(__name__)

_LAST_WORD_S = 2.0
# Connections without an accepted Association. A peer that means it stays here for milliseconds: beyond so many, the
# oldest is cut, so that idle ones keep nobody out and cost a bounded number of threads.
MOST_WAITING = 100
_ROOM_S = 1.0
# The listening thread turns ten times a second; a full house holds it up for a second or so.
_HUNG_S = 30.0
_NARRATORS = (
    (evt.EVT_DIMSE_RECV, _handlers.standard_dimse_recv_handler),
    (evt.EVT_DIMSE_SENT, _handlers.standard_dimse_sent_handler),
    (evt.EVT_PDU_RECV, _handlers.standard_pdu_recv_handler),
    (evt.EVT_PDU_SENT, _handlers.standard_pdu_sent_handler),
)


@dataclass(slots=True, kw_only=True)
class Caller:
    """The peer of one Association, the series that it brought so far, and those of them that grew by it.

    association: its name among all Associations; empty until a series counts it as one that brings it. begun_uids:
    those that do.
    brought: series -> SOP Class -> how many Instances were answered Success. refused: SOP Class -> how many were not.
    peer: its name in the settings, where it has one. since: when it came, seconds since the epoch.
    """

    ae_title: str
    called: str
    address: str
    certificate_names: frozenset[str] = frozenset()
    series_uids: set[str] = field(default_factory=set)
    grown_uids: set[str] = field(default_factory=set)
    begun_uids: set[str] = field(default_factory=set)
    brought: dict[str, Counter[str]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    association: str = ""
    peer: str | None = None
    since: float = field(default_factory=time.time)


class Service(Protocol):
    """What happens on Associations. Its methods are called from their threads."""

    def admit(self, caller: Caller) -> Rejection | Welcome | None:
        """None: welcome on the terms of anybody."""

    def store(self, request: StoreRequest) -> StoreAnswer: ...

    def began(self, caller: Caller, series_uid: str) -> None: ...

    def ended(self, caller: Caller, *, released: bool) -> None: ...


class SecurePort(NamedTuple):
    """A port that speaks TLS. Port 0: the system chooses."""

    port: int
    context: ssl.SSLContext


class Acceptor:
    """Listens from `start` to `stop`. Port 0: the system chooses; None: only `tls` is open.

    max_associations_per_peer: of one peer of the settings, or of one address (None: no such limit).
    associate_timeout_s: from the connection to the whole of the A-ASSOCIATE-RQ.
    reuse_port: other processes listen there too. turned_away(caller, why): a peer was refused, or did not shake hands.
    """

    def __init__(
        self,
        service: Service,
        *,
        ae_title: str,
        contexts: list[PresentationContext],
        host: str,
        port: int | None,
        max_pdu_bytes: int,
        max_associations: int,
        idle_timeout_s: float,
        commitment: CommitmentService | None = None,
        tls: SecurePort | None = None,
        max_associations_per_peer: int | None = None,
        max_instance_bytes: int = MAX_DATA_SET_BYTES,
        associate_timeout_s: float = 10.0,
        reuse_port: bool = False,
        turned_away: Callable[[Caller, str], None] = lambda caller, why: None,
    ) -> None:
        self.service, self.contexts, self.commitment = service, contexts, commitment
        self.reuse_port, self.turned_away = reuse_port, turned_away
        self.idle_timeout_s = idle_timeout_s or None
        self.associate_timeout_s = associate_timeout_s or None
        self.max_instance_bytes = max_instance_bytes
        self.tls_port: int | None = None
        self._host, self._port, self._tls = host, port, tls
        self._max_associations, self._max_per_peer = max_associations, max_associations_per_peer
        self._associations: set[_Inbound] = set()
        # In order of arrival.
        self._waiting: dict[_Inbound, None] = {}
        self._changed = threading.Condition()
        self._listeners: list[tuple[_Server, threading.Thread]] = []
        self._ae = ApplicationEntity(ae_title)
        self._ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        self._ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        self._ae.maximum_pdu_size = max_pdu_bytes
        # pynetdicom would count connections that are no Association yet: `room_for` counts instead.
        self._ae.maximum_associations = 2 * (max_associations + MOST_WAITING)
        self._ae.network_timeout = self.idle_timeout_s
        self._ae.acse_timeout = self.associate_timeout_s

    def start(self) -> int:
        """Begin to accept Associations; the port, or the TLS port where it is the only one.

        Raises DicomNodeError when an address cannot be had.
        """
        try:
            if self._tls is not None:
                self.tls_port = self._listen(self._tls.port, self._tls.context)
            if self._port is not None:
                return self._listen(self._port, None)
        except DicomNodeError:
            self._stop_listening()
            raise
        assert self.tls_port is not None  # noqa: S101  the settings have one of them
        return self.tls_port

    def _listen(self, port: int, tls: ssl.SSLContext | None) -> int:
        try:
            server = _Server(self, self._ae, (self._host, port), tls)
        except OSError as err:
            raise DicomNodeError(
                f"cannot listen on {self._host} port {port}: {err.strerror or err}; is it in use?"
            ) from err
        # Its end is noticed at the next poll, so this is how long `stop` waits at most.
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="acceptor", daemon=True
        )
        thread.start()
        self._listeners.append((server, thread))
        return int(server.server_address[1])

    def _stop_listening(self) -> None:
        for server, thread in self._listeners:
            socketserver.BaseServer.shutdown(server)
            thread.join()
            server.server_close()
        self._listeners.clear()
        self.tls_port = None

    def healthy(self) -> bool:
        """False once a port is open behind which nothing accepts any more."""
        now = time.monotonic()
        return bool(self._listeners) and all(
            thread.is_alive() and now - server.turned_at < _HUNG_S for server, thread in self._listeners
        )

    def limit(
        self,
        *,
        max_associations: int,
        max_associations_per_peer: int | None,
        max_instance_bytes: int,
        associate_timeout_s: float,
        idle_timeout_s: float,
        contexts: list[PresentationContext],
    ) -> None:
        """Other limits for Associations that come; those that run keep theirs."""
        self.contexts = contexts
        self.idle_timeout_s, self.associate_timeout_s = idle_timeout_s or None, associate_timeout_s or None
        self.max_instance_bytes = max_instance_bytes
        self._max_associations, self._max_per_peer = max_associations, max_associations_per_peer
        self._ae.maximum_associations = 2 * (max_associations + MOST_WAITING)
        self._ae.network_timeout, self._ae.acse_timeout = self.idle_timeout_s, self.associate_timeout_s

    def stop(self, drain_s: float) -> None:
        """No new Association; running ones may end by themselves within `drain_s`, then they are aborted."""
        self._stop_listening()
        for association in self._running():
            if not association.opened:
                association.shut()
        self._wait_until_idle(drain_s)
        left = self._running()
        for association in left:
            log.warning("association aborted", extra={"action": "stop", "calling_ae": association.caller.ae_title})
            association.abort(block=False)
        self._wait_until_idle(_LAST_WORD_S)
        for association in self._running():
            # Its peer stopped within a PDU, so not even the abort could be sent.
            association.shut()
        for association in left:
            association.join()

    def began(self, association: _Inbound) -> None:
        """Called by the listening thread, which waits here for a moment when connections come faster than they end."""
        with self._changed:
            self._associations.add(association)
            self._waiting[association] = None
            if len(self._waiting) > MOST_WAITING:
                oldest = next(iter(self._waiting))
                del self._waiting[oldest]
                log.warning("too many connections: the oldest idle one is cut", extra={"action": "reject"})
                oldest.shut()
                most = self._max_associations + MOST_WAITING
                self._changed.wait_for(lambda: len(self._associations) <= most, _ROOM_S)

    def room_for(self, association: _Inbound, welcome: Welcome) -> Rejection | None:
        """Counts the Association in, unless it is one too many."""
        association.peer = welcome.peer or association.caller.address
        most = self._max_per_peer if welcome.max_associations is None else welcome.max_associations
        with self._changed:
            peers = [other.peer for other in self._associations if other.admitted]
            if len(peers) >= self._max_associations:
                return over_limit(f"all {self._max_associations} Associations are in use")
            if most is not None and peers.count(association.peer) >= most:
                return over_limit(f"all {most} Associations of this peer are in use")
            association.admitted = True
            self._waiting.pop(association, None)
        return None

    def ended(self, association: _Inbound) -> None:
        with self._changed:
            self._associations.discard(association)
            self._waiting.pop(association, None)
            self._changed.notify_all()

    def _running(self) -> list[_Inbound]:
        with self._changed:
            return list(self._associations)

    def _wait_until_idle(self, timeout_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._associations, timeout_s)


class _Server(AssociationServer):
    """A listening socket whose connections become _Inbound Associations."""

    request_queue_size = MOST_WAITING

    def __init__(
        self, acceptor: Acceptor, ae: ApplicationEntity, address: tuple[str, int], tls: ssl.SSLContext | None
    ) -> None:
        self.acceptor, self.tls = acceptor, tls
        self.turned_at = time.monotonic()
        # pynetdicom is not told of TLS: it would do the handshake in this one thread, and a slow peer would stop all.
        super().__init__(ae, address, ae.ae_title, acceptor.contexts, request_handler=_Connection)

    def service_actions(self) -> None:
        """Each turn of the listening thread."""
        super().service_actions()
        self.turned_at = time.monotonic()

    def server_bind(self) -> None:
        if self.acceptor.reuse_port and self.socket is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.error("connection failed", extra={"action": "accept", "address": client_address[0]}, exc_info=True)


class _Connection(RequestHandler):
    server: _Server

    def handle(self) -> None:
        association = _Inbound(self.server.acceptor, self.server, self.request, self.remote)
        self.server.acceptor.began(association)
        try:
            association.start()
        except RuntimeError:  # the system has no more threads
            self.server.acceptor.ended(association)
            raise


class _Paced(threading.Event):
    """pynetdicom's loop beside the upper layer passes this gate each round: so it looks less often."""

    def __init__(self, each_round: Callable[[], None]) -> None:
        super().__init__()
        self._each_round = each_round
        self.set()

    def wait(self, timeout: float | None = None) -> bool:
        time.sleep(IDLE_LOOK_S)
        self._each_round()
        return super().wait(timeout)


class _Inbound(Association):
    """One Association with a peer that called us."""

    def __init__(
        self, acceptor: Acceptor, server: _Server, connection: socket.socket, remote: AddressInformation
    ) -> None:
        super().__init__(server.ae, "acceptor")
        self._acceptor, self._connection = acceptor, connection
        self.admitted, self.opened, self._cut = False, False, False
        self.peer = ""
        self._server, self._tls = server, server.tls
        # pynetdicom counts Associations by this name.
        self.name = f"AcceptorThread@{datetime.now():%Y%m%d%H%M%S}"
        self.caller = Caller(ae_title="", called="", address=remote.address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        commitment = acceptor.commitment
        self._commitments = None if commitment is None else CommitmentLink(self, commitment, self.caller)
        self._reactor_checkpoint = _Paced(self._each_round)
        self.dul = UpperLayer(self, self._serve_store, acceptor.max_instance_bytes)
        self.acse_timeout, self.network_timeout = server.ae.acse_timeout, server.ae.network_timeout
        # Some peers count a PDU's or a PDV's header differently: the limit is about our memory alone.
        longest_pdu_bytes = max(LONGEST_ASSOCIATE_BYTES, 2 * server.ae.maximum_pdu_size)
        self._inbound = InboundSocket(self, connection, longest_pdu_bytes)
        self.set_socket(self._inbound)
        self.acceptor.maximum_length = server.ae.maximum_pdu_size
        self.acceptor.ae_title = server.ae_title
        self.acceptor.address_info = AddressInformation.from_tuple(server.server_address)
        self.acceptor.implementation_class_uid = server.ae.implementation_class_uid
        self.acceptor.implementation_version_name = server.ae.implementation_version_name
        self.acceptor.supported_contexts = acceptor.contexts
        self.requestor.address_info = remote
        for event, narrator in _NARRATORS:
            self.unbind(event, narrator)  # they describe each PDU in prose, whether it is logged or not
        self.bind(evt.EVT_REQUESTED, self._on_requested)

    def run_reactor(self) -> None:
        """The life of the connection, in its own thread."""
        try:
            if self._open():
                super().run_reactor()
        finally:
            self._connection.close()
            try:
                if self._commitments is not None:
                    self._commitments.ended()
                if self.admitted:
                    metrics.association_ended(self.caller.peer, released=self.is_released)
                    self._acceptor.service.ended(self.caller, released=self.is_released)
            finally:
                self._acceptor.ended(self)

    def _open(self) -> bool:
        """TLS where the port speaks it, and the A-ASSOCIATE-RQ, before any more threads and memory are spent."""
        try:
            if self._tls is not None:
                self._connection = self._inbound.socket = secured(self._connection, self._tls)
            if self._cut:
                return False
            opened = open_connection(self._connection, self._acceptor.associate_timeout_s)
        except NotOpened as err:
            level = logging.INFO if err.harmless else logging.WARNING
            log.log(
                level, "no association", extra={"action": "reject", "address": self.caller.address, "why": str(err)}
            )
            if not err.harmless:
                metrics.association_rejected(0, 0, 0)
                self._acceptor.turned_away(self.caller, str(err))
            return False
        self.caller.certificate_names = opened.certificate_names
        self._inbound.unread(opened.request)
        # A read within a PDU waits in pynetdicom's thread, which its own timers do not reach.
        self._connection.settimeout(self._acceptor.idle_timeout_s)
        self.opened = True
        return True

    def shut(self) -> None:
        """Cut the connection: what reads or writes on it fails at once."""
        self._cut = True
        with contextlib.suppress(OSError):
            # Not SSLSocket's own: it would let the other thread go on in plain.
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)

    def _on_requested(self, event: Any) -> None:
        request: Any = self.requestor.primitive
        self.caller.ae_title = str(request.calling_ae_title).strip()
        self.caller.called = str(request.called_ae_title).strip()
        welcome = self._acceptor.service.admit(self.caller) or Welcome()
        # Only `room_for` admits: pynetdicom goes on with the Association when a handler of this event fails.
        rejection = welcome if isinstance(welcome, Rejection) else self._acceptor.room_for(self, welcome)
        if rejection is not None:
            extra = {"action": "reject", "calling_ae": self.caller.ae_title, "called_ae": self.caller.called}
            log.warning(rejection.text, extra={**extra, "address": self.caller.address})
            metrics.association_rejected(rejection.result, rejection.source, rejection.diagnostic)
            self.acse.send_reject(rejection.result, rejection.source, rejection.diagnostic)
            self.kill()
            if rejection is welcome:
                self._acceptor.turned_away(self.caller, rejection.text)
        elif isinstance(welcome, Welcome):
            self.caller.peer = welcome.peer
            metrics.association_accepted(welcome.peer)
            known = self._acceptor.contexts
            offered = preferring(with_results(known) if welcome.sends_results else known, welcome.accept_first)
            self.acceptor.supported_contexts = offered if welcome.may_store else without_storage(offered)

    def _serve_request(self, msg: Any, context_id: int) -> None:
        if threading.current_thread() is not self:
            # pynetdicom starts a thread for each N-EVENT-REPORT: they take their turn here instead, however many come.
            self.dimse.msg_queue.put((context_id, msg))
        elif not self.admitted:
            self.abort()
        elif self._commitments is None or not self._commitments.serve(msg, context_id):
            super()._serve_request(msg, context_id)

    def _each_round(self) -> None:
        if self._commitments is not None and self.is_established:
            self._commitments.each_round()

    def _serve_store(self, request: RawStore) -> bytes | None:
        """The response PDU, called from the upper layer's thread; None aborts."""
        context = self._accepted_cx.get(request.context_id)
        if context is None or not self.admitted:
            self.abort(block=False)
            return None
        if request.data_set is None:
            most_mb = self._acceptor.max_instance_bytes // 1024**2
            log.warning(
                "instance refused: too large",
                extra={"action": "refuse", "calling_ae": self.caller.ae_title, "max_instance_mb": most_mb},
            )
            answer = StoreAnswer(status=OUT_OF_RESOURCES, comment=f"larger than this node takes ({most_mb} MB)")
        else:
            answer = self._answer(
                StoreRequest(
                    sop_class_uid=uid_text(request.sop_class_uid),
                    sop_instance_uid=uid_text(request.sop_instance_uid),
                    abstract_syntax=str(context.abstract_syntax),
                    transfer_syntax_uid=str(context.transfer_syntax[0]),
                    data_set=request.data_set,
                    source_ae=self.caller.ae_title,
                    source_ip=self.caller.address,
                )
            )
        metrics.instance_received(self.caller.peer, answer.status, len(request.data_set or b""))
        if answer.series_uid is None:
            self.caller.refused[str(context.abstract_syntax)] += 1
        else:
            self.caller.series_uids.add(answer.series_uid)
            self.caller.brought.setdefault(answer.series_uid, Counter())[str(context.abstract_syntax)] += 1
            if answer.arrival != "same":
                self.caller.grown_uids.add(answer.series_uid)
                if answer.series_uid not in self.caller.begun_uids:
                    self._acceptor.service.began(self.caller, answer.series_uid)
        return store_response(request, answer.status, answer.comment)

    def _answer(self, request: StoreRequest) -> StoreAnswer:
        try:
            return self._acceptor.service.store(request)
        except Exception as err:  # noqa: BLE001  the top of this Association's loop: the peer gets a status, not an abort
            log.error("C-STORE failed", extra={"action": "refuse", "error": describe(err)})
            return StoreAnswer(status=PROCESSING_FAILURE, comment="unexpected failure of the receiver")
