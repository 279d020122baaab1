"""The GPU of a work process -> its memory and use, every few seconds. Needs torch: for the work role alone."""

from __future__ import annotations

import threading

import torch

from dicom_node.metrics.record import gpu_sampled

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
        while True:
            sample(self._device)
            if self._stopping.wait(self._every_s):
                return


def sample(device: str) -> None:
    """One look. A driver that does not answer leaves the last values standing; the analysis says what is wrong."""
    try:
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    except RuntimeError:
        return
    gpu_sampled(device, used_bytes=total_bytes - free_bytes, total_bytes=total_bytes, use_ratio=_use_ratio(device))


def _use_ratio(device: str) -> float | None:
    """None where NVML can't be asked: without the extra `gpu`, or where the driver does not tell it (MIG)."""
    try:
        return torch.cuda.utilization(device) / 100.0
    except Exception:  # noqa: BLE001  NVML's errors have no class of torch, and none of them matters here
        return None
