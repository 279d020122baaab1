"""Rows of Storage Commitment (PS3.4 J), both ways: what we ask of destinations, and what peers ask of us.

A transaction is in its row before the request leaves, and what a destination answers is committed before it hears
Success, so neither a crash nor an answer that comes hours later loses anything.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa

from dicom_node import schema
from dicom_node.errors import StaleState
from dicom_node.rows import Row, Rows

Word = Literal["taken", "repeated", "unknown", "foreign", "strange"]

# A destination that stores an object and says so often that it does not keep it needs an operator.
MOST_ROUNDS = 3
# PS3.3 C.14.1.1.
_DUPLICATE_TRANSACTION = 0x0131


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What a destination's report changed. word: taken; repeated: known already; unknown: no transaction of ours;
    foreign: one that another destination was asked; strange: nothing in it was asked about. strangers: references that
    were not. Of what was taken: the destination, when it was asked and answered, and the jobs whose objects changed."""

    word: Word
    committed: int = 0
    again: int = 0
    parked: int = 0
    strangers: int = 0
    destination: str = field(default="", compare=False)
    asked_at: float = field(default=0.0, compare=False)
    answered_at: float = field(default=0.0, compare=False)
    jobs: frozenset[str] = field(default=frozenset(), compare=False)


class Commitments(Rows):
    """Statements on transactions of Storage Commitment and on the deliveries that they are about."""

    # -- what we ask -------------------------------------------------------------------------------

    def uncommitted(self, destination: str, *, limit: int) -> list[Row]:
        """Stored objects that this destination is to be asked about now, oldest first."""
        d = schema.delivery.c
        return self._all(
            sa.select(schema.delivery, schema.result.c.sop_class_uid, schema.result.c.kind)
            .join(schema.result, schema.result.c.sop_instance_uid == d.sop_instance_uid)
            .where(
                d.destination == destination,
                d.state == "stored",
                sa.or_(d.commit_due_at.is_(None), d.commit_due_at <= self._now()),
            )
            .order_by(d.changed_at)
            .limit(limit)
        )

    def begin_commitment(
        self, transaction_uid: str, destination: str, sop_instance_uids: Sequence[str], *, next_s: float
    ) -> None:
        """The transaction, before its request leaves. Without a word the objects are due again after `next_s`."""
        now = self._now()
        c, o = schema.commitment.c, schema.commitment_object.c
        about = sa.select(o.transaction_uid).where(o.sop_instance_uid.in_(sop_instance_uids))
        with self._begin() as connection:
            connection.execute(
                sa.update(schema.commitment)
                .where(c.destination == destination, c.state.in_(("asking", "asked")), c.transaction_uid.in_(about))
                .values(state="lapsed", changed_at=now)
            )
            # No word can come on what was refused: it would only pile up.
            gone = sa.select(c.transaction_uid).where(
                c.destination == destination, c.state == "refused", c.transaction_uid.in_(about)
            )
            refused = list(connection.execute(gone).scalars())
            connection.execute(sa.delete(schema.commitment_object).where(o.transaction_uid.in_(refused)))
            connection.execute(sa.delete(schema.commitment).where(c.transaction_uid.in_(refused)))
            connection.execute(
                sa.insert(schema.commitment).values(
                    transaction_uid=transaction_uid,
                    destination=destination,
                    state="asking",
                    created_at=now,
                    changed_at=now,
                )
            )
            rows = [{"transaction_uid": transaction_uid, "sop_instance_uid": uid} for uid in sop_instance_uids]
            connection.execute(sa.insert(schema.commitment_object), rows)
            self._set_due(connection, destination, sop_instance_uids, now + next_s)

    def commitment_asked(self, transaction_uid: str) -> None:
        """The destination took the request. Where its report was quicker, that stands."""
        self._move_commitment(transaction_uid, ("asking",), "asked", message=None)

    def commitment_refused(self, transaction_uid: str, message: str, *, taken: bool, next_s: float) -> None:
        """The destination did not take the request, or (`taken`) may have taken it and did not say so: then a word on
        it counts. Its objects are due again after `next_s`."""
        c, o = schema.commitment.c, schema.commitment_object.c
        with self._begin() as connection:
            row = connection.execute(sa.select(schema.commitment).where(c.transaction_uid == transaction_uid)).one()
            if row.state != "asking":
                return  # its report came all the same
            connection.execute(
                sa.update(schema.commitment)
                .where(c.transaction_uid == transaction_uid)
                .values(state="asked" if taken else "refused", changed_at=self._now(), message=_plain(message))
            )
            uids = connection.execute(sa.select(o.sop_instance_uid).where(o.transaction_uid == transaction_uid))
            self._set_due(connection, row.destination, list(uids.scalars()), self._now() + next_s)

    def commitments_due_again(self) -> None:
        """A process died while it asked: the objects are due now, and a word on what it asked still counts."""
        c, o, d = schema.commitment.c, schema.commitment_object.c, schema.delivery.c
        pairs = (
            sa.select(o.sop_instance_uid)
            .join(schema.commitment, c.transaction_uid == o.transaction_uid)
            .where(c.state == "asking", c.destination == d.destination, o.sop_instance_uid == d.sop_instance_uid)
        )
        with self._begin() as connection:
            connection.execute(
                sa.update(schema.delivery).where(d.state == "stored", pairs.exists()).values(commit_due_at=self._now())
            )
            connection.execute(sa.update(schema.commitment).where(c.state == "asking").values(state="lapsed"))

    def _move_commitment(
        self, transaction_uid: str, expected: Sequence[str], state: str, *, message: str | None
    ) -> None:
        c = schema.commitment.c
        with self._begin() as connection:
            connection.execute(
                sa.update(schema.commitment)
                .where(c.transaction_uid == transaction_uid, c.state.in_(expected))
                .values(state=state, changed_at=self._now(), message=message)
            )

    def _set_due(
        self, connection: sa.Connection, destination: str, sop_instance_uids: Sequence[str], due_at: float
    ) -> None:
        d = schema.delivery.c
        connection.execute(
            sa.update(schema.delivery)
            .where(d.destination == destination, d.sop_instance_uid.in_(sop_instance_uids), d.state == "stored")
            .values(commit_due_at=due_at)
        )

    # -- what destinations answer ------------------------------------------------------------------

    def settle_commitment(
        self,
        transaction_uid: str,
        reporters: Collection[str],
        reasons: Mapping[tuple[str, str], int],
    ) -> Settled:
        """Record a report, committed on return. The same report again changes nothing.

        reporters: the peers that the reporting one may be by its AE title and address.
        reasons: (SOP Class UID, SOP Instance UID) -> 0 where it is kept, else the Failure Reason.
        """
        c = schema.commitment.c
        with self._begin() as connection:
            query = sa.select(schema.commitment).where(c.transaction_uid == transaction_uid).with_for_update()
            known = connection.execute(query).one_or_none()
            if known is None:
                return Settled(word="unknown")
            if known.destination not in reporters:
                return Settled(word="foreign")
            asked = self._asked_about(connection, known)
            ours = {pair: row for row in asked if (pair := (row["sop_class_uid"], row["sop_instance_uid"])) in reasons}
            fresh = {pair: row for pair, row in ours.items() if row["reason"] is None}
            strangers = len(reasons) - len(ours)
            if not fresh:
                return Settled(word="repeated" if ours else "strange", strangers=strangers)
            connection.execute(
                sa.update(schema.commitment)
                .where(c.transaction_uid == transaction_uid)
                .values(state="answered", changed_at=self._now(), message=None)
            )
            counts, jobs = {"committed": 0, "waiting": 0, "parked": 0}, set()
            for pair, row in fresh.items():
                state = self._settle_object(connection, row, transaction_uid, reasons[pair])
                if state is not None:
                    counts[state] += 1
                    jobs.add(row["job_id"])
        return Settled(
            word="taken",
            committed=counts["committed"],
            again=counts["waiting"],
            parked=counts["parked"],
            strangers=strangers,
            destination=known.destination,
            asked_at=known.created_at,
            answered_at=self._now(),
            jobs=frozenset(jobs),
        )

    def _asked_about(self, connection: sa.Connection, known: Any) -> list[Row]:
        o, d = schema.commitment_object.c, schema.delivery.c
        query = (
            sa.select(schema.delivery, o.reason, schema.result.c.sop_class_uid, schema.result.c.kind)
            .join(schema.commitment_object, o.sop_instance_uid == d.sop_instance_uid)
            .join(schema.result, schema.result.c.sop_instance_uid == d.sop_instance_uid)
            .where(o.transaction_uid == known.transaction_uid, d.destination == known.destination)
        )
        return list(connection.execute(query).mappings())

    def _settle_object(
        self, connection: sa.Connection, row: Row, transaction_uid: str, reason: int
    ) -> Literal["committed", "waiting", "parked"] | None:
        """The ledger's new state; None where it stays, or is not `stored` any more: the word came too late."""
        o, d = schema.commitment_object.c, schema.delivery.c
        connection.execute(
            sa.update(schema.commitment_object)
            .where(o.transaction_uid == transaction_uid, o.sop_instance_uid == row["sop_instance_uid"])
            .values(reason=reason)
        )
        if reason == _DUPLICATE_TRANSACTION:
            return None  # says nothing of the object: it is asked about again when it is due
        rounds = row["commit_rounds"] + (reason != 0)
        state: Literal["committed", "waiting", "parked"] = "committed"
        if reason:
            state = "parked" if rounds >= MOST_ROUNDS else "waiting"
        done = connection.execute(
            sa.update(schema.delivery)
            .where(
                d.sop_instance_uid == row["sop_instance_uid"],
                d.destination == row["destination"],
                d.state == "stored",
            )
            .values(
                state=state,
                changed_at=self._now(),
                commit_due_at=None,
                commit_rounds=rounds,
                **self._not_kept(reason, rounds),
            )
        )
        if not done.rowcount:
            return None
        if reason:
            self._outdated(connection, row, reason)
        action = "delivery committed" if state == "committed" else f"not kept, {state}"
        details = {"reason": f"0x{reason:04X}"} if reason else {}
        self._event(
            connection, action, job_id=row["job_id"], destination=row["destination"], kind=row["kind"], **details
        )
        return state

    def _outdated(self, connection: sa.Connection, row: Row, reason: int) -> None:
        """What was asked before an object is sent again says nothing of what is stored then."""
        c, o = schema.commitment.c, schema.commitment_object.c
        asked = sa.select(c.transaction_uid).where(c.destination == row["destination"])
        connection.execute(
            sa.update(schema.commitment_object)
            .where(o.sop_instance_uid == row["sop_instance_uid"], o.reason.is_(None), o.transaction_uid.in_(asked))
            .values(reason=reason)
        )

    def _not_kept(self, reason: int, rounds: int) -> dict[str, Any]:
        """What changes with an object that is not kept: the clock of its delivery starts anew, too."""
        if not reason:
            return {}
        return {"message": not_kept(reason, rounds), "created_at": self._now(), "attempts": 0}

    def to_send_again(self) -> list[Row]:
        """Job and destination of what a destination did not keep and nobody has begun to send again; the round, and
        when it was said last."""
        d = schema.delivery.c
        latest = sa.func.max(d.commit_rounds).label("round"), sa.func.max(d.created_at).label("said_at")
        return self._all(
            sa.select(d.job_id, d.destination, *latest, schema.job.c.priority)
            .join(schema.job, schema.job.c.job_id == d.job_id)
            .where(d.state == "waiting", d.commit_rounds > 0)
            .group_by(d.job_id, d.destination, schema.job.c.priority)
        )

    def commitments(self, job_id: str) -> list[Row]:
        """The transactions that were about a job's objects, oldest first."""
        c, o, r = schema.commitment.c, schema.commitment_object.c, schema.result.c
        about = (
            sa.select(o.transaction_uid)
            .join(schema.result, r.sop_instance_uid == o.sop_instance_uid)
            .where(r.job_id == job_id)
        )
        return self._all(sa.select(schema.commitment).where(c.transaction_uid.in_(about)).order_by(c.created_at))

    # -- what we are asked -------------------------------------------------------------------------

    def record_commit_request(
        self, peer: str, transaction_uid: str, objects: Sequence[tuple[str, str]], *, due_s: float
    ) -> None:
        """A peer's request, committed on return; its report is due elsewhere after `due_s`. Again: reported again."""
        now = self._now()
        values: dict[str, Any] = {
            "objects": [list(pair) for pair in objects],
            "state": "due",
            "attempts": 0,
            "created_at": now,
            "due_at": now + due_s,
            "message": None,
        }
        insert = self._insert(schema.commit_request).values(peer=peer, transaction_uid=transaction_uid, **values)
        with self._begin() as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["peer", "transaction_uid"], set_=values))

    def commit_request(self, peer: str, transaction_uid: str) -> Row | None:
        r = schema.commit_request.c
        return self._one(sa.select(schema.commit_request).where(r.peer == peer, r.transaction_uid == transaction_uid))

    def commit_requests_due(self, *, limit: int = 100) -> list[Row]:
        """Requests whose report is due on an Association of our own, longest due first."""
        r = schema.commit_request.c
        return self._all(
            sa.select(schema.commit_request)
            .where(r.state == "due", r.due_at <= self._now())
            .order_by(r.due_at)
            .limit(limit)
        )

    def commit_reported(self, peer: str, transaction_uid: str) -> None:
        """due -> reported. Raises StaleState."""
        self._move_request(peer, transaction_uid, {"state": "reported", "message": None})

    def commit_report_failed(self, peer: str, transaction_uid: str, message: str, *, again_s: float | None) -> None:
        """An attempt to report that did not reach the peer; the last one where `again_s` is None."""
        r = schema.commit_request.c
        changed = {"state": "given up"} if again_s is None else {"due_at": self._now() + again_s}
        self._move_request(peer, transaction_uid, {**changed, "message": _plain(message), "attempts": r.attempts + 1})

    def commit_reports_wait(self, peer: str, *, again_s: float) -> None:
        """The peer can't be reached: whatever else is due to it waits as long, and holds up no other's report."""
        r, now = schema.commit_request.c, self._now()
        with self._begin() as connection:
            connection.execute(
                sa.update(schema.commit_request)
                .where(r.peer == peer, r.state == "due", r.due_at <= now)
                .values(due_at=now + again_s, attempts=r.attempts + 1)
            )

    def commit_report_due(self, peer: str, transaction_uid: str) -> None:
        """The Association that asked is over without its report: it is due on one of our own, at once."""
        self._move_request(peer, transaction_uid, {"due_at": self._now()})

    def _move_request(self, peer: str, transaction_uid: str, values: Mapping[str, Any]) -> None:
        r = schema.commit_request.c
        with self._begin() as connection:
            done = connection.execute(
                sa.update(schema.commit_request)
                .where(r.peer == peer, r.transaction_uid == transaction_uid, r.state == "due")
                .values(**values)
            )
            if not done.rowcount:
                raise StaleState(f"no report on {transaction_uid} is due to {peer}")

    def instances_by_uid(self, sop_instance_uids: Collection[str]) -> dict[str, Row]:
        """The rows of received Instances among these."""
        i = schema.instance.c
        uids = sorted(set(sop_instance_uids))
        found: dict[str, Row] = {}
        for at in range(0, len(uids), 500):  # SQLite takes 999 values in a statement of some builds
            rows = self._all(sa.select(schema.instance).where(i.sop_instance_uid.in_(uids[at : at + 500])))
            found |= {row["sop_instance_uid"]: row for row in rows}
        return found


def not_kept(reason: int, rounds: int) -> str:
    """What the ledger says of an object that its destination stored and does not keep (PS3.3 C.14.1.1)."""
    known = {
        0x0110: "processing failure",
        0x0112: "no such object instance",
        0x0119: "class and instance conflict",
        0x0122: "SOP Class not supported",
        0x0213: "resource limitation",
    }
    what = known.get(reason, "unknown reason")
    times = "once" if rounds == 1 else f"{rounds} times"
    return f"the peer stored it and does not keep it: {what} (0x{reason:04X}), {times}"


def _plain(text: str) -> str:
    return text.replace("\0", "")
