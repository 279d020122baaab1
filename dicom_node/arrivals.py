"""Durable files of received Instances -> their rows and those of their series, many in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from dicom_node import schema

Arrival = Literal["new", "same", "replaced"]
# SQLite takes 32766 parameters a statement; a row has nine.
_ROWS_A_STATEMENT = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedInstance:
    """A durable file and what its header says. `path` is relative to the storage root."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    study_uid: str
    series_uid: str
    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """An Instance and who sent it."""

    instance: ReceivedInstance
    source_ae: str
    source_ip: str


def record(
    connection: sa.Connection, insert: Callable[[sa.Table], Any], received: Sequence[Received], now: float
) -> list[Arrival]:
    """Rows of durable files, within the caller's transaction. A known Instance with equal bytes changes nothing.

    Of one Instance that is there twice the later one counts. The answers are in the order of `received`.
    """
    known = _known(connection, [one.instance.sop_instance_uid for one in received])
    arrivals: list[Arrival] = []
    changed: dict[str, Received] = {}
    for one in received:
        uid, state = one.instance.sop_instance_uid, (one.instance.sha256, one.instance.series_uid)
        arrivals.append("new" if uid not in known else "same" if known[uid] == state else "replaced")
        if arrivals[-1] != "same":
            known[uid], changed[uid] = state, one
    # Several processes record at once: rows are locked in one order, else PostgreSQL would find a deadlock.
    _upsert_instances(connection, insert, [changed[uid] for uid in sorted(changed)], now)
    _touch_series(connection, insert, changed.values(), now)
    return arrivals


def _known(connection: sa.Connection, uids: Sequence[str]) -> dict[str, tuple[str, str]]:
    i = schema.instance.c
    rows = connection.execute(sa.select(i.sop_instance_uid, i.sha256, i.series_uid).where(i.sop_instance_uid.in_(uids)))
    return {uid: (sha256, series_uid) for uid, sha256, series_uid in rows}


def _upsert_instances(
    connection: sa.Connection, insert: Callable[[sa.Table], Any], changed: Sequence[Received], now: float
) -> None:
    names = ReceivedInstance.__dataclass_fields__
    for at in range(0, len(changed), _ROWS_A_STATEMENT):
        rows = [
            {**{name: getattr(one.instance, name) for name in names}, "received_at": now}
            for one in changed[at : at + _ROWS_A_STATEMENT]
        ]
        statement = insert(schema.instance).values(rows)
        new = {name: statement.excluded[name] for name in (*names, "received_at") if name != "sop_instance_uid"}
        connection.execute(statement.on_conflict_do_update(index_elements=["sop_instance_uid"], set_=new))


def _touch_series(connection: sa.Connection, insert: Callable[[sa.Table], Any], changed: Any, now: float) -> None:
    for _, one in sorted({one.instance.series_uid: one for one in changed}.items()):
        statement = insert(schema.series).values(
            series_uid=one.instance.series_uid,
            study_uid=one.instance.study_uid,
            source_ae=one.source_ae,
            source_ip=one.source_ip,
            first_at=now,
            last_at=now,
            released=False,
            aborted=False,
        )
        latest = {"last_at": now, "released": False, "source_ae": one.source_ae, "source_ip": one.source_ip}
        connection.execute(statement.on_conflict_do_update(index_elements=["series_uid"], set_=latest))
