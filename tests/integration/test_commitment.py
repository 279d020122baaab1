"""Storage Commitment over the wire, with peers on stock pynetdicom: both Associations, both roles, hostile words."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

from dicom_node import engine, tracing
from dicom_node.commitment import Commitments, Keeper
from dicom_node.commitments import MOST_ROUNDS
from dicom_node.dimse.commit_intake import ELSEWHERE_S
from dicom_node.dimse.commitment import Report, report_to
from dicom_node.dimse.scu import send
from dicom_node.engine import EngineClient, WorkflowState
from dicom_node.peers import PeerConfig
from tests.conftest import RunningReceiver
from tests.fakes.collector import collector
from tests.fakes.committing import (
    INSTANCE,
    CommitmentUser,
    CommittingArchive,
    archive,
    kept,
    lost,
    report,
    send_report,
)
from tests.fakes.instances import fake_instance
from tests.integration.test_commitments import Clock, states
from tests.integration.test_db import JOB, SERIES, finish, make_job, obj, received, record
from tests.peers import free_port

SEG, SR = obj("seg"), obj("sr")
CT = "1.2.840.10008.5.1.4.1.1.2"


class Deliverer:
    """A node with a stored SEG and SR at "keeper", its receiver running; `look` is one round of its deliver role."""

    def __init__(self, running: RunningReceiver, clock: Clock) -> None:
        self.running, self.clock, self.database = running, clock, running.database
        self.database._now = clock
        database = self.database
        record(database, received())
        database.series_assembled(SERIES, "ab", clock.now)
        make_job(database)
        database.start_job(JOB, "w1")
        finish(database, objects=[obj("sr", to=["keeper"]), obj("seg", to=["keeper"])])
        for one in (SEG, SR):
            self.store(one.sop_instance_uid)
        engine.migrate(database.url)
        self.client = EngineClient(database.url)
        self.restart()

    def store(self, uid: str) -> None:
        self.database.move_delivery(uid, "keeper", ["waiting"], "stored", status=0)

    def restart(self) -> None:
        """What was only in memory is gone."""
        self.commitments = Commitments(
            config=self.running.config,
            database=self.database,
            storage=self.running.storage,
            engine=self.client,
            now=self.clock,
        )

    def look(self) -> None:
        self.commitments.look()

    def states(self) -> dict[str, str]:
        return states(self.database, "keeper")

    def deliveries(self) -> list[WorkflowState]:
        """All that were queued, also those that ended."""
        return self.client.states(name="deliver")

    def transactions(self) -> list[str]:
        return [row["state"] for row in self.database.commitments(JOB)]


@pytest.fixture
def keeper() -> Iterator[CommittingArchive]:
    with archive() as running:
        yield running


@pytest.fixture
def deliverer(start_receiver: Callable[..., RunningReceiver], keeper: CommittingArchive) -> Iterator[Deliverer]:
    made = Deliverer(start_receiver(**settings(keeper.port)), Clock())
    yield made
    made.client.close()


def settings(port: int, **more: Any) -> dict[str, Any]:
    return {
        "receive": {"ae_title": "NODE", "unknown_peers": "refuse"},
        "peers": {
            "keeper": {
                "ae_title": "KEEPER",
                "host": "127.0.0.1",
                "port": port,
                "may_commit": True,
                "response_timeout_s": 5,
            },
            "other": {"ae_title": "OTHER", "host": "127.0.0.1", "port": port, "may_commit": True, "may_send": True},
            **more,
        },
        "deliver": {"first_wait_s": 5, "commit_wait_h": 6},
    }


# -- we ask --------------------------------------------------------------------------------------------


def test_a_report_on_the_association_of_the_request_commits(deliverer: Deliverer, keeper: CommittingArchive) -> None:
    keeper.same_association = kept
    deliverer.look()
    assert deliverer.states() == {"seg": "committed", "sr": "committed"}
    assert keeper.wait_for(lambda: keeper.answers == [0x0000])
    [request] = keeper.requests
    asked = {(i.ReferencedSOPClassUID, i.ReferencedSOPInstanceUID) for i in request.ReferencedSOPSequence}
    assert asked == {(one.sop_class_uid, one.sop_instance_uid) for one in (SEG, SR)}


def test_a_report_hours_later_on_another_association_commits_after_a_restart(
    deliverer: Deliverer, keeper: CommittingArchive
) -> None:
    with collector() as collected:
        tracing.start(collected.endpoint, "receive")
        _commit_hours_later(deliverer, keeper)
        tracing.stop()
    [span] = collected.spans()
    assert (span.name, span.trace_id) == ("commit", tracing.trace_id(JOB.rpartition("-")[0]).to_bytes(16, "big"))
    assert span.end_time_unix_nano - span.start_time_unix_nano == 5 * 3600 * 10**9, "from the request to the word"


def _commit_hours_later(deliverer: Deliverer, keeper: CommittingArchive) -> None:
    deliverer.look()
    assert deliverer.states() == {"seg": "stored", "sr": "stored"}
    deliverer.clock.now += 5 * 3600
    deliverer.restart()
    deliverer.look()
    assert len(keeper.requests) == 1, "the time to wait is not over"
    assert keeper.report_to(deliverer.running.port, keeper.requests[0]) == 0x0000
    assert deliverer.states() == {"seg": "committed", "sr": "committed"}
    assert keeper.report_to(deliverer.running.port, keeper.requests[0]) == 0x0000, "a repeated one is harmless"
    deliverer.clock.now += 48 * 3600
    deliverer.look()
    assert len(keeper.requests) == 1


def test_without_a_word_it_is_asked_again_with_a_new_transaction(
    deliverer: Deliverer, keeper: CommittingArchive
) -> None:
    for _ in range(2):
        deliverer.look()
        deliverer.clock.now += 6 * 3600
    assert len({request.TransactionUID for request in keeper.requests}) == 2
    assert deliverer.transactions() == ["lapsed", "asked"]
    assert keeper.report_to(deliverer.running.port, keeper.requests[0]) == 0x0000
    assert deliverer.states() == {"seg": "committed", "sr": "committed"}


def test_what_is_not_kept_is_sent_again_and_parked_after_some_rounds(
    deliverer: Deliverer, keeper: CommittingArchive, counts: Callable[[str], dict[str, float]]
) -> None:
    for number in range(1, MOST_ROUNDS + 1):
        deliverer.look()
        only_sr = lost if number > 1 else (lambda uid: lost(uid) if uid == SR.sop_instance_uid else 0)
        assert keeper.report_to(deliverer.running.port, keeper.requests[-1], only_sr) == 0x0000
        if number == MOST_ROUNDS:
            break
        assert deliverer.states() == {"seg": "committed", "sr": "waiting"}
        deliverer.look()
        deliverer.look()
        assert len(deliverer.deliveries()) == number, "one a round, however often it is looked"
        deliverer.store(SR.sop_instance_uid)
    assert deliverer.states() == {"seg": "committed", "sr": "parked"}
    [row] = [row for row in deliverer.database.deliveries(JOB) if row["kind"] == "sr"]
    assert row["message"] == "the peer stored it and does not keep it: no such object instance (0x0112), 3 times"
    settled = {"keeper committed": 1, "keeper not_kept": 2, "keeper parked": 1}
    assert counts("dicom_node_deliveries_total") == settled


def test_each_object_is_sent_again_where_a_job_s_objects_are_reported_on_one_after_the_other(
    deliverer: Deliverer, keeper: CommittingArchive
) -> None:
    deliverer.look()
    for number, one in enumerate((SEG, SR), 1):
        of_one = Dataset()
        of_one.TransactionUID = keeper.requests[0].TransactionUID
        named = (
            i for i in keeper.requests[0].ReferencedSOPSequence if i.ReferencedSOPInstanceUID == one.sop_instance_uid
        )
        of_one.ReferencedSOPSequence = list(named)
        deliverer.clock.now += 60
        assert keeper.report_to(deliverer.running.port, of_one, lost) == 0x0000
        assert deliverer.states()[one.kind] == "waiting"
        deliverer.look()
        assert len(deliverer.deliveries()) == number, "what was queued for the first has ended before the second's word"
        for state in deliverer.deliveries():
            deliverer.client.cancel(state.workflow_id)
        deliverer.store(one.sop_instance_uid)


def test_a_peer_that_refuses_is_asked_again_after_growing_pauses(
    deliverer: Deliverer, keeper: CommittingArchive, caplog: pytest.LogCaptureFixture
) -> None:
    keeper.status = 0x0110
    deliverer.look()
    assert deliverer.transactions() == ["refused"]
    [row] = deliverer.database.commitments(JOB)
    assert "refused Storage Commitment with status 0x0110" in row["message"]
    keeper.status = 0x0000
    deliverer.look()
    assert keeper.requests == []
    deliverer.clock.now += 10
    deliverer.look()
    assert len(keeper.requests) == 1
    assert deliverer.states() == {"seg": "stored", "sr": "stored"}


def test_a_peer_that_is_down_or_knows_no_storage_commitment_holds_up_nothing(
    start_receiver: Callable[..., RunningReceiver],
) -> None:
    deliverer = Deliverer(start_receiver(**settings(free_port())), Clock())
    deliverer.look()
    [row] = deliverer.database.commitments(JOB)
    assert "is the peer running" in row["message"]
    deliverer.client.close()


def test_a_peer_without_the_service_is_noted(
    start_receiver: Callable[..., RunningReceiver], keeper: CommittingArchive
) -> None:
    ae = AE("KEEPER")
    ae.add_supported_context(Verification)
    server = ae.start_server(("127.0.0.1", 0), block=False)
    deliverer = Deliverer(start_receiver(**settings(server.socket.getsockname()[1])), Clock())
    deliverer.look()
    [row] = deliverer.database.commitments(JOB)
    assert (row["state"], "accepts none of these SOP Classes" in row["message"]) == ("refused", True)
    assert deliverer.states() == {"seg": "stored", "sr": "stored"}
    server.shutdown()
    deliverer.client.close()


def test_a_peer_that_never_answers_the_request_is_not_taken_to_have_refused(
    start_receiver: Callable[..., RunningReceiver],
) -> None:
    answers = threading.Event()
    with archive(before_answer=answers) as silent:
        ready = settings(silent.port)
        ready["peers"]["keeper"]["response_timeout_s"] = 0.5
        deliverer = Deliverer(start_receiver(**ready), Clock())
        deliverer.look()
        answers.set()
        assert silent.wait_for(lambda: len(silent.requests) == 1)
        [row] = deliverer.database.commitments(JOB)
        assert (row["state"], row["message"]) == ("asked", "the peer did not answer")
        assert silent.report_to(deliverer.running.port, silent.requests[0]) == 0x0000
        assert deliverer.states() == {"seg": "committed", "sr": "committed"}
        deliverer.client.close()


# -- words that are not for us, or not true ------------------------------------------------------------


def test_a_report_from_another_peer_is_refused_and_changes_nothing(
    deliverer: Deliverer, keeper: CommittingArchive, caplog: pytest.LogCaptureFixture
) -> None:
    deliverer.look()
    with caplog.at_level("WARNING"):
        assert keeper.report_to(deliverer.running.port, keeper.requests[0], calling="OTHER") == 0x0124
    assert "commitment report foreign" in caplog.text
    assert keeper.report_to(deliverer.running.port, keeper.requests[0], calling="STRANGER") == -1
    assert deliverer.states() == {"seg": "stored", "sr": "stored"}
    assert keeper.report_to(deliverer.running.port, keeper.requests[0]) == 0x0000


def test_an_unknown_transaction_is_refused(deliverer: Deliverer, keeper: CommittingArchive) -> None:
    deliverer.look()
    request = keeper.requests[0]
    request.TransactionUID = "1.2.3.999"
    assert keeper.report_to(deliverer.running.port, request) == 0x0115
    assert deliverer.states() == {"seg": "stored", "sr": "stored"}


def _with(**changes: Any) -> Callable[[Dataset], tuple[int, Dataset]]:
    def change(information: Dataset) -> tuple[int, Dataset]:
        for keyword, value in changes.items():
            if value is None:
                del information[keyword]
            else:
                setattr(information, keyword, value)
        return 1, information

    return change


def _both(information: Dataset) -> tuple[int, Dataset]:
    information.FailedSOPSequence = information.ReferencedSOPSequence
    return 2, information


def _bad_uid(information: Dataset) -> tuple[int, Dataset]:
    information.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "../../etc/passwd"
    return 1, information


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (_with(TransactionUID=None), 0x0115),
        (_with(TransactionUID="1." + "2" * 80), 0x0115),
        (_with(ReferencedSOPSequence=None), 0x0115),
        (_with(ReferencedSOPSequence=[]), 0x0115),
        (_with(ReferencedSOPSequence=[Dataset()]), 0x0115),
        (_both, 0x0115),
        (_bad_uid, 0x0115),
        (lambda information: (3, information), 0x0113),
    ],
    ids=["no uid", "long uid", "no sequence", "empty", "empty item", "kept and failed", "path", "event type"],
)
@pytest.mark.filterwarnings("ignore:Invalid value|.*value length")
def test_a_malformed_report_is_refused_by_name(
    deliverer: Deliverer,
    keeper: CommittingArchive,
    change: Callable[[Dataset], tuple[int, Dataset]],
    status: int,
) -> None:
    deliverer.look()
    _, information = report(keeper.requests[0], kept)
    event_type, information = change(information)
    port = deliverer.running.port
    assert send_report(port, event_type, information, calling="KEEPER") == status
    assert deliverer.states() == {"seg": "stored", "sr": "stored"}
    assert keeper.report_to(port, keeper.requests[0]) == 0x0000


def test_bytes_that_are_no_data_set_are_refused_and_the_association_goes_on(
    deliverer: Deliverer, keeper: CommittingArchive
) -> None:
    deliverer.look()
    event_type, information = report(keeper.requests[0], kept)
    ae = AE("KEEPER")
    ae.add_requested_context(StorageCommitmentPushModel, ImplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", deliverer.running.port, ae_title="NODE")
    for message_id, data in enumerate((b"\x08\0\x95\x11\xff\xff\xff\x7fx", b"\xff" * 64), start=1):
        request = N_EVENT_REPORT()
        request.MessageID = message_id
        request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = StorageCommitmentPushModel, INSTANCE
        request.EventTypeID = 1
        request.EventInformation = BytesIO(data)
        association._reactor_checkpoint.clear()
        association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
        _, answer = association.dimse.get_msg(block=True)
        assert answer.Status == 0x0115
        association._reactor_checkpoint.set()
    status, _ = association.send_n_event_report(information, event_type, StorageCommitmentPushModel, INSTANCE)
    assert status.Status == 0x0000
    association.release()


def test_a_request_of_endless_length_ends_its_association(deliverer: Deliverer) -> None:
    ae = AE("KEEPER")
    ae.add_requested_context(StorageCommitmentPushModel, ImplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", deliverer.running.port, ae_title="NODE")
    request = N_ACTION()
    request.MessageID = 1
    request.RequestedSOPClassUID, request.RequestedSOPInstanceUID = StorageCommitmentPushModel, INSTANCE
    request.ActionTypeID = 1
    request.ActionInformation = BytesIO(struct.pack("<HHI", 8, 0x1195, 2**24) + bytes(2**24))
    association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
    association.join(20)
    assert association.is_aborted


# -- peers ask us --------------------------------------------------------------------------------------


@pytest.fixture
def modality() -> Iterator[CommitmentUser]:
    with CommitmentUser().listening() as user:
        yield user


@pytest.fixture
def provider(start_receiver: Callable[..., RunningReceiver], modality: CommitmentUser) -> RunningReceiver:
    more = {
        "modality": {
            "ae_title": "MODALITY",
            "host": "127.0.0.1",
            "port": modality.port,
            "may_send": True,
            "response_timeout_s": 5,
        },
        "taker": {"ae_title": "TAKER", "host": "127.0.0.1", "port": modality.port, "may_commit": True},
    }
    return start_receiver(**settings(free_port(), **more))


@pytest.fixture
def look(provider: RunningReceiver) -> Iterator[Callable[[], None]]:
    engine.migrate(provider.database.url)
    client = EngineClient(provider.database.url)
    commitments = Commitments(
        config=provider.config,
        database=provider.database,
        storage=provider.storage,
        engine=client,
        now=provider.database._now,
    )
    yield commitments.look
    client.close()


def _sent(provider: RunningReceiver, tmp_path: Any, count: int = 2) -> list[tuple[str, str]]:
    files = [fake_instance(n).write(tmp_path / "files") for n in range(1, count + 1)]
    assert {outcome.kind for outcome in send(files, provider.peer, "MODALITY")} == {"stored"}
    return [(CT, path.stem) for path in files]


def _verdicts(information: Dataset) -> dict[str, int]:
    good = {str(i.ReferencedSOPInstanceUID): 0 for i in information.get("ReferencedSOPSequence", [])}
    bad = {str(i.ReferencedSOPInstanceUID): int(i.FailureReason) for i in information.get("FailedSOPSequence", [])}
    return good | bad


def test_a_peer_hears_on_its_own_association_what_we_keep(
    provider: RunningReceiver, modality: CommitmentUser, tmp_path: Any
) -> None:
    references = _sent(provider, tmp_path)
    assert modality.ask(provider.port, references, stay_s=20) == 0x0000
    [(event_type, information)] = modality.reports
    assert event_type == 1
    assert information.TransactionUID == "1.2.3.4"
    assert _verdicts(information) == {uid: 0 for _, uid in references}
    provider_row = provider.database.commit_request("modality", "1.2.3.4")
    assert provider_row is not None
    assert provider_row["state"] == "reported"


def test_rows_that_another_receiver_has_yet_to_write_are_waited_for(
    provider: RunningReceiver, modality: CommitmentUser, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several processes one has acknowledged the instances, another is asked for Storage Commitment."""
    pauses: list[float] = []

    def meanwhile(seconds: float) -> None:
        pauses.append(seconds)
        _sent(provider, tmp_path)
        provider.settle()

    monkeypatch.setattr(provider.receiver._acceptor.commitment, "_pause", meanwhile)
    references = [(CT, fake_instance(n).sop_instance_uid) for n in (1, 2)]
    assert modality.ask(provider.port, references, stay_s=20) == 0x0000
    assert _verdicts(modality.reports[0][1]) == {uid: 0 for _, uid in references}
    assert len(pauses) == 1


def test_a_peer_that_leaves_hears_it_on_an_association_of_ours(
    provider: RunningReceiver, modality: CommitmentUser, look: Callable[[], None], tmp_path: Any
) -> None:
    [(_, first), (_, second)] = _sent(provider, tmp_path)
    asked = [(CT, first), ("1.2.840.10008.5.1.4.1.1.4", second), (CT, "1.2.3.77")]
    assert modality.ask(provider.port, asked) == 0x0000
    _until_due(provider)
    look()
    assert modality.wait_for_reports(1)
    [(event_type, information)] = modality.reports
    assert event_type == 2
    assert _verdicts(information) == {first: 0, second: 0x0119, "1.2.3.77": 0x0112}
    look()
    assert len(modality.reports) == 1
    assert modality.roles == [(False, True)], "PS3.7 D.3.3.4: who requests the Association is the SCP here"


def _until_due(provider: RunningReceiver) -> None:
    for _ in range(200):
        if provider.database.commit_requests_due():
            return
        time.sleep(0.05)
    raise AssertionError("the report did not become due when its Association ended")


def test_a_file_that_is_gone_or_cut_is_not_committed_to(
    provider: RunningReceiver, modality: CommitmentUser, tmp_path: Any
) -> None:
    references = _sent(provider, tmp_path)
    provider.settle()
    rows = [provider.database.instance(uid) for _, uid in references]
    assert rows[0] is not None
    assert rows[1] is not None
    provider.storage.path(rows[0]["path"]).unlink()
    provider.storage.path(rows[1]["path"]).write_bytes(b"short")
    assert modality.ask(provider.port, references, stay_s=20) == 0x0000
    assert _verdicts(modality.reports[0][1]) == {uid: 0x0112 for _, uid in references}


def test_a_report_outlives_the_process_that_owed_it(
    provider: RunningReceiver, modality: CommitmentUser, look: Callable[[], None], tmp_path: Any
) -> None:
    """As after kill -9 between the response and the report: only the row is left."""
    references = _sent(provider, tmp_path)
    provider.database.record_commit_request("modality", "1.2.3.4", references, due_s=ELSEWHERE_S)
    look()
    assert modality.reports == []
    later = provider.database._now() + ELSEWHERE_S + 1
    provider.database._now = lambda: later
    look()
    assert modality.wait_for_reports(1)


def test_a_peer_that_is_away_is_called_once_for_all_that_it_is_owed_and_holds_up_no_other(
    start_receiver: Callable[..., RunningReceiver], modality: CommitmentUser
) -> None:
    user = {"ae_title": "MODALITY", "host": "127.0.0.1", "port": modality.port, "may_send": True}
    away = {"ae_title": "AWAY", "host": "127.0.0.1", "port": free_port(), "may_send": True}
    deliverer = Deliverer(start_receiver(**settings(free_port(), modality=user, away=away)), Clock())
    for n in range(3):
        deliverer.database.record_commit_request("away", f"1.2.3.{n}", [(CT, "1.2")], due_s=0.0)
    deliverer.database.record_commit_request("modality", "1.2.3.9", [(CT, "1.2")], due_s=0.0)
    called: list[str] = []

    def counted(peer: PeerConfig, calling_ae: str, about: Report) -> None:
        called.append(peer.ae_title)
        report_to(peer, calling_ae, about)

    deliverer.commitments = replace(deliverer.commitments, report=counted)
    deliverer.look()
    assert sorted(called) == ["AWAY", "MODALITY"]
    assert modality.wait_for_reports(1)
    assert deliverer.database.commit_requests_due() == []
    deliverer.clock.now += 3600
    assert [row["attempts"] for row in deliverer.database.commit_requests_due()] == [1, 1, 1]
    deliverer.client.close()


def test_a_report_that_is_refused_is_tried_again(
    provider: RunningReceiver, modality: CommitmentUser, look: Callable[[], None], tmp_path: Any
) -> None:
    references = _sent(provider, tmp_path)
    modality.answer = 0x0110
    provider.database.record_commit_request("modality", "1.2.3.4", references, due_s=0.0)
    look()
    row = provider.database.commit_request("modality", "1.2.3.4")
    assert row is not None
    assert (row["state"], row["attempts"]) == ("due", 1)
    assert "0x0110" in row["message"]


def test_only_who_may_send_may_ask(provider: RunningReceiver, modality: CommitmentUser) -> None:
    assert CommitmentUser(ae_title="TAKER").ask(provider.port, [(CT, "1.2.3")]) == 0x0124
    assert CommitmentUser(ae_title="NOBODY").ask(provider.port, [(CT, "1.2.3")]) == -1
    assert provider.database.commit_request("taker", "1.2.3.4") is None


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"references": []}, 0x0115),
        ({"action_type": 2}, 0x0123),
        ({"instance": "1.2.3.4.5"}, 0x0112),
        ({"transaction_uid": ""}, 0x0115),
        ({"references": [(CT, f"1.2.{n}") for n in range(10_001)]}, 0x0213),
    ],
    ids=["nothing", "action type", "instance", "no transaction", "too many"],
)
@pytest.mark.filterwarnings("ignore:Invalid value")
def test_a_malformed_request_is_refused_by_name(
    provider: RunningReceiver, modality: CommitmentUser, asked: dict[str, Any], status: int
) -> None:
    values: dict[str, Any] = {"references": [(CT, "1.2.3")], **asked}
    assert modality.ask(provider.port, values.pop("references"), **values) == status


def test_who_is_asked_and_may_not_send_is_offered_no_storage(provider: RunningReceiver) -> None:
    ae = AE("TAKER")
    for uid in (CT, StorageCommitmentPushModel, Verification):
        ae.add_requested_context(uid)
    association = ae.associate("127.0.0.1", provider.port, ae_title="NODE")
    assert {str(cx.abstract_syntax) for cx in association.accepted_contexts} == {
        StorageCommitmentPushModel,
        Verification,
    }
    association.release()


def test_of_two_processes_one_asks(deliverer: Deliverer, keeper: CommittingArchive) -> None:
    keepers = [Keeper(deliverer.commitments, every_s=0.05) for _ in range(2)]
    for one in keepers:
        one.start()
    assert keeper.wait_for(lambda: len(keeper.requests) == 1)
    for one in keepers:
        one.stop(10)
    assert len(keeper.requests) == 1
