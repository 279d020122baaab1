"""A header's value -> what a text about it may quote: a number, a term of the standard, a known kernel.

Anything else may name the patient, wherever it stands: a technologist types names into descriptions, a broken modality
puts them into coded strings. Texts are stored, logged and sent, so the attribute is named and its value is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword

from dicom_node.metrics.catalogue import OTHER
from dicom_node.metrics.vocabulary import Acquisition, kernel_label

HIDDEN = "a value not shown here"
_PATIENT_GROUP = 0x0010
_NUMBERS = frozenset({"DS", "IS", "US", "SS", "UL", "SL", "FD", "FL", "US or SS"})
# Rows, distances, voltages. What is larger may be a date or a patient's number.
_LARGEST = 100_000.0
_MOST_SHOWN = 6
_TERMS = frozenset(
    # Modality and the sides; Image Type and its like; Rescale Type; of a frame; compression; CID 4, what CT shows.
    """
    CT MR PT NM XA RF CR DX DR MG US OT SC SR SEG PR KO DOC REG RTSTRUCT RTDOSE RTPLAN RTIMAGE ES GM SM OP IVUS
    ORIGINAL DERIVED PRIMARY SECONDARY AXIAL LOCALIZER VOLUME REFORMATTED MPR MIP SCREEN SAVE NONE RESAMPLED
    MAX_IP MIN_IP VOLUME_RENDER SURFACE_RENDER CURVED_MPR MIXED SAMPLED DISTORTED COLOR TRUE_COLOR MONOCHROME
    MONOCHROME1 MONOCHROME2 RGB PALETTE OD HU MGML Z_EFF ED EDW HU_MOD PCT MEASUREMENT TOPOGRAM SCOUT PROJECTION
    SPIRAL SEQUENCED CONSTANT_ANGLE STATIONARY FREE HFS HFP FFS FFP HFDR HFDL FFDR FFDL
    ISO_10918_1 ISO_14495_1 ISO_15444_1 ISO_15444_15 ISO_13818_2 ISO_14496_10 ISO_23008_2
    CHEST THORAX LUNG HEAD BRAIN SKULL NECK ABDOMEN PELVIS HEART SPINE CSPINE TSPINE LSPINE LEG ARM KNEE HIP HAND FOOT
    ANKLE SHOULDER ELBOW WRIST AORTA LIVER KIDNEY WHOLEBODY CHESTABDOMEN CHESTABDPELVIS ABDOMENPELVIS NECKCHEST
    YES NO L R A P M F O 00 01
    """.split()  # noqa: SIM905  a word a line would be a page
)


def shown(keyword: str, found: Iterable[Any]) -> str:
    """The values of one attribute, as far as a text may hold them."""
    told = list(found)
    if not told:
        return "absent"
    if len(told) > _MOST_SHOWN or not all(_may_be_told(keyword, value) for value in told):
        return HIDDEN
    return " \\ ".join(str(value).strip() for value in told)


def differing(keyword: str, kinds: Iterable[Sequence[Any]]) -> str:
    """What several images say where they should say the same."""
    told = sorted({shown(keyword, values) for values in kinds})
    return ", ".join(told) if HIDDEN not in told and len(told) <= _MOST_SHOWN else "their values are not shown here"


def is_term(value: Any) -> bool:
    """Whether it is a word that the standard has for such places."""
    return str(value).strip().upper() in _TERMS


def _may_be_told(keyword: str, value: Any) -> bool:
    tag = tag_for_keyword(keyword)
    if tag is not None and tag >> 16 == _PATIENT_GROUP:
        return False
    if is_term(value):
        return True
    if keyword == "ConvolutionKernel":
        return kernel_label(Acquisition(kernel=str(value))) != OTHER
    return _vr(keyword) in _NUMBERS and _is_small_number(value)


def _vr(keyword: str) -> str:
    try:
        return dictionary_VR(keyword)
    except KeyError:
        return ""


def _is_small_number(value: Any) -> bool:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return math.isfinite(number) and abs(number) < _LARGEST
