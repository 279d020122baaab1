"""Job rows -> the list of jobs, a page at a time, and what it can be filtered by.

Each statement is one that an index serves (migration 0006): a list is read from where the last page ended, never
counted through.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dicom_node import schema
from dicom_node.db import Database, Row
from dicom_node.web.answers.form import Form, moment, when
from dicom_node.web.answers.statements import rows_of, value_of

PAGE_ROWS = 50
# Beyond it, a count says "more than".
MOST_COUNTED = 1000
FACTS = (
    "job_id", "series_uid", "study_uid", "instance_count", "source_ae", "state", "reason", "reason_text", "route",
    "priority", "progress", "created_at", "started_at", "finished_at",
)  # fmt: skip


class Facts(Form):
    """What a job is, in a list and by itself. progress: from 0 to 1. priority: routine or stat."""

    job_id: str
    series_instance_uid: str
    study_instance_uid: str
    instances: int
    source_ae: str
    state: str
    reason: str | None
    reason_text: str | None
    route: str | None
    priority: str
    progress: float
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Job(Facts):
    """A job in a list. findings: how many. objects: how many deliveries are in which state."""

    findings: int
    objects: dict[str, int]


class JobPage(Form):
    """Newest first. older, newer: the place where the next page in that direction begins, null at the end.

    count: how many jobs match, counted up to 1000; more_than_counted: there are more.
    """

    jobs: list[Job]
    older: str | None
    newer: str | None
    count: int
    more_than_counted: bool


class Filters(Form):
    """What the list of jobs can be filtered by: the states there are, and what the jobs' rows hold."""

    states: list[str]
    peers: list[str]
    routes: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs; what is None or empty is not asked. since, before: seconds since the epoch, of the job's creation.

    peer: the AE title that sent the series. text: part of a job's id, a UID, or a reason code.
    """

    states: tuple[str, ...] = ()
    peer: str | None = None
    route: str | None = None
    since: float | None = None
    before: float | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        unknown = set(self.states) - set(schema.JOB_STATES)
        if unknown:
            raise ValueError(f"no job state is called {', '.join(sorted(unknown))}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """A place in the list of jobs, between two of them: beside the job that was made then and has this id."""

    created_at: float
    job_id: str

    def __str__(self) -> str:
        return f"{self.created_at!r}_{self.job_id}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Raises ValueError."""
        at, mark, job_id = text.partition("_")
        created_at = float(at)
        if not mark or not job_id or not math.isfinite(created_at):
            raise ValueError("is no place in the list of jobs")
        return cls(created_at=created_at, job_id=job_id)


def jobs(
    database: Database,
    which: JobFilter | None = None,
    *,
    older_than: Cursor | None = None,
    newer_than: Cursor | None = None,
    limit: int = PAGE_ROWS,
) -> JobPage:
    """One page: from the newest, or beside one of the cursors (not both)."""
    if older_than is not None and newer_than is not None:
        raise ValueError("a page is older or newer than a job, not both")
    asked, backwards = _asked(which or JobFilter()), newer_than is not None
    ids = _ids(database, asked, older_than, newer_than, limit + 1)
    more = len(ids) > limit
    rows = _rows(database, ids[:limit])
    started_inside = older_than is not None or (backwards and more)
    newer = str(_place(rows[0])) if rows and started_inside else None
    older = str(_place(rows[-1])) if rows and (more or backwards) else None
    whole = older_than is None and not backwards and not more
    count = len(rows) if whole else _count(database, asked)
    return JobPage(
        jobs=_listed(database, rows),
        newer=newer,
        older=older,
        count=min(count, MOST_COUNTED),
        more_than_counted=count > MOST_COUNTED,
    )


def facts(row: Row) -> dict[str, Any]:
    """Values of Facts."""
    names = ("job_id", "source_ae", "state", "reason", "reason_text", "route", "priority", "progress")
    return {
        **{name: row[name] for name in names},
        "series_instance_uid": row["series_uid"],
        "study_instance_uid": row["study_uid"],
        "instances": row["instance_count"],
        "created_at": moment(row["created_at"]),
        **{name: when(row[name]) for name in ("started_at", "finished_at")},
    }


def filters(database: Database) -> Filters:
    return Filters(
        states=list(schema.JOB_STATES),
        peers=_distinct(database, schema.job.c.source_ae),
        routes=_distinct(database, schema.job.c.route),
    )


def _asked(which: JobFilter) -> list[sa.ColumnElement[bool]]:
    j = schema.job.c
    asked: list[sa.ColumnElement[bool]] = []
    if which.states:
        asked.append(j.state.in_(which.states) if len(which.states) > 1 else j.state == which.states[0])
    if which.peer:
        asked.append(j.source_ae == which.peer)
    if which.route:
        asked.append(j.route == which.route)
    if which.since is not None:
        asked.append(j.created_at >= which.since)
    if which.before is not None:
        asked.append(j.created_at < which.before)
    if which.text:
        # A job's id holds the UID of its series. Case counts for none of them but the codes, which are upper case.
        text = which.text.strip()
        held = [column.contains(text, autoescape=True) for column in (j.job_id, j.study_uid)]
        asked.append(sa.or_(*held, j.reason == text.upper()))
    return asked


def _ids(
    database: Database,
    asked: Sequence[sa.ColumnElement[bool]],
    older_than: Cursor | None,
    newer_than: Cursor | None,
    limit: int,
) -> list[str]:
    """From an index that holds all that is asked for: rows are wide. In the order of reading."""
    j = schema.job.c
    query, place = sa.select(j.job_id).where(*asked), sa.tuple_(j.created_at, j.job_id)
    if older_than is not None:
        query = query.where(place < _tuple(older_than))
    if newer_than is not None:
        query = query.where(place > _tuple(newer_than)).order_by(j.created_at, j.job_id)
    else:
        query = query.order_by(j.created_at.desc(), j.job_id.desc())
    return [row["job_id"] for row in rows_of(database, query.limit(limit))]


def _count(database: Database, asked: Sequence[sa.ColumnElement[bool]]) -> int:
    """How many there are, up to MOST_COUNTED + 1."""
    some = sa.select(schema.job.c.job_id).where(*asked).limit(MOST_COUNTED + 1).subquery()
    return int(value_of(database, sa.select(sa.func.count()).select_from(some)))


def _tuple(cursor: Cursor) -> sa.Tuple:
    return sa.tuple_(sa.literal(cursor.created_at, sa.Double), sa.literal(cursor.job_id, sa.String))


def _place(row: Row) -> Cursor:
    return Cursor(created_at=row["created_at"], job_id=row["job_id"])


def _rows(database: Database, ids: Sequence[str]) -> list[Row]:
    """Newest first."""
    j = schema.job.c
    listed = sa.select(*(j[name] for name in FACTS)).where(j.job_id.in_(ids))
    return rows_of(database, listed.order_by(j.created_at.desc(), j.job_id.desc())) if ids else []


def _listed(database: Database, rows: Sequence[Row]) -> list[Job]:
    ids, f = [row["job_id"] for row in rows], schema.finding.c
    if not ids:
        return []
    counts = sa.select(f.job_id, sa.func.count().label("count")).where(f.job_id.in_(ids)).group_by(f.job_id)
    findings = {row["job_id"]: int(row["count"]) for row in rows_of(database, counts)}
    objects = database.object_counts(ids)
    return [
        Job(**facts(row), findings=findings.get(row["job_id"], 0), objects=objects.get(row["job_id"], {}))
        for row in rows
    ]


def _distinct(database: Database, column: sa.Column[Any]) -> list[str]:
    """The values of an indexed column: from each to the next, not through all the rows."""
    first = sa.select(sa.func.min(column).label("value")).cte("found", recursive=True)
    after = sa.select(column).where(column > first.c.value).order_by(column).limit(1).scalar_subquery()
    found = first.union_all(sa.select(after).where(first.c.value.is_not(None)))
    rows = rows_of(database, sa.select(found.c.value).where(found.c.value.is_not(None)))
    return [str(row["value"]) for row in rows]
