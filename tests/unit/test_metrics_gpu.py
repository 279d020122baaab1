"""What a look at the GPU counts. The driver's answers are played: they need a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dicom_node import metrics
from dicom_node.metrics.files import merged
from dicom_node.metrics.gpu import GpuWatch, sample


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    metrics.start(tmp_path, "work")
    yield tmp_path
    metrics.stop()


def shown(folder: Path) -> dict[str, float]:
    return {
        f"{sample.name} {sample.labels.get('kind', '')}".strip(): sample.value
        for metric in merged(folder)
        for sample in metric.samples
        if "gpu" in sample.name
    }


def test_memory_is_told_and_use_only_where_nvml_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_nvml(device: str) -> int:
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60, 80))
    monkeypatch.setattr(torch.cuda, "utilization", no_nvml)
    sample("cuda:0")
    memory = {"dicom_node_gpu_memory_bytes used": 20.0, "dicom_node_gpu_memory_bytes total": 80.0}
    memory |= {"dicom_node_gpu_up": 1.0}
    assert shown(folder) == memory
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 25)
    sample("cuda:0")
    assert shown(folder) == {**memory, "dicom_node_gpu_use_ratio": 0.25}


class NVMLError(Exception):
    """As of pynvml: no class of torch's, and no RuntimeError."""


@pytest.mark.parametrize(
    "error", [RuntimeError("no driver"), AssertionError("no CUDA in this torch"), NVMLError("lost")]
)
def test_a_driver_that_does_not_answer_stops_nothing_and_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def away(device: str) -> tuple[int, int]:
        raise error

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60, 80))
    monkeypatch.setattr(torch.cuda, "utilization", away)
    assert sample("cuda:0")
    monkeypatch.setattr(torch.cuda, "mem_get_info", away)
    assert not sample("cuda:0")
    assert shown(folder)["dicom_node_gpu_up"] == 0
    assert shown(folder)["dicom_node_gpu_memory_bytes total"] == 80, "what is remembered is marked as such"


@pytest.mark.parametrize("said", [2**32 - 1, 101, -1])
def test_a_use_that_is_no_share_is_not_told(folder: Path, monkeypatch: pytest.MonkeyPatch, said: int) -> None:
    """NVML's mark for a value that it has not is all bits set."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60, 80))
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: said)
    assert sample("cuda:0")
    assert "dicom_node_gpu_use_ratio" not in shown(folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_watch_goes_on_and_says_it_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = GpuWatch("cuda:0", every_s=0.001)
    watch.start()
    for _ in range(1000):
        if shown(folder):
            break
        time.sleep(0.01)
    watch.stop(10.0)
    assert shown(folder) == {"dicom_node_gpu_up": 0.0}
    assert caplog.text.count("does not answer") == 1
