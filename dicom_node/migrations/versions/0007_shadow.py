"""A second model in the shadow of the first, and promotions."""

import sqlalchemy as sa
from alembic import op

revision = "0007_shadow"
down_revision = "0009_pages"


def upgrade() -> None:
    for name in ("working_model", "shadow_model", "promoted_over"):
        op.add_column("job", sa.Column(name, sa.String(length=64), nullable=True))
    op.create_table(
        "shadow",
        sa.Column("job_id", sa.String(length=96), nullable=False),
        sa.Column("job_created_at", sa.Double(), nullable=False),
        sa.Column("route", sa.String(length=64), nullable=False),
        sa.Column("model_name", sa.String(length=64), nullable=False),
        sa.Column("first_name", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("executor", sa.String(length=128), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("model", sa.JSON(), nullable=True),
        sa.Column("first", sa.JSON(), nullable=True),
        sa.Column("timings_s", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.CheckConstraint("state IN ('queued', 'running', 'complete', 'failed', 'given up')", name="state_known"),
        sa.PrimaryKeyConstraint("job_id"),
    )
    for column in ("model_name", "state", "finished_at"):
        op.create_index(op.f(f"ix_shadow_{column}"), "shadow", [column], unique=False)
    op.create_table(
        "shadow_finding",
        sa.Column("job_id", sa.String(length=96), nullable=False),
        sa.Column("of_shadow", sa.Boolean(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("values", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["shadow.job_id"]),
        sa.PrimaryKeyConstraint("job_id", "of_shadow", "number"),
    )
    op.create_table(
        "promotion",
        sa.Column("promotion_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("route", sa.String(length=64), nullable=False),
        sa.Column("in_file", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("bundle_sha256", sa.String(length=64), nullable=False),
        sa.Column("forced", sa.Boolean(), nullable=False),
        sa.Column("promoted_at", sa.Double(), nullable=False),
        sa.Column("promoted_by", sa.String(length=128), nullable=False),
        sa.Column("rolled_back_at", sa.Double(), nullable=True),
        sa.Column("rolled_back_by", sa.String(length=128), nullable=True),
        sa.PrimaryKeyConstraint("promotion_id"),
    )
    op.create_index(op.f("ix_promotion_route"), "promotion", ["route"], unique=False)
