"""LUNA16's layout on disk -> the table of the claims, on phantoms: each stage once, and none twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dicom_node.errors import DicomNodeError
from dicom_node.model.bundle import load_bundle
from tests.fakes.luna16 import FakeScan, write_luna16
from tests.fakes.recipes import tiny_recipe
from training import reproduce as module
from training.budget import Budget
from training.recipe import Recipe
from training.reproduce import Reproduction, reproduce, told
from training.team import Team

ALONE = Team(rank=0, size=1, device=torch.device("cpu"))
BALLS = ((42.0, 0.0, 0.0, 7.0), (-42.0, 10.0, 5.0, 6.0))


@pytest.fixture
def luna16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    scans = [
        FakeScan(uid=f"1.2.{subset}.{n}", subset=subset, patient=f"P{subset}{n}", nodules=BALLS, outlined=(3, 2))
        for subset, n in ((6, 0), (7, 0), (7, 1), (8, 0), (9, 0))
    ]
    database = write_luna16(tmp_path / "LUNA16", *scans)
    monkeypatch.setattr("training.readers.luna16.default_database", lambda: database)
    return tmp_path / "LUNA16"


def asked(luna16: Path, out: Path, recipe: Recipe) -> Reproduction:
    return Reproduction(
        luna16=luna16, out=out, recipe=recipe, folds=(9,), device="cpu", workers=1,
        command="python -m training reproduce", complete=False,
    )  # fmt: skip


def recipe() -> Recipe:
    learning = {"steps": 2, "batch": 2, "warmup_steps": 1, "save_every": 1, "validation_share": 0.5}
    return tiny_recipe(
        preprocessing={"upsampling": 1, "slice_step": 4},
        optimisation={"steps": 2, "warmup_steps": 1},
        refinement={"network": {"cube": 32, "widths": [4, 8]}, "learning": learning},
    )


@pytest.mark.slow
def test_one_fold_ends_in_the_table_of_the_claims_and_is_not_done_twice(
    luna16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    plan = asked(luna16, tmp_path / "out", recipe())
    assert reproduce(plan, ALONE, said.append, only_plan=True) == []
    assert not (tmp_path / "out").exists()
    assert any(line.startswith("disk ") for line in said)
    assert any(line.startswith("time ") for line in said)

    rows = reproduce(plan, ALONE, said.append)
    assert [row["claimed"] for row in rows] == [0.85, 0.92, 0.81, 0.88]
    assert all("LUNA16" not in row["data"] or "not" in row["data"] or "of LUNA16" in row["data"] for row in rows)
    assert "fold 9: 3 scans to train on, 1 to validate, 1 to test, 0 left out for their patients' sake" in said
    assert told(rows).splitlines()[-1] == "Research use, not for diagnosis"
    fold = tmp_path / "out" / "fold9"
    bundle = load_bundle(fold / "bundle")
    assert bundle.form.refinement is not None
    assert bundle.form.metrics
    tested = {path.name for path in (fold / "test" / "scans").iterdir()}
    assert tested == {"1.2.9.0.json"}
    refined = json.loads((fold / "refined" / "refinement.json").read_text())["scans"]
    assert refined == {"training": ["1.2.6.0", "1.2.7.0", "1.2.7.1"], "validation": ["1.2.8.0"]}

    def never(*_: object, **__: object) -> None:
        raise AssertionError("done twice")

    monkeypatch.setattr("dicom_node.model.detector.Detector.detect", never)
    monkeypatch.setattr("training.train.update", never)
    assert reproduce(plan, ALONE, said.append) == rows


def test_too_small_a_disk_is_said_before_anything_starts(
    luna16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Budget(scans=5, folds=1, disk_gb=90, free_gb=1, hours={}, memory_gb=1, device="cpu")
    monkeypatch.setattr(module, "estimate", lambda *_: small)
    with pytest.raises(DicomNodeError, match="about 90 GB are needed, 1 GB are free"):
        reproduce(asked(luna16, tmp_path / "out", recipe()), ALONE, lambda line: None)
    assert not (tmp_path / "out").exists()
