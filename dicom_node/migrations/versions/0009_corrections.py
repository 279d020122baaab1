"""Results of ours that a radiologist corrected and a peer sent back."""

import sqlalchemy as sa
from alembic import op

revision = "0009_corrections"
down_revision = "0008_alerts"


def upgrade() -> None:
    op.create_table(
        "correction",
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("series_uid", sa.String(length=64), nullable=False),
        sa.Column("study_uid", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("source_ae", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("recognised_by", sa.String(length=32), nullable=False),
        sa.Column("of_series_uid", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=96), nullable=True),
        sa.Column("made", sa.String(length=64), nullable=False),
        sa.Column("verdicts", sa.JSON(), nullable=False),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.CheckConstraint("state IN ('waiting', 'compared', 'ours', 'refused')", name="state_known"),
        sa.PrimaryKeyConstraint("sop_instance_uid"),
    )
    for column in ("series_uid", "of_series_uid", "job_id", "received_at"):
        op.create_index(op.f(f"ix_correction_{column}"), "correction", [column], unique=False)
