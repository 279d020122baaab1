"""What a report speaks of -> the code for it: of a standard scheme where one has it, else of our own."""

from __future__ import annotations

from typing import get_args

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicom_node.comparison import Change
from dicom_node.identity import CODING_SCHEME
from dicom_node.results.nodule_type import NoduleType

# Statements of a whole report.
COMPLETENESS = Code("COMPLETENESS", CODING_SCHEME, "Series completeness")
SLICES_ANALYSED = Code("SLICES_ANALYSED", CODING_SCHEME, "Slices analysed")
LEFT_OUT = Code("LEFT_OUT", CODING_SCHEME, "Instances left out")
MODEL = Code("MODEL", CODING_SCHEME, "Model")
REASON = Code("REASON", CODING_SCHEME, "Reason for no analysis")
LOSSY = Code("LOSSY", CODING_SCHEME, "Lossy compression of the images")
REPLACES = Code("REPLACES", CODING_SCHEME, "Replaces report")
HOW_MEASURED = Code("HOW_MEASURED", CODING_SCHEME, "How it was measured")
COMPARISON = Code("COMPARISON", CODING_SCHEME, "Comparison with an earlier CT")
COMPARED_REPORT = Code("COMPARED_REPORT", CODING_SCHEME, "Compared with report")
COMPARED_SERIES = Code("COMPARED_SERIES", CODING_SCHEME, "Compared with series")
REGISTRATION = Code("REGISTRATION", CODING_SCHEME, "Quality of the registration")
GROWTH_RULE = Code("GROWTH_RULE", CODING_SCHEME, "Rule of growth")
EARLIER_NODULE = Code("EARLIER_NODULE", CODING_SCHEME, "Earlier nodule without a finding now")

# Of one finding. Earlier values have names of their own and no modifier of the present ones': a reader that knows no
# modifiers would take the earlier volume for the present one.
SCORE = Code("SCORE", CODING_SCHEME, "Detection score")
OPERATING_POINT = Code("OPERATING_POINT", CODING_SCHEME, "Operating point")
VOLUME_SD = Code("VOLUME_SD", CODING_SCHEME, "Standard deviation of the volume")
BOUNDING_BOX = Code("BOUNDING_BOX", CODING_SCHEME, "Bounding box")
EARLIER_VOLUME = Code("EARLIER_VOLUME", CODING_SCHEME, "Volume at the earlier CT")
EARLIER_LONG_AXIS = Code("EARLIER_LONG_AXIS", CODING_SCHEME, "Long axis at the earlier CT")
EARLIER_SHORT_AXIS = Code("EARLIER_SHORT_AXIS", CODING_SCHEME, "Short axis at the earlier CT")
VOLUME_CHANGE = Code("VOLUME_CHANGE", CODING_SCHEME, "Change of volume since the earlier CT")
DOUBLING_TIME = Code("DOUBLING_TIME", CODING_SCHEME, "Volume doubling time")
DOUBLING_TIME_LOW = Code("DOUBLING_TIME_L", CODING_SCHEME, "Volume doubling time, lower bound of 95 % interval")
DOUBLING_TIME_HIGH = Code("DOUBLING_TIME_H", CODING_SCHEME, "Volume doubling time, upper bound of 95 % interval")
INTERVAL = Code("INTERVAL", CODING_SCHEME, "Time since the earlier CT")
NOT_JUDGED = Code("NOT_JUDGED", CODING_SCHEME, "Reason for no statement on change")

# Measurement methods, HAS CONCEPT MOD (370129005, SCT, "Measurement Method").
MEAN_OF_AXES = Code("MEAN_OF_AXES", CODING_SCHEME, "Mean of long and short axis, to the millimetre")
EQUAL_SPHERE = Code("EQUAL_SPHERE", CODING_SCHEME, "Of the sphere with the same volume")

# CID 7464 has no percentile but the median, and no standard scheme the quartiles. The outer two are CID 226's; others
# (3D Slicer) write them as a derivation, too.
PERCENTILES = {
    5: Code("371888009", "SCT", "5th percentile"),
    25: Code("P25", CODING_SCHEME, "25th percentile"),
    50: codes.SCT.Median,
    75: Code("P75", CODING_SCHEME, "75th percentile"),
    95: Code("371889001", "SCT", "95th percentile"),
}

# As LIDC-IDRI's outlines have it in DICOM (Fedorov et al., Med Phys 2020;47:5953): the only published coding.
TEXTURE = Code("C41144", "NCIt", "Texture")
NODULE_TYPE = {
    NoduleType.SOLID: Code("RID50151", "RADLEX", "solid pulmonary nodule"),
    NoduleType.PART_SOLID: Code("RID50152", "RADLEX", "part-solid pulmonary nodule"),
    NoduleType.GROUND_GLASS: Code("RID50153", "RADLEX", "non-solid (ground glass) pulmonary nodule"),
}

UNDETERMINED = Code("373068000", "SCT", "Undetermined")

# Values of (111049, DCM, "Qualitative Difference"). CID 6134's "no significant changes" is SNOMED's for mammograms.
CHANGE: dict[Change, Code] = {
    "new": Code("7147002", "SCT", "New"),
    "grown": codes.SCT.IncreaseInSize,
    "stable": Code("58158008", "SCT", "Stable"),
    "shrunk": codes.SCT.DecreaseInSize,
    "not_judged": Code("82334004", "SCT", "Indeterminate"),
}
if set(CHANGE) != set(get_args(Change)):
    raise ValueError("a change has no code")

QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")  # PS3.16 TID 1500, row 12
SOURCE = Code("260753009", "SCT", "Source")  # of an image that something was selected from
ENGLISH = Code("en-US", "RFC5646", "English (United States)")
