"""Claims about the nodule crops: they lie where the lists say, and some of them are nobody's to learn from."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.fakes.vois import ball
from training.cases import DataProblem
from training.voi import FORBIDDEN_SUBSET, HELD_OUT_SUBSET, TEST_PATIENTS, load_vois, read_voi, split


def rows_of(data: Path) -> list[dict[str, str]]:
    with (data / "nodule_voi" / "metadata.csv").open(newline="") as table:
        return list(csv.DictReader(table))


def test_nobody_learns_from_test_patients_or_held_out_ones():
    vois = [ball(patient=p, subset=1) for p in ("P1", *sorted(TEST_PATIENTS))]
    vois += [ball(patient="P2", subset=HELD_OUT_SUBSET), ball(patient="P2", subset=3)]
    learn, held_out = split(vois)
    assert [v.patient for v in learn] == ["P1"]
    assert [v.patient for v in held_out] == ["P2"]


def test_subset_9_stops_everything():
    with pytest.raises(DataProblem, match="subset 9"):
        split([ball(), ball(subset=9)])


def test_the_shared_crops_hold_none_of_subset_9(shared_data: Path):
    rows = rows_of(shared_data)
    assert len(rows) == 904
    assert not any(int(row["luna16_subset"]) == FORBIDDEN_SUBSET for row in rows)


def test_a_missing_list_is_named(tmp_path: Path):
    with pytest.raises(DataProblem, match=r"metadata\.csv is missing"):
        load_vois(tmp_path)


def test_a_missing_crop_is_named(tmp_path: Path, shared_data: Path):
    with pytest.raises(DataProblem, match=r"LIDC-IDRI-0004_R_1\.nii\.gz can't be read"):
        read_voi(tmp_path, next(row for row in rows_of(shared_data) if row["voi"] == "LIDC-IDRI-0004_R_1"))


def test_crops_lie_where_the_list_of_nodules_says(shared_data: Path):
    for row in rows_of(shared_data)[::60]:
        voi = read_voi(shared_data, row)
        listed = np.array([float(row[f"coord{axis}"]) for axis in "XYZ"])
        assert np.linalg.norm(voi.center_mm - listed) < max(2.0, 0.25 * voi.diameter_mm)


def test_the_blend_is_full_on_the_nodule_and_ends_within_millimetres(shared_data: Path):
    for row in rows_of(shared_data)[::200]:
        voi = read_voi(shared_data, row)
        assert (voi.blend[voi.mask] == 255).all()
        ends = voi.volume.to_mm(np.argwhere(voi.blend > 0).astype(np.float64))
        solid = voi.volume.to_mm(np.argwhere(voi.mask).astype(np.float64))
        nearest = [np.linalg.norm(solid - p, axis=1).min() for p in ends[:: max(1, len(ends) // 50)]]
        assert max(nearest) < 3.5 + max(voi.volume.spacing_mm)
