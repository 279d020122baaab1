"""Rows of corrections -> what `--json`, the API and the pages tell of them."""

from __future__ import annotations

from typing import Any

from dicom_node.db import Database, Row
from dicom_node.reviews.analyses import STOPPED

_ENDED = dict(zip(STOPPED, ("failed", "is parked", "was cancelled"), strict=True))
VERDICTS = ("confirmed", "changed", "removed", "added", "unreviewed")


def corrections_of(database: Database, job_id: str) -> list[dict[str, Any]]:
    """What came back on a job's results, and what waits for one on its CT; newest first."""
    job = database.job(job_id)
    if job is None:
        return []
    of_series = database.corrections(of_series_uid=job["series_uid"])
    return [shown(row, database) for row in of_series if row["job_id"] in (job_id, None)]


def newest_corrections(
    database: Database, *, job_id: str | None = None, limit: int | None = None
) -> list[dict[str, Any]]:
    """Of one job, or of all; newest first."""
    if job_id is not None:
        return corrections_of(database, job_id)[:limit]
    return [shown(row, database) for row in database.corrections(limit=limit)]


def shown(row: Row, database: Database) -> dict[str, Any]:
    """A correction as people and programs are told of it."""
    verdicts = list(row["verdicts"])
    counts = {name: sum(v["verdict"] == name for v in verdicts) for name in VERDICTS}
    return {
        "sop_instance_uid": row["sop_instance_uid"],
        "kind": row["kind"],
        "state": row["state"],
        "text": _waits_for(row, database) if row["state"] == "waiting" else row["text"],
        "source_ae": row["source_ae"],
        "recognised_by": row["recognised_by"],
        "series_instance_uid": row["of_series_uid"],
        "job_id": row["job_id"],
        "made": row["made"].strip(),
        "received_at": row["received_at"],
        "counts": counts,
        "verdicts": verdicts,
    }


def _waits_for(row: Row, database: Database) -> str:
    """As things stand now: the row was written when the correction came, and jobs fail and are deleted later."""
    if database.instance(row["sop_instance_uid"]) is None:
        return "its file was deleted: send it again"
    jobs = database.jobs(series_uid=row["of_series_uid"], limit=1)
    if jobs and jobs[0]["state"] in STOPPED:
        why = jobs[0]["reason_text"]
        return f"the analysis of the CT {_ENDED[jobs[0]['state']]}{f' ({why})' if why else ''}: compared after a retry"
    if not jobs and database.series(row["of_series_uid"]) is None:
        return "the CT was deleted: send it again"
    return "the CT is not analysed yet"
