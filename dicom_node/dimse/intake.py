"""Received Instance -> checked identifiers -> durable record, or durable file and row -> status. Decodes no pixels."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePosixPath

import sqlalchemy as sa

from dicom_node.arrivals import Arrival, ReceivedInstance
from dicom_node.db import Database, Row
from dicom_node.dimse import part10
from dicom_node.dimse.backlog import Announced, Backlog, Grew
from dicom_node.dimse.statuses import (
    OUT_OF_RESOURCES,
    SUCCESS,
    ClassNotNegotiated,
    DataSetMismatch,
    store_status,
)
from dicom_node.errors import DicomNodeError, UnreadableInstance
from dicom_node.logs import describe
from dicom_node.storage import Storage, StoredFile, checked_uid, instance_path

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRequest:
    """One C-STORE request: what its command and its Presentation Context say, and the data set as encoded."""

    sop_class_uid: str
    sop_instance_uid: str
    abstract_syntax: str
    transfer_syntax_uid: str
    data_set: bytes
    source_ae: str
    source_ip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreAnswer:
    """The status of the response. `series_uid` and `arrival` are set on Success alone."""

    status: int
    comment: str = ""
    series_uid: str | None = None
    arrival: Arrival | None = None


class Intake:
    """Makes received Instances durable. Safe to call from many threads."""

    def __init__(
        self,
        storage: Storage,
        database: Database,
        grew: Grew = lambda series_uid, source_ae: None,
        *,
        journal_mb: int = 0,
        now: Callable[[], float] = time.time,
    ) -> None:
        """grew(series_uid, source_ae): rows of the series were committed. journal_mb: 0 is none."""
        self._storage, self._database, self._grew, self._now = storage, database, grew, now
        self._instances = _KeyedLocks()
        self._backlog = Backlog(storage, database, grew, capacity_mb=journal_mb)

    def start(self) -> None:
        """What a crash left in the journal becomes file and row. Raises StorageError or DatabaseUnavailable."""
        _ = self._storage.mark  # whoever starts after us is to know that files without rows may be ours
        self._backlog.start()

    def tend(self) -> None:
        """To be called every second or so: what others left behind that are gone becomes file and row."""
        self._backlog.tend()

    def stop(self) -> None:
        """Nothing more is stored; what is acknowledged becomes file and row."""
        self._backlog.stop()

    def settle_series(self, series_uids: Collection[str]) -> bool:
        """Wait until all that was acknowledged of these series has file and row; False when it takes too long."""
        return self._backlog.settle_series(series_uids)

    def settle_instances(self, sop_instance_uids: Collection[str]) -> bool:
        """The same for Instances, of which some may never have come."""
        return self._backlog.settle_instances(sop_instance_uids)

    def settle_all(self) -> bool:
        """The same for all series."""
        return self._backlog.settle_all()

    def store(self, request: StoreRequest) -> StoreAnswer:
        """Success only when the Instance is safe; any other status leaves nothing half-written behind.

        Safe is a flushed record in the journal, which becomes file and row a moment later, or file and row.
        A complete file whose row could not be committed stays: sending again, or the next start, adopts it.
        """
        try:
            return self._store(request)
        except DicomNodeError as err:
            status, comment = store_status(err), str(err)
        except sa.exc.SQLAlchemyError as err:
            # PS3.4 B.2.3: 0xA7xx says that our resources failed, so the peer may try again. 0xCxxx blames its data.
            log.error("row not recorded", extra={"action": "refuse", "error": describe(err)})
            return StoreAnswer(status=OUT_OF_RESOURCES, comment="the database does not answer")
        log.warning(
            "instance refused",
            extra={"action": "refuse", "status": f"{status:#06x}", "why": comment, "source_ae": request.source_ae},
        )
        return StoreAnswer(status=status, comment=comment)

    def _store(self, request: StoreRequest) -> StoreAnswer:
        identifiers = checked_identifiers(request)
        head = part10.write_file_head(
            sop_class_uid=identifiers.sop_class_uid,
            sop_instance_uid=identifiers.sop_instance_uid,
            transfer_syntax_uid=request.transfer_syntax_uid,
        )
        new = _announced(identifiers, request, len(head), self._now())
        # The same Instance may come on two Associations at once: each finds what the other did.
        with self._instances.held(identifiers.sop_instance_uid):
            arrival = self._keep(new, head, request.data_set)
        return StoreAnswer(status=SUCCESS, series_uid=identifiers.series_uid, arrival=arrival)

    def _keep(self, new: Announced, *parts: bytes) -> Arrival:
        if self._backlog.holds(new.sop_instance_uid):
            self._backlog.settle(new.sop_instance_uid)
        # A file that is there is compared and perhaps replaced, so the journal is for those that come first.
        elif not self._storage.path(new.path).exists() and self._backlog.accept(new, *parts):
            return "new"
        return self._write_at_once(new, *parts)

    def _write_at_once(self, new: Announced, *parts: bytes) -> Arrival:
        stored = self._storage.write_instance(new.study_uid, new.series_uid, new.sop_instance_uid, *parts)
        instance = new.received(stored).instance
        arrival = self._database.record_instance(instance, source_ae=new.source_ae, source_ip=new.source_ip)
        if not self._storage.path(stored.path).exists():
            # A purge of the series took the file between its writing and its row; from here on it takes no more.
            self._storage.write_instance(new.study_uid, new.series_uid, new.sop_instance_uid, *parts)
        if arrival != "same":
            self._grew(new.series_uid, new.source_ae)
        return arrival

    def adopt(self) -> int:
        """Give durable files a row that a crash kept from them; how many there were.

        None of them while others receive here: a file of theirs has its row in a moment, and that says who sent it.
        What was acknowledged has a row or a record, so the rest can wait for a start when nobody else receives.
        """
        files, adopted = list(map(PurePosixPath, self._storage.incoming_files())), 0
        if files and self._storage.living_marks() - {self._storage.mark.name}:
            log.info("others receive here: no file adopted", extra={"action": "adopt"})
            return 0
        for folder, members in groupby(files, key=lambda path: path.parent):
            rows = {row["path"]: row for row in self._database.instances(folder.name)}
            for path in members:
                try:
                    adopted += self._adopt(str(path), rows.get(str(path)))
                except (DicomNodeError, OSError) as err:
                    log.warning("file left alone", extra={"action": "adopt", "path": str(path), "why": describe(err)})
        if adopted:
            log.info("files adopted", extra={"action": "adopt", "instances": adopted})
        return adopted

    def _adopt(self, path: str, row: Row | None) -> bool:
        """True when the file's row was missing, or older than the file: a crash fell between the two."""
        written_at = self._storage.path(path).stat().st_mtime
        if row is None:
            row = self._database.instance(PurePosixPath(path).stem)
        if row is not None and row["received_at"] >= written_at:
            return False
        data = self._storage.path(path).read_bytes()
        head = part10.read_file_head(data)
        identifiers = part10.read_identifiers(data[head.data_set_at :], head.transfer_syntax_uid)
        expected = f"incoming/{identifiers.study_uid}/{identifiers.series_uid}/{identifiers.sop_instance_uid}.dcm"
        if path != expected:
            raise DataSetMismatch("the file does not lie where its UIDs belong")
        series = self._database.series(identifiers.series_uid)
        stored = StoredFile(path=path, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
        arrival = self._database.record_instance(
            _row(identifiers, head.transfer_syntax_uid, stored),
            # The file does not say who sent it; whoever sent the rest of the series did.
            source_ae=series["source_ae"] if series is not None else "",
            source_ip=series["source_ip"] if series is not None else "",
        )
        return arrival != "same"


def checked_identifiers(request: StoreRequest) -> part10.Identifiers:
    """The identifiers of the data set, each a valid UID, and those of Class and Instance as announced."""
    if request.sop_class_uid != request.abstract_syntax:
        raise ClassNotNegotiated("the SOP Class is not that of the Presentation Context")
    if not request.data_set:
        raise UnreadableInstance("the request has no data set")
    found = part10.read_identifiers(request.data_set, request.transfer_syntax_uid)
    checked_uid(found.sop_class_uid, "SOPClassUID")
    checked_uid(found.sop_instance_uid, "SOPInstanceUID")
    checked_uid(found.study_uid, "StudyInstanceUID")
    checked_uid(found.series_uid, "SeriesInstanceUID")
    if found.sop_class_uid != request.sop_class_uid:
        raise DataSetMismatch("SOPClassUID is not that of the request")
    if found.sop_instance_uid != request.sop_instance_uid:
        raise DataSetMismatch("SOPInstanceUID is not that of the request")
    return found


def _announced(
    identifiers: part10.Identifiers, request: StoreRequest, head_bytes: int, received_at: float
) -> Announced:
    return Announced(
        sop_instance_uid=identifiers.sop_instance_uid,
        sop_class_uid=identifiers.sop_class_uid,
        transfer_syntax_uid=request.transfer_syntax_uid,
        study_uid=identifiers.study_uid,
        series_uid=identifiers.series_uid,
        path=instance_path(identifiers.study_uid, identifiers.series_uid, identifiers.sop_instance_uid),
        size_bytes=head_bytes + len(request.data_set),
        source_ae=request.source_ae,
        source_ip=request.source_ip,
        received_at=received_at,
    )


def _row(identifiers: part10.Identifiers, transfer_syntax_uid: str, stored: StoredFile) -> ReceivedInstance:
    return ReceivedInstance(
        sop_instance_uid=identifiers.sop_instance_uid,
        sop_class_uid=identifiers.sop_class_uid,
        transfer_syntax_uid=transfer_syntax_uid,
        study_uid=identifiers.study_uid,
        series_uid=identifiers.series_uid,
        path=stored.path,
        sha256=stored.sha256,
        size_bytes=stored.size_bytes,
    )


class _KeyedLocks:
    """A lock for each key, which exists only while somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextlib.contextmanager
    def held(self, key: str) -> Iterator[None]:
        with self._guard:
            lock, users = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, users = self._locks[key]
                if users == 1:
                    del self._locks[key]
                else:
                    self._locks[key] = (lock, users - 1)
