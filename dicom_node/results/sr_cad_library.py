"""An image -> its entry in the Image Library of a CAD report (PS3.16 TID 4020): where it lies, without fetching it."""

from __future__ import annotations

from collections.abc import Iterator

from highdicom import sr
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicom_node.domain import CTImage, CTSeries
from dicom_node.results.sr_codes import SOURCE
from dicom_node.results.sr_content import Item, Relationship, code, holding, image, number, text

_CONTEXT = Relationship.HAS_ACQ_CONTEXT
_MM = codes.UCUM.Millimeter
_COSINE = Code("{-1:1}", "UCUM", "{-1:1}")
_LATERALITY = {"L": codes.SCT.Left, "R": codes.SCT.Right}

_POSITION = (codes.DCM.ImagePositionPatientX, codes.DCM.ImagePositionPatientY, codes.DCM.ImagePositionPatientZ)
_ORIENTATION = (
    codes.DCM.ImageOrientationPatientRowX, codes.DCM.ImageOrientationPatientRowY,
    codes.DCM.ImageOrientationPatientRowZ, codes.DCM.ImageOrientationPatientColumnX,
    codes.DCM.ImageOrientationPatientColumnY, codes.DCM.ImageOrientationPatientColumnZ,
)  # fmt: skip


def library_entry(of: CTImage, series: CTSeries) -> Item:
    return holding(image(SOURCE, of), list(_descriptors(of, series)))


def _descriptors(of: CTImage, series: CTSeries) -> Iterator[Item]:
    """In the order of the rows. Row 17, a Frame of Reference UID, is no content that an image of this IOD may have."""
    header = of.header
    laterality = _LATERALITY.get(str(header.get("ImageLaterality") or ""))
    if laterality is not None:
        yield code(codes.DCM.ImageLaterality, laterality, _CONTEXT)
    directions = [str(value) for value in header.get("PatientOrientation") or ()]
    if len(directions) == 2:
        yield text(codes.DCM.PatientOrientationRow, directions[0], _CONTEXT)
        yield text(codes.DCM.PatientOrientationColumn, directions[1], _CONTEXT)
    yield from _when(of)
    vertical_mm, horizontal_mm = (float(value) for value in header.PixelSpacing)
    yield number(codes.DCM.HorizontalPixelSpacing, horizontal_mm, _MM, _CONTEXT)
    yield number(codes.DCM.VerticalPixelSpacing, vertical_mm, _MM, _CONTEXT)
    yield number(codes.DCM.SpacingBetweenSlices, series.spacing_mm[0], _MM, _CONTEXT)
    if header.get("SliceThickness"):
        yield number(codes.DCM.SliceThickness, float(header.SliceThickness), _MM, _CONTEXT)
    for name, value in zip(_POSITION, of.position_mm, strict=True):
        yield number(name, value, _MM, _CONTEXT)
    for name, value in zip(_ORIENTATION, header.ImageOrientationPatient, strict=True):
        yield number(name, float(value), _COSINE, _CONTEXT)


def _when(of: CTImage) -> Iterator[Item]:
    for keyword, name, make in (
        ("StudyDate", codes.DCM.StudyDate, sr.DateContentItem),
        ("StudyTime", codes.DCM.StudyTime, sr.TimeContentItem),
        ("ContentDate", codes.DCM.ContentDate, sr.DateContentItem),
        ("ContentTime", codes.DCM.ContentTime, sr.TimeContentItem),
    ):
        value = of.header.get(keyword)
        if value:
            yield make(name=name, value=value, relationship_type=_CONTEXT)
