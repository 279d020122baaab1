"""Corrections as a PACS routes them: storescu to a running receiver, before and after the CT, twice, by strangers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.reviews import Reviews
from tests.fakes.corrected import circle_mm, corrected_seg, images_of, measured, structure_set
from tests.fakes.ct import make_ct_series
from tests.node import READY, Node, environment
from tests.peers import free_port, tool

pytestmark = [pytest.mark.slow, pytest.mark.peers]

READER = {"ae_title": "READER", "host": "127.0.0.1", "may_send": True, "may_correct": True}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A receiver and a worker whose model is a stub; who may correct is READER."""
    port = free_port()
    running = Node(
        tmp_path_factory.mktemp("node"),
        peers={"reader": READER},
        routes=[{"name": "all", "model": "fast", "destinations": []}],
        receive={
            "host": "127.0.0.1", "port": port, "unknown_peers": "accept", "journal_mb": 16,
            "also_accept": ["enhanced_ct", "images", "results"],
        },
        gate={"min_slices": 5, "min_length_mm": 0},
        assemble={"quiet_time_s": 1},
    )  # fmt: skip
    running.port = port
    try:
        running.start("receive")
        stub_worker(running)
        yield running
        running.stop()
    finally:
        running.close()


def stub_worker(node: Node) -> None:
    command = [sys.executable, "-m", "tests.stub_worker", str(node.config_path), "0.1"]
    with node._log_path("work").open("ab") as log:
        node.processes["work"] = subprocess.Popen(command, stdout=log, stderr=log)
    node.wait(lambda: READY in node.log("work"), "the worker")


def storescu(node: Node, paths: Sequence[Path], calling: str = "READER") -> None:
    program = tool("storescu")
    assert program is not None
    command = [program, "-R", "-aet", calling, "-aec", "DICOMNODE", "127.0.0.1", str(node.port)]
    done = subprocess.run(
        [*command, *map(str, paths)], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def saved(ds: Dataset, folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    ds.save_as(folder / f"{name}.dcm", enforce_file_format=True)
    return folder / f"{name}.dcm"


def mask_at(corner: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    mask = np.zeros((8, 64, 64), np.bool_)
    mask[tuple(slice(at, at + size) for at, size in zip(corner, (2, 6, 6), strict=True))] = True
    return mask


def of(node: Node, ds: Dataset) -> Any:
    return node.database.correction(str(ds.SOPInstanceUID))


def test_corrections_by_storescu_are_compared_in_whatever_order_and_strangers_are_refused(
    node: Node, tmp_path: Path
) -> None:
    files = make_ct_series(tmp_path / "ct", shape=(8, 64, 64))
    images = images_of(files)

    # Before the CT: an archive that sends a study in the order of its own.
    early = corrected_seg(images, [("Segment 1", "", mask_at((1, 10, 10)))])
    storescu(node, [saved(early, tmp_path / "sent", "early")])
    node.wait(lambda: [job["reason"] for job in node.jobs()] == ["NOT_CT"], "the early one, which is no CT")
    storescu(node, files)
    job_id = node.job_of([str(i.SOPInstanceUID) for i in images], str(images[0].SeriesInstanceUID))
    node.wait_ended(job_id, delivered=False)
    node.wait(lambda: of(node, early) and of(node, early)["state"] == "compared", "the early one to be compared")
    assert [v["verdict"] for v in of(node, early)["verdicts"]] == ["unreviewed", "added"]

    # What a reader makes of our result, in three forms, twice; and the same from somebody who may not.
    [mine] = Reviews(config=node.config, database=node.database, storage=node.storage).examiner.analysed(job_id)[1]
    assert mine.region is not None
    ours = np.zeros((8, 64, 64), np.bool_)
    ours[tuple(mine.region.index().T)] = True
    smaller = ours & np.roll(ours, 3, axis=2)
    outline = circle_mm(mine.center_mm, 4.0)
    outline[:, 2] = float(images[4].ImagePositionPatient[2])
    closed = np.concatenate([outline, outline[:1]])
    sent = {
        "seg": corrected_seg(images, [("Nodule 1", mine.tracking_uid, smaller), ("", "", mask_at((5, 10, 40)))]),
        "sr": measured(images[4], [("Nodule 1", mine.tracking_uid, closed, 8.0)]),
        "rtstruct": structure_set(images, {"Nodule 1": [outline]}),
    }
    stranger = corrected_seg(images, [("Nodule 1", mine.tracking_uid, smaller)])
    paths = [saved(ds, tmp_path / "sent", name) for name, ds in sent.items()]
    storescu(node, paths)
    storescu(node, paths)
    storescu(node, [saved(stranger, tmp_path / "sent", "stranger")], calling="STRANGER")
    for ds in (*sent.values(), stranger):
        node.wait(lambda ds=ds: of(node, ds), f"the {ds.Modality}")
    assert {name: of(node, ds)["state"] for name, ds in sent.items()} == dict.fromkeys(sent, "compared")
    found = {name: [v["verdict"] for v in of(node, ds)["verdicts"]] for name, ds in sent.items()}
    assert found == {"seg": ["changed", "added"], "sr": ["changed"], "rtstruct": ["changed"]}
    assert (of(node, stranger)["state"], of(node, stranger)["text"]) == (
        "refused", "STRANGER is no peer with may_correct"
    )  # fmt: skip
    assert len(node.database.corrections()) == 5
    assert len(node.jobs()) == 2, "the CT's, and that of what came before it"


def test_other_software_s_objects_by_storescu_are_each_turned_down_with_a_reason(node: Node, shared_data: Path) -> None:
    files = sorted((shared_data / "seg_sr_reference").glob("*/*.dcm"))
    assert len(files) == 16
    storescu(node, files)
    series = {str(pydicom.dcmread(path, stop_before_pixels=True).SeriesInstanceUID) for path in files}

    def told() -> dict[str, str]:
        """Of each series why nothing becomes of it."""
        jobs = {job["series_uid"]: job["reason_text"] for job in node.jobs() if job["state"] == "rejected"}
        corrections = node.database.corrections(state="refused")
        return jobs | {row["series_uid"]: row["text"] for row in corrections}

    node.wait(lambda: series <= told().keys(), "a word on each series")
    assert all(told()[uid] for uid in series)
    logs = node.log("receive") + node.log("work")
    assert '"level": "error"' not in logs
    assert "Traceback" not in logs
