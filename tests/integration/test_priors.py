"""The earlier CT of a patient, from real archives: what is taken, what is left, and what a report says of it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.dimse import retrieve
from dicom_node.locks import try_lock
from dicom_node.lookback import Found, Missed
from dicom_node.prior import PriorFinder
from tests.conftest import RunningReceiver
from tests.fakes.ct import HEADER, make_ct_series
from tests.fakes.earlier import PRIOR_SERIES, PRIOR_STUDY, Earlier, earlier_exam
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
    return finder(job, "pacs", header or current(), time.time() + within_s)


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


def incoming(node: RunningReceiver) -> list[str]:
    return [path for path in node.files() if path.endswith(".dcm")]


# -- what is taken -----------------------------------------------------------------------------------


@pytest.mark.peers
@pytest.mark.parametrize("by", WAYS)
def test_the_earlier_ct_and_our_results_come_into_the_jobs_folder_and_nowhere_else(
    orthanc: Orthanc, start_receiver: Start, tmp_path: Path, by: str
) -> None:
    """By C-MOVE, too, though the receiver takes no SR and no SEG from anybody else."""
    exam = earlier_exam(tmp_path / "earlier")
    fill(orthanc, exam)
    node = node_beside(orthanc, start_receiver, by)
    found = look(node)
    assert_whole(node, found, exam)
    assert incoming(node) == []
    assert node.database.series(PRIOR_SERIES) is None
    assert node.database.series_to_assemble() == []
