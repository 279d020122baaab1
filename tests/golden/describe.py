"""Objects -> what they say, as lines to compare: no bytes, and names in the place of UIDs."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom_node.results.objects import Addressed
from dicom_node.results.part10 import to_bytes
from tests.golden.cases import Case

_HEADER = (
    "Modality", "SeriesNumber", "SeriesDescription", "InstanceNumber", "PatientName", "PatientID", "StudyDescription",
    "ContentDate", "ContentTime", "Manufacturer", "ManufacturerModelName", "ImageType", "ConversionType",
    "BurnedInAnnotation", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns",
    "PixelSpacing", "NominalScannedPixelSpacing", "BitsAllocated", "SegmentationType", "SegmentationFractionalType",
    "MaximumFractionalValue", "SegmentsOverlap", "ContentLabel", "ContentDescription", "CompletionFlag",
    "CompletionFlagDescription", "VerificationFlag", "PreliminaryFlag", "PresentationLUTShape", "DocumentTitle",
    "MIMETypeOfEncapsulatedDocument", "DerivationDescription",
)  # fmt: skip
_LABELMAP = "1.2.840.10008.5.1.4.1.1.66.7"


class Names:
    """UID -> what it is of. Derived ones that nobody names are all "derived": they change with every version."""

    def __init__(self, objects: Sequence[Addressed], case: Case) -> None:
        source = (case.reading or case.refusal).origin  # type: ignore[union-attr]  # a Case has one of them
        self._known = {source.study_uid: "the study", source.series_uid: "the source series"}
        self._images = {uid: number for number, uid in enumerate(case.image_uids, start=1)}
        for each in objects:
            self._known[str(each.made.ds.SOPInstanceUID)] = each.made.name
            self._known[str(each.made.ds.SeriesInstanceUID)] = f"series of {each.made.name}"
        if case.reading is not None:
            self._known |= {track.uid: f"tracking UID {n}" for n, track in enumerate(case.reading.tracking, start=1)}

    def of(self, uid: str) -> str:
        if uid in self._images:
            return f"image {self._images[uid]}"
        return self._known.get(uid) or ("derived" if uid.startswith("2.25.") else uid)

    def all(self, uids: Iterable[str]) -> list[str]:
        """Each once; images as ranges."""
        uids = set(uids)
        numbers = sorted(self._images[uid] for uid in uids if uid in self._images)
        runs = itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
        found = [[number for _, number in run] for _, run in runs]
        images = [f"image {run[0]}" + (f" to {run[-1]}" if run[1:] else "") for run in found]
        return images + sorted(self.of(uid) for uid in uids if uid not in self._images)


def described(objects: Sequence[Addressed], case: Case) -> list[dict[str, Any]]:
    """As a reader has them: from their bytes."""
    names = Names(objects, case)
    return [
        {"file": each.made.name, **_object(pydicom.dcmread(io.BytesIO(to_bytes(each.made.ds))), names)}
        for each in objects
    ]


def _object(ds: Dataset, names: Names) -> dict[str, Any]:
    found: dict[str, Any] = {
        "SOP Class": "Label Map Segmentation Storage" if ds.SOPClassUID == _LABELMAP else UID(ds.SOPClassUID).name,
        "Transfer Syntax": ds.file_meta.TransferSyntaxUID.name,
        "study": names.of(str(ds.StudyInstanceUID)),
        "header": {keyword: str(ds[keyword].value) for keyword in _HEADER if keyword in ds},
        "refers to": names.all(_referenced(ds)),
    }
    if "ContentSequence" in ds:
        found["content"] = [_line(ds, names, 0), *_tree(ds, names, 1)]
    if "SegmentSequence" in ds:
        found["segments"] = _segments(ds, names)
    if "GraphicAnnotationSequence" in ds:
        found["graphics"] = [line for item in ds.GraphicAnnotationSequence for line in _graphics(item, names)]
    if "EncapsulatedDocument" in ds:
        found["document"] = f"{bytes(ds.EncapsulatedDocument).count(b'/Type /Page') or 'no'} pages"
    return found


def _referenced(ds: Dataset) -> Iterator[str]:
    for element in ds:
        if element.keyword == "ReferencedSOPInstanceUID":
            yield str(element.value)
        elif element.VR == "SQ":
            for item in element.value:
                yield from _referenced(item)


# -- reports ---------------------------------------------------------------------------------------


def _tree(item: Dataset, names: Names, depth: int) -> Iterator[str]:
    for child in item.get("ContentSequence", ()):
        yield _line(child, names, depth)
        yield from _tree(child, names, depth + 1)


def _line(item: Dataset, names: Names, depth: int) -> str:
    name = _code(item.ConceptNameCodeSequence[0]) if item.get("ConceptNameCodeSequence") else ""
    templates = [f"TID {each.TemplateIdentifier}" for each in item.get("ContentTemplateSequence", ())]
    words = [str(item.get("RelationshipType", "")), str(item.ValueType), name, *templates]
    value = _value(item, names)
    return ">" * depth + " ".join(word for word in words if word) + (f" = {value}" if value else "")


def _value(item: Dataset, names: Names) -> str:
    match str(item.ValueType):
        case "NUM":
            measured = item.MeasuredValueSequence[0]
            return f"{measured.NumericValue} {measured.MeasurementUnitsCodeSequence[0].CodeValue}"
        case "CODE":
            return _code(item.ConceptCodeSequence[0])
        case "UIDREF":
            return names.of(str(item.UID))
        case "IMAGE" | "COMPOSITE" | "WAVEFORM":
            return _reference(item.ReferencedSOPSequence[0], names)
        case "SCOORD" | "SCOORD3D":
            return _points(str(item.GraphicType), item.GraphicData, 2 if item.ValueType == "SCOORD" else 3)
        case "TEXT":
            return str(item.TextValue)
        case "CONTAINER":
            return ""
    return str(next(item[keyword].value for keyword in ("Date", "Time", "DateTime", "PersonName") if keyword in item))


def _reference(item: Dataset, names: Names) -> str:
    frames = f" frame {item.ReferencedFrameNumber}" if "ReferencedFrameNumber" in item else ""
    segments = f" segment {item.ReferencedSegmentNumber}" if "ReferencedSegmentNumber" in item else ""
    return names.of(str(item.ReferencedSOPInstanceUID)) + frames + segments


def _points(kind: str, data: Sequence[float], dimensions: int) -> str:
    points = np.asarray(data, dtype=np.float64).reshape(-1, dimensions)
    low, high = points.min(axis=0), points.max(axis=0)
    return f"{kind}, {len(points)} points, {_numbers(low)} to {_numbers(high)}"


def _numbers(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:.1f}" for value in values) + ")"


def _code(item: Dataset) -> str:
    value = item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue")
    return f"{item.CodeMeaning} ({value}, {item.get('CodingSchemeDesignator', '')})"


# -- segmentations and presentation states ---------------------------------------------------------


def _segments(ds: Dataset, names: Names) -> list[str]:
    places = _places(ds)
    return [_segment(item, places[int(item.SegmentNumber)], names) for item in ds.SegmentSequence]


def _segment(item: Dataset, voxels: np.ndarray[Any, Any], names: Names) -> str:
    middle = _numbers(voxels.mean(axis=0)) if len(voxels) else "nowhere"
    low, high = (voxels.min(axis=0).tolist(), voxels.max(axis=0).tolist()) if len(voxels) else ([], [])
    return (
        f"{item.SegmentNumber} {item.SegmentLabel}, {item.SegmentAlgorithmType}: {len(voxels)} voxels, z/row/column "
        f"{low} to {high}, middle {middle}; {names.of(str(item.TrackingUID))}; "
        f"{_code(item.SegmentedPropertyTypeCodeSequence[0])}; CIELab {list(item.RecommendedDisplayCIELabValue)}"
    )


def _places(ds: Dataset) -> dict[int, np.ndarray[Any, Any]]:
    """Segment -> (z in mm, row, column) of each of its voxels, by pydicom's own decoding."""
    found: dict[int, list[np.ndarray[Any, Any]]] = {int(item.SegmentNumber): [] for item in ds.SegmentSequence}
    frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
    for frame, plane in zip(ds.PerFrameFunctionalGroupsSequence, frames, strict=True):
        z = float(frame.PlanePositionSequence[0].ImagePositionPatient[2])
        for number, mask in _marked(ds, frame, plane):
            where = np.argwhere(mask)
            found[number].append(np.column_stack([np.full(len(where), z), where]))
    return {number: np.concatenate(parts) if parts else np.empty((0, 3)) for number, parts in found.items()}


def _marked(ds: Dataset, frame: Dataset, plane: np.ndarray[Any, Any]) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    if ds.SegmentationType == "LABELMAP":
        yield from ((int(item.SegmentNumber), plane == item.SegmentNumber) for item in ds.SegmentSequence)
        return
    holder = frame if "SegmentIdentificationSequence" in frame else ds.SharedFunctionalGroupsSequence[0]
    yield int(holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber), plane > 0


def _graphics(item: Dataset, names: Names) -> Iterator[str]:
    on = ", ".join(_reference(image, names) for image in item.get("ReferencedImageSequence", ()))
    for graphic in item.get("GraphicObjectSequence", ()):
        yield f"{item.GraphicLayer} on {on}: {_points(str(graphic.GraphicType), graphic.GraphicData, 2)}"
    for text in item.get("TextObjectSequence", ()):
        yield f"{item.GraphicLayer} on {on}: {text.UnformattedTextValue}"
