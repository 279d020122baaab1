"""What a newcomer runs first: the demo and `infer`, as commands."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pydicom
import pytest
from PIL import Image

from tests.node import TINY, fast_bundle

COMMAND = str(Path(sys.executable).with_name("dicom-node"))
# LUNA16's annotation of the one nodule of 3 mm or more in LIDC-IDRI-0001.
NODULE_MM, DIAMETER_MM = (56.21, 86.34, -115.87), 23.4
FORM = {"series", "status", "reason", "findings", "files", "timings_s"}
FINDING = {"tracking_uid", "center_mm", "volume_mm3", "long_axis_mm", "short_axis_mm", "mean_hu", "side", "score"}


def run(*words: str, code: int = 0, seconds: float = 900) -> str:
    said = subprocess.run([COMMAND, *words], capture_output=True, text=True, check=False, timeout=seconds)
    assert said.returncode == code, said.stderr[-3000:]
    return said.stdout


def assert_in_the_common_form(result: dict[str, Any]) -> None:
    assert result.keys() >= FORM
    for found in result["findings"]:
        assert found.keys() >= FINDING
        assert len(found["center_mm"]) == 3
    assert "not for diagnosis" in result["notice"]


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_demo_finds_the_real_nodule_and_the_pacs_has_seg_and_sr(tmp_path: Path) -> None:
    result = json.loads(run("demo", "--json", "--out", str(tmp_path)))
    assert_in_the_common_form(result)
    assert result["status"] == "complete"
    first, *others = result["findings"]
    assert math.dist(first["center_mm"], NODULE_MM) < DIAMETER_MM / 2, "the nodule, by the highest score"
    assert len(others) <= 2, "false positives, as the model's card says"
    assert first["score"] == max(found["score"] for found in result["findings"])
    assert first["side"] == "left"
    assert 0.5 * DIAMETER_MM < first["long_axis_mm"] < 2 * DIAMETER_MM
    assert {delivery["state"] for delivery in result["deliveries"]} == {"stored"}
    modalities = {pydicom.dcmread(path).Modality for path in result["files"] if path.endswith(".dcm")}
    assert modalities == {"SEG", "SR"}
    assert [Path(path).name for path in result["files"] if path.endswith(".html")] == ["quicklook.html"]
    pictures = [path for path in result["files"] if path.endswith(".png")]
    assert len(pictures) == len(result["findings"])
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.width > 600
    assert {"read", "volume", "network", "results", "total"} <= result["timings_s"].keys()


@pytest.mark.parametrize("name", ["results", "thesis.txt", ".hidden"])
def test_demo_leaves_a_folder_that_no_demo_made_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").touch()
    said = subprocess.run([COMMAND, "demo", "--out", str(tmp_path)], capture_output=True, text=True, check=False)
    assert said.returncode == 2
    assert "holds something that no demo made" in said.stderr
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == [name, f"{name}/mine"]


def test_infer_does_the_job_without_a_network(tmp_path: Path) -> None:
    bundle = fast_bundle(tmp_path / "bundle")
    words = ("infer", str(TINY), "--model", str(bundle), "--max-slice-spacing-mm", "4.5", "--json")
    result = json.loads(run(*words, "--out", str(tmp_path / "out")))
    assert_in_the_common_form(result)
    assert result["status"] == "complete"
    assert sorted(Path(path).name for path in result["files"] if path.endswith(".dcm")) == ["seg.dcm", "sr.dcm"]
    again = json.loads(run(*words, "--out", str(tmp_path / "again")))
    assert again["findings"] == result["findings"], "the same scan gives the same findings under the same UIDs"


def test_infer_reports_why_a_series_is_not_analysed(tmp_path: Path) -> None:
    result = json.loads(run("infer", str(TINY), "--out", str(tmp_path), "--json", code=1))
    assert result["status"] == "rejected"
    assert result["reason"].startswith("TOO_THICK")
    [report] = result["files"]
    assert "NOT ANALYSED" in str(pydicom.dcmread(report))


def test_infer_says_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    said = subprocess.run(
        [COMMAND, "infer", str(tmp_path), "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert said.returncode == 2
    assert "holds no DICOM files" in said.stderr
