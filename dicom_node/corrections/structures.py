"""An RT Structure Set -> the voxels inside the outlines of each of its nodules (PS3.3 C.8.8.5, C.8.8.6, C.8.8.8)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.corrections import raster
from dicom_node.corrections.words import Drawn, Region, SourceGrid, sizes_of
from dicom_node.errors import CorrectionUnusable
from dicom_node.nodules import MOST_MM3, named_nodule, own_label

# A plan's other structures (PS3.3 C.8.8.8.1, RT ROI Interpreted Type).
_NO_NODULE = {
    "EXTERNAL", "BOLUS", "MARKER", "REGISTRATION", "ISOCENTER", "CONTRAST_AGENT", "CAVITY", "SUPPORT", "FIXATION",
    "DOSE_REGION", "DOSE_MEASUREMENT", "CONTROL", "AVOIDANCE", "PTV", "TREATED_VOLUME", "IRRAD_VOLUME",
}  # fmt: skip
FLAT = 0.25  # of a slice: an outline may leave its plane by rounding
NEAR_SLICE = 0.5


def read_structures(ds: Dataset, grid: SourceGrid) -> list[Drawn]:
    """The ROIs whose name or type says that they are nodules; organs of a plan are left aside.

    Raises CorrectionUnusable, and what a data set without its attributes raises.
    """
    types = {
        int(item.ReferencedROINumber): str(item.get("RTROIInterpretedType") or "").upper()
        for item in ds.get("RTROIObservationsSequence") or ()
    }
    rois = {int(item.ROINumber): item for item in ds.StructureSetROISequence}
    drawn = []
    for item in ds.ROIContourSequence:
        number = int(item.ReferencedROINumber)
        roi = rois[number]
        if not _is_nodule(roi, types.get(number, "")):
            continue
        if str(roi.get("ReferencedFrameOfReferenceUID") or "") != grid.frame_of_reference_uid:
            raise CorrectionUnusable(f"ROI {number} lies in another frame of reference than the CT")
        index = raster.voxels(_outlines(item, grid, number), grid.shape)
        if not len(index):
            continue
        if len(index) * grid.voxel_mm3 > MOST_MM3:
            raise CorrectionUnusable(f"ROI {number} is larger than a nodule can be")
        region = Region.of_voxels(index)
        drawn.append(
            Drawn(
                name=f"ROI {number}",
                label=own_label(roi.get("ROIName") or ""),
                tracking_uid="",
                extent="volume",
                region=region,
                sizes=sizes_of(region, grid),
                contour=True,
            )
        )
    return drawn


def _is_nodule(roi: Dataset, interpreted: str) -> bool:
    if interpreted in _NO_NODULE:
        return False
    return interpreted == "GTV" or named_nodule(roi.get("ROIName"))


def _outlines(item: Dataset, grid: SourceGrid, number: int) -> list[tuple[int, NDArray[np.float64]]]:
    outlines = []
    points = 0
    for contour in item.get("ContourSequence") or ():
        if not str(contour.ContourGeometricType).startswith("CLOSED"):
            continue
        data = np.array(contour.ContourData, dtype=np.float64).reshape(-1, 3)
        points += len(data)
        if points > raster.MOST_POINTS or not np.isfinite(data).all():
            raise CorrectionUnusable(f"ROI {number} has too many points, or such that are no numbers")
        outlines.append(on_slice(data, grid, f"ROI {number}"))
    return outlines


def on_slice(points_mm: NDArray[np.float64], grid: SourceGrid, name: str) -> tuple[int, NDArray[np.float64]]:
    """(n, 3) LPS mm of a flat outline -> its slice, and (n, 2) of row and column."""
    index = grid.to_index(points_mm)
    k = float(index[:, 0].mean())
    if np.ptp(index[:, 0]) > FLAT:
        raise CorrectionUnusable(f"an outline of {name} is not drawn on an axial slice of the CT")
    if not -NEAR_SLICE <= k <= grid.shape[0] - 1 + NEAR_SLICE:
        raise CorrectionUnusable(f"{name} reaches beyond the CT")
    if (index[:, 1:] < -1).any() or (index[:, 1:] > np.array(grid.shape[1:])).any():
        raise CorrectionUnusable(f"{name} reaches beyond the CT")
    return int(np.clip(np.rint(k), 0, grid.shape[0] - 1)), index[:, 1:]
