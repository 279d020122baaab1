"""A Detection and its scan's truth -> ScanResult: what figures and pictures need, without the voxels, in one JSON file.

The file holds numbers to read and, packed, each mask and some small pictures: figures can be made again at another
operating point, or in another way, without the network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Detection, Finding, Volume
from dicom_node.model.bundle import BundleForm
from training.cases import Case, DataProblem, Ignored, Nodule, Scan
from training.evaluation.froc import MARKS_PER_SCAN
from training.evaluation.overlap import box_iou_3d, mask_iou
from training.prepare import write_whole

LAYOUT = 1
KEPT_MARKS = MARKS_PER_SCAN + 1  # LUNA16's rule looks at the 101st score too
PICTURED_FALSE = 10
PICTURE_MM = 48.0
WINDOW_HU = (-1200, 600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """By the node's own measuring. diameter_mm: of a sphere of that volume; long_axis_mm: longest axial diameter."""

    volume_mm3: float
    diameter_mm: float
    long_axis_mm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An axial crop round a nodule or a false mark. of: its number there. pixels: uint8 (h, w), WINDOW_HU as 0 to 255.

    corner: (slice, row, column) of pixels[0, 0] in the scan.
    """

    shows: str
    of: int
    corner: tuple[int, int, int]
    pixels: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if self.shows not in ("nodule", "mark") or self.pixels.ndim != 2 or self.pixels.dtype != np.uint8:
            raise ValueError(f"no picture: {self.shows}, {self.pixels.dtype}{self.pixels.shape}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanResult:
    """One scan, judged. marks: best first, at most KEPT_MARKS. mark_sizes, nodule_sizes: in the same order.

    patient: a digest, enough to count patients and to keep splits apart. origin: what the result depends on.
    seconds: of each stage, reading the scan among them.
    """

    uid: str
    patient: str
    composite: bool
    origin: dict[str, Any]
    affine: NDArray[np.float64]
    shape: tuple[int, int, int]
    marks: tuple[Finding, ...]
    mark_sizes: tuple[Size, ...]
    nodules: tuple[Nodule, ...]
    nodule_sizes: tuple[Size, ...]
    ignored: tuple[Ignored, ...]
    seconds: dict[str, float]
    pictures: tuple[Picture, ...]

    def __post_init__(self) -> None:
        if len(self.marks) != len(self.mark_sizes) or len(self.nodules) != len(self.nodule_sizes):
            raise ValueError(f"{self.uid}: each mark and each nodule needs a size")
        scores = [mark.score for mark in self.marks]
        if scores != sorted(scores, reverse=True):
            raise ValueError(f"{self.uid}: marks come best first")

    @property
    def scores(self) -> NDArray[np.float64]:
        return np.array([mark.score for mark in self.marks])

    @property
    def hits(self) -> NDArray[np.bool_]:
        """(marks, nodules): strictly less than the listed radius from the listed centre, as in LUNA16's FROC."""
        balls = [(nodule.center_mm, nodule.diameter_mm / 2) for nodule in self.nodules]
        return _within(self.marks, balls)

    @property
    def unsure(self) -> NDArray[np.bool_]:
        """(marks,): on no nodule, but in an ignored finding."""
        inside = _within(self.marks, [(ball.center_mm, ball.radius_mm) for ball in self.ignored]).any(axis=1)
        return np.asarray(inside & ~self.hits.any(axis=1))

    @property
    def false(self) -> NDArray[np.bool_]:
        """(marks,)."""
        return np.asarray(~self.hits.any(axis=1) & ~self.unsure)

    @property
    def box_iou(self) -> NDArray[np.float64]:
        """(marks, nodules), of the masks' boxes, whole voxels, along the scan's own axes."""
        marks, nodules = _boxes(self.marks), _boxes(self.nodules)
        return box_iou_3d(marks, nodules) if len(marks) and len(nodules) else np.zeros((len(marks), len(nodules)))

    @property
    def mask_iou(self) -> NDArray[np.float64]:
        """(marks, nodules), voxel by voxel of the scan."""
        iou = [[mask_iou(m.mask, m.corner, n.mask, n.corner) for n in self.nodules] for m in self.marks]
        return np.array(iou, dtype=np.float64).reshape(len(self.marks), len(self.nodules))


def behaviour(form: BundleForm) -> str:
    """A digest of what a bundle's marks depend on: not its name, its figures or its operating point."""
    parts = form.model_dump(mode="json", include={"network", "preprocessing", "merging", "refinement"})
    parts |= {"proposal_score": form.thresholds.proposal_score, "weights_sha256": form.weights_sha256}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def person(patient: str, composite: bool) -> str:
    """A composite's patient is its lung's, and what it was made for: train or test."""
    return patient.rsplit(" ", 1)[0] if composite else patient


def patient_digest(patient: str) -> str:
    """Tells patients apart without naming them."""
    return hashlib.sha256(patient.encode()).hexdigest()[:16]


def result_of(
    scan: Scan, case: Case, detection: Detection, origin: dict[str, Any], seconds: dict[str, float]
) -> ScanResult:
    """seconds: of each stage."""
    volume, marks = case.volume, detection.findings[:KEPT_MARKS]
    bare = ScanResult(
        uid=scan.uid,
        patient=patient_digest(person(scan.patient, scan.composite)),
        composite=scan.composite,
        origin=origin,
        affine=volume.affine,
        shape=(volume.hu.shape[0], volume.hu.shape[1], volume.hu.shape[2]),
        marks=marks,
        mark_sizes=tuple(_size(mark, volume) for mark in marks),
        nodules=case.nodules,
        nodule_sizes=tuple(_size(as_finding(nodule), volume) for nodule in case.nodules),
        ignored=case.ignored,
        seconds=seconds,
        pictures=(),
    )
    shown = [("nodule", n, nodule.mask, nodule.corner) for n, nodule in enumerate(case.nodules)]
    shown += [("mark", n, marks[n].mask, marks[n].corner) for n in np.flatnonzero(bare.false)[:PICTURED_FALSE].tolist()]
    pictures = tuple(_picture(volume, *each) for each in shown)
    return ScanResult(**{**{f.name: getattr(bare, f.name) for f in fields(bare)}, "pictures": pictures})


def as_finding(nodule: Nodule) -> Finding:
    """A true nodule as the node's measuring takes it."""
    return Finding(mask=nodule.mask, corner=nodule.corner, center_mm=nodule.center_mm, score=1.0, side=None)


def true_mask(nodule: Nodule) -> bool:
    """A ball drawn from the list says nothing of a nodule's outline."""
    return nodule.mask_from != "sphere"


def key_slice(mask: NDArray[np.bool_]) -> int:
    """The slice of a mask (d, h, w) that shows most of it; of several the first."""
    return int(mask.sum(axis=(1, 2)).argmax())


def _size(finding: Finding, volume: Volume) -> Size:
    from dicom_node.results.measure import measure  # its package needs highdicom

    measured = measure(finding, volume)
    return Size(
        volume_mm3=measured.volume_mm3,
        diameter_mm=measured.equivalent_diameter_mm,
        long_axis_mm=measured.long_axis_mm,
    )


def _within(marks: Sequence[Finding], balls: Sequence[tuple[Any, float]]) -> NDArray[np.bool_]:
    """(marks, balls). Squares, as training/evaluation/froc.py compares, so that both agree to the last bit."""
    points = np.array([mark.center_mm for mark in marks]).reshape(-1, 3)
    away = points[:, None] - np.array([center for center, _ in balls]).reshape(-1, 3)
    squared = away[..., 0] ** 2 + away[..., 1] ** 2 + away[..., 2] ** 2
    return np.asarray(squared < np.array([radius for _, radius in balls]) ** 2)


def _boxes(shapes: Sequence[Finding | Nodule]) -> NDArray[np.float64]:
    """(n, 2, 3): lowest and highest edge as (slice, row, column)."""
    corners = np.array([each.corner for each in shapes], dtype=np.float64).reshape(-1, 3)
    return np.stack([corners, corners + np.array([each.mask.shape for each in shapes]).reshape(-1, 3)], axis=1)


def _picture(volume: Volume, shows: str, of: int, mask: NDArray[np.bool_], corner: tuple[int, int, int]) -> Picture:
    """As large as PICTURE_MM says, or as the object needs with a rim; air where the scan ends."""
    k = corner[0] + key_slice(mask)
    middle = np.array(corner[1:]) + np.array(mask.shape[1:]) / 2
    size = np.maximum(np.ceil(PICTURE_MM / np.array(volume.spacing_mm[1:])), np.array(mask.shape[1:]) + 8).astype(int)
    first = np.floor(middle - size / 2).astype(int)
    low, high = WINDOW_HU
    pixels = np.zeros(size, dtype=np.uint8)
    a, b = first.clip(0, volume.hu.shape[1:]), (first + size).clip(0, volume.hu.shape[1:])
    held = volume.hu[k, a[0] : b[0], a[1] : b[1]].astype(np.float64)
    shade = ((held - low) / (high - low)).clip(0, 1) * 255
    pixels[a[0] - first[0] : b[0] - first[0], a[1] - first[1] : b[1] - first[1]] = shade.round().astype(np.uint8)
    return Picture(shows=shows, of=of, corner=(k, int(first[0]), int(first[1])), pixels=pixels)


# -- files ---------------------------------------------------------------------------------------------


def write_result(path: Path, result: ScanResult) -> None:
    """The file is there whole, or as it was."""
    write_whole(path, json.dumps(_form(result), indent=1) + "\n")


def read_result(path: Path) -> ScanResult:
    """Raises DataProblem."""
    try:
        raw = json.loads(path.read_text())
        if raw["layout"] != LAYOUT:
            raise ValueError(f"layout {raw['layout']!r}, this version reads {LAYOUT}")
        return _parsed(raw)
    except (OSError, ValueError, KeyError, TypeError, zlib.error) as err:
        raise DataProblem(f"{path} is no result that can be read ({err}): remove it and evaluate again") from err


def _form(result: ScanResult) -> dict[str, Any]:
    hits, unsure = result.hits, result.unsure
    box, mask = result.box_iou, result.mask_iou
    affine = result.affine
    return {
        "layout": LAYOUT,
        "uid": result.uid,
        "patient": result.patient,
        "composite": result.composite,
        "origin": result.origin,
        "affine": affine.tolist(),
        "shape": result.shape,
        "seconds": result.seconds,
        "marks": [
            {
                "score": mark.score, "side": mark.side, "ignored": bool(unsure[n]),
                "hits": np.flatnonzero(hits[n]).tolist(), **_placed(mark, result.mark_sizes[n], affine),
            }
            for n, mark in enumerate(result.marks)
        ],
        "nodules": [
            {
                "name": nodule.name, "listed_diameter_mm": nodule.diameter_mm, "mask_from": nodule.mask_from,
                "readers": nodule.readers, **_placed(nodule, result.nodule_sizes[n], affine),
            }
            for n, nodule in enumerate(result.nodules)
        ],
        "overlaps": [
            {
                "mark": m, "nodule": n, "box_iou": box[m, n], "mask_iou": mask[m, n],
                "dice": 2 * mask[m, n] / (1 + mask[m, n]),
            }
            for m, n in np.argwhere(box > 0).tolist()
        ],
        "ignored": [[*ball.center_mm, ball.diameter_mm] for ball in result.ignored],
        "pictures": [
            {"shows": p.shows, "of": p.of, "corner": p.corner, "pixels": _packed(p.pixels)} for p in result.pictures
        ],
    }  # fmt: skip


def _placed(each: Finding | Nodule, size: Size, affine: NDArray[np.float64]) -> dict[str, Any]:
    """box_mm: lowest and highest x, y, z (LPS) that the mask's voxels reach."""
    edges = np.array([[c - 0.5, c + n - 0.5] for c, n in zip(each.corner, each.mask.shape, strict=True)])
    ends = np.array(np.meshgrid(*edges)).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
    return {
        "center_mm": each.center_mm,
        "box_mm": np.stack([ends.min(axis=0), ends.max(axis=0)]).round(3).tolist(),
        "voxels": int(each.mask.sum()),
        "size": {f.name: getattr(size, f.name) for f in fields(size)},
        "corner": each.corner,
        "mask": _packed(each.mask.astype(np.uint8)),
    }


def _parsed(raw: dict[str, Any]) -> ScanResult:
    return ScanResult(
        uid=raw["uid"],
        patient=raw["patient"],
        composite=raw["composite"],
        origin=raw["origin"],
        affine=np.array(raw["affine"]),
        shape=_three(raw["shape"]),
        marks=tuple(
            Finding(**_shape(m), center_mm=_three(m["center_mm"]), score=m["score"], side=m["side"])
            for m in raw["marks"]
        ),
        mark_sizes=tuple(Size(**m["size"]) for m in raw["marks"]),
        nodules=tuple(
            Nodule(
                **_shape(n), name=n["name"], center_mm=_three(n["center_mm"]), diameter_mm=n["listed_diameter_mm"],
                mask_from=n["mask_from"], readers=n["readers"],
            )
            for n in raw["nodules"]
        ),
        nodule_sizes=tuple(Size(**n["size"]) for n in raw["nodules"]),
        ignored=tuple(Ignored(center_mm=(x, y, z), diameter_mm=diameter) for x, y, z, diameter in raw["ignored"]),
        seconds=raw["seconds"],
        pictures=tuple(
            Picture(shows=p["shows"], of=p["of"], corner=_three(p["corner"]), pixels=_unpacked(p["pixels"]))
            for p in raw["pictures"]
        ),
    )  # fmt: skip


def _shape(raw: dict[str, Any]) -> dict[str, Any]:
    return {"mask": _unpacked(raw["mask"]).astype(np.bool_), "corner": _three(raw["corner"])}


def _three(values: Sequence[Any]) -> tuple[Any, Any, Any]:
    a, b, c = values
    return a, b, c


def _packed(array: NDArray[np.uint8]) -> dict[str, Any]:
    return {"shape": array.shape, "zlib": base64.b64encode(zlib.compress(array.tobytes())).decode("ascii")}


def _unpacked(raw: dict[str, Any]) -> NDArray[np.uint8]:
    values = np.frombuffer(zlib.decompress(base64.b64decode(raw["zlib"])), dtype=np.uint8)
    return values.reshape(raw["shape"])
