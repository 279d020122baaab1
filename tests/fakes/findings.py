"""Findings of any shape on a Volume, and the Detection that holds them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Detection, Finding, ModelIdentity, Side, Volume

MADE_AT = datetime(2026, 3, 4, 5, 6, 7)

MODEL = ModelIdentity(
    name="nodules",
    version="1.2.3",
    bundle_sha256="5e" * 32,
    operating_point=0.5,
    parameters={"link_iou": 0.3, "min_diameter_mm": 3.0},
)

# What build_results asks for beside series, volume and detection.
JOB: dict[str, Any] = {
    "evidence": "44 of 44 instances, contiguous; quiet time 10 s",
    "manifest_sha256": "a7" * 32,
    "made_at": MADE_AT,
}


def finding_of(volume: Volume, mask: NDArray[np.bool_], *, score: float = 0.9, side: Side | None = "left") -> Finding:
    """The Finding whose voxels are those of a mask with the shape of the Volume."""
    voxels = np.argwhere(mask)
    low, high = voxels.min(axis=0), voxels.max(axis=0) + 1
    center = volume.to_mm(voxels.mean(axis=0))
    return Finding(
        mask=mask[low[0] : high[0], low[1] : high[1], low[2] : high[2]].copy(),
        corner=(int(low[0]), int(low[1]), int(low[2])),
        center_mm=(float(center[0]), float(center[1]), float(center[2])),
        score=score,
        side=side,
    )


def ball(
    volume: Volume,
    index: tuple[float, float, float],
    radius_mm: float,
    *,
    score: float = 0.9,
    side: Side | None = "left",
) -> Finding:
    """A ball round a point given as (slice, row, column); what lies beyond the Volume is cut off."""
    return finding_of(volume, ball_mask(volume, index, radius_mm), score=score, side=side)


def ball_mask(volume: Volume, index: tuple[float, float, float], radius_mm: float) -> NDArray[np.bool_]:
    grid = np.moveaxis(np.indices(volume.hu.shape), 0, -1).astype(np.float64)
    distance = np.linalg.norm(volume.to_mm(grid) - volume.to_mm(index), axis=-1)
    mask: NDArray[np.bool_] = distance <= radius_mm
    return mask


def detection_of(*findings: Finding, analysed: tuple[int, int] = (2, 42)) -> Detection:
    return Detection(findings=findings, analysed=analysed, model=MODEL, timings_s={})
