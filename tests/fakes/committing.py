"""An archive on stock pynetdicom that answers Storage Commitment as a test tells it; and one that asks us for it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, build_role, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

INSTANCE = "1.2.840.10008.1.20.1.1"
Verdict = Callable[[str], int]  # SOP Instance UID -> 0 or a Failure Reason


def kept(_uid: str) -> int:
    return 0


def lost(_uid: str) -> int:
    return 0x0112


def report(request: Dataset, verdict: Verdict) -> tuple[int, Dataset]:
    """Event type and information that answer a request."""
    information = Dataset()
    information.TransactionUID = request.TransactionUID
    good, bad = [], []
    for asked in request.ReferencedSOPSequence:
        item = Dataset()
        item.ReferencedSOPClassUID = asked.ReferencedSOPClassUID
        item.ReferencedSOPInstanceUID = asked.ReferencedSOPInstanceUID
        reason = verdict(str(asked.ReferencedSOPInstanceUID))
        if reason:
            item.FailureReason = reason
        (bad if reason else good).append(item)
    if good:
        information.ReferencedSOPSequence = good
    if bad:
        information.FailedSOPSequence = bad
    return (2 if bad else 1), information


@dataclass
class CommittingArchive:
    """`same_association`: it reports on the Association of the request; else when the test calls `report_to`.

    status: of the N-ACTION response. before_answer: what each response waits for.
    """

    ae_title: str = "KEEPER"
    same_association: Verdict | None = None
    status: int = 0x0000
    before_answer: threading.Event | None = None
    port: int = 0
    stored: list[str] = field(default_factory=list)
    requests: list[Dataset] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def _on_store(self, event: evt.Event) -> int:
        with self.changed:
            self.stored.append(str(event.request.AffectedSOPInstanceUID))
            self.changed.notify_all()
        return 0x0000

    def _on_action(self, event: evt.Event) -> tuple[int, None]:
        if self.before_answer is not None:
            self.before_answer.wait(30)
        if self.status == 0x0000:
            asked = event.action_information
            if self.same_association is not None:
                thread = threading.Thread(target=self._report_on, args=(event.assoc, asked, self.same_association))
                self._threads.append(thread)
                thread.start()
            with self.changed:
                self.requests.append(asked)
                self.changed.notify_all()
        return self.status, None

    def _report_on(self, association: Any, request: Dataset, verdict: Verdict) -> None:
        event_type, information = report(request, verdict)
        status, _ = association.send_n_event_report(information, event_type, StorageCommitmentPushModel, INSTANCE)
        with self.changed:
            self.answers.append(status.Status if "Status" in status else -1)
            self.changed.notify_all()

    def wait_for(self, what: Callable[[], bool], timeout_s: float = 30.0) -> bool:
        with self.changed:
            return self.changed.wait_for(what, timeout_s)

    def report_to(
        self, port: int, request: Dataset, verdict: Verdict = kept, *, calling: str | None = None, called: str = "NODE"
    ) -> int:
        """The status that the node answers on an Association of ours; -1 where it accepts none."""
        event_type, information = report(request, verdict)
        return send_report(port, event_type, information, calling=calling or self.ae_title, called=called)

    def close(self) -> None:
        for thread in self._threads:
            thread.join(10)


def send_report(port: int, event_type: int, information: Dataset, *, calling: str, called: str = "NODE") -> int:
    ae = AE(calling)
    ae.add_requested_context(StorageCommitmentPushModel)
    role = build_role(StorageCommitmentPushModel, scp_role=True)
    association = ae.associate("127.0.0.1", port, ae_title=called, ext_neg=[role])
    if not association.is_established:
        return -1
    status, _ = association.send_n_event_report(information, event_type, StorageCommitmentPushModel, INSTANCE)
    association.release()
    return int(status.Status) if "Status" in status else -1


@contextlib.contextmanager
def archive(**settings: Any) -> Iterator[CommittingArchive]:
    made = CommittingArchive(**settings)
    ae = AE(made.ae_title)
    ae.supported_contexts = AllStoragePresentationContexts
    ae.add_supported_context("1.2.840.10008.5.1.4.1.1.66.4")
    ae.add_supported_context(Verification)
    ae.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    handlers = [(evt.EVT_C_STORE, made._on_store), (evt.EVT_N_ACTION, made._on_action)]
    server = ae.start_server(("127.0.0.1", made.port), block=False, evt_handlers=handlers)
    made.port = server.socket.getsockname()[1]
    try:
        yield made
    finally:
        server.shutdown()
        made.close()


@dataclass
class CommitmentUser:
    """A modality that asks a node for Storage Commitment and takes its reports, on either Association.

    roles: SCU and SCP as the node proposed them on Associations of its own.
    """

    ae_title: str = "MODALITY"
    port: int = 0
    answer: int = 0x0000
    roles: list[tuple[bool | None, bool | None]] = field(default_factory=list)
    reports: list[tuple[int, Dataset]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def _on_report(self, event: evt.Event) -> tuple[int, None]:
        with self.changed:
            self.reports.append((event.event_type, event.event_information))
            self.changed.notify_all()
        return self.answer, None

    def _on_accepted(self, event: evt.Event) -> None:
        proposed = event.assoc.requestor.role_selection[StorageCommitmentPushModel]
        self.roles.append((proposed.scu_role, proposed.scp_role))

    def wait_for_reports(self, count: int, timeout_s: float = 30.0) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: len(self.reports) >= count, timeout_s)

    def ask(
        self,
        port: int,
        references: list[tuple[str, str]],
        *,
        transaction_uid: str = "1.2.3.4",
        stay_s: float = 0.0,
        called: str = "NODE",
        action_type: int = 1,
        instance: str = INSTANCE,
    ) -> int:
        """The status of the N-ACTION response, -1 where there is none. Stays for a report as long as `stay_s`."""
        information = Dataset()
        information.TransactionUID = transaction_uid
        information.ReferencedSOPSequence = []
        for sop_class, uid in references:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
            information.ReferencedSOPSequence.append(item)
        ae = AE(self.ae_title)
        ae.add_requested_context(StorageCommitmentPushModel)
        handlers = [(evt.EVT_N_EVENT_REPORT, self._on_report)]
        association = ae.associate("127.0.0.1", port, ae_title=called, evt_handlers=handlers)
        if not association.is_established:
            return -1
        before = len(self.reports)
        status, _ = association.send_n_action(information, action_type, StorageCommitmentPushModel, instance)
        if stay_s:
            self.wait_for_reports(before + 1, stay_s)
        association.release()
        return int(status.Status) if "Status" in status else -1

    @contextlib.contextmanager
    def listening(self) -> Iterator[CommitmentUser]:
        ae = AE(self.ae_title)
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        handlers = [(evt.EVT_N_EVENT_REPORT, self._on_report), (evt.EVT_ACCEPTED, self._on_accepted)]
        server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        self.port = server.socket.getsockname()[1]
        try:
            yield self
        finally:
            server.shutdown()
