"""LUNA16's lists beside the LIDC readers' outlines, without a volume: how many nodules have true masks, and which.

A list gives x and y in world mm, an outline in pixels; the image's origin and direction, which join the two, are
with the volumes. What can be shown without them: z and diameter agree, and one origin serves all of a scan's findings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Point
from training.readers.lidc import Consensus, LidcScan, SliceAt, consensus, default_database, read_lidc
from training.readers.lists import Listed, find_list, read_findings, read_series

DIAMETER_RATIO = 1.25
SAME_PLACE_MM = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlinedScan:
    """The consensus nodules of a scan on its own slices. spacing_mm: (slice, row, column)."""

    spacing_mm: Point
    z_mm: NDArray[np.float64]
    nodules: tuple[Consensus, ...]

    def z_of(self, one: Consensus) -> float:
        return float(np.interp(one.center[0], np.arange(len(self.z_mm)), self.z_mm))

    def diameter_mm(self, one: Consensus) -> float:
        """Of the sphere as large as the readers' outlines are on average."""
        return float((6 * one.voxels * np.prod(self.spacing_mm) / np.pi) ** (1 / 3))

    def in_plane_mm(self, one: Consensus) -> NDArray[np.float64]:
        """(x, y) from the first pixel's centre, along columns and rows."""
        return one.center[:0:-1] * self.spacing_mm[:0:-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthReport:
    """by_readers: nodules with outlines, by how many readers drew them. placed: those whose scan holds another finding
    that agrees on the image's origin. unmatched: series UID and row of nodules without outlines."""

    scans: int
    patients: int
    nodules: int
    excluded: int
    by_readers: dict[int, int]
    placed: int
    unmatched: tuple[tuple[str, int], ...]

    @property
    def outlined(self) -> int:
        return sum(self.by_readers.values())

    def lines(self) -> list[str]:
        drawn = ", ".join(f"{count} by {readers} readers" for readers, count in sorted(self.by_readers.items()))
        return [
            f"{self.scans} scans of {self.patients} patients, {self.nodules} nodules, {self.excluded} others excluded",
            f"{self.outlined} nodules have readers' outlines ({drawn}); {len(self.unmatched)} get a flagged sphere",
            f"{self.placed} of them agree on the image's origin with another finding of their scan",
        ]


def truth_report(lists: Path, *, database: Path | None = None) -> TruthReport:
    """lists: the folder of annotations.csv, annotations_excluded.csv and seriesuids.csv. Raises DataProblem."""
    uids = read_series(find_list(lists, "seriesuids.csv"))
    nodules = read_findings(find_list(lists, "annotations.csv"))
    excluded = read_findings(find_list(lists, "annotations_excluded.csv"), unknown_diameter=True)
    lidc = read_lidc(database or default_database())
    by_readers: Counter[int] = Counter()
    placed = 0
    unmatched: list[tuple[str, int]] = []
    for uid in uids:
        rows = nodules.get(uid, ())
        if not rows:
            continue
        drawn = outlined(lidc[uid]) if uid in lidc else None
        found = match_by_layout(drawn, rows, excluded.get(uid, ())) if drawn else [None] * len(rows)
        by_readers.update(one.nodule.readers for one in found if one)
        placed += sum(one.placed for one in found if one)
        unmatched += [(uid, row.row) for row, one in zip(rows, found, strict=True) if one is None]
    return TruthReport(
        scans=len(uids),
        patients=len({lidc[uid].patient if uid in lidc else uid for uid in uids}),
        nodules=sum(len(nodules.get(uid, ())) for uid in uids),
        excluded=sum(len(excluded.get(uid, ())) for uid in uids),
        by_readers=dict(by_readers),
        placed=placed,
        unmatched=tuple(unmatched),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """placed: another finding of the scan agrees on the image's origin."""

    nodule: Consensus
    placed: bool


def outlined(scan: LidcScan) -> OutlinedScan:
    """The scan's consensus nodules, on the slices that the database lists."""
    z_mm = np.array(scan.z_mm)
    spacing = (float(np.median(np.diff(z_mm))), scan.pixel_mm, scan.pixel_mm)
    return OutlinedScan(spacing_mm=spacing, z_mm=z_mm, nodules=tuple(consensus(scan, nearest_slice(z_mm), spacing)))


def nearest_slice(z_mm: NDArray[np.float64]) -> SliceAt:
    return lambda z: int(np.abs(z_mm - z).argmin())


def match_by_layout(
    scan: OutlinedScan, nodules: Sequence[Listed], excluded: Sequence[Listed] = ()
) -> list[Match | None]:
    """For each listed nodule the consensus of like z and diameter, by the origin that most findings agree on.

    The image's rows and columns may both run backwards. Each consensus is used once.
    """
    sized = [*nodules, *(row for row in excluded if row.diameter_mm > 0)]
    pairs = [(i, j) for i, row in enumerate(sized) for j, one in enumerate(scan.nodules) if _alike(scan, row, one)]
    if not pairs:
        return [None] * len(nodules)
    origins = {sign: np.array([_origin(scan, sized[i], scan.nodules[j], sign) for i, j in pairs]) for sign in (1, -1)}
    best: tuple[int, list[tuple[float, int, int]]] = (0, [])
    for found in origins.values():
        for origin in found:
            off = np.linalg.norm(found - origin, axis=1)
            close = [(float(d), *pairs[n]) for n, d in enumerate(off) if d < SAME_PLACE_MM]
            agreeing = len({j for _, _, j in close})
            best = max(best, (agreeing, close), key=lambda each: each[0])
    listed = [pair for pair in best[1] if pair[1] < len(nodules)]
    others = [(_off_z(scan, nodules[i], scan.nodules[j]), i, j) for i, j in pairs if i < len(nodules)]
    chosen = _one_to_one([*sorted(listed), *sorted(others)])
    agreed = {(i, j) for _, i, j in best[1]}
    return [
        Match(nodule=scan.nodules[chosen[i]], placed=best[0] > 1 and (i, chosen[i]) in agreed) if i in chosen else None
        for i in range(len(nodules))
    ]


def _one_to_one(pairs: Sequence[tuple[float, int, int]]) -> dict[int, int]:
    """The pairs in order, each side used once."""
    chosen: dict[int, int] = {}
    for _, i, j in pairs:
        if i not in chosen and j not in chosen.values():
            chosen[i] = j
    return chosen


def _alike(scan: OutlinedScan, row: Listed, one: Consensus) -> bool:
    ratio = scan.diameter_mm(one) / row.diameter_mm
    return _off_z(scan, row, one) < row.diameter_mm / 2 and 1 / DIAMETER_RATIO < ratio < DIAMETER_RATIO


def _off_z(scan: OutlinedScan, row: Listed, one: Consensus) -> float:
    return abs(scan.z_of(one) - row.center_mm[2])


def _origin(scan: OutlinedScan, row: Listed, one: Consensus, sign: int) -> NDArray[np.float64]:
    return np.array(row.center_mm[:2]) - sign * scan.in_plane_mm(one)
