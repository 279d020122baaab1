"""Earlier CTs as a site has them: a node of real processes, Orthanc as the archive, and what the second report says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node import engine
from dicom_node.control import purge
from dicom_node.dimse.scu import send
from dicom_node.engine import EngineClient
from dicom_node.lookback import lookback_id
from dicom_node.peers import PeerConfig
from tests.fakes.ct import HEADER, make_ct_series
from tests.fakes.earlier import PRIOR_SERIES, Archive, earlier_exam
from tests.node import Node
from tests.peers import Orthanc

ROOT = "1.2.826.0.1.3680043.8.498.77"


def archive_of(port: int, by: str, **more: Any) -> dict[str, Any]:
    may = {"may_send": True, "may_be_queried": True, "retrieve_by": by}
    return {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": port, **may, **more}


def test_a_look_whose_process_was_killed_in_the_middle_is_made_again_and_found_once(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    """kill -9 of the deliver role while images come; only that role runs, so nothing else can mend it."""
    archive = Archive(earlier_exam(tmp_path / "earlier"))
    come = threading.Event()
    archive.after = lambda one: None if one.Modality != "CT" or one.InstanceNumber < 3 else come.wait(20) and None
    with archive.running():
        route = {"name": "all", "model": "fast", "compare_with": "pacs"}
        node = make_node(peers={"pacs": archive_of(archive.port, "c_get")}, routes=[route])
        node.database.migrate()
        engine.migrate(node.config.database_url())
        job_id = job_to_look_for(node, tmp_path)
        client = EngineClient(node.config.database_url())
        client.enqueue("priors", lookback_id(job_id), job_id, priority="routine")
        node.start("deliver")
        node.wait(lambda: images(node, job_id), "the first images")
        node.kill("deliver")
        prior = node.database.prior(job_id)
        assert prior is not None
        assert prior["outcome"] is None, "it was midway"
        come.set()
        node.start("deliver")
        node.wait(lambda: (node.database.prior(job_id) or {})["outcome"], "the look's end")
        prior = node.database.prior(job_id)
        assert prior is not None
        assert (prior["outcome"], prior["series_uid"]) == ("found", PRIOR_SERIES)
        node.wait(lambda: client.state(job_id), "the analysis on its queue")
        client.close()
        node.stop()
    folders = list(node.storage.path(f"results/{job_id}").glob("prior_*"))
    assert [folder.name for folder in folders] == [prior["folder"]], "what was half fetched is gone"
    assert len(images(node, job_id)) == 8
    assert node.database.series(PRIOR_SERIES) is None


def images(node: Node, job_id: str) -> list[Path]:
    return list(node.storage.path(f"results/{job_id}").glob("prior_*/images/*.dcm"))


def job_to_look_for(node: Node, folder: Path) -> str:
    """As `decide` leaves it behind."""
    [image, *_] = make_ct_series(folder / "new", shape=(1, 16, 16))
    ds = pydicom.dcmread(image)
    stored = node.storage.write_instance(
        str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID), str(ds.SOPInstanceUID), image.read_bytes()
    )
    job_id = node.job_of([str(ds.SOPInstanceUID)], str(ds.SeriesInstanceUID))
    node.storage.write_result(job_id, "manifest.json", json.dumps({str(ds.SOPInstanceUID): stored.path}).encode())
    node.database.create_job(
        job_id,
        state="queued",
        series_uid=HEADER["SeriesInstanceUID"],
        study_uid=HEADER["StudyInstanceUID"],
        manifest_sha256="0",
        instance_count=1,
        source_ae="CT",
        route="all",
        priority="routine",
        evidence={},
        explanation=[],
    )
    node.database.prior_wanted(job_id, "pacs")
    return job_id


# -- end to end --------------------------------------------------------------------------------------------


def exam(files: list[Path], study_date: str, root: str, folder: Path) -> tuple[list[Path], str, list[str]]:
    """The small scan as one that was made on that day; its Series and SOP Instance UIDs."""
    folder.mkdir()
    made, uids = [], []
    for number, path in enumerate(files, start=1):
        image = pydicom.dcmread(path)
        image.StudyDate = image.SeriesDate = image.AcquisitionDate = image.ContentDate = study_date
        image.PatientID = "PRIORS-1"
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = (
            f"{root}.1",
            f"{root}.2",
            f"{root}.3",
        )
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{root}.2.{number}"
        made.append(folder / f"{number}.dcm")
        image.save_as(made[-1])
        uids.append(str(image.SOPInstanceUID))
    return made, f"{root}.2", uids


def reports(orthanc: Orthanc, study_uid: str) -> list[Dataset]:
    [study] = orthanc.find("Study", StudyInstanceUID=study_uid)
    found = []
    for series in orthanc.get(f"/studies/{study}/series"):
        if series["MainDicomTags"]["Modality"] == "SR":
            found += [pydicom.dcmread(BytesIO(orthanc.file(one))) for one in series["Instances"]]
    return found


def tracking_uids(report: Dataset) -> set[str]:
    def walk(item: Dataset) -> set[str]:
        found = {str(item.UID)} if item.get("ValueType") == "UIDREF" and _code(item) == "112040" else set()
        return found.union(*(walk(child) for child in item.get("ContentSequence", ())))

    return walk(report)


def _code(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].get("CodeValue", ""))


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize("by", ["c_move"])
def test_the_second_report_has_the_earlier_tracking_uids_and_says_what_changed(
    orthanc: Orthanc, make_node: Callable[..., Node], tiny_files: list[Path], tmp_path: Path, by: str
) -> None:
    """The first exam's files and results are in the archive alone: the node is purged between the two."""
    node = make_node(
        peers={"pacs": archive_of(orthanc.dicom_port, by)},
        routes=[{"name": "all", "model": "fast", "destinations": ["pacs"], "compare_with": "pacs"}],
    )
    orthanc.set_modality("node", "DICOMNODE", node.port)
    node.start("receive", "work", "deliver")
    to_node = PeerConfig(ae_title="DICOMNODE", host="127.0.0.1", port=node.port)

    def analysed(study_date: str, root: str) -> dict[str, Any]:
        files, series_uid, uids = exam(tiny_files, study_date, root, tmp_path / study_date)
        for path in files:
            orthanc.upload(path.read_bytes())
        assert all(outcome.kind == "stored" for outcome in send(files, to_node, "SCANNER"))
        return node.wait_ended(node.job_of(uids, series_uid))

    first = analysed("20240105", f"{ROOT}.1")
    assert first["comparison"]["outcome"] == "no_prior"
    client = EngineClient(node.config.database_url())
    assert purge(node.database, client, node.storage, before=time.time() + 60).series == 1
    client.close()
    second = analysed("20250105", f"{ROOT}.2")
    assert second["comparison"]["outcome"] == "compared", second["comparison"]
    assert second["comparison"]["series_instance_uid"] == f"{ROOT}.1.2"
    [job] = node.jobs()
    assert job["series_uid"] == f"{ROOT}.2.2", "the earlier one is not analysed again"
    node.stop()
    assert node.database.series(f"{ROOT}.1.2") is None
    [old], [new] = reports(orthanc, f"{ROOT}.1.1"), reports(orthanc, f"{ROOT}.2.1")
    assert tracking_uids(old)
    assert tracking_uids(new) == tracking_uids(old)
    said = new.to_json()
    assert "stable" in said
    assert str(old.SOPInstanceUID) in said, "it names the report that it compares with"
    logs = "".join(node.log(role) for role in ("receive", "work", "deliver"))
    assert "PRIORS-1" not in logs
