"""A role that lives -> its row, a few times a minute: so the others, on any machine, can miss it."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable

from dicom_node.db import Database
from dicom_node.errors import DicomNodeError
from dicom_node.life import Life
from dicom_node.logs import describe

log = logging.getLogger(__name__)

# One small transaction in so long costs nothing; a role is missed after minutes.
_EVERY_S = 20.0
# Shorter where roles are to be missed sooner: four beats in that time.
_BEATS = 4.0
_GAP_BEATS = 3.0
# A main loop that has not turned for so long hangs, whatever this thread does.
_HANGS_S = 10.0


class Heartbeat:
    """A thread from `start` to `stop`. It is silent while the role's main loop hangs."""

    def __init__(self, life: Life, database: Database) -> None:
        self._life, self._database = life, database
        self._host = socket.gethostname()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, wait_s: float) -> None:
        """Who stops in order says so; one that ends otherwise is missed, as it should be."""
        self._stop.set()
        self._thread.join(min(wait_s, _HANGS_S))
        if self._life.stops:
            self._tell(lambda: self._database.role_stopped(self._host, self._life.role, self._life.name))

    def _every_s(self) -> float:
        minutes = self._life.config.alerts.missing_role_min
        return _EVERY_S if minutes is None else min(_EVERY_S, minutes * 60 / _BEATS)

    def _run(self) -> None:
        while not self._stop.is_set():
            every_s = self._every_s()
            if time.monotonic() - self._life.beat_at < max(_HANGS_S, every_s):
                self._tell(
                    lambda: self._database.role_beats(
                        self._host, self._life.role, self._life.name, gap_s=_GAP_BEATS * self._every_s()
                    )
                )
            self._stop.wait(every_s)

    def _tell(self, write: Callable[[], None]) -> None:
        try:
            write()
        except DicomNodeError as err:
            log.warning("heartbeat waits", extra={"action": "heartbeat", "why": type(err).__name__})
        except Exception as err:  # noqa: BLE001  the top of this thread's loop: the role goes on
            log.error("heartbeat failed", extra={"action": "heartbeat", "error": describe(err)})
