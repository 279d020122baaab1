"""Messages -> lines of a file a day, each with the hash of the line before it, flushed before `append` returns.

One chain a machine, however many processes write it (a lock file sees to their order). A line that is cut out, put in
or changed breaks the chain at its place; `NAME.head` remembers the last line, so that a shortened end is seen, too. Who
may write the whole folder can write a whole new chain: against that helps the copy on a syslog server.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dicom_node.errors import DicomNodeError

_NOTHING_BEFORE = "0" * 64
_MODE = 0o640
_TAIL_BYTES = 65536


class TrailBroken(DicomNodeError):
    """The audit trail is not what was written. The text says from where on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line. number: from 1, over all days. at: seconds since the epoch, UTC. message: XML."""

    number: int
    at: float
    previous: str
    message: str

    def line(self) -> bytes:
        fields = {"number": self.number, "at": self.at, "previous": self.previous, "message": self.message}
        return json.dumps(fields).encode() + b"\n"

    @classmethod
    def read(cls, line: bytes) -> Entry:
        """Raises ValueError, KeyError or TypeError for what is none."""
        said: dict[str, Any] = json.loads(line)
        if not isinstance(said["number"], int) or not isinstance(said["message"], str):
            raise ValueError("no line of an audit trail")
        return cls(number=said["number"], at=float(said["at"]), previous=said["previous"], message=said["message"])


class Trail:
    """The files of one machine below `folder`. Safe to use from several threads and processes."""

    def __init__(self, folder: Path, host: str | None = None) -> None:
        self.folder, self.host = folder, host or socket.gethostname()

    def append(self, message: str, at: float) -> Entry:
        """The line, once it is on the disk. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        with self._locked():
            number, previous = self._last()
            entry = Entry(number=number + 1, at=at, previous=previous, message=message)
            # A clock that was set back must not begin a file that sorts before the last one.
            newest = max((path.name for path in self.files()), default="")
            name = max(newest, f"{self.host}-{datetime.fromtimestamp(at, UTC):%Y-%m-%d}.jsonl")
            line = entry.line()
            self._write(self.folder / name, line, is_new=name != newest)
            self._remember(entry.number, line)
        return entry

    def files(self) -> list[Path]:
        """This machine's, oldest first."""
        day = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
        return sorted(self.folder.glob(f"{self.host}-{day}.jsonl"))

    def entries(self) -> Iterator[Entry]:
        """All lines that are there, oldest first; not checked. Raises TrailBroken for what is no line."""
        for path, at, line in self._lines():
            yield _entry(path, at, line)

    def verify(self) -> int:
        """How many lines there are, each where it was written and as it was. Raises TrailBroken, FileNotFoundError.

        Old files may have been moved away: the chain is followed from the oldest that is there.
        """
        if not self.files():
            raise FileNotFoundError(f"no audit trail of {self.host} in {self.folder}")
        count, expected, before, head_seen = 0, None, _NOTHING_BEFORE, False
        head_number, head_hash = self._head()
        for path, at, line in self._lines():
            entry = _entry(path, at, line)
            if expected is None:
                expected, before = entry.number, entry.previous
                if entry.number == 1 and entry.previous != _NOTHING_BEFORE:
                    raise TrailBroken(f"{path.name}: line {at}: the first message names one before it")
            if entry.number != expected or entry.previous != before:
                raise TrailBroken(f"{path.name}: line {at}: does not follow the line before it: changed or cut")
            before = _sha256(line)
            if entry.number == head_number:
                head_seen = before == head_hash
                if not head_seen:
                    raise TrailBroken(f"{path.name}: line {at}: is not what was written")
            expected, count = expected + 1, count + 1
        if head_number and not head_seen:
            raise TrailBroken(f"the end is missing: message {head_number} was written and is not there")
        return count

    def _lines(self) -> Iterator[tuple[Path, int, bytes]]:
        for path in self.files():
            with path.open("rb") as file:
                for at, line in enumerate(file, start=1):
                    if line.endswith(b"\n"):  # else it is being written, or was when its process died
                        yield path, at, line

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.folder / f"{self.host}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _last(self) -> tuple[int, str]:
        """Number and hash of the last whole line; a torn one behind it, which nobody was promised, is cut off."""
        for path in reversed(self.files()):
            with path.open("r+b") as file:
                size = file.seek(0, os.SEEK_END)
                span = _TAIL_BYTES
                while True:
                    file.seek(max(0, size - span))
                    lines = file.read().splitlines(keepends=True)
                    if span >= size or len(lines) > 2:
                        break
                    span *= 4
                if lines and not lines[-1].endswith(b"\n"):
                    size -= len(lines.pop())
                    file.truncate(size)
                if lines:
                    return _entry(path, -1, lines[-1]).number, _sha256(lines[-1])
        # Where all files were moved away the chain goes on all the same.
        number, before = self._head()
        return number, before

    def _write(self, path: Path, line: bytes, *, is_new: bool) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            self._flush_folder()

    def _remember(self, number: int, line: bytes) -> None:
        # Not flushed: after a crash of the machine an older head is still a line of the chain.
        fresh = self.folder / f"{self.host}.head.new"
        fresh.write_text(f"{number} {_sha256(line)}\n")
        fresh.chmod(_MODE)
        fresh.replace(self.folder / f"{self.host}.head")

    def _head(self) -> tuple[int, str]:
        try:
            number, digest = (self.folder / f"{self.host}.head").read_text().split()
            return int(number), digest
        except (FileNotFoundError, ValueError):
            return 0, _NOTHING_BEFORE

    def _flush_folder(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _entry(path: Path, at: int, line: bytes) -> Entry:
    try:
        return Entry.read(line)
    except (ValueError, KeyError, TypeError) as err:
        where = "the last line" if at < 0 else f"line {at}"
        raise TrailBroken(f"{path.name}: {where}: is no line of an audit trail: changed") from err


def _sha256(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
