"""Content tree of an SR or Key Object Selection -> what PS3.3 C.17.3 asks of its items and they have not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydicom.dataset import Dataset
from pydicom.uid import (
    BasicTextSRStorage,
    ChestCADSRStorage,
    Comprehensive3DSRStorage,
    KeyObjectSelectionDocumentStorage,
)

from dicom_node.results.check import values

_REFERENCE = ("ReferencedSOPSequence",)

# Table C.17.3-1 and the macros of C.18: value type -> attributes of type 1 (MeasuredValueSequence: 2).
_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "CONTAINER": ("ContinuityOfContent",),
    "TEXT": ("TextValue",),
    "CODE": ("ConceptCodeSequence",),
    "NUM": ("MeasuredValueSequence",),
    "PNAME": ("PersonName",),
    "DATE": ("Date",),
    "TIME": ("Time",),
    "DATETIME": ("DateTime",),
    "UIDREF": ("UID",),
    "IMAGE": _REFERENCE,
    "COMPOSITE": _REFERENCE,
    "WAVEFORM": _REFERENCE,
    "SCOORD": ("GraphicType", "GraphicData"),
    "SCOORD3D": ("GraphicType", "GraphicData", "ReferencedFrameOfReferenceUID"),
    "TCOORD": ("TemporalRangeType",),
    "TABLE": ("TabulatedValuesSequence",),
}
_OF_ITEM = {"ConceptNameCodeSequence", "ContentTemplateSequence"}.union(*_ATTRIBUTES.values())
_NAMELESS = {"IMAGE", "COMPOSITE", "WAVEFORM", "SCOORD", "SCOORD3D", "TCOORD"}  # a Concept Name is not required

# A.35: which value types an IOD's tree may hold.
_SIMPLE = {"CONTAINER", "TEXT", "CODE", "DATETIME", "DATE", "TIME", "UIDREF", "PNAME", "COMPOSITE", "IMAGE", "WAVEFORM"}
_CAD = {"CONTAINER", "TEXT", "CODE", "NUM", "DATE", "TIME", "PNAME", "UIDREF", "SCOORD", "TCOORD", "COMPOSITE",
        "IMAGE", "WAVEFORM"}  # fmt: skip
VALUE_TYPES: Mapping[str, set[str]] = {
    BasicTextSRStorage: _SIMPLE,
    Comprehensive3DSRStorage: set(_ATTRIBUTES),
    ChestCADSRStorage: _CAD,
    KeyObjectSelectionDocumentStorage: {
        "CONTAINER", "TEXT", "CODE", "UIDREF", "PNAME", "COMPOSITE", "IMAGE", "WAVEFORM",
    },
}  # fmt: skip
_RELATIONSHIPS = {
    "CONTAINS", "HAS PROPERTIES", "HAS OBS CONTEXT", "HAS ACQ CONTEXT", "INFERRED FROM", "SELECTED FROM",
    "HAS CONCEPT MOD",
}  # fmt: skip

# C.18.6.1.2, C.18.9.1.2: graphic type -> least and most points.
_MANY = 1 << 31
_POINTS_2D = {"POINT": (1, 1), "MULTIPOINT": (1, _MANY), "POLYLINE": (2, _MANY), "CIRCLE": (2, 2), "ELLIPSE": (4, 4)}
_POINTS_3D = {
    "POINT": (1, 1), "MULTIPOINT": (1, _MANY), "POLYLINE": (2, _MANY), "POLYGON": (4, _MANY), "ELLIPSE": (4, 4),
    "ELLIPSOID": (6, 6),
}  # fmt: skip


def items(ds: Dataset) -> Iterator[Dataset]:
    """All content items below the root, each before those that it holds."""
    for item in ds.get("ContentSequence", ()):
        yield item
        yield from items(item)


def concept(item: Dataset) -> tuple[str, str]:
    """Code value and scheme of an item's Concept Name; empty where it has none."""
    names = item.get("ConceptNameCodeSequence")
    return (str(names[0].get("CodeValue", "")), str(names[0].get("CodingSchemeDesignator", ""))) if names else ("", "")


def faults(ds: Dataset) -> Iterator[str]:
    allowed = VALUE_TYPES.get(str(ds.SOPClassUID))
    if allowed is None:
        return
    if ds.get("ValueType") != "CONTAINER":
        yield "the root of the content is no CONTAINER"
    if not ds.get("ContentSequence"):
        yield "ContentSequence is missing (type 1C)"
    for item in (ds, *items(ds)):
        kind = str(item.get("ValueType") or "")
        where = f"content item {concept(item)[0] or kind or '?'}"
        if kind not in allowed:
            yield f"{where} has a value type that this IOD does not hold"
            continue
        if item is not ds and item.get("RelationshipType") not in _RELATIONSHIPS:
            yield f"{where} has no RelationshipType"
        yield from (f"{where} {what}" for what in _of_item(item, kind))
        yield from (f"{where} has an empty {keyword}" for keyword in _empty(item))


def _of_item(item: Dataset, kind: str) -> Iterator[str]:
    if kind not in _NAMELESS and not item.get("ConceptNameCodeSequence"):
        yield "has no ConceptNameCodeSequence"
    for keyword in _ATTRIBUTES[kind]:
        if keyword not in item or (keyword != "MeasuredValueSequence" and values.is_empty(item[keyword])):
            yield f"has no {keyword}"
            return
    for sequence in ("ConceptNameCodeSequence", "ConceptCodeSequence"):
        for code in item.get(sequence, ()):
            yield from (f"has no {keyword} in its {sequence}" for keyword in _missing_of_code(code))
    for template in item.get("ContentTemplateSequence", ()):
        for keyword in ("MappingResource", "TemplateIdentifier"):
            if not template.get(keyword):
                yield f"has no {keyword} in its template"
    if kind == "NUM":
        yield from _of_number(item)
    elif kind in ("IMAGE", "COMPOSITE", "WAVEFORM"):
        for reference in item.ReferencedSOPSequence:
            for keyword in ("ReferencedSOPClassUID", "ReferencedSOPInstanceUID"):
                if not reference.get(keyword):
                    yield f"has no {keyword}"
    elif kind in ("SCOORD", "SCOORD3D"):
        yield from _of_graphic(item, 2 if kind == "SCOORD" else 3)


def _empty(item: Dataset) -> Iterator[str]:
    """Attributes without a value, down to the next content item: but for a number's, none may be empty."""
    for element in item:
        if element.keyword == "ContentSequence":
            if not element.value:
                yield element.keyword
        elif item.get("ValueType") is None or element.keyword in _OF_ITEM:
            if values.is_empty(element) and element.keyword != "MeasuredValueSequence":
                yield element.keyword
            elif element.VR == "SQ":
                for below in element.value:
                    yield from _empty(below)


def _missing_of_code(code: Dataset) -> Iterator[str]:
    if not (code.get("CodeValue") or code.get("LongCodeValue") or code.get("URNCodeValue")):
        yield "CodeValue"
    if not code.get("URNCodeValue") and not code.get("CodingSchemeDesignator"):
        yield "CodingSchemeDesignator"
    if not code.get("CodeMeaning"):
        yield "CodeMeaning"


def _of_number(item: Dataset) -> Iterator[str]:
    for measured in item.MeasuredValueSequence:
        if measured.get("NumericValue") in (None, ""):
            yield "has no NumericValue"
        units = measured.get("MeasurementUnitsCodeSequence")
        if not units:
            yield "has no MeasurementUnitsCodeSequence"
        else:
            yield from (f"has no {keyword} in its units" for keyword in _missing_of_code(units[0]))


def _of_graphic(item: Dataset, axes: int) -> Iterator[str]:
    least_most = (_POINTS_2D if axes == 2 else _POINTS_3D).get(str(item.GraphicType))
    count = len(item.GraphicData)
    if least_most is None:
        yield "has a GraphicType that there is not"
    elif count % axes or not least_most[0] <= count // axes <= least_most[1]:
        yield f"has {count} values of GraphicData, which make no {item.GraphicType}"
    if axes == 2 and not any(i.get("RelationshipType") == "SELECTED FROM" for i in item.get("ContentSequence", ())):
        yield "is selected from no image"
