"""The earlier CT of a patient, from real archives: what is taken, what is left, and what a report says of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node import tracing
from dicom_node.dimse import retrieve
from dicom_node.locks import try_lock
from dicom_node.lookback import Found
from dicom_node.prior import PriorFinder
from tests.conftest import RunningReceiver
from tests.fakes.collector import collector
from tests.fakes.ct import HEADER, make_ct_series
from tests.fakes.earlier import PRIOR_SERIES, PRIOR_STUDY, Archive, Earlier, earlier_exam
from tests.peers import Orthanc, free_port

Start = Callable[..., RunningReceiver]
JOB_ID = f"{HEADER['SeriesInstanceUID']}-0123456789abcdef"
WAYS = ("c_move", "c_get", "wado_rs")


def fill(orthanc: Orthanc, *exams: Earlier) -> None:
    for exam in exams:
        for path in exam.files:
            orthanc.upload(path.read_bytes())


def settings(port: int, by: str, url: str = "http://127.0.0.1:1/dicom-web", **peer: Any) -> dict[str, Any]:
    archive = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": port, "dicomweb": {"url": url}, "retrieve_by": by}
    may = {"may_be_queried": True, "may_send": True, "response_timeout_s": 10.0}
    return {
        "peers": {"pacs": {**archive, **may, **peer}},
        "models": {"nodules": {"bundle": "builtin:lung_nodule_small"}},
        "routes": [{"name": "chest", "model": "nodules", "compare_with": "pacs"}],
        "receive": {"unknown_peers": "refuse"},
        "gate": {"min_slices": 5, "min_length_mm": 0},
    }


def node_beside(orthanc: Orthanc, start_receiver: Start, by: str, **peer: Any) -> RunningReceiver:
    node = start_receiver(**settings(orthanc.dicom_port, by, f"{orthanc.url}/dicom-web", **peer))
    orthanc.set_modality("node", "DICOMNODE", node.port)
    return node


def current(**header: Any) -> Dataset:
    """A header of the series that is to be compared."""
    made = Dataset()
    for keyword, value in {**HEADER, **header}.items():
        setattr(made, keyword, value)
    return made


def look(node: RunningReceiver, header: Dataset | None = None, *, within_s: float = 60.0, job: str = JOB_ID) -> Any:
    finder = PriorFinder(config=node.config, database=node.database, storage=node.storage)
    found: list[Found] = []
    missed = finder(job, "pacs", header or current(), time.time() + within_s, found.append)
    assert bool(found) != bool(missed)
    return missed or found[0]


def assert_whole(node: RunningReceiver, found: Any, exam: Earlier) -> None:
    """Images, report and segmentation are in the job's folder, bit for bit the data sets of the archive."""
    assert isinstance(found, Found), found
    assert (found.study_uid, found.series_uid) == (PRIOR_STUDY, PRIOR_SERIES)
    folder = node.storage.path(found.folder)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    uids = sorted(str(pydicom.dcmread(path).SOPInstanceUID) for path in exam.images)
    more = ["report.dcm", *(["segmentation.dcm"] if len(exam.results) > 1 else [])]
    assert names == sorted([*(f"images/{uid}.dcm" for uid in uids), *more])
    for path in exam.images:
        sent = pydicom.dcmread(path)
        assert pydicom.dcmread(folder / "images" / f"{sent.SOPInstanceUID}.dcm") == sent
    kept = {str(pydicom.dcmread(folder / name).SOPInstanceUID) for name in more}
    assert kept == {str(pydicom.dcmread(path).SOPInstanceUID) for path in exam.results}


def assert_traced(spans: list[Any]) -> None:
    """The look is in the trace of the series that is compared, with the time of questions and of fetching."""
    mine = [
        span for span in spans if span.trace_id == tracing.trace_id(HEADER["SeriesInstanceUID"]).to_bytes(16, "big")
    ]
    [root] = [span for span in mine if span.name == "priors"]
    parts = {span.name for span in mine if span.parent_span_id == root.span_id}
    assert parts == {"ask", "wait", "fetch"}
    about = {each.key: each.value.string_value for each in root.attributes}
    expected = {"archive": "pacs", "outcome": "found", "job": "0123456789abcdef"}
    assert about == {f"dicom_node.{key}": value for key, value in expected.items()}
    assert PRIOR_SERIES not in str(mine)


def incoming(node: RunningReceiver) -> list[str]:
    return [path for path in node.files() if path.endswith(".dcm")]


# -- what is taken -----------------------------------------------------------------------------------


@pytest.mark.peers
@pytest.mark.parametrize("by", WAYS)
def test_the_earlier_ct_and_our_results_come_into_the_jobs_folder_and_nowhere_else(
    orthanc: Orthanc, start_receiver: Start, tmp_path: Path, counts: Callable[[str], dict[str, float]], by: str
) -> None:
    """By C-MOVE, too, though the receiver takes no SR and no SEG from anybody else."""
    exam = earlier_exam(tmp_path / "earlier")
    fill(orthanc, exam)
    node = node_beside(orthanc, start_receiver, by)
    with collector() as collected:
        tracing.start(collected.endpoint, "deliver")
        found = look(node)
        tracing.stop()
    assert_traced(collected.spans())
    retrieved = {} if by == "c_move" else {f"pacs {by} 0x0000": len(exam.files)}
    assert counts("dicom_node_instances_retrieved_total") == retrieved
    assert_whole(node, found, exam)
    assert incoming(node) == []
    assert node.database.series(PRIOR_SERIES) is None
    assert node.database.series_to_assemble() == []


@pytest.mark.peers
def test_an_exam_without_findings_is_one_to_compare_with(
    orthanc: Orthanc, start_receiver: Start, tmp_path: Path
) -> None:
    exam = earlier_exam(tmp_path / "earlier", found=False)
    fill(orthanc, exam)
    node = node_beside(orthanc, start_receiver, "c_get")
    assert_whole(node, look(node), exam)


@pytest.mark.peers
@pytest.mark.parametrize("by", ["c_move", "wado_rs"])
def test_the_newest_study_with_a_result_of_ours_is_taken(
    orthanc: Orthanc, start_receiver: Start, tmp_path: Path, by: str
) -> None:
    """Others: older; newer without a result; of the very study; of a later day; with another maker's report."""
    wanted = earlier_exam(tmp_path / "wanted")
    older = {"StudyInstanceUID": "1.2.3.1", "SeriesInstanceUID": "1.2.3.1.1", "StudyDate": "20240102"}
    fill(orthanc, wanted, earlier_exam(tmp_path / "older", header=older))
    newer = {"StudyInstanceUID": "1.2.3.2", "SeriesInstanceUID": "1.2.3.2.1", "StudyDate": "20251001"}
    foreign = earlier_exam(tmp_path / "newer", header=newer)
    for path in foreign.results:
        report = pydicom.dcmread(path)
        report.Manufacturer = "Somebody else"
        report.save_as(path)
    same = {"StudyInstanceUID": HEADER["StudyInstanceUID"], "SeriesInstanceUID": "1.2.3.3.1"}
    later = {"StudyInstanceUID": "1.2.3.4", "SeriesInstanceUID": "1.2.3.4.1", "StudyDate": "20260103"}
    fill(orthanc, foreign, earlier_exam(tmp_path / "same", header={**same, "StudyDate": "20260102"}))
    fill(orthanc, earlier_exam(tmp_path / "later", header=later))
    node = node_beside(orthanc, start_receiver, by)
    assert_whole(node, look(node), wanted)
    assert incoming(node) == []


@pytest.mark.peers
def test_of_one_day_only_what_was_surely_before_counts(orthanc: Orthanc, start_receiver: Start, tmp_path: Path) -> None:
    node = node_beside(orthanc, start_receiver, "c_get")
    for study_time, before in (("090000", True), ("101112", False), ("120000", False), (None, False)):
        orthanc.clear()
        header = {"StudyDate": HEADER["StudyDate"], "StudyTime": study_time}
        fill(orthanc, earlier_exam(tmp_path / str(study_time), header=header))
        assert isinstance(look(node), Found) == before, study_time


@pytest.mark.peers
def test_what_the_archive_lacks_is_said(orthanc: Orthanc, start_receiver: Start, tmp_path: Path) -> None:
    node = node_beside(orthanc, start_receiver, "c_get")
    assert (looked := look(node)).said.outcome == "no_prior"
    assert looked.said.text == "The archive has no CT of this patient from the 1825 days before."
    exam = earlier_exam(tmp_path / "earlier")
    fill(orthanc, Earlier(images=exam.images, results=[]))
    assert (looked := look(node)).said.outcome == "no_prior_result"
    assert looked.said.text == "The newest earlier CT in the archive, of 2025-01-02, has no result of this node."
    fill(orthanc, exam)
    late = current(StudyDate="20300103")
    assert look(node, late).said.outcome == "no_prior", "more than five years later"
    assert isinstance(look(node, current(StudyDate="20291230")), Found)
    assert look(node, current(StudyDate="", SeriesDate="", PatientID="x")).said.outcome == "not_available"


# -- whose it is -------------------------------------------------------------------------------------


@pytest.mark.peers
@pytest.mark.parametrize("by", ["c_get", "wado_rs"])
@pytest.mark.parametrize(
    ("header", "text"),
    [
        ({"PatientBirthDate": "19700103"}, "have another birth date: they may be another patient's"),
        ({"PatientSex": "F"}, "have another sex"),
        ({"PatientName": "Phantom^Other"}, "have another name"),
        ({"IssuerOfPatientID": "ELSEWHERE"}, "another issuer of the Patient ID"),
    ],
)
def test_a_study_that_may_be_another_patients_is_not_used(
    orthanc: Orthanc,
    start_receiver: Start,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    by: str,
    header: dict[str, str],
    text: str,
) -> None:
    fill(orthanc, earlier_exam(tmp_path / "earlier", header=header))
    node = node_beside(orthanc, start_receiver, by)
    looked = look(node, current(PatientSex="M", IssuerOfPatientID="HERE"))
    assert looked.said.outcome == "not_available"
    assert text in looked.said.text
    assert incoming(node) == []
    for value in ("PHANTOM-1", "Phantom", "19700103", "ELSEWHERE"):
        assert value not in caplog.text + repr(looked)


@pytest.mark.peers
@pytest.mark.parametrize(
    "header",
    [
        {"PatientName": "Married^Chest"},
        {"PatientName": "PHANTOM^CHEST^A"},
        {"PatientName": None, "PatientBirthDate": None, "PatientSex": None},
    ],
)
def test_a_name_by_marriage_and_what_is_not_told_speak_against_nobody(
    orthanc: Orthanc, start_receiver: Start, tmp_path: Path, header: dict[str, Any]
) -> None:
    exam = earlier_exam(tmp_path / "earlier", header=header)
    fill(orthanc, exam)
    node = node_beside(orthanc, start_receiver, "wado_rs")
    assert_whole(node, look(node), exam)


@pytest.mark.peers
def test_another_patient_id_is_never_asked_for(orthanc: Orthanc, start_receiver: Start, tmp_path: Path) -> None:
    fill(orthanc, earlier_exam(tmp_path / "earlier", header={"PatientID": "PHANTOM-2"}))
    node = node_beside(orthanc, start_receiver, "c_get")
    assert look(node).said.outcome == "no_prior"
    for odd in ("", "PHANTOM-?", "*", "A\\B"):
        header = current()
        header.PatientID = odd
        assert look(node, header).said.text.startswith("The images tell no Patient ID"), odd


# -- what is here already ------------------------------------------------------------------------------


def job_of(node: RunningReceiver, job_id: str = JOB_ID, **values: Any) -> None:
    series_uid = job_id.partition("-")[0]
    form = {"series_uid": series_uid, "study_uid": "1.2.3", "manifest_sha256": "0", "instance_count": 8}
    more = {"source_ae": "CT", "route": "chest", "priority": "routine", "evidence": {}, "explanation": []}
    node.database.create_job(job_id, state="queued", **{**form, **more, **values})


@pytest.mark.peers
@pytest.mark.parametrize("by", ["c_move", "c_get"])
def test_the_second_series_of_a_study_finds_what_the_first_has_fetched(
    orthanc: Orthanc, start_receiver: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    exam = earlier_exam(tmp_path / "earlier")
    fill(orthanc, exam)
    node = node_beside(orthanc, start_receiver, by)
    job_of(node)
    node.database.prior_wanted(JOB_ID, "pacs")
    first = look(node)
    folder = first.folder.rpartition("/")[2]
    node.database.prior_settled(JOB_ID, "found", "", folder=folder, series_uid=first.series_uid)
    fetched: list[str] = []
    for name in ("move", "get"):
        real: Any = getattr(retrieve, name)

        def noted(peer: Any, ae: str, *more: Any, real: Any = real, **options: Any) -> Any:
            fetched.extend(one.series_uid for one in more if hasattr(one, "series_uid"))
            return real(peer, ae, *more, **options)

        monkeypatch.setattr(retrieve, name, noted)
    other = "1.2.826.0.1.3680043.8.498.1009-0123456789abcdef"
    second = look(node, job=other)
    assert_whole(node, second, exam)
    assert len(fetched) == 2, "the small ones: report and segmentation"
    assert PRIOR_SERIES not in fetched
    node.storage.discard(first.folder)
    assert_whole(node, second, exam)


@pytest.mark.peers
def test_a_prior_that_was_sent_to_this_node_is_used_and_left_where_it_is(
    orthanc: Orthanc, start_receiver: Start, tmp_path: Path
) -> None:
    exam = earlier_exam(tmp_path / "earlier")
    fill(orthanc, exam)
    node = node_beside(orthanc, start_receiver, "c_move")
    orthanc.store("node", orthanc.find("Series", SeriesInstanceUID=PRIOR_SERIES))
    before = incoming(node)
    assert len(before) == 8
    assert_whole(node, look(node), exam)
    assert incoming(node) == before
    assert len(node.database.instances(PRIOR_SERIES)) == 8
    assert node.database.series_to_assemble() != [], "it is decided on like any other"


@pytest.mark.peers
def test_of_a_prior_that_is_just_arriving_nothing_is_taken_away(
    orthanc: Orthanc, start_receiver: Start, tmp_path: Path
) -> None:
    exam = earlier_exam(tmp_path / "earlier")
    fill(orthanc, Earlier(images=exam.images[:3], results=exam.results))
    node = node_beside(orthanc, start_receiver, "c_move")
    orthanc.store("node", orthanc.find("Series", SeriesInstanceUID=PRIOR_SERIES))
    fill(orthanc, exam)
    assert "A part of the earlier study lies on this node already" in look(node).said.text
    assert len(incoming(node)) == 3
    assert not node.database.is_expected(PRIOR_SERIES)


# -- archives that are down, slow or do not keep their word -----------------------------------------------


def test_an_archive_that_is_down_is_no_error(start_receiver: Start) -> None:
    for by in WAYS:
        looked = look(start_receiver(**settings(free_port(), by)))
        assert looked.said.outcome == "not_available"
        assert looked.said.text == "The archive could not be asked for earlier CTs."
        assert looked.why, "for the operator"


def test_an_archive_that_never_answers_is_left_in_time(start_receiver: Start) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begun = time.monotonic()
        looked = look(start_receiver(**settings(silent.getsockname()[1], "c_get")), within_s=1.0)
        assert looked.said.outcome == "not_available"
        assert time.monotonic() - begun < 5.0


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    made = Archive(earlier_exam(tmp_path / "earlier"))
    with made.running():
        yield made


def node_with(archive: Archive, start_receiver: Start, by: str) -> RunningReceiver:
    node = start_receiver(**settings(archive.port, by, response_timeout_s=2.0))
    archive.receiver_port = node.port
    return node


@pytest.mark.parametrize("by", ["c_get", "c_move"])
def test_what_the_archive_answers_and_what_it_sends_must_be_of_one_patient(
    archive: Archive, start_receiver: Start, by: str
) -> None:
    """Each object that came has the last word: here one image of eight is of somebody else."""
    node = node_with(archive, start_receiver, by)
    assert isinstance(look(node), Found)
    archive.data_sets[5].PatientBirthDate = "19700103"
    looked = look(node)
    assert "has another birth date" in looked.said.text
    assert incoming(node) == []
    folder = node.storage.path(f"results/{JOB_ID}")
    assert len(list(folder.glob("prior_*"))) == 1, "of what was not used nothing stays"


def test_an_archive_that_tells_little_is_believed_no_more_than_what_it_sends(
    archive: Archive, start_receiver: Start
) -> None:
    """No name, no sex, no date of birth, no modalities, no counts in its answers; what it sends has them."""
    nothing = ("PatientName", "PatientSex", "PatientBirthDate", "ModalitiesInStudy", "NumberOfSeriesRelatedInstances")
    archive.says = dict.fromkeys((*nothing, "SeriesDescription", "SeriesNumber"), None)
    node = node_with(archive, start_receiver, "c_move")
    assert isinstance(look(node), Found)
    for data_set in archive.data_sets:
        data_set.PatientSex = "F"
    assert "has another sex" in look(node, current(PatientSex="M")).said.text


@pytest.mark.parametrize("by", ["c_get", "c_move"])
def test_a_prior_of_which_images_are_missing_is_not_compared_with(
    archive: Archive, start_receiver: Start, by: str
) -> None:
    archive.sends = lambda one: None if one.get("InstanceNumber") == 3 and one.Modality == "CT" else one
    node = node_with(archive, start_receiver, by)
    assert look(node).said.text == "Of the earlier CT 1 of 8 images could not be had from the archive."
    assert incoming(node) == []
    assert node.database.is_expected(PRIOR_SERIES) == (by == "c_move"), "what still comes is for nobody to analyse"


def test_more_images_than_the_report_is_about_are_left_out(
    archive: Archive, start_receiver: Start, tmp_path: Path
) -> None:
    [more] = make_ct_series(
        tmp_path / "more",
        shape=(1, 32, 32),
        header={"StudyInstanceUID": PRIOR_STUDY, "SeriesInstanceUID": PRIOR_SERIES, "SOPInstanceUID": "1.2.9"},
    )
    archive.data_sets.append(pydicom.dcmread(more))
    found = look(node := node_with(archive, start_receiver, "c_get"))
    assert len(list(node.storage.path(f"{found.folder}/images").iterdir())) == 8


@pytest.mark.parametrize("by", ["c_get", "c_move"])
def test_an_archive_that_takes_too_long_is_left_in_the_middle(archive: Archive, start_receiver: Start, by: str) -> None:
    over = threading.Event()
    archive.after = lambda one: over.wait(0.5 if one.Modality == "CT" else 0.0) and None
    node = node_with(archive, start_receiver, by)
    begun = time.monotonic()
    looked = look(node, within_s=1.5)
    over.set()
    assert "within 300 seconds" in looked.said.text
    assert time.monotonic() - begun < 4.0
    assert incoming(node) == [] or by == "c_move"


def test_a_report_that_cites_no_uids_is_none(archive: Archive, start_receiver: Start) -> None:
    [report] = [one for one in archive.data_sets if one.Modality == "SR"]
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0]
    for series in evidence.ReferencedSeriesSequence:
        for instance in series.ReferencedSOPSequence:
            instance.ReferencedSOPInstanceUID = "../../../etc/passwd"
    assert look(node_with(archive, start_receiver, "c_get")).said.outcome == "no_prior_result"


def test_a_look_that_was_killed_midway_by_c_move_is_made_good_by_the_next(
    archive: Archive, start_receiver: Start
) -> None:
    """The archive went on, all of it lies in the receiver's folder, and nobody was there to take it."""
    node = node_with(archive, start_receiver, "c_move")
    node.database.series_expected(PRIOR_SERIES, "pacs", time.time() + 60)
    key = retrieve.SeriesKey(study_uid=PRIOR_STUDY, series_uid=PRIOR_SERIES)
    retrieve.move(node.config.peers["pacs"], "DICOMNODE", "DICOMNODE", key)
    assert len(incoming(node)) == 8
    archive.asked.clear()
    found = look(node)
    assert isinstance(found, Found)
    assert PRIOR_SERIES not in archive.asked, "it is here"
    assert incoming(node) == []
    assert node.database.series(PRIOR_SERIES) is None


def test_while_another_fetches_the_same_study_one_waits_and_not_for_ever(
    archive: Archive, start_receiver: Start
) -> None:
    node = node_with(archive, start_receiver, "c_get")
    lock = try_lock(node.database.url, f"prior:{PRIOR_STUDY}")
    assert lock is not None
    assert "within 300 seconds" in look(node, within_s=0.5).said.text
    lock.release()
    assert isinstance(look(node), Found)


def test_without_room_on_the_disk_nothing_is_fetched(
    archive: Archive, start_receiver: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = node_with(archive, start_receiver, "c_get")
    monkeypatch.setattr(node.storage, "free_bytes", lambda: -1)
    assert look(node).said.text == "This node had no room for the earlier CT."
