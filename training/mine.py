"""A bundle's detector over prepared scans -> its candidates, each with what it is: a hit, ignored, or false.

The false ones are the hard negatives of both networks. One JSON file a scan, so that a run that was stopped
goes on where it ended:

    <out>/<key of the scan>.json    uid, the bundle's sha256, floor, candidates best first
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Volume
from dicom_node.grids import grid_affine
from dicom_node.model.bundle import Bundle
from dicom_node.model.detector import Detector
from dicom_node.model.findings import Candidate, suppress
from training.cases import DataProblem
from training.prepared import PreparedScan

Kind = Literal["hit", "ignored", "false"]
Say = Callable[[str], None]
FLOOR = 0.02
NEAR_MM = 4.0
LAYOUT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MinedCandidate:
    """center_mm: LPS, the middle of its box. score: the slices' alone. nodule: number in labels.npy that it hits."""

    center_mm: tuple[float, float, float]
    score: float
    kind: Kind
    nodule: int | None

    def __post_init__(self) -> None:
        if (self.kind == "hit") != (self.nodule is not None):
            raise ValueError(f"a {self.kind} candidate with nodule {self.nodule}")


def spread(scans: Sequence[PreparedScan], most: int | None) -> list[PreparedScan]:
    """All scans, or `most` of them at even distances."""
    if most is None:
        return list(scans)
    return [scans[i] for i in np.unique(np.linspace(0, len(scans) - 1, min(most, len(scans))).round().astype(int))]


def mine(
    bundle: Bundle, scans: Sequence[PreparedScan], out: Path, *, device: str = "cpu", floor: float = FLOOR,
    say: Say = print,
) -> dict[str, int]:  # fmt: skip
    """One file a scan. A scan whose file was made by this bundle with this floor is not looked at again."""
    out.mkdir(parents=True, exist_ok=True)
    detector = Detector(bundle, device)
    kinds: Counter[str] = Counter()
    for number, scan in enumerate(scans, start=1):
        path, origin = out / f"{scan.form.key}.json", _origin(bundle, scan, floor)
        found = _mined(path, origin)
        if found is None:
            found = candidates_of(detector, bundle, scan, floor)
            _write(path, {**origin, "candidates": [asdict(c) for c in found]})
        counts = Counter(c.kind for c in found)
        kinds += counts
        texts = ", ".join(f"{counts[kind]} {kind}" for kind in ("hit", "ignored", "false"))
        say(f"{number}/{len(scans)}  {scan.form.uid}  {texts} of {len(scan.form.nodules)} nodules")
    return dict(kinds)


def candidates_of(detector: Detector, bundle: Bundle, scan: PreparedScan, floor: float) -> list[MinedCandidate]:
    """What the slices alone hold at or above the floor, near enough to the lungs, best first, each place once."""
    form = bundle.form
    hu = np.array(scan.hu())
    grid = Volume(hu=hu, affine=grid_affine(np.array(scan.form.origin_mm), scan.form.spacing_mm))
    scored = [(c, s) for c, s in detector.candidates(detector.look(grid, lambda part: None)) if s >= floor]
    kept = suppress([c for c, _ in scored], [s for _, s in scored], form.merging)
    distance, prep = scan.distance(), form.preprocessing
    near = [(c, s) for c, s in kept if _in_reach(distance, c, prep.lung_margin_mm, prep.spacing_mm)]
    return judged(scan, np.array([c.center for c, _ in near]).reshape(-1, 3), [s for _, s in near])


def judged(scan: PreparedScan, centers: NDArray[np.float64], scores: list[float]) -> list[MinedCandidate]:
    """(n, 3) fractional (slice, row, column) -> candidates in the same order.

    A hit lies within a nodule's radius. What lies in an ignored ball is ignored, and so is what misses a nodule
    by so little that its cube still shows the nodule in the middle: neither class should learn from it.
    """
    points = scan.to_mm(centers)
    nodules = np.array([[*n.center_mm, n.diameter_mm / 2] for n in scan.form.nodules]).reshape(-1, 4)
    ignored = np.array(scan.form.ignored).reshape(-1, 4)
    found = []
    for point, score in zip(points, scores, strict=True):
        apart = np.linalg.norm(nodules[:, :3] - point, axis=1)
        hit = np.flatnonzero(apart < nodules[:, 3])
        kind: Kind = "false"
        if len(hit):
            kind = "hit"
        elif within(ignored, point) or (apart < nodules[:, 3] + NEAR_MM).any():
            kind = "ignored"
        nodule = scan.form.nodules[hit[apart[hit].argmin()]].number if len(hit) else None
        x, y, z = (round(float(v), 3) for v in point)
        found.append(MinedCandidate(center_mm=(x, y, z), score=float(score), kind=kind, nodule=nodule))
    return found


def within(balls: NDArray[np.float64], point_mm: NDArray[np.float64]) -> bool:
    """(n, 4) x, y, z, radius; one point."""
    return bool((np.linalg.norm(balls[:, :3] - point_mm, axis=1) < balls[:, 3]).any())


def read_candidates(folder: Path) -> dict[str, list[MinedCandidate]]:
    """By scan uid. Raises DataProblem: nothing mined there, a file that can't be read, or files that don't belong
    together."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise DataProblem(f"{folder} holds no mined candidates: run `python -m training mine` first")
    mined: dict[str, list[MinedCandidate]] = {}
    origins = set()
    for path in paths:
        try:
            raw = json.loads(path.read_text())
            twice = raw["uid"] in mined
            mined[raw["uid"]] = [_candidate(entry) for entry in raw["candidates"]]
            origins.add((raw["made_by"], raw["floor"]))
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise DataProblem(f"{path} is no list of mined candidates ({err}): remove it and mine again") from err
        if twice or len(origins) > 1:
            what = "a scan twice, before and after it changed" if twice else "what different bundles found"
            raise DataProblem(f"{folder} holds {what}: remove it and mine again")
    return mined


def _candidate(entry: dict[str, Any]) -> MinedCandidate:
    return MinedCandidate(**{**entry, "center_mm": tuple(entry["center_mm"])})


def _origin(bundle: Bundle, scan: PreparedScan, floor: float) -> dict[str, Any]:
    """What a scan's candidates depend on: the first network and its numbers, not the operating point."""
    form = bundle.form.model_dump(mode="json", include={"network", "preprocessing", "merging", "weights_sha256"})
    form["proposal_score"] = bundle.form.thresholds.proposal_score
    made_by = hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()
    return {"layout": LAYOUT, "uid": scan.form.uid, "made_by": made_by, "floor": floor}


def _mined(path: Path, origin: dict[str, Any]) -> list[MinedCandidate] | None:
    if not path.exists():
        return None
    try:
        raw = json.loads(path.read_text())
    except ValueError:
        return None  # no JSON: it is written anew
    if {name: raw.get(name) for name in origin} != origin:
        return None
    return [_candidate(entry) for entry in raw["candidates"]]


def _write(path: Path, content: dict[str, Any]) -> None:
    aside = path.with_suffix(".part")
    with aside.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _in_reach(distance: NDArray[np.int8], candidate: Candidate, margin_mm: float, spacing_mm: float) -> bool:
    """As Lungs.within_reach, with half the candidate's width for the radius."""
    k, r, c = candidate.center.round().astype(int).clip(0, np.array(distance.shape) - 1)
    low, high = candidate.box[:, 1:]
    return float(distance[k, r, c]) <= max(margin_mm, float((high - low).mean()) / 2 * spacing_mm)
