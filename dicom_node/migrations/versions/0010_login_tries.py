"""Tries to log in to the web role, which all its processes count together."""

import sqlalchemy as sa
from alembic import op

revision = "0010_login_tries"
down_revision = "0009_corrections"


def upgrade() -> None:
    op.create_table(
        "login_try",
        sa.Column("try_id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("network", sa.String(length=64), nullable=False),
        sa.Column("name_mark", sa.String(length=4), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("try_id"),
    )
    op.create_index(op.f("ix_login_try_network"), "login_try", ["network"], unique=False)
    op.create_index(op.f("ix_login_try_at"), "login_try", ["at"], unique=False)
