"""The Storage SCP: Associations in, durable Instances and "this series grew" out."""

from __future__ import annotations

import logging
import time
import uuid

import sqlalchemy as sa

from dicom_node import tracing
from dicom_node.audit import Audit, NoAudit, Study, instances_transferred
from dicom_node.audit.message import Instances
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.dimse.acceptor import Acceptor, Caller, SecurePort
from dicom_node.dimse.admission import Rejection, Welcome, admission
from dicom_node.dimse.announce import Announcer
from dicom_node.dimse.commit_intake import CommitmentIntake
from dicom_node.dimse.contexts import check_preferences, commitment_context, supported_contexts
from dicom_node.dimse.intake import Intake, StoreAnswer, StoreRequest
from dicom_node.dimse.tls import server_context
from dicom_node.errors import DicomNodeError
from dicom_node.locks import Lock, try_lock
from dicom_node.logs import describe
from dicom_node.storage import Storage
from dicom_node.subjects import study_of

log = logging.getLogger(__name__)

_COUNT_AGAIN_S = 10.0


def mend(
    storage: Storage, database: Database, intake: Intake, *, ae_title: str = "", audit: Audit | None = None
) -> Lock | None:
    """Start `intake` and mend what dead receivers left behind; the lock that keeps others from doing so meanwhile.

    `audit` is told of the series that were coming when they died: they could not tell it.

    None where another receiver holds it: several that start need not all look through the storage root. What keeps the
    files of the living from being taken away is their marks, not this lock, which may be free while some live.
    """
    brought = database.association_marks()
    cut = database.associations_lost(brought - storage.living_marks())
    housekeeper = try_lock(database.url, "receive")
    if housekeeper is None:
        log.info("another receiver runs: no sweep", extra={"action": "sweep"})
        intake.start()
    else:
        removed = storage.sweep()
        if removed:
            log.info("half-written files removed", extra={"action": "sweep", "files": removed})
        # Records say who sent an Instance, a file without a row does not.
        intake.start()
        intake.adopt()
    for series_uid in cut:
        _tell_cut(storage, database, series_uid, ae_title, audit or NoAudit())
    return housekeeper


def _tell_cut(storage: Storage, database: Database, series_uid: str, ae_title: str, audit: Audit) -> None:
    study, row = study_of(database, storage, series_uid), database.series(series_uid)
    if study is not None and row is not None:
        audit.write(
            instances_transferred(
                source=row["source_ae"],
                destination=ae_title,
                address=row["source_ip"] or None,
                received=True,
                study=study,
                outcome=8,
                text="the receiver died while they came; counted are all of the series that are here",
            )
        )


class Receiver:
    """The receiving role of a node: `start`, then Associations are served until `stop`."""

    def __init__(
        self, config: Config, storage: Storage, database: Database, announcer: Announcer, audit: Audit | None = None
    ) -> None:
        self._audit = audit or NoAudit()
        self._config, self._storage, self._database, self._announcer = config, storage, database, announcer
        self._intake = Intake(storage, database, announcer.grew, journal_mb=config.receive.journal_mb)
        self._housekeeper: Lock | None = None
        self._count_again_at = 0.0
        check_preferences(config)
        receive = config.receive
        self._commitment = CommitmentIntake(config, storage, database, self._intake.settle_instances)
        self._acceptor = Acceptor(
            self,
            ae_title=receive.ae_title,
            contexts=[*supported_contexts(receive.also_accept), commitment_context()],
            commitment=self._commitment,
            host=receive.host,
            port=receive.port,
            tls=None if receive.tls is None else SecurePort(receive.tls.port, server_context(receive.tls)),
            max_pdu_bytes=receive.max_pdu_bytes,
            max_associations=receive.max_associations,
            max_associations_per_peer=receive.max_associations_per_peer,
            max_instance_bytes=receive.max_instance_mb * 1024**2,
            associate_timeout_s=receive.associate_timeout_s,
            idle_timeout_s=receive.idle_timeout_s,
            reuse_port=receive.processes > 1,
            turned_away=self._turned_away,
        )

    def start(self) -> int:
        """Mend what a crash left behind, announce it, then listen; the port, the TLS one where no other is open."""
        ae_title = self._config.receive.ae_title
        self._housekeeper = mend(self._storage, self._database, self._intake, ae_title=ae_title, audit=self._audit)
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

    def healthy(self) -> bool:
        return self._acceptor.healthy()

    def take_over(self, config: Config) -> None:
        """Other settings for Associations that come. Raises ConfigError before anything changed."""
        check_preferences(config)
        receive = config.receive
        self._acceptor.limit(
            max_associations=receive.max_associations,
            max_associations_per_peer=receive.max_associations_per_peer,
            max_instance_bytes=receive.max_instance_mb * 1024**2,
            associate_timeout_s=receive.associate_timeout_s,
            idle_timeout_s=receive.idle_timeout_s,
            contexts=[*supported_contexts(receive.also_accept), commitment_context()],
        )
        self._storage.keep_free(config.storage.min_free_gb)
        self._announcer.proven_after(config.assemble.proven_quiet_time_s)
        self._commitment.take_over(config)
        self._config = config

    def settle(self) -> bool:
        """Wait until all that was acknowledged has file and row; False when it takes too long."""
        return self._intake.settle_all()

    def tend(self) -> None:
        """To be called every second or so while it runs."""
        self._intake.tend()

    def stop(self, drain_s: float) -> None:
        """No new Association; running ones may end within `drain_s`. Every series that grew is announced."""
        self._acceptor.stop(drain_s)
        self._intake.stop()
        self._announcer.close()
        if self._housekeeper is not None:
            self._housekeeper.release()
            self._housekeeper = None

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
        return self._intake.store(request)

    def began(self, caller: Caller, series_uid: str) -> None:
        """The first new Instance of a series is safe. Called before its response: the peer goes on only then."""
        if time.monotonic() < self._count_again_at:
            return
        try:
            caller.association = caller.association or self._storage.mark.on(uuid.uuid4().hex)
            self._database.association_began(series_uid, caller.association)
            caller.begun_uids.add(series_uid)
        except (sa.exc.SQLAlchemyError, DicomNodeError) as err:
            # Tried again with a later Instance; each would wait for the database as long as this one.
            self._count_again_at = time.monotonic() + _COUNT_AGAIN_S
            log.error("association not counted", extra={"action": "count", "error": describe(err)})

    def ended(self, caller: Caller, *, released: bool) -> None:
        series = sorted(caller.series_uids)
        if not series:
            self._tell_refused(caller)
            return
        extra = {
            "action": "release" if released else "abort",
            "calling_ae": caller.ae_title,
            "series_count": len(series),
        }
        log.info("association ended", extra=extra)
        for series_uid in series:
            about = {"peer": caller.peer or "unknown", "outcome": "released" if released else "aborted"}
            tracing.spent("receive", series_uid, begun_at=caller.since, ended_at=time.time(), about=about)
        settled = self._intake.settle_series(series)
        try:
            if caller.begun_uids:
                in_order = released and settled
                self._database.association_ended(sorted(caller.begun_uids), caller.association, released=in_order)
        except (sa.exc.SQLAlchemyError, DicomNodeError) as err:
            # Only evidence of completeness is lost: the full quiet time decides instead.
            log.error("end not recorded", extra={"action": "release", "error": describe(err)})
        if not settled:
            # Without their rows nothing may be decided on these series; they are announced when the rows are there.
            log.error("rows are late", extra={"action": "release", "calling_ae": caller.ae_title})
        else:
            self._announcer.ended(sorted(caller.grown_uids), caller.ae_title)
        self._tell(caller, released=released)

    def _tell(self, caller: Caller, *, released: bool) -> None:
        """The audit trail, once a series; after all that others wait for."""
        why = [] if released else ["the Association broke off"]
        refused = caller.refused.total()
        why += [f"{refused} instances of the Association were refused"] if refused else []
        for series_uid, classes in sorted(caller.brought.items()):
            extra = {"action": "received", "series": series_uid, "instances": classes.total()}
            log.info("series received", extra={**extra, "calling_ae": caller.ae_title})
            study = study_of(self._database, self._storage, series_uid, classes)
            if study is None:
                study = Study(uid="unknown", series_uids=(series_uid,))
            self._audit.write(
                instances_transferred(
                    source=caller.ae_title,
                    destination=caller.called,
                    address=caller.address,
                    received=True,
                    study=study,
                    outcome=4 if why else 0,
                    text="; ".join(why) or None,
                )
            )

    def _tell_refused(self, caller: Caller) -> None:
        """An Association of which nothing is kept: it tried to bring something, and that is for the audit trail, too.

        A transfer that failed (PS3.15 A.5.3.7) and no Security Alert: the peer may send. Whose Instances they were is
        not said, for data that is refused is not believed either.
        """
        if not caller.refused:
            return
        classes = sorted(caller.refused.items())
        counts = tuple(Instances(sop_class_uid=uid, count=count) for uid, count in classes)
        self._audit.write(
            instances_transferred(
                source=caller.ae_title,
                destination=caller.called,
                address=caller.address,
                received=True,
                study=Study(uid="unknown", instances=counts),
                outcome=8,
                text=f"all {caller.refused.total()} instances of the Association were refused",
            )
        )

    def _turned_away(self, caller: Caller, why: str) -> None:
        self._audit.alert(address=caller.address, peer=caller.ae_title, why=why)
