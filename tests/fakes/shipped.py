"""The scan that ships with the package: its real nodule outlined by a threshold, and a ball elsewhere beside it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from dicom_node.config import GateConfig
from dicom_node.demo import SHIPPED_SCAN
from dicom_node.domain import Detection, Finding, Point, Volume
from dicom_node.results.build import read
from dicom_node.results.reading import Reading
from dicom_node.series import read_series, to_volume
from tests.fakes.findings import JOB, detection_of, finding_of

FILES = sorted(SHIPPED_SCAN.glob("*.dcm"))
LIMITS = GateConfig(max_slice_spacing_mm=5.0, max_slice_thickness_mm=5.0)

# LUNA16's annotation of the one nodule of 3 mm or more in LIDC-IDRI-0001; it has 23.4 mm.
NODULE_MM: Point = (56.21, 86.34, -115.87)
# Nothing but lung is here.
MADE_UP_MM: Point = (-60.0, 60.0, -150.0)


def read_shipped(*, found: bool = True) -> Reading:
    """The Reading of two findings, or of none."""
    series = read_series(FILES, LIMITS)
    volume = to_volume(series)
    return read(series, volume, _detection(volume) if found else detection_of(analysed=(5, 128)), **JOB)


def _detection(volume: Volume) -> Detection:
    nodule = _near(volume, NODULE_MM, radius_mm=15.0, least_hu=-400, score=0.97)
    made_up = _near(volume, MADE_UP_MM, radius_mm=4.0, least_hu=-1100, score=0.6)
    return detection_of(nodule, made_up, analysed=(5, 128))


def _near(volume: Volume, center_mm: Point, *, radius_mm: float, least_hu: int, score: float) -> Finding:
    """The voxels round a point that are dense enough and hang together with it."""
    at = volume.to_index(center_mm)
    reach = np.ceil(radius_mm / np.array(volume.spacing_mm)) + 1
    low, high = np.floor(at - reach).astype(int), np.ceil(at + reach).astype(int)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    grid = np.moveaxis(np.indices(high - low), 0, -1) + low
    inside = np.linalg.norm(volume.to_mm(grid.astype(float)) - np.array(center_mm), axis=-1) <= radius_mm
    labels, _ = ndimage.label(inside & (volume.hu[box] > least_hu))
    mask = np.zeros(volume.hu.shape, np.bool_)
    mask[box] = labels == labels[tuple(np.rint(at).astype(int) - low)]
    return finding_of(volume, mask, score=score, side="left" if center_mm[0] > 0 else "right")
