"""The tables: what DICOM needs remembered. Job state belongs to db.py, queueing to engine.py.

Times are seconds since the epoch, UTC. UIDs are text. JSON columns hold small plain values only.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

JOB_STATES = ("queued", "running", "complete", "rejected", "failed", "parked", "cancelled")
DELIVERY_STATES = ("waiting", "sending", "unknown", "stored", "parked", "cancelled")


def _one_of(column: str, values: tuple[str, ...]) -> sa.CheckConstraint:
    allowed = ", ".join(f"'{value}'" for value in values)
    return sa.CheckConstraint(f"{column} IN ({allowed})", name=f"{column}_known")


instance = sa.Table(
    "instance",
    metadata,
    sa.Column("sop_instance_uid", sa.String(64), primary_key=True),
    sa.Column("sop_class_uid", sa.String(64), nullable=False),
    sa.Column("transfer_syntax_uid", sa.String(64), nullable=False),
    sa.Column("study_uid", sa.String(64), nullable=False),
    sa.Column("series_uid", sa.String(64), nullable=False, index=True),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("received_at", sa.Double, nullable=False),
)

# One row a series, kept by the receiver. released: the Associations that brought it ended in order, none is open.
# aborted: one broke off since the series was decided on last.
# assembled_sha256: the set of instances that was decided on last.
series = sa.Table(
    "series",
    metadata,
    sa.Column("series_uid", sa.String(64), primary_key=True),
    sa.Column("study_uid", sa.String(64), nullable=False),
    sa.Column("source_ae", sa.String(16), nullable=False),
    sa.Column("source_ip", sa.String(45), nullable=False),
    sa.Column("first_at", sa.Double, nullable=False),
    sa.Column("last_at", sa.Double, nullable=False),
    sa.Column("released", sa.Boolean, nullable=False),
    sa.Column("aborted", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("assembled_sha256", sa.String(64), nullable=True),
    sa.Column("assembled_at", sa.Double, nullable=True),
)

# An Association that brought something new of a series and is not over.
carrier = sa.Table(
    "carrier",
    metadata,
    sa.Column("series_uid", sa.String(64), primary_key=True),
    sa.Column("association", sa.String(32), primary_key=True),
)

job = sa.Table(
    "job",
    metadata,
    sa.Column("job_id", sa.String(96), primary_key=True),
    sa.Column("series_uid", sa.String(64), nullable=False, index=True),
    sa.Column("study_uid", sa.String(64), nullable=False),
    sa.Column("manifest_sha256", sa.String(64), nullable=False),
    sa.Column("instance_count", sa.Integer, nullable=False),
    sa.Column("source_ae", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("reason", sa.String(64), nullable=True),
    sa.Column("reason_text", sa.Text, nullable=True),
    sa.Column("route", sa.String(64), nullable=True),
    sa.Column("priority", sa.String(16), nullable=False),
    sa.Column("evidence", sa.JSON, nullable=False),
    sa.Column("explanation", sa.JSON, nullable=False),
    sa.Column("progress", sa.Double, nullable=False),
    sa.Column("executor", sa.String(128), nullable=True),
    sa.Column("timings_s", sa.JSON, nullable=False),
    sa.Column("model", sa.JSON, nullable=True),
    sa.Column("created_at", sa.Double, nullable=False, index=True),
    sa.Column("started_at", sa.Double, nullable=True),
    sa.Column("finished_at", sa.Double, nullable=True),
    _one_of("state", JOB_STATES),
)

finding = sa.Table(
    "finding",
    metadata,
    sa.Column("job_id", sa.ForeignKey("job.job_id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("values", sa.JSON, nullable=False),
)

result = sa.Table(
    "result",
    metadata,
    sa.Column("sop_instance_uid", sa.String(64), primary_key=True),
    sa.Column("job_id", sa.ForeignKey("job.job_id"), nullable=False, index=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("sop_class_uid", sa.String(64), nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
)

# The ledger: one row an object and destination.
delivery = sa.Table(
    "delivery",
    metadata,
    sa.Column("sop_instance_uid", sa.ForeignKey("result.sop_instance_uid"), primary_key=True),
    sa.Column("destination", sa.String(64), primary_key=True),
    sa.Column("job_id", sa.ForeignKey("job.job_id"), nullable=False, index=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("status", sa.Integer, nullable=True),
    sa.Column("message", sa.Text, nullable=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("changed_at", sa.Double, nullable=False),
    _one_of("state", DELIVERY_STATES),
)

event = sa.Table(
    "event",
    metadata,
    sa.Column("event_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("series_uid", sa.String(64), nullable=True, index=True),
    sa.Column("job_id", sa.String(96), nullable=True, index=True),
    sa.Column("details", sa.JSON, nullable=False),
)
