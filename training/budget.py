"""What a reproduction needs, said before it starts: disk from the scans' headers, time and memory from a short trial.

The trial runs the recipe's own network forward and back on one made-up crop on this machine. Everything is an
estimate and called one.
"""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import FrozenBatchNorm2d

from dicom_node.errors import DicomNodeError
from dicom_node.model.detector import checked_device
from dicom_node.model.network import build_network
from training.cases import Scan
from training.ignore import IgnoringRoIHeads, IgnoringRPN
from training.readers.luna16 import size_mm
from training.recipe import Recipe, Refinement
from training.refine import build

CACHE_BYTES_A_VOXEL = 4  # int16 HU, uint8 labels, int8 distance
LUNG_SHARE = 0.6  # what cropping to the lungs keeps of a field of view; 0.53 and 0.57 seen
PREPARE_S = 10.0  # CPU seconds to read, resample and crop a scan; 6 to 15 seen
LUNG_SLICES = 270  # grid slices that the network looks at in a scan
BACKWARD_SHARE = 2 / 3  # of an update; the rest is what a slice costs when a scan is only looked at
TRIAL_BOX = (0.4, 0.4, 0.5, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """disk_gb: of the cache and all runs; free_gb: where they go. hours: of each stage. memory_gb: of the device."""

    scans: int
    folds: int
    disk_gb: float
    free_gb: float
    hours: dict[str, float]
    memory_gb: float
    device: str

    def told(self) -> list[str]:
        stages = ", ".join(f"{name} {_hours(value)}" for name, value in self.hours.items())
        memory = "GPU memory" if self.device.startswith("cuda") else "memory"
        return [
            f"{self.scans} scans, {self.folds} fold{'s' if self.folds > 1 else ''}, on {self.device}; estimates:",
            f"disk    {self.disk_gb:.0f} GB of {self.free_gb:.0f} GB free",
            f"time    {_hours(sum(self.hours.values()))} ({stages})",
            f"memory  {self.memory_gb:.1f} GB of {memory} for training",
        ]

    def check(self) -> None:
        """Raises DicomNodeError where the disk is too small."""
        if self.disk_gb > self.free_gb:
            raise DicomNodeError(
                f"about {self.disk_gb:.0f} GB are needed, {self.free_gb:.0f} GB are free: free some, or change --out"
            )


def estimate(scans: Sequence[Scan], recipe: Recipe, out: Path, folds: int, device: str, workers: int) -> Budget:
    """Reads the scans' headers, and trains one update to time it. Raises ConfigError where the device is not here."""
    update_s, memory_gb, weights_gb = _trial(recipe, device)
    spacing = recipe.preprocessing.spacing_mm
    voxels = sum(float(np.prod(size_mm(scan.files[0]))) / spacing**3 for scan in scans)
    slice_s = update_s * (1 - BACKWARD_SHARE) / recipe.optimisation.batch
    look_s = LUNG_SLICES / recipe.preprocessing.slice_step * slice_s
    # Validation and test of a fold are a fifth of all scans; candidates are mined in as many again.
    looked_at = folds * (0.2 * len(scans) * (2 if recipe.refinement else 1))
    hours = {
        "prepare": len(scans) * PREPARE_S / workers / 3600,
        "train": folds * recipe.optimisation.steps * recipe.optimisation.accumulate * update_s / 3600,
        "evaluate": looked_at * look_s / 3600,
    }
    if recipe.refinement is not None:
        learning = recipe.refinement.learning
        whole_h = learning.steps * _cube_update_s(recipe.refinement, device) / 3600
        hours["refine"] = folds * (whole_h if learning.minutes is None else min(whole_h, learning.minutes / 60))
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    return Budget(
        scans=len(scans),
        folds=folds,
        disk_gb=(voxels * LUNG_SHARE * CACHE_BYTES_A_VOXEL) / 1e9 + folds * 5 * weights_gb,
        free_gb=shutil.disk_usage(there).free / 1e9,
        hours=hours,
        memory_gb=memory_gb,
        device=device,
    )


def _trial(recipe: Recipe, device: str) -> tuple[float, float, float]:
    """(seconds of an update, GB of memory, GB of weights): the second of two passes, on one crop, times the batch."""
    where = checked_device(device)
    model = build_network(
        recipe.network, recipe.preprocessing, norm=FrozenBatchNorm2d, rpn_type=IgnoringRPN, roi_type=IgnoringRoIHeads
    )
    model.to(where).train()
    side = recipe.sampling.crop_mm * recipe.preprocessing.upsampling
    box = torch.tensor([TRIAL_BOX]) * side
    mask = torch.zeros(1, side, side, dtype=torch.uint8)
    mask[0, int(box[0, 1]) : int(box[0, 3]), int(box[0, 0]) : int(box[0, 2])] = 1
    target = {"boxes": box, "labels": torch.ones(1, dtype=torch.int64), "masks": mask, "ignore": torch.zeros(0, 4)}
    target = {name: value.to(where) for name, value in target.items()}
    image = torch.rand(len(recipe.preprocessing.slice_offsets), side, side, device=where)
    for _ in range(2):
        started = time.perf_counter()
        sum(model([image], [target]).values()).backward()
        if where.type == "cuda":
            torch.cuda.synchronize()
        took_s = time.perf_counter() - started
    weights_gb = sum(value.numel() for value in model.state_dict().values()) * 4 / 1e9
    used_gb = (
        torch.cuda.max_memory_allocated(where) / 1e9
        if where.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    )
    batch = recipe.optimisation.batch
    return took_s * batch, used_gb + (batch - 1) * max(used_gb - 4 * weights_gb, 0), weights_gb


def _cube_update_s(refinement: Refinement, device: str) -> float:
    """Seconds of an update of the second stage: a quarter of its batch, times four."""
    where, spec = torch.device(device), refinement.network
    model = build(spec).to(where).train()
    some = max(2, refinement.learning.batch // 4)
    cubes = torch.rand(some, 1, spec.cube, spec.cube, spec.cube, device=where)
    for _ in range(2):
        started = time.perf_counter()
        model(cubes).sum().backward()
        if where.type == "cuda":
            torch.cuda.synchronize()
        took_s = time.perf_counter() - started
    return took_s * refinement.learning.batch / some


def _hours(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
