"""Log lines about a series -> a small file below the storage root, where every host's web role finds it.

`logs/SERIES/HOST.ROLE.PROCESS.jsonl`: each process appends to files of its own, so none needs a lock, over NFS neither.
Who logs never waits for the disk: lines go through a short queue to a thread, and what does not fit is counted, not
kept. The folder goes with its series (retention.py). Lines reach the operating system, not the disk: a process that is
killed loses its last fraction of a second, a power cut may take a little more; the journal has them all the same.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import socket
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from dicom_node.logs import series_of, values_of, where

FOLDER = "logs"
SUFFIX, OLDER = ".jsonl", ".jsonl.1"
# A file that would get larger becomes the older one of two: of a series each process keeps its last lines.
MOST_BYTES = 64 * 1024
_MOST_IN_A_LINE, _MOST_IN_A_VALUE, _MOST_VALUES = 4096, 400, 24
_MOST_WAITING = 2000
# Lines come in groups: one that opens the file for several at a time.
_GATHER_S = 0.2
_LAST_WORD_S = 2.0
_LONGEST_UID = 64
# A purge's own lines would outlive what it deletes; they are in the journal, and its event in the database.
_OF_THE_END = "purge"
# Said of the line by other fields, or by the folder.
_NOT_VALUES = ("series", "series_uid", "color_message")


# Series, seconds since the epoch, the line.
_Due = tuple[str, float, bytes]


def folder_of(root: Path, series_uid: str) -> Path:
    return root / FOLDER / series_uid


def old_folders(root: Path, before: float) -> list[str]:
    """The series of which no process began a file since."""
    try:
        return sorted(entry.name for entry in os.scandir(root / FOLDER) if entry.stat().st_mtime < before)
    except FileNotFoundError:
        return []


class LineFiles(logging.Handler):
    """Keeps what `logs.name_series` found to be about a series, whatever the form of the other lines is.

    gather_s: so long the first line waits for others, which are written with it.
    """

    def __init__(
        self,
        root: Path,
        role: str,
        *,
        host: str | None = None,
        process: int | None = None,
        most_bytes: int = MOST_BYTES,
        most_waiting: int = _MOST_WAITING,
        gather_s: float = _GATHER_S,
    ) -> None:
        super().__init__()
        name = re.sub(r"[^A-Za-z0-9-]", "-", host or socket.gethostname())[:64]
        self._root, self._name = root, f"{name}.{role}.{process or os.getpid()}"
        self._most_bytes, self._most_waiting, self._gather_s = most_bytes, most_waiting, gather_s
        self._changed = threading.Condition()
        self._due: list[_Due] = []
        self._lost: Counter[str] = Counter()
        self._writes = self._closed = False
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        series_uid = series_of(record)
        if series_uid is None or len(series_uid) > _LONGEST_UID or record.__dict__.get("action") == _OF_THE_END:
            return
        try:
            line = encoded(record)
        except Exception:  # noqa: BLE001  a value that cannot be told must not fail the caller
            line = None
        with self._changed:
            if self._closed:
                return
            if line is None or len(self._due) >= self._most_waiting:
                self._lost[series_uid] += 1
                return
            self._due.append((series_uid, record.created, line))
            if self._thread is None:
                # Not before the first line: a process that says nothing of a series has no thread for it.
                self._thread = threading.Thread(target=self._run, name="log files", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self) -> None:
        """All lines are written, or two seconds are over."""
        with self._changed:
            if self._thread is not None and self._thread.is_alive():
                self._changed.wait_for(lambda: not self._due and not self._writes, _LAST_WORD_S)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.flush()
        super().close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._due or self._closed)
                self._changed.wait_for(lambda: self._closed, self._gather_s)
                due, self._due, self._writes = self._due, [], True
                lost, self._lost = self._lost, Counter()
            self._write(due, lost)
            with self._changed:
                self._writes = False
                self._changed.notify_all()
                if self._closed and not self._due:
                    return

    def _write(self, due: list[_Due], lost: Counter[str]) -> None:
        lines: dict[str, list[bytes]] = {}
        began: dict[str, float] = {}
        for series_uid, at, line in due:
            lines.setdefault(series_uid, []).append(line)
            began.setdefault(series_uid, at)
        for series_uid, those in lines.items():
            while sum(map(len, those)) > self._most_bytes - _MOST_IN_A_LINE and len(those) > 1:
                lost[series_uid] += len(those) - (half := len(those) // 2)
                those = those[-half:]
            try:
                self._append(series_uid, b"".join([*_lost(lost[series_uid], began[series_uid]), *those]))
                del lost[series_uid]
            except OSError:
                # The disk is full, or the storage root is away: the lines are in the journal.
                lost[series_uid] += len(those)
        with self._changed:
            # Told with the next line of the series, for as many series as there may be lines in the queue.
            self._lost.update(dict(lost.most_common(self._most_waiting)))

    def _append(self, series_uid: str, data: bytes) -> None:
        path = folder_of(self._root, series_uid) / (self._name + SUFFIX)
        try:
            if path.stat().st_size + len(data) > self._most_bytes:
                path.replace(path.with_name(self._name + OLDER))
        except FileNotFoundError:
            # Not the root: where that is away, nothing is made in its place.
            for folder in (path.parent.parent, path.parent):
                folder.mkdir(mode=0o750, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            size = os.fstat(descriptor).st_size
            if os.write(descriptor, data) != len(data):
                # Half a line would spoil the one after it.
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, "no room for all of it")
        finally:
            os.close(descriptor)


def encoded(record: logging.LogRecord) -> bytes:
    """A line of JSON: at (seconds since the epoch), level, message, values, error; at most 4096 bytes."""
    values = {
        key: _plain(value) for key, value in values_of(record).items() if key not in _NOT_VALUES and value is not None
    }
    event: dict[str, Any] = {
        "at": round(record.created, 6),
        "level": record.levelname.lower(),
        "message": record.getMessage()[:_MOST_IN_A_VALUE],
        "values": dict(list(values.items())[:_MOST_VALUES]),
    }
    if record.exc_info:
        event["error"] = where(record)[:_MOST_IN_A_VALUE]
    line = json.dumps(event, separators=(",", ":")).encode()
    if len(line) >= _MOST_IN_A_LINE:
        line = json.dumps({**event, "values": {"left out": len(values)}}, separators=(",", ":")).encode()
    return line + b"\n"


def _plain(value: Any) -> str | int | float | bool:
    return value if isinstance(value, int | float) else str(value)[:_MOST_IN_A_VALUE]


def _lost(count: int, at: float) -> list[bytes]:
    """Said in the place of lines that could not be kept. at: of the line after them, in seconds since the epoch."""
    if not count:
        return []
    record = logging.LogRecord(
        __name__, logging.WARNING, "", 0, "lines before these were not kept: see the journal", None, None
    )
    record.created, record.__dict__["lines"] = at, count
    return [encoded(record)]
