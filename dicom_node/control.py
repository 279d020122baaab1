"""What an operator does to jobs: retry, cancel, purge. The row first, then the engine; each may be repeated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.delivery import delivery_id
from dicom_node.engine import EngineClient
from dicom_node.errors import DicomNodeError, StaleState
from dicom_node.ledger import Kept
from dicom_node.lookback import lookback_id
from dicom_node.storage import Storage

_ENDED = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")


def retry(database: Database, engine: EngineClient, job_id: str) -> str:
    """Take up a job where it stopped: decide on its series again, analyse it, or send what is not stored yet."""
    job = database.job(job_id)
    if job is None:
        raise DicomNodeError(f"no job {job_id}; dicom-node jobs list shows the jobs there are")
    if job["state"] == "rejected" or job["route"] is None:
        return _decide_again(database, engine, job_id, job["series_uid"])
    if job["state"] == "complete":
        return _deliver_again(database, engine, job_id, job["priority"])
    if job["state"] == "running" and not _over(engine, job_id):
        raise DicomNodeError(f"job {job_id} is running; nothing to retry")
    if job["state"] != "queued":
        database.requeue_job(job_id)
    if database.prior_wanted_again(job_id):
        _start_again(engine, "priors", lookback_id(job_id), job["priority"], job_id)
        return "queued; an earlier CT is looked for first"
    _start_again(engine, "analyse", job_id, job["priority"], job_id)
    return "queued for analysis"


def _decide_again(database: Database, engine: EngineClient, job_id: str, series_uid: str) -> str:
    """With the settings of today. Its report, where it has one, stays in the archives it reached."""
    database.forget_job(job_id)
    engine.forget(job_id)
    engine.bounce("assemble", series_uid, 0.0, series_uid, longest_s=60.0)
    return "the series is decided on again"


def send_again(database: Database, engine: EngineClient, job_id: str, destination: str | None = None) -> str:
    """Send a job's objects to its destinations, or to one of them, also those that are stored there."""
    job = database.job(job_id)
    if job is None:
        raise DicomNodeError(f"no job {job_id}; dicom-node jobs list shows the jobs there are")
    destinations = database.send_again(job_id, destination)
    if not destinations:
        where = "anywhere" if destination is None else f"to {destination}"
        raise DicomNodeError(f"job {job_id} has no objects that went {where}; nothing to send again")
    return _enqueue_deliveries(engine, job_id, job["priority"], destinations)


def _deliver_again(database: Database, engine: EngineClient, job_id: str, priority: str) -> str:
    destinations = database.retry_deliveries(job_id)
    if not destinations:
        raise DicomNodeError(f"job {job_id} is complete and all its objects are stored")
    return _enqueue_deliveries(engine, job_id, priority, destinations)


def _enqueue_deliveries(engine: EngineClient, job_id: str, priority: str, destinations: Sequence[str]) -> str:
    for destination in destinations:
        workflow_id = delivery_id(job_id, destination)
        # Its later turns, too: one that waits is due now, and the id of one that ended must be free again.
        engine.forget(f"{workflow_id}:")
        _start_again(engine, "deliver", workflow_id, priority, job_id, destination, partition=destination)
    return f"queued for delivery to {', '.join(destinations)}"


def _over(engine: EngineClient, workflow_id: str) -> bool:
    state = engine.state(workflow_id)
    return state is None or state.status in _ENDED


def _start_again(
    engine: EngineClient, workflow: str, workflow_id: str, priority: str, *args: str, partition: str | None = None
) -> None:
    state = engine.state(workflow_id)
    if state is None:
        engine.enqueue(workflow, workflow_id, *args, priority=priority, partition=partition)
    elif state.status in _ENDED:
        engine.retry(workflow_id, partition=partition)


def cancel(database: Database, engine: EngineClient, job_id: str) -> str:
    """Stop a job that has not ended, and take its unsent objects out of the ledger's queue."""
    job = database.job(job_id)
    if job is None:
        raise DicomNodeError(f"no job {job_id}; dicom-node jobs list shows the jobs there are")
    ended = True
    with contextlib.suppress(StaleState):
        database.cancel_job(job_id)
        ended = False
        if engine.state(job_id) is not None:
            engine.cancel(job_id)
    unsent = database.cancel_deliveries(job_id)
    if ended and not unsent:
        raise DicomNodeError(f"job {job_id} is {job['state']}: nothing left to cancel")
    return "cancelled" if not ended else f"{unsent} unsent objects cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """What a purge removed, or would remove."""

    series: int
    jobs: int
    bytes: int


def kept(config: Config, now: float) -> Kept:
    """What `stored` is worth at each destination, as the settings stand."""
    return Kept(
        committing=tuple(name for name, peer in config.peers.items() if peer.may_commit),
        uncommitted_before=now - config.retention.uncommitted_after_days * 86400,
    )


def purge(
    database: Database,
    engine: EngineClient,
    storage: Storage,
    *,
    before: float,
    kept: Kept | None = None,
    dry_run: bool = False,
) -> Purged:
    """Remove series whose jobs all ended before `before` and whose objects are all stored, and committed where a
    destination is asked for that. Never what is undelivered.

    A series that brings something new meanwhile stays. Workflows and events of that age go, too.
    """
    removed = Purged(series=0, jobs=0, bytes=0)
    for series_uid in database.purgeable_series(before, kept):
        rows = database.instances(series_uid)
        jobs = [job["job_id"] for job in database.jobs(series_uid=series_uid)]
        size = sum(row["size_bytes"] for row in rows)
        size += sum(made["size_bytes"] for job_id in jobs for made in database.results(job_id))
        size += sum(prior["size_bytes"] for job_id in jobs if (prior := database.prior(job_id)) is not None)
        folders = {str(PurePosixPath(row["path"]).parent) for row in rows} | {f"results/{job_id}" for job_id in jobs}
        if not dry_run:
            if not database.purge_series(series_uid, before, partial(_discard, storage, folders), kept):
                continue
            # The same series may come again: its workflow ids must be free then.
            for job_id in jobs:
                engine.forget(job_id)
        removed = Purged(series=removed.series + 1, jobs=removed.jobs + len(jobs), bytes=removed.bytes + size)
    if not dry_run:
        engine.forget_ended(before)
        database.purge_events(before)
    return removed


def _discard(storage: Storage, folders: Iterable[str]) -> None:
    for folder in sorted(folders):
        storage.discard(folder)
