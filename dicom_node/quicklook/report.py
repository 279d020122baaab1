"""TID 1500 report -> what it says, as text: a conclusion, statements, and for each tracked finding its values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from dicom_node.results import quantities

_SEGMENT_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
# How a number is written, by its UCUM unit.
_WRITTEN: Mapping[str, Callable[[float], str]] = {
    "mm": quantities.length,
    "mm3": quantities.volume,
    "[hnsf'U]": quantities.attenuation,
    "%": quantities.percent,
    "d": quantities.days,
    "1": quantities.score,
}
# What a table of findings shows first, under a shorter name.
LONG_AXIS, SHORT_AXIS, VOLUME, MEAN, SCORE = "Long axis", "Short axis", "Volume", "Mean attenuation", "Detection score"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """An outline that the report itself holds: (n, 2) of (column, row) in the image's coordinates, and the image.

    frame: of a multi-frame image; None in a single-frame one.
    """

    sop_instance_uid: str
    frame: int | None
    points: NDArray[np.float64]


@dataclass(slots=True, kw_only=True)
class Reported:
    """All measurement groups of one tracking UID. values: name -> number with unit, or words."""

    identifier: str
    tracking_uid: str
    site: str = ""
    side: str | None = None
    score: float | None = None
    values: dict[str, str] = field(default_factory=dict)
    segment: tuple[str, int] | None = None
    drawn: list[Drawn] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one report says. statements: name and text of each thing that it says in words."""

    conclusion: str
    statements: tuple[tuple[str, str], ...]
    findings: tuple[Reported, ...]

    @property
    def segmentation_uid(self) -> str | None:
        """The SOP Instance UID of the Segmentation that it refers to."""
        return next((found.segment[0] for found in self.findings if found.segment is not None), None)


def is_report(ds: Dataset) -> bool:
    """Whether its root is that of PS3.16 TID 1500."""
    names = ds.get("ConceptNameCodeSequence")
    return bool(names) and names[0].get("CodeValue") == codes.DCM.ImagingMeasurementReport.value


def read_report(sr: Dataset) -> Report:
    """Groups in the order of their first appearance."""
    findings: dict[str, Reported] = {}
    statements: list[tuple[str, str]] = []
    conclusion = ""
    for item in _nested(sr):
        if _name(item) == codes.DCM.MeasurementGroup.value:
            _read_group(item, findings)
    for section in sr.get("ContentSequence", ()):
        if section.get("ValueType") == "CONTAINER" and _name(section) != codes.DCM.ImagingMeasurements.value:
            for item in section.get("ContentSequence", ()):
                if item.ValueType == "TEXT" and _name(item) == codes.DCM.Conclusion.value:
                    conclusion = str(item.TextValue)
                elif item.ValueType == "TEXT":
                    statements.append((_meaning(item), str(item.TextValue)))
    return Report(conclusion=conclusion, statements=tuple(statements), findings=tuple(findings.values()))


def _read_group(group: Dataset, findings: dict[str, Reported]) -> None:
    items = list(group.get("ContentSequence", ()))
    uid = next((str(i.UID) for i in items if _name(i) == codes.DCM.TrackingUniqueIdentifier.value), "")
    named = next((str(i.TextValue) for i in items if _name(i) == codes.DCM.TrackingIdentifier.value), uid)
    found = findings.setdefault(uid, Reported(identifier=named, tracking_uid=uid))
    for item in items:
        _read_item(item, found)


def _read_item(item: Dataset, found: Reported) -> None:
    match item.ValueType:
        case "NUM" if item.get("MeasuredValueSequence"):
            measured = item.MeasuredValueSequence[0]
            value, unit = float(measured.NumericValue), measured.MeasurementUnitsCodeSequence[0]
            name = _measured(item)
            written = _WRITTEN.get(str(unit.CodeValue))
            found.values.setdefault(name, written(value) if written else f"{value:g} {unit.CodeMeaning}")
            if name == SCORE:
                found.score = value
        case "CODE" if _name(item) == codes.SCT.FindingSite.value:
            _read_site(item, found)
        case "CODE" if _name(item) != codes.DCM.Finding.value:
            found.values.setdefault(_meaning(item), str(item.ConceptCodeSequence[0].CodeMeaning))
        case "TEXT" if _name(item) != codes.DCM.TrackingIdentifier.value:
            found.values.setdefault(_meaning(item), str(item.TextValue))
        case "IMAGE":
            reference = item.ReferencedSOPSequence[0]
            if reference.ReferencedSOPClassUID in _SEGMENT_CLASSES and "ReferencedSegmentNumber" in reference:
                number = reference["ReferencedSegmentNumber"].value
                found.segment = str(reference.ReferencedSOPInstanceUID), int(np.atleast_1d(number)[0])
        case "SCOORD" if item.GraphicType == "POLYLINE" and len(item.GraphicData) > 4:
            found.drawn.append(_drawn(item))


def _read_site(item: Dataset, found: Reported) -> None:
    site = str(item.ConceptCodeSequence[0].CodeMeaning)
    for modifier in item.get("ContentSequence", ()):
        if modifier.get("ValueType") == "CODE" and _name(modifier) == codes.SCT.Laterality.value:
            found.side = str(modifier.ConceptCodeSequence[0].CodeMeaning).lower()
    found.site = f"{found.side} {site.lower()}" if found.side else site


def _drawn(item: Dataset) -> Drawn:
    image = next(child for child in item.ContentSequence if child.ValueType == "IMAGE").ReferencedSOPSequence[0]
    frame = image.get("ReferencedFrameNumber")
    return Drawn(
        sop_instance_uid=str(image.ReferencedSOPInstanceUID),
        frame=None if frame is None else int(np.atleast_1d(frame)[0]),
        points=np.asarray(item.GraphicData, dtype=np.float64).reshape(-1, 2),
    )


def _measured(item: Dataset) -> str:
    """A measurement's name with its derivation: "Attenuation Coefficient" and "Mean" -> "Mean attenuation"."""
    short = {codes.DCM.AttenuationCoefficient.meaning: "attenuation"}
    name = _meaning(item)
    for modifier in item.get("ContentSequence", ()):
        if modifier.get("ValueType") == "CODE" and _name(modifier) == codes.DCM.Derivation.value:
            return f"{modifier.ConceptCodeSequence[0].CodeMeaning} {short.get(name, name.lower())}"
    return name


def _nested(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence", ()):
        yield child
        yield from _nested(child)


def _name(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence")
    return str(names[0].get("CodeValue")) if names else ""


def _meaning(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence")
    return str(names[0].get("CodeMeaning")) if names else ""
