"""A TID 1500 report -> the nodules of its measurement groups: outlines on images or in space, and what they measure.

A group that refers to a segment takes its voxels from there, where the Segmentation is at hand. Groups of one Tracking
Unique Identifier are one nodule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicom_node.corrections import raster
from dicom_node.corrections.segmentation import read_segmentation
from dicom_node.corrections.structures import on_slice
from dicom_node.corrections.words import Drawn, Extent, Region, Sizes, SourceGrid, sizes_of
from dicom_node.errors import CorrectionUnusable
from dicom_node.nodules import own_label

# SOP Instance UID -> the Segmentation of that name that is here, or None.
Segmentations = Callable[[str], Dataset | None]
_MOST_ITEMS = 100_000
_LONG = (codes.SCT.LongAxis, codes.SCT.MajorAxis, Code("G-A185", "SRT", "Long Axis"), codes.SCT.Length,
         codes.SCT.Diameter, Code("G-D7FE", "SRT", "Length"))  # fmt: skip
_SHORT = (codes.SCT.ShortAxis, codes.SCT.MinorAxis, Code("G-A186", "SRT", "Short Axis"))
_VOLUME = (codes.SCT.Volume, Code("G-D705", "SRT", "Volume"))


def read_report(ds: Dataset, grid: SourceGrid, segmentations: Segmentations) -> list[Drawn]:
    """Raises CorrectionUnusable, and what a data set without its attributes raises."""
    nodules: dict[str, Drawn] = {}
    for number, item in enumerate((i for i in items(ds) if _named(i, codes.DCM.MeasurementGroup)), start=1):
        drawn = _drawn(item, number, grid, segmentations)
        key = drawn.tracking_uid or drawn.name
        nodules[key] = drawn if key not in nodules else _joined(nodules[key], drawn)
    return [each for each in nodules.values() if each.region is not None or each.tracking_uid or each.label]


def items(ds: Dataset) -> Iterator[Dataset]:
    """All content items below the root in their order, without recursion."""
    waiting = list(ds.get("ContentSequence") or ())[::-1]
    for _ in range(_MOST_ITEMS):
        if not waiting:
            return
        item = waiting.pop()
        waiting += list(item.get("ContentSequence") or ())[::-1]
        yield item
    raise CorrectionUnusable(f"more than {_MOST_ITEMS} content items")


def _joined(first: Drawn, second: Drawn) -> Drawn:
    """The one that says more; its missing sizes from the other."""
    order: tuple[Extent, ...] = ("volume", "plane", "numbers")
    best, other = sorted((first, second), key=lambda each: order.index(each.extent))
    sizes = Sizes(
        volume_mm3=best.sizes.volume_mm3 or other.sizes.volume_mm3,
        long_axis_mm=best.sizes.long_axis_mm or other.sizes.long_axis_mm,
        short_axis_mm=best.sizes.short_axis_mm or other.sizes.short_axis_mm,
    )
    return Drawn(
        name=first.name,
        label=first.label or second.label,
        tracking_uid=first.tracking_uid,
        extent=best.extent,
        region=best.region,
        sizes=sizes,
        contour=best.contour,
    )


def _drawn(group: Dataset, number: int, grid: SourceGrid, segmentations: Segmentations) -> Drawn:
    children = list(group.get("ContentSequence") or ())
    texts = {name: str(c.get("TextValue") or c.get("UID") or "") for c in children for name in _name(c)}
    label = own_label(texts.get(codes.DCM.TrackingIdentifier.value, ""))
    tracking_uid = texts.get(codes.DCM.TrackingUniqueIdentifier.value, "")
    name = f"group {number}"
    stated = Sizes(
        volume_mm3=_number(children, _VOLUME, {"mm3": 1.0, "cm3": 1000.0, "ml": 1000.0}),
        long_axis_mm=_number(children, _LONG, {"mm": 1.0, "cm": 10.0}),
        short_axis_mm=_number(children, _SHORT, {"mm": 1.0, "cm": 10.0}),
    )
    region, contour, extent = _region(children, name, grid, segmentations)
    sizes = stated if region is None else sizes_of(region, grid, extent)
    return Drawn(
        name=name, label=label, tracking_uid=tracking_uid, extent=extent, region=region, sizes=sizes, contour=contour
    )


def _region(
    children: list[Dataset], name: str, grid: SourceGrid, segmentations: Segmentations
) -> tuple[Region | None, bool, Extent]:
    for child in children:
        if _named(child, codes.DCM.ReferencedSegment) or _named(child, codes.DCM.ReferencedSegmentationFrame):
            reference = child.ReferencedSOPSequence[0]
            seg = segmentations(str(reference.ReferencedSOPInstanceUID))
            segment = reference.get("ReferencedSegmentNumber")
            if seg is not None and segment is not None:
                for found in read_segmentation(seg, grid, only=int(segment)):
                    return found.region, False, "volume"
    outlines = [outline for child in children if (outline := _outline(child, name, grid)) is not None]
    index = raster.voxels(outlines, grid.shape)
    if not len(index):
        return None, False, "numbers"
    region = Region.of_voxels(index)
    return region, True, "plane" if region.mask.shape[0] == 1 else "volume"


def _outline(child: Dataset, name: str, grid: SourceGrid) -> tuple[int, NDArray[np.float64]] | None:
    """Of a closed graphic; None for anything else, such as a caliper."""
    kind, graphic = str(child.get("ValueType") or ""), str(child.get("GraphicType") or "")
    if kind not in ("SCOORD", "SCOORD3D") or graphic not in ("POLYLINE", "POLYGON", "ELLIPSE", "CIRCLE"):
        return None
    values = np.array(child.GraphicData, dtype=np.float64)
    if len(values) > raster.MOST_POINTS or not np.isfinite(values).all():
        raise CorrectionUnusable(f"{name} has too many points, or such that are no numbers")
    points = values.reshape(-1, 3 if kind == "SCOORD3D" else 2)
    if graphic == "ELLIPSE":
        points = raster.ellipse(points)
    elif graphic == "CIRCLE":
        points = raster.ellipse(_axes_of_circle(points))
    if len(points) < 4:
        return None
    if kind == "SCOORD3D":
        if str(child.get("ReferencedFrameOfReferenceUID") or "") != grid.frame_of_reference_uid:
            raise CorrectionUnusable(f"{name} lies in another frame of reference than the CT")
        return on_slice(points, grid, name)
    return _on_image(child, points, name, grid)


def _axes_of_circle(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Its centre and a point on it -> the ends of two diameters, as of an ellipse."""
    center, across = points[0, :2], points[1, :2] - points[0, :2]
    turned = np.array([-across[1], across[0]])
    return np.stack([center - across, center + across, center - turned, center + turned])


def _on_image(
    child: Dataset, points: NDArray[np.float64], name: str, grid: SourceGrid
) -> tuple[int, NDArray[np.float64]]:
    """Image coordinates: (column, row), the centre of the top left pixel at 0.5, 0.5 (PS3.3 C.18.6.1.2)."""
    for item in child.get("ContentSequence") or ():
        for reference in item.get("ReferencedSOPSequence") or ():
            frame = reference.get("ReferencedFrameNumber")
            uid = str(reference.ReferencedSOPInstanceUID)
            k = grid.slices.get((uid, None if frame is None else int(frame)), grid.slices.get((uid, None)))
            if k is not None:
                return k, points[:, ::-1] - 0.5
    raise CorrectionUnusable(f"{name} is drawn on an image that is not of the CT")


def _number(children: list[Dataset], names: tuple[Code, ...], units: dict[str, float]) -> float | None:
    for child in children:
        if str(child.get("ValueType") or "") == "NUM" and any(_named(child, name) for name in names):
            for measured in child.get("MeasuredValueSequence") or ():
                unit = str(measured.MeasurementUnitsCodeSequence[0].CodeValue).lower()
                value = float(measured.NumericValue) * units.get(unit, math.nan)
                if math.isfinite(value) and value > 0:
                    return value
    return None


def _name(item: Dataset) -> list[str]:
    names = list(item.get("ConceptNameCodeSequence") or ())
    return [str(names[0].get("CodeValue"))] if names else []


def _named(item: Dataset, name: Code) -> bool:
    names = list(item.get("ConceptNameCodeSequence") or ())
    return bool(names) and (names[0].get("CodeValue"), names[0].get("CodingSchemeDesignator")) == (
        name.value,
        name.scheme_designator,
    )
