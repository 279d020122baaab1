"""Rows, settings and disk -> today: what came, waits, runs and ended since midnight; disk; destinations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from dicom_node import schema
from dicom_node.db import FINISHED, Database
from dicom_node.ledger import ARRIVED
from dicom_node.storage import Storage
from dicom_node.web.answers.form import Form, midnight, moment, when
from dicom_node.web.answers.peers import Destination, destination
from dicom_node.web.answers.statements import rows_of, value_of
from dicom_node.web.node import Node


class Percentiles(Form):
    """Of `count` values, in seconds; null where there is none."""

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


class Counts(Form):
    """Since `since`: series that came, and jobs by how they ended. waiting, running, arriving: now.

    received: series that brought an image. arriving: those of all times that are not decided on yet.
    delivered: complete, and every destination has every object. undelivered: complete, and not that.
    failed: failed or parked. attention: failed or parked jobs of all times. oldest_waiting_at: when the job was made
    that waits longest. last_image_to_result: of the jobs that completed.
    """

    since: datetime
    received: int
    arriving: int
    waiting: int
    running: int
    delivered: int
    undelivered: int
    failed: int
    rejected: int
    attention: int
    oldest_waiting_at: datetime | None
    last_image_to_result: Percentiles


class Disk(Form):
    """free_bytes: null where the storage root is away. least_bytes: below it, nothing is accepted."""

    free_bytes: int | None
    least_bytes: int
    accepts: bool


class Today(Counts):
    """The counts since midnight, in the node's own time zone, with disk and destinations as they are now."""

    disk: Disk
    destinations: list[Destination]


def today(node: Node) -> Today:
    since = midnight(node.now())
    receiving = [name for name, peer in node.config.peers.items() if peer.can_receive]
    return Today(
        **dict(counts(node.database, since)),
        disk=_disk(node.storage, round(node.config.storage.min_free_gb * 1e9)),
        destinations=[destination(node.database, name, since) for name in receiving],
    )


def counts(database: Database, since: float) -> Counts:
    j, s = schema.job.c, schema.series.c
    ended = _by_state(database, j.state.in_(FINISHED), j.finished_at >= since)
    there = _by_state(database, j.state.in_(("queued", "running", "failed", "parked")))
    undelivered, series = _undelivered(database, since), sa.select(sa.func.count()).select_from(schema.series)
    return Counts(
        since=moment(since),
        received=int(value_of(database, series.where(s.last_at >= since))),
        arriving=int(value_of(database, series.where(schema.ARRIVING))),
        waiting=there.get("queued", 0),
        running=there.get("running", 0),
        delivered=ended.get("complete", 0) - undelivered,
        undelivered=undelivered,
        failed=ended.get("failed", 0) + ended.get("parked", 0),
        rejected=ended.get("rejected", 0),
        attention=there.get("failed", 0) + there.get("parked", 0),
        oldest_waiting_at=when(value_of(database, sa.select(sa.func.min(j.created_at)).where(j.state == "queued"))),
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
    return Percentiles.of([float(row["seconds"]) for row in rows_of(database, query)])


def _by_state(database: Database, *where: sa.ColumnElement[bool]) -> dict[str, int]:
    j = schema.job.c
    query = sa.select(j.state, sa.func.count().label("count")).where(*where).group_by(j.state)
    return {row["state"]: int(row["count"]) for row in rows_of(database, query)}


def _undelivered(database: Database, since: float) -> int:
    j, d = schema.job.c, schema.delivery.c
    missing = sa.select(d.job_id).where(d.job_id == j.job_id, d.state.not_in(ARRIVED))
    query = sa.select(sa.func.count()).where(j.finished_at >= since, j.state == "complete", missing.exists())
    return int(value_of(database, query))


def _disk(storage: Storage, least: int) -> Disk:
    try:
        free = storage.free_bytes()
    except OSError:
        # The page is wanted most then.
        return Disk(free_bytes=None, least_bytes=least, accepts=False)
    return Disk(free_bytes=free, least_bytes=least, accepts=free >= least)
