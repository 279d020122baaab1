"""A corrected object -> what it draws, whatever its kind; rows and Segmentation of ours -> what we had found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydicom.dataset import Dataset

from dicom_node.corrections.report import Segmentations, read_report
from dicom_node.corrections.segmentation import read_segmentation
from dicom_node.corrections.structures import read_structures
from dicom_node.corrections.words import UNREADABLE, Drawn, Kind, Ours, Sizes, SourceGrid
from dicom_node.errors import CorrectionUnusable, PriorUnusable
from dicom_node.logs import describe


def read_correction(ds: Dataset, kind: Kind, grid: SourceGrid, segmentations: Segmentations) -> list[Drawn]:
    """Raises CorrectionUnusable, whose text quotes nothing of the object but numbers."""
    try:
        if kind == "seg":
            return read_segmentation(ds, grid)
        if kind == "rtstruct":
            return read_structures(ds, grid)
        return read_report(ds, grid, segmentations)
    except CorrectionUnusable:
        raise
    except PriorUnusable as err:
        raise CorrectionUnusable(str(err)) from err
    except UNREADABLE as err:
        raise CorrectionUnusable(f"it can't be read: {describe(err)}") from err


def read_ours(rows: Iterable[Mapping[str, Any]], segmentation: Dataset | None, grid: SourceGrid) -> list[Ours]:
    """rows: as results.build.finding_rows makes them."""
    drawn = [] if segmentation is None else read_segmentation(segmentation, grid)
    regions = {each.tracking_uid: each.region for each in drawn}
    return [
        Ours(
            number=int(row["number"]),
            tracking_uid=str(row["tracking_uid"]),
            center_mm=(float(row["center_mm"][0]), float(row["center_mm"][1]), float(row["center_mm"][2])),
            sizes=Sizes(
                volume_mm3=float(row["volume_mm3"]),
                long_axis_mm=float(row["long_axis_mm"]),
                short_axis_mm=float(row["short_axis_mm"]),
            ),
            region=regions.get(str(row["tracking_uid"])),
        )
        for row in rows
    ]
