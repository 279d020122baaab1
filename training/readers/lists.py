"""LUNA16's lists, plain or gzipped -> rows by series. A row that is no finding is named by file and line."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dicom_node.domain import Point
from training.cases import DataProblem

COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One row of annotations.csv or annotations_excluded.csv. row: its 1-based place among its series' rows."""

    row: int
    center_mm: Point
    diameter_mm: float


# The download's evaluationScript.zip holds the excluded findings and the list of scans.
SCRIPT_FOLDERS = ("annotations", "evaluationScript/annotations")


def find_list(folder: Path, name: str) -> Path:
    """`folder`/`name` or the same gzipped, there or where LUNA16's evaluation script unpacks to. Raises DataProblem."""
    for place in (folder, *(folder / below for below in SCRIPT_FOLDERS)):
        for path in (place / name, place / f"{name}.gz"):
            if path.is_file():
                return path
    raise DataProblem(f"{folder / name} (or {name}.gz) is missing: download it with LUNA16's other lists")


def read_findings(path: Path, *, unknown_diameter: bool = False) -> dict[str, tuple[Listed, ...]]:
    """Series UID -> findings in the file's order. unknown_diameter: -1 is allowed, as in annotations_excluded.csv.

    Raises DataProblem.
    """
    found: dict[str, list[Listed]] = {}
    for line, row in _rows(path, COLUMNS):
        try:
            x, y, z, diameter = (float(row[name]) for name in COLUMNS[1:])
        except ValueError as err:
            raise DataProblem(f"{path}, line {line}: {err}") from err
        if not all(math.isfinite(v) for v in (x, y, z, diameter)) or (diameter <= 0 and not unknown_diameter):
            raise DataProblem(f"{path}, line {line}: no finding has centre ({x}, {y}, {z}) and {diameter} mm")
        rows = found.setdefault(row["seriesuid"], [])
        rows.append(Listed(row=len(rows) + 1, center_mm=(x, y, z), diameter_mm=diameter))
    return {uid: tuple(rows) for uid, rows in found.items()}


def read_series(path: Path) -> list[str]:
    """seriesuids.csv: one UID a line, no header. Raises DataProblem."""
    uids = [line.strip() for line in _text(path).splitlines() if line.strip() and line.strip() != "seriesuid"]
    if not uids or len(set(uids)) < len(uids):
        raise DataProblem(f"{path} lists {'a series twice' if uids else 'no series'}")
    return uids


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(_text(path).splitlines())
    if not set(columns) <= set(reader.fieldnames or ()):
        raise DataProblem(f"{path} needs the columns {', '.join(columns)}; it has {reader.fieldnames}")
    for row in reader:
        if any(row[name] is None for name in columns):
            raise DataProblem(f"{path}, line {reader.line_num}: the row is cut short")
        yield reader.line_num, row


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as err:
        raise DataProblem(f"{path} can't be read ({err})") from err
