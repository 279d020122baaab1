"""ScanResults without a scan: cubes for marks and nodules, on a grid of 1 mm whose indices are millimetres."""

from __future__ import annotations

from typing import Any

import numpy as np

from dicom_node.domain import Finding, Volume
from training.cases import Ignored, MaskSource, Nodule
from training.evaluation.marks import PICTURE_MM, Picture, ScanResult, Size

SPACE = Volume(hu=np.zeros((40, 60, 60), dtype=np.int16), affine=np.eye(4)[[2, 1, 0, 3]])


def mark(corner: tuple[int, int, int], edge: int, score: float) -> Finding:
    x, y, z = (c + (edge - 1) / 2 for c in reversed(corner))
    return Finding(mask=np.ones((edge,) * 3, bool), corner=corner, center_mm=(x, y, z), score=score, side=None)


def nodule(corner: tuple[int, int, int], edge: int, mask_from: MaskSource = "voxels", name: str = "n") -> Nodule:
    """Listed with its edge for a diameter."""
    x, y, z = (c + (edge - 1) / 2 for c in reversed(corner))
    return Nodule(
        name=name, center_mm=(x, y, z), diameter_mm=float(edge), mask=np.ones((edge,) * 3, bool), corner=corner,
        mask_from=mask_from, readers=None,
    )  # fmt: skip


def result(
    uid: str = "1.2",
    marks: tuple[Finding, ...] = (),
    nodules: tuple[Nodule, ...] = (),
    ignored: tuple[tuple[float, float, float, float], ...] = (),
    **more: Any,
) -> ScanResult:
    """ignored: x, y, z, diameter."""
    marks = tuple(sorted(marks, key=lambda each: -each.score))
    fields: dict[str, Any] = {
        "uid": uid,
        "patient": f"patient of {uid}",
        "composite": True,
        "origin": {"floor": 0.02, "behaviour": "b"},
        "affine": SPACE.affine,
        "shape": SPACE.hu.shape,
        "marks": marks,
        "mark_sizes": tuple(cube_size(each) for each in marks),
        "nodules": nodules,
        "nodule_sizes": tuple(cube_size(each) for each in nodules),
        "ignored": tuple(Ignored(center_mm=(x, y, z), diameter_mm=d) for x, y, z, d in ignored),
        "seconds": {"read": 0.5, "network": 2.0},
        "pictures": (),
    }
    made = ScanResult(**fields | more)
    if "pictures" in more:
        return made
    shown = [("nodule", n, each) for n, each in enumerate(nodules)]
    shown += [("mark", n, marks[n]) for n in np.flatnonzero(made.false).tolist()]
    return ScanResult(**fields | more | {"pictures": tuple(_picture(*each) for each in shown)})


def cube_size(each: Finding | Nodule) -> Size:
    volume = float(each.mask.sum())
    diameter = (6 * volume / np.pi) ** (1 / 3)
    return Size(volume_mm3=volume, diameter_mm=float(diameter), long_axis_mm=float(each.mask.shape[1]))


def _picture(shows: str, of: int, each: Finding | Nodule) -> Picture:
    edge = int(PICTURE_MM)
    corner = (each.corner[0], each.corner[1] - edge // 2, each.corner[2] - edge // 2)
    return Picture(shows=shows, of=of, corner=corner, pixels=np.full((edge, edge), 90, dtype=np.uint8))
