"""What an operator does to jobs: retry, cancel, purge. The row first, then the engine; each may be repeated."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass

from dicom_node.db import Database
from dicom_node.engine import EngineClient
from dicom_node.errors import DicomNodeError, StaleState
from dicom_node.flow import delivery_id
from dicom_node.storage import Storage

_ENDED = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")


def retry(database: Database, engine: EngineClient, job_id: str) -> str:
    """Run a failed, parked or cancelled job again, or send its parked objects again. Returns what was done."""
    job = database.job(job_id)
    if job is None:
        raise DicomNodeError(f"no job {job_id}; dicom-node jobs list shows the jobs there are")
    if job["state"] in ("failed", "parked", "cancelled"):
        database.requeue_job(job_id)
    if job["state"] in ("failed", "parked", "cancelled", "queued"):
        _start_again(engine, "analyse", job_id, job["priority"], job_id)
        return "queued for analysis"
    if job["state"] == "running":
        raise DicomNodeError(f"job {job_id} is running; nothing to retry")
    destinations = database.retry_deliveries(job_id)
    for destination in destinations:
        workflow_id = delivery_id(job_id, destination)
        _start_again(engine, "deliver", workflow_id, job["priority"], job_id, destination, partition=destination)
    if destinations:
        return f"queued for delivery to {', '.join(destinations)}"
    state = engine.state(job_id)
    if state is not None and state.status == "ERROR":
        engine.retry(job_id)
        return "queued for delivery"
    raise DicomNodeError(f"job {job_id} is {job['state']} and all its objects are delivered or on their way")


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


def purge(
    database: Database, engine: EngineClient, storage: Storage, *, before: float, dry_run: bool = False
) -> Purged:
    """Remove series whose jobs all ended before `before` and whose objects are all stored. Never what is undelivered.

    Files go first: a row without its file is removed by the next purge, a file without its row would be
    adopted as received.
    """
    removed = Purged(series=0, jobs=0, bytes=0)
    for series_uid in database.purgeable_series(before):
        rows = database.instances(series_uid)
        jobs = [job["job_id"] for job in database.jobs(series_uid=series_uid)]
        size = sum(row["size_bytes"] for row in rows)
        size += sum(made["size_bytes"] for job_id in jobs for made in database.results(job_id))
        removed = Purged(series=removed.series + 1, jobs=removed.jobs + len(jobs), bytes=removed.bytes + size)
        if dry_run:
            continue
        for row in rows:
            path = storage.path(row["path"])
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the folder still holds others
                path.parent.rmdir()
                path.parent.parent.rmdir()
        for job_id in jobs:
            shutil.rmtree(storage.path(f"results/{job_id}"), ignore_errors=True)
            # The same series may come again: its workflow ids must be free then.
            engine.forget([job_id, *{delivery_id(job_id, r["destination"]) for r in database.deliveries(job_id)}])
        database.purge_series(series_uid)
    return removed
