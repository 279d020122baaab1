"""A bundle, judged through the product's own Detector: composites with held-out nodules, and real scans.

A mark hits when its distance to the truth's centre is strictly less than the truth's radius (of a ball of the
mask's volume, but at least 1.6 mm); of several hits on one nodule the best counts and the others are ignored.
Composites are no LUNA16: no figure made here may carry that name.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Detection, Finding, Volume
from dicom_node.model.bundle import Bundle, load_bundle
from dicom_node.model.detector import Detector
from training.insert import Truth, compose_volume
from training.prepare import ignored, prepare_vois, read_scan
from training.voi import Voi, split

log = logging.getLogger(__name__)

FLOOR = 0.05
FALSE_ALLOWED = 1.5
FP_PER_SCAN = (0.5, 1.0, 2.0, 4.0, 8.0)
SMALLEST_RADIUS_MM = 1.6
# The held-out scan's real nodule (LUNA16's list): x, y, z, radius in LPS mm.
REAL_NODULE = (56.20840547, 86.34341278, -115.8675792, 23.35064438 / 2)
REAL_LESION = (-79.0, -195.0, -194.0, 15.0)
NOTHING: NDArray[np.float64] = np.zeros((0, 4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One scan's marks against its truth. hit: index of the truth or -1; marks in ignored places are left out."""

    scores: NDArray[np.float64]
    hits: NDArray[np.int64]
    dice: NDArray[np.float64]
    truths: int


def evaluate(bundle_dir: Path, data: Path, cache: Path, scans: int = 4) -> dict[str, Any]:
    """Figures of a bundle at the operating point that `choose_point` picks; the bundle's own plays no part."""
    detector = Detector(with_operating_point(load_bundle(bundle_dir), FLOOR))
    scan, clear = read_scan(data, "LIDC-IDRI-0001"), np.array([[*REAL_NODULE[:3], 25.0]])
    judged = []
    for n, vois in enumerate(_shares(split(prepare_vois(data, cache))[1], scans)):
        composite, truths = compose_volume(scan, vois, clear, seed=n)
        judged.append(judge(composite, detector.detect(composite).findings, truths, clear))
        log.info("composite", extra={"action": "composite", "number": n, **summary(judged[-1:], 0.5)})
    negative, unsure = read_scan(data, "LIDC-IDRI-0002"), ignored(data, "LIDC-IDRI-0002")
    result = detector.detect(negative)
    point = choose_point([*judged, judge(negative, result.findings, [], unsure)])
    cptac = read_scan(data, "C3N-00247")
    return {
        "operating_point": point,
        "composites": summary(judged, point) | {"froc": froc(judged), "scans": scans},
        "LIDC-IDRI-0001": real_case(detector.detect(scan), point, REAL_NODULE, NOTHING),
        "LIDC-IDRI-0002": real_case(result, point, None, unsure),
        "C3N-00247": real_case(detector.detect(cptac), point, REAL_LESION, NOTHING),
    }


def _shares(held_out: list[Voi], scans: int) -> list[list[Voi]]:
    """All held-out nodules, dealt to the scans in one fixed random order."""
    order = np.random.default_rng(8).permutation(len(held_out))
    return [[held_out[i] for i in part] for part in np.array_split(order, scans)]


def choose_point(judged: list[Judged]) -> float:
    """The lowest score, in steps of 0.01, that leaves at most FALSE_ALLOWED false positives a scan."""
    for hundredth in range(5, 100):
        if sum(int(((j.scores >= hundredth / 100) & (j.hits < 0)).sum()) for j in judged) <= FALSE_ALLOWED * len(
            judged
        ):
            return hundredth / 100
    return 1.0


def with_operating_point(bundle: Bundle, point: float) -> Bundle:
    thresholds = bundle.form.thresholds.model_copy(update={"operating_point": point})
    return replace(bundle, form=bundle.form.model_copy(update={"thresholds": thresholds}))


def judge(volume: Volume, findings: tuple[Finding, ...], truths: list[Truth], ignore: NDArray[np.float64]) -> Judged:
    """Findings come best first, so the first to hit a truth is its score."""
    scores, hits, dices = [], [], []
    taken: set[int] = set()
    for finding in findings:
        center = np.array(finding.center_mm)
        near = [
            i for i, t in enumerate(truths)
            if np.linalg.norm(t.center_mm - center) < max(t.diameter_mm / 2, SMALLEST_RADIUS_MM)
        ]  # fmt: skip
        if not near and (np.linalg.norm(ignore[:, :3] - center, axis=1) < ignore[:, 3]).any():
            continue
        if near and near[0] in taken:
            continue
        taken.update(near[:1])
        scores.append(finding.score)
        hits.append(near[0] if near else -1)
        dices.append(dice(volume, finding, truths[near[0]]) if near else np.nan)
    return Judged(
        scores=np.array(scores), hits=np.array(hits, dtype=np.int64), dice=np.array(dices), truths=len(truths)
    )  # fmt: skip


def dice(volume: Volume, finding: Finding, truth: Truth) -> float:
    """Overlap of two masks on one grid."""
    low = np.minimum(finding.corner, truth.corner)
    high = np.maximum(
        np.add(finding.corner, finding.mask.shape), np.add(truth.corner, truth.mask.shape)
    )  # fmt: skip
    a, b = np.zeros((2, *(high - low)), dtype=bool)
    for space, mask, corner in ((a, finding.mask, finding.corner), (b, truth.mask, truth.corner)):
        space[tuple(slice(c - l0, c - l0 + n) for c, l0, n in zip(corner, low, mask.shape, strict=True))] = mask
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def summary(judged: list[Judged], point: float) -> dict[str, float]:
    """Sensitivity, false positives a scan and Dice at an operating point."""
    above = [j.scores >= point for j in judged]
    found = sum(int((j.hits[a] >= 0).sum()) for j, a in zip(judged, above, strict=True))
    false = sum(int((j.hits[a] < 0).sum()) for j, a in zip(judged, above, strict=True))
    overlap = np.concatenate([j.dice[a & (j.hits >= 0)] for j, a in zip(judged, above, strict=True)])
    truths = sum(j.truths for j in judged)
    return {
        "truths": truths,
        "sensitivity": found / max(truths, 1),
        "false_positives_per_scan": false / len(judged),
        "dice": float(overlap.mean()) if len(overlap) else float("nan"),
    }


def froc(judged: list[Judged]) -> dict[str, float]:
    """Sensitivity at false positives a scan, linear between the steps of the curve."""
    scores = np.concatenate([j.scores for j in judged])
    hit = np.concatenate([j.hits >= 0 for j in judged])
    order = np.argsort(-scores, kind="stable")
    false = np.concatenate([[0], np.cumsum(~hit[order])]) / len(judged)
    found = np.concatenate([[0], np.cumsum(hit[order])]) / max(sum(j.truths for j in judged), 1)
    last = np.concatenate([np.flatnonzero(np.diff(false) > 0), [len(false) - 1]])
    return {f"{rate:g}": float(np.interp(rate, false[last], found[last])) for rate in FP_PER_SCAN}


def real_case(
    result: Detection, point: float, nodule: tuple[float, float, float, float] | None, ignore: NDArray[np.float64]
) -> dict[str, Any]:
    """Was the known nodule found, how far off, and what else was reported?"""
    marks = [f for f in result.findings if not _within(f, ignore)]
    hits = [nodule is not None and _within(f, np.array([nodule])) for f in marks]
    false = [f for f, hit in zip(marks, hits, strict=True) if not hit and f.score >= point]
    case: dict[str, Any] = {"false_positives": len(false), "seconds": sum(result.timings_s.values())}
    if nodule is not None:
        rank = hits.index(True) if any(hits) else None
        best = None if rank is None else marks[rank]
        case["found"] = best is not None and best.score >= point
        case["score"] = best.score if best else 0.0
        case["rank"] = None if rank is None else rank + 1
        case["distance_mm"] = float(np.linalg.norm(np.subtract(best.center_mm, nodule[:3]))) if best else None
    log.info("real case", extra={"action": "real_case", **case})
    return case


def _within(finding: Finding, spheres: NDArray[np.float64]) -> bool:
    return bool((np.linalg.norm(spheres[:, :3] - np.array(finding.center_mm), axis=1) < spheres[:, 3]).any())


def write(figures: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n")
