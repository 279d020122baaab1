"""No value of a header gets into what is said of a series, but numbers, the standard's terms and known kernels."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataelem import DataElement
from pydicom.uid import EnhancedCTImageStorage

from dicom_node.config import Condition, GateConfig, RouteConfig
from dicom_node.errors import SeriesRejected
from dicom_node.routing import choose, facts_of
from dicom_node.series import check_series
from dicom_node.series.headers import InstanceFile
from dicom_node.series.shown import HIDDEN, differing, shown
from tests.unit.test_series import headers

CANARY = "Kanarie"
HEADERS = headers(4)
# But for the UIDs by which a series is found at all: the receiver has looked at those.
_KEYWORDS = sorted(
    {"Modality", "ImageType", "RescaleType", "ConvolutionKernel", "SliceThickness", "PixelSpacing", "Rows"}
    | {"FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "NumberOfFrames"}
    | {"PixelPresentation", "VolumetricProperties", "VolumeBasedCalculationTechnique", "GantryDetectorTilt"}
    | {"LossyImageCompression", "LossyImageCompressionMethod", "LossyImageCompressionRatio", "PixelRepresentation"}
    | {"BitsAllocated", "SamplesPerPixel", "Columns", "SeriesDescription", "InstitutionName", "BodyPartExamined"}
    | {"PatientName", "PatientID", "AccessionNumber", "ReferringPhysicianName", "ProtocolName"}
)
_ROUTES = [
    RouteConfig(name=f"r{number}", model="m", when={keyword: Condition(equals="CHEST")})
    for number, keyword in enumerate(_KEYWORDS)
]


def said(files: list[InstanceFile]) -> str:
    """All that gate and routing say of a series."""
    texts: list[str] = []
    series = None
    try:
        series = check_series(files, GateConfig(lossy="refuse", min_slices=2, min_length_mm=1))
        texts += series.left_out.values()
    except SeriesRejected as err:
        texts.append(err.text)
    for route in _ROUTES:
        texts += choose([route], facts_of(files, series, "SENDER")).explain()
    return "\n".join(texts)


def spoilt(keywords: set[str], value: str, *, one: bool, enhanced: bool) -> list[InstanceFile]:
    files = []
    for number, header in enumerate(copy.deepcopy(HEADERS)):
        if enhanced:
            header.SOPClassUID = EnhancedCTImageStorage
        for keyword in keywords:
            if not one or number == 1:
                header[keyword] = DataElement(keyword, "LO", value)
        files.append(InstanceFile(path=f"{number}.dcm", header=header))
    return files


@pytest.mark.parametrize("keyword", _KEYWORDS)
@pytest.mark.parametrize("one", [True, False], ids=["in one image", "in all"])
def test_a_name_in_any_attribute_is_in_no_reason_and_no_explanation(keyword: str, one: bool) -> None:
    for value in (f"{CANARY}^Zybelle", "19330917", f"CT\\{CANARY}"):
        for enhanced in (False, True):
            text = said(spoilt({keyword}, value, one=one, enhanced=enhanced))
            assert CANARY not in text
            assert "19330917" not in text


@settings(max_examples=30, deadline=None)
@given(keywords=st.sets(st.sampled_from(_KEYWORDS), min_size=1), one=st.booleans(), enhanced=st.booleans())
def test_a_name_in_any_set_of_attributes_is_in_no_reason(keywords: set[str], one: bool, enhanced: bool) -> None:
    text = said(spoilt(keywords, CANARY, one=one, enhanced=enhanced))
    assert CANARY not in text


def test_what_helps_an_operator_is_still_told() -> None:
    assert shown("Modality", ["MR"]) == "MR"
    assert shown("ImageType", ["ORIGINAL", "PRIMARY", "AXIAL"]) == "ORIGINAL \\ PRIMARY \\ AXIAL"
    assert shown("SliceThickness", ["1.25"]) == "1.25"
    assert shown("ConvolutionKernel", ["Br40d\\3"]) == "Br40d\\3"
    assert shown("BodyPartExamined", []) == "absent"
    assert differing("ConvolutionKernel", [["B30f"], ["B70f"]]) == "B30f, B70f"
    assert shown("BodyPartExamined", ["Kanarie"]) == HIDDEN
    assert shown("PatientID", [4711]) == HIDDEN
