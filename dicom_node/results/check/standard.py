"""SOP Class UID -> the attributes that PS3.3 asks for, nested as in the data set.

The only module that touches highdicom's tables of IODs and modules. They are private there, and the one copy of PS3.3
in a form for machines that comes with a package we use: hence the pinned version. They hold types, no conditions:
`conditions` has those of the modules that we write. They know the label map's class under the Segmentation IOD.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from highdicom import _standard_utils as tables
from pydicom.datadict import tag_for_keyword

from dicom_node.results.headers import PATIENT_AND_STUDY

_STRICTEST_FIRST = ("1", "2", "1C", "2C", "3", "None")

# Content trees are recursive, which the tables are not: `content` has their rules. Functional groups: `segments` knows
# which of them stand in the shared and which in the frames' own.
_ELSEWHERE = ("sr-document-content",)
_FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


@dataclass(slots=True)
class Attribute:
    """type: 1, 1C, 2, 2C or 3 (PS3.5 7.4). items: of a sequence's items, by keyword."""

    type: str
    items: dict[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Of one level of a data set. required: (tag, keyword, type) of types 1 and 2, conditional: of 1C and 2C.

    filled: sequences that have an item where they are there: all but those of type 2 and 2C.
    items: tag of a sequence -> the rules of its items.
    """

    required: tuple[tuple[int, str, str], ...]
    conditional: tuple[tuple[int, str, str], ...]
    filled: frozenset[int]
    items: Mapping[int, Rules]


@cache
def is_known(sop_class_uid: str) -> bool:
    return sop_class_uid in tables.get_sop_class_iod_map()


@cache
def rules(sop_class_uid: str, also: frozenset[str]) -> Rules:
    """Of all mandatory modules and of those named in `also`; of the others what stands inside their sequences."""
    attributes: dict[str, Attribute] = {}
    iod = tables.get_sop_class_iod_map()[sop_class_uid]
    for module in tables.get_iod_module_map()[iod]:
        key = module["key"]
        if key not in _ELSEWHERE:
            _merge(attributes, tables.get_module_attribute_map()[key], module["usage"] == "M" or key in also)
    for keyword in PATIENT_AND_STUDY:
        if keyword in attributes:
            attributes[keyword].items.clear()  # copied as it came: the source's own affair
    for keyword in _FUNCTIONAL_GROUPS:
        for group in attributes.get(keyword, Attribute("3")).items.values():
            group.type = "3"
    return _compiled(attributes)


def _merge(attributes: dict[str, Attribute], module: list[dict[str, object]], mandatory: bool) -> None:
    for entry in module:
        path, keyword, kind = list(entry["path"]), str(entry["keyword"]), str(entry["type"])  # type: ignore[call-overload]
        level = attributes
        for part in path:
            level = level.setdefault(part, Attribute("3")).items
        if not (path or mandatory):
            kind = "3"
        known = level.get(keyword)
        if known is None:
            level[keyword] = Attribute(kind)
        elif _STRICTEST_FIRST.index(kind) < _STRICTEST_FIRST.index(known.type):
            known.type = kind


def _compiled(attributes: Mapping[str, Attribute]) -> Rules:
    by_tag = [(tag_for_keyword(keyword), keyword, attribute) for keyword, attribute in attributes.items()]
    known = [(int(tag), keyword, attribute) for tag, keyword, attribute in by_tag if tag is not None]
    return Rules(
        required=tuple((tag, keyword, a.type) for tag, keyword, a in known if a.type in ("1", "2")),
        conditional=tuple((tag, keyword, a.type) for tag, keyword, a in known if a.type in ("1C", "2C")),
        filled=frozenset(tag for tag, _, a in known if a.items and a.type not in ("2", "2C")),
        items={tag: _compiled(a.items) for tag, _, a in known if a.items},
    )
