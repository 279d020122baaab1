"""The anchor contract, on the boxes that LIDC's real outlines give on the grid the network sees."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from dicom_node.domain import Volume
from dicom_node.grids import grid_affine
from dicom_node.model.network import REFERENCE, SMALL, best_anchor_iou
from dicom_node.model.spec import NetworkSpec, PreprocessSpec
from tests.fakes.luna16 import matched
from training.prepare import on_grid
from training.readers.lidc import Consensus
from training.readers.masks import nodule_of

pytestmark = pytest.mark.slow

LEAST_WIDTH_MM = 3.0
PREP = PreprocessSpec()
# torchvision's own sizes and ratios, a size a level; its fifth level, of 512, is beyond any nodule.
DEFAULTS = REFERENCE.model_copy(
    update={"anchors": ((32.0,), (64.0,), (128.0,), (256.0,)), "aspect_ratios": (0.5, 1.0, 2.0)}
)
RESIZED = 800 / 360  # its resize to 800 px, of LUNA16's median field of view


@cache
def boxes_mm(shared_data: Path) -> torch.Tensor:
    """x1, y1, x2, y2 of every 1 mm slice of every consensus, somewhere in the anchors' raster."""
    rng = np.random.default_rng(0)
    boxes: list[tuple[float, ...]] = []
    for scan, _, found in matched(shared_data).values():
        for match in found:
            if match is not None:
                boxes += slices_of(match.nodule, scan.spacing_mm, rng)
    return torch.tensor(boxes, dtype=torch.float32)


def slices_of(
    agreed: Consensus, spacing_mm: tuple[float, float, float], rng: np.random.Generator
) -> list[tuple[float, ...]]:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *spacing_mm, 1.0
    affine[:3, 3] = rng.random(3)
    volume = Volume(hu=np.zeros(agreed.mask.shape, dtype=np.int16), affine=affine)
    size = np.ceil(np.multiply(agreed.mask.shape, spacing_mm)).astype(int) + 4
    grid = Volume(hu=np.zeros(size, dtype=np.int16), affine=grid_affine(np.full(3, -2.0), PREP.spacing_mm))
    inside, _ = on_grid(volume, nodule_of(agreed.mask, (0, 0, 0), volume, "real"), grid)
    boxes = []
    for plane in inside[inside.any(axis=(1, 2))]:
        rows, columns = np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0))
        x, y = rng.integers(0, 64, 2)
        boxes.append((x + columns[0], y + rows[0], x + columns[-1] + 1.0, y + rows[-1] + 1.0))
    return boxes


def reached(spec: NetworkSpec, boxes: torch.Tensor, pixels: float) -> tuple[float, float]:
    """Which part reaches IoU 0.5 with an anchor, which stays under 0.3."""
    wide = (boxes[:, 2:] - boxes[:, :2]).amin(dim=1) >= LEAST_WIDTH_MM
    iou = best_anchor_iou(spec, boxes[wide] * pixels)
    return float((iou >= 0.5).float().mean()), float((iou < 0.3).float().mean())


def test_the_boxes_are_those_of_luna16(shared_data: Path):
    boxes = boxes_mm(shared_data)
    width = (boxes[:, 2:] - boxes[:, :2]).amin(dim=1)
    assert len(boxes) > 9000
    assert float((width < LEAST_WIDTH_MM).float().mean()) < 0.1
    assert 5 < float(width.median()) < 10


@pytest.mark.parametrize("spec", [SMALL, REFERENCE], ids=["small", "reference"])
def test_nearly_every_real_box_has_an_anchor(spec: NetworkSpec, shared_data: Path):
    good, lost = reached(spec, boxes_mm(shared_data), PREP.upsampling)
    assert good >= 0.90
    assert lost <= 0.03


def test_torchvisions_own_anchors_lose_most_nodules(shared_data: Path):
    good, lost = reached(DEFAULTS, boxes_mm(shared_data), RESIZED)
    assert good < 0.5
    assert lost > 0.3
