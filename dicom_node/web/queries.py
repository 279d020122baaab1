"""Rows -> what the pages and the JSON API show. Nothing here writes.

Each statement is one that an index serves (migration 0006): a list of jobs is read from where the last page ended,
never counted through.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import sqlalchemy as sa

from dicom_node import schema
from dicom_node.connection import answered
from dicom_node.db import FINISHED, Database, Row
from dicom_node.ledger import ARRIVED

PAGE_ROWS = 50
# Beyond it, a count says "more than".
MOST_COUNTED = 1000
UNSENT = ("waiting", "sending", "unknown", "parked")

_LISTED = (
    "job_id", "series_uid", "study_uid", "instance_count", "source_ae", "state", "reason", "reason_text", "route",
    "priority", "progress", "created_at", "started_at", "finished_at",
)  # fmt: skip
_Shown = TypeVar("_Shown")


class NoSuchJob(LookupError):
    """No job has this id, or a purge took it."""


# -- jobs --------------------------------------------------------------------------------------------


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


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """A job in a list. Times are seconds since the epoch. objects: how many deliveries are in which state."""

    job_id: str
    series_uid: str
    study_uid: str
    instance_count: int
    source_ae: str
    state: str
    reason: str | None
    reason_text: str | None
    route: str | None
    priority: str
    progress: float
    created_at: float
    started_at: float | None
    finished_at: float | None
    findings: int
    objects: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """Newest first. newer, older: where the next page in either direction begins; None at the end of the list."""

    jobs: tuple[JobRow, ...]
    newer: Cursor | None
    older: Cursor | None


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
    j = schema.job.c
    place, backwards = sa.tuple_(j.created_at, j.job_id), newer_than is not None
    # The ids first, from an index that holds all that is asked for: rows are wide.
    query = sa.select(j.job_id).where(*_asked(which or JobFilter()))
    if older_than is not None:
        query = query.where(place < _tuple(older_than))
    if newer_than is not None:
        query = query.where(place > _tuple(newer_than)).order_by(j.created_at, j.job_id)
    else:
        query = query.order_by(j.created_at.desc(), j.job_id.desc())
    ids = [row["job_id"] for row in _all(database, query.limit(limit + 1))]
    more = len(ids) > limit
    shown = _job_rows(database, ids[:limit])
    first, last = (_place(shown[0]), _place(shown[-1])) if shown else (None, None)
    started_inside = older_than is not None or (backwards and more)
    return JobPage(
        jobs=shown,
        newer=first if started_inside else None,
        older=last if (more or backwards) else None,
    )


def count_jobs(database: Database, which: JobFilter | None = None) -> int:
    """How many there are, up to MOST_COUNTED + 1."""
    some = sa.select(schema.job.c.job_id).where(*_asked(which or JobFilter())).limit(MOST_COUNTED + 1).subquery()
    return int(_value(database, sa.select(sa.func.count()).select_from(some)))


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


def _tuple(cursor: Cursor) -> sa.Tuple:
    return sa.tuple_(sa.literal(cursor.created_at, sa.Double), sa.literal(cursor.job_id, sa.String))


def _place(job: JobRow) -> Cursor:
    return Cursor(created_at=job.created_at, job_id=job.job_id)


def _job_rows(database: Database, ids: Sequence[str]) -> tuple[JobRow, ...]:
    """Newest first."""
    f, j = schema.finding.c, schema.job.c
    listed = sa.select(*(j[name] for name in _LISTED)).where(j.job_id.in_(ids))
    rows = _all(database, listed.order_by(j.created_at.desc(), j.job_id.desc()))
    counts = sa.select(f.job_id, sa.func.count().label("count")).where(f.job_id.in_(ids)).group_by(f.job_id)
    findings = {row["job_id"]: int(row["count"]) for row in _all(database, counts)} if ids else {}
    objects = database.object_counts(ids) if ids else {}
    return tuple(
        JobRow(**row, findings=findings.get(row["job_id"], 0), objects=objects.get(row["job_id"], {})) for row in rows
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the list of jobs can be filtered by: what its rows hold."""

    peers: tuple[str, ...]
    routes: tuple[str, ...]


def choices(database: Database) -> Choices:
    return Choices(peers=_distinct(database, schema.job.c.source_ae), routes=_distinct(database, schema.job.c.route))


def _distinct(database: Database, column: sa.Column[Any]) -> tuple[str, ...]:
    """The values of an indexed column: from each to the next, not through all the rows."""
    first = sa.select(sa.func.min(column).label("value")).cte("found", recursive=True)
    after = sa.select(column).where(column > first.c.value).order_by(column).limit(1).scalar_subquery()
    found = first.union_all(sa.select(after).where(first.c.value.is_not(None)))
    rows = _all(database, sa.select(found.c.value).where(found.c.value.is_not(None)))
    return tuple(str(row["value"]) for row in rows)


# -- one job -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OneJob:
    """All that the rows know of a job. events: its own and its series', oldest first. deliveries: in order of sending.

    first_at, last_at: when the series' first and last image came; None where the series' row is gone.
    """

    job: Row
    first_at: float | None
    last_at: float | None
    findings: tuple[dict[str, Any], ...]
    results: tuple[Row, ...]
    deliveries: tuple[Row, ...]
    commitments: tuple[Row, ...]
    events: tuple[Row, ...]
    prior: Row | None
    revisions: tuple[str, ...]


def one_job(database: Database, job_id: str) -> OneJob:
    """Raises NoSuchJob. revisions: the ids of other jobs on the same series, oldest first."""
    job = database.job(job_id)
    if job is None:
        raise NoSuchJob(job_id)
    e, j = schema.event.c, schema.job.c
    series = database.series(job["series_uid"])
    of_series = sa.and_(e.series_uid == job["series_uid"], e.job_id.is_(None))
    events = sa.select(schema.event).where(sa.or_(e.job_id == job_id, of_series)).order_by(e.at, e.event_id)
    others = sa.select(j.job_id).where(j.series_uid == job["series_uid"], j.job_id != job_id).order_by(j.created_at)
    return OneJob(
        job=job,
        first_at=None if series is None else series["first_at"],
        last_at=None if series is None else series["last_at"],
        findings=tuple(database.findings(job_id)),
        results=tuple(database.results(job_id)),
        deliveries=tuple(database.deliveries(job_id)),
        commitments=tuple(database.commitments(job_id)),
        events=tuple(_all(database, events)),
        prior=database.prior(job_id),
        revisions=tuple(row["job_id"] for row in _all(database, others)),
    )


# -- today -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Of `count` values, in seconds; None where there is none."""

    count: int
    median_s: float | None
    p95_s: float | None

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Percentiles:
        """By the nearest rank, so that each is a value that occurred."""
        ordered = sorted(seconds)
        if not ordered:
            return cls(count=0, median_s=None, p95_s=None)
        rank = [ordered[max(0, math.ceil(share * len(ordered)) - 1)] for share in (0.5, 0.95)]
        return cls(count=len(ordered), median_s=rank[0], p95_s=rank[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Today:
    """Since `since`: series that came, and jobs by how they ended. waiting, running, arriving: now.

    received: series that brought an image. arriving: those of all times that are not decided on yet.
    delivered: complete, and every destination has every object. undelivered: complete, and not that.
    failed: failed or parked. attention: failed or parked jobs of all times. oldest_waiting_at: when the job was made
    that waits longest. last_image_to_result: of the jobs that completed.
    """

    since: float
    received: int
    arriving: int
    waiting: int
    running: int
    delivered: int
    undelivered: int
    failed: int
    rejected: int
    attention: int
    oldest_waiting_at: float | None
    last_image_to_result: Percentiles


def today(database: Database, since: float) -> Today:
    j, s = schema.job.c, schema.series.c
    ended = _all(
        database,
        sa.select(j.state, sa.func.count().label("count"))
        .where(j.state.in_(FINISHED), j.finished_at >= since)
        .group_by(j.state),
    )
    by_state = {row["state"]: int(row["count"]) for row in ended}
    open_states = ("queued", "running", "failed", "parked")
    now = _all(
        database,
        sa.select(j.state, sa.func.count().label("count")).where(j.state.in_(open_states)).group_by(j.state),
    )
    there = {row["state"]: int(row["count"]) for row in now}
    undelivered = _undelivered(database, since)
    return Today(
        since=since,
        received=int(_value(database, sa.select(sa.func.count()).select_from(schema.series).where(s.last_at >= since))),
        arriving=int(_value(database, sa.select(sa.func.count()).select_from(schema.series).where(schema.ARRIVING))),
        waiting=there.get("queued", 0),
        running=there.get("running", 0),
        delivered=by_state.get("complete", 0) - undelivered,
        undelivered=undelivered,
        failed=by_state.get("failed", 0) + by_state.get("parked", 0),
        rejected=by_state.get("rejected", 0),
        attention=there.get("failed", 0) + there.get("parked", 0),
        oldest_waiting_at=_value(database, sa.select(sa.func.min(j.created_at)).where(j.state == "queued")),
        last_image_to_result=last_image_to_result(database, since),
    )


def last_image_to_result(database: Database, since: float) -> Percentiles:
    """From the reception of a series' last image to the recording of its results, of jobs that completed since then.

    A series that grew after its job was made tells nothing of that job.
    """
    j, s = schema.job.c, schema.series.c
    query = (
        sa.select((j.finished_at - s.last_at).label("seconds"))
        .join(schema.series, s.series_uid == j.series_uid)
        .where(j.finished_at >= since, j.state == "complete", s.last_at <= j.created_at)
    )
    return Percentiles.of([float(row["seconds"]) for row in _all(database, query)])


def _undelivered(database: Database, since: float) -> int:
    j, d = schema.job.c, schema.delivery.c
    missing = sa.select(d.job_id).where(d.job_id == j.job_id, d.state.not_in(ARRIVED))
    query = sa.select(sa.func.count()).where(j.finished_at >= since, j.state == "complete", missing.exists())
    return int(_value(database, query))


# -- peers and models --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """What the ledger says of one destination. unsent: objects by state, of all times. arrived: objects since `since`.

    arrived_at: the last one that it took; failed_at: the last one that it did not, of those still due.
    """

    name: str
    unsent: dict[str, int]
    arrived: int
    arrived_at: float | None
    failed_at: float | None

    @property
    def condition(self) -> Literal["up", "down", "idle"]:
        """As the last attempt ended; idle where nothing was ever sent."""
        if self.failed_at is not None and (self.arrived_at is None or self.failed_at > self.arrived_at):
            return "down"
        return "idle" if self.arrived_at is None else "up"


def destination(database: Database, name: str, since: float) -> Destination:
    d = schema.delivery.c
    due = _all(
        database,
        sa.select(d.state, sa.func.count().label("count"))
        .where(d.destination == name, d.state.in_(UNSENT))
        .group_by(d.state),
    )
    tried = sa.select(sa.func.max(d.changed_at)).where(
        d.destination == name, d.state.in_(("waiting", "unknown", "parked")), d.attempts > 0
    )
    last = [
        _value(database, sa.select(sa.func.max(d.changed_at)).where(d.destination == name, d.state == state))
        for state in ARRIVED
    ]
    arrived = sa.select(sa.func.count()).where(d.destination == name, d.state.in_(ARRIVED), d.changed_at >= since)
    return Destination(
        name=name,
        unsent={row["state"]: int(row["count"]) for row in due},
        arrived=int(_value(database, arrived)),
        arrived_at=max((at for at in last if at is not None), default=None),
        failed_at=_value(database, tried),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """What came under one AE title. series: since `since`. last_at: its last image of all times."""

    ae_title: str
    series: int
    last_at: float | None


def sender(database: Database, ae_title: str, since: float) -> Sender:
    s = schema.series.c
    return Sender(
        ae_title=ae_title,
        series=int(
            _value(database, sa.select(sa.func.count()).where(s.source_ae == ae_title, s.last_at >= since)),
        ),
        last_at=_value(database, sa.select(sa.func.max(s.last_at)).where(s.source_ae == ae_title)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteCounts:
    """Jobs of one route since `since`, by state."""

    route: str
    jobs: dict[str, int]


def route_counts(database: Database, route: str, since: float) -> RouteCounts:
    j = schema.job.c
    query = (
        sa.select(j.state, sa.func.count().label("count"))
        .where(j.route == route, j.created_at >= since)
        .group_by(j.state)
        .order_by(j.state)
    )
    return RouteCounts(route=route, jobs={row["state"]: int(row["count"]) for row in _all(database, query)})


# -- live --------------------------------------------------------------------------------------------


def version(database: Database) -> tuple[Any, ...]:
    """A value that differs when something changed that a page shows. A few look-ups in indexes."""
    e, j, s, d = schema.event.c, schema.job.c, schema.series.c, schema.delivery.c
    running = sa.select(sa.func.coalesce(sa.func.sum(j.progress), 0.0)).where(j.state == "running")
    query = sa.select(
        sa.select(sa.func.max(e.event_id)).scalar_subquery().label("event"),
        running.scalar_subquery().label("progress"),
        sa.select(sa.func.max(s.last_at)).scalar_subquery().label("image"),
        sa.select(sa.func.count()).where(d.state == "sending").scalar_subquery().label("sending"),
    )
    [row] = _all(database, query)
    return tuple(row.values())


def _all(database: Database, query: sa.Select[Any]) -> list[Row]:
    with answered(), database.engine.connect().execution_options(read_only=True) as connection:
        return list(connection.execute(query).mappings())


def _value(database: Database, query: sa.Select[Any]) -> Any:
    with answered(), database.engine.connect().execution_options(read_only=True) as connection:
        return connection.execute(query).scalar()
