""" "This series grew" -> at most about one bounce a second and series, none of them lost. Times are monotonic seconds.

The receiver must not wait for the job engine, and the engine must not be called for each of 400 slices.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dicom_node.logs import describe

log = logging.getLogger(__name__)

_LONGEST_RETRY_S = 60.0


@dataclass(slots=True, kw_only=True)
class _Pending:
    due: float
    source_ae: str
    failures: int = 0


class Announcer:
    """Calls `bounce(series_uid, quiet_time_s(source_ae))` from a thread of its own, which `start` begins.

    bounce: puts off the assembly of a series by so many seconds; it may raise, then it is called again later.
    quiet_time_s: the quiet time of a source AE title.
    """

    def __init__(
        self,
        bounce: Callable[[str, float], None],
        quiet_time_s: Callable[[str], float],
        *,
        interval_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bounce, self._quiet_time_s = bounce, quiet_time_s
        self._interval_s, self._clock = interval_s, clock
        self._changed = threading.Condition()
        self._pending: dict[str, _Pending] = {}
        self._closing = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)
        self._thread.start()

    def grew(self, series_uid: str, source_ae: str) -> None:
        """An Instance of the series is durable."""
        with self._changed:
            self._add(series_uid, source_ae, self._clock() + self._interval_s)

    def ended(self, series_uids: Iterable[str], source_ae: str) -> None:
        """The Association that brought these series is over: quiet time counts from here."""
        with self._changed:
            now = self._clock()
            for series_uid in series_uids:
                self._add(series_uid, source_ae, now)

    def flush(self) -> None:
        """Bounce everything that waits, now. What fails goes on waiting."""
        self._work_off(until=float("inf"))

    def close(self) -> None:
        """End the thread and flush. A series that still cannot be announced is found again at the next start."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.flush()
        if self._pending:
            log.error("series not announced", extra={"action": "announce", "series": sorted(self._pending)})

    def step(self) -> None:
        """Bounce what is due."""
        self._work_off(until=self._clock())

    def _run(self) -> None:
        while True:
            self.step()
            with self._changed:
                if self._closing:
                    return
                self._changed.wait(self._wait_s())

    def _wait_s(self) -> float | None:
        """Seconds until something is due, None when nothing waits."""
        now = self._clock()
        return max(0.0, min(p.due for p in self._pending.values()) - now) if self._pending else None

    def _add(self, series_uid: str, source_ae: str, due: float) -> None:
        known = self._pending.get(series_uid)
        if known is None:
            self._pending[series_uid] = _Pending(due=due, source_ae=source_ae)
        else:
            known.source_ae, known.due = source_ae, min(known.due, due)
        self._changed.notify()

    def _work_off(self, until: float) -> None:
        with self._changed:
            due = {uid: pending for uid, pending in self._pending.items() if pending.due <= until}
            for uid in due:
                # Taken out before the call: what grows meanwhile is announced again.
                del self._pending[uid]
        for uid, pending in due.items():
            self._call(uid, pending)

    def _call(self, series_uid: str, pending: _Pending) -> None:
        try:
            self._bounce(series_uid, self._quiet_time_s(pending.source_ae))
        except Exception as err:  # noqa: BLE001  whatever the engine raises, the series must not be lost
            log.error("announcing failed", extra={"action": "announce", "series": series_uid, "error": describe(err)})
            self._again(series_uid, pending)

    def _again(self, series_uid: str, pending: _Pending) -> None:
        with self._changed:
            failures = pending.failures + 1
            due = self._clock() + min(_LONGEST_RETRY_S, self._interval_s * 2**failures)
            known = self._pending.setdefault(
                series_uid, _Pending(due=due, source_ae=pending.source_ae, failures=failures)
            )
            known.failures = failures
