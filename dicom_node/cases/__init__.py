"""Corrections -> training cases: CT, Segmentation of the truth and a note, in parts that keep patients apart."""

from dicom_node.cases.export import Exported, export_cases

__all__ = ["Exported", "export_cases"]
