"""Rows of corrections -> what readers made of our findings, by model and month; and a table for who counts anew."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from dicom_node.db import Database, Row
from dicom_node.reviews.shown import VERDICTS

# A line a finding or missed nodule, for a table.
COLUMNS = (
    "correction", "received", "kind", "series_instance_uid", "job_id", "model", "finding", "verdict", "extent", "dice",
    "volume_mm3", "volume_change_percent", "long_axis_mm", "long_axis_change_mm", "x_mm", "y_mm", "z_mm",
)  # fmt: skip
UNKNOWN_MODEL = "unknown"  # the job was deleted since


def figures(database: Database) -> list[dict[str, Any]]:
    """By model and month of the correction (UTC), oldest first. Of several corrections of a series the newest counts.

    rejected_percent: removed ones of the findings that a reader judged; None where none was.
    """
    models: dict[str, str] = {}
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for row in newest_of_each(database):
        month = f"{datetime.fromtimestamp(row['received_at'], UTC):%Y-%m}"
        of = counts.setdefault((month, _model(row, database, models)), {"series": 0, **dict.fromkeys(VERDICTS, 0)})
        of["series"] += 1
        for verdict in row["verdicts"]:
            of[verdict["verdict"]] += 1
    return [
        {"month": month, "model": model, **of, "rejected_percent": _rejected(of)}
        for (month, model), of in sorted(counts.items())
    ]


def newest_of_each(database: Database) -> list[Row]:
    """The compared correction that counts, of each series."""
    best: dict[str, Row] = {}
    for row in database.corrections(state="compared"):
        before = best.get(row["of_series_uid"])
        if before is None or (row["made"], row["received_at"]) > (before["made"], before["received_at"]):
            best[row["of_series_uid"]] = row
    return [row for _, row in sorted(best.items())]


def table(database: Database, rows: list[Row]) -> Iterator[dict[str, Any]]:
    """Values by COLUMNS, a line a verdict. No patient's name or ID, but UIDs that lead to one."""
    models: dict[str, str] = {}
    for row in rows:
        for verdict in row["verdicts"]:
            x, y, z = verdict["center_mm"] or (None, None, None)
            yield {
                "correction": row["sop_instance_uid"],
                "received": f"{datetime.fromtimestamp(row['received_at'], UTC):%Y-%m-%dT%H:%M:%SZ}",
                "kind": row["kind"],
                "series_instance_uid": row["of_series_uid"],
                "job_id": row["job_id"],
                "model": _model(row, database, models),
                "finding": verdict["number"],
                **{name: verdict[name] for name in COLUMNS[7:14]},
                "x_mm": x,
                "y_mm": y,
                "z_mm": z,
            }


def _model(row: Row, database: Database, known: dict[str, str]) -> str:
    """Like "lung_nodule_small 1.2.0"."""
    job_id = str(row["job_id"])
    if job_id not in known:
        job = database.job(job_id)
        model = None if job is None else job["model"]
        known[job_id] = UNKNOWN_MODEL if not model else f"{model['name']} {model['version']}"
    return known[job_id]


def _rejected(of: dict[str, int]) -> float | None:
    judged = of["confirmed"] + of["changed"] + of["removed"]
    return round(100 * of["removed"] / judged, 1) if judged else None
