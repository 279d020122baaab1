"""Storage Commitment: what we asked for, what we were asked for, and `committed` as a state of the ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_STATES = "state IN ('waiting', 'sending', 'unknown', 'stored', 'committed', 'parked', 'cancelled')"


def upgrade() -> None:
    with op.batch_alter_table("delivery") as table:
        # SQLite's table is made anew, without its old check.
        if op.get_bind().dialect.name != "sqlite":
            table.drop_constraint("state_known", type_="check")
        table.create_check_constraint("state_known", sa.text(_STATES))
        table.add_column(sa.Column("commit_due_at", sa.Double(), nullable=True))
        table.add_column(sa.Column("commit_rounds", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "commitment",
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("destination", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.Column("message", sa.Text(), nullable=True),
        sa.CheckConstraint("state IN ('asking', 'asked', 'answered', 'refused', 'lapsed')", name="state_known"),
        sa.PrimaryKeyConstraint("transaction_uid"),
    )
    op.create_index(op.f("ix_commitment_state"), "commitment", ["state"], unique=False)
    op.create_table(
        "commitment_object",
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["transaction_uid"], ["commitment.transaction_uid"]),
        sa.ForeignKeyConstraint(["sop_instance_uid"], ["result.sop_instance_uid"]),
        sa.PrimaryKeyConstraint("transaction_uid", "sop_instance_uid"),
    )
    op.create_index(
        op.f("ix_commitment_object_sop_instance_uid"), "commitment_object", ["sop_instance_uid"], unique=False
    )
    op.create_table(
        "commit_request",
        sa.Column("peer", sa.String(length=64), nullable=False),
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("objects", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("message", sa.Text(), nullable=True),
        sa.CheckConstraint("state IN ('due', 'reported', 'given up')", name="state_known"),
        sa.PrimaryKeyConstraint("peer", "transaction_uid"),
    )
    op.create_index(op.f("ix_commit_request_state"), "commit_request", ["state"], unique=False)
