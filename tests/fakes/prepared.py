"""A prepared cache without CT data: noise for lung, balls for nodules, in the cache's own layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dicom_node.model.spec import PreprocessSpec
from training.prepared import (
    LAYOUT,
    Index,
    PreparedForm,
    PreparedNodule,
    PreparedScan,
    grid_numbers,
    open_scan,
    to_json,
)

Ball = tuple[float, float, float, float]
LUNG, TISSUE = -850, 40


def write_prepared(
    cache: Path,
    uid: str,
    nodules: tuple[Ball, ...] = (),
    ignored: tuple[Ball, ...] = (),
    shape: tuple[int, int, int] = (48, 80, 80),
    seed: int = 0,
    patient: str | None = None,
    subset: int | None = None,
) -> PreparedScan:
    """nodules, ignored: x, y, z, radius in mm; the grid's origin is (-10, 5, 100)."""
    origin = (-10.0, 5.0, 100.0)
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij")
    hu = np.random.default_rng(seed).normal(LUNG, 20, shape)
    labels = np.zeros(shape, dtype=np.uint8)
    rows = []
    for number, (*center, radius) in enumerate(nodules, start=1):
        cx, cy, cz = np.subtract(center, origin)
        inside = (x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 <= radius**2
        hu[inside] = TISSUE
        labels[inside] = number
        rows.append(
            PreparedNodule(
                number=number, name=f"n{number}", center_mm=(center[0], center[1], center[2]),
                diameter_mm=2 * radius, mask_from="voxels", readers=None, voxels=int(inside.sum()),
            )
        )  # fmt: skip
    prep = PreprocessSpec()
    form = PreparedForm(
        layout=LAYOUT, key=uid, uid=uid, patient=patient or uid, subset=subset, composite=True, whole_chest=True,
        preprocessing=grid_numbers(prep), origin_mm=origin, spacing_mm=1.0, shape=shape, nodules=tuple(rows),
        ignored=ignored,
    )  # fmt: skip
    folder = cache / uid
    folder.mkdir(parents=True)
    np.save(folder / "hu.npy", hu.round().astype(np.int16))
    np.save(folder / "labels.npy", labels)
    np.save(folder / "distance.npy", np.full(shape, -5, dtype=np.int8))
    (folder / "case.json").write_text(to_json(form))
    keys = {other.name: other.name for other in cache.iterdir() if other.is_dir()}
    (cache / "index.json").write_text(to_json(Index(preprocessing=grid_numbers(prep), keys=keys)))
    return open_scan(folder)
