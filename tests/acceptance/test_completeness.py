"""A series is taken up as soon as it is proven to be complete, and no sooner; what proves it is in the report."""

from __future__ import annotations

import io
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest

from dicom_node.dimse.archive import Archive
from dicom_node.dimse.scu import send
from dicom_node.peers import PeerConfig
from tests.node import Node, environment
from tests.peers import Orthanc, free_port, tool

Uids = tuple[str, list[str]]
# Longer than any test waits: what is taken up sooner was proven.
PATIENT = {"quiet_time_s": 600, "proven_quiet_time_s": 1}


def send_all(node: Node, files: list[Path]) -> None:
    peer = PeerConfig(ae_title="DICOMNODE", host="127.0.0.1", port=node.port, response_timeout_s=20)
    assert all(outcome.kind == "stored" for outcome in send(files, peer, "SENDER"))


def wait_for_job(node: Node, uids: Uids) -> dict[str, Any]:
    job_id = node.job_of(uids[1], uids[0])
    node.wait(lambda: node.database.job(job_id), "the decision on the series")
    job = node.database.job(job_id)
    assert job is not None
    return dict(job)


def counting(port: int, **more: Any) -> dict[str, Any]:
    """A node's sections: its one peer is the PACS, which is asked for counts."""
    pacs = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": port, "may_be_queried": True, **more}
    route = {"name": "all", "model": "fast", "destinations": ["pacs"], "count_from": "pacs"}
    return {"peers": {"pacs": pacs}, "routes": [route]}


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.peers)])
def test_a_released_series_starts_soon_after_its_last_instance(
    make_node: Callable[..., Node],
    archive: Archive,
    database: str,
    request: pytest.FixtureRequest,
    tiny_files: list[Path],
    tiny_uids: Uids,
) -> None:
    sections = {} if database == "sqlite" else {"database": {"url": request.getfixturevalue("postgres_url")}}
    port = archive.port  # type: ignore[attr-defined]
    peer = {"ae_title": "TESTPACS", "host": "127.0.0.1", "port": port}
    node = make_node(peers={"pacs": peer}, assemble=PATIENT, **sections)
    node.start("receive", "work")
    send_all(node, tiny_files)
    job = wait_for_job(node, tiny_uids)
    node.wait(lambda: node.jobs()[0]["started_at"], "the analysis to start")
    assert (job["evidence"]["rung"], job["evidence"]["partial"]) == ("released", False)
    series = node.database.series(tiny_uids[0])
    assert series is not None
    decided_s = job["created_at"] - series["last_at"]
    started_s = node.jobs()[0]["started_at"] - series["last_at"]
    print(f"{database}: decided {decided_s:.2f} s and started {started_s:.2f} s after the last instance")
    # On an idle machine it starts within 2 s; here others may run beside it.
    assert 1.0 <= decided_s < 30


@pytest.mark.peers
def test_the_archive_that_routes_a_series_proves_it_complete(
    make_node: Callable[..., Node], orthanc: Orthanc, tiny_files: list[Path], tiny_uids: Uids
) -> None:
    series_uid, uids = tiny_uids
    held_back = max(tiny_files, key=lambda path: pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2])
    held_back_uid = str(pydicom.dcmread(held_back, stop_before_pixels=True).SOPInstanceUID)
    first_uids = (series_uid, [uid for uid in uids if uid != held_back_uid])
    node = make_node(**counting(orthanc.dicom_port), assemble=PATIENT)
    node.start("receive", "work", "deliver")
    orthanc.set_modality("node", "DICOMNODE", node.port)
    instances = [orthanc.upload(path.read_bytes()) for path in tiny_files if path != held_back]

    orthanc.store("node", instances[:-10])
    node.wait(lambda: '"archive asked"' in node.log("work"), "a look")
    assert node.jobs() == [], "released, dense and contiguous, but the archive has more"

    orthanc.store("node", instances[-10:])
    job = wait_for_job(node, first_uids)
    total = len(uids) - 1
    words = f"{total} of {total} instances by ORTHANC, {total} axial slices contiguous"
    assert job["evidence"]["rung"] == "archive"
    assert job["evidence"]["text"].startswith(words)
    first = node.wait_ended(job["job_id"])

    orthanc.store("node", instances)
    late = orthanc.upload(held_back.read_bytes())
    orthanc.store("node", [late])
    second = node.wait_ended(wait_for_job(node, tiny_uids)["job_id"])
    assert [first["status"], second["status"]] == ["complete", "complete"]
    assert len(node.jobs()) == 2, "what came again changed nothing"

    older, newer = (report_of(orthanc, ended) for ended in (first, second))
    assert job["evidence"]["text"] in older.to_json()
    [study] = newer.PredecessorDocumentsSequence
    [instance] = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert instance.ReferencedSOPInstanceUID == older.SOPInstanceUID


def report_of(orthanc: Orthanc, ended: dict[str, Any]) -> pydicom.Dataset:
    """The SR of a job, as the archive has it."""
    [uid] = [row["sop_instance_uid"] for row in ended["deliveries"] if row["kind"] == "sr"]
    [found] = orthanc.find("Instance", SOPInstanceUID=uid)
    return pydicom.dcmread(io.BytesIO(orthanc.file(found)))


def test_an_archive_that_is_down_is_said_and_the_release_decides(
    make_node: Callable[..., Node], tiny_files: list[Path], tiny_uids: Uids
) -> None:
    node = make_node(**counting(free_port()), assemble=PATIENT)
    node.start("receive", "work")
    send_all(node, tiny_files)
    evidence = wait_for_job(node, tiny_uids)["evidence"]
    assert evidence["rung"] == "released"
    assert "ORTHANC does not answer" in evidence["text"]


@pytest.mark.peers
def test_an_archive_that_does_not_know_the_series_is_said(
    make_node: Callable[..., Node], orthanc: Orthanc, tiny_files: list[Path], tiny_uids: Uids
) -> None:
    node = make_node(**counting(orthanc.dicom_port), assemble=PATIENT)
    node.start("receive", "work")
    send_all(node, tiny_files)
    evidence = wait_for_job(node, tiny_uids)["evidence"]
    assert evidence["rung"] == "released"
    assert "ORTHANC does not know the series" in evidence["text"]


@pytest.mark.peers
def test_an_aborted_association_proves_nothing(
    make_node: Callable[..., Node], tiny_files: list[Path], tiny_uids: Uids
) -> None:
    storescu = tool("storescu")
    if storescu is None:
        pytest.skip("no DCMTK here: tests/peers.sh installs it")
    node = make_node(peers={}, assemble={"quiet_time_s": 5, "proven_quiet_time_s": 1})
    node.start("receive", "work")
    command = [storescu, "--abort", "-aec", "DICOMNODE", "127.0.0.1", str(node.port), *map(str, tiny_files)]
    subprocess.run(command, env=environment(), check=False, capture_output=True)
    evidence = wait_for_job(node, tiny_uids)["evidence"]
    assert evidence["rung"] == "quiet"
    assert evidence["quiet_s"] >= 5


def test_two_interleaved_associations_make_one_series(
    make_node: Callable[..., Node], tiny_files: list[Path], tiny_uids: Uids
) -> None:
    node = make_node(peers={}, assemble=PATIENT)
    node.start("receive", "work")
    halves = [threading.Thread(target=send_all, args=(node, tiny_files[start::2])) for start in (0, 1)]
    for half in halves:
        half.start()
    for half in halves:
        half.join()
    assert wait_for_job(node, tiny_uids)["evidence"]["rung"] == "released"
    assert len(node.jobs()) == 1
