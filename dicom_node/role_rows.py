"""Rows of the roles of all machines: when each was last alive, and whether it stopped in order."""

from __future__ import annotations

import sqlalchemy as sa

from dicom_node import schema
from dicom_node.rows import Row, Rows


class RoleRows(Rows):
    """Statements on roles. A role is told from another by its host, kind and name."""

    def role_beats(self, host: str, role: str, name: str, *, gap_s: float) -> None:
        """It lives. gap_s: after a longer silence than this its unbroken time begins anew."""
        now = self._now()
        r = schema.role_seen.c
        insert = self._insert(schema.role_seen).values(
            host=host, role=role, name=name, unbroken_since=now, seen_at=now, stopped_at=None
        )
        silent = sa.or_(r.seen_at < now - gap_s, r.seen_at > now, r.stopped_at.is_not(None))
        unbroken = sa.case((silent, now), else_=r.unbroken_since)
        values = {"unbroken_since": unbroken, "seen_at": now, "stopped_at": None}
        with self._begin() as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["host", "role", "name"], set_=values))

    def role_stopped(self, host: str, role: str, name: str) -> None:
        """It ended in order: nobody misses it."""
        r, now = schema.role_seen.c, self._now()
        this = sa.and_(r.host == host, r.role == role, r.name == name)
        with self._begin() as connection:
            connection.execute(sa.update(schema.role_seen).where(this).values(stopped_at=now))

    def roles_seen(self) -> list[Row]:
        """All that were ever alive, by machine."""
        r = schema.role_seen.c
        return self._all(sa.select(schema.role_seen).order_by(r.host, r.role, r.name))

    def roles_missing(self, since: float, *, not_before: float) -> list[Row]:
        """Those that were not seen since then, though another was all that time: so the database was there.

        not_before: what was seen last before that is forgotten, a machine that was given up.
        """
        r, other = schema.role_seen.c, schema.role_seen.alias().c
        witness = sa.select(other.host).where(other.unbroken_since <= since, other.seen_at >= since)
        return self._all(
            sa.select(schema.role_seen)
            .where(r.stopped_at.is_(None), r.seen_at < since, r.seen_at >= not_before, witness.exists())
            .order_by(r.host, r.role, r.name)
        )
