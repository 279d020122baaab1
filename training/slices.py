"""A Draw -> the network's input and target: planes cut through the turned volume, boxes and masks on the middle one.

`cut` reads a block of the memory-mapped scan (any process can do that); `sample` turns blocks into tensors on
the device that trains. Geometry comes first, slices after: a tilted crop shows real neighbouring voxels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dicom_node.model.preprocess import network_input
from dicom_node.model.spec import PreprocessSpec
from training.augment import vary_intensity
from training.recipe import Augmentation, Sampling
from training.sampling import Draw, ball_on_plane

Array = NDArray[np.float64]
Target = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What one sample needs of its scan. hu, labels: (d, h, w) round the crop, air where the scan ends.

    to_block: (3, 4), crop steps (x, y, z, 1) -> (slice, row, column) of the block.
    balls: (n, 3) x, y, radius in crop steps of what is ignored. A step is the grid's spacing.
    """

    hu: NDArray[np.int16]
    labels: NDArray[np.uint8]
    to_block: Array
    balls: Array
    number: int


def cut(draw: Draw, prep: PreprocessSpec, crop_mm: int) -> Block:
    """Reads the smallest block of the scan that holds the crop's planes."""
    scan = draw.scan
    to_index = np.empty((3, 4))
    to_index[:, 3] = scan.to_index(draw.center_mm)
    to_index[:, :3] = draw.frame[::-1]
    half = crop_mm / 2
    depth = (prep.slice_offsets[0], prep.slice_offsets[-1])
    ends = np.array(np.meshgrid([-half, half], [-half, half], depth)).reshape(3, -1)
    corners = to_index @ np.concatenate([ends, np.ones((1, ends.shape[1]))])
    low = np.floor(corners.min(axis=1)).astype(int)
    high = np.ceil(corners.max(axis=1)).astype(int) + 1
    to_index[:, 3] -= low
    balls = [ball_on_plane(np.array(ball[:3]), ball[3], draw) for ball in scan.form.ignored]
    return Block(
        hu=_window(scan.hu(), low, high, prep.air_hu),
        labels=_window(scan.labels(), low, high, 0),
        to_block=to_index,
        balls=np.array([ball for ball in balls if ball is not None]).reshape(-1, 3),
        number=draw.number,
    )


def _window(array: NDArray[Any], low: NDArray[np.int64], high: NDArray[np.int64], fill: int) -> NDArray[Any]:
    """array[low:high], where parts outside the array hold `fill`."""
    inside = tuple(slice(max(a, 0), max(min(b, n), 0)) for a, b, n in zip(low, high, array.shape, strict=True))
    out = np.full(tuple(high - low), fill, dtype=array.dtype)
    held = array[inside]
    if held.size:
        at = tuple(slice(s.start - a, s.stop - a) for s, a in zip(inside, low, strict=True))
        out[at] = held
    return out


def sample(
    blocks: Iterable[Block],
    prep: PreprocessSpec,
    sampling: Sampling,
    augmentation: Augmentation | None,
    device: torch.device,
    seed: int,
) -> tuple[list[Tensor], list[Target]]:
    """Input and targets of one forward pass, in model pixels. augmentation None: intensities stay as they are."""
    images, targets = [], []
    for block in blocks:
        hu = torch.from_numpy(block.hu).to(device)
        to_block = torch.from_numpy(block.to_block).to(device, torch.float32)
        planes = _at(hu, _plane_points(sampling.crop_mm, 1, prep.slice_offsets, to_block))
        if augmentation is not None:
            planes = vary_intensity(planes, augmentation, ((seed << 40) + block.number) % 2**63)
        images += list(network_input(planes[None], prep))
        targets.append(_target(block, to_block, prep, sampling, device))
    return images, targets


def _plane_points(crop_mm: int, fine: int, offsets: tuple[int, ...], to_block: Tensor) -> Tensor:
    """(planes, rows, columns, 3): where in the block the samples lie; `fine` samples a grid step in plane.

    The crop's middle is the centre of pixel crop_mm // 2, so that an exact frame samples voxels, not gaps.
    """
    steps = torch.arange(crop_mm * fine, device=to_block.device, dtype=torch.float32)
    along = (steps + 0.5) / fine - 0.5 - crop_mm // 2
    depth = torch.tensor(offsets, device=to_block.device, dtype=torch.float32)
    z, y, x = torch.meshgrid(depth, along, along, indexing="ij")
    return torch.stack([x, y, z, torch.ones_like(x)], dim=-1) @ to_block.T


def _at(block: Tensor, points: Tensor) -> Tensor:
    """Trilinear values of a (d, h, w) block at (planes, rows, columns, 3) indices."""
    size = torch.tensor(block.shape, device=block.device, dtype=torch.float32)
    scaled = (2 * points + 1) / size - 1
    values = functional.grid_sample(
        block[None, None].float(), scaled.flip(-1)[None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return values[0, 0]


def _target(block: Block, to_block: Tensor, prep: PreprocessSpec, sampling: Sampling, device: torch.device) -> Target:
    """Boxes and masks of the nodules that the middle plane shows; what is too little of one, or cut off, is ignored."""
    up, side = prep.upsampling, sampling.crop_mm * prep.upsampling
    points = _plane_points(sampling.crop_mm, up, (0,), to_block)
    labels = torch.from_numpy(block.labels).to(device)
    boxes, masks = [], []
    ignored = _ball_boxes(block.balls, sampling.crop_mm, up)
    for number in np.unique(block.labels):
        if number == 0:
            continue
        mask = _at(labels == int(number), points)[0] >= 0.5
        if not mask.any():
            continue
        box = _box_of(mask)
        cut_off = bool(mask[0].any() | mask[-1].any() | mask[:, 0].any() | mask[:, -1].any())
        if cut_off or min(box[2] - box[0], box[3] - box[1]) < sampling.least_width_mm * up / prep.spacing_mm:
            ignored.append(box)
        else:
            boxes.append(box)
            masks.append(mask)
    return {
        "boxes": torch.tensor(boxes, device=device).reshape(-1, 4),
        "labels": torch.ones(len(boxes), dtype=torch.int64, device=device),
        "masks": torch.stack(masks).to(torch.uint8)
        if masks
        else torch.zeros(0, side, side, dtype=torch.uint8, device=device),
        "ignore": torch.tensor(ignored, device=device).reshape(-1, 4),
    }


def _ball_boxes(balls: Array, crop_mm: int, up: int) -> list[tuple[float, float, float, float]]:
    """x, y, radius off the crop's middle -> x1, y1, x2, y2 in model pixels, where they touch the crop."""
    middle, side = crop_mm // 2 + 0.5, crop_mm * up
    found = []
    for x, y, r in balls:
        x1, y1, x2, y2 = ((v + middle) * up for v in (x - r, y - r, x + r, y + r))
        if x2 > 0 and y2 > 0 and x1 < side and y1 < side:
            found.append((float(x1), float(y1), float(x2), float(y2)))
    return found


def _box_of(mask: Tensor) -> tuple[float, float, float, float]:
    rows, columns = torch.nonzero(mask.any(dim=1))[:, 0], torch.nonzero(mask.any(dim=0))[:, 0]
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
