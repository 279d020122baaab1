"""The Storage SCP: Associations in, durable Instances and "this series grew" out."""

from __future__ import annotations

import logging

import sqlalchemy as sa

from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.dimse.acceptor import Acceptor, Caller, SecurePort
from dicom_node.dimse.admission import Rejection, Welcome, admission
from dicom_node.dimse.announce import Announcer
from dicom_node.dimse.contexts import check_preferences, supported_contexts
from dicom_node.dimse.intake import Intake, StoreAnswer, StoreRequest
from dicom_node.dimse.tls import server_context
from dicom_node.errors import DicomNodeError
from dicom_node.locks import Lock, try_lock
from dicom_node.logs import describe
from dicom_node.storage import Storage

log = logging.getLogger(__name__)


class Receiver:
    """The receiving role of a node: `start`, then Associations are served until `stop`."""

    def __init__(self, config: Config, storage: Storage, database: Database, announcer: Announcer) -> None:
        self._config, self._storage, self._database, self._announcer = config, storage, database, announcer
        self._intake = Intake(storage, database)
        self._housekeeper: Lock | None = None
        check_preferences(config)
        receive = config.receive
        self._acceptor = Acceptor(
            self,
            ae_title=receive.ae_title,
            contexts=supported_contexts(receive.also_accept),
            host=receive.host,
            port=receive.port,
            tls=None if receive.tls is None else SecurePort(receive.tls.port, server_context(receive.tls)),
            max_pdu_bytes=receive.max_pdu_bytes,
            max_associations=receive.max_associations,
            max_associations_per_peer=receive.max_associations_per_peer,
            max_instance_bytes=receive.max_instance_mb * 1024**2,
            associate_timeout_s=receive.associate_timeout_s,
            idle_timeout_s=receive.idle_timeout_s,
        )

    def start(self) -> int:
        """Mend what a crash left behind, announce it, then listen; the port, the TLS one where no other is open."""
        self._mend()
        self._announcer.start()
        for series in self._database.series_to_assemble():
            self._announcer.ended([series["series_uid"]], series["source_ae"])
        try:
            port = self._acceptor.start()
        except DicomNodeError:
            self.stop(0.0)
            raise
        extra = {"action": "listen", "ae_title": self._config.receive.ae_title, "port": port}
        log.info("listening", extra={**extra, "tls_port": self.tls_port})
        return port

    @property
    def tls_port(self) -> int | None:
        """The port that speaks TLS, while it is open."""
        return self._acceptor.tls_port

    def stop(self, drain_s: float) -> None:
        """No new Association; running ones may end within `drain_s`. Every series that grew is announced."""
        self._acceptor.stop(drain_s)
        self._announcer.close()
        if self._housekeeper is not None:
            self._housekeeper.release()
            self._housekeeper = None

    def _mend(self) -> None:
        # Where several machines receive into one storage root, the temporary files of the others are alive.
        self._housekeeper = try_lock(self._database.url, "receive")
        if self._housekeeper is None:
            log.info("another receiver runs: no sweep", extra={"action": "sweep"})
            return
        self._database.associations_lost()
        removed = self._storage.sweep()
        if removed:
            log.info("half-written files removed", extra={"action": "sweep", "files": removed})
        self._intake.adopt()

    # -- what happens on Associations, called from their threads -----------------------------------

    def admit(self, caller: Caller) -> Rejection | Welcome:
        return admission(
            self._config,
            calling=caller.ae_title,
            called=caller.called,
            address=caller.address,
            certificate_names=caller.certificate_names,
        )

    def store(self, request: StoreRequest) -> StoreAnswer:
        answer = self._intake.store(request)
        if answer.series_uid is not None and answer.arrival != "same":
            self._announcer.grew(answer.series_uid, request.source_ae)
        return answer

    def began(self, caller: Caller, series_uid: str) -> None:
        """The first new Instance of a series is safe. Called before its response: the peer goes on only then."""
        try:
            self._database.association_began(series_uid, caller.association)
            caller.begun_uids.add(series_uid)
        except (sa.exc.SQLAlchemyError, DicomNodeError) as err:
            # Tried again with the next Instance.
            log.error("association not counted", extra={"action": "count", "error": describe(err)})

    def ended(self, caller: Caller, *, released: bool) -> None:
        series = sorted(caller.series_uids)
        if not series:
            return
        extra = {"action": "release" if released else "abort", "calling_ae": caller.ae_title, "series": len(series)}
        log.info("association ended", extra=extra)
        try:
            if caller.begun_uids:
                self._database.association_ended(sorted(caller.begun_uids), caller.association, released=released)
        except (sa.exc.SQLAlchemyError, DicomNodeError) as err:
            # Only evidence of completeness is lost: the full quiet time decides instead.
            log.error("end not recorded", extra={"action": "release", "error": describe(err)})
        self._announcer.ended(sorted(caller.grown_uids), caller.ae_title)
