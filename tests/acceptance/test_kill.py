"""kill -9 of each role in the middle: every acknowledged instance is there, the result arrives once."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pydicom
import pytest

from dicom_node.dimse.archive import Archive, ArchivedObject
from dicom_node.dimse.part10 import read_file_head
from dicom_node.dimse.requestor import NoAnswer, Requested, associate
from dicom_node.dimse.scu import send
from dicom_node.peers import PeerConfig
from tests.node import Node, environment
from tests.peers import free_port, tool

Uids = tuple[str, list[str]]


def to_node(node: Node) -> PeerConfig:
    return PeerConfig(ae_title="DICOMNODE", host="127.0.0.1", port=node.port, response_timeout_s=20)


def send_all(node: Node, files: list[Path]) -> None:
    assert all(outcome.kind == "stored" for outcome in send(files, to_node(node), "SENDER"))


def proposed(path: Path) -> list[tuple[str, list[str]]]:
    head = read_file_head(path.read_bytes())
    return [(head.sop_class_uid, [head.transfer_syntax_uid])]


def store_file(requested: Requested, path: Path) -> int:
    data = path.read_bytes()
    head = read_file_head(data)
    return requested.store(1, head.sop_class_uid, head.sop_instance_uid, data[head.data_set_at :])[0]


def received_files(node: Node) -> set[str]:
    return {Path(path).stem for path in node.storage.incoming_files()}


def running(node: Node, job_id: str) -> bool:
    job = node.database.job(job_id)
    return job is not None and job["state"] == "running" and job["progress"] > 0.03


def assert_results_arrived_once(archive: Archive, node: Node, job_id: str) -> None:
    """One SEG and one SR, under the UIDs that the node holds, whatever was sent twice on the way."""
    made = {row["sop_instance_uid"]: row["kind"] for row in node.database.results(job_id)}
    assert sorted(made.values()) == ["seg", "sr"]
    assert {one.sop_instance_uid for one in archive.received()} == set(made)
    assert {path.stem for path in archive.folder.glob("*.dcm")} == set(made)
    assert {row["state"] for row in node.database.deliveries(job_id)} == {"stored"}


@pytest.mark.peers
def test_killed_receiver_has_all_that_it_acknowledged(
    node: Node, archive: Archive, tiny_files: list[Path], tiny_uids: Uids
) -> None:
    series_uid, uids = tiny_uids
    storescu = tool("storescu")
    if storescu is None:
        pytest.skip("no DCMTK here: tests/peers.sh installs it")
    node.start("receive")
    sender = subprocess.Popen(
        [storescu, "-v", "-aec", "DICOMNODE", "127.0.0.1", str(node.port), *map(str, tiny_files)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )
    assert sender.stdout is not None
    answered, current = [], ""
    for line in sender.stdout:
        if "Sending file" in line:
            current = line.rsplit(" ", 1)[-1].strip()
        if "Received Store Response (Success)" in line:
            answered.append(current)
            if len(answered) == 20:
                node.kill("receive")
    sender.communicate()
    acknowledged = {str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in answered}
    assert len(acknowledged) >= 20
    for row in node.database.instances(series_uid):
        pydicom.dcmread(node.storage.path(row["path"])).pixel_array  # noqa: B018  decodes: the file is whole

    node.start("receive")
    assert acknowledged <= {row["sop_instance_uid"] for row in node.database.instances(series_uid)}
    assert acknowledged <= received_files(node)
    for row in node.database.instances(series_uid):
        pydicom.dcmread(node.storage.path(row["path"])).pixel_array  # noqa: B018  decodes: the file is whole
    send_all(node, tiny_files)
    node.start("work", "deliver")
    result = node.wait_ended(node.job_of(uids, series_uid))
    assert result["status"] == "complete"
    assert_results_arrived_once(archive, node, result["job_id"])
    assert not list(node.storage.root.rglob("*.part"))


def test_receiver_killed_between_success_and_row_has_the_instance_after_its_restart(
    node: Node, tiny_files: list[Path], tiny_uids: Uids
) -> None:
    series_uid, uids = tiny_uids
    node.start("receive")
    with associate(to_node(node), "SENDER", proposed(tiny_files[0])) as requested:
        assert store_file(requested, tiny_files[0]) == 0x0000
        node.wait(lambda: len(node.database.instances(series_uid)) == 1, "the first row")
        with closing(sqlite3.connect(node.storage.root / "node.sqlite")) as blocker:
            blocker.execute("BEGIN IMMEDIATE")  # no row can be written while we hold this
            assert store_file(requested, tiny_files[1]) == 0x0000
            node.wait(lambda: uids[1] in received_files(node), "the durable file")
            assert store_file(requested, tiny_files[2]) == 0x0000, "safe in the journal, without file or row"
            node.kill("receive")
            with pytest.raises(NoAnswer):
                store_file(requested, tiny_files[3])
    assert [row["sop_instance_uid"] for row in node.database.instances(series_uid)] == uids[:1]
    assert received_files(node) == set(uids[:2])
    node.start("receive")
    assert [row["sop_instance_uid"] for row in node.database.instances(series_uid)] == sorted(uids[:3])
    assert received_files(node) == set(uids[:3])
    row = node.database.series(series_uid)
    assert row is not None
    assert row["source_ae"] == "SENDER"


def test_receiver_without_a_journal_killed_between_file_and_row_adopts_the_file(
    make_node: Callable[..., Node], tiny_files: list[Path], tiny_uids: Uids
) -> None:
    series_uid, uids = tiny_uids
    port = free_port()
    receive = {"host": "127.0.0.1", "port": port, "unknown_peers": "accept", "journal_mb": 0}
    node = make_node(peers={}, receive=receive, routes=[])
    node.port = port
    node.start("receive")
    outcomes: list[str] = []
    with closing(sqlite3.connect(node.storage.root / "node.sqlite")) as blocker:
        blocker.execute("BEGIN IMMEDIATE")  # the row can't be written while we hold this
        sender = threading.Thread(
            target=lambda: outcomes.extend(o.kind for o in send(tiny_files[:1], to_node(node), "SENDER"))
        )
        sender.start()
        node.wait(lambda: uids[0] in received_files(node), "the durable file")
        node.kill("receive")
    sender.join()
    assert outcomes == ["unknown"], "the peer must not have been told Success"
    assert node.database.instances(series_uid) == []
    node.start("receive")
    assert [row["sop_instance_uid"] for row in node.database.instances(series_uid)] == [uids[0]]


def test_killed_worker_ends_its_job_after_restart(
    node: Node, archive: Archive, tiny_files: list[Path], tiny_uids: Uids
) -> None:
    series_uid, uids = tiny_uids
    job_id = node.job_of(uids, series_uid)
    node.start("receive", "work", "deliver")
    send_all(node, tiny_files)

    node.wait(lambda: running(node, job_id), "the analysis to run")
    node.kill("work")
    assert running(node, job_id)
    node.start("work")
    result = node.wait_ended(job_id)
    assert result["status"] == "complete"
    assert_results_arrived_once(archive, node, job_id)
    assert len(archive.received()) == 2


@pytest.mark.peers
def test_on_postgresql_another_worker_takes_over_from_a_killed_one(
    make_node: Callable[..., Node], archive: Archive, postgres_url: str, tiny_files: list[Path], tiny_uids: Uids
) -> None:
    series_uid, uids = tiny_uids
    port = archive.port  # type: ignore[attr-defined]
    pacs = {"ae_title": "TESTPACS", "host": "127.0.0.1", "port": port}
    node = make_node(peers={"pacs": pacs}, database={"url": postgres_url})
    job_id = node.job_of(uids, series_uid)
    node.start("receive", "work:first", "deliver")
    send_all(node, tiny_files)
    node.wait(lambda: running(node, job_id), "the analysis to run")
    node.kill("work:first")
    node.start("work:second")
    result = node.wait_ended(job_id)
    assert result["status"] == "complete"
    job = node.database.job(job_id)
    assert job is not None
    assert job["executor"].endswith("/second")
    assert_results_arrived_once(archive, node, job_id)


def test_deliverer_killed_before_the_answer_sends_the_same_objects_again(
    make_node: Callable[..., Node], tmp_path: Path, tiny_files: list[Path], tiny_uids: Uids
) -> None:
    series_uid, uids = tiny_uids
    nodes: list[Node] = []
    killed = threading.Event()

    def kill_once(_stored: ArchivedObject) -> None:
        if not killed.is_set():
            nodes[0].kill("deliver")
            killed.set()

    archive = Archive(tmp_path / "archive", "TESTPACS", on_stored=kill_once)
    port = archive.start()
    try:
        node = make_node(peers={"pacs": {"ae_title": "TESTPACS", "host": "127.0.0.1", "port": port}})
        nodes.append(node)
        node.start("receive", "work", "deliver")
        send_all(node, tiny_files)
        node.wait(killed.is_set, "the first object to reach the archive")
        node.start("deliver")
        result = node.wait_ended(node.job_of(uids, series_uid))
        assert_results_arrived_once(archive, node, result["job_id"])
        assert len(archive.received()) == 3, "the first object came twice, under one UID"
    finally:
        archive.stop()


def test_results_wait_for_a_dead_archive_and_arrive_when_it_is_back(
    make_node: Callable[..., Node], tmp_path: Path, tiny_files: list[Path], tiny_uids: Uids
) -> None:
    series_uid, uids = tiny_uids
    dead, alive = Archive(tmp_path / "dead", "DEAD"), Archive(tmp_path / "alive", "ALIVE")
    dead_port, alive_port = dead.start(), alive.start()
    dead.stop()
    node = make_node(
        peers={
            "dead": {"ae_title": "DEAD", "host": "127.0.0.1", "port": dead_port},
            "alive": {"ae_title": "ALIVE", "host": "127.0.0.1", "port": alive_port},
        }
    )
    try:
        node.start("receive", "work", "deliver")
        send_all(node, tiny_files)
        assert alive.wait_for(2, 120), "a dead destination holds up no other"
        job_id = node.job_of(uids, series_uid)
        node.wait(
            lambda: all(row["attempts"] >= 2 for row in node.database.deliveries(job_id, "dead")), "a second attempt"
        )
        back = Archive(tmp_path / "dead", "DEAD", port=dead_port)
        back.start()
        try:
            assert back.wait_for(2, 60)
        finally:
            back.stop()
        result = node.wait_ended(job_id)
        assert {row["state"] for row in result["deliveries"]} == {"stored"}
    finally:
        alive.stop()


def test_late_instances_make_a_revision_and_repeated_ones_make_nothing(
    node: Node, archive: Archive, tiny_files: list[Path], tiny_uids: Uids
) -> None:
    series_uid, uids = tiny_uids
    node.start("receive", "work", "deliver")
    send_all(node, tiny_files[:-1])
    first = node.wait_ended(node.job_of(uids[:-1], series_uid))
    send_all(node, tiny_files[:-1])
    send_all(node, tiny_files)
    second = node.wait_ended(node.job_of(uids, series_uid))
    assert [first["status"], second["status"]] == ["complete", "complete"]
    assert len(node.jobs()) == 2
    newer = pydicom.dcmread(next(path for path in second["files"] if path.endswith("sr.dcm")))
    older = pydicom.dcmread(next(path for path in first["files"] if path.endswith("sr.dcm")))
    [study] = newer.PredecessorDocumentsSequence
    assert study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == older.SOPInstanceUID


def test_sigterm_ends_every_role_in_order(node: Node) -> None:
    node.start("receive", "work", "deliver")
    node.stop()


def test_full_disk_is_answered_and_leaves_nothing(
    make_node: Callable[..., Node], tiny_files: list[Path], tmp_path: Path
) -> None:
    free_gb = shutil.disk_usage(tmp_path).free / 1e9
    node = make_node(
        peers={}, storage={"root": str(tmp_path / "full"), "min_free_gb": free_gb + 100}, routes=[], models={}
    )
    node.start("receive")
    [outcome] = list(send(tiny_files[:1], to_node(node), "SENDER"))
    assert outcome.status == 0xA700
    assert list(node.storage.incoming_files()) == []
