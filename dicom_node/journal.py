"""Payload and description -> one flushed record of a preallocated file. What was never released comes back at opening.

A new file costs its own flush, that of its folder and commits of the file system's journal. A record overwrites blocks
that the file has already, so that one write and one flush of the device make it durable, and several writers at once
share that flush. The file is used round and round: a record's room is free once `release` said that it is not needed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import struct
import threading
import time
import uuid
import zlib
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dicom_node.errors import OutOfSpace, StorageError
from dicom_node.logs import describe
from dicom_node.storage import sync_folder

log = logging.getLogger(__name__)

# O_DIRECT wants addresses, places and lengths in multiples of the device's block.
_BLOCK = 4096
_MEGABYTE = 1024**2
# Magic, id of the journal, number of the last released record; then the CRC of them.
_FRONT = struct.Struct("<8s16sQ")
# Magic, id of the journal, number, own place, lengths of description and payload, CRC of the payload; then the
# description, then the CRC of all that. They tell a torn record from a whole one.
_HEADER = struct.Struct("<8s16sQQIQI")
_CRC = struct.Struct("<I")
_FRONT_MAGIC, _RECORD_MAGIC = b"DNJRNL1\n", b"DNRECRD1"
_LONGEST_DESCRIPTION_BYTES = 4096
_BUFFERS_KEPT = 4
_SUFFIX = ".journal"
# A journal whose records cannot be worked off is tried again so much later.
_TRY_AGAIN_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record that was durable and not released when the journal was last used."""

    number: int
    description: bytes
    payload: bytes


@dataclass(slots=True)
class _Room:
    """The part [start, end) of the file that one record has, places counted from behind the front."""

    number: int
    start: int
    end: int
    payload_at: int
    payload_end: int


class Journal:
    """One file, held by one process for as long as it lives. Safe to share between threads."""

    def __init__(self, descriptor: int, path: Path) -> None:
        """Of a file that is locked. Raises StorageError where it is no whole journal."""
        self._lock, self.path = descriptor, path
        self._id, self._released = _read_front(descriptor, path)
        self.capacity_bytes = os.fstat(descriptor).st_size - _BLOCK
        self._file = _open_direct(path)
        self._changed = threading.Condition()
        self._buffers: list[mmap.mmap] = []
        self._number, self._head = self._released, 0
        # By number, so in order of them; the same by place.
        self._rooms: dict[int, _Room] = {}
        self._taken: list[tuple[int, int]] = []
        self._written = self._flushed = 0
        self._flushing = self._broken = False

    @property
    def usable(self) -> bool:
        """False once a write failed: what a device holds after a failed flush is not known."""
        return not self._broken

    def close(self) -> None:
        """Another process may take the file. What was not released comes back when it is opened again."""
        if self._file >= 0:
            os.close(self._file)
            os.close(self._lock)
            self._file = self._lock = -1

    # -- records that a crash left -----------------------------------------------------------------

    def left(self) -> Iterator[Record]:
        """The records that were never released, in order. To be read, and released, before anything is appended.

        Also some that were, after the first that was not: what is done with them must do no harm twice.
        """
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            found = sorted(self._scan(view))
            self._number = max([self._released, *(number for number, _, _ in found)])
            for number, description, at in found:
                size = _HEADER.unpack_from(view, at)[5]
                payload_at = at + _header_bytes(len(description))
                yield Record(number=number, description=description, payload=view[payload_at : payload_at + size])

    def release_left(self) -> None:
        """Nothing that `left` gave is needed any more."""
        with self._changed:
            self._released = self._number
            self._write_front()

    def _scan(self, view: mmap.mmap) -> Iterator[tuple[int, bytes, int]]:
        """Number, description and place of each whole record; a torn one is passed over, it was never acknowledged."""
        at = _BLOCK
        while at < len(view):
            length = 0
            if view[at : at + len(_RECORD_MAGIC)] == _RECORD_MAGIC:
                length, number, description = self._whole(view, at)
                if length:
                    yield number, description, at
            # Writers finish in any order, so whole records may lie behind a torn one.
            at += length or _BLOCK

    def _whole(self, view: mmap.mmap, at: int) -> tuple[int, int, bytes]:
        """Bytes of the record at `at`, 0 where it is none of ours, torn, or released; its number and description."""
        nothing = (0, 0, b"")
        if at + _HEADER.size > len(view):
            return nothing
        _, owner, number, place, described, size, payload_crc = _HEADER.unpack_from(view, at)
        if owner != self._id or place != at or number <= self._released or described > _LONGEST_DESCRIPTION_BYTES:
            return nothing
        body = view[at : at + _HEADER.size + described]
        crc = view[at + len(body) : at + len(body) + _CRC.size]
        payload_at = at + _header_bytes(described)
        if len(crc) < _CRC.size or _CRC.unpack(crc)[0] != zlib.crc32(body) or payload_at + size > len(view):
            return nothing
        if zlib.crc32(view[payload_at : payload_at + size]) != payload_crc:
            return nothing
        return _rounded(_header_bytes(described) + size), int(number), body[_HEADER.size :]

    # -- new records -------------------------------------------------------------------------------

    def takes(self, payload_bytes: int) -> bool:
        """Whether a payload is small enough: two of the largest have room at once."""
        return self.usable and payload_bytes + _LONGEST_DESCRIPTION_BYTES <= self.capacity_bytes // 2

    def append(self, description: bytes, *parts: bytes, wait_s: float) -> int:
        """The number of the record, durable on return; its payload is `parts` joined.

        Waits for room up to `wait_s`, then raises OutOfSpace. Raises StorageError.
        """
        size = sum(map(len, parts))
        if len(description) > _LONGEST_DESCRIPTION_BYTES or not self.takes(size):
            raise StorageError("the journal takes no record of this size, or is broken")
        room = self._take_room(_header_bytes(len(description)), size, wait_s)
        try:
            self._write(room, description, parts)
            self._flush()
        except OSError as err:
            self._broken = True
            self.release([room.number])
            raise StorageError(f"the journal could not be written: {err.strerror}") from err
        return room.number

    def read(self, number: int) -> bytes:
        """The payload of a record that was appended and not released yet. Raises StorageError."""
        with self._changed:
            room = self._rooms[number]
        length = room.end - room.start
        buffer = self._buffer(length)
        try:
            with memoryview(buffer) as view, view[:length] as whole:
                _read_all(self._file, whole, _BLOCK + room.start)
                payload = bytes(whole[room.payload_at : room.payload_end])
        except OSError as err:
            raise StorageError(f"the journal could not be read: {err.strerror}") from err
        self._give_back(buffer)
        return payload

    def release(self, numbers: list[int]) -> None:
        """These records are not needed any more. Raises StorageError."""
        with self._changed:
            for number in numbers:
                room = self._rooms.pop(number)
                del self._taken[bisect_left(self._taken, (room.start, room.end))]
            self._changed.notify_all()
            # One that comes back though it was released, behind one that was not, does no harm: see `left`.
            released = next(iter(self._rooms), self._number + 1) - 1
            if released != self._released:
                self._released = released
                if not self._broken:
                    self._write_front()

    def _take_room(self, header_bytes: int, payload_bytes: int, wait_s: float) -> _Room:
        deadline, size = time.monotonic() + wait_s, header_bytes + payload_bytes
        length = _rounded(size)
        with self._changed:
            while (start := self._place(length)) is None:
                if not self._changed.wait(deadline - time.monotonic()):
                    raise OutOfSpace("received instances are written to their files too slowly: is the disk full?")
            self._number += 1
            room = _Room(self._number, start, start + length, header_bytes, size)
            self._rooms[room.number] = room
            insort(self._taken, (room.start, room.end))
            self._head = room.end
            return room

    def _place(self, length: int) -> int | None:
        """The next that is free from the last one on. What is needed for long is passed by, not waited for."""
        at = bisect_left(self._taken, (self._head, self._head))
        end = (self.capacity_bytes, self.capacity_bytes)
        ahead = [*self._taken[at:], end]
        for start, taken in ((self._head, ahead), (0, [*self._taken[:at], ahead[0]])):
            for taken_start, taken_end in taken:
                if start + length <= taken_start:
                    return start
                start = taken_end
        return None

    def _write(self, room: _Room, description: bytes, parts: tuple[bytes, ...]) -> None:
        at, length, crc = _BLOCK + room.start, room.end - room.start, 0
        for part in parts:
            crc = zlib.crc32(part, crc)
        size = room.payload_end - room.payload_at
        body = _HEADER.pack(_RECORD_MAGIC, self._id, room.number, at, len(description), size, crc) + description
        pieces = (body, _CRC.pack(zlib.crc32(body)), *parts, bytes(length - room.payload_end))
        buffer = self._buffer(length)
        with memoryview(buffer) as view, view[:length] as whole:
            end = 0
            for piece in pieces:
                whole[end : end + len(piece)] = piece
                end += len(piece)
            _write_all(self._file, whole, at)
        self._give_back(buffer)

    def _flush(self) -> None:
        """Whoever finds no flush under way flushes for all that have written."""
        with self._changed:
            self._written += 1
            mine = self._written
            while self._flushing:
                self._changed.wait()
                if self._flushed >= mine:
                    return
            if self._broken:
                raise OSError(errno.EIO, "another record's flush failed")
            self._flushing, until = True, self._written
        try:
            os.fdatasync(self._file)
        except OSError:
            self._broken = True
            raise
        finally:
            with self._changed:
                self._flushing = False
                if not self._broken:
                    self._flushed = until
                self._changed.notify_all()

    def _buffer(self, length: int) -> mmap.mmap:
        with self._changed:
            for buffer in self._buffers:
                if len(buffer) >= length:
                    self._buffers.remove(buffer)
                    return buffer
        return mmap.mmap(-1, -(-length // _MEGABYTE) * _MEGABYTE)

    def _give_back(self, buffer: mmap.mmap) -> None:
        with self._changed:
            if len(self._buffers) < _BUFFERS_KEPT and len(buffer) <= 4 * _MEGABYTE:
                self._buffers.append(buffer)
            else:
                buffer.close()

    def _write_front(self) -> None:
        try:
            _write_front(self._lock, self._id, self._released)
        except OSError as err:
            self._broken = True
            raise StorageError(f"the journal could not be written: {err.strerror}") from err


Replay = Callable[[Iterator[Record]], None]


def take(folder: Path, capacity_bytes: int, replay: Replay) -> Journal:
    """The first journal in `folder` that no living process holds, or a new one; `replay` gets what it left first.

    One that is damaged, or whose replay fails, is left alone with all that it holds. Raises StorageError.
    """
    with _as_storage_error():
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_folder(folder.parent)
        for number in range(1000):
            path = folder / f"{number:03}{_SUFFIX}"
            descriptor = _lock(path)
            if descriptor is None:
                continue
            if new := _is_blank(descriptor):
                _make(descriptor, path, capacity_bytes)
            journal = _replayed(descriptor, path, replay)
            if journal is None:
                if new:
                    raise StorageError(f"the journal {path} cannot be used, the log says why")
                continue
            if journal.capacity_bytes == capacity_bytes:
                return journal
            journal.close()
            return _remade(path, capacity_bytes)
    raise StorageError(f"every journal in {folder} is held by another process, or cannot be used")


class Orphans:
    """The journals in a folder that no living process holds. `recover` gives `replay` what they left."""

    def __init__(self, folder: Path, replay: Replay, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._replay, self._clock = folder, replay, clock
        # When each was changed last, as seen after its replay, and when to look at it again where nothing changes.
        self._seen: dict[Path, tuple[int, float]] = {}

    def recover(self) -> None:
        """Each that changed since the last call; one whose replay failed again later. Raises StorageError."""
        with _as_storage_error():
            for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
                changed_at, again_at = self._seen.get(path, (0, 0.0))
                if path.stat().st_mtime_ns != changed_at or self._clock() >= again_at:
                    self._recover(path)

    def _recover(self, path: Path) -> None:
        descriptor = _lock(path)
        if descriptor is None:
            return
        if _is_blank(descriptor):
            os.close(descriptor)
            return
        journal = _replayed(descriptor, path, self._replay)
        again_at = self._clock() + _TRY_AGAIN_S if journal is None else float("inf")
        self._seen[path] = (path.stat().st_mtime_ns, again_at)
        if journal is not None:
            journal.close()


def _replayed(descriptor: int, path: Path, replay: Replay) -> Journal | None:
    """None, and the file as it was, where that fails: what one journal holds must not keep the node from its work."""
    journal = None
    try:
        journal = Journal(descriptor, path)
        replay(journal.left())
        journal.release_left()
    except Exception as err:  # noqa: BLE001  whatever is wrong with it, what was acknowledged stays in it
        why = str(err) if isinstance(err, StorageError) else describe(err)
        log.error(
            "journal left alone: instances that were acknowledged wait in it; tried again later",
            extra={"action": "journal", "path": str(path), "why": why},
        )
        if journal is not None:
            journal.close()
        else:
            os.close(descriptor)
        return None
    return journal


def _remade(path: Path, capacity_bytes: int) -> Journal:
    descriptor = _lock(path)
    if descriptor is None:
        raise StorageError(f"{path.name} was taken by another process")
    _make(descriptor, path, capacity_bytes)
    return Journal(descriptor, path)


def _lock(path: Path) -> int | None:
    """The open file, or None while a living process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _is_blank(descriptor: int) -> bool:
    """Never made whole, so nothing was acknowledged on its word."""
    return not os.pread(descriptor, _BLOCK, 0).strip(b"\0")


def _make(descriptor: int, path: Path, capacity_bytes: int) -> None:
    """Blocks that exist and are written, then the front that says so."""
    os.ftruncate(descriptor, 0)
    left, at, zeros = capacity_bytes + _BLOCK, 0, bytes(_MEGABYTE)
    try:
        while left:
            count = os.pwrite(descriptor, zeros[: min(left, _MEGABYTE)], at)
            left, at = left - count, at + count
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, 0)  # what there was of space is needed for what was acknowledged
        os.close(descriptor)
        raise
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    _write_front(descriptor, uuid.uuid4().bytes, 0)
    sync_folder(path.parent)


def _write_front(descriptor: int, journal_id: bytes, released: int) -> None:
    front = _FRONT.pack(_FRONT_MAGIC, journal_id, released)
    # Less than the least that a device writes as a whole.
    os.pwrite(descriptor, front + _CRC.pack(zlib.crc32(front)), 0)
    os.fdatasync(descriptor)


def _read_front(descriptor: int, path: Path) -> tuple[bytes, int]:
    front = os.pread(descriptor, _FRONT.size + _CRC.size, 0)
    if len(front) == _FRONT.size + _CRC.size:
        magic, journal_id, released = _FRONT.unpack_from(front)
        if magic == _FRONT_MAGIC and _CRC.unpack_from(front, _FRONT.size)[0] == zlib.crc32(front[: _FRONT.size]):
            return journal_id, int(released)
    raise StorageError("its first block is damaged: keep the file for who can read its records, and move it away")


def _open_direct(path: Path) -> int:
    """Past the page cache, where the file system can: half the work, and no cache full of what is read by nobody."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def _write_all(descriptor: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, at)
        data, at = data[count:], at + count


def _read_all(descriptor: int, into: memoryview, at: int) -> None:
    while into:
        count = os.preadv(descriptor, [into], at)
        if not count:
            raise OSError(errno.EIO, "the file ends too early")
        into, at = into[count:], at + count


@contextlib.contextmanager
def _as_storage_error() -> Iterator[None]:
    try:
        yield
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpace("no room for the journal of received instances: free some space") from err
        raise StorageError(f"the journal of received instances cannot be used: {err.strerror}") from err


def _header_bytes(described: int) -> int:
    return _HEADER.size + described + _CRC.size


def _rounded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
