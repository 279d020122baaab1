"""The codes and names of a Segment, or the name of an ROI -> whether it marks a nodule.

Viewers say little of what was drawn in them. OHIF, and 3D Slicer unless told, code everything as Tissue of type Tissue;
MONAI Label codes everything as an anatomical structure (its type says spleen) and puts what it is into the label.
"""

from __future__ import annotations

import re
from typing import Literal

from pydicom.dataset import Dataset

# vague: nothing but that somebody drew it.
Marks = Literal["nodule", "vague", "other"]
# PS3.16 CID 7150, in the codes of SNOMED CT and of SNOMED RT.
_ANATOMY = {("SCT", "123037004"), ("SRT", "T-D000A"), ("SCT", "91723000")}
_TISSUE = {("SCT", "85756007"), ("SRT", "T-D0050")}
_NAMED = re.compile(r"nodul|lesion|gtv|tumou?r|\bmass\b|metasta|knoten|herd", re.IGNORECASE)
_OWN_LABEL = re.compile(r"Nodule \d{1,6}")
# Of one nodule; a sphere of 124 mm. What is larger was no nodule, and might be drawn to fill our memory.
MOST_MM3 = 1e6


def marks(segment: Dataset) -> Marks:
    """The first that says something: its name, its category, its type.

    A name that says nodule outweighs the codes. Tissue of type Tissue says nothing: it is a nodule as long as it may be
    one by its size; tissue of another type (bone, artery) is none.
    """
    if any(named_nodule(segment.get(keyword)) for keyword in ("TrackingID", "SegmentLabel")):
        return "nodule"
    category = _codes(segment, "SegmentedPropertyCategoryCodeSequence")
    if category & _ANATOMY:
        return "other"
    if category & _TISSUE:
        return "vague" if _codes(segment, "SegmentedPropertyTypeCodeSequence") & _TISSUE else "other"
    return "nodule"


def named_nodule(name: object) -> bool:
    return _NAMED.search(str(name or "")) is not None


def own_label(text: object) -> str:
    """A name of our own form; anything else may hold anything, a patient's name among it."""
    return str(text) if _OWN_LABEL.fullmatch(str(text)) else ""


def _codes(segment: Dataset, keyword: str) -> set[tuple[str, str]]:
    return {(str(c.get("CodingSchemeDesignator")), str(c.get("CodeValue"))) for c in segment.get(keyword) or ()}
