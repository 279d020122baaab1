"""The GPU of a work process -> its memory and use, every few seconds. Needs torch: for the work role alone."""

from __future__ import annotations

import logging
import threading

import torch

from dicom_node.logs import describe
from dicom_node.metrics.record import gpu_away, gpu_sampled

log = logging.getLogger(__name__)

_EVERY_S = 10.0


class GpuWatch:
    """Samples one device from a thread of its own. device: as in work.device, like "cuda:0"."""

    def __init__(self, device: str, *, every_s: float = _EVERY_S) -> None:
        self._device, self._every_s = device, every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, wait_s: float) -> None:
        self._stopping.set()
        self._thread.join(wait_s)

    def _run(self) -> None:
        answered = True
        while True:
            answered, before = sample(self._device), answered
            if before and not answered:
                log.warning("the GPU's driver does not answer", extra={"action": "gpu", "device": self._device})
            if self._stopping.wait(self._every_s):
                return


def sample(device: str) -> bool:
    """One look; whether the driver answered. Where it did not, the last values stand, marked as such."""
    try:
        # Of a MIG instance this is its own memory, as CUDA sees it; NVML would tell the whole card's.
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    except Exception as err:  # noqa: BLE001  CUDA's, torch's and the driver's errors have no common type; none matters
        log.debug("GPU not seen", extra={"action": "gpu", "device": device, "why": describe(err)})
        gpu_away(device)
        return False
    gpu_sampled(device, used_bytes=total_bytes - free_bytes, total_bytes=total_bytes, use_ratio=_use_ratio(device))
    return True


def _use_ratio(device: str) -> float | None:
    """None where NVML can't be asked: without the extra `gpu`, or where the driver does not tell it (MIG, vGPU)."""
    try:
        percent = torch.cuda.utilization(device)
    except Exception:  # noqa: BLE001  NVML's errors have no class of torch, and none of them matters here
        return None
    # NVML marks what it does not know by all bits set (NVML_VALUE_NOT_AVAILABLE), which is no share of anything.
    return percent / 100.0 if 0 <= percent <= 100 else None
