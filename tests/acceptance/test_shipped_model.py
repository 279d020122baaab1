"""The shipped model on two whole scans of real people, as its card says. One of them has no listed nodule."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from dicom_node.domain import Finding
from dicom_node.model.bundle import default_bundle
from dicom_node.model.detector import Detector
from training.composites.backgrounds import SOURCES
from training.readers.dicom_seg import list_dicom_seg

NODULE_MM, RADIUS_MM = np.array([56.21, 86.34, -115.87]), 23.35 / 2


def findings(shared_data: Path, name: str, folder: Path) -> tuple[Finding, ...]:
    with tarfile.open(shared_data / SOURCES[name].archive, "r:xz") as archive:
        archive.extractall(folder, filter="data")
    [scan] = list_dicom_seg(folder, unlabelled="negative", on_problem="skip").scans
    return Detector.load(default_bundle()).detect(scan.read().volume).findings


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_real_nodule_is_found_first_with_at_most_two_false_positives(shared_data: Path, tmp_path: Path) -> None:
    first, *others = findings(shared_data, "LIDC-IDRI-0001", tmp_path)
    assert np.linalg.norm(np.array(first.center_mm) - NODULE_MM) < RADIUS_MM
    assert len(others) <= 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_scan_without_listed_nodules_has_at_most_four_findings(shared_data: Path, tmp_path: Path) -> None:
    assert len(findings(shared_data, "LIDC-IDRI-0002", tmp_path)) <= 4
