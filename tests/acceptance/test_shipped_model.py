"""The shipped model on a whole scan of a real person that has no listed nodule, as its card says; test_demo.py has it
on one with a nodule."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from dicom_node.model.bundle import default_bundle
from dicom_node.model.detector import Detector
from training.composites.backgrounds import SOURCES
from training.readers.dicom_seg import list_dicom_seg


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_scan_without_listed_nodules_has_at_most_four_findings(shared_data: Path, tmp_path: Path) -> None:
    with tarfile.open(shared_data / SOURCES["LIDC-IDRI-0002"].archive, "r:xz") as archive:
        archive.extractall(tmp_path, filter="data")
    [scan] = list_dicom_seg(tmp_path, unlabelled="negative", on_problem="skip").scans
    assert len(Detector.load(default_bundle()).detect(scan.read().volume).findings) <= 4
