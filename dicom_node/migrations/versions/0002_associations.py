"""How the Associations that bring a series stand: which are open, and whether one broke off."""

import sqlalchemy as sa
from alembic import op

revision = "0002_associations"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "carrier",
        sa.Column("series_uid", sa.String(length=64), nullable=False),
        sa.Column("association", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("series_uid", "association"),
    )
    op.add_column("series", sa.Column("aborted", sa.Boolean(), nullable=False, server_default=sa.false()))
