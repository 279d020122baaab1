"""A database's URL -> transactions, rows and events: what every module with statements of its own builds on."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from dicom_node import schema
from dicom_node.connection import answered, open_engine

log = logging.getLogger(__name__)

Row = sa.RowMapping


class Rows:
    """One database, SQLite or PostgreSQL, by its SQLAlchemy URL. Safe to share between threads."""

    def __init__(self, url: str, *, now: Callable[[], float] = time.time) -> None:
        self.url = url
        self._now = now
        self.engine = open_engine(url)

    def close(self) -> None:
        self.engine.dispose()

    @contextlib.contextmanager
    def _begin(self, **options: Any) -> Iterator[sa.Connection]:
        with answered(), self.engine.connect().execution_options(**options) as connection, connection.begin():
            yield connection

    def _insert(self, table: sa.Table) -> Any:
        module = sqlite if self.engine.dialect.name == "sqlite" else postgresql
        return module.insert(table)

    def add_event(self, action: str, *, job_id: str, **details: Any) -> None:
        with self._begin() as connection:
            self._event(connection, action, job_id=job_id, **details)

    def events(self, job_id: str) -> list[Row]:
        return self._all(
            sa.select(schema.event).where(schema.event.c.job_id == job_id).order_by(schema.event.c.event_id)
        )

    def _event(
        self,
        connection: sa.Connection,
        action: str,
        *,
        job_id: str | None = None,
        series_uid: str | None = None,
        **details: Any,
    ) -> None:
        if job_id is not None and action.startswith("job "):
            log.info(action, extra={"action": action, "job": job_id, **details})
        connection.execute(
            sa.insert(schema.event).values(
                at=self._now(), action=action, job_id=job_id, series_uid=series_uid, details=details
            )
        )

    def _one(self, query: sa.Select[Any]) -> Row | None:
        rows = self._all(query)
        return rows[0] if rows else None

    def _all(self, query: sa.Select[Any]) -> list[Row]:
        with answered(), self.engine.connect().execution_options(read_only=True) as connection:
            return list(connection.execute(query).mappings())
