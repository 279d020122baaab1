"""What a role looks at every so often beside its work: threads that take turns until they are stopped.

A turn that fails is logged, and the next one comes: no database and no disk is away for good.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from dicom_node.errors import DicomNodeError
from dicom_node.logs import describe

log = logging.getLogger(__name__)


class Turns:
    """Threads of one subject, stopped together."""

    def __init__(self, action: str, *, waits: str, failed: str) -> None:
        """action: of its log lines. waits: said of what passes (DicomNodeError); failed: of what nobody foresaw."""
        self.stopping = threading.Event()
        self._action, self._waits, self._failed = action, waits, failed
        self._threads: list[threading.Thread] = []

    def add(
        self,
        turn: Callable[[], object],
        name: str,
        *,
        every_s: float,
        at_once: bool = True,
        at_end: Callable[[], None] = lambda: None,
        **extra: str,
    ) -> None:
        """at_once: the first turn comes before the first pause. at_end: in the thread, after the last turn."""
        extra = {"action": self._action, **extra}

        def run() -> None:
            pause_s = 0.0 if at_once else every_s
            while not self.stopping.wait(pause_s):
                self._take(turn, extra)
                pause_s = every_s
            at_end()

        self._threads.append(threading.Thread(target=run, name=name, daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, wait_s: float) -> None:
        """No further turn is begun; those that go on have so long to end."""
        self.stopping.set()
        deadline = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _take(self, turn: Callable[[], object], extra: dict[str, str]) -> None:
        try:
            turn()
        except DicomNodeError as err:
            log.warning(self._waits, extra={**extra, "why": describe(err)})
        except Exception as err:  # noqa: BLE001  the top of this thread's loop: the role goes on beside it
            log.error(self._failed, extra={**extra, "error": describe(err)})
