"""Captures, presentation states, documents -> whether what they hold fits what they say, and the images they are on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage, GrayscaleSoftcopyPresentationStateStorage

from dicom_node.results.check import content
from dicom_node.results.check.conditions import is_capture
from dicom_node.results.reading import Reading


def capture_faults(ds: Dataset) -> Iterator[str]:
    """Rows, columns, samples, bits and frames make up the pixel data (PS3.3 C.7.6.3, PS3.5 8)."""
    if not is_capture(ds):
        return
    shape = [int(ds.get(k) or 0) for k in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")]
    frames = int(ds.get("NumberOfFrames") or 1)
    if 0 in shape:
        yield "has no size"
        return
    if ds.file_meta.TransferSyntaxUID.is_compressed:
        return
    needed = int(np.prod(shape)) * frames // 8
    if len(ds.PixelData) != needed + needed % 2:
        yield f"has {len(ds.PixelData)} bytes of pixels, not {needed + needed % 2}"
    elif not any(ds.PixelData):
        yield "is a black picture"
    bits = shape[3]
    if int(ds.get("BitsStored") or 0) > bits or ds.get("HighBit") != int(ds.get("BitsStored") or 0) - 1:
        yield "BitsStored and HighBit do not fit BitsAllocated"
    samples = {"RGB": 3, "YBR_FULL": 3, "YBR_FULL_422": 3, "MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1}
    if samples.get(str(ds.get("PhotometricInterpretation"))) != shape[2]:
        yield "PhotometricInterpretation does not fit SamplesPerPixel"


def presentation_faults(ds: Dataset, reading: Reading) -> Iterator[str]:
    """Graphics and the displayed area lie within the image; layers that are drawn on are defined."""
    if ds.SOPClassUID != GrayscaleSoftcopyPresentationStateStorage:
        return
    size = np.array([reading.series.columns, reading.series.rows])
    layers = {str(item.get("GraphicLayer")) for item in ds.get("GraphicLayerSequence", ())}
    for annotation in ds.get("GraphicAnnotationSequence", ()):
        if str(annotation.get("GraphicLayer")) not in layers:
            yield "draws on a graphic layer that is not defined"
        for drawn in annotation.get("GraphicObjectSequence", ()):
            yield from _graphic_faults(drawn, size)
        for text in annotation.get("TextObjectSequence", ()):
            for corner, units in _TEXT_PLACES:
                place = text.get(corner)
                if place is not None and not _inside([float(v) for v in place], str(text.get(units)), size):
                    yield "has a text outside the image"
    for area in ds.get("DisplayedAreaSelectionSequence", ()):
        low = np.array(area.DisplayedAreaTopLeftHandCorner)
        high = np.array(area.DisplayedAreaBottomRightHandCorner)
        # C.10.4: may lie beyond the image, but some of the image must be seen, and not turned.
        if (low > high).any() or (high < 1).any() or (low > size).any():
            yield "shows an area without the image"


_TEXT_PLACES = (
    ("BoundingBoxTopLeftHandCorner", "BoundingBoxAnnotationUnits"),
    ("BoundingBoxBottomRightHandCorner", "BoundingBoxAnnotationUnits"),
    ("AnchorPoint", "AnchorPointAnnotationUnits"),
)
_LEAST_POINTS = {"POINT": 1, "POLYLINE": 2, "INTERPOLATED": 2, "CIRCLE": 2, "ELLIPSE": 4}


def _graphic_faults(drawn: Dataset, size: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Iterator[str]:
    data = [float(v) for v in drawn.get("GraphicData") or ()]
    points = int(drawn.get("NumberOfGraphicPoints") or 0)
    if len(data) != 2 * points or points < _LEAST_POINTS.get(str(drawn.get("GraphicType")), 1 << 31):
        yield "has a graphic whose points are not as many as it says"
    elif not _inside(data, str(drawn.get("GraphicAnnotationUnits")), size):
        yield "has a graphic outside the image"


def _inside(data: list[float], units: str, size: np.ndarray[tuple[int], np.dtype[np.int64]]) -> bool:
    """C.10.5.1.2: pixels count from 0, 0 at the top left corner of the first pixel; DISPLAY goes from 0 to 1."""
    points = np.array(data).reshape(-1, 2)
    most = np.ones(2) if units == "DISPLAY" else size
    return bool(np.isfinite(points).all() and (points >= 0).all() and (points <= most).all())


def outline_faults(sr: Dataset, reading: Reading) -> Iterator[str]:
    """Coordinates on images lie within them (PS3.3 C.18.6.1.2)."""
    size = np.array([reading.series.columns, reading.series.rows])
    for item in content.items(sr):
        if item.get("ValueType") == "SCOORD" and not _inside(
            [float(v) for v in item.get("GraphicData") or ()], "PIXEL", size
        ):
            yield "has an outline outside the image"


def document_faults(ds: Dataset) -> Iterator[str]:
    if ds.SOPClassUID != EncapsulatedPDFStorage:
        return
    data = bytes(ds.get("EncapsulatedDocument") or b"")
    if not data.startswith(b"%PDF-") or b"%%EOF" not in data[-1024:]:
        yield "holds no whole PDF"
    length = ds.get("EncapsulatedDocumentLength")
    if length is not None and not 0 <= len(data) - int(length) <= 1:
        yield "EncapsulatedDocumentLength is not that of its document"
