"""The processes that train together: one alone, or as many as torchrun started (gloo on CPUs, NCCL on GPUs)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dicom_node.model.detector import checked_device


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """This process's place among them."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """One process writes files and talks to the terminal."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Gradients of all processes are averaged as they come."""
        return DistributedDataParallel(model, broadcast_buffers=False) if self.size > 1 else model

    def share_buffers(self, model: nn.Module) -> None:
        """Running statistics become the mean of what the processes saw: one of them writes the checkpoint."""
        if self.size == 1:
            return
        for value in model.buffers():
            if value.dtype.is_floating_point:
                dist.all_reduce(value)
                value /= self.size

    def no_exchange(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within it gradients only pile up: the last pass of an update sends them."""
        return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()

    def mixed_precision(self) -> AbstractContextManager[object]:
        """bf16 on a GPU; a CPU without matrix units is slower with it than without."""
        return torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.device.type == "cuda")

    def mean(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.size == 1:
            return values
        packed = torch.stack(list(values.values()))
        dist.all_reduce(packed)
        return dict(zip(values, packed / self.size, strict=True))

    def agrees(self, flag: bool) -> bool:
        """What the leader says, on all processes at the same step."""
        if self.size == 1:
            return flag
        said = torch.tensor([float(flag)], device=self.device)
        dist.broadcast(said, src=0)
        return bool(said.item())


@contextlib.contextmanager
def join_team(device: str) -> Iterator[Team]:
    """Reads what torchrun set (RANK, WORLD_SIZE, LOCAL_RANK); without it, a team of one. device: cpu or cuda.

    Raises ConfigError where the device is not here.
    """
    size, rank, local = (int(os.environ.get(key, n)) for key, n in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
    own = checked_device(f"cuda:{local}" if device == "cuda" else device)
    if size == 1:
        yield Team(rank=0, size=1, device=own)
        return
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield Team(rank=rank, size=size, device=own)
    finally:
        dist.destroy_process_group()
