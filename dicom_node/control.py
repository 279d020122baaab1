"""What an operator does to jobs: retry, cancel, purge. The row first, then the engine; each may be repeated."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from dicom_node import metrics
from dicom_node.config import SeriesState
from dicom_node.db import Database
from dicom_node.delivery import delivery_id
from dicom_node.engine import EngineClient
from dicom_node.errors import DicomNodeError, StaleState
from dicom_node.lookback import lookback_id
from dicom_node.purges import DONE, Kept
from dicom_node.retention import Gone, Purged, Purger, alone
from dicom_node.shadows import SHADOW_PRIORITY, shadow_id
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


def retry_shadow(database: Database, engine: EngineClient, job_id: str) -> str:
    """Let the second model look again at a job for which it came to no result."""
    row = database.shadow(job_id)
    if row is None:
        raise DicomNodeError(f"job {job_id} has no second look; dicom-node model shadows list shows what failed")
    workflow_id = shadow_id(job_id)
    if row["state"] in ("failed", "given up"):
        database.requeue_shadow(job_id)
    elif row["state"] != "queued" or not all(_over(engine, each) for each in engine.ids(workflow_id)):
        raise DicomNodeError(f"the second look at job {job_id} is {row['state']}: nothing to retry")
    # Its later turns, too. A new one, and not the ended one again: that has its failure as its result.
    engine.forget(workflow_id)
    engine.enqueue("shadow", workflow_id, job_id, 0, priority=SHADOW_PRIORITY)
    return f"queued: {row['model_name']} looks again, behind all jobs"


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
        metrics.series_ended("cancelled")
        ended = False
        if engine.state(job_id) is not None:
            engine.cancel(job_id)
    unsent = database.cancel_deliveries(job_id)
    if ended and not unsent:
        raise DicomNodeError(f"job {job_id} is {job['state']}: nothing left to cancel")
    return "cancelled" if not ended else f"{unsent} unsent objects cancelled"


def purge(
    database: Database,
    engine: EngineClient,
    storage: Storage,
    *,
    before: float | Mapping[SeriesState, float],
    kept: Kept | None = None,
    dry_run: bool = False,
    forget_before: float | None = None,
    deleted: Callable[[Gone], None] | None = None,
    wait_s: float = 10.0,
) -> Purged:
    """Remove series whose jobs all ended before `before` and whose objects are all stored, and committed where a
    destination is asked for that. Never what is undelivered. Or, where `before` has them, the states that it names.

    A series that brings something new meanwhile stays. Workflows and events of that age, or from before
    `forget_before`, go too. Raises DicomNodeError where the deliver role still deletes after `wait_s`.
    """
    purger = Purger(database=database, engine=engine, storage=storage)
    if deleted is not None:
        purger = replace(purger, deleted=deleted)
    due = dict(before) if isinstance(before, Mapping) else dict.fromkeys(DONE, before)
    if dry_run:
        return purger.would_purge(due, kept or Kept())
    with alone(database.url, wait_s=wait_s):
        purger.settle()
        removed = purger.purge(due, kept or Kept(), why="by hand")
        forgotten = forget_before if isinstance(before, Mapping) else before
        if forgotten is not None:
            purger.forget(forgotten)
    return removed
