"""The workflows with real rows and files: what each step decides, and that doing it twice is doing it once."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import sqlalchemy as sa

from dicom_node import logs, schema
from dicom_node.completeness import ArchiveCount
from dicom_node.config import Config
from dicom_node.db import Database, ReceivedInstance, Row
from dicom_node.delivery import delivery_id
from dicom_node.dimse.scu import Outcome
from dicom_node.domain import Detection, LungDistance, ModelIdentity, Volume
from dicom_node.errors import ConfigError, DatabaseUnavailable, DicomNodeError, Reason, ResultError, SeriesRejected
from dicom_node.flow import Flow, judgement, refusals
from dicom_node.lookback import Found, Missed, not_available
from dicom_node.manifest import manifest_sha256
from dicom_node.peers import PeerConfig
from dicom_node.render import job_files, render
from dicom_node.storage import Storage
from dicom_node.summary import job_summary
from tests.fakes.ct import HEADER, make_ct_series
from tests.fakes.findings import MODEL, ball

SERIES = HEADER["SeriesInstanceUID"]
CANARY = "Canary^Secret"
SETTINGS: dict[str, Any] = {
    "peers": {
        "pacs": {"ae_title": "PACS", "host": "h", "port": 104},
        "archive": {"ae_title": "ARCHIVE", "host": "h", "port": 104},
    },
    "gate": {"min_slices": 5, "min_length_mm": 0},
    "models": {"nodules": {"bundle": "builtin:lung_nodule_small"}},
    "routes": [
        {
            "name": "chest",
            "when": {"Modality": {"equals": "CT"}},
            "model": "nodules",
            "destinations": ["pacs", "archive"],
            "priority": "high",
        }
    ],
}


class FakeRun:
    """Runs each step `times` times at once and notes what a workflow asks of the engine."""

    def __init__(self, times: int = 1) -> None:
        self.times = times
        self.steps: list[str] = []
        self.enqueued: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = []
        self.slept: list[float] = []
        self.bounced: list[float] = []

    def step(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        self.steps.append(name)
        results = [function(*args) for _ in range(self.times)]
        assert all(result == results[0] for result in results)
        return json.loads(json.dumps(results[0]))

    def enqueue(self, workflow: str, workflow_id: str, *args: Any, **options: Any) -> None:
        self.enqueued.append((workflow, workflow_id, args, options))

    def bounce(self, workflow: str, key: str, delay_s: float, *args: Any, longest_s: float) -> None:
        assert (workflow, args) == ("assemble", (key,))
        self.bounced.append(delay_s)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class FakeDetector:
    """Finds a ball in the middle; `also` runs between two words of progress."""

    def __init__(self) -> None:
        self.also: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None
        self.radius_mm: float | None = 6.0
        self.lungs: LungDistance | None = None
        self.calls = 0

    @property
    def identity(self) -> ModelIdentity:
        return MODEL

    def detect(self, volume: Volume, *, progress: Callable[[float], None] | None = None) -> Detection:
        assert progress is not None
        self.calls += 1
        progress(0.1)
        self.also()
        progress(0.9)
        self.after()
        middle = (volume.hu.shape[0] / 2, 32.0, 32.0)
        findings = () if self.radius_mm is None else (ball(volume, middle, self.radius_mm),)
        return Detection(
            findings=findings,
            analysed=(0, volume.hu.shape[0]),
            model=MODEL,
            timings_s={"network": 0.5},
            lungs=self.lungs,
        )


class FakeSender:
    """Answers each file with the next of `kinds`, and the last one for ever."""

    def __init__(self) -> None:
        self.kinds: list[str] = ["stored"]
        self.sent: list[tuple[list[str], str, str]] = []
        self.before: Callable[[], None] = lambda: None
        self.comment: str | None = None

    def __call__(self, files: Sequence[Path], peer: PeerConfig, calling_ae: str) -> Sequence[Outcome]:
        self.before()
        self.sent.append(([path.name for path in files], peer.ae_title, calling_ae))
        return [self._answer(path) for path in files]

    def _answer(self, path: Path) -> Outcome:
        kind: Any = self.kinds.pop(0) if len(self.kinds) > 1 else self.kinds[0]
        status = {"stored": 0x0000, "retry": 0xA700, "refused": 0xC000, "unknown": None}[kind]
        comment = self.comment or f"it was {kind}\0"
        return Outcome(path=path, kind=kind, status=status, message="" if kind == "stored" else comment)


class FakeArchive:
    """The network edge of an archive that is asked for counts: answers `says`; `also` runs while it does."""

    def __init__(self) -> None:
        self.says: int | str = "does not answer"
        self.asked: list[str] = []
        self.also: Callable[[], None] = lambda: None

    def __call__(self, peer: PeerConfig, calling_ae: str, *, study_uid: str, series_uid: str) -> ArchiveCount:
        assert (calling_ae, study_uid, series_uid) == ("DICOMNODE", HEADER["StudyInstanceUID"], SERIES)
        self.asked.append(peer.ae_title)
        self.also()
        if isinstance(self.says, str):
            return ArchiveCount(ae_title=peer.ae_title, problem=self.says)
        return ArchiveCount(ae_title=peer.ae_title, instances=self.says)


class Node:
    """A Flow on a real SQLite and a real storage root, with a clock of its own."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.folder, self.clock = folder, 1_700_000_000.0
        tick = itertools.count()
        self.storage = Storage(config.storage.root)
        self.database = Database(config.database_url(), now=lambda: self.clock + next(tick) * 1e-3)
        self.database.migrate()
        self.detector, self.sender, self.archive = FakeDetector(), FakeSender(), FakeArchive()
        self.looked: list[tuple[str, float]] = []
        self.earlier: Callable[[str], Found | Missed] = lambda _job_id: not_available("The test has none.")
        self.flow = self.flow_with(config)

    def flow_with(self, config: Config, executor_id: str = "host/work") -> Flow:
        return Flow(
            config=config,
            database=self.database,
            storage=self.storage,
            executor_id=executor_id,
            detector=lambda _name: self.detector,
            send=self.sender,
            count=self.archive,
            find_prior=self.find_prior,
            now=lambda: self.clock,
            pause=self.let_pass,
        )

    def find_prior(
        self, job_id: str, archive: str, header: pydicom.Dataset, until: float, settle: Callable[[Found], None]
    ) -> Missed | None:
        """What the test wants to be found."""
        self.looked.append((archive, until - self.clock))
        assert header.PatientID == HEADER["PatientID"]
        earlier = self.earlier(job_id)
        if isinstance(earlier, Missed):
            return earlier
        settle(earlier)
        return None

    def let_pass(self, seconds: float) -> None:
        self.clock += seconds

    def receive(self, count: int | None = None, **series: Any) -> None:
        """A series of eight images arrives, or its first `count`."""
        for path in make_ct_series(self.folder / "scanner", **{"shape": (8, 64, 64), **series})[:count]:
            self._store(path)

    def _store(self, path: Path) -> None:
        data = path.read_bytes()
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        uids = str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID), str(ds.SOPInstanceUID)
        stored = self.storage.write_instance(*uids, data)
        instance = ReceivedInstance(
            sop_instance_uid=uids[2],
            sop_class_uid=str(ds.SOPClassUID),
            transfer_syntax_uid=str(ds.file_meta.TransferSyntaxUID),
            study_uid=uids[0],
            series_uid=uids[1],
            path=stored.path,
            sha256=stored.sha256,
            size_bytes=stored.size_bytes,
        )
        self.database.record_instance(instance, source_ae="CT1", source_ip="192.0.2.1")

    def receive_one(self, header: dict[str, Any]) -> None:
        """One more instance of the series."""
        for path in make_ct_series(self.folder / "one more", shape=(1, 64, 64), header=header):
            self._store(path)

    def assemble(self, times: int = 1, *, after_s: float = 60.0) -> FakeRun:
        """A look at the series, by default when its quiet time is over."""
        self.clock += after_s
        run = FakeRun(times)
        self.flow.assembly.assemble(run, SERIES)
        return run

    def analyse(self, job_id: str, times: int = 1) -> FakeRun:
        run = FakeRun(times)
        self.flow.analyses.analyse(run, job_id)
        return run

    def deliver(self, job_id: str, destination: str = "pacs") -> FakeRun:
        run = FakeRun()
        self.flow.delivery.deliver(run, job_id, destination)
        return run

    def complete(self) -> str:
        """A job with a SEG and an SR to deliver."""
        self.receive()
        [(_, job_id, _, _)] = self.assemble().enqueued
        self.analyse(job_id)
        return job_id

    def job(self) -> Row:
        [row] = self.database.jobs()
        return row

    def ledger(self, job_id: str, destination: str = "pacs") -> list[str]:
        return [row["state"] for row in self.database.deliveries(job_id, destination)]

    def results(self, job_id: str) -> dict[str, str]:
        """File name -> hash of its bytes."""
        folder = self.storage.path(f"results/{job_id}")
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture
def make_node(node_config: Callable[..., Config], tmp_path: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(**sections: Any) -> Node:
        made.append(Node(node_config(**{**SETTINGS, **sections}), tmp_path))
        return made[-1]

    yield make
    for node in made:
        node.database.close()


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    return make_node()


# -- assemble ------------------------------------------------------------------------------------------


def test_a_complete_series_is_queued_for_analysis(node: Node) -> None:
    node.receive()
    run = node.assemble()
    job = node.job()
    assert run.steps == ["decide"]
    assert run.enqueued == [("analyse", job["job_id"], (job["job_id"],), {"priority": "high"})]
    assert (job["state"], job["route"], job["instance_count"], job["source_ae"]) == ("queued", "chest", 8, "CT1")
    assert job["explanation"] == ["chest: matches"]
    assert job["evidence"] == {
        "rung": "quiet",
        "partial": False,
        "text": "8 instances received, 8 axial slices contiguous, quiet for 60.0 s",
        "instances": 8,
        "slices": 8,
        "left_out": 0,
        "dense": True,
        "released": False,
        "quiet_s": 60.0,
        "waiting_s": 60.0,
        "archive": None,
    }


def test_lossy_images_that_the_settings_accept_are_named_in_the_evidence(make_node: Callable[..., Node]) -> None:
    node = make_node(gate={**SETTINGS["gate"], "lossy": "accept"})
    node.receive(header={"LossyImageCompression": "01", "LossyImageCompressionRatio": "8"})
    node.assemble()
    assert node.job()["state"] == "queued"
    assert node.job()["evidence"]["lossy"] == ("8 of 8 images were compressed with loss: method not told, ratio 8")


def test_an_unchanged_set_of_instances_does_nothing(node: Node) -> None:
    job_id = node.complete()
    before = node.results(job_id)
    node.receive()  # the PACS sends all of it again
    run = node.assemble()
    assert run.enqueued == []
    assert [row["job_id"] for row in node.database.jobs()] == [job_id]
    assert node.results(job_id) == before
    assert node.database.series_to_assemble() == []


def test_a_series_that_is_not_there_is_nothing_to_do(node: Node) -> None:
    run = node.assemble()
    assert (run.steps, run.enqueued) == (["decide"], [])


def test_a_changed_set_makes_a_new_revision_whose_report_names_its_predecessor(node: Node) -> None:
    node.receive(6)
    [(_, first, _, _)] = node.assemble().enqueued
    node.analyse(first)
    node.receive()
    [(_, second, _, _)] = node.assemble().enqueued
    assert second != first
    node.analyse(second)
    old, new = (pydicom.dcmread(node.storage.path(f"results/{job}/sr.dcm")) for job in (first, second))
    assert "PredecessorDocumentsSequence" not in old
    [study] = new.PredecessorDocumentsSequence
    [series] = study.ReferencedSeriesSequence
    [instance] = series.ReferencedSOPSequence
    assert study.StudyInstanceUID == old.StudyInstanceUID
    assert series.SeriesInstanceUID == old.SeriesInstanceUID
    assert instance.ReferencedSOPInstanceUID == old.SOPInstanceUID
    assert new.SOPInstanceUID != old.SOPInstanceUID


def test_images_that_come_after_the_decision_are_no_part_of_the_job(node: Node) -> None:
    node.receive(6)
    [(_, job_id, _, _)] = node.assemble().enqueued
    node.receive()
    node.analyse(job_id)
    sr = pydicom.dcmread(node.storage.path(f"results/{job_id}/sr.dcm"))
    referenced = sr.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert len(referenced) <= 6
    assert node.database.series_to_assemble() != []


def test_a_job_that_is_still_queued_is_queued_again_under_its_id(node: Node) -> None:
    node.receive()
    first, again = node.assemble().enqueued, node.assemble().enqueued
    assert first == again


def test_a_rejected_series_gets_a_report_to_all_destinations(node: Node) -> None:
    node.receive(spacing_mm=(5.0, 0.7, 0.7))
    run = node.assemble()
    job = node.job()
    assert (job["state"], job["reason"]) == ("rejected", Reason.TOO_THICK)
    assert run.steps == ["decide", "report"]
    assert [(e[0], e[1], e[3]["partition"]) for e in run.enqueued] == [
        ("deliver", delivery_id(job["job_id"], d), d) for d in ("archive", "pacs")
    ]
    sr = pydicom.dcmread(node.storage.path(f"results/{job['job_id']}/sr.dcm"))
    assert "TOO_THICK" in sr.to_json()


def test_a_rejected_series_gets_none_where_the_route_wants_none(make_node: Callable[..., Node]) -> None:
    quiet = {"name": "r", "model": "nodules", "destinations": ["pacs"], "report_rejected": False}
    node = make_node(routes=[quiet])
    node.receive(spacing_mm=(5.0, 0.7, 0.7))
    run = node.assemble()
    assert (node.job()["state"], run.steps, run.enqueued) == ("rejected", ["decide"], [])


def test_what_is_no_ct_is_rejected_in_silence(node: Node) -> None:
    node.receive(header={"Modality": "MR"})
    run = node.assemble()
    assert (node.job()["reason"], run.steps) == (Reason.NOT_CT, ["decide"])


def test_a_series_for_which_there_is_no_route_says_what_was_asked(make_node: Callable[..., Node]) -> None:
    node = make_node(routes=[{"name": "r", "model": "nodules", "when": {"Modality": {"equals": "PT"}}}])
    node.receive()
    assert node.assemble().enqueued == []
    job = node.job()
    assert (job["state"], job["reason"], job["route"]) == ("rejected", Reason.NO_ROUTE, None)
    assert job["explanation"] == ["r: Modality is CT, not PT"]


@pytest.mark.parametrize("broken", [lambda path: path.unlink(), lambda path: path.write_bytes(b"no DICOM")])
def test_an_unreadable_header_among_good_ones_rejects_the_series_with_a_report(
    node: Node, broken: Callable[[Path], Any]
) -> None:
    node.receive()
    broken(node.storage.path(node.database.instances(SERIES)[5]["path"]))
    run = node.assemble()
    job = node.job()
    assert (job["state"], job["reason"], job["reason_text"]) == (
        "rejected",
        Reason.UNREADABLE,
        "the headers of 1 of 8 instances can't be parsed",
    )
    assert [e[2] for e in run.enqueued] == [(job["job_id"], "archive"), (job["job_id"], "pacs")]
    sr = pydicom.dcmread(node.storage.path(f"results/{job['job_id']}/sr.dcm"))
    assert "UNREADABLE" in sr.to_json()


@pytest.mark.parametrize("when", [{}, {"Modality": {"equals": "CT"}}])
def test_a_series_of_which_nothing_can_be_read_is_rejected_without_a_report(
    make_node: Callable[..., Node], when: dict[str, Any]
) -> None:
    node = make_node(routes=[{"name": "r", "model": "nodules", "when": when, "destinations": ["pacs"]}])
    node.receive()
    for row in node.database.instances(SERIES):
        node.storage.path(row["path"]).write_bytes(b"no DICOM")
    run = node.assemble()
    assert (node.job()["state"], node.job()["reason"]) == ("rejected", Reason.UNREADABLE)
    assert run.enqueued == []


def test_of_too_many_instances_one_header_is_enough(
    make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_node(gate={"min_slices": 5, "min_length_mm": 0, "max_instances": 5})
    node.receive()
    real, read = judgement.readable_headers, []
    for module in (judgement, refusals):
        monkeypatch.setattr(module, "readable_headers", lambda paths: (read.append(len(paths)), real(paths))[1])
    [delivery, _] = node.assemble().enqueued
    job = node.job()
    assert (job["state"], job["reason"], job["route"]) == ("rejected", Reason.TOO_LARGE, "chest")
    assert job["reason_text"] == "8 instances, gate.max_instances is 5"
    assert (read, delivery[0]) == ([1, 5], "deliver")


@pytest.mark.parametrize("keyword", ["PatientID", "PatientName", "PatientBirthDate", "PatientSex", "PatientComments"])
def test_no_patients_data_is_in_an_explanation(make_node: Callable[..., Node], keyword: str) -> None:
    value = {"PatientBirthDate": "19550505", "PatientSex": "F"}.get(keyword, "Canary")
    node = make_node(routes=[{"name": "r", "model": "nodules", "when": {keyword: {"equals": "none"}}}])
    node.receive(header={keyword: value})
    node.assemble()
    assert node.job()["explanation"] == [f"r: {keyword} is a value not shown here, not none"]
    assert f"'{value}'" not in repr(dict(node.job()))


def test_an_error_nobody_foresaw_leaves_a_failed_job_that_can_be_decided_on_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.receive()

    def fail(*_: Any) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr(judgement, "check_series", fail)
    assert node.assemble().enqueued == []
    job = node.job()
    assert (job["state"], job["reason"], job["route"]) == ("failed", "FAILED", None)
    assert job["reason_text"].startswith("RuntimeError at ")
    assert CANARY not in repr(dict(job))
    monkeypatch.undo()
    node.database.forget_job(job["job_id"])
    # A crash here would lose nothing: the series is one to assemble again.
    assert [row["series_uid"] for row in node.database.series_to_assemble()] == [SERIES]
    [(workflow, job_id, _, _)] = node.assemble().enqueued
    assert (workflow, job_id, node.job()["state"]) == ("analyse", job["job_id"], "queued")


def _calls(step: Callable[[], Any], database: Database, monkeypatch: pytest.MonkeyPatch, lost_at: int) -> int:
    """Run `step` with the database gone for its call number `lost_at`; how many calls there were."""
    real, calls = database._begin, 0
    real_all = database._all

    def lost() -> None:
        nonlocal calls
        calls += 1
        if calls == lost_at + 1:
            raise DatabaseUnavailable("the database does not answer: OperationalError")

    monkeypatch.setattr(database, "_begin", lambda: (lost(), real())[1])
    monkeypatch.setattr(database, "_all", lambda query: (lost(), real_all(query))[1])
    try:
        step()
    finally:
        monkeypatch.undo()
    return calls


def test_a_lost_database_is_raised_at_each_place_and_fails_no_job(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def until_done(step: Callable[[], Any], states: set[str]) -> None:
        for lost_at in itertools.count():
            try:
                _calls(step, node.database, monkeypatch, lost_at)
            except DatabaseUnavailable:
                assert {row["state"] for row in node.database.jobs()} <= states
                continue
            assert lost_at > 2
            return

    node.receive()
    node.clock += 60
    until_done(lambda: node.flow.assembly.decide(SERIES), {"queued"})
    job_id = node.job()["job_id"]
    until_done(lambda: node.flow.analyses.analyse_job(job_id), {"queued", "running", "complete"})
    until_done(lambda: node.flow.delivery.send_job(job_id, "pacs"), {"complete"})
    assert (node.job()["state"], node.ledger(job_id)) == ("complete", ["stored", "stored"])


def test_a_rejection_and_its_report_end_the_job_at_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.receive()
    [(_, job_id, _, _)] = node.assemble().enqueued

    class _Killed(BaseException):
        pass

    def refuse() -> None:
        raise SeriesRejected(Reason.NO_LUNG, "no lung")

    def die(*_: Any) -> None:
        raise _Killed

    node.detector.also = refuse
    # After the job's row, before the report's.
    monkeypatch.setattr(node.database, "_record_results", die)
    with pytest.raises(_Killed):
        node.analyse(job_id)
    assert (node.job()["state"], node.database.results(job_id)) == ("running", [])
    monkeypatch.undo()
    assert [e[2][1] for e in node.analyse(job_id).enqueued] == ["archive", "pacs"]
    assert (node.job()["state"], node.job()["reason"]) == ("rejected", Reason.NO_LUNG)
    assert [row["kind"] for row in node.database.results(job_id)] == ["sr"]


def test_the_hash_of_a_set_knows_neither_order_nor_repetition() -> None:
    assert manifest_sha256(["1.2", "1.3"]) == manifest_sha256(iter(["1.3", "1.2", "1.2"]))
    assert manifest_sha256(["1.2", "1.3"]) != manifest_sha256(["1.2"])


# -- completeness --------------------------------------------------------------------------------------


@pytest.fixture
def patient(make_node: Callable[..., Node]) -> Node:
    """Waits 20 s for what is not proven, 1 s for what is; its route asks no archive."""
    return make_node(assemble={"quiet_time_s": 20, "proven_quiet_time_s": 1, "longest_wait_s": 600})


@pytest.fixture
def asking(make_node: Callable[..., Node]) -> Node:
    """As `patient`, and its route counts in the archive."""
    [route] = SETTINGS["routes"]
    archive = {**SETTINGS["peers"]["archive"], "may_be_queried": True}
    return make_node(
        assemble={"quiet_time_s": 20, "proven_quiet_time_s": 1, "longest_wait_s": 600},
        peers={**SETTINGS["peers"], "archive": archive},
        routes=[{**route, "count_from": "archive"}],
    )


def come_and_go(node: Node, count: int | None = None, *, released: bool = True, **series: Any) -> None:
    """An Association brings the series, or its first `count` images, and ends."""
    node.receive(count, **series)
    node.database.association_began(SERIES, "a")
    node.database.association_ended([SERIES], "a", released=released)


def rung(node: Node) -> tuple[str, bool]:
    evidence = node.job()["evidence"]
    return evidence["rung"], evidence["partial"]


def test_a_released_series_without_a_hole_waits_a_moment_only(patient: Node) -> None:
    come_and_go(patient)
    assert len(patient.assemble(after_s=0.3).enqueued) == 1
    assert rung(patient) == ("released", False)
    assert patient.job()["evidence"]["text"] == (
        "8 instances received, 8 axial slices contiguous, Association released, no InstanceNumber missing, "
        "quiet for 1.0 s"
    )


def test_a_look_that_comes_much_too_early_holds_up_nobody(make_node: Callable[..., Node]) -> None:
    node = make_node(assemble={"quiet_time_s": 20, "proven_quiet_time_s": 5})
    come_and_go(node)
    assert node.assemble(after_s=1).bounced == [pytest.approx(4, abs=0.1)]
    assert node.database.jobs() == []


def holed(node: Node) -> None:
    come_and_go(node)
    [row] = [r for r in node.database.instances(SERIES) if r["path"].endswith(".4.dcm")]
    with node.database.engine.begin() as connection:
        connection.execute(sa.delete(schema.instance).where(schema.instance.c.path == row["path"]))


def unnumbered(node: Node) -> None:
    come_and_go(node, header={"InstanceNumber": 7})


@pytest.mark.parametrize(
    "arrive",
    [
        lambda node: node.receive(),
        lambda node: come_and_go(node, released=False),
        holed,
        unnumbered,
        lambda node: come_and_go(node, header={"FrameOfReferenceUID": None}),
        lambda node: come_and_go(node, header={"SeriesInstanceUID": SERIES, "Modality": "MR"}),
    ],
    ids=["association open", "association aborted", "a slice missing", "one number for all", "no geometry", "no CT"],
)
def test_what_is_not_proven_waits_its_full_quiet_time(patient: Node, arrive: Callable[[Node], None]) -> None:
    arrive(patient)
    assert patient.assemble(after_s=0.5).bounced == [pytest.approx(19.5, abs=0.1)]
    assert patient.assemble(after_s=19.0).bounced == [pytest.approx(0.5, abs=0.1)]
    assert patient.database.jobs() == []
    assert patient.assemble(after_s=0.6).bounced == []
    assert rung(patient) == ("quiet", False)


def test_of_what_cannot_be_proven_no_header_is_read_early(patient: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    patient.receive()
    monkeypatch.setattr(judgement, "readable_headers", lambda _: pytest.fail("read"))
    assert patient.assemble(after_s=1).bounced != []


def test_an_association_that_still_brings_images_holds_up_the_proof(patient: Node) -> None:
    patient.receive(4)
    patient.database.association_began(SERIES, "slow")
    patient.receive(6)
    patient.database.association_began(SERIES, "quick")
    patient.database.association_ended([SERIES], "quick", released=True)
    assert patient.assemble(after_s=5).bounced != []
    patient.receive()
    patient.database.association_ended([SERIES], "slow", released=True)
    assert patient.assemble(after_s=1).bounced == []
    assert (rung(patient), patient.job()["instance_count"]) == (("released", False), 8)


def test_an_abort_spoils_the_proof_until_the_series_was_decided_on(patient: Node) -> None:
    come_and_go(patient, 6, released=False)
    come_and_go(patient, 7)
    assert patient.assemble(after_s=5).bounced != []
    patient.assemble(after_s=20)
    assert rung(patient) == ("quiet", False)
    come_and_go(patient)
    patient.assemble(after_s=1)
    assert [job["evidence"]["rung"] for job in patient.database.jobs()] == ["released", "quiet"]


def test_what_comes_during_a_look_pushes_it_off(patient: Node) -> None:
    come_and_go(patient, 6)

    def pause(_seconds: float) -> None:
        come_and_go(patient)

    patient.flow = dataclasses.replace(patient.flow, pause=pause)
    assert patient.assemble(after_s=0.5).bounced == [pytest.approx(20, abs=0.1)]
    assert patient.database.jobs() == []


def test_the_archives_count_proves_a_series_whose_association_stays_open(asking: Node) -> None:
    asking.receive()
    asking.archive.says = 8
    [(_, job_id, _, _)] = asking.assemble(after_s=0.3).enqueued
    assert rung(asking) == ("archive", False)
    assert asking.archive.asked == ["ARCHIVE"]
    asking.analyse(job_id)
    sr = pydicom.dcmread(asking.storage.path(f"results/{job_id}/sr.dcm"))
    assert "8 of 8 instances by ARCHIVE, 8 axial slices contiguous" in sr.to_json()
    assert sr.CompletionFlag == "COMPLETE"


def test_a_series_that_still_grows_in_the_archive_is_not_decided_early(asking: Node) -> None:
    come_and_go(asking, 6)
    asking.archive.says = 8
    assert asking.assemble(after_s=2).bounced == [pytest.approx(18, abs=0.1)]
    come_and_go(asking)
    assert asking.assemble(after_s=2).bounced == []
    assert (rung(asking), asking.job()["instance_count"]) == (("archive", False), 8)


def test_what_the_archive_has_and_never_came_makes_the_result_partial(asking: Node) -> None:
    come_and_go(asking, 6)
    asking.archive.says = 8
    [(_, job_id, _, _)] = asking.assemble(after_s=21).enqueued
    assert rung(asking) == ("quiet", True)
    assert asking.job()["evidence"]["text"].startswith("PARTIAL: 6 of 8 instances by ARCHIVE, ")
    asking.analyse(job_id)
    assert pydicom.dcmread(asking.storage.path(f"results/{job_id}/sr.dcm")).CompletionFlag == "PARTIAL"


@pytest.mark.parametrize("says", ["does not answer", "does not know the series", 6])
def test_an_archive_that_proves_nothing_leaves_the_next_rung_and_is_named(asking: Node, says: int | str) -> None:
    asking.archive.says = says
    asking.receive()
    asking.database.association_began(SERIES, "a")
    assert asking.assemble(after_s=2).bounced == [pytest.approx(18, abs=0.1)]
    asking.database.association_ended([SERIES], "a", released=True)
    assert asking.assemble(after_s=2).bounced == []
    assert rung(asking) == ("released", False)
    expected = f"ARCHIVE {says}" if isinstance(says, str) else "8 instances received, ARCHIVE has 6"
    assert expected in asking.job()["evidence"]["text"]
    assert asking.archive.asked == ["ARCHIVE"] * 2, "once a look"


def test_an_error_that_nobody_foresaw_in_asking_loses_no_series(asking: Node) -> None:
    def fail() -> None:
        raise ValueError("Canary^Secret")

    come_and_go(asking)
    asking.archive.also = fail
    assert len(asking.assemble(after_s=1).enqueued) == 1
    assert rung(asking) == ("released", False)
    assert asking.job()["evidence"]["text"].endswith("ARCHIVE can't be asked for a count")


def test_what_comes_while_the_archive_is_asked_is_not_missed(asking: Node) -> None:
    come_and_go(asking, 7)
    asking.archive.says = 7
    asking.archive.also = asking.receive
    assert asking.assemble(after_s=2).bounced == [pytest.approx(20, abs=0.1)]
    assert asking.database.jobs() == []


def test_a_localizer_counts_with_the_archive_and_is_no_slice(asking: Node) -> None:
    come_and_go(asking)
    localizer = {"SOPInstanceUID": f"{SERIES}.99", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    asking.receive_one(localizer)
    asking.archive.says = 9
    assert asking.assemble(after_s=1).bounced == []
    assert asking.job()["evidence"]["text"] == (
        "9 of 9 instances by ARCHIVE, 8 axial slices contiguous, 1 instances not part of them"
    )


def test_a_series_that_never_stops_growing_is_taken_at_the_longest_wait_as_partial(patient: Node) -> None:
    patient.receive(5)
    patient.clock += 599
    patient.receive(6)
    assert patient.assemble(after_s=0).bounced == [pytest.approx(1, abs=0.1)]
    patient.receive()
    [(_, job_id, _, _)] = patient.assemble(after_s=1.5).enqueued
    assert rung(patient) == ("forced", True)
    assert patient.job()["evidence"]["text"] == (
        "PARTIAL: 8 instances received, 8 axial slices contiguous, images still came after 600 s"
    )
    patient.analyse(job_id)
    sr = pydicom.dcmread(patient.storage.path(f"results/{job_id}/sr.dcm"))
    assert sr.CompletionFlag == "PARTIAL"


def test_the_longest_wait_of_late_images_begins_with_them(patient: Node) -> None:
    patient.receive(6)
    patient.assemble()
    patient.clock += 7 * 86400
    patient.receive()
    assert patient.assemble(after_s=1).bounced == [pytest.approx(19, abs=0.1)]


def test_evidence_once_stored_does_not_change_the_bytes(asking: Node) -> None:
    come_and_go(asking)
    asking.archive.says = 8
    [(_, job_id, _, _)] = asking.assemble(2, after_s=1).enqueued
    asking.analyse(job_id)
    before = asking.results(job_id)
    asking.archive.says = "does not answer"
    asking.assemble()
    with asking.database.engine.begin() as connection:
        connection.execute(sa.update(schema.job).values(state="running"))
    asking.analyse(job_id)
    assert asking.results(job_id) == before


# -- analyse -------------------------------------------------------------------------------------------


def test_an_analysis_leaves_files_rows_and_one_delivery_a_destination(node: Node) -> None:
    node.receive()
    [(_, job_id, _, _)] = node.assemble().enqueued
    run = node.analyse(job_id)
    assert run.steps == ["analyse", "corrections"]
    assert [(e[0], e[1], e[2], e[3]) for e in run.enqueued] == [
        ("deliver", delivery_id(job_id, d), (job_id, d), {"priority": "high", "partition": d})
        for d in ("archive", "pacs")
    ]
    assert set(node.results(job_id)) == {"manifest.json", "seg.dcm", "sr.dcm", "finding_1.png"}
    job = node.job()
    assert (job["state"], job["progress"]) == ("complete", 1.0)
    assert job["model"] == {"name": "nodules", "version": "1.2.3", "bundle_sha256": "5e" * 32}
    assert set(job["timings_s"]) >= {"read", "volume", "network", "results"}
    assert len(node.database.findings(job_id)) == 1
    for made in node.database.results(job_id):
        data = node.storage.path(made["path"]).read_bytes()
        assert made["sha256"] == hashlib.sha256(data).hexdigest()
        assert made["size_bytes"] == len(data)


def test_each_step_done_twice_gives_the_same_files_uids_and_rows(node: Node) -> None:
    node.receive()
    [(_, job_id, _, _)] = node.assemble(times=2).enqueued
    assert len(node.database.jobs()) == 1
    node.analyse(job_id)
    files, rows, ledger = node.results(job_id), node.database.results(job_id), node.database.deliveries(job_id)
    # A worker that died after its last word and before the checkpoint: the row says running again.
    with node.database.engine.begin() as connection:
        connection.execute(sa.update(schema.job).values(state="running"))
    node.clock += 3600
    node.analyse(job_id)
    assert node.results(job_id) == files
    assert node.database.results(job_id) == rows
    assert node.database.deliveries(job_id) == ledger
    assert len(node.database.findings(job_id)) == 1


def test_a_report_made_twice_is_one_report(node: Node) -> None:
    node.receive(spacing_mm=(5.0, 0.7, 0.7))
    node.assemble(times=2)
    job_id = node.job()["job_id"]
    files = node.results(job_id)
    node.clock += 3600
    node.assemble()
    assert node.results(job_id) == files
    assert len(node.database.deliveries(job_id)) == 2


def test_no_finding_makes_a_report_and_no_seg(node: Node) -> None:
    node.detector.radius_mm = None
    job_id = node.complete()
    assert set(node.results(job_id)) == {"manifest.json", "sr.dcm"}
    assert [row["kind"] for row in node.database.results(job_id)] == ["sr"]


def test_a_job_that_was_cancelled_while_it_waited_is_not_begun(node: Node) -> None:
    node.receive()
    [(_, job_id, _, _)] = node.assemble().enqueued
    node.database.cancel_job(job_id)
    run = node.analyse(job_id)
    assert (node.detector.calls, run.enqueued, node.job()["state"]) == (0, [], "cancelled")


@pytest.mark.parametrize("moment", ["also", "after"])
def test_a_job_that_is_cancelled_while_it_runs_leaves_no_result(node: Node, moment: str) -> None:
    node.receive()
    [(_, job_id, _, _)] = node.assemble().enqueued
    setattr(node.detector, moment, lambda: node.database.cancel_job(job_id))
    run = node.analyse(job_id)
    assert (run.enqueued, node.job()["state"]) == ([], "cancelled")
    assert node.database.results(job_id) == []
    assert node.database.deliveries(job_id) == []


def test_a_job_that_another_worker_took_over_is_left_to_it(node: Node) -> None:
    node.receive()
    [(_, job_id, _, _)] = node.assemble().enqueued
    node.detector.also = lambda: node.database.start_job(job_id, "other/work")
    run = node.analyse(job_id)
    job = node.job()
    assert (job["state"], job["executor"], run.enqueued) == ("running", "other/work", [])


def test_what_the_model_refuses_is_rejected_and_reported(node: Node) -> None:
    node.receive()
    [(_, job_id, _, _)] = node.assemble().enqueued

    def refuse() -> None:
        raise SeriesRejected(Reason.NO_LUNG, "no lung in 8 slices")

    node.detector.also = refuse
    run = node.analyse(job_id)
    assert (node.job()["state"], node.job()["reason_text"]) == ("rejected", "no lung in 8 slices")
    assert set(node.results(job_id)) == {"manifest.json", "sr.dcm"}
    assert [e[2][1] for e in run.enqueued] == ["archive", "pacs"]


def test_a_job_that_is_cancelled_and_rejected_at_once_stays_cancelled(node: Node) -> None:
    node.receive()
    [(_, job_id, _, _)] = node.assemble().enqueued

    def refuse() -> None:
        node.database.cancel_job(job_id)
        raise SeriesRejected(Reason.NO_LUNG, "no lung")

    node.detector.also = refuse
    assert node.analyse(job_id).enqueued == []
    assert node.job()["state"] == "cancelled"


def _fails(node: Node, job_id: str, error: Exception) -> str:
    def fail() -> None:
        raise error

    node.detector.also = fail
    with pytest.raises(DicomNodeError) as caught:
        node.analyse(job_id)
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_an_error_nobody_foresaw_fails_the_job_without_a_word_of_patient_data(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.receive(header={"PatientName": CANARY, "PatientID": CANARY, "StudyDescription": CANARY})
    [(_, job_id, _, _)] = node.assemble().enqueued
    with caplog.at_level(logging.DEBUG):
        text = _fails(node, job_id, RuntimeError(f"cannot read {CANARY}"))
    job = node.job()
    assert (job["state"], job["reason"]) == ("failed", "FAILED")
    assert job["reason_text"] == text
    assert text.startswith("RuntimeError at ")
    kept = [dict(job), *map(dict, node.database.events(job_id)), text]
    lines = [logs._TextFormatter("work").format(r) + logs._JsonFormatter("work").format(r) for r in caplog.records]
    assert any("job failed" in line for line in lines)
    assert CANARY not in repr(kept) + "".join(lines)


def test_results_that_fail_their_own_checks_park_the_job_with_the_reason_and_nothing_leaves(node: Node) -> None:
    node.receive()
    [(_, job_id, _, _)] = node.assemble().enqueued
    grid = np.diag([2.0, 2.0, 2.0, 1.0])[[2, 1, 0, 3]]
    grid[:3, 3] = -150.0
    everywhere = np.full((150, 150, 150), 40.0, np.float32)
    node.detector.lungs = LungDistance(distance_mm=everywhere, affine=grid, margin_mm=5.0)
    run = node.analyse(job_id)
    job = node.job()
    assert (job["state"], job["reason"]) == ("parked", "WITHHELD")
    assert job["reason_text"] == "seg: segment 1 lies 40 mm from the lungs"
    assert run.enqueued == []
    assert node.database.results(job_id) == node.database.deliveries(job_id) == []
    assert job_summary(node.database, node.storage, job_id)["reason"] == f"WITHHELD: {job['reason_text']}"

    node.detector.lungs = None
    node.database.requeue_job(job_id)
    node.analyse(job_id)
    assert node.job()["state"] == "complete"


def test_a_report_that_fails_its_own_checks_parks_a_rejected_job(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def unfit(*_args: object, **_options: object) -> None:
        raise ResultError("sr: unfit")

    monkeypatch.setattr("dicom_node.results.objects.check_refusal", unfit)
    node.receive(spacing_mm=(5.0, 0.7, 0.7))
    run = node.assemble()
    job = node.job()
    assert (job["state"], job["reason_text"]) == ("parked", "report on TOO_THICK: sr: unfit")
    assert run.enqueued == []


def test_our_own_errors_keep_their_words(node: Node) -> None:
    node.receive()
    [(_, job_id, _, _)] = node.assemble().enqueued
    assert _fails(node, job_id, DicomNodeError("the scanner is on fire")) == "the scanner is on fire"
    assert node.job()["reason_text"] == "the scanner is on fire"


def test_an_error_in_a_cancelled_job_leaves_it_cancelled(node: Node) -> None:
    node.receive()
    [(_, job_id, _, _)] = node.assemble().enqueued

    class _Cancelling(RuntimeError):
        def __init__(self) -> None:
            node.database.cancel_job(job_id)

    node.detector.also = lambda: (_ for _ in ()).throw(_Cancelling())
    with pytest.raises(DicomNodeError):
        node.analyse(job_id)
    assert node.job()["state"] == "cancelled"


def test_a_route_that_is_gone_fails_the_job_and_says_how_to_go_on(node: Node, make_node: Callable[..., Node]) -> None:
    node.receive()
    [(_, job_id, _, _)] = node.assemble().enqueued
    later = make_node(routes=[])
    with pytest.raises(DicomNodeError, match="bring it back in"):
        later.analyse(job_id)
    assert node.job()["state"] == "failed"


def test_results_of_patients_with_odd_names_are_made(node: Node) -> None:
    node.receive(header={"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Ångström^Zoë=山田^太郎"})
    [(_, job_id, _, _)] = node.assemble().enqueued
    node.analyse(job_id)
    sr = pydicom.dcmread(node.storage.path(f"results/{job_id}/sr.dcm"))
    assert sr.PatientName == "Ångström^Zoë=山田^太郎"


# -- deliver -------------------------------------------------------------------------------------------


def test_what_is_stored_is_sent_once(node: Node) -> None:
    job_id = node.complete()
    run = node.deliver(job_id)
    assert (run.steps, run.slept) == (["send"], [])
    assert node.sender.sent == [(["seg.dcm", "sr.dcm"], "PACS", "DICOMNODE")]
    assert node.ledger(job_id) == ["stored", "stored"]
    assert node.ledger(job_id, "archive") == ["waiting", "waiting"]
    node.deliver(job_id)
    assert len(node.sender.sent) == 1


@pytest.mark.parametrize(
    ("kind", "state", "again"),
    [
        ("stored", "stored", False),
        ("refused", "parked", False),
        ("retry", "waiting", True),
        ("unknown", "unknown", True),
    ],
)
def test_each_answer_has_its_state_in_the_ledger(node: Node, kind: str, state: str, again: bool) -> None:
    job_id = node.complete()
    node.sender.kinds = [kind]
    outcome = node.flow.delivery.send_job(job_id, "pacs")
    assert node.ledger(job_id) == [state, state]
    assert (outcome["wait_s"] is not None) == again
    row = node.database.deliveries(job_id, "pacs")[0]
    assert row["attempts"] == 1
    assert row["message"] == (None if kind == "stored" else f"it was {kind}")
    assert node.database.events(job_id)[-1]["action"] == f"delivery {state}"


def test_only_what_is_not_stored_is_sent_again(node: Node) -> None:
    job_id = node.complete()
    node.sender.kinds = ["stored", "unknown", "stored"]
    [(_, _, args, _)] = node.deliver(job_id).enqueued
    assert node.ledger(job_id) == ["stored", "unknown"]
    node.flow.delivery.deliver(FakeRun(), *args)
    assert [sent[0] for sent in node.sender.sent] == [["seg.dcm", "sr.dcm"], ["sr.dcm"]]
    assert node.ledger(job_id) == ["stored", "stored"]


def test_a_job_waits_at_the_head_while_its_destination_gives_no_answer(node: Node) -> None:
    job_id = node.complete()
    node.sender.kinds = ["unknown"] * 4 + ["stored"]
    run = node.deliver(job_id)
    assert (run.slept, run.enqueued) == ([5.0, 10.0], [])
    assert node.ledger(job_id) == ["stored", "stored"]


def test_an_object_that_another_machine_settles_meanwhile_leaves_no_other_in_sending(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = node.complete()
    first = node.database.deliveries(job_id, "pacs")[0]["sop_instance_uid"]
    send = node.flow.send

    def send_beside_another(*args: Any) -> Any:
        outcomes = send(*args)
        node.database.move_delivery(first, "pacs", ["sending"], "stored", status=0)
        return outcomes

    node.flow = dataclasses.replace(node.flow, send=send_beside_another)
    assert node.deliver(job_id).enqueued == []
    assert node.ledger(job_id) == ["stored", "stored"]


def test_what_is_sent_again_and_finds_no_room_waits_under_an_id_of_its_own(node: Node) -> None:
    """The first delivery of the job may have waited, too: the engine knows those ids, and would do nothing."""
    job_id = node.complete()
    node.sender.kinds = ["retry"]
    run = FakeRun()
    node.flow.delivery.deliver(run, job_id, "pacs", 0, ":round 1 at 5")
    [(_, workflow_id, args, _)] = run.enqueued
    assert workflow_id == f"{job_id}:pacs:round 1 at 5:1"
    assert args == (job_id, "pacs", 1, ":round 1 at 5")


def test_a_job_whose_objects_find_no_room_waits_at_the_side_and_lets_others_by(node: Node) -> None:
    job_id = node.complete()
    node.sender.kinds = ["retry"]  # 0xA700: the peer answers, but not for these
    first = node.deliver(job_id)
    options = {"priority": "high", "partition": "pacs"}
    turn = ("deliver", f"{delivery_id(job_id, 'pacs')}:1", (job_id, "pacs", 1, ""), options | {"delay_s": 5.0})
    assert (first.slept, first.enqueued) == ([], [turn])
    again = FakeRun()
    node.flow.delivery.deliver(again, *turn[2])
    assert again.enqueued == [
        ("deliver", f"{delivery_id(job_id, 'pacs')}:2", (job_id, "pacs", 2, ""), options | {"delay_s": 10.0})
    ]
    node.sender.kinds = ["stored"]
    last = FakeRun()
    node.flow.delivery.deliver(last, *again.enqueued[0][2])
    assert (last.enqueued, node.ledger(job_id)) == ([], ["stored", "stored"])


def test_a_row_that_is_cancelled_between_two_of_one_delivery_is_not_sent(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = node.complete()
    real = node.database.move_delivery

    def cancel_first(*args: Any, **more: Any) -> None:
        monkeypatch.setattr(node.database, "move_delivery", real)
        real(*args, **more)  # the SEG is on the wire
        node.database.cancel_deliveries(job_id)

    monkeypatch.setattr(node.database, "move_delivery", cancel_first)
    assert node.flow.delivery.send_job(job_id, "pacs") == {"wait_s": None}
    assert node.sender.sent == [(["seg.dcm"], "PACS", "DICOMNODE")]
    assert node.ledger(job_id) == ["stored", "cancelled"]


def test_a_peers_words_are_in_the_ledger_and_in_no_log_line(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    job_id = node.complete()
    node.sender.kinds, node.sender.comment = ["refused"], CANARY
    with caplog.at_level(logging.DEBUG):
        node.flow.delivery.send_job(job_id, "pacs")
    assert [row["message"] for row in node.database.deliveries(job_id, "pacs")] == [CANARY] * 2
    lines = [logs._JsonFormatter("deliver").format(record) for record in caplog.records]
    assert any('"0xC000"' in line for line in lines)
    assert CANARY not in "".join(lines)
    assert CANARY not in repr([dict(row) for row in node.database.events(job_id)])


def test_waits_double_up_to_the_longest(make_node: Callable[..., Node]) -> None:
    node = make_node(deliver={"first_wait_s": 2, "longest_wait_s": 15})
    job_id = node.complete()
    node.sender.kinds = ["unknown"] * 12 + ["stored"]
    assert node.deliver(job_id).slept == [2, 4, 8, 15, 15, 15]
    assert [row["attempts"] for row in node.database.deliveries(job_id, "pacs")] == [7, 7]


@pytest.mark.parametrize("kind", ["retry", "unknown"])
def test_what_cannot_be_sent_for_too_long_is_parked(make_node: Callable[..., Node], kind: str) -> None:
    node = make_node(deliver={"give_up_after_h": 1})
    job_id = node.complete()
    node.sender.kinds = [kind]
    node.clock += 3590
    assert node.flow.delivery.send_job(job_id, "pacs")["wait_s"] is not None
    node.clock += 20
    assert node.flow.delivery.send_job(job_id, "pacs")["wait_s"] is None
    assert node.ledger(job_id) == ["parked", "parked"]
    # An operator's retry starts the clock anew.
    assert node.database.retry_deliveries(job_id) == ["archive", "pacs"]
    assert node.flow.delivery.send_job(job_id, "pacs")["wait_s"] is not None
    assert node.ledger(job_id) != ["parked", "parked"]


def test_what_a_dead_sender_left_on_the_wire_is_sent_again(node: Node) -> None:
    job_id = node.complete()

    class _Killed(BaseException):
        pass

    def die() -> None:
        raise _Killed

    node.sender.before = die
    with pytest.raises(_Killed):
        node.deliver(job_id)
    assert node.ledger(job_id) == ["sending", "sending"]
    node.sender.before = lambda: None
    node.deliver(job_id)
    assert node.ledger(job_id) == ["stored", "stored"]


def test_an_error_of_the_sender_is_tried_again(node: Node) -> None:
    job_id = node.complete()
    errors = iter([RuntimeError(CANARY)])

    def fail_once() -> None:
        for error in errors:
            raise error

    node.sender.before = fail_once
    assert node.deliver(job_id).slept == [5.0]
    assert node.ledger(job_id) == ["stored", "stored"]


def test_an_error_of_the_sender_is_kept_without_its_text(node: Node) -> None:
    job_id = node.complete()

    def fail() -> None:
        raise RuntimeError(CANARY)

    node.sender.before = fail
    node.flow.delivery.send_job(job_id, "pacs")
    message = node.database.deliveries(job_id, "pacs")[0]["message"]
    assert message.startswith("RuntimeError at ")
    assert CANARY not in message


@pytest.mark.parametrize(
    ("peers", "said"),
    [
        ({}, "pacs is not in config.yaml"),
        ({"pacs": {"ae_title": "PACS", "host": "h"}}, "pacs can't be sent to by its settings"),
    ],
)
def test_a_destination_that_the_settings_rule_out_parks_its_objects(
    node: Node, peers: dict[str, Any], said: str
) -> None:
    job_id = node.complete()
    changed = node.flow.config.model_copy(update={"peers": Config.model_validate(
        {"storage": {"root": "x"}, "peers": peers}).peers})  # fmt: skip
    run = FakeRun()
    node.flow_with(changed).delivery.deliver(run, job_id, "pacs")
    assert (run.slept, node.sender.sent) == ([], [])
    assert node.ledger(job_id) == ["parked", "parked"]
    assert said in node.database.deliveries(job_id, "pacs")[0]["message"]


def test_what_was_cancelled_is_not_sent(node: Node) -> None:
    job_id = node.complete()
    node.database.cancel_deliveries(job_id)
    node.deliver(job_id)
    assert node.sender.sent == []


def test_a_job_that_is_not_there_is_an_error(node: Node) -> None:
    with pytest.raises(DicomNodeError, match="is not in the database"):
        node.flow.refusals.report("1.2.3-abc")
    assert set(node.flow.workflows()) == {"assemble", "priors", "overdue", "analyse", "shadow", "deliver"}


# -- profiles ------------------------------------------------------------------------------------------


def with_profiles(pacs: str, archive: str) -> dict[str, Any]:
    peers = {name: dict(peer) for name, peer in SETTINGS["peers"].items()}
    peers["pacs"]["profile"], peers["archive"]["profile"] = pacs, archive
    return peers


def delivered(node: Node, job_id: str, destination: str) -> list[str]:
    return [Path(row["path"]).stem for row in node.database.deliveries(job_id, destination)]


def test_each_destination_gets_the_objects_of_its_profile(make_node: Callable[..., Node]) -> None:
    node = make_node(peers=with_profiles("weasis", "legacy"))
    job_id = node.complete()
    assert delivered(node, job_id, "pacs") == ["seg", "presentation", "sr", "key_objects_states"]
    got = delivered(node, job_id, "archive")
    assert got == ["capture_01", "capture_02", "sr_text"]
    node.deliver(job_id, "archive")
    [(sent, _, _)] = node.sender.sent
    assert sent == [f"{name}.dcm" for name in got]


def test_an_object_of_two_profiles_is_one_file_with_two_ledger_rows(make_node: Callable[..., Node]) -> None:
    node = make_node(peers=with_profiles("ohif", "air"))
    job_id = node.complete()
    assert "seg" in delivered(node, job_id, "pacs")
    assert "seg" in delivered(node, job_id, "archive")
    assert [row["kind"] for row in node.database.results(job_id)].count("seg") == 1


def test_what_was_made_is_sent_though_the_profile_has_changed(make_node: Callable[..., Node]) -> None:
    node = make_node(peers=with_profiles("ohif", "ohif"))
    job_id = node.complete()
    before = delivered(node, job_id, "pacs")
    config = node.flow.config.model_copy(
        update={"peers": {n: p.model_copy(update={"profile": "legacy"}) for n, p in node.flow.config.peers.items()}}
    )
    run = FakeRun()
    node.flow_with(config).delivery.deliver(run, job_id, "pacs")
    assert node.sender.sent[0][0] == [f"{name}.dcm" for name in before] == ["seg.dcm", "sr.dcm"]


def test_a_job_of_many_profiles_that_runs_again_after_a_crash_makes_the_same(make_node: Callable[..., Node]) -> None:
    node = make_node(peers=with_profiles("weasis", "legacy"))
    node.receive()
    [(_, job_id, _, _)] = node.assemble().enqueued
    node.analyse(job_id)
    files, rows, ledger = node.results(job_id), node.database.results(job_id), node.database.deliveries(job_id)
    with node.database.engine.begin() as connection:
        connection.execute(sa.update(schema.job).values(state="running"))
    node.clock += 3600
    node.analyse(job_id)
    assert {"seg.dcm", "sr.dcm", "sr_text.dcm"} <= files.keys()
    assert node.results(job_id) == files
    assert node.database.results(job_id) == rows
    assert node.database.deliveries(job_id) == ledger


def test_a_rejected_series_is_reported_in_the_form_of_each_destination(make_node: Callable[..., Node]) -> None:
    node = make_node(peers=with_profiles("ohif", "legacy"))
    node.receive(spacing_mm=(5.0, 0.7, 0.7))
    node.assemble()
    job_id = node.job()["job_id"]
    assert delivered(node, job_id, "pacs") == ["sr"]
    assert "sr_text" in delivered(node, job_id, "archive")


def test_one_object_that_is_refused_parks_alone(node: Node) -> None:
    job_id = node.complete()
    node.sender.kinds = ["refused", "stored"]
    node.deliver(job_id)
    assert [(row["kind"], row["state"]) for row in node.database.deliveries(job_id, "pacs")] == [
        ("seg", "parked"),
        ("sr", "stored"),
    ]


def test_a_later_revision_follows_the_report_of_its_form(make_node: Callable[..., Node]) -> None:
    node = make_node(peers=with_profiles("ohif", "legacy"))
    first = node.complete()
    node.receive_one({"SOPInstanceUID": f"{SERIES}.99", "ImageType": ["DERIVED", "SECONDARY", "LOCALIZER"]})
    [(_, second, _, _)] = node.assemble().enqueued
    node.analyse(second)
    for name in ("sr", "sr_text"):
        old, new = (pydicom.dcmread(node.storage.path(f"results/{job}/{name}.dcm")) for job in (first, second))
        [item] = new.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
        assert item.ReferencedSOPInstanceUID == old.SOPInstanceUID
        assert item.ReferencedSOPClassUID == old.SOPClassUID


def test_a_job_can_be_looked_at(node: Node, tmp_path: Path) -> None:
    job_id = node.complete()
    result = render(job_files(node.database, node.storage, job_id), tmp_path / "look")
    assert (result["slices"], [found["label"] for found in result["findings"]]) == (8, ["Nodule 1"])
    node.storage.path(node.database.instances(SERIES)[0]["path"]).unlink()
    with pytest.raises(ConfigError, match="1 of 10 files of job"):
        job_files(node.database, node.storage, job_id)
