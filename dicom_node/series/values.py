"""Header elements of any VR and multiplicity -> lists, numbers, text. Nothing here raises."""

from __future__ import annotations

from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue


def values(value: Any) -> list[Any]:
    """The values of an element; empty where it is absent or empty."""
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (list, tuple, MultiValue)) else [value]


def numbers(header: Dataset, keyword: str) -> list[float]:
    return [_float(value) for value in values(header.get(keyword))]


def integer(header: Dataset, keyword: str, default: int) -> int:
    """The one value as a whole number; `default` where it is absent, -1 where it is none."""
    found = numbers(header, keyword)
    if not found:
        return default
    return int(found[0]) if len(found) == 1 and found[0].is_integer() else -1


def text(value: Any) -> str:
    return "\\".join(str(v) for v in values(value))


def upper(value: Any) -> list[str]:
    """Coded strings as they are compared."""
    return [str(v).strip().upper() for v in values(value)]


def transfer_syntax(header: Dataset) -> str:
    return str(getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", ""))


def _float(value: Any) -> float:
    """NaN for what is no number: an element may come with any VR."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
