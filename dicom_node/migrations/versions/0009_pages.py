"""Indexes for what the pages and the JSON API read."""

import sqlalchemy as sa
from alembic import op

revision = "0009_pages"
down_revision = "0005_web_access"

_INDEXES = {
    "ix_job_place": ("job", ["created_at", "job_id", "study_uid", "reason"]),
    "ix_job_state_place": ("job", ["state", "created_at", "job_id"]),
    "ix_job_peer_place": ("job", ["source_ae", "created_at", "job_id", "route", "state"]),
    "ix_job_route_place": ("job", ["route", "created_at", "job_id", "state"]),
    "ix_job_state_finished": ("job", ["state", "finished_at"]),
    "ix_series_last_at": ("series", ["last_at"]),
    "ix_series_source": ("series", ["source_ae", "last_at"]),
    "ix_delivery_destination": ("delivery", ["destination", "state", "changed_at"]),
}


def upgrade() -> None:
    for name, (table, columns) in _INDEXES.items():
        op.create_index(name, table, columns)
    arriving = sa.text("assembled_at IS NULL OR last_at > assembled_at")
    op.create_index("ix_series_arriving", "series", ["first_at"], sqlite_where=arriving, postgresql_where=arriving)
