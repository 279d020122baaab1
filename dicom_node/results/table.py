"""Reading -> the table of its findings as text, one for the pictures and the PDF."""

from __future__ import annotations

from dataclasses import dataclass

from dicom_node.comparison import NoduleChange
from dicom_node.results import narrative, quantities
from dicom_node.results.reading import Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """width: in parts of the table's width. right: numbers stand at the right, so that their sizes can be compared."""

    title: str
    width: float
    right: bool = False


_COLUMNS = (
    Column(title="Side", width=5.5),
    Column(title="Long x short", width=14.5, right=True),
    Column(title="Mean diam.", width=9.5, right=True),
    Column(title="Volume", width=10, right=True),
    Column(title="Type", width=12.5),
    Column(title="Mean HU", width=8, right=True),
    Column(title="Score", width=6, right=True),
    Column(title="Image", width=6, right=True),
)
_CHANGE = Column(title="Since earlier CT", width=14.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """columns: all but the finding's number, which stands first. rows: cells of each finding, in their order."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]


def table_of(reading: Reading) -> Table:
    """The column of changes is there only where an earlier CT was compared."""
    compared = reading.comparison is not None and bool(reading.comparison.changes)
    return Table(
        columns=(*_COLUMNS, _CHANGE) if compared else _COLUMNS,
        rows=tuple(_row(reading, number) for number in range(1, len(reading.findings) + 1)),
    )


def _row(reading: Reading, number: int) -> tuple[str, ...]:
    finding, measured = reading.findings[number - 1], reading.measurements[number - 1]
    change = narrative.change_of(reading, number)
    cells = (
        finding.side or "?",
        quantities.axes(measured.long_axis_mm, measured.short_axis_mm),
        quantities.whole_length(measured.mean_diameter_mm),
        quantities.volume(measured.volume_mm3),
        measured.nodule_type or "undetermined",
        quantities.attenuation(measured.mean_hu),
        quantities.score(finding.score),
        image_number(reading, measured.slice_index),
    )
    return cells if change is None else (*cells, _change(change))


def _change(change: NoduleChange) -> str:
    """ "grown +26 %", "new", "not judged"."""
    word = change.change.replace("_", " ")
    if change.volume_change_percent is None:
        return word
    return f"{word} {quantities.change_percent(change.volume_change_percent)}"


def image_number(reading: Reading, index: int) -> str:
    """What a viewer calls a slice: its frame or its Instance Number, else its place from the feet."""
    image = reading.series.images[index]
    if image.frame is not None:
        return str(image.frame)
    return str(image.header.get("InstanceNumber") or "").strip() or f"#{index + 1}"
