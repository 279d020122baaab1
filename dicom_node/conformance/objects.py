"""Objects that the node made -> tables of what stands in them. Nothing here is told: each row was seen in a sample."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import resources
from typing import Any

from pydicom.datadict import dictionary_description, dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicom_node.conformance.document import Table
from dicom_node.conformance.sample import Samples, make
from dicom_node.results.headers import PATIENT_AND_STUDY, SERIES_NUMBER, TYPE_2, Kind

_COLUMNS = ("Module", "Attribute Name", "Tag", "VR", "Source", "Presence", "Value")
_CODE = {"CodeValue", "LongCodeValue", "CodingSchemeDesignator", "CodeMeaning"}
# Binary, the tree of the report (Annex A.B), and what is only there to be a UID of a sample.
_NO_VALUE = {"PixelData", "ContentSequence"}

# What no sample can tell of itself. ">": within a sequence.
_NOTES = {
    "SOPInstanceUID": "2.25, derived from source, model bundle and content",
    "SeriesInstanceUID": "2.25, derived from source, model bundle and content",
    "InstanceCreationDate": "date of the job",
    "InstanceCreationTime": "time of the job",
    "ContentDate": "date of the job",
    "ContentTime": "time of the job",
    "SeriesDate": "date of the job",
    "SeriesTime": "time of the job",
    "SpecificCharacterSet": "that of the source or ISO_IR 192, see 5.7; absent for the default repertoire",
    "TimezoneOffsetFromUTC": "where the source has it; our own dates and times are on the same clock",
    "InstitutionName": "where the source has it",
    "SeriesDescription": "what the object is, and: Research use, not for diagnosis",
    "PredecessorDocumentsSequence": "the report on the same series that this one replaces",
    "CurrentRequestedProcedureEvidenceSequence": "all Instances of the source series, and the Segmentation",
    "ContributingEquipmentSequence": "the model, where one saw the series",
    ">ManufacturerModelName": "the model's name",
    ">SoftwareVersions": "version of the model, SHA-256 of its bundle",
    ">DeviceUID": "derived from the bundle: another with each model",
    ">ContributionDateTime": "time of the job",
    ">ContributionDescription": "bundle, operating point, and: Research use, not for diagnosis",
    "ReferencedSeriesSequence": "the source series and its Instances with findings",
    "SourceImageSequence": "source images with findings",
    "CompletionFlag": "PARTIAL: not analysed, or the series was not held to be complete",
    "SeriesNumber": f"{SERIES_NUMBER[Kind.REPORT]}; not analysed: {SERIES_NUMBER[Kind.REJECTION]}",
    "SegmentSequence": "one item a finding, highest score first",
    ">SegmentLabel": "Nodule 1, Nodule 2 ...",
    ">TrackingID": "Nodule 1, Nodule 2 ...; equal to the report's",
    ">TrackingUID": "derived; equal to the report's",
    ">SegmentNumber": "1, 2 ...",
    ">SegmentationAlgorithmIdentificationSequence": "the model",
    ">SegmentAlgorithmName": "the model's name",
    ">AlgorithmName": "the model's name",
    ">AlgorithmVersion": "the model's version",
    ">AlgorithmParameters": "SHA-256 of its bundle, operating point",
    ">RecommendedDisplayCIELabValue": "from a palette, by segment number",
    ">AnatomicRegionModifierSequence": "absent where the lungs can't be told apart",
    ">SegmentIdentificationSequence": "shared with one segment, else in each frame",
    ">ReferencedSOPClassUID": "that of the Instance",
    ">ReferencedFrameNumber": "where the source is multi-frame",
    "LossyImageCompression": "00, or 01 where images of the source were compressed with loss",
    "LossyImageCompressionRatio": "where the source tells it",
    "LossyImageCompressionMethod": "where the source tells it",
    "NumberOfFrames": "one for each slice that a segment occupies",
    "DimensionIndexSequence": "segment, then position, feet to head",
    "DimensionOrganizationType": "3D, with one segment in evenly spaced slices",
}


def created_classes() -> frozenset[str]:
    """SOP Class UIDs of all that the node makes."""
    return frozenset(str(ds.SOPClassUID) for ds in (*make(1).segmentations, *make(1).reports))


def transfer_syntax() -> str:
    """The one in which results are written."""
    made = (*make(1).segmentations, *make(1).reports)
    return " or ".join({ds.file_meta.TransferSyntaxUID.name: None for ds in made})


def tables() -> Iterator[Table]:
    """Modules, attributes, report content and codes of all that the node makes."""
    samples = (make(1), make(2))
    segmentations = [(s, ds) for s in samples for ds in s.segmentations]
    reports = [(s, ds) for s in samples for ds in s.reports]
    for name, title, iod, objects in (
        ("seg", "Segmentation IOD", "segmentation", segmentations),
        ("sr", "Comprehensive 3D SR IOD", "comprehensive-3d-sr", reports),
    ):
        yield _modules(f"{name}_modules", f"Modules of the {title}", iod, objects)
        yield Table(
            name=f"{name}_attributes",
            title=f"Attributes of the {title}",
            columns=_COLUMNS,
            rows=tuple(_attributes(iod, objects)),
        )
    yield Table(
        name="sr_content",
        title="Content of the Comprehensive 3D SR",
        columns=("Content Item", "Relationship", "Value Type", "Presence", "Values"),
        rows=tuple(_content([ds for _, ds in reports], [ds for _, ds in reports], 0)),
    )
    yield _codes([ds for _, ds in segmentations], [ds for _, ds in reports])


def copied_attributes() -> str:
    """The optional attributes of patient and study that go over from the source where it has them."""
    optional = (keyword for keyword in PATIENT_AND_STUDY if keyword not in (*TYPE_2, "StudyInstanceUID"))
    return ", ".join(f"{dictionary_description(keyword)} {keyword_tag(keyword)}" for keyword in optional)


_Found = tuple[Samples, Dataset]


def _modules(name: str, title: str, iod: str, objects: Sequence[_Found]) -> Table:
    rows = []
    for module in _standard("iod_module_map.json")[iod]:
        keywords = _keywords(module["key"])
        if module["usage"] != "M" and not any(keyword in ds for _, ds in objects for keyword in keywords):
            continue
        rows.append((module["ie"], _title(module["key"]), module["usage"]))
    return Table(name=name, title=title, columns=("IE", "Module", "Usage"), rows=tuple(rows))


def _attributes(iod: str, objects: Sequence[_Found]) -> Iterator[tuple[str, ...]]:
    """Rows in the order of the IOD's modules; an attribute of several modules stands in the first of them."""
    left = {element.keyword for _, ds in objects for element in ds}
    for module in _standard("iod_module_map.json")[iod]:
        here = [keyword for keyword in _keywords(module["key"]) if keyword in left]
        left -= set(here)
        for keyword in here:
            yield from _rows(_title(module["key"]), keyword, objects, 0)
    if left:
        raise ValueError(f"{iod}: no module has {sorted(left)}")


def _rows(module: str, keyword: str, items: Sequence[_Found], depth: int) -> Iterator[tuple[str, ...]]:
    """The row of one attribute, and those of what is in its items."""
    found = [(sample, ds[keyword]) for sample, ds in items if keyword in ds]
    source, value = _origin(keyword, found, _NOTES.get(">" + keyword if depth else keyword, ""))
    name = ">" * depth + dictionary_description(keyword)
    presence = "ALWAYS" if len(found) == len(items) else "CONDITIONAL"
    yield module, name, keyword_tag(keyword), dictionary_VR(keyword), source, presence, value
    if dictionary_VR(keyword) != "SQ" or keyword in _NO_VALUE:
        return
    inner = [(sample, item) for sample, element in found for item in element.value]
    for key in _in_order(inner):
        if key not in _CODE or not all(_is_code(item) for _, item in inner):
            yield from _rows(module, key, inner, depth + 1)


def _origin(keyword: str, found: Sequence[tuple[Samples, Any]], note: str) -> tuple[str, str]:
    """SRC: equal to the source's own. FIXED: equal in all samples. AUTO: made for each object."""
    if keyword in _NO_VALUE:
        return "AUTO", note
    if dictionary_VR(keyword) == "SQ":
        codes = dict.fromkeys(_code_text(item) for _, element in found for item in element.value if _is_code(item))
        if codes:
            return ("FIXED" if len(codes) == 1 else "AUTO"), "; ".join([*codes, *([note] if note else [])])
        return "AUTO", note or ("empty" if not any(element.value for _, element in found) else "")
    values = dict.fromkeys(_text(element.value) for _, element in found)
    if all(keyword in sample.header and sample.header[keyword].value == element.value for sample, element in found):
        return "SRC", note
    if len(values) == 1 and len({id(sample) for sample, _ in found}) > 1:
        return "FIXED", next(iter(values)) or "empty"
    if not note and len(values) <= 3 and dictionary_VR(keyword) == "CS":
        return "AUTO", " or ".join(values)
    return "AUTO", note


def _content(parents: Sequence[Dataset], reports: Sequence[Dataset], depth: int) -> Iterator[tuple[str, ...]]:
    """The tree of all reports in one: items of one name, relationship and template are one row."""
    children: dict[tuple[str, ...], list[Dataset]] = {}
    holders: dict[tuple[str, ...], set[int]] = {}
    for number, parent in enumerate(parents):
        for item in parent.get("ContentSequence", ()):
            key = (_name(item), str(item.RelationshipType), str(item.ValueType), _template(item))
            children.setdefault(key, []).append(item)
            holders.setdefault(key, set()).add(number)
    if depth == 0:
        yield _name(reports[0]) + _template(reports[0]), "", "CONTAINER", "ALWAYS", ""
    for (name, relationship, value_type, template), items in children.items():
        presence = "ALWAYS" if len(holders[name, relationship, value_type, template]) == len(parents) else "CONDITIONAL"
        yield ">" * (depth + 1) + name + template, relationship, value_type, presence, _item_values(items)
        yield from _content(items, reports, depth + 1)


def _item_values(items: Iterable[Dataset]) -> str:
    values: dict[str, None] = {}
    for item in items:
        if item.ValueType == "CODE":
            values[_code_text(item.ConceptCodeSequence[0])] = None
        elif item.ValueType == "NUM":
            values["in " + _code_text(item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0])] = None
        elif item.ValueType == "SCOORD":
            values[str(item.GraphicType)] = None
    return "; ".join(values)


def _codes(segmentations: Sequence[Dataset], reports: Sequence[Dataset]) -> Table:
    used: dict[tuple[str, str, str], list[str]] = {}
    for where, objects in (("SEG", segmentations), ("SR", reports)):
        for code in {_code(item): None for ds in objects for item in _nested(ds) if _is_code(item)}:
            used.setdefault(code, []).append(where)
    rows = sorted(((scheme, value, meaning, ", ".join(where)) for (value, scheme, meaning), where in used.items()))
    return Table(
        name="codes",
        title="Codes in created objects",
        columns=("Coding Scheme Designator", "Code Value", "Code Meaning", "Used in"),
        rows=tuple(rows),
    )


def _nested(ds: Dataset) -> Iterator[Dataset]:
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                yield item
                yield from _nested(item)


def _is_code(item: Dataset) -> bool:
    return "CodingSchemeDesignator" in item and "CodeMeaning" in item


def _code(item: Dataset) -> tuple[str, str, str]:
    value = item.get("CodeValue") or item.get("LongCodeValue")
    return str(value), str(item.CodingSchemeDesignator), str(item.CodeMeaning)


def _code_text(item: Dataset) -> str:
    """As PS3.16 writes codes."""
    value, scheme, meaning = _code(item)
    return f'({value}, {scheme}, "{meaning}")'


def _name(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence")
    return _code_text(names[0]) if names else "(no name)"


def _template(item: Dataset) -> str:
    templates = item.get("ContentTemplateSequence")
    return f", TID {templates[0].TemplateIdentifier}" if templates else ""


def _in_order(items: Iterable[_Found]) -> list[str]:
    keywords = {element.keyword for _, ds in items for element in ds}
    return sorted(keywords, key=lambda keyword: tag_for_keyword(keyword) or 0)


def _text(value: Any) -> str:
    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)


def keyword_tag(keyword: str) -> str:
    """(gggg,eeee)."""
    tag = tag_for_keyword(keyword) or 0
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _title(key: str) -> str:
    words = {"sop": "SOP", "sr": "SR", "of": "of"}
    text = key.replace("multi-frame", "multi_frame").replace("-", " ")
    return " ".join(words.get(word, word.capitalize()) for word in text.split()).replace("_", "-")


def _keywords(module: str) -> list[str]:
    """Attributes at the top of a module of PS3.3."""
    return [each["keyword"] for each in _standard("module_attribute_map.json").get(module, ()) if not each["path"]]


@cache
def _standard(name: str) -> Any:
    """PS3.3's IODs and modules as highdicom 0.28 brings them, made from the standard's own text."""
    return json.loads(resources.files("highdicom").joinpath("_standard", name).read_text())
