"""Retention when it is due: by age every so often, at once when the disk runs low. On one machine at a time.

When a round began and ended is a row, so that a crash in it makes it begin anew and a restart does not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.locks import try_lock
from dicom_node.retention import DAY_S, LOCK, Purged, Purger, due_by_age, due_under_pressure, kept
from dicom_node.storage import Storage
from dicom_node.turns import Turns

log = logging.getLogger(__name__)

_LOOK_S = 10.0
# That nothing may be deleted though the disk is low is said so often.
_SAY_AGAIN_S = 3600.0
# No clock that is being adjusted moves so far between two looks (NTP steps at most by minutes once it runs).
_JUMP_S = 3600.0


class RetentionSchedule:
    """A thread beside the queues of the deliver role."""

    def __init__(
        self,
        config: Config,
        database: Database,
        storage: Storage,
        purger: Purger,
        *,
        now: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        look_s: float = _LOOK_S,
    ) -> None:
        self._config, self._database, self._storage, self._purger = config, database, storage, purger
        self._now, self._steady = now, steady
        self._wall_at, self._steady_at, self._ages_count_at = now(), steady(), float("-inf")
        self._said_at = float("-inf")
        self._turns = Turns("retention", waits="retention waits", failed="retention failed")
        self._turns.add(self.look, "retention", every_s=look_s)

    def start(self) -> None:
        self._turns.start()

    def stop(self, wait_s: float) -> None:
        """No further series is begun."""
        self._turns.stop(wait_s)

    def look(self) -> None:
        """One look: a round by age if it is due, and as much more as the disk needs."""
        self._watch_clock()
        by_age, lacking = self._is_due_by_age(), self._lacking_bytes()
        if not (by_age or lacking > 0 or self._purger.unsettled()):
            return
        lock = try_lock(self._database.url, LOCK)
        if lock is None:
            return
        try:
            self._purger.settle()
            if self._is_due_by_age():
                self._by_age()
            self._relieve()
        finally:
            lock.release()

    def _is_due_by_age(self) -> bool:
        return self._steady() >= self._ages_count_at and self._due("by age", self._config.retention.every_min * 60)

    def _watch_clock(self) -> None:
        """A clock that jumps makes everything old at once: then nothing is deleted by age for a day.

        Somebody has that day to set it right. The same after a pause of the whole machine; a day more harms nobody.
        """
        wall, steady = self._now(), self._steady()
        jumped_s = (wall - self._wall_at) - (steady - self._steady_at)
        self._wall_at, self._steady_at = wall, steady
        if abs(jumped_s) < _JUMP_S:
            return
        self._ages_count_at = steady + DAY_S
        extra = {"action": "retention", "jumped_s": round(jumped_s)}
        log.error("the clock jumped: nothing is deleted by age for a day", extra=extra)

    def _due(self, name: str, every_s: float) -> bool:
        """One that never ended died with its process: it is made again at once."""
        last = self._database.upkeep(name)
        if last is None or last["ended_at"] is None:
            return True
        # One that began in the future was made by a clock that went wrong: it must not keep us waiting for that day.
        return not 0 <= self._now() - last["started_at"] < every_s

    def _by_age(self) -> None:
        settings, now = self._config.retention, self._now()
        self._database.upkeep_began("by age")
        removed = self._purger.purge(due_by_age(settings, now), kept(self._config, now), why="age", go_on=self._go_on)
        if settings.history_after_days is not None:
            self._purger.forget(now - settings.history_after_days * DAY_S)
        if self._due("sweep", DAY_S):
            self._database.upkeep_began("sweep")
            self._database.upkeep_ended("sweep", series=self._purger.sweep(now), size_bytes=0)
        if self._go_on():
            self._database.upkeep_ended("by age", series=removed.series, size_bytes=removed.bytes)
        if removed.series:
            self._tell("old series deleted", removed)

    def _go_on(self) -> bool:
        return not self._turns.stopping.is_set()

    def _lacking_bytes(self) -> int:
        """How much less than `storage.clean_below_gb` is free."""
        low_gb = self._config.storage.clean_below_gb
        return 0 if low_gb is None else int(low_gb * 1e9) - self._storage.free_bytes()

    def _relieve(self) -> None:
        """Not more than is lacking now: a file system that frees late must not cost more series than needed."""
        lacking = self._lacking_bytes()
        if lacking <= 0:
            return
        settings, now = self._config.retention, self._now()
        self._database.upkeep_began("pressure")
        removed = self._purger.purge(
            due_under_pressure(settings, now),
            kept(self._config, now),
            why="disk low",
            enough=lambda so_far: so_far.bytes >= lacking or self._lacking_bytes() <= 0,
            go_on=self._go_on,
        )
        self._database.upkeep_ended("pressure", series=removed.series, size_bytes=removed.bytes)
        if removed.series:
            self._tell("series deleted for want of space", removed)
        elif self._steady() - self._said_at >= _SAY_AGAIN_S:
            self._said_at = self._steady()
            free_gb = round(self._storage.free_bytes() / 1e9, 1)
            log.warning("disk low, and nothing may be deleted", extra={"action": "retention", "free_gb": free_gb})

    def _tell(self, what: str, removed: Purged) -> None:
        log.info(what, extra={"action": "retention", "series": removed.series, "bytes": removed.bytes})
