"""Receiving from, and sending to, software that is not ours: DCMTK's tools and Orthanc."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from dicom_node.dimse import scu
from dicom_node.peers import PeerConfig
from tests.conftest import RunningReceiver
from tests.fakes.ct import make_ct_series
from tests.peers import Orthanc, tool

pytestmark = pytest.mark.peers

Start = Callable[..., RunningReceiver]


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One of DCMTK's tools, without Nagle's algorithm, which would stall each message for 40 ms."""
    path = tool(name)
    if path is None:
        pytest.skip(f"no {name} here: tests/peers.sh installs it")
    environment = {**os.environ, "TCP_NODELAY": "1"}
    return subprocess.run([path, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False)


def series(folder: Path, slices: int = 30) -> list[Path]:
    return make_ct_series(folder, shape=(slices, 64, 64))


def test_echoscu_is_answered(start_receiver: Start) -> None:
    running = start_receiver()
    done = run("echoscu", "-v", "-aec", "DICOMNODE", "127.0.0.1", str(running.port))
    assert done.returncode == 0, done.stderr
    assert "Received Echo Response (Success)" in done.stderr


def test_echoscu_sees_the_reasons_of_a_rejection(start_receiver: Start) -> None:
    running = start_receiver(receive={"unknown_peers": "refuse"})
    stranger = run("echoscu", "-aec", "DICOMNODE", "127.0.0.1", str(running.port))
    assert "Calling AE Title Not Recognized" in stranger.stderr
    lost = run("echoscu", "-aec", "OTHER", "127.0.0.1", str(running.port))
    assert "Called AE Title Not Recognized" in lost.stderr


@pytest.mark.parametrize("proposal", ["-xi", "-xe", "-xb", "-xd"])
def test_storescu_s_series_is_kept_whole(start_receiver: Start, tmp_path: Path, proposal: str) -> None:
    running = start_receiver()
    files = series(tmp_path / "ct")
    done = run(
        "storescu", "-v", proposal, "-aec", "DICOMNODE", "127.0.0.1", str(running.port), *map(str, files)
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    running.receiver.stop(10.0)
    rows = running.database.instances(pydicom.dcmread(files[0]).SeriesInstanceUID)
    assert len(rows) == len(files)
    kept = {row["sop_instance_uid"]: pydicom.dcmread(running.storage.path(row["path"])) for row in rows}
    for path in files:
        sent = pydicom.dcmread(path)
        assert kept[sent.SOPInstanceUID].ImagePositionPatient == sent.ImagePositionPatient
        if proposal != "-xb":  # pydicom 3.0 compares words of big endian as they lie in the file
            assert kept[sent.SOPInstanceUID].PixelData == sent.PixelData
    series_row = running.database.series(kept.popitem()[1].SeriesInstanceUID)
    assert series_row is not None
    assert series_row["released"]


PROPOSALS = {
    "4.70": "--propose-lossless",
    "4.50": "--propose-jpeg8",
    "4.51": "--propose-jpeg12",
    "4.80": "--propose-jls-lossless",
    "4.81": "--propose-jls-lossy",
    "4.90": "--propose-j2k-lossless",
    "4.91": "--propose-j2k-lossy",
    "5": "--propose-rle",
    "1.99": "--propose-deflated",
}


@pytest.mark.parametrize("syntax", PROPOSALS)
def test_storescu_s_compressed_images_are_kept_as_they_are(
    start_receiver: Start, shared_data: Path, syntax: str
) -> None:
    running = start_receiver()
    folder = shared_data / "dicom_edge_cases" / "ct_transfer_syntaxes"
    (path,) = folder.glob(f"*_1.2.840.10008.1.2.{syntax}.dcm")
    done = run("storescu", PROPOSALS[syntax], "-aec", "DICOMNODE", "127.0.0.1", str(running.port), str(path))
    assert done.returncode == 0, done.stderr
    (kept,) = running.files()
    assert pydicom.dcmread(running.storage.path(kept)).file_meta.TransferSyntaxUID.endswith(f".{syntax}")


def test_storescu_is_told_when_the_disk_is_full(start_receiver: Start, tmp_path: Path) -> None:
    running = start_receiver(storage={"min_free_gb": 1e9})
    (path,) = series(tmp_path / "ct", 1)
    done = run("storescu", "-v", "-aec", "DICOMNODE", "127.0.0.1", str(running.port), str(path))
    assert "Refused: OutOfResources" in done.stdout + done.stderr
    assert running.files() == []


def test_an_aborting_storescu_is_no_evidence_of_completeness(start_receiver: Start, tmp_path: Path) -> None:
    running = start_receiver()
    files = series(tmp_path / "ct", 3)
    run("storescu", "--abort", "-aec", "DICOMNODE", "127.0.0.1", str(running.port), *map(str, files))
    running.receiver.stop(10.0)
    row = running.database.series(pydicom.dcmread(files[0]).SeriesInstanceUID)
    assert row is not None
    assert not row["released"]
    assert len(running.files()) == 3
    assert running.bounced


def test_orthanc_sends_a_study_and_every_instance_is_kept(
    start_receiver: Start, orthanc: Orthanc, tmp_path: Path
) -> None:
    running = start_receiver()
    files = series(tmp_path / "ct", 40)
    for path in files:
        orthanc.upload(path.read_bytes())
    orthanc.set_modality("node", "DICOMNODE", running.port)
    job = orthanc.store("node", orthanc.get("/studies"))
    assert (job["InstancesCount"], job["FailedInstancesCount"]) == (40, 0)
    orthanc.store("node", orthanc.get("/studies"))
    running.receiver.stop(10.0)
    assert len(running.files()) == 40, "the second sending changed nothing"
    assert {uid for uid, _ in running.bounced} == {pydicom.dcmread(files[0]).SeriesInstanceUID}


def test_orthanc_takes_what_we_send(orthanc: Orthanc, tmp_path: Path) -> None:
    peer = PeerConfig(ae_title="ORTHANC", host="127.0.0.1", port=orthanc.dicom_port)
    scu.echo(peer, "NODE")
    files = series(tmp_path / "ct", 20)
    assert {outcome.kind for outcome in scu.send(files, peer, "NODE")} == {"stored"}
    kept = {}
    for instance in orthanc.instances():
        ds = pydicom.dcmread(io.BytesIO(orthanc.file(instance)))
        kept[ds.SOPInstanceUID] = ds.PixelData
    assert kept == {ds.SOPInstanceUID: ds.PixelData for ds in map(pydicom.dcmread, files)}
    assert {outcome.kind for outcome in scu.send(files, peer, "NODE")} == {"stored"}, "again, and again stored"


def test_storescp_takes_what_we_send(tmp_path: Path, shared_data: Path) -> None:
    """DCMTK's storescp accepts only uncompressed images by default: compressed ones are decoded for it."""
    path = tool("storescp")
    if path is None:
        pytest.skip("no storescp here: tests/peers.sh installs it")
    from tests.peers import free_port

    port, folder = free_port(), tmp_path / "got"
    folder.mkdir()
    files = sorted((shared_data / "dicom_edge_cases" / "ct_transfer_syntaxes").glob("*.4.70.dcm"))
    command = [path, "-v", "-od", str(folder), str(port)]
    with subprocess.Popen(
        command, env={**os.environ, "TCP_NODELAY": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            peer = PeerConfig(ae_title="ANY-SCP", host="127.0.0.1", port=port)
            outcomes = _once_it_listens(lambda: list(scu.send(files, peer, "NODE")))
        finally:
            process.terminate()
    assert [outcome.kind for outcome in outcomes] == ["stored"]
    (got,) = map(pydicom.dcmread, folder.iterdir())
    assert (got.pixel_array == pydicom.dcmread(files[0]).pixel_array).all()


def _once_it_listens(send: Callable[[], list[scu.Outcome]]) -> list[scu.Outcome]:
    """storescp says nothing when it is ready: its port is tried until it is."""
    for _ in range(1000):
        outcomes = send()
        if "Connection refused" not in outcomes[0].message:
            return outcomes
    raise AssertionError("storescp does not listen")
