"""Storage Commitment as peers speak it to us -> rows -> statuses. Nothing is answered Success before it is committed.

Both ways: a peer asks whether we keep what it sent, and a destination tells what became of what we asked it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from dicom_node import metrics, tracing
from dicom_node.commitments import Settled
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.dimse.acceptor import Caller
from dicom_node.dimse.admission import callers
from dicom_node.dimse.commit_link import Key
from dicom_node.dimse.commitment import (
    CLASS_INSTANCE_CONFLICT,
    INVALID_ARGUMENT,
    NO_SUCH_INSTANCE,
    NOT_AUTHORIZED,
    RESOURCE_LIMITATION,
    SUCCESS,
    InvalidMessage,
    Message,
    Reference,
    Report,
    read_report,
    read_request,
)
from dicom_node.errors import StaleState, StorageError
from dicom_node.storage import Storage

log = logging.getLogger(__name__)

# A report that did not go out on the Association that asked is due on another; by then that one must be over, or
# the process that held it.
ELSEWHERE_S = 30.0
# Another receiver may have acknowledged an Instance whose row is on its way: asked again after so long.
_LATE_ROWS_S = (0.5, 1.0, 2.0)


class CommitmentIntake:
    """A CommitmentService on the node's rows and files. Safe to call from many threads.

    settle: waits until those of these Instances that this process acknowledged have file and row; False when it takes
    too long.
    """

    def __init__(
        self,
        config: Config,
        storage: Storage,
        database: Database,
        settle: Callable[[Collection[str]], bool],
        *,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._config, self._storage, self._database = config, storage, database
        self._settle, self._pause = settle, pause

    def take_over(self, config: Config) -> None:
        """Other settings, from the next message on."""
        self._config = config

    # -- peers ask us ------------------------------------------------------------------------------

    def requested(self, caller: Caller, message: Message) -> tuple[int, Key | None]:
        """Only what may store to us may ask; its report is owed from here on, whatever becomes of this process."""
        senders = [name for name in self._names(caller) if self._config.peers[name].may_send]
        if not senders:
            return self._refused(caller, "Storage Commitment is for peers with may_send", NOT_AUTHORIZED), None
        # Of several entries for one application, one that a report can be sent to.
        peer = next((name for name in senders if self._config.peers[name].port is not None), senders[0])
        try:
            transaction_uid, references = read_request(message)
            self._await_rows({uid for _, uid in references})
            self._database.record_commit_request(peer, transaction_uid, references, due_s=ELSEWHERE_S)
        except InvalidMessage as err:
            return self._refused(caller, str(err), err.status), None
        except StorageError as err:
            return self._refused(caller, str(err), RESOURCE_LIMITATION), None
        extra = {"action": "commit request", "peer": peer, "transaction": transaction_uid}
        log.info("commitment requested", extra={**extra, "objects": len(references)})
        return SUCCESS, (peer, transaction_uid)

    def _await_rows(self, uids: Collection[str]) -> None:
        """Else an Instance that was acknowledged a moment ago would be reported as unknown. Raises StorageError."""
        if not self._settle(uids):
            raise StorageError("what was received just now has no rows yet")
        for pause_s in _LATE_ROWS_S:
            if len(self._database.instances_by_uid(uids)) == len(uids):
                return
            self._pause(pause_s)

    def report(self, key: Key) -> Report | None:
        row = self._database.commit_request(*key)
        if row is None or row["state"] != "due":
            return None
        return report_on(self._storage, self._database, row["transaction_uid"], row["objects"])

    def delivered(self, key: Key) -> None:
        try:
            self._database.commit_reported(*key)
        except StaleState:
            log.debug("report went out elsewhere, too", extra={"action": "commit report", "transaction": key[1]})
            return
        log.info("commitment reported", extra={"action": "commit report", "peer": key[0], "transaction": key[1]})

    def undelivered(self, key: Key) -> None:
        try:
            self._database.commit_report_due(*key)
        except StaleState:
            log.debug("report went out elsewhere", extra={"action": "commit report", "transaction": key[1]})

    # -- destinations answer us --------------------------------------------------------------------

    def reported(self, caller: Caller, message: Message) -> int:
        return settle(self._database, self._names(caller), message, calling_ae=caller.ae_title)

    def _names(self, caller: Caller) -> list[str]:
        return callers(
            self._config,
            calling=caller.ae_title,
            address=caller.address,
            certificate_names=caller.certificate_names,
        )

    def _refused(self, caller: Caller, why: str, status: int) -> int:
        log.warning(
            "commitment request refused",
            extra={"action": "refuse", "calling_ae": caller.ae_title, "why": why, "status": f"{status:#06x}"},
        )
        return status


def settle(database: Database, reporters: Iterable[str], message: Message, *, calling_ae: str) -> int:
    """A destination's report into the ledger; the status that it is answered."""
    names = list(reporters)
    try:
        report = read_report(message)
        settled = database.settle_commitment(report.transaction_uid, names, report.reasons)
    except InvalidMessage as err:
        log.warning("commitment report refused", extra=_of(calling_ae, err.status, why=str(err)))
        return err.status
    except StorageError as err:
        log.error("commitment report not recorded", extra=_of(calling_ae, RESOURCE_LIMITATION, why=str(err)))
        return RESOURCE_LIMITATION
    _observe(settled)
    status = _status(settled)
    log.log(
        logging.INFO if status == SUCCESS and not settled.parked else logging.WARNING,
        "commitment report %s",
        settled.word,
        extra=_of(
            calling_ae,
            status,
            transaction=report.transaction_uid,
            committed=settled.committed,
            again=settled.again,
            parked=settled.parked,
            strangers=settled.strangers,
        ),
    )
    return status


def _observe(settled: Settled) -> None:
    metrics.commitment_settled(
        settled.destination, committed=settled.committed, not_kept=settled.again, parked=settled.parked
    )
    for job_id in sorted(settled.jobs):
        tracing.spent(
            "commit",
            job_id.rpartition("-")[0],
            job_id=job_id,
            begun_at=settled.asked_at,
            ended_at=settled.answered_at,
            about={"destination": settled.destination},
        )


def _status(settled: Settled) -> int:
    # A word on a transaction of another destination, or on none of ours, changes nothing and is told so.
    return {"taken": SUCCESS, "repeated": SUCCESS, "foreign": NOT_AUTHORIZED}.get(settled.word, INVALID_ARGUMENT)


def _of(calling_ae: str, status: int, **more: object) -> dict[str, object]:
    return {"action": "commitment", "calling_ae": calling_ae, "status": f"{status:#06x}", **more}


def report_on(storage: Storage, database: Database, transaction_uid: str, objects: Iterable[Sequence[str]]) -> Report:
    """Which of these we keep: received under that SOP Class, its row committed and its file there, whole."""
    references: list[Reference] = [(pair[0], pair[1]) for pair in objects]
    rows = database.instances_by_uid([uid for _, uid in references])
    reasons: dict[Reference, int] = {}
    for sop_class_uid, uid in references:
        row = rows.get(uid)
        if row is None or not storage.holds(row["path"], row["size_bytes"]):
            reason = NO_SUCH_INSTANCE
        else:
            reason = 0 if row["sop_class_uid"] == sop_class_uid else CLASS_INSTANCE_CONFLICT
        reasons[sop_class_uid, uid] = reason
    return Report(transaction_uid=transaction_uid, reasons=reasons)
