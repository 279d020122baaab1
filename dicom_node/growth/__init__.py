"""Stand-in until growth is merged."""

from __future__ import annotations

from typing import Any

from pydicom.dataset import Dataset

from dicom_node.comparison import Comparison
from dicom_node.identity import MANUFACTURER, MODEL_NAME


def is_ours(header: Dataset) -> bool:
    return bool(header.get("Manufacturer") == MANUFACTURER and header.get("ManufacturerModelName") == MODEL_NAME)


def not_compared(outcome: Any, text: str) -> Comparison:
    return Comparison(outcome=outcome, text=text)


def read_prior(report: Dataset, segmentation: Dataset | None) -> Any:
    return None


def compare(
    current: Any, findings: Any, measurements: Any, acquired_at: Any, prior_volume: Any, prior: Any
) -> Comparison:
    return Comparison(outcome="not_registered", text="A stand-in compares nothing.")
