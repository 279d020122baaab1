"""C-FIND: what real archives answer, and what is made of answers that cannot be trusted."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from dicom_node.dimse import query
from dicom_node.dimse.query import PATIENT_ROOT, STUDY_ROOT, QueryFailed, querying
from dicom_node.dimse.requestor import NoAnswer, NothingAccepted
from dicom_node.dimse.scu import send
from dicom_node.errors import DeliveryError
from dicom_node.peers import PeerConfig
from tests.fakes.ct import make_ct_series
from tests.peers import Orthanc, run_dcmqrscp

STUDY, SERIES = "1.2.826.0.1.3680043.8.498.1001", "1.2.826.0.1.3680043.8.498.1002"
Handler = Callable[[Any], Iterator[tuple[int, Dataset | None]]]


@pytest.fixture
def scan(tmp_path: Path) -> list[Path]:
    """Seven images of one series."""
    return make_ct_series(tmp_path / "scan", shape=(7, 16, 16))


def peer_at(port: int, ae_title: str = "PEER", **more: Any) -> PeerConfig:
    settings = {"response_timeout_s": 10.0, "may_be_queried": True, **more}
    return PeerConfig.model_validate({"ae_title": ae_title, "host": "127.0.0.1", "port": port, **settings})


@contextlib.contextmanager
def answering(handler: Handler, *models: str) -> Iterator[PeerConfig]:
    """A peer whose C-FIND answers are the test's."""
    ae = AE("PEER")
    for model in models or (STUDY_ROOT,):
        ae.add_supported_context(model)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, handler)])
    try:
        yield peer_at(server.server_address[1], response_timeout_s=3.0)
    finally:
        server.shutdown()


def answer(level: str = "SERIES", **values: object) -> Dataset:
    data_set = Dataset()
    data_set.QueryRetrieveLevel = level
    for keyword, value in values.items():
        setattr(data_set, keyword, value)
    return data_set


def fixed(*answers: tuple[int, Dataset | None]) -> Handler:
    return lambda event: iter(answers)


# -- real archives ---------------------------------------------------------------------------------


@pytest.mark.peers
def test_orthanc_tells_the_count_of_a_series(orthanc: Orthanc, scan: list[Path]) -> None:
    for path in scan:
        orthanc.upload(path.read_bytes())
    peer = peer_at(orthanc.dicom_port, "ORTHANC")
    assert query.series_instance_count(peer, "NODE", STUDY, SERIES) == 7
    assert query.series_instance_count(peer, "NODE", STUDY, "1.2.3") is None


@pytest.mark.peers
def test_dcmqrscp_which_keeps_no_counts_is_counted(tmp_path: Path, scan: list[Path]) -> None:
    if not shutil.which("/usr/bin/dcmqrscp"):
        pytest.skip("no dcmqrscp here: tests/peers.sh installs it")
    with run_dcmqrscp(tmp_path / "archive") as port:
        peer = peer_at(port, "DCMQR")
        assert all(outcome.kind == "stored" for outcome in send(scan, peer, "NODE"))
        assert query.series_instance_count(peer, "NODE", STUDY, SERIES) == 7
        assert query.series_instance_count(peer, "NODE", STUDY, "1.2.3") is None
        studies = query.find(peer, "NODE", "STUDY", {"PatientID": "PHANTOM-1", "StudyDate": ""})
        assert [(str(s.StudyInstanceUID), str(s.StudyDate)) for s in studies.data_sets] == [(STUDY, "20260102")]


@pytest.mark.peers
def test_names_in_any_character_set_come_and_go(orthanc: Orthanc, tmp_path: Path) -> None:
    header = {"SpecificCharacterSet": "ISO_IR 100", "StudyDescription": "Übersicht"}
    (path,) = make_ct_series(tmp_path / "one", shape=(1, 16, 16), header=header)
    orthanc.upload(path.read_bytes())
    peer = peer_at(orthanc.dicom_port, "ORTHANC")
    found = query.find(peer, "NODE", "STUDY", {"StudyDescription": "Übersicht"})
    assert [str(s.StudyDescription) for s in found.data_sets] == ["Übersicht"]


@pytest.mark.peers
def test_more_than_the_limit_is_cancelled_and_said(orthanc: Orthanc, scan: list[Path]) -> None:
    for path in scan:
        orthanc.upload(path.read_bytes())
    keys = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES}
    with querying(peer_at(orthanc.dicom_port, "ORTHANC"), "NODE") as asked:
        found = asked.find("IMAGE", keys, limit=3)
        assert (len(found.data_sets), found.truncated) == (3, True)
        assert len(asked.find("IMAGE", keys).data_sets) == 7, "the Association goes on"


# -- answers that cannot be trusted ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("hostile", "why"),
    [
        (answer("STUDY", StudyInstanceUID=STUDY, SeriesInstanceUID=SERIES), "not of SERIES level"),
        (answer(SeriesInstanceUID=""), "is empty"),
        (answer(), "is empty"),
        (answer(SeriesInstanceUID="1.2.999"), "another SeriesInstanceUID"),
        (answer(SeriesInstanceUID=SERIES, StudyInstanceUID="1.2.999"), "another StudyInstanceUID"),
        (Dataset.from_json({"0020000E": {"vr": "UI", "Value": [SERIES]}}), "not of SERIES level"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*UID.*")
def test_an_answer_that_is_none_is_left_out_and_never_counted(hostile: Dataset, why: str) -> None:
    good = answer(StudyInstanceUID=STUDY, SeriesInstanceUID=SERIES, NumberOfSeriesRelatedInstances=7)
    with answering(fixed((0xFF00, hostile), (0xFF00, good))) as peer:
        found = query.find(peer, "NODE", "SERIES", {"StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES})
        assert len(found.data_sets) == 1
        assert len(found.unusable) == 1
        assert why in found.unusable[0]
        with pytest.raises(QueryFailed, match="cannot be used"):
            query.series_instance_count(peer, "NODE", STUDY, SERIES)


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_uid_that_would_climb_out_of_a_folder_is_left_out() -> None:
    with answering(fixed((0xFF00, answer("STUDY", StudyInstanceUID="../../../etc")))) as peer:
        found = query.find(peer, "NODE", "STUDY", {})
    assert not found.data_sets
    assert "no valid UID" in found.unusable[0]


@pytest.mark.parametrize("identifier", [None, BytesIO(b""), BytesIO(b"\x08\x00\x52\x00XX\xff\xff no data set")])
def test_bytes_that_are_no_data_set_are_left_out(identifier: BytesIO | None) -> None:
    gathered = query._Gathered("STUDY", {}, implicit=False)
    gathered.add(SimpleNamespace(Identifier=identifier))
    assert not gathered.data_sets
    assert len(gathered.unusable) == 1


@pytest.mark.parametrize(
    ("status", "words", "retry_helps"),
    [
        (0xA700, "out of resources", True),
        (0xA900, "do not fit", False),
        (0xC000, "unable to process", True),
        (0x0122, "SOP Class not supported", False),
        (0x0124, "let us query", False),
        (0xFE00, "cancelled", False),
    ],
)
def test_a_failure_is_told_with_its_meaning(status: int, words: str, retry_helps: bool) -> None:
    with answering(fixed((status, None))) as peer, pytest.raises(QueryFailed, match=words) as caught:
        query.find(peer, "NODE", "STUDY", {})
    assert caught.value.retry_helps is retry_helps


def test_a_failure_after_answers_is_a_failure() -> None:
    one = answer("STUDY", StudyInstanceUID=STUDY)
    with answering(fixed((0xFF00, one), (0xA700, None))) as peer, pytest.raises(QueryFailed):
        query.find(peer, "NODE", "STUDY", {})


@pytest.mark.filterwarnings("ignore:.*NumberOfSeriesRelated.*")
@pytest.mark.parametrize("said", ["2000001", "-1", "", None])
def test_a_count_that_is_none_is_counted_at_image_level(said: str | None) -> None:
    def handler(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        if event.identifier.QueryRetrieveLevel == "SERIES":
            more = {} if said is None else {"NumberOfSeriesRelatedInstances": said}
            yield 0xFF00, answer(SeriesInstanceUID=SERIES, **more)
        else:
            for n in (1, 2, 2, 3):
                yield 0xFF01, answer("IMAGE", SeriesInstanceUID=SERIES, SOPInstanceUID=f"1.2.3.{n}")

    with answering(handler) as peer:
        assert query.series_instance_count(peer, "NODE", STUDY, SERIES) == 3


def test_a_peer_that_ignores_the_cancel_is_left() -> None:
    def endless(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        while event.assoc.is_established:
            yield 0xFF00, answer("STUDY", StudyInstanceUID="1.2.3")

    with answering(endless) as peer, querying(peer, "NODE") as asked:
        found = asked.find("STUDY", {}, limit=5)
        assert (len(found.data_sets), found.truncated) == (5, True)
        with pytest.raises(NoAnswer):
            asked.find("STUDY", {})


def test_a_peer_that_falls_silent_is_given_up() -> None:
    def silent(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        yield 0xFF00, answer("STUDY", StudyInstanceUID="1.2.3")
        event.assoc.abort()

    with answering(silent) as peer, pytest.raises(NoAnswer):
        query.find(peer, "NODE", "STUDY", {})


# -- information models ----------------------------------------------------------------------------


def test_a_peer_with_patient_root_alone_is_asked_by_patient() -> None:
    asked: list[Dataset] = []

    def handler(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        asked.append(event.identifier)
        yield 0xFF00, answer(SeriesInstanceUID=SERIES, PatientID="P1", NumberOfSeriesRelatedInstances="4")

    with answering(handler, PATIENT_ROOT) as peer:
        assert query.series_instance_count(peer, "NODE", STUDY, SERIES, patient_id="P1") == 4
        with pytest.raises(QueryFailed, match="query by patient"):
            query.series_instance_count(peer, "NODE", STUDY, SERIES)
    assert [one.PatientID for one in asked] == ["P1"]


def test_study_root_is_not_asked_for_a_patient_below_study_level() -> None:
    asked: list[Dataset] = []

    def handler(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        asked.append(event.identifier)
        yield 0x0000, None

    with answering(handler, STUDY_ROOT, PATIENT_ROOT) as peer:
        query.series_instance_count(peer, "NODE", STUDY, SERIES, patient_id="P1")
    assert "PatientID" not in asked[0]


def test_a_peer_that_answers_no_queries_is_told_as_such(start_receiver: Any) -> None:
    with pytest.raises(NothingAccepted):
        query.find(start_receiver().peer, "NODE", "STUDY", {})
    assert issubclass(QueryFailed, DeliveryError)
