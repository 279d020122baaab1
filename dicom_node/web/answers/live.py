"""Rows -> a value that differs when something changed that a page shows."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from dicom_node import schema
from dicom_node.db import Database
from dicom_node.web.answers.statements import rows_of


def version(database: Database) -> tuple[Any, ...]:
    """A few look-ups in indexes."""
    e, j, s, d = schema.event.c, schema.job.c, schema.series.c, schema.delivery.c
    running = sa.select(sa.func.coalesce(sa.func.sum(j.progress), 0.0)).where(j.state == "running")
    query = sa.select(
        sa.select(sa.func.max(e.event_id)).scalar_subquery().label("event"),
        running.scalar_subquery().label("progress"),
        sa.select(sa.func.max(s.last_at)).scalar_subquery().label("image"),
        sa.select(sa.func.count()).where(d.state == "sending").scalar_subquery().label("sending"),
    )
    [row] = rows_of(database, query)
    return tuple(row.values())
