"""Lines of the trail, from a cursor on -> a syslog server. What can't be sent now is sent later, in order.

The file is the queue: nothing is held in memory, and a dead server holds nobody up. One process of a machine sends at a
time, by lock. The cursor moves after a message: around a crash or a cut connection a message may arrive twice.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dicom_node.audit.syslog import Link, syslog_message
from dicom_node.audit.trail import Entry, Trail, TrailBroken

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_BATCH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What a syslog server has not got. oldest_at: of its first message, seconds since the epoch; None without one."""

    size_bytes: int
    oldest_at: float | None


class Forwarder:
    """A thread from `start` to `stop`. `wake` says that there is something new."""

    def __init__(
        self,
        trail: Trail,
        connect: Callable[[], Link],
        *,
        first_pause_s: float = _FIRST_PAUSE_S,
        longest_pause_s: float = _LONGEST_PAUSE_S,
    ) -> None:
        self._trail, self._connect = trail, connect
        self._first_pause_s, self._longest_pause_s = first_pause_s, longest_pause_s
        self._cursor_path = _cursor_path(trail)
        self._link: Link | None = None
        self._new, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        self._new.set()

    def stop(self, wait_s: float = 2.0) -> None:
        """What has not been sent by then is sent by the next process."""
        self._stop.set()
        self._new.set()
        if self._thread is not None:
            self._thread.join(wait_s)
            self._thread = None
        self._hang_up()

    def _run(self) -> None:
        lock: int | None = None
        pause_s = self._first_pause_s
        try:
            while True:
                stopping = self._stop.is_set()
                try:
                    lock = self._lock() if lock is None else lock
                    while lock is not None and self.send_due():
                        pause_s = self._first_pause_s
                except (OSError, ssl.SSLError, TrailBroken) as err:
                    self._failed(err, pause_s)
                    if stopping or self._stop.wait(pause_s):
                        return
                    pause_s = min(self._longest_pause_s, 2 * pause_s)
                    continue
                if stopping:
                    return
                self._new.wait(_LOOK_S)
                self._new.clear()
        finally:
            self._hang_up()
            if lock is not None:
                os.close(lock)

    def _failed(self, err: Exception, pause_s: float) -> None:
        why = str(err) if isinstance(err, TrailBroken) else type(err).__name__
        extra = {"action": "audit", "why": why, "pause_s": pause_s}
        log.warning("audit messages wait for the syslog server", extra=extra)
        self._hang_up()

    def send_due(self) -> int:
        """Send some of what the server has not got; how many. Raises OSError, TrailBroken."""
        sent = 0
        for file, entry, end in _due(self._trail):
            if self._link is None:
                self._link = self._connect()
            message = syslog_message(entry.message, at=entry.at, host=self._trail.host, process=str(os.getpid()))
            self._link.send(message)
            self._move(file, end)
            sent += 1
            if sent == _BATCH or self._stop.is_set():
                break
        return sent

    def _move(self, file: str, offset: int) -> None:
        fresh = self._cursor_path.with_suffix(".new")
        fresh.write_text(json.dumps({"file": file, "offset": offset}))
        fresh.replace(self._cursor_path)

    def _lock(self) -> int | None:
        self._trail.folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        return _try_lock(self._trail.folder / f"{self._trail.host}.sender.lock")

    def _hang_up(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()


def backlog(trail: Trail) -> Backlog:
    """What the thread still has to send; seen from any process of the machine. Raises OSError."""
    name, offset = _cursor(trail)
    sizes = [path.stat().st_size - (offset if path.name == name else 0) for path in trail.files() if path.name >= name]
    oldest = next((entry.at for _, entry, _ in _due(trail)), None)
    return Backlog(size_bytes=sum(sizes), oldest_at=oldest)


def _due(trail: Trail) -> Iterator[tuple[str, Entry, int]]:
    """File, line and where the next one begins, from the cursor on."""
    name, offset = _cursor(trail)
    for path in trail.files():
        if path.name < name:
            continue
        end = offset if path.name == name else 0
        if path.stat().st_size <= end:
            continue
        with path.open("rb") as file:
            file.seek(end)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                try:
                    entry = Entry.read(line)
                except (ValueError, KeyError, TypeError):
                    log.error("line of the audit trail not sent: changed", extra={"action": "audit"})
                    continue
                yield path.name, entry, end


def _cursor(trail: Trail) -> tuple[str, int]:
    try:
        said = json.loads(_cursor_path(trail).read_text())
        return str(said["file"]), int(said["offset"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return "", 0


def _cursor_path(trail: Trail) -> Path:
    return trail.folder / f"{trail.host}.cursor"


def _try_lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
