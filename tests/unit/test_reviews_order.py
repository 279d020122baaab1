"""Corrections and their CT in any order, with the CT failing, rejected, deleted or analysed anew meanwhile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.errors import DicomNodeError
from dicom_node.reviews import corrections_of
from tests.fakes.corrected import corrected_seg, images_of
from tests.fakes.ct import make_ct_series
from tests.unit.test_flow import SERIES, Node
from tests.unit.test_reviews import added, export, images, make, mask_of, node, send, verdicts

__all__ = ["make", "node"]  # fixtures


def state_and_text(node: Node) -> tuple[str, str]:
    [row] = node.database.corrections()
    return row["state"], row["text"]


def queued(node: Node) -> str:
    node.receive()
    [(_, job_id, _, _)] = node.assemble().enqueued
    return job_id


def fails(node: Node, job_id: str) -> None:
    def fail() -> None:
        raise DicomNodeError("the GPU fell off the bus")

    node.detector.also = fail
    with pytest.raises(DicomNodeError):
        node.analyse(job_id)
    node.detector.also = lambda: None


def retried(node: Node, job_id: str) -> None:
    node.database.requeue_job(job_id)
    node.analyse(job_id)


def before_the_ct(node: Node) -> Dataset:
    """Made on images that the node has yet to receive."""
    paths = make_ct_series(node.folder / "elsewhere", shape=(8, 64, 64))
    mask = np.zeros((8, 64, 64), np.bool_)
    mask[3:5, 10:16, 10:16] = True
    return corrected_seg(images_of(paths), [("", "", mask)])


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failed_analysis_leaves_corrections_waiting_and_the_job_says_so_until_a_retry(node: Node, when: str) -> None:
    job_id = queued(node)
    if when == "before":
        send(node, added(node))
    fails(node, job_id)
    if when == "after":
        send(node, added(node))
    [told] = corrections_of(node.database, job_id)
    why = "the analysis of the CT failed (the GPU fell off the bus): compared after a retry"
    assert (told["state"], told["text"], told["verdicts"]) == ("waiting", why, [])
    retried(node, job_id)
    assert verdicts(node) == ["unreviewed", "added"]


def test_a_correction_that_came_before_its_ct_is_compared_once_the_ct_is_analysed(node: Node) -> None:
    send(node, before_the_ct(node), times=2)
    assert node.database.corrections() == []
    [rejected] = node.database.jobs()
    assert rejected["reason"] == "NOT_CT"
    node.complete()
    assert verdicts(node) == ["unreviewed", "added"]


def test_what_came_before_a_ct_of_another_study_is_not_taken_for_its_correction(node: Node) -> None:
    stranger = before_the_ct(node)
    stranger.StudyInstanceUID = "1.2.3.4"
    send(node, stranger)
    node.complete()
    assert node.database.corrections() == []


def test_a_correction_of_a_rejected_ct_is_refused_whether_it_came_before_or_after(node: Node) -> None:
    node.receive(count=3)
    node.assemble()
    send(node, added(node))
    [rejected] = node.database.jobs(state="rejected")
    assert state_and_text(node) == ("refused", f"the CT is not analysed: {rejected['reason_text']}")


def purge(node: Node) -> None:
    node.clock += 1
    for row in node.database.results(node.job()["job_id"]):
        node.storage.path(row["path"]).unlink()
    assert node.database.purge_series(SERIES, node.clock + 1e6, lambda: None, states=("undelivered", "local", "failed"))


def test_a_correction_of_a_ct_that_was_deleted_says_so_and_counts_when_the_ct_comes_again(node: Node) -> None:
    node.complete()
    ds = added(node)
    purge(node)
    send(node, ds)
    assert state_and_text(node) == (
        "refused", "the CT was deleted here: send it again, and it is analysed and compared"
    )  # fmt: skip
    node.complete()
    assert verdicts(node) == ["unreviewed", "added"]


def test_a_correction_that_waits_for_a_ct_that_was_deleted_says_what_helps(node: Node) -> None:
    job_id = queued(node)
    send(node, added(node))
    fails(node, job_id)
    purge(node)
    from dicom_node.reviews import newest_corrections

    [told] = newest_corrections(node.database)
    assert (told["state"], told["text"]) == ("waiting", "the CT was deleted: send it again")


def test_a_segmentation_of_a_segmentation_s_series_and_the_ct_is_one_of_the_ct(node: Node) -> None:
    node.complete()
    elsewhere = before_the_ct(node)
    elsewhere.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3.4.5"
    send(node, elsewhere)  # of a series that is not here: NOT_CT
    ds = added(node)
    item = Dataset()
    item.SeriesInstanceUID = elsewhere.SeriesInstanceUID
    ds.ReferencedSeriesSequence.append(item)
    send(node, ds)
    assert verdicts(node) == ["unreviewed", "added"]


def test_a_case_is_made_of_the_revision_that_its_correction_was_compared_with(node: Node, tmp_path: Path) -> None:
    node.receive(shape=(24, 64, 64))
    [(_, first, _, _)] = node.assemble().enqueued
    node.analyse(first)
    mask = mask_of(node, first)
    send(node, corrected_seg(images(node), [("own", "", mask)]))
    for late in make_ct_series(node.folder / "late", shape=(26, 64, 64))[-2:]:
        node._store(late)
    [(_, second, _, _)] = node.assemble().enqueued
    node.analyse(second)
    [(name, counts)] = export(node, tmp_path / "out").cases.items()
    assert counts["positives"] == 1
    assert len(list((tmp_path / "out" / name / "ct").iterdir())) == 24
    assert pydicom.dcmread(tmp_path / "out" / name / "truth.dcm").pixel_array.sum() == mask.sum()
