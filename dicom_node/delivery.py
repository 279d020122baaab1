"""Results on the disk -> each destination of their job, the ledger kept. A dead destination delays no other."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dicom_node import metrics, tracing
from dicom_node.audit import Audit, NoAudit, Study, begin_transferring, instances_transferred
from dicom_node.audit.message import Instances
from dicom_node.config import Config
from dicom_node.db import Database, Row
from dicom_node.engine import Json, Run
from dicom_node.errors import StaleState
from dicom_node.logs import describe
from dicom_node.peers import PeerConfig
from dicom_node.storage import Storage
from dicom_node.subjects import patient_of

log = logging.getLogger(__name__)

# sending: the process that sent it died before it knew; the same UID again does no harm.
_UNSENT = ("waiting", "unknown", "sending")


class Sender(Protocol):
    """Sends files to a peer: an outcome for each file, in order."""

    def __call__(self, files: Sequence[Path], peer: PeerConfig, calling_ae: str) -> Sequence[SendOutcome]: ...


class SendOutcome(Protocol):
    """kind: stored, retry, unknown (no answer: it may have arrived) or refused (an operator must look)."""

    @property
    def kind(self) -> str: ...
    @property
    def status(self) -> int | None: ...
    @property
    def message(self) -> str: ...
    @property
    def retry_after_s(self) -> float | None:
        """How long the peer asks us to wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unknown:
    """The outcome of a send that ended in an error of our own."""

    message: str
    kind: str = "unknown"
    status: int | None = None
    retry_after_s: float | None = None


def delivery_id(job_id: str, destination: str) -> str:
    """The workflow that delivers a job's objects to one destination."""
    return f"{job_id}:{destination}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The workflow `deliver` and what it works with."""

    config: Config
    database: Database
    storage: Storage
    send: Sender
    now: Callable[[], float]
    audit: Audit = field(default_factory=NoAudit)

    def deliver(self, run: Run, job_id: str, destination: str, turn: int = 0, again: str = "") -> None:
        """Until each object is stored, parked or cancelled. again: in the id of what is sent again for not being kept.

        While a destination is down this waits at the head of its queue, so that one job probes for all. Where it
        answers and only has no room for this job's objects, this job waits at the side.
        """
        while True:
            outcome = run.step("send", self.send_job, job_id, destination)
            if outcome["wait_s"] is None:
                return
            if outcome["answers"]:
                break
            run.sleep(outcome["wait_s"])
        run.enqueue(
            "deliver",
            f"{delivery_id(job_id, destination)}{again}:{turn + 1}",
            job_id,
            destination,
            turn + 1,
            again,
            priority=outcome["priority"],
            partition=destination,
            delay_s=outcome["wait_s"],
        )

    def send_job(self, job_id: str, destination: str) -> Json:
        """One attempt at all that this destination has not stored yet.

        wait_s: until the next attempt, null when nothing is left to do. answers: the peer gave some object a status.
        """
        peer = self.config.peers.get(destination)
        if peer is None or not peer.can_receive:
            what = "is not in config.yaml; add it" if peer is None else "can't be sent to by its settings; mend them"
            self._park_all(job_id, destination, f"destination {destination} {what} and retry")
            return {"wait_s": None}
        claimed = self._claimed(job_id, destination)
        if not claimed:
            return {"wait_s": None}
        study = self._study(claimed)
        calling, address = self.config.receive.ae_title, peer.host
        self.audit.write(begin_transferring(source=calling, destination=peer.ae_title, address=address, study=study))
        begun_at = self.now()
        outcomes = self._sent(claimed, peer)
        self._trace(job_id, destination, begun_at, [outcome.kind for outcome in outcomes])
        stored = sum(outcome.kind == "stored" for outcome in outcomes)
        whole = stored == len(claimed)
        self.audit.write(
            instances_transferred(
                source=calling,
                destination=peer.ae_title,
                address=address,
                received=False,
                study=study,
                outcome=0 if whole else 4,
                text=None if whole else f"{stored} of {len(claimed)} instances stored",
            )
        )
        again = False
        for row, outcome in zip(claimed, outcomes, strict=True):
            again |= self._settle(row, outcome)
        if not again:
            return {"wait_s": None}
        asked_s = max((outcome.retry_after_s or 0.0 for outcome in outcomes), default=0.0)
        return {
            "wait_s": max(asked_s, self._wait_s(max(row["attempts"] for row in claimed))),
            "answers": any(outcome.status is not None for outcome in outcomes),
            "priority": self._priority(job_id),
        }

    def _study(self, due: Sequence[Row]) -> Study:
        """What is about to be sent, for the audit trail."""
        job = self.database.job(due[0]["job_id"])
        classes = [row["sop_class_uid"] for row in due]
        return Study(
            uid="unknown" if job is None else job["study_uid"],
            patient=patient_of(self.storage.path(due[0]["path"])),
            instances=tuple(Instances(sop_class_uid=u, count=classes.count(u)) for u in sorted(set(classes))),
            series_uids=() if job is None else (job["series_uid"],),
        )

    def _claimed(self, job_id: str, destination: str) -> list[Row]:
        """The rows that are ours to send now. A row that an operator cancelled at this moment is not."""
        claimed = []
        for row in self.database.deliveries(job_id, destination):
            if row["state"] in _UNSENT:
                with contextlib.suppress(StaleState):
                    self.database.move_delivery(row["sop_instance_uid"], destination, _UNSENT, "sending", attempt=True)
                    claimed.append(row)
        return claimed

    def _sent(self, due: Sequence[Row], peer: PeerConfig) -> Sequence[SendOutcome]:
        files = [self.storage.path(row["path"]) for row in due]
        try:
            outcomes = self.send(files, peer, self.config.receive.ae_title)
        except Exception as err:
            # Nobody foresaw it, and it may pass: without a new attempt the objects would lie there as "sending".
            log.exception("sending failed", extra={"action": "failed", "job": due[0]["job_id"]})
            return [_Unknown(message=describe(err))] * len(due)
        return outcomes

    def _settle(self, row: Row, outcome: SendOutcome) -> bool:
        """The ledger's next state of one object; True when it must be sent again by us."""
        state = {"stored": "stored", "refused": "parked", "retry": "waiting", "unknown": "unknown"}[outcome.kind]
        if (
            state in ("waiting", "unknown")
            and self.now() - row["created_at"] > self.config.deliver.give_up_after_h * 3600
        ):
            state = "parked"
        try:
            self.database.move_delivery(
                row["sop_instance_uid"],
                row["destination"],
                ("sending",),
                state,
                status=outcome.status,
                # A peer's comment may hold anything; PostgreSQL takes no NUL.
                message=outcome.message.replace("\0", "") or None,
            )
        except StaleState:
            # Another machine sent it at the same time and was quicker: the row, and what follows, is its own.
            return False
        took_s = self.now() - row["created_at"] if state == "stored" else None
        metrics.delivery_settled(row["destination"], state, took_s=took_s)
        log.log(
            logging.INFO if state == "stored" else logging.WARNING,
            "object %s",
            state,
            extra={
                "action": f"delivery {state}",
                "job": row["job_id"],
                "destination": row["destination"],
                "kind": row["kind"],
                # Not the peer's own comment: it may quote the patient. The ledger has it.
                "status": None if outcome.status is None else f"0x{outcome.status:04X}",
            },
        )
        self.database.add_event(
            f"delivery {state}", job_id=row["job_id"], destination=row["destination"], kind=row["kind"]
        )
        return state in ("waiting", "unknown")

    def _trace(self, job_id: str, destination: str, begun_at: float, kinds: Sequence[str]) -> None:
        """One span an attempt."""
        series_uid = job_id.rpartition("-")[0]
        about: dict[str, str | int] = {"destination": destination, **{kind: kinds.count(kind) for kind in kinds}}
        tracing.spent("deliver", series_uid, job_id=job_id, begun_at=begun_at, ended_at=self.now(), about=about)

    def _park_all(self, job_id: str, destination: str, message: str) -> None:
        for row in self.database.deliveries(job_id, destination):
            if row["state"] in _UNSENT:
                with contextlib.suppress(StaleState):
                    self.database.move_delivery(
                        row["sop_instance_uid"], destination, _UNSENT, "parked", message=message
                    )

    def _wait_s(self, attempts: int) -> float:
        settings = self.config.deliver
        return min(settings.longest_wait_s, settings.first_wait_s * 2.0 ** min(attempts, 30))

    def _priority(self, job_id: str) -> str:
        job = self.database.job(job_id)
        if job is None:
            raise StaleState(f"job {job_id} is not in the database")
        return str(job["priority"])
