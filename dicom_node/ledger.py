"""The ledger: what became of each result at each destination; and what may be purged because of it.

Each change is one statement that names the old state it expects. No row changed means that somebody else owns the
row: StaleState. Everything here may be done twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from dicom_node import schema
from dicom_node.errors import StaleState
from dicom_node.profiles import KINDS
from dicom_node.rows import Row, Rows

# What a destination took. committed: it also says that it keeps it (Storage Commitment).
ARRIVED = ("stored", "committed")
# What is referred to goes before what refers to it.
SENDING_ORDER = sa.case({kind: place for place, kind in enumerate(KINDS)}, value=schema.result.c.kind)
# config.PullConfig.since_h is at most a year.
_LONGEST_LOOK_BACK_S = 366 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What `stored` is worth. committing: destinations that are asked for Storage Commitment: there, what is stored
    and was stored at or after `uncommitted_before` still is ours to keep."""

    committing: tuple[str, ...] = ()
    uncommitted_before: float = 0.0


class Ledger(Rows):
    """Statements on deliveries, and the purge of what is delivered."""

    def deliveries(self, job_id: str, destination: str | None = None) -> list[Row]:
        """Ledger rows with what is needed to send them, in the order of sending."""
        query = (
            sa.select(schema.delivery, schema.result.c.path, schema.result.c.kind, schema.result.c.sop_class_uid)
            .join(schema.result, schema.result.c.sop_instance_uid == schema.delivery.c.sop_instance_uid)
            .where(schema.delivery.c.job_id == job_id)
            .order_by(schema.delivery.c.destination, SENDING_ORDER, schema.result.c.path)
        )
        if destination is not None:
            query = query.where(schema.delivery.c.destination == destination)
        return self._all(query)

    def move_delivery(
        self,
        sop_instance_uid: str,
        destination: str,
        expected: Sequence[str],
        state: str,
        *,
        status: int | None = None,
        message: str | None = None,
        attempt: bool = False,
    ) -> None:
        d = schema.delivery.c
        values: dict[str, Any] = {"state": state, "changed_at": self._now()}
        values |= {"attempts": d.attempts + 1} if attempt else {"status": status, "message": message}
        with self._begin() as connection:
            done = connection.execute(
                sa.update(schema.delivery)
                .where(
                    d.sop_instance_uid == sop_instance_uid,
                    d.destination == destination,
                    d.state.in_(expected),
                )
                .values(**values)
            )
            if not done.rowcount:
                raise StaleState(f"object {sop_instance_uid} for {destination} is not {' or '.join(expected)}")

    def retry_deliveries(self, job_id: str) -> list[str]:
        """parked or cancelled -> waiting. All destinations that have not stored everything yet."""
        d = schema.delivery.c
        now = self._now()
        # A fresh start: of the clock that parks what waited too long, of the growing waits, and of the rounds of a
        # destination that stores an object and then does not keep it.
        fresh = {"created_at": now, "attempts": 0, "commit_rounds": 0}
        with self._begin() as connection:
            connection.execute(
                sa.update(schema.delivery)
                .where(d.job_id == job_id, d.state.in_(("parked", "cancelled")))
                .values(state="waiting", changed_at=now, **fresh)
            )
            left = sa.select(d.destination).where(d.job_id == job_id, d.state.not_in(ARRIVED)).distinct()
            return sorted(connection.execute(left).scalars())

    def send_again(self, job_id: str, destination: str | None = None) -> list[str]:
        """All that is not on the wire just now -> waiting; the destinations that have something to get."""
        d, now = schema.delivery.c, self._now()
        mine = (
            (d.job_id == job_id) if destination is None else sa.and_(d.job_id == job_id, d.destination == destination)
        )
        fresh = {"created_at": now, "attempts": 0, "commit_rounds": 0, "commit_due_at": None}
        with self._begin() as connection:
            # What a destination said of an object before, that it keeps it or not, is not said of what comes now.
            again = sa.select(d.sop_instance_uid).where(mine, d.state != "sending")
            asked = schema.commitment_object.c.sop_instance_uid
            connection.execute(sa.delete(schema.commitment_object).where(asked.in_(again)))
            connection.execute(
                sa.update(schema.delivery)
                .where(mine, d.state != "sending")
                .values(state="waiting", changed_at=now, **fresh)
            )
            waiting = sa.select(d.destination).where(mine, d.state == "waiting").distinct()
            return sorted(connection.execute(waiting).scalars())

    def cancel_deliveries(self, job_id: str) -> int:
        """waiting, unknown or parked -> cancelled. What is on the wire just now is not touched."""
        d = schema.delivery.c
        with self._begin() as connection:
            done = connection.execute(
                sa.update(schema.delivery)
                .where(d.job_id == job_id, d.state.in_(("waiting", "unknown", "parked")))
                .values(state="cancelled", changed_at=self._now())
            )
        return int(done.rowcount)

    def object_counts(self, job_ids: Sequence[str]) -> dict[str, dict[str, int]]:
        """Of each job how many deliveries are in which state; jobs without any are left out."""
        d, count = schema.delivery.c, sa.func.count().label("count")
        query = sa.select(d.job_id, d.state, count).where(d.job_id.in_(job_ids)).group_by(d.job_id, d.state)
        counts: dict[str, dict[str, int]] = {}
        for row in self._all(query.order_by(d.job_id, d.state)):
            counts.setdefault(row["job_id"], {})[row["state"]] = int(row["count"])
        return counts

    # -- purge -------------------------------------------------------------------------------------

    def purgeable_series(self, before: float, kept: Kept | None = None) -> list[str]:
        """Series that brought nothing new and whose jobs all ended before `before`, with nothing left to deliver, and
        nothing that a destination stored but may yet lose."""
        query = self._purgeable(before, kept or Kept())
        return [row["series_uid"] for row in self._all(query.order_by(schema.series.c.first_at))]

    def held_series(self, before: float, kept: Kept) -> list[tuple[str, dict[str, int]]]:
        """Series of that age that a purge leaves alone, and why: each reason with how many objects or jobs it has."""
        s = schema.series.c
        free = self._purgeable(before, kept).subquery()
        old = sa.select(s.series_uid).where(s.last_at < before, s.series_uid.not_in(sa.select(free.c.series_uid)))
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
            .where(j.series_uid == series_uid, _unsafe(kept))
            .group_by(d.destination, d.state)
            .order_by(d.destination, d.state)
        )
        for row in self._all(objects):
            state = "stored, not committed" if row["state"] == "stored" else row["state"]
            reasons[f"{state} at {row['destination']}"] = int(row["count"])
        return reasons or {"changed since, or not decided on yet": 1}

    def _purgeable(self, before: float, kept: Kept) -> sa.Select[Any]:
        j, d, s = schema.job.c, schema.delivery.c, schema.series.c
        unfinished = sa.select(j.job_id).where(
            j.series_uid == s.series_uid, sa.or_(j.finished_at.is_(None), j.finished_at >= before)
        )
        unsafe = (
            sa.select(d.job_id)
            .join(schema.job, j.job_id == d.job_id)
            .where(j.series_uid == s.series_uid, _unsafe(kept))
        )
        broken = sa.select(j.job_id).where(j.series_uid == s.series_uid, j.state.in_(("failed", "parked")))
        return sa.select(s.series_uid).where(
            s.assembled_at.is_not(None),
            s.last_at < before,
            s.last_at <= s.assembled_at,
            ~unfinished.exists(),
            ~unsafe.exists(),
            ~broken.exists(),
        )

    def purge_series(
        self, series_uid: str, before: float, remove_files: Callable[[], None], kept: Kept | None = None
    ) -> bool:
        """All rows of one series, if it still is purgeable; False when it brought something new meanwhile.

        remove_files is called while nobody else can write the series' row, before the commit.
        """
        jobs = sa.select(schema.job.c.job_id).where(schema.job.c.series_uid == series_uid)
        still = self._purgeable(before, kept or Kept()).where(schema.series.c.series_uid == series_uid)
        with self._begin() as connection:
            if connection.execute(still.with_for_update()).first() is None:
                return False
            _delete_results(connection, schema.result.c.job_id.in_(jobs))
            for of_job in (schema.finding, schema.prior):
                connection.execute(sa.delete(of_job).where(of_job.c.job_id.in_(jobs)))
            for table in (schema.job, schema.instance, schema.carrier, schema.series):
                connection.execute(sa.delete(table).where(table.c.series_uid == series_uid))
            # That it was pulled stays known; the route that a pull named counts no more.
            pulled = sa.update(schema.pulled).where(schema.pulled.c.series_uid == series_uid)
            connection.execute(pulled.values(route=None))
            self._event(connection, "series purged", series_uid=series_uid)
            remove_files()
        return True

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


def _unsafe(kept: Kept) -> sa.ColumnElement[bool]:
    """Deliveries whose object must stay: not there yet, or stored by a peer that has yet to say that it keeps it."""
    d = schema.delivery.c
    uncommitted = sa.and_(
        d.state == "stored", d.destination.in_(kept.committing), d.changed_at >= kept.uncommitted_before
    )
    return sa.or_(d.state.not_in((*ARRIVED, "cancelled")), uncommitted)


def _delete_results(connection: sa.Connection, which: sa.ColumnElement[bool]) -> None:
    """Result rows with their ledger and what was asked about them."""
    uids = sa.select(schema.result.c.sop_instance_uid).where(which)
    for table in (schema.commitment_object, schema.delivery, schema.result):
        connection.execute(sa.delete(table).where(table.c.sop_instance_uid.in_(uids)))
