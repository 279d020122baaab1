"""Instance -> record in the journal (then the peer has its Success) -> file and row a moment later, many at once.

What a crash leaves in the journal becomes file and row at the next start, before anything is accepted; what a process
or a machine leaves that is not started again, by those that live.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from dicom_node import journal
from dicom_node.arrivals import Received, ReceivedInstance
from dicom_node.db import Database
from dicom_node.errors import DatabaseUnavailable, DicomNodeError, OutOfSpace, StorageError
from dicom_node.journal import Journal, Orphans, Record
from dicom_node.logs import describe
from dicom_node.storage import DueFile, Storage, StoredFile

log = logging.getLogger(__name__)

FOLDER = "journal"
# Rows of so many in one transaction, folders flushed once for them; nobody waits for it.
_GATHER_S, _BATCH = 0.5, 32
# Then the Instance goes the direct way.
_WAIT_FOR_ROOM_S = 2.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
# How often one that lives looks for what a dead one left: well within a quiet time, so that a series that the peer
# went on with elsewhere is not decided on without it.
_TEND_S = 5.0

Grew = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """A received Instance whose file has yet to be written: what its header and its sender say of it."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    study_uid: str
    series_uid: str
    path: str
    size_bytes: int
    source_ae: str
    source_ip: str
    received_at: float

    @classmethod
    def read(cls, description: bytes) -> Announced:
        """From a record, perhaps of another version of this program: what it says more is passed over."""
        said: dict[str, Any] = json.loads(description)
        return cls(**{name: said[name] for name in cls.__dataclass_fields__})

    def received(self, stored: StoredFile) -> Received:
        """What its row says, once its file is there."""
        names = ReceivedInstance.__dataclass_fields__.keys() - {"sha256"}
        instance = ReceivedInstance(**{name: getattr(self, name) for name in names}, sha256=stored.sha256)
        return Received(instance=instance, source_ae=self.source_ae, source_ip=self.source_ip)


class Backlog:
    """Acknowledged Instances on their way to file and row. `grew(series_uid, source_ae)`: their rows are committed.

    From `start` to `stop` a thread of its own works it off; `accept` may be called from many threads.
    """

    def __init__(self, storage: Storage, database: Database, grew: Grew, *, capacity_mb: int) -> None:
        self._storage, self._database, self._grew = storage, database, grew
        self._capacity_bytes = capacity_mb * 1024**2
        self._journal: Journal | None = None
        folder = storage.root / FOLDER
        self._orphans = Orphans(folder, self._replay)
        self._tended_at = time.monotonic()
        self._changed = threading.Condition()
        # By SOP Instance UID, in order of arrival; the number is the journal's.
        self._waiting: dict[str, tuple[int, Announced]] = {}
        self._waiting_bytes = 0
        self._urgent = self._stopping = self._ready = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Work off what a crash left, then be ready. What cannot be worked off stays and is tried again.

        Raises StorageError.
        """
        self._orphans.recover()
        if self._capacity_bytes:
            self._take()
        self._ready = True

    def _take(self) -> None:
        try:
            self._journal = journal.take(self._storage.root / FOLDER, self._capacity_bytes, self._replay)
        except OutOfSpace as err:
            log.error("each instance becomes file and row at once", extra={"action": "journal", "why": str(err)})
            return
        self._thread = threading.Thread(target=self._run, name="backlog", daemon=True)
        self._thread.start()

    def tend(self) -> None:
        """Now and then: file and row for what processes that are gone, here or on another machine, left behind."""
        if time.monotonic() - self._tended_at < _TEND_S:
            return
        try:
            self._storage.keep_mark()
            self._orphans.recover()
        except StorageError as err:
            log.error("journals not looked at", extra={"action": "journal", "why": str(err)})
        self._tended_at = time.monotonic()

    def stop(self) -> None:
        """Work off the rest; what cannot be is found again at the next start."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._waiting:
            log.error("left in the journal", extra={"action": "journal", "instances": len(self._waiting)})
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def accept(self, new: Announced, *parts: bytes) -> bool:
        """True when the Instance is safe, its file being `parts` joined; False when the journal can't take it now.

        The caller sees to it that no two threads bring one Instance at once. Raises StorageError.
        """
        line = self._journal
        if line is None or not line.takes(new.size_bytes):
            return False
        # Its file must find its room later, beside those that wait.
        self._storage.check_space(self._waiting_bytes + new.size_bytes)
        try:
            number = line.append(json.dumps(asdict(new)).encode(), *parts, wait_s=_WAIT_FOR_ROOM_S)
        except OutOfSpace:
            return False
        with self._changed:
            self._waiting[new.sop_instance_uid] = (number, new)
            self._waiting_bytes += new.size_bytes
            self._changed.notify_all()
        return True

    def holds(self, sop_instance_uid: str) -> bool:
        """Whether an Instance of this UID is safe, but has no file or row yet."""
        with self._changed:
            return sop_instance_uid in self._waiting

    def settle(self, sop_instance_uid: str, timeout_s: float = 20.0) -> None:
        """Wait until the Instance has file and row. Raises StorageError when they take too long."""
        if not self.settle_instances([sop_instance_uid], timeout_s):
            raise StorageError("the file of an earlier version of this instance could not be written yet")

    def settle_series(self, series_uids: Collection[str], timeout_s: float = 20.0) -> bool:
        """Wait until all that came of these series has file and row; False when it takes too long."""
        return self._wait_until(
            lambda: not any(one.series_uid in series_uids for _, one in self._waiting.values()), timeout_s
        )

    def settle_all(self, timeout_s: float = 20.0) -> bool:
        """Wait until all that came has file and row; False when it takes too long."""
        return self._wait_until(lambda: not self._waiting, timeout_s)

    def settle_instances(self, sop_instance_uids: Collection[str], timeout_s: float = 20.0) -> bool:
        """Wait until these have file and row, if they came to us; False when it takes too long."""
        return self._wait_until(lambda: self._waiting.keys().isdisjoint(sop_instance_uids), timeout_s)

    def _wait_until(self, true: Callable[[], bool], timeout_s: float) -> bool:
        with self._changed:
            self._urgent = True
            self._changed.notify_all()
            return self._changed.wait_for(true, timeout_s)

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        pause_s, singly = _FIRST_PAUSE_S, 0
        while batch := self._next(1 if singly else _BATCH, at_once=singly > 0):
            try:
                self._work_off(batch)
                pause_s, singly = _FIRST_PAUSE_S, max(0, singly - 1)
            except Exception as err:  # noqa: BLE001  whatever it is, what was acknowledged stays and is tried again
                extra = {"action": "journal", "why": _why(err), "instances": len(batch), "first": batch[0][1].path}
                log.error("not recorded yet", extra=extra)
                if len(batch) > 1:
                    # One by one: a single one that cannot be written holds up no other for long.
                    singly = len(batch)
                    continue
                if self._stopping:
                    return
                self._put_last(batch[0][1].sop_instance_uid)
                self._pause(pause_s)
                pause_s, singly = min(_LONGEST_PAUSE_S, 2 * pause_s), max(0, singly - 1)

    def _next(self, most: int, *, at_once: bool) -> list[tuple[int, Announced]]:
        """The oldest that wait, after some have gathered; none once we are to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            # Receiving comes first: two threads of one process are in each other's way.
            self._changed.wait_for(lambda: at_once or self._pressing(), _GATHER_S)
            if len(self._waiting) <= most:
                self._urgent = False
            return list(islice(self._waiting.values(), most))

    def _pressing(self) -> bool:
        return self._urgent or self._stopping or self._waiting_bytes > self._capacity_bytes // 2

    def _put_last(self, sop_instance_uid: str) -> None:
        with self._changed:
            self._waiting[sop_instance_uid] = self._waiting.pop(sop_instance_uid)

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, seconds)

    def _work_off(self, batch: Sequence[tuple[int, Announced]]) -> None:
        line = self._journal
        assert line is not None  # noqa: S101  this thread lives as long as it
        grown = self._record([one for _, one in batch], lambda at: line.read(batch[at][0]))
        with self._changed:
            for _, one in batch:
                del self._waiting[one.sop_instance_uid]
                self._waiting_bytes -= one.size_bytes
            self._changed.notify_all()
        for series_uid, source_ae in grown:
            self._grew(series_uid, source_ae)
        line.release([number for number, _ in batch])

    # -- file and row ------------------------------------------------------------------------------

    def _replay(self, records: Iterator[Record]) -> None:
        """One that cannot be recorded keeps no other from it. Raises StorageError."""
        found = failed = 0
        for record in records:
            path = None
            try:
                one = Announced.read(record.description)
                path = one.path
                grown = self._record([one], [record.payload].__getitem__)
            except (OutOfSpace, DatabaseUnavailable):
                raise  # so would each of the others
            except Exception as err:  # noqa: BLE001  whatever is wrong with it, it stays in the journal
                failed += 1
                extra = {"action": "replay", "record": record.number, "path": path, "why": _why(err)}
                log.error("not taken from the journal", extra=extra)
                continue
            found += 1
            if self._ready:  # a start announces every series that has yet to be decided on
                for series_uid, source_ae in grown:
                    self._grew(series_uid, source_ae)
        if found:
            log.info("instances taken from the journal", extra={"action": "replay", "instances": found})
        if failed:
            raise StorageError(f"{failed} of its instances could not be written, the log says which")

    def _record(self, batch: Sequence[Announced], payload: Callable[[int], bytes]) -> list[tuple[str, str]]:
        """File, then row, as a whole: may be repeated. The series that grew, and the last that sent for them.

        payload: the bytes of one of the batch; read when its turn comes, so that one is in memory at a time.
        """

        def due(at: int) -> DueFile:
            return DueFile(path=batch[at].path, parts=(payload(at),), received_at=batch[at].received_at)

        stored = self._storage.write_instances(map(due, range(len(batch))))
        received = [one.received(file) for one, file in zip(batch, stored, strict=True) if file is not None]
        arrivals = self._database.record_instances(received)
        # A purge of the series may take a file between its writing and its row; from here on it takes no more.
        gone = [at for at, file in enumerate(stored) if file and not self._storage.path(file.path).exists()]
        if gone:
            self._storage.write_instances(map(due, gone))
        grown = {
            one.instance.series_uid: one.source_ae
            for one, arrival in zip(received, arrivals, strict=True)
            if arrival != "same"
        }
        return list(grown.items())


def _why(err: Exception) -> str:
    return str(err) if isinstance(err, DicomNodeError) else describe(err)
