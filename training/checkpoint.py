"""A run's state <-> one safetensors file: weights, averaged weights, momentum, and how far it got.

Written aside, flushed and renamed: a kill at any moment leaves the last good one. Never a pickle.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from training.cases import DataProblem
from training.recipe import Recipe

LAST = "last.safetensors"
MODEL, AVERAGED, MOMENTUM = "model.", "averaged.", "momentum."


class Averaged:
    """An exponential moving average of a model's weights, which is what gets exported."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Early steps count less of the past: the first weights are no model yet."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)


def save_checkpoint(
    run: Path, recipe: Recipe, model: nn.Module, averaged: Averaged, optimizer: torch.optim.Optimizer, step: int
) -> None:
    tensors = {MODEL + name: value for name, value in model.state_dict().items()}
    tensors |= {AVERAGED + name: value for name, value in averaged.state.items()}
    for name, parameter in model.named_parameters():
        if "momentum_buffer" in optimizer.state[parameter]:
            tensors[MOMENTUM + name] = optimizer.state[parameter]["momentum_buffer"]
    packed = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    aside = run / (LAST + ".part")
    save_file(packed, aside, metadata={"state": json.dumps({"step": step, "recipe": recipe.model_dump(mode="json")})})
    with aside.open("rb") as written:
        os.fsync(written.fileno())
    aside.replace(run / LAST)


def load_checkpoint(
    run: Path, recipe: Recipe, model: nn.Module, averaged: Averaged, optimizer: torch.optim.Optimizer
) -> int:
    """Fills all three; the steps done. 0 where the run has no checkpoint. Raises DataProblem on another recipe's."""
    if not (run / LAST).exists():
        return 0
    state, tensors = read_checkpoint(run)
    if state["recipe"] != recipe.model_dump(mode="json"):
        raise DataProblem(f"{run / LAST} was made by another recipe: use another folder, or that recipe")
    model.load_state_dict(_part(tensors, MODEL))
    for name, value in _part(tensors, AVERAGED).items():
        averaged.state[name].copy_(value)
    momentum = _part(tensors, MOMENTUM)
    for name, parameter in model.named_parameters():
        if name in momentum:
            optimizer.state[parameter]["momentum_buffer"] = momentum[name].to(parameter.device)
    return int(state["step"])


def read_checkpoint(run: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(state, tensors) of a run folder. Raises DataProblem: none there, or cut short."""
    try:
        with safe_open(run / LAST, framework="pt") as stored:
            state: dict[str, Any] = json.loads((stored.metadata() or {})["state"])
            return state, {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # no dict
    except (OSError, KeyError, ValueError, SafetensorError) as err:
        raise DataProblem(f"{run / LAST} is no checkpoint that can be read: {err}") from err


def exported_weights(run: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(state, the network's weights as a bundle holds them)."""
    state, tensors = read_checkpoint(run)
    averaged = state["recipe"]["optimisation"]["ema_decay"] > 0
    weights = _part(tensors, AVERAGED if averaged else MODEL)
    return state, {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
