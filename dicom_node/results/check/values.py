"""One data element -> what is wrong with its value: VR, length, characters, number of values (PS3.5 6.2, 6.4)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydicom.charset import python_encoding
from pydicom.config import RAISE
from pydicom.datadict import dictionary_VM, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.multival import MultiValue
from pydicom.valuerep import validate_value

# Copied from the source digit by digit, too many digits included: viewers join frames to images by them.
_COPIED_DIGITS = {0x00200032, 0x00200037, 0x00280030}
_TEXT = {"LO", "LT", "PN", "SH", "ST", "UC", "UT"}
_NUMBERS = {"FD", "FL", "SL", "SS", "UL", "US"}
_UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+")

ENUMERATED: Mapping[str, Sequence[str]] = {
    "SegmentationType": ("BINARY", "FRACTIONAL", "LABELMAP"),
    "SegmentationFractionalType": ("PROBABILITY", "OCCUPANCY"),
    "SegmentAlgorithmType": ("AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"),
    "SegmentsOverlap": ("YES", "UNDEFINED", "NO"),
    "LossyImageCompression": ("00", "01"),
    "BurnedInAnnotation": ("YES", "NO"),
    "ConversionType": ("DV", "DI", "DF", "WSD", "SD", "SI", "DRW", "SYN"),
    "CompletionFlag": ("COMPLETE", "PARTIAL"),
    "VerificationFlag": ("VERIFIED", "UNVERIFIED"),
    "PreliminaryFlag": ("PRELIMINARY", "FINAL"),
    "ContinuityOfContent": ("SEPARATE", "CONTINUOUS"),
    "PresentationLUTShape": ("IDENTITY", "INVERSE"),
    "PresentationSizeMode": ("SCALE TO FIT", "TRUE SIZE", "MAGNIFY"),
    "GraphicAnnotationUnits": ("PIXEL", "DISPLAY", "MATRIX"),
    "BoundingBoxAnnotationUnits": ("PIXEL", "DISPLAY", "MATRIX"),
    "AnchorPointAnnotationUnits": ("PIXEL", "DISPLAY", "MATRIX"),
    "GraphicFilled": ("Y", "N"),
    "MIMETypeOfEncapsulatedDocument": ("application/pdf",),
}


@lru_cache(4096)
def keyword(tag: int) -> str:
    return keyword_for_tag(tag)


def fault(element: DataElement, charset: str) -> str | None:
    """None where the value may stand. charset: SpecificCharacterSet of the data set. Never quotes the value."""
    tag = int(element.tag)
    if tag >> 16 & 1:
        return "is a private attribute"
    if element.VR not in _known_vr(tag):
        return f"has the VR {element.VR}"
    values = _values(element)
    if values and not _may_have(tag, len(values)):
        return f"has {len(values)} values"
    allowed = ENUMERATED.get(keyword(tag))
    for value in values:
        if allowed is not None and value not in allowed:
            return "has a value that is not among those allowed"
        wrong = _of_one(element, value, charset)
        if wrong:
            return wrong
    return None


def is_empty(element: DataElement) -> bool:
    value = element.value
    if value is None or isinstance(value, (int, float)):
        return value is None
    return not (len(value) if isinstance(value, (str, bytes, Sequence)) else str(value))


def _values(element: DataElement) -> Sequence[Any]:
    if is_empty(element):
        return ()
    value = element.value
    return value if isinstance(value, (MultiValue, list, tuple)) else (value,)


def _of_one(element: DataElement, value: Any, charset: str) -> str | None:
    vr = element.VR
    if vr in _NUMBERS:
        return None if _validated(vr, value) else f"is no {vr}"
    if vr in ("OB", "OW", "AT", "SQ", "OF", "OD", "UN"):
        return None
    text = str(value)
    if vr in _TEXT and not _encodable(text, charset):
        return "has characters that SpecificCharacterSet has not"
    if vr == "UI" and not (len(text) <= 64 and _UID.fullmatch(text)):
        return "is no UID"
    if vr == "DS" and element.tag in _COPIED_DIGITS:
        return None
    return None if _validated(vr, text) else f"is no {vr}"


@lru_cache(4096)
def _validated(vr: str, value: Any) -> bool:
    try:
        validate_value(vr, value, RAISE)
    except (ValueError, TypeError):
        return False
    return True


def _encodable(text: str, charset: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode(python_encoding[charset])
    except (KeyError, UnicodeEncodeError):
        return False
    return bool(charset)


@lru_cache(1024)
def _known_vr(tag: int) -> frozenset[str]:
    try:
        return frozenset(dictionary_VR(tag).split(" or "))
    except KeyError:
        return frozenset()


@lru_cache(1024)
def _may_have(tag: int, count: int) -> bool:
    """Whether the data dictionary (PS3.6) allows so many values: "1", "1-3", "2-n", "2-2n"."""
    low, _, high = dictionary_VM(tag).partition("-")
    if not high:
        return count == int(low)
    step = re.fullmatch(r"(\d*)n", high)
    if step is None:
        return int(low) <= count <= int(high)
    return count >= int(low) and count % int(step[1] or 1) == 0
