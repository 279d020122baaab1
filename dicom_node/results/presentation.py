"""Outlines and axes of the findings -> Grayscale Softcopy Presentation States (PS3.3 A.33.1) on the source images.

One state holds all findings: viewers apply one state to an image at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from highdicom.color import CIELabColor
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage

from dicom_node.domain import RESEARCH_USE, CTImage, CTSeries
from dicom_node.identity import MODEL_NAME
from dicom_node.results import quantities
from dicom_node.results.drawing import LUNG_WINDOW_HU, WARNING
from dicom_node.results.headers import Kind, put_headers
from dicom_node.results.measure import Axis
from dicom_node.results.outline import pieces
from dicom_node.results.palette import colour
from dicom_node.results.part10 import seal_series
from dicom_node.results.reading import Reading
from dicom_node.results.references import image_items

_CAUTION_LAYER = "RESEARCH_USE"
_LETTER_PX = (4.0, 8.0)  # an image pixel's share of a letter, for the box that a text is given


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """What is drawn of one finding on one slice; lines in (column, row), as PS3.3 C.10.5.1.2 counts pixels."""

    number: int
    index: int
    lines: tuple[NDArray[np.float64], ...]
    text: str


def build_presentation_states(reading: Reading) -> tuple[Dataset, ...]:
    """All outlines, on each slice that a finding lies in; nothing without findings.

    A state can hold one rescale for all of its images, so a series that changes it within gets several.
    """
    drawn = list(_all_drawn(reading))
    by_rescale: dict[tuple[str, str], list[_Drawn]] = {}
    for one in drawn:
        by_rescale.setdefault(_rescale(reading.series.images[one.index]), []).append(one)
    return seal_series(
        [_state(reading, rescale, those) for rescale, those in by_rescale.items()],
        reading.origin,
        Kind.PRESENTATION,
    )


def _all_drawn(reading: Reading) -> Iterator[_Drawn]:
    """Outlines on each slice; on the key slice the axes, and the size beside the number."""
    for number, (finding, measured) in enumerate(zip(reading.findings, reading.measurements, strict=True), start=1):
        k, row, column = finding.corner
        for index, mask in enumerate(finding.mask, start=k):
            lines = [piece.outline + np.array([column, row]) for piece in pieces(mask)]
            text = str(number)
            if index == measured.slice_index:
                lines += [_line(measured.long_axis), _line(measured.short_axis)]
                size = quantities.axes(measured.long_axis_mm, measured.short_axis_mm)
                text = f"{reading.tracking[number - 1].identifier}: {size}"
            if lines:
                yield _Drawn(number=number, index=index, lines=tuple(lines), text=text)


def _line(axis: Axis) -> NDArray[np.float64]:
    """Pixel centres have whole indices in a Volume, halves in a Presentation State."""
    return np.array([[column + 0.5, row + 0.5] for _, row, column in axis.ends_index])


def _rescale(image: CTImage) -> tuple[str, str]:
    return str(image.header.get("RescaleSlope", "1")), str(image.header.get("RescaleIntercept", "0"))


def _state(reading: Reading, rescale: tuple[str, str], drawn: Sequence[_Drawn]) -> Dataset:
    series, origin = reading.series, reading.origin
    indices = sorted({one.index for one in drawn})
    ds = Dataset()
    ds.SOPClassUID = GrayscaleSoftcopyPresentationStateStorage
    _put_name(ds)
    _put_images(ds, series, [series.images[index] for index in indices])
    _put_grey(ds, rescale)
    _put_layers(ds, sorted({one.number for one in drawn}))
    ds.GraphicAnnotationSequence = [_annotation(one, series) for one in drawn]
    ds.GraphicAnnotationSequence.append(_caution())
    ds.BodyPartExamined = "CHEST"
    put_headers(ds, origin, Kind.PRESENTATION, f"Lung nodules: {len(reading.findings)} found")
    ds.PresentationCreationDate, ds.PresentationCreationTime = ds.ContentDate, ds.ContentTime
    # The modules of a Presentation State have these under the names above only.
    del ds.ContentDate, ds.ContentTime
    return ds


def _put_name(ds: Dataset) -> None:
    ds.ContentLabel = "LUNG_NODULES"
    ds.ContentDescription = f"Lung nodules. {RESEARCH_USE}"
    ds.ContentCreatorName = f"{MODEL_NAME}^"


def _put_images(ds: Dataset, series: CTSeries, images: Sequence[CTImage]) -> None:
    """The images that are drawn on and no others: the rest of the series keeps the reader's own window."""
    item = Dataset()
    item.SeriesInstanceUID = series.series_uid
    item.ReferencedImageSequence = image_items(images)
    ds.ReferencedSeriesSequence = [item]
    area = Dataset()
    area.DisplayedAreaTopLeftHandCorner = [1, 1]
    area.DisplayedAreaBottomRightHandCorner = [series.columns, series.rows]
    area.PresentationSizeMode = "SCALE TO FIT"
    area.PresentationPixelSpacing = series.header.PixelSpacing
    ds.DisplayedAreaSelectionSequence = [area]


def _put_grey(ds: Dataset, rescale: tuple[str, str]) -> None:
    """From stored values to CT numbers to the lung window; a state that lacks the first step means stored values."""
    ds.RescaleSlope, ds.RescaleIntercept = rescale
    ds.RescaleType = "HU"
    low, high = LUNG_WINDOW_HU
    window = Dataset()
    window.WindowCenter, window.WindowWidth = f"{(low + high) / 2:g}", f"{high - low:g}"
    window.WindowCenterWidthExplanation = "LUNG"
    ds.SoftcopyVOILUTSequence = [window]
    ds.PresentationLUTShape = "IDENTITY"


def _put_layers(ds: Dataset, numbers: Sequence[int]) -> None:
    """A layer a finding, so that a viewer can colour it and put it out of sight."""
    ds.GraphicLayerSequence = []
    for order, (name, paint) in enumerate(
        [*((_layer(number), colour(number)) for number in numbers), (_CAUTION_LAYER, WARNING)], start=1
    ):
        layer = Dataset()
        layer.GraphicLayer = name
        layer.GraphicLayerOrder = order
        layer.GraphicLayerRecommendedDisplayGrayscaleValue = 0xFFFF
        layer.GraphicLayerRecommendedDisplayCIELabValue = list(CIELabColor.from_string(paint).value)
        ds.GraphicLayerSequence.append(layer)


def _layer(number: int) -> str:
    return f"NODULE_{number}"


def _annotation(drawn: _Drawn, series: CTSeries) -> Dataset:
    item = Dataset()
    item.ReferencedImageSequence = image_items([series.images[drawn.index]])
    item.GraphicLayer = _layer(drawn.number)
    item.GraphicObjectSequence = [_graphic(line) for line in drawn.lines]
    item.TextObjectSequence = [_text_beside(drawn, series)]
    return item


def _graphic(points: NDArray[np.float64]) -> Dataset:
    graphic = Dataset()
    graphic.GraphicAnnotationUnits = "PIXEL"
    graphic.GraphicDimensions = 2
    graphic.NumberOfGraphicPoints = len(points)
    graphic.GraphicData = [round(float(value), 3) for value in points.ravel()]
    graphic.GraphicType = "POLYLINE"
    graphic.GraphicFilled = "N"
    return graphic


def _text_beside(drawn: _Drawn, series: CTSeries) -> Dataset:
    """To the right of the finding, or to its left at the image's edge."""
    points = np.concatenate(drawn.lines)
    low, high = points.min(axis=0), points.max(axis=0)
    width, height = len(drawn.text) * _LETTER_PX[0], _LETTER_PX[1]
    left = float(high[0]) + 2.0
    if left + width > series.columns:
        left = max(0.0, float(low[0]) - 2.0 - width)
    top = min(max(0.0, float(low[1]) - height), series.rows - height)
    text = Dataset()
    text.BoundingBoxAnnotationUnits = "PIXEL"
    text.UnformattedTextValue = drawn.text
    text.BoundingBoxTopLeftHandCorner = [round(left, 3), round(top, 3)]
    text.BoundingBoxBottomRightHandCorner = [round(min(left + width, series.columns), 3), round(top + height, 3)]
    text.BoundingBoxTextHorizontalJustification = "LEFT"
    return text


def _caution() -> Dataset:
    """On each image: an item without references is meant for all of them."""
    text = Dataset()
    text.BoundingBoxAnnotationUnits = "DISPLAY"
    text.UnformattedTextValue = RESEARCH_USE
    text.BoundingBoxTopLeftHandCorner = [0.02, 0.95]
    text.BoundingBoxBottomRightHandCorner = [0.6, 0.99]
    text.BoundingBoxTextHorizontalJustification = "LEFT"
    item = Dataset()
    item.GraphicLayer = _CAUTION_LAYER
    item.TextObjectSequence = [text]
    return item
