"""What each series is to retention, told from its rows; and the removal of all rows of one.

The state is one SQL expression, so that a series is judged again in the very transaction that removes it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from dicom_node import schema
from dicom_node.config.retention import SeriesState
from dicom_node.errors import StaleState
from dicom_node.ledger import ARRIVED
from dicom_node.rows import Row, Rows

# What a purge by hand takes unless it is told: nothing that a destination has yet to get, nothing that failed.
DONE: tuple[SeriesState, ...] = ("committed", "stored", "local", "cancelled", "correction", "rejected", "unused")
# config.PullConfig.since_h is at most a year.
_LONGEST_LOOK_BACK_S = 366 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What `stored` is worth. committing: destinations that are asked for Storage Commitment: there, what is stored
    and was stored at or after `uncommitted_before` still is ours to keep."""

    committing: tuple[str, ...] = ()
    uncommitted_before: float = 0.0


class Purges(Rows):
    """Statements on what may be deleted, and its deletion."""

    def purgeable(self, before: Mapping[SeriesState, float], kept: Kept, *, limit: int | None = None) -> list[Row]:
        """series_uid, study_uid, state and last_at of what may go: in the order of the states in `before`, of each
        the oldest first. before: a state -> until when nothing more may have happened; others are not looked at."""
        if not before:
            return []
        order = {state: place for place, state in enumerate(before)}
        found = _purgeable(before, kept).subquery()
        place = sa.case(order, value=found.c.state, else_=len(order))
        return self._all(sa.select(found).order_by(place, found.c.last_at).limit(limit))

    def held_series(self, before: float | Mapping[SeriesState, float], kept: Kept) -> list[tuple[str, dict[str, int]]]:
        """Series of that age that a purge leaves alone, and why: each reason with how many objects or jobs it has."""
        s = schema.series.c
        due = dict(before) if isinstance(before, Mapping) else dict.fromkeys(DONE, before)
        free = _purgeable(due, kept).subquery()
        age = s.last_at < max(due.values(), default=0.0)
        old = sa.select(s.series_uid).where(age, s.series_uid.not_in(sa.select(free.c.series_uid)))
        return [(row["series_uid"], self._why_held(row["series_uid"], kept)) for row in self._all(old)]

    def _why_held(self, series_uid: str, kept: Kept) -> dict[str, int]:
        j, d = schema.job.c, schema.delivery.c
        count = sa.func.count().label("count")
        jobs = sa.select(j.state, count).where(j.series_uid == series_uid).group_by(j.state)
        reasons = {
            f"job {row['state']}": int(row["count"])
            for row in self._all(jobs)
            if row["state"] in ("queued", "running", "failed", "parked")
        }
        objects = (
            sa.select(d.destination, d.state, count)
            .join(schema.job, j.job_id == d.job_id)
            .where(j.series_uid == series_uid, sa.or_(_UNDELIVERED, _uncommitted(kept)))
            .group_by(d.destination, d.state)
            .order_by(d.destination, d.state)
        )
        for row in self._all(objects):
            state = "stored, not committed" if row["state"] == "stored" else row["state"]
            reasons[f"{state} at {row['destination']}"] = int(row["count"])
        return reasons or {"changed since, not decided on yet, or of a state that is kept": 1}

    def purge_series(
        self,
        series_uid: str,
        before: float,
        remove_files: Callable[[], None],
        kept: Kept | None = None,
        *,
        states: Collection[SeriesState] = DONE,
        **details: Any,
    ) -> bool:
        """All rows of one series, if it still is purgeable; False when it brought something new meanwhile.

        remove_files is called while nobody else can write the series' row, before the commit. details: for the event.
        """
        jobs = sa.select(schema.job.c.job_id).where(schema.job.c.series_uid == series_uid)
        still = _purgeable(dict.fromkeys(states, before), kept or Kept(), series_uid)
        locked = sa.select(schema.series.c.series_uid).where(schema.series.c.series_uid == series_uid)
        with self._begin() as connection:
            connection.execute(locked.with_for_update()).first()
            row = connection.execute(still).first()
            if row is None:
                return False
            _delete_results(connection, schema.result.c.job_id.in_(jobs))
            for of_job in (schema.finding, schema.prior):
                connection.execute(sa.delete(of_job).where(of_job.c.job_id.in_(jobs)))
            for table in (schema.job, schema.instance, schema.carrier, schema.series):
                connection.execute(sa.delete(table).where(table.c.series_uid == series_uid))
            # That it was pulled stays known; the route that a pull named counts no more.
            pulled = sa.update(schema.pulled).where(schema.pulled.c.series_uid == series_uid)
            connection.execute(pulled.values(route=None))
            self._event(connection, "series purged", series_uid=series_uid, state=row.state, **details)
            remove_files()
        return True

    def with_series(self, series_uid: str, settle: Callable[[frozenset[str], frozenset[str]], None]) -> None:
        """`settle` is told the paths of the series' instances and its job ids, while nobody else can remove them."""
        i, j = schema.instance.c, schema.job.c
        with self._begin() as connection:
            row = sa.select(schema.series).where(schema.series.c.series_uid == series_uid)
            connection.execute(row.with_for_update()).first()
            paths = connection.execute(sa.select(i.path).where(i.series_uid == series_uid)).scalars()
            jobs = connection.execute(sa.select(j.job_id).where(j.series_uid == series_uid)).scalars()
            settle(frozenset(paths), frozenset(jobs))

    def unknown_jobs(self, job_ids: Sequence[str]) -> set[str]:
        """Those of them that have no row."""
        return self._unknown(schema.job.c.job_id, job_ids)

    def unknown_series(self, series_uids: Sequence[str]) -> set[str]:
        """Those of them that have no row."""
        return self._unknown(schema.series.c.series_uid, series_uids)

    def _unknown(self, column: sa.Column[str], values: Sequence[str]) -> set[str]:
        unknown = set(values)
        # SQLite takes a limited number of parameters in one statement.
        for start in range(0, len(values), 500):
            known = self._all(sa.select(column.label("known")).where(column.in_(values[start : start + 500])))
            unknown -= {row["known"] for row in known}
        return unknown

    def purge_events(self, before: float) -> None:
        """Events older than `before` of series and jobs that are gone, and what is over of Storage Commitment.

        That a series was pulled is kept longer than any scheduled pull looks back.
        """
        e, c, r, p = schema.event.c, schema.commitment.c, schema.commit_request.c, schema.pulled.c
        asked_about = sa.select(schema.commitment_object.c.transaction_uid)
        with self._begin() as connection:
            connection.execute(
                sa.delete(schema.event).where(
                    e.at < before,
                    sa.or_(e.job_id.is_(None), e.job_id.not_in(sa.select(schema.job.c.job_id))),
                    sa.or_(e.series_uid.is_(None), e.series_uid.not_in(sa.select(schema.series.c.series_uid))),
                )
            )
            connection.execute(
                sa.delete(schema.commitment).where(c.changed_at < before, c.transaction_uid.not_in(asked_about))
            )
            connection.execute(sa.delete(schema.commit_request).where(r.created_at < before, r.state != "due"))
            connection.execute(sa.delete(schema.prior_series).where(schema.prior_series.c.until < before))
            here = sa.select(schema.series.c.series_uid)
            connection.execute(
                sa.delete(schema.pulled).where(p.asked_at < before - _LONGEST_LOOK_BACK_S, p.series_uid.not_in(here))
            )

    def forget_job(self, job_id: str) -> None:
        """Remove a job that ended without an analysis; its series is one to assemble again."""
        with self._begin() as connection:
            self._event(connection, "job forgotten", job_id=job_id)
            series_uid = sa.select(schema.job.c.series_uid).where(schema.job.c.job_id == job_id).scalar_subquery()
            connection.execute(
                sa.update(schema.series).where(schema.series.c.series_uid == series_uid).values(assembled_at=None)
            )
            _delete_results(connection, schema.result.c.job_id == job_id)
            for of_job in (schema.finding, schema.prior):
                connection.execute(sa.delete(of_job).where(of_job.c.job_id == job_id))
            done = connection.execute(
                sa.delete(schema.job).where(
                    schema.job.c.job_id == job_id, schema.job.c.state.in_(("rejected", "failed", "cancelled"))
                )
            )
            if not done.rowcount:
                raise StaleState(f"job {job_id} is not rejected, failed or cancelled")

    # -- when what was done last -------------------------------------------------------------------

    def upkeep(self, name: str) -> Row | None:
        """The last round of this task, as it began or ended."""
        return self._one(sa.select(schema.upkeep).where(schema.upkeep.c.name == name))

    def upkeep_began(self, name: str) -> None:
        values = {"started_at": self._now(), "ended_at": None, "series": 0, "bytes": 0}
        insert = self._insert(schema.upkeep).values(name=name, **values)
        with self._begin() as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_=values))

    def upkeep_ended(self, name: str, *, series: int, size_bytes: int) -> None:
        values = {"ended_at": self._now(), "series": series, "bytes": size_bytes}
        with self._begin() as connection:
            connection.execute(sa.update(schema.upkeep).where(schema.upkeep.c.name == name).values(**values))


# -- the state of a series, as SQL over its row ----------------------------------------------------------

# As expressions that no index has: SQLite would look through all deliveries or jobs of a state for each single series.
_OBJECT_STATE = sa.func.coalesce(schema.delivery.c.state, "")
_JOB_STATE = sa.func.coalesce(schema.job.c.state, "")
_UNDELIVERED = _OBJECT_STATE.not_in((*ARRIVED, "cancelled"))


def _job(series_uid: sa.ColumnElement[str], *where: sa.ColumnElement[bool]) -> sa.Exists:
    """Whether the series has such a job."""
    j = schema.job.c
    return sa.select(j.job_id).where(j.series_uid == series_uid, *where).exists()


def _object(series_uid: sa.ColumnElement[str], *where: sa.ColumnElement[bool]) -> sa.Exists:
    """Whether a job of the series has such a delivery."""
    j, d = schema.job.c, schema.delivery.c
    of_series = sa.select(d.job_id).join(schema.job, j.job_id == d.job_id)
    return of_series.where(j.series_uid == series_uid, *where).exists()


def _state() -> sa.Case[Any]:
    """One of SERIES_STATES, which has them in the same order: the first that fits; what must stay comes first."""
    j, d, uid = schema.job.c, schema.delivery.c, schema.series.c.series_uid
    complete, stopped = _JOB_STATE == "complete", _JOB_STATE == "cancelled"
    nowhere = ~sa.select(d.job_id).where(d.job_id == j.job_id).exists()
    return sa.case(
        (_object(uid, _UNDELIVERED), "undelivered"),
        (_job(uid, _JOB_STATE == "parked"), "parked"),
        (_job(uid, _JOB_STATE == "failed"), "failed"),
        (
            sa.or_(_object(uid, _OBJECT_STATE == "cancelled"), sa.and_(_job(uid, stopped), ~_job(uid, complete))),
            "cancelled",
        ),
        (_job(uid, complete, nowhere), "local"),
        (sa.and_(_job(uid, complete), _object(uid, _OBJECT_STATE == "stored")), "stored"),
        (_job(uid, complete), "committed"),
        (sa.select(schema.correction.c.series_uid).where(schema.correction.c.series_uid == uid).exists(), "correction"),
        (_job(uid), "rejected"),
        else_="unused",
    )


def _settled() -> sa.Select[Any]:
    """Series that were decided on, with no job under way, each with its state."""
    j, s = schema.job.c, schema.series.c
    under_way = sa.or_(j.finished_at.is_(None), _JOB_STATE.in_(("queued", "running")))
    return sa.select(s.series_uid, s.study_uid, s.first_at, s.last_at, _state().label("state")).where(
        s.assembled_at.is_not(None), s.last_at <= s.assembled_at, ~_job(s.series_uid, under_way)
    )


def _uncommitted(kept: Kept) -> sa.ColumnElement[bool]:
    """Deliveries that a peer stored and has yet to say that it keeps."""
    d = schema.delivery.c
    return sa.and_(
        _OBJECT_STATE == "stored",
        sa.func.coalesce(d.destination, "").in_(kept.committing),
        d.changed_at >= kept.uncommitted_before,
    )


def _purgeable(before: Mapping[SeriesState, float], kept: Kept, series_uid: str | None = None) -> sa.Select[Any]:
    """series_uid, study_uid, first_at, last_at and state of series to which nothing happened since their state's
    `before`: nothing came, ended or arrived."""
    inner = _settled().where(schema.series.c.last_at < max(before.values(), default=0.0))
    if series_uid is not None:
        inner = inner.where(schema.series.c.series_uid == series_uid)
    # The offset keeps both databases from working the state out anew wherever it is named below.
    s = inner.offset(0).subquery().c
    since = sa.case(dict(before), value=s.state, else_=0.0) if before else sa.literal(0.0)
    j, d = schema.job.c, schema.delivery.c
    return sa.select(s.series_uid, s.study_uid, s.first_at, s.last_at, s.state).where(
        s.last_at < since,
        ~_job(s.series_uid, j.finished_at >= since),
        ~_object(s.series_uid, _OBJECT_STATE.in_(ARRIVED), d.changed_at >= since),
        ~_object(s.series_uid, _uncommitted(kept)),
        # On the wire just now, or its sender died: who sends it will need the row.
        ~_object(s.series_uid, _OBJECT_STATE == "sending"),
    )


def _delete_results(connection: sa.Connection, which: sa.ColumnElement[bool]) -> None:
    """Result rows with their ledger and what was asked about them."""
    uids = sa.select(schema.result.c.sop_instance_uid).where(which)
    for table in (schema.commitment_object, schema.delivery, schema.result):
        connection.execute(sa.delete(table).where(table.c.sop_instance_uid.in_(uids)))
