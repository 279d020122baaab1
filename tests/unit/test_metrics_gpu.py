"""What a look at the GPU counts. The driver's answers are played: they need a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dicom_node import metrics
from dicom_node.metrics.files import merged
from dicom_node.metrics.gpu import sample


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
    assert shown(folder) == memory
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 25)
    sample("cuda:0")
    assert shown(folder) == {**memory, "dicom_node_gpu_use_ratio": 0.25}


def test_a_driver_that_does_not_answer_stops_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(device: str) -> tuple[int, int]:
        raise RuntimeError("no driver")

    monkeypatch.setattr(torch.cuda, "mem_get_info", away)
    sample("cuda:0")
    assert shown(folder) == {}
