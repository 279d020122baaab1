"""Objects that the node made -> tables of what stands in them. Nothing here is told: each row was seen in a sample."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from pydicom.datadict import dictionary_description, dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import (
    BasicTextSRStorage,
    ChestCADSRStorage,
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from dicom_node.conformance.document import Table
from dicom_node.conformance.sample import Samples, make
from dicom_node.profiles import BUILT_IN_PROFILES, COLUMNS, in_words
from dicom_node.results.headers import PATIENT_AND_STUDY, SERIES_NUMBER, TYPE_2, Kind

_LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"

_COLUMNS = ("Module", "Attribute Name", "Tag", "VR", "Source", "Presence", "Value")
_CODE = {"CodeValue", "LongCodeValue", "CodingSchemeDesignator", "CodeMeaning"}
# Binary, the tree of the report (Annex A.B), and what is only there to be a UID of a sample.
_NO_VALUE = {"PixelData", "ContentSequence", "EncapsulatedDocument"}

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
    "NumberOfFrames": "of a segmentation: one for each slice that a segment occupies, or each slice; else pages",
    "DimensionIndexSequence": "segment, then position, feet to head",
    "DimensionOrganizationType": "3D, with one segment in evenly spaced slices",
    "SegmentationFractionalType": "in a fractional one",
    "MaximumFractionalValue": "in a fractional one",
    "PixelPaddingValue": "in a label map: no segment",
    "BitsAllocated": "1 in a binary segmentation, 8 in a fractional one, 8 or 16 in a label map",
    "BitsStored": "equal to Bits Allocated",
    "HighBit": "Bits Stored less 1",
    "SOPClassUID": "Label Map Segmentation for a label map, else Segmentation",
    "PertinentOtherEvidenceSequence": "the report on an earlier CT that findings are compared with",
    "CompletionFlagDescription": "why it is PARTIAL",
    "InstanceNumber": "number of the page",
    "PageNumberVector": "1, 2 ...",
    "ImageComments": "what the page shows",
    "PresentationCreationDate": "date of the job",
    "PresentationCreationTime": "time of the job",
    "DocumentTitle": "what the object is, and: Research use, not for diagnosis",
    "SourceInstanceSequence": "all Instances of the source series",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Iod:
    """One kind of object. name: of its tables. key: as highdicom's copy of PS3.3 has it. content: it has a tree."""

    name: str
    title: str
    key: str
    classes: tuple[str, ...]
    content: bool = False


# The Label Map Segmentation IOD has the Segmentation IOD's modules (PS3.3 A.51, A.93).
IODS = (
    Iod(name="seg", title="Segmentation IOD", key="segmentation", classes=(SegmentationStorage, _LABEL_MAP)),
    Iod(
        name="sr",
        title="Comprehensive 3D SR IOD",
        key="comprehensive-3d-sr",
        classes=(Comprehensive3DSRStorage,),
        content=True,
    ),
    Iod(name="text", title="Basic Text SR IOD", key="basic-text-sr", classes=(BasicTextSRStorage,), content=True),
    Iod(name="cad", title="Chest CAD SR IOD", key="chest-cad-sr", classes=(ChestCADSRStorage,), content=True),
    Iod(
        name="capture",
        title="Secondary Capture Image IOD",
        key="secondary-capture-image",
        classes=(SecondaryCaptureImageStorage,),
    ),
    Iod(
        name="frames",
        title="Multi-frame True Color Secondary Capture Image IOD",
        key="multi-frame-true-color-secondary-capture-image",
        classes=(MultiFrameTrueColorSecondaryCaptureImageStorage,),
    ),
    Iod(
        name="key_objects",
        title="Key Object Selection Document IOD",
        key="key-object-selection-document",
        classes=(KeyObjectSelectionDocumentStorage,),
        content=True,
    ),
    Iod(
        name="presentation",
        title="Grayscale Softcopy Presentation State IOD",
        key="grayscale-softcopy-presentation-state",
        classes=(GrayscaleSoftcopyPresentationStateStorage,),
    ),
    Iod(name="pdf", title="Encapsulated PDF IOD", key="encapsulated-pdf", classes=(EncapsulatedPDFStorage,)),
)


def created_classes() -> frozenset[str]:
    """SOP Class UIDs of all that the node makes."""
    return frozenset(str(ds.SOPClassUID) for ds in make(1).objects)


def transfer_syntax() -> str:
    """The one in which results are written."""
    return " or ".join({ds.file_meta.TransferSyntaxUID.name: None for ds in make(1).objects})


def tables() -> Iterator[Table]:
    """Modules, attributes, report content and codes of all that the node makes."""
    made = [(sample, ds) for sample in (make(1), make(2)) for ds in sample.objects]
    for iod in IODS:
        objects = [(sample, ds) for sample, ds in made if ds.SOPClassUID in iod.classes]
        yield _modules(f"{iod.name}_modules", f"Modules of the {iod.title}", iod.key, objects)
        yield Table(
            name=f"{iod.name}_attributes",
            title=f"Attributes of the {iod.title}",
            columns=_COLUMNS,
            rows=tuple(_attributes(iod, objects)),
        )
        if iod.content:
            documents = [ds for _, ds in objects]
            yield Table(
                name=f"{iod.name}_content",
                title=f"Content of the {iod.title.removesuffix(' IOD')}",
                columns=("Content Item", "Relationship", "Value Type", "Presence", "Values"),
                rows=tuple(_content(documents, documents, 0)),
            )
    yield _profiles()
    yield _codes([ds for _, ds in made])


def _profiles() -> Table:
    return Table(
        name="profiles",
        title="Objects of the built-in profiles",
        columns=("peers.NAME.profile", *COLUMNS),
        rows=tuple((f"`{name}`", *in_words(profile)) for name, profile in BUILT_IN_PROFILES.items()),
    )


def copied_attributes() -> str:
    """The optional attributes of patient and study that go over from the source where it has them."""
    optional = (keyword for keyword in PATIENT_AND_STUDY if keyword not in (*TYPE_2, "StudyInstanceUID"))
    return ", ".join(f"{dictionary_description(keyword)} {keyword_tag(keyword)}" for keyword in optional)


_Found = tuple[Samples, Dataset]


def _modules(name: str, title: str, iod: str, objects: Sequence[_Found]) -> Table:
    rows = []
    present = {element.keyword for _, ds in objects for element in ds}
    for module in _standard("iod_module_map.json")[iod]:
        if module["usage"] != "M" and present.isdisjoint(_keywords(module["key"])):
            continue
        rows.append((module["ie"], _title(module["key"]), module["usage"]))
    return Table(name=name, title=title, columns=("IE", "Module", "Usage"), rows=tuple(rows))


def _attributes(iod: Iod, objects: Sequence[_Found]) -> Iterator[tuple[str, ...]]:
    """Rows in the order of the IOD's modules; an attribute of several modules stands in the first of them."""
    left = {element.keyword for _, ds in objects for element in ds}
    for module in _standard("iod_module_map.json")[iod.key]:
        here = [keyword for keyword in _keywords(module["key"]) if keyword in left]
        left -= set(here)
        for keyword in here:
            yield from _rows(_title(module["key"]), keyword, objects, 0)
    if left:
        raise ValueError(f"{iod.key}: no module has {sorted(left)}")


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


def _codes(objects: Sequence[Dataset]) -> Table:
    used: dict[tuple[str, str, str], dict[str, None]] = {}
    for ds in objects:
        for code in {_code(item): None for item in _nested(ds) if _is_code(item)}:
            used.setdefault(code, {})[str(ds.Modality)] = None
    rows = sorted(((scheme, value, meaning, ", ".join(where)) for (value, scheme, meaning), where in used.items()))
    return Table(
        name="codes",
        title="Codes in created objects",
        columns=("Coding Scheme Designator", "Code Value", "Code Meaning", "Used in objects of Modality"),
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
    words = {"sop": "SOP", "sr": "SR", "sc": "SC", "voi": "VOI", "lut": "LUT", "of": "of"}
    text = key.replace("multi-frame", "multi_frame").replace("-", " ")
    return " ".join(words.get(word, word.capitalize()) for word in text.split()).replace("_", "-")


def _keywords(module: str) -> list[str]:
    """Attributes at the top of a module of PS3.3."""
    return [each["keyword"] for each in _standard("module_attribute_map.json").get(module, ()) if not each["path"]]


@cache
def _standard(name: str) -> Any:
    """PS3.3's IODs and modules as highdicom 0.28 brings them, made from the standard's own text."""
    return json.loads(resources.files("highdicom").joinpath("_standard", name).read_text())
