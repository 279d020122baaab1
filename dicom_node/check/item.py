"""What one look found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dicom_node.errors import DicomNodeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One thing that was tried. `text`: what was seen, or what is wrong and what to do. warns: it works, and should
    be looked at."""

    name: str
    ok: bool
    text: str
    warns: bool = False


def tried(name: str, look: Callable[[], str]) -> Item:
    """One failure hides no other. look: says what it saw, or raises DicomNodeError."""
    try:
        return Item(name=name, ok=True, text=look())
    except DicomNodeError as err:
        return Item(name=name, ok=False, text=str(err))
