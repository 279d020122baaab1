"""What a radiologist made of our results: objects that come back -> what they refer to -> regions -> what changed.

Pure: data sets and grids go in, plain values come out. `reviews` keeps the rows, `cases` makes training cases.
"""

from dicom_node.corrections.compare import compare
from dicom_node.corrections.reading import read_correction, read_ours
from dicom_node.corrections.references import KINDS, References, references_of
from dicom_node.corrections.words import Compared, Drawn, Kind, Ours, Region, SourceGrid

__all__ = [
    "KINDS",
    "Compared",
    "Drawn",
    "Kind",
    "Ours",
    "References",
    "Region",
    "SourceGrid",
    "compare",
    "read_correction",
    "read_ours",
    "references_of",
]
