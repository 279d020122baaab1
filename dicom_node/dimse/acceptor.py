"""The acceptor's side of an Association, on pynetdicom: admission, C-ECHO, C-STORE requests to a service, a clean end.

pynetdicom 3.0.4 keeps its threads and its state machine; what it would do wrong for a server is done here: it leaks
the socket of a peer that resets, waits for ever on a peer that stops within a PDU, and aborts on an unknown SOP Class.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import socketserver
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from pynetdicom import _handlers, evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, AssociationServer, RequestHandler

from dicom_node.dimse.admission import Rejection
from dicom_node.dimse.intake import OUT_OF_RESOURCES, PROCESSING_FAILURE, StoreAnswer, StoreRequest
from dicom_node.dimse.part10 import uid_text
from dicom_node.dimse.upper_layer import (
    IDLE_LOOK_S,
    LONGEST_ASSOCIATE_BYTES,
    InboundSocket,
    RawStore,
    UpperLayer,
    store_response,
)
from dicom_node.errors import DicomNodeError
from dicom_node.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.logs import describe

log = logging.getLogger(__name__)

# PS3.8 Table 9-21: result 1 is permanent, source 1 the service user.
_REJECTED_PERMANENT, _BY_SERVICE_USER = 0x01, 0x01
_LAST_WORD_S = 2.0
_NARRATORS = (
    (evt.EVT_DIMSE_RECV, _handlers.standard_dimse_recv_handler),
    (evt.EVT_DIMSE_SENT, _handlers.standard_dimse_sent_handler),
    (evt.EVT_PDU_RECV, _handlers.standard_pdu_recv_handler),
    (evt.EVT_PDU_SENT, _handlers.standard_pdu_sent_handler),
)


@dataclass(slots=True, kw_only=True)
class Caller:
    """The peer of one Association, the series that it brought so far, and those of them that grew by it.

    association: its name among all Associations. begun_uids: the series that count it as one that brings them.
    """

    ae_title: str
    called: str
    address: str
    series_uids: set[str] = field(default_factory=set)
    grown_uids: set[str] = field(default_factory=set)
    begun_uids: set[str] = field(default_factory=set)
    association: str = field(default_factory=lambda: uuid.uuid4().hex)


class Service(Protocol):
    """What happens on Associations. Its methods are called from their threads."""

    def admit(self, caller: Caller) -> Rejection | None: ...

    def store(self, request: StoreRequest) -> StoreAnswer: ...

    def began(self, caller: Caller, series_uid: str) -> None: ...

    def ended(self, caller: Caller, *, released: bool) -> None: ...


class Acceptor:
    """Listens from `start` to `stop`. Port 0: the system chooses. reuse_port: other processes listen there too."""

    def __init__(
        self,
        service: Service,
        *,
        ae_title: str,
        contexts: list[PresentationContext],
        host: str,
        port: int,
        max_pdu_bytes: int,
        max_associations: int,
        idle_timeout_s: float,
        reuse_port: bool = False,
    ) -> None:
        self.service, self.contexts, self.reuse_port = service, contexts, reuse_port
        self.idle_timeout_s = idle_timeout_s or None
        self._address = (host, port)
        self._associations: set[_Inbound] = set()
        self._changed = threading.Condition()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._ae = ApplicationEntity(ae_title)
        self._ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        self._ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        self._ae.maximum_pdu_size = max_pdu_bytes
        self._ae.maximum_associations = max_associations
        self._ae.network_timeout = self.idle_timeout_s
        self._ae.acse_timeout = self.idle_timeout_s

    def start(self) -> int:
        """Begin to accept Associations; the port. Raises DicomNodeError when the address cannot be had."""
        host, port = self._address
        try:
            self._server = _Server(self, self._ae, self._address)
        except OSError as err:
            raise DicomNodeError(f"cannot listen on {host} port {port}: {err.strerror or err}; is it in use?") from err
        # Its end is noticed at the next poll, so this is how long `stop` waits at most.
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="acceptor", daemon=True
        )
        self._thread.start()
        return int(self._server.server_address[1])

    def stop(self, drain_s: float) -> None:
        """No new Association; running ones may end by themselves within `drain_s`, then they are aborted."""
        if self._server is None or self._thread is None:
            return
        socketserver.BaseServer.shutdown(self._server)
        self._thread.join()
        self._server.server_close()
        self._server = self._thread = None
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
        with self._changed:
            self._associations.add(association)

    def ended(self, association: _Inbound) -> None:
        with self._changed:
            self._associations.discard(association)
            self._changed.notify_all()

    def _running(self) -> list[_Inbound]:
        with self._changed:
            return list(self._associations)

    def _wait_until_idle(self, timeout_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._associations, timeout_s)


class _Server(AssociationServer):
    """A listening socket whose connections become _Inbound Associations."""

    def __init__(self, acceptor: Acceptor, ae: ApplicationEntity, address: tuple[str, int]) -> None:
        self.acceptor = acceptor
        super().__init__(ae, address, ae.ae_title, acceptor.contexts, request_handler=_Connection)

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
        association.start()


class _Paced(threading.Event):
    """pynetdicom's loop beside the upper layer passes this gate each round: so it looks less often."""

    def __init__(self) -> None:
        super().__init__()
        self.set()

    def wait(self, timeout: float | None = None) -> bool:
        time.sleep(IDLE_LOOK_S)
        return super().wait(timeout)


class _Inbound(Association):
    """One Association with a peer that called us."""

    def __init__(
        self, acceptor: Acceptor, server: _Server, connection: socket.socket, remote: AddressInformation
    ) -> None:
        super().__init__(server.ae, "acceptor")
        self._acceptor, self._connection = acceptor, connection
        self._admitted = False
        self._server = server
        # pynetdicom counts Associations by this name.
        self.name = f"AcceptorThread@{datetime.now():%Y%m%d%H%M%S}"
        self.caller = Caller(ae_title="", called="", address=remote.address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A read within a PDU waits in pynetdicom's thread, which its own timers do not reach.
        connection.settimeout(acceptor.idle_timeout_s)
        self._reactor_checkpoint = _Paced()
        self.dul = UpperLayer(self, self._serve_store)
        self.acse_timeout, self.network_timeout = server.ae.acse_timeout, server.ae.network_timeout
        # Some peers count a PDU's or a PDV's header differently: the limit is about our memory alone.
        longest_pdu_bytes = max(LONGEST_ASSOCIATE_BYTES, 2 * server.ae.maximum_pdu_size)
        self.set_socket(InboundSocket(self, connection, longest_pdu_bytes))
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
        """The life of the Association, in its own thread."""
        try:
            super().run_reactor()
        finally:
            self._connection.close()
            try:
                if self._admitted:
                    self._acceptor.service.ended(self.caller, released=self.is_released)
            finally:
                self._acceptor.ended(self)

    def shut(self) -> None:
        """Cut the connection: what reads or writes on it fails at once."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _on_requested(self, event: Any) -> None:
        request: Any = self.requestor.primitive
        self.caller.ae_title = str(request.calling_ae_title).strip()
        self.caller.called = str(request.called_ae_title).strip()
        rejection = self._acceptor.service.admit(self.caller)
        # Only now: pynetdicom goes on with the Association when a handler of this event fails.
        self._admitted = rejection is None
        if rejection is not None:
            extra = {"action": "reject", "calling_ae": self.caller.ae_title, "called_ae": self.caller.called}
            log.warning(rejection.text, extra={**extra, "address": self.caller.address})
            self.acse.send_reject(_REJECTED_PERMANENT, _BY_SERVICE_USER, rejection.diagnostic)
            self.kill()

    def _serve_request(self, msg: Any, context_id: int) -> None:
        if self._admitted:
            super()._serve_request(msg, context_id)
        else:
            self.abort()

    def _serve_store(self, request: RawStore) -> bytes | None:
        """The response PDU, called from the upper layer's thread; None aborts."""
        context = self._accepted_cx.get(request.context_id)
        if context is None or not self._admitted:
            self.abort(block=False)
            return None
        if request.data_set is None:
            answer = StoreAnswer(status=OUT_OF_RESOURCES, comment="the data set is larger than this node takes")
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
        if answer.series_uid is not None:
            self.caller.series_uids.add(answer.series_uid)
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
