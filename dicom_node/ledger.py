"""The ledger: what became of each result at each destination.

Each change is one statement that names the old state it expects. No row changed means that somebody else owns the
row: StaleState. Everything here may be done twice.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class Ledger(Rows):
    """Statements on deliveries."""

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
