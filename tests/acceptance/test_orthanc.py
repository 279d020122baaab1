"""Orthanc as the PACS: it routes the series here, gets SEG and SR back, and others read them from it."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest

from tests.node import Node
from tests.peers import Orthanc, packaged, tool

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def result(
    orthanc_server: Orthanc,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_files: list[Path],
    tiny_uids: tuple[str, list[str]],
) -> Iterator[dict[str, Any]]:
    """The small scan stored in Orthanc, routed to the node by C-STORE, its results delivered back."""
    orthanc_server.clear()
    series_uid, uids = tiny_uids
    peer = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": orthanc_server.dicom_port}
    node = Node(tmp_path_factory.mktemp("node"), peers={"pacs": peer})
    try:
        node.start("receive", "work", "deliver")
        for path in tiny_files:
            orthanc_server.upload(path.read_bytes())
        orthanc_server.set_modality("node", "DICOMNODE", node.port)
        orthanc_server.store("node", orthanc_server.find("Series", SeriesInstanceUID=series_uid))
        ended = node.wait_ended(node.job_of(uids, series_uid))
        node.stop()
        yield {**ended, "logs": "".join(node.log(role) for role in ("receive", "work", "deliver"))}
    finally:
        node.close()


def over_dicomweb(orthanc_server: Orthanc, study_uid: str) -> dict[str, pydicom.Dataset]:
    """Modality -> the one object of that modality in the study, by QIDO-RS and WADO-RS."""
    found = {}
    for series in orthanc_server.get(f"/dicom-web/studies/{study_uid}/series"):
        modality = series["00080060"]["Value"][0]
        if modality == "CT":
            continue
        uid = series["0020000E"]["Value"][0]
        [instance] = orthanc_server.get(f"/dicom-web/studies/{study_uid}/series/{uid}/instances")
        sop_uid = instance["00080018"]["Value"][0]
        answer = orthanc_server.request("GET", f"/dicom-web/studies/{study_uid}/series/{uid}/instances/{sop_uid}")
        found[modality] = pydicom.dcmread(io.BytesIO(first_part(answer)))
    return found


def first_part(multipart: bytes) -> bytes:
    start = multipart.index(b"\r\n\r\n") + 4
    return multipart[start : multipart.rindex(b"\r\n--")]


def test_results_come_back_to_the_study_over_dicomweb(result: dict[str, Any], orthanc_server: Orthanc) -> None:
    assert result["status"] == "complete"
    assert result["findings"]
    assert [row["state"] for row in result["deliveries"]] == ["stored", "stored"]
    stored = over_dicomweb(orthanc_server, result["series"]["study_instance_uid"])
    ours = {path: pydicom.dcmread(path) for path in result["files"] if path.endswith(".dcm")}
    assert sorted(stored) == ["SEG", "SR"]
    for mine in ours.values():
        theirs = stored[mine.Modality]
        assert theirs == mine, "the archive holds the very object"
    source = orthanc_server.get(f"/dicom-web/studies?StudyInstanceUID={result['series']['study_instance_uid']}")
    assert len(source) == 1, "no ghost study or patient"


def test_the_archives_copy_validates_and_reads_back(
    result: dict[str, Any], orthanc_server: Orthanc, tmp_path: Path
) -> None:
    stored = over_dicomweb(orthanc_server, result["series"]["study_instance_uid"])
    for modality, dataset in stored.items():
        path = tmp_path / f"{modality}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        said = subprocess.run([packaged("dciodvfy"), path], capture_output=True, text=True, check=False)
        errors = [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]
        assert errors == [], modality
    dump = subprocess.run(
        [str(tool("dsrdump")), str(tmp_path / "SR.dcm")], capture_output=True, text=True, check=True
    ).stdout
    assert "Research use, not for diagnosis" in dump

    seg = highdicom.seg.segread(tmp_path / "SEG.dcm")
    numbers = range(1, len(result["findings"]) + 1)
    assert [seg.get_segment_description(n).tracking_uid for n in numbers] == [
        found["tracking_uid"] for found in result["findings"]
    ]
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    voxel_mm3 = float(np.prod([float(v) for v in measures.PixelSpacing]) * float(measures.SpacingBetweenSlices))
    voxels = seg.get_volume(combine_segments=False).array
    for number, found in enumerate(result["findings"]):
        assert found["volume_mm3"] == pytest.approx(voxels[..., number].sum() * voxel_mm3, rel=1e-3)


def test_no_patient_is_named_in_logs_or_summaries(result: dict[str, Any], orthanc_server: Orthanc) -> None:
    report = over_dicomweb(orthanc_server, result["series"]["study_instance_uid"])["SR"]
    for private in (str(report.PatientName), str(report.PatientID)):
        assert private
        assert private not in json.dumps(result)
