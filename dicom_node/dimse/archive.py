"""A small test PACS: takes every storage class, keeps each object as a file. For `dicom-node demo` and tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dicom_node.dimse import part10
from dicom_node.dimse.acceptor import Acceptor, Caller
from dicom_node.dimse.contexts import STORAGE_CLASSES, supported_contexts
from dicom_node.dimse.intake import CANNOT_UNDERSTAND, DATA_SET_DOES_NOT_MATCH, SUCCESS, StoreAnswer, StoreRequest
from dicom_node.errors import InvalidUID, UnreadableInstance
from dicom_node.storage import checked_uid


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedObject:
    """One object that came, once for each time that it came."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str
    transfer_syntax_uid: str
    calling_ae: str


class Archive:
    """Listens on loopback between `start` and `stop`; `<folder>/<SOP Instance UID>.dcm` for each object.

    on_stored: called from an Association's thread after each object.
    """

    def __init__(
        self,
        folder: Path,
        ae_title: str,
        port: int = 0,
        *,
        on_stored: Callable[[ArchivedObject], None] | None = None,
    ) -> None:
        self.folder, self.ae_title = folder, ae_title
        self._on_stored = on_stored
        self._received: list[ArchivedObject] = []
        self._changed = threading.Condition()
        self._acceptor = Acceptor(
            self,
            ae_title=ae_title,
            contexts=supported_contexts(STORAGE_CLASSES),
            host="127.0.0.1",
            port=port,
            max_pdu_bytes=131072,
            max_associations=50,
            idle_timeout_s=60.0,
        )

    def start(self) -> int:
        """Begin to listen; the port."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self._acceptor.start()

    def stop(self, drain_s: float = 5.0) -> None:
        self._acceptor.stop(drain_s)

    def received(self) -> list[ArchivedObject]:
        """What came so far, in order of arrival."""
        with self._changed:
            return list(self._received)

    def wait_for(self, count: int, timeout_s: float) -> bool:
        """True once that many objects came."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._received) >= count, timeout_s)

    # -- what happens on Associations, called from their threads -----------------------------------

    def admit(self, caller: Caller) -> None:
        """Everybody is welcome, by any called AE title."""

    def store(self, request: StoreRequest) -> StoreAnswer:
        try:
            found = part10.read_identifiers(request.data_set, request.transfer_syntax_uid)
            uid = checked_uid(request.sop_instance_uid, "SOPInstanceUID")
        except UnreadableInstance as err:
            return StoreAnswer(status=CANNOT_UNDERSTAND, comment=str(err))
        except InvalidUID as err:
            return StoreAnswer(status=DATA_SET_DOES_NOT_MATCH, comment=str(err))
        path = self.folder / f"{uid}.dcm"
        head = part10.write_file_head(
            sop_class_uid=request.sop_class_uid,
            sop_instance_uid=uid,
            transfer_syntax_uid=request.transfer_syntax_uid,
        )
        with self._changed:
            path.write_bytes(head + request.data_set)
            came = ArchivedObject(
                path=path,
                sop_class_uid=request.sop_class_uid,
                sop_instance_uid=uid,
                series_uid=found.series_uid,
                transfer_syntax_uid=request.transfer_syntax_uid,
                calling_ae=request.source_ae,
            )
            self._received.append(came)
            self._changed.notify_all()
        if self._on_stored is not None:
            self._on_stored(came)
        return StoreAnswer(status=SUCCESS)

    def began(self, caller: Caller, series_uid: str) -> None:
        """Nobody waits for its series to be complete."""

    def ended(self, caller: Caller, *, released: bool) -> None:
        """Nothing hangs on how an Association ends."""
