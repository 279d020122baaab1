"""Pulls from real archives in this process: what is asked, what comes, what is counted."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, RLELossless
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_GET

from dicom_node import tracing
from dicom_node.check import check
from dicom_node.db import Database
from dicom_node.dicomweb import retrieve as web
from dicom_node.dicomweb.client import DicomWebError
from dicom_node.dimse import retrieve
from dicom_node.dimse.announce import Announcer
from dicom_node.dimse.query import STUDY_ROOT
from dicom_node.dimse.retrieve import SeriesKey
from dicom_node.dimse.scu import send
from dicom_node.errors import ConfigError, DeliveryError
from dicom_node.locks import try_lock
from dicom_node.peers import PeerConfig
from dicom_node.pull import Landing, Puller
from dicom_node.pull_schedule import PullSchedule
from dicom_node.pull_selection import Selection, parse_age
from tests.conftest import RunningReceiver
from tests.fakes.collector import collector
from tests.fakes.ct import make_ct_series
from tests.fakes.web import Said, serving
from tests.peers import Orthanc, free_port, run_dcmqrscp

STUDY, SERIES = "1.2.826.0.1.3680043.8.498.1001", "1.2.826.0.1.3680043.8.498.1002"
NAMED = Selection(study_uid=STUDY)
PLAIN = {"response_timeout_s": 10.0, "may_be_queried": True, "may_send": True}

Start = Callable[..., RunningReceiver]
Counts = Callable[[str], dict[str, float]]


@pytest.fixture
def scan(tmp_path: Path) -> list[Path]:
    """Seven images of one series."""
    return make_ct_series(tmp_path / "scan", shape=(7, 16, 16))


@contextlib.contextmanager
def pulling(node: RunningReceiver, peer: PeerConfig, route: str | None = None) -> Iterator[Puller]:
    """A pull beside the receiver; what it announces goes where the receiver's announcements go."""
    announcer = Announcer(lambda uid, quiet_time_s: node.bounced.append((uid, quiet_time_s)), node.config.quiet_time_s)
    landing = Landing(node.storage, node.database, announcer)
    landing.start()
    try:
        yield Puller(node.config, node.database, landing, name="pacs", peer=peer, route=route)
    finally:
        landing.stop()


def orthanc_peer(orthanc: Orthanc, by: str, **more: Any) -> PeerConfig:
    web = {"url": f"{orthanc.url}/dicom-web"}
    form = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": orthanc.dicom_port, "dicomweb": web, "retrieve_by": by}
    return PeerConfig.model_validate({**form, **PLAIN, **more})


def fill(orthanc: Orthanc, files: list[Path]) -> None:
    for path in files:
        orthanc.upload(path.read_bytes())


def assert_here(node: RunningReceiver, files: list[Path]) -> None:
    """Each file came whole: the same data set, under a row that tells its bytes."""
    rows = {row["sop_instance_uid"]: row for row in node.database.instances(SERIES)}
    assert len(rows) == len(files)
    for path in files:
        sent = pydicom.dcmread(path)
        row = rows[str(sent.SOPInstanceUID)]
        came = pydicom.dcmread(node.storage.path(row["path"]))
        assert came.PixelData == sent.PixelData
        assert came.PatientID == sent.PatientID


# -- the three ways --------------------------------------------------------------------------------


@pytest.mark.peers
@pytest.mark.parametrize("by", ["c_move", "c_get", "wado_rs"])
def test_a_study_is_fetched_from_orthanc_and_not_a_second_time(
    orthanc: Orthanc, start_receiver: Start, scan: list[Path], counts: Counts, by: str
) -> None:
    fill(orthanc, scan)
    node, peer = start_receiver(), orthanc_peer(orthanc, by)
    orthanc.set_modality("puller", "DICOMNODE", node.port)
    with pulling(node, peer) as puller:
        plan = puller.plan(NAMED)
        assert [(p.key.series_uid, p.there, p.here, p.modality) for p in plan.series] == [(SERIES, 7, 0, "CT")]
        assert not plan.problems
        outcome = puller.fetch(plan.series[0])
        assert (outcome.here, outcome.problem) == (7, "")
        assert_here(node, scan)
        assert puller.plan(NAMED).series[0].complete
    node.receiver.stop(1.0)
    assert SERIES in [uid for uid, _ in node.bounced], "the series is announced"
    series = node.database.series(SERIES)
    assert series is not None
    assert series["source_ae"] == "ORTHANC"
    assert node.database.pulled([SERIES])[SERIES]["done_at"] is not None
    came = {} if by == "c_move" else {f"unknown {by} 0x0000": 7}
    assert counts("dicom_node_instances_retrieved_total") == came
    # "unknown": this node's settings have no peer of the name, as after `pull --from AE@host:port`.
    assert sum(counts("dicom_node_instances_received_total").values()) == (7 if by == "c_move" else 0)


@pytest.mark.peers
@pytest.mark.parametrize("by", ["c_move", "c_get"])
def test_a_study_is_fetched_from_dcmqrscp(tmp_path: Path, start_receiver: Start, scan: list[Path], by: str) -> None:
    node = start_receiver()
    with run_dcmqrscp(tmp_path / "archive", {"DICOMNODE": ("127.0.0.1", node.port)}) as port:
        peer = PeerConfig.model_validate(
            {"ae_title": "DCMQR", "host": "127.0.0.1", "port": port, "retrieve_by": by, **PLAIN}
        )
        assert all(outcome.kind == "stored" for outcome in send(scan, peer, "DICOMNODE"))
        with pulling(node, peer) as puller:
            [planned] = puller.plan(NAMED).series
            assert (planned.there, planned.here) == (7, 0)
            assert puller.fetch(planned).problem == ""
    assert_here(node, scan)


@pytest.mark.peers
def test_compressed_images_come_as_the_archive_holds_them(
    orthanc: Orthanc, start_receiver: Start, scan: list[Path]
) -> None:
    for path in scan:
        image = pydicom.dcmread(path)
        image.compress(RLELossless, generate_instance_uid=False)
        image.save_as(path, enforce_file_format=True)
    fill(orthanc, scan)
    node = start_receiver()
    for by in ("c_get", "wado_rs"):
        with pulling(node, orthanc_peer(orthanc, by)) as puller:
            assert puller.fetch(puller.plan(NAMED).series[0]).problem == ""
        kept = {row["transfer_syntax_uid"] for row in node.database.instances(SERIES)}
        assert kept == {str(RLELossless)}, by


@pytest.mark.peers
def test_a_pull_is_a_span_of_the_trace_of_its_series(orthanc: Orthanc, start_receiver: Start, scan: list[Path]) -> None:
    fill(orthanc, scan)
    node = start_receiver()
    with collector() as collected:
        tracing.start(collected.endpoint, "deliver")
        with pulling(node, orthanc_peer(orthanc, "c_get")) as puller:
            puller.fetch(puller.plan(NAMED).series[0])
        tracing.stop()
    spans = {span.name: span for span in collected.spans()}
    assert set(spans) == {"pull", "fetch", "arrive"}
    assert {span.trace_id for span in spans.values()} == {tracing.trace_id(SERIES).to_bytes(16, "big")}
    assert spans["fetch"].parent_span_id == spans["arrive"].parent_span_id == spans["pull"].span_id
    about = {each.key.removeprefix("dicom_node."): each.value for each in spans["pull"].attributes}
    assert (about["by"].string_value, about["there"].int_value, about["here"].int_value) == ("c_get", 7, 7)
    assert about["peer"].string_value == "unknown", "its AE title is no name of the settings"
    assert STUDY not in str(spans)


@pytest.mark.peers
def test_c_get_needs_no_receiver(orthanc: Orthanc, start_receiver: Start, scan: list[Path]) -> None:
    fill(orthanc, scan)
    node = start_receiver()
    node.receiver.stop(0.0)
    with pulling(node, orthanc_peer(orthanc, "c_get")) as puller:
        assert puller.fetch(puller.plan(NAMED).series[0]).problem == ""
    assert_here(node, scan)


# -- what is chosen --------------------------------------------------------------------------------


@pytest.mark.peers
def test_only_the_modality_and_the_time_that_were_asked_for_are_planned(
    orthanc: Orthanc, start_receiver: Start, tmp_path: Path
) -> None:
    now = datetime.now()
    for number, (hours, modality) in enumerate([(1, "CT"), (1, "MR"), (30, "CT"), (100, "CT")]):
        at = now - timedelta(hours=hours)
        header = {
            "StudyInstanceUID": f"1.2.3.{number}",
            "SeriesInstanceUID": f"1.2.3.{number}.1",
            "StudyDate": f"{at:%Y%m%d}",
            "StudyTime": f"{at:%H%M%S}",
            "Modality": modality,
        }
        fill(orthanc, make_ct_series(tmp_path / str(number), shape=(2, 16, 16), header=header))
    for by in ("c_get", "wado_rs"):
        with pulling(start_receiver(), orthanc_peer(orthanc, by)) as puller:

            def planned(hours: float, puller: Puller = puller, **more: Any) -> list[str]:
                plan = puller.plan(Selection(since=now.astimezone() - timedelta(hours=hours), **more))
                return [one.key.study_uid for one in plan.series]

            assert planned(2) == ["1.2.3.0"]
            assert planned(31) == ["1.2.3.2", "1.2.3.0"], "oldest first"
            assert sorted(planned(2, match={})) == ["1.2.3.0", "1.2.3.1"]
            assert len(puller.plan(Selection(accession="A1", match={})).series) == 4
            assert puller.plan(Selection(patient_id="NOBODY")).series == ()


def test_a_plan_shows_no_patient(tmp_path: Path, start_receiver: Start) -> None:
    study = answer("STUDY", StudyInstanceUID=STUDY, PatientID="SECRET", PatientName="Secret^Name", StudyDate="20260101")
    series = answer("SERIES", SeriesInstanceUID=SERIES, Modality="CT", NumberOfSeriesRelatedInstances="3")
    with archive(finds={"STUDY": [study], "SERIES": [series]}) as peer, pulling(start_receiver(), peer) as puller:
        plan = puller.plan(NAMED)
    assert len(plan.series) == 1
    assert "SECRET" not in repr(plan).upper()


@pytest.mark.parametrize(("text", "hours"), [("2d", 48), ("12h", 12), ("365d", 8760)])
def test_an_age_is_read(text: str, hours: int) -> None:
    assert parse_age(text) == timedelta(hours=hours)


@pytest.mark.parametrize("text", ["", "2", "d", "-1d", "1.5h", "2 days", "0h", "366d", "2w", "99999999999d"])
def test_an_age_that_is_none_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="12h or 2d"):
        parse_age(text)


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ({}, "--study, --patient, --accession or --since"),
        ({"series_uid": "1.2.3"}, "--patient"),
        ({"series_uid": "1.2.3", "patient_id": "P"}, "--study that it belongs to"),
        ({"patient_id": "*"}, "would match others"),
        ({"accession": "A?"}, "would match others"),
        ({"study_uid": "../.."}, "no valid UID"),
    ],
)
def test_a_selection_that_says_too_little_or_too_much_is_refused(wanted: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Selection(**wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("peer", "why"),
    [
        ({"may_be_queried": False}, "peers.pacs.may_be_queried: true"),
        ({"may_send": False, "retrieve_by": "c_move"}, "peers.pacs.may_send: true"),
        ({"port": None, "dicomweb": {"url": "http://pacs.example/web"}}, "peers.pacs.port"),
    ],
)
def test_what_the_peer_may_not_do_is_refused_with_the_key_to_set(
    start_receiver: Start, peer: dict[str, Any], why: str
) -> None:
    node = start_receiver(receive={"unknown_peers": "refuse"})
    form = {"ae_title": "PACS", "host": "127.0.0.1", "port": 104, **PLAIN, **peer}
    with pytest.raises(ConfigError, match=why), pulling(node, PeerConfig.model_validate(form)):
        pass


# -- archives that do not keep their word ------------------------------------------------------------


def answer(level: str, **values: object) -> Dataset:
    data_set = Dataset()
    data_set.QueryRetrieveLevel = level
    for keyword, value in values.items():
        setattr(data_set, keyword, value)
    return data_set


@contextlib.contextmanager
def archive(
    *, finds: dict[str, list[Dataset]] | None = None, on_get: Callable[[Any], Any] | None = None, by: str = "c_get"
) -> Iterator[PeerConfig]:
    """An archive of the test's: it answers queries by level, and C-GET as `on_get` says."""
    ae = AE("PACS")
    ae.add_supported_context(STUDY_ROOT)
    ae.add_supported_context(retrieve.GET[0])
    ae.add_supported_context(CTImageStorage, scu_role=True, scp_role=True)

    def on_find(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        for found in ({} if finds is None else finds).get(str(event.identifier.QueryRetrieveLevel), []):
            yield 0xFF00, found

    handlers = [(evt.EVT_C_FIND, on_find)] + ([(evt.EVT_C_GET, on_get)] if on_get else [])
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    form = {"ae_title": "PACS", "host": "127.0.0.1", "port": server.server_address[1], "retrieve_by": by, **PLAIN}
    try:
        yield PeerConfig.model_validate({**form, "response_timeout_s": 3.0})
    finally:
        server.shutdown()


def finds(there: int) -> dict[str, list[Dataset]]:
    study = answer("STUDY", StudyInstanceUID=STUDY, StudyDate="20270101")
    series = answer("SERIES", SeriesInstanceUID=SERIES, Modality="CT", NumberOfSeriesRelatedInstances=str(there))
    return {"STUDY": [study], "SERIES": [series]}


def test_an_archive_that_sends_fewer_than_it_says_is_caught(start_receiver: Start, scan: list[Path]) -> None:
    def on_get(event: Any) -> Iterator[Any]:
        yield 5
        for path in scan[:5]:
            yield 0xFF00, pydicom.dcmread(path)

    node = start_receiver()
    with archive(finds=finds(7), on_get=on_get) as peer, pulling(node, peer) as puller:
        outcome = puller.fetch(puller.plan(NAMED).series[0])
    assert outcome.here == 5
    assert SERIES in outcome.problem
    assert "5 of 7 instances are here, pacs says that it sent 5" in outcome.problem
    assert node.database.pulled([SERIES])[SERIES]["done_at"] is None


def test_an_archive_that_only_says_that_it_goes_on_is_left(
    start_receiver: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieve, "_LONGEST_STILL_S", 0.5)
    over = threading.Event()

    def on_get(event: Any) -> Iterator[Any]:
        yield 7
        while not over.wait(0.05):
            reply = C_GET()
            reply.MessageIDBeingRespondedTo, reply.Status = event.message_id, 0xFF00
            reply.AffectedSOPClassUID = event.request.AffectedSOPClassUID
            event.assoc.dimse.send_msg(reply, event.context.context_id)

    node = start_receiver()
    with archive(finds=finds(7), on_get=on_get) as peer, pulling(node, peer) as puller:
        fetching = threading.Thread(target=lambda: outcomes.append(puller.fetch(puller.plan(NAMED).series[0])))
        outcomes: list[Any] = []
        fetching.start()
        fetching.join(30)
        over.set()
        fetching.join()
    assert "says that it goes on, and sent nothing for 0.5 s" in outcomes[0].problem


def test_an_archive_that_is_gone_midway_leaves_what_came_and_the_rest_for_later(
    start_receiver: Start, scan: list[Path]
) -> None:
    def on_get(event: Any) -> Iterator[Any]:
        yield 7
        for path in scan[:3]:
            yield 0xFF00, pydicom.dcmread(path)
        event.assoc.abort()

    node = start_receiver()
    with archive(finds=finds(7), on_get=on_get) as peer, pulling(node, peer) as puller:
        outcome = puller.fetch(puller.plan(NAMED).series[0])
    assert outcome.here == 3
    assert "3 of 7" in outcome.problem
    assert "did not answer" in outcome.problem

    def all_of_it(event: Any) -> Iterator[Any]:
        yield 7
        for path in scan:
            yield 0xFF00, pydicom.dcmread(path)

    with archive(finds=finds(7), on_get=all_of_it) as peer, pulling(node, peer) as puller:
        assert puller.fetch(puller.plan(NAMED).series[0]).problem == ""
    assert_here(node, scan)


def test_what_was_not_asked_for_is_refused(start_receiver: Start, scan: list[Path], tmp_path: Path) -> None:
    other = make_ct_series(tmp_path / "other", shape=(1, 16, 16), header={"SeriesInstanceUID": "1.2.999"})
    said: list[int] = []

    def on_get(event: Any) -> Iterator[Any]:
        yield 8
        for path in [*other, *scan]:
            yield 0xFF00, pydicom.dcmread(path)

    node = start_receiver()
    with archive(finds=finds(7), on_get=on_get) as peer, pulling(node, peer) as puller:
        outcome = puller.fetch(puller.plan(NAMED).series[0], said.append)
    assert outcome.problem == ""
    assert node.database.instances("1.2.999") == []
    assert said, "progress is told"


@pytest.mark.peers
def test_an_archive_that_does_not_know_us_is_told_with_the_mend(
    tmp_path: Path, start_receiver: Start, scan: list[Path]
) -> None:
    with run_dcmqrscp(tmp_path / "archive") as port:
        node = start_receiver(receive={"ae_title": "STRANGER"})
        form = {"ae_title": "DCMQR", "host": "127.0.0.1", "port": port, "retrieve_by": "c_move", **PLAIN}
        peer = PeerConfig.model_validate(form)
        assert all(sent.kind == "stored" for sent in send(scan, peer, "STRANGER"))
        with pulling(node, peer) as puller:
            outcome = puller.fetch(puller.plan(NAMED).series[0])
        assert "DCMQR does not know STRANGER: enter that AE title there with this machine's address" in outcome.problem


@pytest.mark.peers
def test_orthanc_which_does_not_know_us_and_says_only_that_it_failed(
    orthanc: Orthanc, start_receiver: Start, scan: list[Path]
) -> None:
    fill(orthanc, scan)
    node = start_receiver(receive={"ae_title": "STRANGER"})
    with pulling(node, orthanc_peer(orthanc, "c_move")) as puller:
        outcome = puller.fetch(puller.plan(NAMED).series[0])
    assert (outcome.here, outcome.reached) == (0, True)
    assert "does it know STRANGER" in outcome.problem


def test_an_archive_that_is_down_is_not_reached_and_its_series_not_to_blame(start_receiver: Start) -> None:
    node = start_receiver()
    with archive(finds=finds(7)) as peer, pulling(node, peer) as puller:
        [planned] = puller.plan(NAMED).series
    gone = peer.model_copy(update={"port": free_port()})
    with pulling(node, gone) as puller:
        outcome = puller.fetch(planned)
        with pytest.raises(DeliveryError, match="cannot connect"):
            puller.plan(NAMED)
    assert not outcome.reached
    assert node.database.pulled([SERIES])[SERIES]["attempts"] == 0


@pytest.mark.peers
def test_a_silent_c_move_is_waited_for_while_instances_arrive(start_receiver: Start, scan: list[Path]) -> None:
    """PS3.4 C.4.2.1.6: pending responses are optional, and some archives send none."""
    node = start_receiver()
    ours = node.peer
    ae = AE("PACS")
    ae.add_supported_context(retrieve.MOVE[0])
    slow = threading.Event()

    def on_move(event: Any) -> Iterator[Any]:
        for path in scan:
            slow.wait(0.4)
            assert [o.kind for o in send([path], ours, "PACS")] == ["stored"]
        yield None, None

    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_MOVE, on_move)])
    try:
        form = {"ae_title": "PACS", "host": "127.0.0.1", "port": server.server_address[1], **PLAIN}
        peer = PeerConfig.model_validate({**form, "response_timeout_s": 1.5})
        seen = [0]

        def goes_on() -> bool:
            seen.append(node.database.instance_count(SERIES))
            return seen[-1] > seen[-2]

        retrieve.move(
            peer,
            "DICOMNODE",
            "DICOMNODE",
            SeriesKey(study_uid=STUDY, series_uid=SERIES),
            goes_on=goes_on,
        )
    finally:
        server.shutdown()
    assert len(seen) > 1, "it was silent for longer than the time-out"
    assert node.database.instance_count(SERIES) == 7


# -- the route that a pull names -------------------------------------------------------------------


def test_a_route_that_is_not_there_is_refused_before_anything_is_asked(start_receiver: Start) -> None:
    peer = PeerConfig.model_validate({"ae_title": "PACS", "host": "127.0.0.1", "port": free_port(), **PLAIN})
    with pytest.raises(ConfigError, match="no route is named"), pulling(start_receiver(), peer, route="chest"):
        pass


# -- pulls on schedule -----------------------------------------------------------------------------


class Clock:
    """The time of day, which a test moves."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@contextlib.contextmanager
def scheduled(start_receiver: Start, peer: PeerConfig, clock: Clock, **pull: Any) -> Iterator[Scheduled]:
    """A schedule with one pull, whose rounds the test asks for; the receiver that its node has beside it."""
    form = peer.model_dump(mode="json", by_alias=True, exclude_none=True)
    settings = {"name": "nightly", "from": "pacs", "every_min": 10, "since_h": 8000, **pull}
    node = start_receiver(peers={"pacs": form}, pulls=[settings])
    database = Database(node.config.database_url(), now=clock)
    announcer = Announcer(lambda uid, quiet_time_s: node.bounced.append((uid, quiet_time_s)), node.config.quiet_time_s)
    schedule = PullSchedule(node.config, database, Landing(node.storage, database, announcer), now=clock)
    try:
        yield Scheduled(node=node, database=database, round=lambda: schedule.round_if_due(node.config.pulls[0]))
    finally:
        announcer.close()
        database.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    node: RunningReceiver
    database: Database
    round: Callable[[], bool]

    def last(self) -> dict[str, Any]:
        row = self.database.pull_round("nightly")
        assert row is not None
        return dict(row)


def several(there: int, count: int) -> dict[str, list[Dataset]]:
    """One study of `count` series."""
    study = answer("STUDY", StudyInstanceUID=STUDY, StudyDate="20270101")
    more = {"Modality": "CT", "NumberOfSeriesRelatedInstances": str(there)}
    return {
        "STUDY": [study],
        "SERIES": [answer("SERIES", SeriesInstanceUID=f"1.2.7.{n}", **more) for n in range(count)],
    }


def one_image(folder: Path) -> Callable[[Any], Iterator[Any]]:
    """C-GET that sends one image of whatever series was asked for."""
    asked: list[str] = []

    def on_get(event: Any) -> Iterator[Any]:
        uid = str(event.identifier.SeriesInstanceUID)
        asked.append(uid)
        [path] = make_ct_series(folder / f"{uid}-{len(asked)}", shape=(1, 16, 16), header={"SeriesInstanceUID": uid})
        yield 1
        yield 0xFF00, pydicom.dcmread(path)

    on_get.asked = asked  # type: ignore[attr-defined]
    return on_get


def test_a_round_takes_so_many_series_and_the_next_one_the_rest(start_receiver: Start, tmp_path: Path) -> None:
    clock, on_get = Clock(), one_image(tmp_path)
    with (
        archive(finds=several(1, 5), on_get=on_get) as peer,
        scheduled(start_receiver, peer, clock, max_series=2) as pulls,
    ):
        assert pulls.round()
        assert (pulls.last()["fetched"], pulls.last()["left_over"], pulls.last()["problem"]) == (2, 3, None)
        assert not pulls.round(), "it is not due yet"
        for fetched in (2, 1, 0):
            clock.now += 601
            assert pulls.round()
            assert pulls.last()["fetched"] == fetched
    assert sorted(on_get.asked) == [f"1.2.7.{n}" for n in range(5)], "each once"  # type: ignore[attr-defined]


class Growing(dict[str, list[Dataset]]):
    """An archive to which a scanner is storing: each time it is asked it has one Instance more."""

    there = 0

    def get(self, level: str, default: Any = None) -> Any:
        self.there += level == "SERIES"
        return several(self.there, 1).get(level, default)


def test_a_series_that_is_just_being_stored_in_the_archive_waits_for_a_later_round(
    start_receiver: Start, tmp_path: Path
) -> None:
    clock, on_get = Clock(), one_image(tmp_path)
    with archive(finds=Growing(), on_get=on_get) as peer, scheduled(start_receiver, peer, clock) as pulls:
        assert pulls.round()
        assert (pulls.last()["fetched"], pulls.last()["left_over"], pulls.last()["problem"]) == (0, 1, None)
    assert on_get.asked == []  # type: ignore[attr-defined]


def test_two_machines_do_not_pull_at_once(start_receiver: Start) -> None:
    clock = Clock()
    with archive(finds={}) as peer, scheduled(start_receiver, peer, clock) as pulls:
        lock = try_lock(pulls.database.url, "pull:nightly")
        assert lock is not None
        assert not pulls.round()
        lock.release()
        assert pulls.round()


def test_a_round_whose_process_died_is_made_again_at_once(start_receiver: Start, tmp_path: Path) -> None:
    clock = Clock()
    with (
        archive(finds=several(1, 1), on_get=one_image(tmp_path)) as peer,
        scheduled(start_receiver, peer, clock) as pulls,
    ):
        pulls.database.pull_round_began("nightly")
        assert pulls.round()
        assert pulls.last()["fetched"] == 1


def test_an_archive_that_is_down_is_told_and_asked_again(start_receiver: Start, tmp_path: Path) -> None:
    clock = Clock()
    with archive(finds=several(1, 1), on_get=one_image(tmp_path)) as peer:
        pass
    with scheduled(start_receiver, peer, clock) as pulls:
        assert pulls.round()
        assert "cannot connect" in pulls.last()["problem"]
        [item] = [item for item in check(pulls.node.config) if item.name == "pull nightly"]
        assert not item.ok
        clock.now += 601
        assert pulls.round(), "the schedule goes on"


def test_a_round_that_fails_in_an_unforeseen_way_ends_and_waits_for_the_next(
    start_receiver: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()

    def fail(*_: object) -> None:
        raise ZeroDivisionError("Doe^John")

    monkeypatch.setattr(Puller, "plan", fail)
    with archive(finds=several(1, 1)) as peer, scheduled(start_receiver, peer, clock) as pulls:
        assert pulls.round()
        assert "ZeroDivisionError" in pulls.last()["problem"]
        assert "Doe" not in pulls.last()["problem"]
        assert not pulls.round(), "it would ask the archive every few seconds"


def test_check_tells_how_the_last_round_went(start_receiver: Start, tmp_path: Path) -> None:
    clock = Clock()
    with (
        archive(finds=several(2, 1), on_get=one_image(tmp_path)) as peer,
        scheduled(start_receiver, peer, clock) as pulls,
    ):
        assert pulls.round()
        [item] = [item for item in check(pulls.node.config) if item.name == "pull nightly"]
    assert not item.ok
    assert "1 of 2 instances are here" in item.text


def test_a_series_that_never_comes_whole_is_asked_for_ever_more_seldom(start_receiver: Start, tmp_path: Path) -> None:
    clock, on_get = Clock(), one_image(tmp_path)
    with archive(finds=several(2, 1), on_get=on_get) as peer, scheduled(start_receiver, peer, clock) as pulls:
        for _ in range(8):
            assert pulls.round()
            clock.now += 601
    assert len(on_get.asked) == 4, "in the rounds 1, 2, 4 and 8"  # type: ignore[attr-defined]


def test_what_was_pulled_and_purged_is_not_pulled_again(start_receiver: Start, tmp_path: Path) -> None:
    clock, on_get = Clock(), one_image(tmp_path)
    with archive(finds=several(1, 1), on_get=on_get) as peer, scheduled(start_receiver, peer, clock) as pulls:
        assert pulls.round()
        pulls.database.series_assembled("1.2.7.0", "x", clock.now)
        assert pulls.database.purge_series("1.2.7.0", clock.now + 1, lambda: None)
        clock.now += 601
        assert pulls.round()
        assert pulls.node.database.instance_count("1.2.7.0") == 0
    assert len(on_get.asked) == 1  # type: ignore[attr-defined]


def test_what_is_here_and_was_never_announced_is_announced(start_receiver: Start, scan: list[Path]) -> None:
    """A pull that was killed after its last Instance and before its announcement."""
    clock = Clock()
    with archive(finds=finds(7)) as peer, scheduled(start_receiver, peer, clock) as pulls:
        assert all(sent.kind == "stored" for sent in send(scan, pulls.node.peer, "PACS"))
        pulls.node.receiver.stop(1.0)
        pulls.node.bounced.clear()
        assert pulls.round()
    assert [uid for uid, _ in pulls.node.bounced] == [SERIES]


# -- QIDO-RS services that page in their own way ---------------------------------------------------


@pytest.mark.parametrize("pages", [[3, 3, 1], [7], [3, 3, 3, 3, 3], []])
def test_all_pages_of_a_service_are_read_once(monkeypatch: pytest.MonkeyPatch, pages: list[int]) -> None:
    """Pages shorter than was asked for; and a service that ignores the offset and begins anew for ever."""
    known = [{"0020000D": {"vr": "UI", "Value": [f"1.2.3.{n}"]}} for n in range(sum(pages) if len(pages) < 5 else 3)]
    calls = iter(pages)

    def page(_asked: object, _level: str, _keys: object, offset: int) -> list[Any]:
        count = next(calls, 0)
        start = 0 if len(pages) == 5 else offset
        return known[start : start + count]

    monkeypatch.setattr(web, "_page", page)
    peer = {"ae_title": "PACS", "host": "h", "dicomweb": {"url": "http://pacs.example/web"}}
    found = web.search(PeerConfig.model_validate(peer), "STUDY", {})
    assert [str(one.StudyInstanceUID) for one in found.data_sets] == [f"1.2.3.{n}" for n in range(len(known))]


@pytest.mark.parametrize("body", [b"", b"this is no DICOM", bytes(128) + b"DICM" + b"\x08\0\x05\0\x10\0\0\0"])
def test_a_part_of_an_answer_that_is_no_dicom_is_named_without_its_content(body: bytes) -> None:
    parts = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + body + b"\r\n--b--\r\n"
    said = Said(200, parts, {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'})
    with serving(lambda _: said) as url:
        peer = PeerConfig.model_validate({"ae_title": "PACS", "host": "h", "dicomweb": {"url": url}})
        with pytest.raises(DicomWebError, match="a part of its answer is no DICOM file"):
            web.fetch(peer, SeriesKey(study_uid=STUDY, series_uid=SERIES), lambda _: pytest.fail("nothing to store"))
