"""The ledger's `stored` -> `committed`: destinations are asked, asked again, and sent again what they do not keep.

Everything that is due is in rows, so this begins anew after any crash. It runs beside the deliveries and holds up none.
Reports that we owe to peers go out from here, too, where the Association that asked for them is over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pydicom.uid import generate_uid

from dicom_node.config import Config
from dicom_node.db import Database, Row
from dicom_node.delivery import delivery_id
from dicom_node.dimse.commit_intake import report_on, settle
from dicom_node.dimse.commitment import Message, Reference, Report, ask, report_to
from dicom_node.dimse.requestor import CannotAssociate, NoAnswer
from dicom_node.engine import EngineClient
from dicom_node.errors import DeliveryError, StaleState
from dicom_node.locks import Lock, try_lock
from dicom_node.peers import PeerConfig
from dicom_node.storage import Storage
from dicom_node.turns import Turns

log = logging.getLogger(__name__)

# Objects in one transaction: a peer that fails on one large request would fail all of it.
BATCH = 100
# Peers that report on the Association of the request do so within this, mostly at once.
SAME_ASSOCIATION_WAIT_S = 3.0
_EVERY_S = 2.0


class Ask(Protocol):
    """dimse.commitment.ask."""

    def __call__(
        self,
        peer: PeerConfig,
        calling_ae: str,
        transaction_uid: str,
        references: Sequence[Reference],
        *,
        on_taken: Callable[[], None],
        on_report: Callable[[Message], int],
        wait_s: float,
    ) -> None: ...


@dataclass(slots=True)
class _Pause:
    """Until when a destination is left alone, and after how many failures in a row."""

    until: float = 0.0
    failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Commitments:
    """One round at a time: `look`. Of several processes one at a time runs it (see Keeper)."""

    config: Config
    database: Database
    storage: Storage
    engine: EngineClient
    now: Callable[[], float]
    ask: Ask = ask
    report: Callable[[PeerConfig, str, Report], None] = report_to
    _pauses: dict[str, _Pause] = field(default_factory=dict)

    def look(self) -> None:
        """Send again what is not kept, report what we owe, ask about what is stored."""
        self.send_again()
        away: set[str] = set()
        for row in self.database.commit_requests_due():
            if row["peer"] not in away and not self._report(row):
                away.add(row["peer"])
        for name, peer in self.config.peers.items():
            if peer.may_commit:
                self._ask_about(name, peer)

    def send_again(self) -> None:
        """A delivery for each word that a destination does not keep objects. The same one twice is one.

        The time is in the id: a job's objects are reported on one by one, and what comes later in a round is due, too.
        """
        for row in self.database.to_send_again():
            job_id, destination = row["job_id"], row["destination"]
            again = f":round {row['round']} at {round(row['said_at'] * 1000)}"
            self.engine.enqueue(
                "deliver",
                delivery_id(job_id, destination) + again,
                job_id,
                destination,
                0,
                again,
                priority=row["priority"],
                partition=destination,
            )

    # -- what we ask -------------------------------------------------------------------------------

    def _ask_about(self, name: str, peer: PeerConfig) -> None:
        pause = self._pauses.setdefault(name, _Pause())
        while self.now() >= pause.until:
            rows = self.database.uncommitted(name, limit=BATCH)
            if not rows or not self._ask(name, peer, rows, pause):
                return

    def _ask(self, name: str, peer: PeerConfig, rows: Sequence[Row], pause: _Pause) -> bool:
        """One transaction; False when the destination did not take it."""
        transaction_uid = str(generate_uid())
        wait_s = self.config.deliver.commit_wait_h * 3600
        uids = [row["sop_instance_uid"] for row in rows]
        self.database.begin_commitment(transaction_uid, name, uids, next_s=wait_s)
        extra = {"action": "commitment", "destination": name, "transaction": transaction_uid, "objects": len(uids)}
        try:
            self.ask(
                peer,
                self.config.receive.ae_title,
                transaction_uid,
                [(row["sop_class_uid"], row["sop_instance_uid"]) for row in rows],
                on_taken=lambda: self.database.commitment_asked(transaction_uid),
                on_report=lambda message: settle(self.database, [name], message, calling_ae=peer.ae_title),
                wait_s=SAME_ASSOCIATION_WAIT_S,
            )
        except DeliveryError as err:
            pause.failures += 1
            again_s = self._wait_s(pause.failures)
            pause.until = self.now() + again_s
            # The peer's own comment may quote a patient: the row has it, the log has not.
            self.database.commitment_refused(transaction_uid, str(err), taken=isinstance(err, NoAnswer), next_s=again_s)
            log.warning("commitment not requested", extra={**extra, "why": type(err).__name__, "again_s": again_s})
            return False
        pause.failures = 0
        log.info("commitment requested", extra=extra)
        return True

    # -- what we are asked -------------------------------------------------------------------------

    def _report(self, row: Row) -> bool:
        """False when the peer can't be reached."""
        name, transaction_uid = row["peer"], row["transaction_uid"]
        extra = {"action": "commit report", "peer": name, "transaction": transaction_uid}
        peer = self.config.peers.get(name)
        try:
            if peer is None:
                raise DeliveryError(f"peer {name} is not in config.yaml any more")
            report = report_on(self.storage, self.database, transaction_uid, row["objects"])
            self.report(peer, self.config.receive.ae_title, report)
            self.database.commit_reported(name, transaction_uid)
        except DeliveryError as err:
            late = self.now() - row["created_at"] > self.config.deliver.give_up_after_h * 3600
            again_s = None if late else self._wait_s(row["attempts"] + 1)
            self.database.commit_report_failed(name, transaction_uid, str(err), again_s=again_s)
            log.warning("report not delivered", extra={**extra, "why": type(err).__name__, "again_s": again_s})
            if isinstance(err, CannotAssociate | NoAnswer):
                self.database.commit_reports_wait(name, again_s=self._wait_s(row["attempts"] + 1))
                return False
        except StaleState:
            log.debug("report went out elsewhere", extra=extra)
        else:
            log.info("commitment reported", extra=extra)
        return True

    def _wait_s(self, failures: int) -> float:
        settings = self.config.deliver
        return min(settings.longest_wait_s, settings.first_wait_s * 2.0 ** min(failures, 30))


class Keeper:
    """Runs `Commitments.look` in a thread of the deliver role; of several such processes in one at a time."""

    def __init__(self, commitments: Commitments, *, every_s: float = _EVERY_S) -> None:
        self._commitments = commitments
        self._lock: Lock | None = None
        self._turns = Turns("commitment", waits="commitments wait", failed="commitments failed")
        self._turns.add(self._look, "commitment", every_s=every_s, at_once=False, at_end=self._release)

    def start(self) -> None:
        self._turns.start()

    def stop(self, wait_s: float) -> None:
        """What is half done begins anew at the next start."""
        self._turns.stop(wait_s)

    def _look(self) -> None:
        if self._ours():
            self._commitments.look()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _ours(self) -> bool:
        """Whether this process is the one that asks."""
        if self._lock is not None and self._lock.still_held():
            return True
        database = self._commitments.database
        self._lock = try_lock(database.url, "commitment")
        if self._lock is None:
            return False
        # Whoever held it before us is gone: what it was about to ask may never have left.
        database.commitments_due_again()
        return True
