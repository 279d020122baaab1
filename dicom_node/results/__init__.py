"""Findings -> DICOM SEG, Structured Report and pictures. Pure: no file, no network, no clock."""

from dicom_node.results.build import Results, build_rejection, build_results, finding_rows
from dicom_node.results.measure import Measurement, measure
from dicom_node.results.part10 import to_bytes
from dicom_node.results.reading import Predecessor

__all__ = [
    "Measurement",
    "Predecessor",
    "Results",
    "build_rejection",
    "build_results",
    "finding_rows",
    "measure",
    "to_bytes",
]
