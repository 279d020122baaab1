"""`stored` becomes `committed`: with a real Orthanc on either side, and over kill -9 of the roles that wait for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa

from dicom_node import schema
from tests.acceptance.test_kill import send_all
from tests.fakes.committing import CommitmentUser, archive
from tests.node import Node
from tests.peers import Orthanc, free_port

Uids = tuple[str, list[str]]
MakeNode = Callable[..., Node]


def states(node: Node, job_id: str) -> set[str]:
    return {row["state"] for row in node.database.deliveries(job_id)}


def wait_committed(node: Node, job_id: str) -> None:
    node.wait(lambda: states(node, job_id) == {"committed"}, "both objects to be committed", 60)


def keeper(port: int, **more: Any) -> dict[str, Any]:
    return {"ae_title": "KEEPER", "host": "127.0.0.1", "port": port, "may_commit": True, **more}


@pytest.mark.peers
@pytest.mark.slow
def test_orthanc_commits_and_what_it_never_got_is_sent_again(
    make_node: MakeNode, orthanc: Orthanc, tiny_files: list[Path], tiny_uids: Uids
) -> None:
    series_uid, uids = tiny_uids
    pacs = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": orthanc.dicom_port, "may_commit": True}
    node = make_node(peers={"pacs": pacs})
    orthanc.set_modality("node", "DICOMNODE", node.port)
    node.start("receive", "work")
    send_all(node, tiny_files)
    job_id = node.job_of(uids, series_uid)
    node.wait_ended(job_id, delivered=False)
    # As after a PACS that said Success and lost the objects from its queue at a restart.
    with node.database.engine.begin() as connection:
        connection.execute(sa.update(schema.delivery).values(state="stored"))
    assert orthanc.instances() == []
    node.start("deliver")
    wait_committed(node, job_id)
    assert len(orthanc.instances()) == 2
    said = [event["action"] for event in node.wait_ended(job_id)["events"]]
    assert said.count("not kept, waiting") == 2
    assert said.count("delivery committed") == 2


@pytest.mark.peers
@pytest.mark.slow
def test_orthanc_asks_us_and_hears_what_we_keep(make_node: MakeNode, orthanc: Orthanc, tiny_files: list[Path]) -> None:
    sender = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": orthanc.dicom_port, "may_send": True}
    node = make_node(peers={"pacs": sender}, routes=[])
    orthanc.set_modality("node", "DICOMNODE", node.port)
    node.start("receive", "deliver")
    ids = [orthanc.upload(path.read_bytes()) for path in tiny_files[:3]]
    assert orthanc.store("node", ids)["FailedInstancesCount"] == 0
    asked = [(str(h.SOPClassUID), str(h.SOPInstanceUID)) for h in map(pydicom.dcmread, tiny_files[:4])]
    transaction = orthanc.post("/modalities/node/storage-commitment", {"DicomInstances": asked})["ID"]
    node.wait(
        lambda: orthanc.get(f"/storage-commitment/{transaction}")["Status"] != "Pending", "our report to reach Orthanc"
    )
    told = orthanc.get(f"/storage-commitment/{transaction}")
    assert told["Status"] == "Failure"
    assert {one["SOPInstanceUID"] for one in told["Success"]} == {uid for _, uid in asked[:3]}
    assert [(one["SOPInstanceUID"], one["FailureReason"]) for one in told["Failures"]] == [(asked[3][1], 0x0112)]


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.peers)])
@pytest.mark.slow
def test_an_answer_after_both_roles_were_killed_still_commits(
    make_node: MakeNode, request: pytest.FixtureRequest, database: str, tiny_files: list[Path], tiny_uids: Uids
) -> None:
    series_uid, uids = tiny_uids
    sections = {"database": {"url": request.getfixturevalue("postgres_url")}} if database == "postgresql" else {}
    with archive() as kept_there:
        node = make_node(peers={"keeper": keeper(kept_there.port)}, **sections)
        job_id = node.job_of(uids, series_uid)
        node.start("receive", "work", "deliver")
        send_all(node, tiny_files)
        node.wait(
            lambda: sum(len(asked.ReferencedSOPSequence) for asked in kept_there.requests) == 2, "the request", 180
        )
        node.wait(lambda: states(node, job_id) == {"stored"}, "the ledger")
        node.kill("deliver")
        node.kill("receive")
        node.start("receive")
        for asked in kept_there.requests:
            assert kept_there.report_to(node.port, asked, called="DICOMNODE") == 0x0000
        assert states(node, job_id) == {"committed"}
        node.start("deliver")
        assert len(kept_there.stored) == 2, "nothing is sent again"


@pytest.mark.slow
def test_a_report_that_we_owe_outlives_a_killed_receiver(make_node: MakeNode, tiny_files: list[Path]) -> None:
    with CommitmentUser().listening() as modality:
        peer = {"ae_title": "MODALITY", "host": "127.0.0.1", "port": modality.port, "may_send": True}
        node = make_node(peers={"modality": peer}, routes=[])
        node.start("receive")
        send_all(node, tiny_files[:2])
        asked = [(str(h.SOPClassUID), str(h.SOPInstanceUID)) for h in map(pydicom.dcmread, tiny_files[:2])]
        assert modality.ask(node.port, asked, called="DICOMNODE") == 0x0000
        node.kill("receive")
        assert modality.reports == []
        node.start("deliver")
        assert modality.wait_for_reports(1, 60)
        event_type, information = modality.reports[0]
        assert event_type == 1
        assert {i.ReferencedSOPInstanceUID for i in information.ReferencedSOPSequence} == {uid for _, uid in asked}


@pytest.mark.peers
@pytest.mark.slow
def test_results_reach_orthanc_by_stow_rs_and_are_committed_over_dimse(
    make_node: MakeNode, orthanc: Orthanc, tiny_files: list[Path], tiny_uids: Uids
) -> None:
    series_uid, uids = tiny_uids
    pacs = {
        "ae_title": "ORTHANC",
        "host": "127.0.0.1",
        "port": orthanc.dicom_port,
        "may_commit": True,
        "deliver_by": "stow_rs",
        "dicomweb": {"url": f"{orthanc.url}/dicom-web"},
    }
    node = make_node(peers={"pacs": pacs})
    orthanc.set_modality("node", "DICOMNODE", node.port)
    node.start("receive", "work", "deliver")
    send_all(node, tiny_files)
    job_id = node.job_of(uids, series_uid)
    wait_committed(node, job_id)
    made = {row["sop_instance_uid"] for row in node.database.results(job_id)}
    assert {orthanc.get(f"/instances/{one}")["MainDicomTags"]["SOPInstanceUID"] for one in orthanc.instances()} == made


def test_a_dead_destination_of_commitments_holds_up_no_other(
    make_node: MakeNode, tiny_files: list[Path], tiny_uids: Uids
) -> None:
    """Its deliveries wait as ever; the other's objects are stored and committed meanwhile."""
    series_uid, uids = tiny_uids
    with archive() as alive:
        peers = {"dead": keeper(free_port(), ae_title="DEAD"), "keeper": keeper(alive.port)}
        node = make_node(peers=peers)
        job_id = node.job_of(uids, series_uid)
        node.start("receive", "work", "deliver")
        send_all(node, tiny_files)
        node.wait(lambda: len(alive.requests) >= 1, "the request", 180)
        assert {row["state"] for row in node.database.deliveries(job_id, "dead")} <= {"waiting", "sending"}
