"""Rows of what was pulled, of the routes that pulls named, and of the rounds of scheduled pulls."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from dicom_node import schema
from dicom_node.rows import Row, Rows


class Pulls(Rows):
    """Statements on pulls."""

    def pull_asked(self, series_uid: str, *, study_uid: str, peer: str, route: str | None, there: int) -> None:
        """A series is about to be fetched; from now on `route` decides for it. Before its first Instance comes."""
        now = self._now()
        values = {
            "study_uid": study_uid,
            "peer": peer,
            "route": route,
            "there": there,
            "asked_at": now,
            "done_at": None,
        }
        insert = self._insert(schema.pulled).values(series_uid=series_uid, attempts=0, **values)
        with self._begin() as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["series_uid"], set_=values))
            self._event(connection, "pull asked", series_uid=series_uid, peer=peer, there=there)

    def pull_done(self, series_uid: str, *, here: int) -> None:
        """All Instances that the peer has are here."""
        with self._begin() as connection:
            connection.execute(
                sa.update(schema.pulled)
                .where(schema.pulled.c.series_uid == series_uid)
                .values(done_at=self._now(), attempts=0)
            )
            self._event(connection, "pull done", series_uid=series_uid, here=here)

    def pull_failed(self, series_uid: str, *, here: int, problem: str, reached: bool) -> None:
        """Not all came. It counts as an attempt where the peer was reached: else the series is not to blame."""
        p = schema.pulled.c
        with self._begin() as connection:
            if reached:
                connection.execute(
                    sa.update(schema.pulled).where(p.series_uid == series_uid).values(attempts=p.attempts + 1)
                )
            self._event(connection, "pull failed", series_uid=series_uid, here=here, problem=problem)

    def pulled(self, series_uids: Sequence[str]) -> dict[str, Row]:
        """By Series Instance UID."""
        rows: dict[str, Row] = {}
        # SQLite takes a limited number of parameters in one statement.
        for start in range(0, len(series_uids), 500):
            part = series_uids[start : start + 500]
            found = self._all(sa.select(schema.pulled).where(schema.pulled.c.series_uid.in_(part)))
            rows |= {row["series_uid"]: row for row in found}
        return rows

    def pulled_route(self, series_uid: str) -> Row | None:
        """The row of a series for which a pull named the route."""
        p = schema.pulled.c
        return self._one(sa.select(schema.pulled).where(p.series_uid == series_uid, p.route.is_not(None)))

    def instance_count(self, series_uid: str) -> int:
        """How many Instances of a series are here."""
        i = schema.instance.c
        [row] = self._all(sa.select(sa.func.count().label("here")).where(i.series_uid == series_uid))
        return int(row["here"])

    # -- scheduled pulls ---------------------------------------------------------------------------

    def has_table(self, name: str) -> bool:
        """False before the first start, and before the first start of this version."""
        return sa.inspect(self.engine).has_table(name)

    def pull_round(self, name: str) -> Row | None:
        """The last round, as it began or ended."""
        return self._one(sa.select(schema.pull_round).where(schema.pull_round.c.name == name))

    def pull_round_began(self, name: str) -> None:
        values = {"started_at": self._now(), "ended_at": None, "fetched": 0, "left_over": 0, "problem": None}
        insert = self._insert(schema.pull_round).values(name=name, **values)
        with self._begin() as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_=values))

    def pull_round_ended(self, name: str, *, fetched: int, left_over: int, problem: str | None) -> None:
        with self._begin() as connection:
            connection.execute(
                sa.update(schema.pull_round)
                .where(schema.pull_round.c.name == name)
                .values(ended_at=self._now(), fetched=fetched, left_over=left_over, problem=problem)
            )
            if fetched or problem:
                self._event(connection, "pull round", pull=name, fetched=fetched, left=left_over, problem=problem)
