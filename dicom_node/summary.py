"""One form for what is known of a series' analysis: printed by `infer`, `demo` and `jobs show`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from dicom_node.db import Database, Row
from dicom_node.domain import RESEARCH_USE
from dicom_node.errors import DicomNodeError
from dicom_node.storage import Storage

Summary = dict[str, Any]


def summary(
    *,
    series: Mapping[str, Any],
    status: str,
    reason: str | None,
    findings: Sequence[Mapping[str, Any]],
    files: Sequence[str],
    timings_s: Mapping[str, float],
    **more: Any,
) -> Summary:
    """status: complete, rejected, failed, parked, cancelled, queued or running. Nothing here names a patient."""
    return {
        "series": dict(series),
        "status": status,
        "reason": reason,
        "findings": [dict(found) for found in findings],
        "files": list(files),
        "timings_s": {name: round(seconds, 3) for name, seconds in timings_s.items()},
        **more,
        "notice": RESEARCH_USE,
    }


def job_summary(database: Database, storage: Storage, job_id: str) -> Summary:
    """A job of the node with its deliveries and events. Raises DicomNodeError when there is no such job."""
    job = database.job(job_id)
    if job is None:
        raise DicomNodeError(f"no job {job_id}; dicom-node jobs list shows the jobs there are")
    folder = storage.path(f"results/{job_id}")
    files = sorted(str(path) for path in folder.glob("*") if path.suffix in (".dcm", ".png"))
    reason = job["reason"] if job["reason_text"] is None else f"{job['reason']}: {job['reason_text']}"
    return summary(
        series=_series(job),
        status=job["state"],
        reason=reason,
        findings=database.findings(job_id),
        files=files,
        timings_s=job["timings_s"],
        job_id=job_id,
        progress=job["progress"],
        route=job["route"],
        priority=job["priority"],
        evidence=job["evidence"],
        explanation=job["explanation"],
        model=job["model"],
        promoted_over=job["promoted_over"],
        shadow=_shadow(database, storage, job_id),
        comparison=_prior(database.prior(job_id)),
        deliveries=[_delivery(row) for row in database.deliveries(job_id)],
        commitments=[_commitment(row) for row in database.commitments(job_id)],
        events=[{"at": _iso(row["at"]), "action": row["action"], **row["details"]} for row in database.events(job_id)],
    )


def _series(job: Row) -> dict[str, Any]:
    return {
        "study_instance_uid": job["study_uid"],
        "series_instance_uid": job["series_uid"],
        "instances": job["instance_count"],
        "source_ae": job["source_ae"],
    }


def _shadow(database: Database, storage: Storage, job_id: str) -> dict[str, Any] | None:
    """None where no second model looks. Its files are pictures and masks, and lie apart from the results."""
    row = database.shadow(job_id)
    if row is None:
        return None
    folder = storage.path(f"results/{job_id}/shadow")
    return {
        "model_name": row["model_name"],
        "state": row["state"],
        "problem": row["problem"],
        "model": row["model"],
        "findings": database.shadow_findings(job_id),
        "files": sorted(str(path) for path in folder.glob("*") if path.suffix in (".png", ".npz")),
    }


def _prior(row: Row | None) -> dict[str, Any] | None:
    """None where the job's route compares with nothing."""
    if row is None:
        return None
    return {
        "archive": row["archive"],
        "outcome": row["outcome"] or "looking",
        "text": row["text"] or "An earlier CT is being looked for.",
        "study_instance_uid": row["study_uid"],
        "series_instance_uid": row["series_uid"],
    }


def _delivery(row: Row) -> dict[str, Any]:
    return {
        "destination": row["destination"],
        "kind": row["kind"],
        "name": PurePosixPath(row["path"]).stem,
        "sop_instance_uid": row["sop_instance_uid"],
        "state": row["state"],
        "attempts": row["attempts"],
        "status": None if row["status"] is None else f"0x{row['status']:04X}",
        "message": row["message"],
    }


def _commitment(row: Row) -> dict[str, Any]:
    return {
        "destination": row["destination"],
        "transaction_uid": row["transaction_uid"],
        "state": row["state"],
        "asked_at": _iso(row["created_at"]),
        "message": row["message"],
    }


def _iso(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
