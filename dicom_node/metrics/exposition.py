"""Counts of this host's processes, and what rows and the disk say -> the text that Prometheus reads.

Rows are asked at most every few seconds, however many ask: a scrape costs the database next to nothing.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from dicom_node import __version__, audit, schema
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.errors import DicomNodeError
from dicom_node.metrics.catalogue import CATALOGUE, OTHER
from dicom_node.metrics.files import merged
from dicom_node.metrics.zeros import with_zeros

CONTENT_TYPE = CONTENT_TYPE_LATEST
_OPEN_JOBS = ("queued", "running", "failed", "parked")
_AGING_JOBS = ("queued", "running")
_OPEN_DELIVERIES = ("waiting", "sending", "unknown", "parked")

# Metric, labels and value.
_Sample = tuple[str, Mapping[str, str], float]


class Exposition:
    """`text()` is the answer to a scrape. Safe to call from many threads. now: seconds since the epoch.

    latest: the settings as they are now, where they may change.
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        *,
        latest: Callable[[], Config] | None = None,
        now: Callable[[], float] = time.time,
        cache_s: float = 5.0,
    ) -> None:
        self._latest = latest or (lambda: config)
        self._database, self._now, self._cache_s = database, now, cache_s
        self._lock = threading.Lock()
        self._asked_at = float("-inf")
        self._rows: list[_Sample] = []

    def text(self) -> bytes:
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """As prometheus-client asks a collector."""
        config = self._latest()
        folder = config.metrics_folder()
        yield from with_zeros(config, merged(folder) if folder.is_dir() else [])
        families: dict[str, GaugeMetricFamily] = {}
        for name, labels, value in [*self._of_rows(config), *self._of_audit(config), *_of_disk(config), *_of_build()]:
            definition = CATALOGUE[name]
            if name not in families:
                families[name] = GaugeMetricFamily(name, definition.text, labels=definition.labels)
            families[name].add_metric([labels[each] for each in definition.labels], value)
        yield from families.values()

    def _of_rows(self, config: Config) -> list[_Sample]:
        with self._lock:
            now = self._now()
            if now - self._asked_at >= self._cache_s or now < self._asked_at:
                self._rows = self._asked(config, now)
                self._asked_at = now
            return self._rows

    def _of_audit(self, config: Config) -> Iterator[_Sample]:
        if not config.audit.file or config.audit.syslog is None:
            return
        try:
            waiting = audit.backlog(audit.Trail(config.audit_folder()))
        except OSError:
            return  # the file system is away
        yield "dicom_node_audit_waiting_bytes", {}, waiting.size_bytes
        now = self._now()
        yield "dicom_node_audit_waiting_oldest_seconds", {}, max(0.0, now - (waiting.oldest_at or now))

    def _asked(self, config: Config, now: float) -> list[_Sample]:
        try:
            with self._database.engine.connect().execution_options(read_only=True) as connection:
                found = [
                    *_of_series(connection, now),
                    *_of_jobs(connection, now),
                    *_of_deliveries(config, connection, now),
                    *_of_commitments(config, connection, now),
                ]
        except (sa.exc.SQLAlchemyError, DicomNodeError):
            return [("dicom_node_database_up", {}, 0.0)]
        return [("dicom_node_database_up", {}, 1.0), *found]


def _of_deliveries(config: Config, connection: sa.Connection, now: float) -> Iterator[_Sample]:
    d = schema.delivery.c
    # No plain column: SQLite would read the whole ledger in an index's order rather than the few that are open.
    where = d.destination.concat("").label("place")
    query = sa.select(where, d.state, sa.func.count(), sa.func.min(d.created_at))
    query = query.where(d.state.in_(_OPEN_DELIVERIES)).group_by(where, d.state)
    empty = {(name, state): (0, now) for name in _destinations(config) for state in _OPEN_DELIVERIES}
    rows = [
        ((_destination(config, name), state), count, oldest) for name, state, count, oldest in connection.execute(query)
    ]
    for (destination, state), (count, oldest) in _summed(empty, rows).items():
        labels = {"destination": destination, "state": state}
        yield "dicom_node_deliveries_open", labels, count
        yield "dicom_node_deliveries_oldest_seconds", labels, max(0.0, now - oldest)


def _of_commitments(config: Config, connection: sa.Connection, now: float) -> Iterator[_Sample]:
    # Not by the requests: one without a word is asked again after deliver.commit_wait_h, so none grows older.
    d = schema.delivery.c
    empty = {name: (0, now) for name in _destinations(config) if config.peers[name].may_commit}
    query = sa.select(d.destination, sa.func.count(), sa.func.min(d.changed_at))
    query = query.where(d.destination.in_(empty), d.state == "stored").group_by(d.destination)
    rows = [(name, count, oldest) for name, count, oldest in connection.execute(query)]
    for destination, (count, oldest) in _summed(empty, rows).items():
        yield "dicom_node_commitments_open", {"destination": destination}, count
        yield "dicom_node_commitments_oldest_seconds", {"destination": destination}, max(0.0, now - oldest)


def _destinations(config: Config) -> list[str]:
    return sorted({name for route in config.routes for name in route.destinations})


def _destination(config: Config, name: str) -> str:
    """Those that are in the settings no more are one."""
    return name if name in config.peers else OTHER


def _of_series(connection: sa.Connection, now: float) -> Iterator[_Sample]:
    s = schema.series.c
    undecided = sa.or_(s.assembled_at.is_(None), s.last_at > s.assembled_at)
    count, oldest = connection.execute(sa.select(sa.func.count(), sa.func.min(s.last_at)).where(undecided)).one()
    yield "dicom_node_series_waiting", {}, count
    yield "dicom_node_series_waiting_oldest_seconds", {}, max(0.0, now - (now if oldest is None else oldest))


def _of_jobs(connection: sa.Connection, now: float) -> Iterator[_Sample]:
    j = schema.job.c
    query = sa.select(j.state, sa.func.count(), sa.func.min(j.created_at)).where(j.state.in_(_OPEN_JOBS))
    rows = [(state, count, oldest) for state, count, oldest in connection.execute(query.group_by(j.state))]
    for state, (count, oldest) in _summed(dict.fromkeys(_OPEN_JOBS, (0, now)), rows).items():
        yield "dicom_node_jobs", {"state": state}, count
        if state in _AGING_JOBS:
            yield "dicom_node_jobs_oldest_seconds", {"state": state}, max(0.0, now - oldest)


def _summed(empty: Mapping[Any, tuple[int, float]], rows: list[tuple[Any, int, float]]) -> dict[Any, tuple[int, float]]:
    """Count and oldest time by label values; a queue that is empty is shown as such, not left out."""
    found = dict(empty)
    for labels, count, oldest in rows:
        before = found.get(labels, (0, oldest))
        found[labels] = before[0] + count, min(before[1], oldest)
    return found


def _of_disk(config: Config) -> Iterator[_Sample]:
    yield "dicom_node_storage_reserve_bytes", {}, config.storage.min_free_gb * 1e9
    try:
        usage = shutil.disk_usage(config.storage.root)
    except OSError:
        return  # a file system that is away has no size
    yield "dicom_node_storage_free_bytes", {}, usage.free
    yield "dicom_node_storage_size_bytes", {}, usage.total


def _of_build() -> Iterator[_Sample]:
    yield "dicom_node_build", {"version": __version__}, 1.0
