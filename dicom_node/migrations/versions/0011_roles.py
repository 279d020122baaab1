"""When each role was last alive: so that another can miss it."""

import sqlalchemy as sa
from alembic import op

revision = "0011_roles"
down_revision = "0010_login_tries"


def upgrade() -> None:
    op.create_table(
        "role_seen",
        sa.Column("host", sa.String(length=128), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("unbroken_since", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.Column("stopped_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("host", "role", "name"),
    )
