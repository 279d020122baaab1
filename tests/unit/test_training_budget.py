"""What a reproduction needs is estimated from the scans' headers and a trial, and said in plain units."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_node.errors import ConfigError
from tests.fakes.luna16 import FakeScan, write_luna16
from tests.fakes.recipes import tiny_recipe
from training.budget import CACHE_BYTES_A_VOXEL, LUNG_SHARE, Budget, estimate
from training.readers.luna16 import list_luna16, size_mm


def test_disk_grows_with_the_scans_and_time_with_the_steps(tmp_path: Path) -> None:
    database = write_luna16(tmp_path, *(FakeScan(uid=f"1.2.{n}", subset=n) for n in range(2)))
    scans = list_luna16(tmp_path, database=database).scans
    short = estimate(scans, tiny_recipe(), tmp_path, 1, "cpu", 1)
    long = estimate(scans, tiny_recipe(optimisation={"steps": 8000}), tmp_path, 1, "cpu", 1)
    x, y, z = size_mm(scans[0].files[0])
    assert short.disk_gb > 2 * x * y * z * LUNG_SHARE * CACHE_BYTES_A_VOXEL / 1e9
    assert long.hours["train"] > 20 * short.hours["train"]
    assert short.free_gb > 0
    assert short.memory_gb > 0


def test_a_device_that_is_not_here_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this machine has 0 CUDA devices"):
        estimate([], tiny_recipe(), tmp_path, 1, "cuda:7", 1)


def test_hours_are_told_in_units_that_fit() -> None:
    hours = {"prepare": 0.5, "train": 3.0, "evaluate": 90.0}
    said = Budget(scans=3, folds=2, disk_gb=5, free_gb=9, hours=hours, memory_gb=2.5, device="cuda:0").told()
    assert said[0] == "3 scans, 2 folds, on cuda:0; estimates:"
    assert said[2] == "time    3.9 days (prepare 30 min, train 3.0 h, evaluate 3.8 days)"
    assert said[3] == "memory  2.5 GB of GPU memory for training"
