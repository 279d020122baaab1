""" "This series grew" -> bounces and looks, as few as will do and none lost. Times are monotonic seconds.

The receiver must not wait for the job engine, and the engine must not be called for each of 400 slices. A bounce puts
off the series' assembly by its full quiet time: about one a second while it grows, and durable. A look asks whether
it is complete already, once it has paused or its Association is over.
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
# A pause this long may be the end. One that was not makes us wait twice as long at the next: each look reads headers.
_PAUSE_S = 0.3
# About what the engine and the reading of some hundred headers take: a look begins so much early.
_LOOK_TAKES_S = 1.0


@dataclass(slots=True, kw_only=True)
class _Growing:
    """A series of which something came lately. bounce_at, look_at: when due, None: done."""

    source_ae: str
    touched_at: float
    bounce_at: float | None = None
    look_at: float | None = None
    failures: int = 0
    looks: int = 0

    def due_at(self) -> float:
        return min((at for at in (self.bounce_at, self.look_at) if at is not None), default=float("inf"))


class Announcer:
    """Calls `bounce(series_uid, quiet_time_s(source_ae))` and `look(series_uid)` from a thread that `start` begins.

    bounce: puts off the assembly of a series by so many seconds; it may raise, then it is called again later.
    look: has the engine look at once whether the series is complete; where it raises, the quiet time decides.
    quiet_time_s: the quiet time of a source AE title. proven_quiet_time_s: that of a series proven to be complete.
    """

    def __init__(
        self,
        bounce: Callable[[str, float], None],
        quiet_time_s: Callable[[str], float],
        *,
        look: Callable[[str], None] = lambda _series_uid: None,
        proven_quiet_time_s: float = 0.0,
        interval_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bounce, self._quiet_time_s, self._look = bounce, quiet_time_s, look
        self.proven_after(proven_quiet_time_s)
        self._interval_s, self._clock = interval_s, clock
        self._changed = threading.Condition()
        self._growing: dict[str, _Growing] = {}
        self._closing = False
        self._thread: threading.Thread | None = None

    def proven_after(self, proven_quiet_time_s: float) -> None:
        """As when built; for what grows from now on."""
        self._least_pause_s = max(_PAUSE_S, proven_quiet_time_s - _LOOK_TAKES_S)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)
        self._thread.start()

    def grew(self, series_uid: str, source_ae: str) -> None:
        """An Instance of the series is durable."""
        with self._changed:
            self._touch(series_uid, source_ae, bounce_in_s=self._interval_s)

    def ended(self, series_uids: Iterable[str], source_ae: str) -> None:
        """The Association that brought these series is over."""
        with self._changed:
            for series_uid in series_uids:
                self._touch(series_uid, source_ae, bounce_in_s=0.0)

    def flush(self) -> None:
        """Do everything that waits, now. A bounce that fails goes on waiting."""
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
        if left := sorted(uid for uid, growing in self._growing.items() if growing.bounce_at is not None):
            log.error("series not announced", extra={"action": "announce", "series": left})

    def step(self) -> None:
        """Bounce and look at what is due."""
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
        due_at = min((growing.due_at() for growing in self._growing.values()), default=float("inf"))
        return None if due_at == float("inf") else max(0.0, due_at - self._clock())

    def _touch(self, series_uid: str, source_ae: str, *, bounce_in_s: float) -> None:
        now = self._clock()
        growing = self._growing.setdefault(series_uid, _Growing(source_ae=source_ae, touched_at=now))
        growing.source_ae, growing.touched_at = source_ae, now
        bounce_at = now + bounce_in_s
        sooner = growing.look_at is None
        growing.look_at = now + self._least_pause_s * 2**growing.looks
        if growing.bounce_at is None or bounce_at < growing.bounce_at:
            growing.bounce_at, sooner = bounce_at, True
        if sooner:
            self._changed.notify()

    def _work_off(self, until: float) -> None:
        with self._changed:
            # Taken out before the calls: what grows meanwhile is announced again.
            bounces = [uid for uid, growing in self._growing.items() if _is_due(growing.bounce_at, until)]
            looks = [uid for uid, growing in self._growing.items() if _is_due(growing.look_at, until)]
            for uid in bounces:
                self._growing[uid].bounce_at = None
            for uid in looks:
                self._growing[uid].look_at = None
                self._growing[uid].looks += 1
        for uid in bounces:
            self._call_bounce(uid)
        for uid in looks:
            self._call_look(uid)
        self._forget()

    def _call_bounce(self, series_uid: str) -> None:
        growing = self._growing[series_uid]
        try:
            self._bounce(series_uid, self._quiet_time_s(growing.source_ae))
            growing.failures = 0
        except Exception as err:  # noqa: BLE001  whatever the engine raises, the series must not be lost
            log.error("announcing failed", extra={"action": "announce", "series": series_uid, "error": describe(err)})
            with self._changed:
                growing.failures += 1
                again_at = self._clock() + min(_LONGEST_RETRY_S, self._interval_s * 2**growing.failures)
                if growing.bounce_at is None:
                    growing.bounce_at = again_at

    def _call_look(self, series_uid: str) -> None:
        try:
            self._look(series_uid)
        except Exception as err:  # noqa: BLE001  only time is lost: the bounce before it has its quiet time
            log.error("look not asked for", extra={"action": "announce", "series": series_uid, "error": describe(err)})

    def _forget(self) -> None:
        """Series of which nothing came for their quiet time: their next growth begins anew."""
        with self._changed:
            now = self._clock()
            for uid, growing in list(self._growing.items()):
                at_rest = growing.due_at() == float("inf")
                if at_rest and now - growing.touched_at > self._quiet_time_s(growing.source_ae):
                    del self._growing[uid]


def _is_due(at: float | None, until: float) -> bool:
    return at is not None and at <= until
