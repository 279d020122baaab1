"""Objects that a peer sent of what a radiologist corrected -> rows that say what became of our findings.

`intake` keeps the rows; `analyses` says which analysis an object is about, `examining` what it says of it, `shown` what
people and programs are told, `figures` what many of them add up to. What is pure lies in `corrections`.
"""

from dicom_node.reviews.examining import Examined
from dicom_node.reviews.figures import figures, newest_of_each, table
from dicom_node.reviews.intake import Reviews
from dicom_node.reviews.shown import corrections_of, newest_corrections, shown

__all__ = [
    "Examined",
    "Reviews",
    "corrections_of",
    "figures",
    "newest_corrections",
    "newest_of_each",
    "shown",
    "table",
]
