"""The earlier CT that a job is compared with, and series that an archive sends us for a comparison alone."""

import sqlalchemy as sa
from alembic import op

revision = "0004_priors"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "prior",
        sa.Column("job_id", sa.String(length=96), nullable=False),
        sa.Column("archive", sa.String(length=64), nullable=False),
        sa.Column("wanted_at", sa.Double(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("folder", sa.String(length=64), nullable=True),
        sa.Column("study_uid", sa.String(length=64), nullable=True),
        sa.Column("series_uid", sa.String(length=64), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("settled_at", sa.Double(), nullable=True),
        sa.CheckConstraint(
            "outcome IN ('found', 'compared', 'no_prior', 'no_prior_result', 'not_registered', 'not_available')",
            name="outcome_known",
        ),
        sa.ForeignKeyConstraint(["job_id"], ["job.job_id"]),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_index(op.f("ix_prior_series_uid"), "prior", ["series_uid"], unique=False)
    op.create_table(
        "prior_series",
        sa.Column("series_uid", sa.String(length=64), nullable=False),
        sa.Column("archive", sa.String(length=64), nullable=False),
        sa.Column("asked_at", sa.Double(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("series_uid"),
    )
