"""Trains the Mask R-CNN of a recipe on prepared scans. Read top-down: run, data, model, optimizer, loop, one update.

Started by torchrun it trains on several processes: each update then consumes the same samples as one process
with so many times the accumulation, and gives the same weights.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import FrozenBatchNorm2d

from dicom_node.errors import DicomNodeError
from dicom_node.model.network import build_network
from training.checkpoint import Averaged, load_checkpoint, save_checkpoint
from training.ignore import IgnoringRoIHeads, IgnoringRPN
from training.prepared import PreparedScan
from training.progress import Progress
from training.recipe import Recipe
from training.sampling import Sampler
from training.slices import Block, cut, sample
from training.team import Team
from training.weights import load_initial

log = logging.getLogger(__name__)

LOSSES, NON_FINITE = "losses.jsonl", "non_finite"
VALIDATION_SEED = 1_000_003
Batch = list[Block]


class TrainingFailed(DicomNodeError):
    """The run can't go on. The text says what was kept, and where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one run reads and writes. hard_mm: scan uid -> (n, 3) LPS of known false candidates.

    workers: processes that cut blocks beside the training one; 0 cuts them in it.
    """

    recipe: Recipe
    scans: Sequence[PreparedScan]
    validation: Sequence[PreparedScan]
    hard_mm: Mapping[str, NDArray[np.float64]]
    run: Path
    workers: int = 0


def train(job: Job, team: Team, stop: Callable[[], bool] = lambda: False) -> int:
    """Trains to the recipe's last step, from the run's checkpoint where there is one. Returns the steps done.

    stop: asked after each update; True ends the run with a checkpoint, to go on from later.
    Raises DataProblem, ConfigError, TrainingFailed.
    """
    recipe, plan = job.recipe, job.recipe.optimisation
    job.run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    # Convolutions over channels that lie together are faster, by an eighth on a CPU.
    model = build_model(recipe).to(team.device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=plan.momentum, weight_decay=plan.weight_decay)
    averaged = Averaged(model, plan.ema_decay)
    first = load_checkpoint(job.run, recipe, model, averaged, optimizer)
    parallel = team.wrap(model)
    batches = iter(_loader(job, team, first))
    with Progress(job.run, recipe, first, quiet=not team.leads) as progress, _losses(job.run, first, team) as write:
        step, bad = first, 0
        while step < plan.steps:
            learning_rate = set_learning_rate(optimizer, recipe, step)
            losses = update(parallel, optimizer, batches, recipe, team, step)
            bad = 0 if losses["finite"] else bad + 1
            if bad:
                _dump(job, team, step)
            if bad >= plan.non_finite_limit:
                raise TrainingFailed(
                    f"{bad} updates in a row were not finite, the last at step {step}: their batches are in "
                    f"{job.run / NON_FINITE}; lower optimisation.learning_rate, or look at the data"
                )
            if not bad:
                averaged.update(model, step)
            step += 1
            write(step, losses)
            progress.update(step, {**losses, "learning_rate": learning_rate})
            ends = step == plan.steps or team.agrees(stop())
            if job.validation and recipe.keeping.validation_slices and step % recipe.keeping.validate_every == 0:
                progress.validated(step, validate(job, averaged, team))
            if team.leads and (ends or step % recipe.keeping.save_every == 0):
                save_checkpoint(job.run, recipe, model, averaged, optimizer, step)
            if ends:
                break
    return step


def build_model(recipe: Recipe) -> nn.Module:
    """The recipe's network with its first weights; all layers learn."""
    norm = FrozenBatchNorm2d if recipe.optimisation.norm == "frozen" else nn.BatchNorm2d
    model = build_network(
        recipe.network, recipe.preprocessing, norm=norm, rpn_type=IgnoringRPN, roi_type=IgnoringRoIHeads
    )
    load_initial(model, recipe)
    return model


class _Blocks(Dataset[Block]):
    """Draw number -> Block."""

    def __init__(self, sampler: Sampler, recipe: Recipe) -> None:
        self._sampler, self._recipe = sampler, recipe

    def __getitem__(self, number: int) -> Block:
        return cut(self._sampler.draw(number), self._recipe.preprocessing, self._recipe.sampling.crop_mm)


def _loader(job: Job, team: Team, first: int) -> DataLoader[Any]:
    recipe = job.recipe
    sampler = Sampler(job.scans, recipe.sampling, recipe.augmentation, job.hard_mm, recipe.seed)
    numbers = list(passes(recipe, team, first))
    return DataLoader(
        _Blocks(sampler, recipe), batch_sampler=numbers, num_workers=job.workers, collate_fn=list,
        persistent_workers=job.workers > 0,
    )  # fmt: skip


def passes(recipe: Recipe, team: Team, first: int) -> Iterator[list[int]]:
    """The draw numbers of each forward pass of this process, from step `first` on: no two processes share one."""
    plan = recipe.optimisation
    for step in range(first, plan.steps):
        for part in range(plan.accumulate):
            start = pass_number(recipe, team, step, part) * plan.batch
            yield list(range(start, start + plan.batch))


def pass_number(recipe: Recipe, team: Team, step: int, part: int) -> int:
    """Counts the forward passes of all processes in one row."""
    return (step * recipe.optimisation.accumulate + part) * team.size + team.rank


def set_learning_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int) -> float:
    """Linear warm-up, then half a cosine from the full rate to its last share. Depends on the step alone."""
    plan = recipe.optimisation
    warm = min(1.0, (step + 1) / plan.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * step / plan.steps))
    rate = plan.learning_rate * warm * (plan.final_share + (1 - plan.final_share) * cosine)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    recipe: Recipe,
    team: Team,
    step: int,
) -> dict[str, float]:
    """One step of the optimizer. One that is not finite is left out on all processes alike, and what its passes did
    to the running statistics is undone."""
    plan = recipe.optimisation
    before = {name: value.clone() for name, value in model.named_buffers()} if plan.norm == "batch" else {}
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for part in range(plan.accumulate):
        # torchvision's samplers draw from torch's own stream: the same pass must see the same choice everywhere.
        torch.manual_seed(hash((recipe.seed, pass_number(recipe, team, step, part))) & 0x7FFF_FFFF)
        images, targets = sample(
            next(batches), recipe.preprocessing, recipe.sampling, recipe.augmentation, team.device, recipe.seed
        )
        last = part == plan.accumulate - 1
        with team.mixed_precision(), contextlib.nullcontext() if last else team.no_exchange(model):
            losses = cast(dict[str, Tensor], model(images, targets))
            total = torch.stack(list(losses.values())).sum()
            (total / plan.accumulate).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for name, value in {"total": total, **losses}.items():
            sums[name] = sums.get(name, torch.zeros((), device=team.device)) + value.detach() / plan.accumulate
    norm = nn.utils.clip_grad_norm_(model.parameters(), plan.clip_norm)
    sums = team.mean(sums)
    finite = bool(torch.isfinite(norm) & torch.isfinite(sums["total"]))
    if finite:
        optimizer.step()
        if before:
            team.share_buffers(model)
    else:
        for name, value in model.named_buffers():
            if name in before:
                value.copy_(before[name])
    return {**{name: value.item() for name, value in sums.items()}, "norm": norm.item(), "finite": float(finite)}


@torch.no_grad()
def validate(job: Job, averaged: Averaged, team: Team) -> dict[str, float]:
    """Mean losses of the averaged weights on fixed slices of the validation scans, without augmented intensity."""
    recipe = job.recipe
    model = build_network(
        recipe.network, recipe.preprocessing, rpn_type=IgnoringRPN, roi_type=IgnoringRoIHeads
    )  # fmt: skip
    model.load_state_dict({n: v for n, v in averaged.state.items() if not n.endswith("num_batches_tracked")})
    model.to(team.device).train()
    sampler = Sampler(job.validation, recipe.sampling, recipe.augmentation, {}, VALIDATION_SEED)
    sums: dict[str, float] = {}
    size = recipe.optimisation.batch
    parts = [range(n, n + size) for n in range(0, recipe.keeping.validation_slices, size)]
    with torch.random.fork_rng(devices=[]):
        for part in parts:
            torch.manual_seed(VALIDATION_SEED + part.start)
            blocks = [cut(sampler.draw(n), recipe.preprocessing, recipe.sampling.crop_mm) for n in part]
            images, targets = sample(blocks, recipe.preprocessing, recipe.sampling, None, team.device, VALIDATION_SEED)
            for name, value in model(images, targets).items():
                sums[name] = sums.get(name, 0.0) + value.item() / len(parts)
    return {**sums, "total": sum(sums.values())}


@contextlib.contextmanager
def _losses(run: Path, first: int, team: Team) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """losses.jsonl: a line an update. What a killed run wrote after its last checkpoint is cut off and done again."""
    if not team.leads:
        yield lambda step, losses: None
        return
    path = run / LOSSES
    kept = path.read_text().splitlines()[:first] if path.exists() else []
    aside = path.with_suffix(".part")
    aside.write_text("".join(line + "\n" for line in kept))
    aside.replace(path)
    with path.open("a") as file:

        def write(step: int, losses: Mapping[str, float]) -> None:
            file.write(json.dumps({"step": step, **losses}) + "\n")
            file.flush()

        yield write


def _dump(job: Job, team: Team, step: int) -> None:
    """The passes of this process that gave an update that is not finite, as the network saw them, to be looked at."""
    recipe = job.recipe
    sampler = Sampler(job.scans, recipe.sampling, recipe.augmentation, job.hard_mm, recipe.seed)
    folder = job.run / NON_FINITE
    folder.mkdir(exist_ok=True)
    for part in range(recipe.optimisation.accumulate):
        number = pass_number(recipe, team, step, part)
        draws = range(number * recipe.optimisation.batch, (number + 1) * recipe.optimisation.batch)
        blocks = [cut(sampler.draw(n), recipe.preprocessing, recipe.sampling.crop_mm) for n in draws]
        images, targets = sample(
            blocks, recipe.preprocessing, recipe.sampling, recipe.augmentation, torch.device("cpu"), recipe.seed
        )
        tensors: dict[str, Any] = {f"image{i}": image.contiguous() for i, image in enumerate(images)}
        tensors |= {f"{name}{i}": value.contiguous() for i, t in enumerate(targets) for name, value in t.items()}
        save_file(tensors, folder / f"step{step}-pass{number}.safetensors", metadata={"first_draw": str(draws.start)})
    log.warning("update left out", extra={"action": "non_finite", "step": step, "kept": str(folder)})


def stop_when(minutes: float | None, clock: Callable[[], float] = time.monotonic) -> Callable[[], bool]:
    """True once so many minutes have passed since now; None: never."""
    end = math.inf if minutes is None else clock() + 60 * minutes
    return lambda: clock() >= end
