"""How the Associations that bring a series stand: how many are open, and whether one broke off."""

import sqlalchemy as sa
from alembic import op

revision = "0002_associations"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("series", sa.Column("associations_open", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("series", sa.Column("aborted", sa.Boolean(), nullable=False, server_default=sa.false()))
