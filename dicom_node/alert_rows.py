"""Rows of alerts: what an operator should know of, and which channel was told of it. So a restart repeats nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from dicom_node import schema
from dicom_node.ledger import ARRIVED
from dicom_node.rows import Row, Rows

# An alert that is over is shown for so long.
_SHOWN_S = 7 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that an operator should know of. subject: tells it from others of its kind. No patient data in it."""

    kind: str
    subject: str
    text: str
    job_id: str | None = None


class AlertRows(Rows):
    """Statements on alerts, and on what they are made of."""

    # -- what there is -----------------------------------------------------------------------------

    def broken_jobs(self) -> list[Row]:
        """Jobs that failed or are parked."""
        j = schema.job.c
        return self._all(
            sa.select(j.job_id, j.state, j.reason, j.route).where(j.state.in_(("failed", "parked"))).order_by(j.job_id)
        )

    def running_since_before(self, before: float) -> list[Row]:
        """Jobs that run since then, and who runs them."""
        j = schema.job.c
        return self._all(
            sa.select(j.job_id, j.executor, j.started_at).where(j.state == "running", j.started_at < before)
        )

    def queued_since_before(self, before: float) -> list[Row]:
        """Jobs that wait since then: since they were made, or taken up again."""
        j, e = schema.job.c, schema.event.c
        again = sa.select(sa.func.max(e.at)).where(e.job_id == j.job_id, e.action == "job queued").scalar_subquery()
        since = sa.func.coalesce(again, j.created_at)
        return self._all(sa.select(j.job_id, since.label("since")).where(j.state == "queued", since < before))

    def undecided_since_before(self, before: float) -> list[Row]:
        """Series that brought their last instance before then and have yet to be decided on."""
        s = schema.series.c
        undecided = sa.or_(s.assembled_at.is_(None), s.last_at > s.assembled_at)
        return self._all(sa.select(s.series_uid, s.last_at.label("since")).where(undecided, s.last_at < before))

    def parked_objects(self) -> list[Row]:
        """Of each job and destination how many objects are parked."""
        d = schema.delivery.c
        count = sa.func.count().label("count")
        return self._all(
            sa.select(d.job_id, d.destination, count)
            .where(d.state == "parked")
            .group_by(d.job_id, d.destination)
            .order_by(d.job_id, d.destination)
        )

    def waiting_at(self) -> list[Row]:
        """Of each destination that something waits for: how many objects, and the oldest since when."""
        d = schema.delivery.c
        return self._all(
            sa.select(d.destination, sa.func.count().label("count"), sa.func.min(d.created_at).label("since"))
            .where(d.state.in_(("waiting", "sending", "unknown")))
            .group_by(d.destination)
        )

    def arrived_since(self, destination: str, since: float) -> bool:
        """Whether anything arrived at this destination since then."""
        d = schema.delivery.c
        arrived = sa.select(d.job_id).where(d.destination == destination, d.changed_at >= since, d.state.in_(ARRIVED))
        return self._one(arrived.limit(1)) is not None

    # -- what was seen -----------------------------------------------------------------------------

    def alerts(self) -> list[Row]:
        """All that hold, and those that are over since a short time; newest first."""
        a = schema.alert.c
        return self._all(sa.select(schema.alert).order_by(a.ended_at.is_not(None), a.since.desc(), a.kind, a.subject))

    def alerts_seen(self, problems: Iterable[Problem], *, over_after_s: float) -> None:
        """All that holds now, since when, and what does not hold any more.

        What comes back within `over_after_s` was never over.
        """
        a, now = schema.alert.c, self._now()
        seen = {(problem.kind, problem.subject): problem for problem in problems}
        known = {(row["kind"], row["subject"]): row for row in self.alerts()}
        changed = [
            key for key, problem in seen.items()
            if key not in known or known[key]["ended_at"] is not None or known[key]["text"] != problem.text
        ]  # fmt: skip
        ended = [key for key, row in known.items() if row["ended_at"] is None and key not in seen]
        old = [key for key, row in known.items() if row["ended_at"] is not None and row["ended_at"] < now - _SHOWN_S]
        if not (changed or ended or old):
            return
        with self._begin() as connection:
            for key in changed:
                self._put(connection, seen[key], known.get(key), now, over_after_s)
            for kind, subject in ended:
                this = sa.and_(a.kind == kind, a.subject == subject)
                connection.execute(sa.update(schema.alert).where(this).values(ended_at=now))
            for kind, subject in set(old) - seen.keys():
                for table in (schema.alert_notice, schema.alert):
                    this = sa.and_(table.c.kind == kind, table.c.subject == subject)
                    connection.execute(sa.delete(table).where(this))

    def _put(
        self, connection: sa.Connection, problem: Problem, known: Row | None, now: float, over_after_s: float
    ) -> None:
        anew = known is None or (known["ended_at"] is not None and known["ended_at"] < now - over_after_s)
        values = {
            "text": problem.text,
            "job_id": problem.job_id,
            "since": now if known is None or anew else known["since"],
            "ended_at": None,
        }
        insert = self._insert(schema.alert).values(kind=problem.kind, subject=problem.subject, **values)
        connection.execute(insert.on_conflict_do_update(index_elements=["kind", "subject"], set_=values))

    # -- who was told ------------------------------------------------------------------------------

    def alerts_for(self, channel: str) -> list[Row]:
        """All alerts, each with `told_at`, when this channel was told of it last: null where it was not."""
        a, n = schema.alert.c, schema.alert_notice.c
        told = sa.and_(n.kind == a.kind, n.subject == a.subject, n.channel == channel)
        return self._all(
            sa.select(schema.alert, n.sent_at.label("told_at"))
            .select_from(sa.outerjoin(schema.alert, schema.alert_notice, told))
            .order_by(a.since, a.kind, a.subject)
        )

    def alert_notices(self) -> list[Row]:
        """Which channels know of which alerts."""
        n = schema.alert_notice.c
        return self._all(sa.select(schema.alert_notice).order_by(n.kind, n.subject, n.channel))

    def alert_channels(self) -> list[Row]:
        """How each channel is, by kind of alert."""
        c = schema.alert_channel.c
        return self._all(sa.select(schema.alert_channel).order_by(c.channel, c.kind))

    def alerts_told(self, channel: str, kind: str, *, raised: Collection[str], over: Collection[str]) -> None:
        """The channel took a message: these subjects hold, those are over."""
        n, now = schema.alert_notice.c, self._now()
        with self._begin() as connection:
            for subject in raised:
                row = {"channel": channel, "kind": kind, "subject": subject, "sent_at": now}
                insert = self._insert(schema.alert_notice).values(row)
                keys = ["channel", "kind", "subject"]
                connection.execute(insert.on_conflict_do_update(index_elements=keys, set_={"sent_at": now}))
            for subject in over:
                this = sa.and_(n.channel == channel, n.kind == kind, n.subject == subject)
                connection.execute(sa.delete(schema.alert_notice).where(this))
            self._channel(connection, channel, kind, {"sent_at": now, "failures": 0})
            works = sa.update(schema.alert_channel).where(schema.alert_channel.c.channel == channel)
            connection.execute(works.values(failures=0, error=None))
            self._event(connection, "alert sent", channel=channel, kind=kind, raised=len(raised), over=len(over))

    def alert_failed(self, channel: str, kind: str, error: str) -> None:
        """The channel did not take a message."""
        c, now = schema.alert_channel.c, self._now()
        with self._begin() as connection:
            this = sa.select(c.failures).where(c.channel == channel, c.kind == kind)
            failures = connection.execute(this).scalar() or 0
            values = {"failed_at": now, "failures": failures + 1, "error": error}
            self._channel(connection, channel, kind, values)

    def _channel(self, connection: sa.Connection, channel: str, kind: str, values: Mapping[str, object]) -> None:
        insert = self._insert(schema.alert_channel).values(channel=channel, kind=kind, **values)
        connection.execute(insert.on_conflict_do_update(index_elements=["channel", "kind"], set_=values))
