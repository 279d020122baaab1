"""Fits the Mask R-CNN on composites, read top-down: settings, data, model, optimizer, loop.

Checkpoints are two files, `last.safetensors` and `last.json`; a run that finds them goes on where they end.
Sample n of seed s is always the same, so a resumed run sees what the unbroken one would have seen.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from dicom_node.model.network import build_network
from dicom_node.model.preprocess import network_input
from dicom_node.model.spec import NetworkSpec, PreprocessSpec
from training.compose import LEAST_WIDTH_MM, Sample, SliceComposer
from training.ignore import IgnoringRoIHeads, IgnoringRPN
from training.prepare import prepare
from training.voi import split

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """size: crop in grid voxels. minutes: the run (and its cosine) ends here if `steps` are not reached first."""

    steps: int = 4500
    minutes: float = math.inf
    batch: int = 4
    size: int = 96
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_steps: int = 150
    clip_norm: float = 5.0
    save_every: int = 100
    seed: int = 1


def fit(data: Path, cache: Path, out: Path, network: NetworkSpec, prep: PreprocessSpec, settings: FitSettings) -> None:
    """Trains into `out` until the steps or the minutes are used up."""
    torch.manual_seed(settings.seed)
    backgrounds, vois = prepare(data, cache, prep)
    composer = SliceComposer(backgrounds, split(vois)[0], prep, settings.size)
    model = build_network(network, prep, norm=nn.BatchNorm2d, rpn_type=IgnoringRPN, roi_type=IgnoringRoIHeads).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.0, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    step, used_s = resume(out, model, optimizer)
    started = time.monotonic() - used_s
    while step < settings.steps and time.monotonic() - started < 60 * settings.minutes:
        progress = max(step / settings.steps, (time.monotonic() - started) / (60 * settings.minutes))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step, progress)
        losses = train_step(model, optimizer, batch_of(composer, settings, step, prep), settings.clip_norm)
        step += 1
        if step % 20 == 0:
            log.info("step", extra={"action": "step", "step": step, **losses})
        if step % settings.save_every == 0:
            save(out, model, optimizer, settings, step, time.monotonic() - started)
    save(out, model, optimizer, settings, step, time.monotonic() - started)


def learning_rate(settings: FitSettings, step: int, progress: float) -> float:
    """Linear warm-up, then half a cosine to one hundredth."""
    warm = min(1.0, (step + 1) / settings.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return settings.learning_rate * warm * (0.01 + 0.99 * cosine)


def batch_of(
    composer: SliceComposer, settings: FitSettings, step: int, prep: PreprocessSpec
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    samples = [composer.sample(settings.seed, step * settings.batch + i) for i in range(settings.batch)]
    planes = torch.from_numpy(np.stack([s.planes_hu for s in samples]))
    return list(network_input(planes, prep)), [target_of(s, prep.upsampling) for s in samples]


def target_of(sample: Sample, upsampling: int) -> dict[str, Tensor]:
    """Boxes and masks in model pixels; too small cuts, and what nobody is sure of, become ignore boxes."""
    ignore = [torch.tensor(box) * upsampling for box in sample.ignore]
    boxes, masks = [], []
    soft = torch.from_numpy(sample.masks)[:, None]
    if len(soft) and upsampling > 1:
        soft = functional.interpolate(soft, scale_factor=upsampling, mode="bilinear", align_corners=False)
    for mask in soft[:, 0] >= 0.5:
        rows, columns = torch.nonzero(mask.any(dim=1))[:, 0], torch.nonzero(mask.any(dim=0))[:, 0]
        box = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).double()
        if (box[2:] - box[:2]).min() < LEAST_WIDTH_MM * upsampling:
            ignore.append(box)
        else:
            boxes.append(box)
            masks.append(mask)
    size = [n * upsampling for n in sample.planes_hu.shape[1:]]
    return {
        "boxes": torch.stack(boxes).float() if boxes else torch.zeros(0, 4),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
        "masks": torch.stack(masks).to(torch.uint8) if masks else torch.zeros(0, *size, dtype=torch.uint8),
        "ignore": torch.stack(ignore).float() if ignore else torch.zeros(0, 4),
    }


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[list[Tensor], list[dict[str, Tensor]]],
    clip_norm: float,
) -> dict[str, float]:
    """One update; an update that is not finite is left out rather than poisoning the run."""
    losses: dict[str, Tensor] = model(*batch)
    total = torch.stack(list(losses.values())).sum()
    optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    if torch.isfinite(norm):
        optimizer.step()
    return {name: value.item() for name, value in {"total": total, "norm": norm, **losses}.items()}


def save(
    out: Path, model: nn.Module, optimizer: torch.optim.Optimizer, settings: FitSettings, step: int, used_s: float
) -> None:
    """Weights and momentum in one file, written aside and renamed, so that a kill leaves the last good one."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        if "momentum_buffer" in optimizer.state[parameter]:
            tensors[f"momentum.{name}"] = optimizer.state[parameter]["momentum_buffer"]
    state = {"step": step, "used_s": used_s, "settings": asdict(settings)}
    save_file(tensors, out / "last.safetensors.part", metadata={"state": json.dumps(state)})
    (out / "last.safetensors.part").replace(out / "last.safetensors")
    (out / "last.json").write_text(json.dumps(state, indent=1))


def resume(out: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """(steps done, seconds used) of the checkpoint in `out`; (0, 0.0) where there is none."""
    if not (out / "last.safetensors").exists():
        return 0, 0.0
    tensors = load_file(out / "last.safetensors")
    model.load_state_dict({n.removeprefix("model."): v for n, v in tensors.items() if n.startswith("model.")})
    for name, parameter in model.named_parameters():
        if f"momentum.{name}" in tensors:
            optimizer.state[parameter]["momentum_buffer"] = tensors[f"momentum.{name}"]
    state = json.loads((out / "last.json").read_text())
    return int(state["step"]), float(state["used_s"])
