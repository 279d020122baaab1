"""LUNA16's name stands beside a figure only where scans, lists, definition and split are LUNA16's."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from training.evaluation import claims
from training.evaluation.claims import LUNA16_FROC, Fold, luna16_name
from training.evaluation.froc import Truths, read_truths


@dataclass(frozen=True, slots=True, kw_only=True)
class Official:
    """LUNA16's lists as published, and each scan's patient."""

    subsets: dict[str, int]
    patients: dict[str, str]
    nodules: Truths
    excluded: Truths

    def of(self, subset: int) -> list[str]:
        return [uid for uid, number in self.subsets.items() if number == subset]

    def fold(self, subset: int, *, guarded: bool = True) -> Fold:
        """A model trained on the other nine; guarded: without the patients that it is tested on."""
        tested = {uid: self.patients[uid] for uid in self.of(subset)}
        trained = {self.patients[uid] for uid, number in self.subsets.items() if number != subset}
        return Fold(tested=tested, trained_patients=frozenset(trained - set(tested.values()) if guarded else trained))


@pytest.fixture(scope="module")
def official(shared_data: Path) -> Official:
    folder = shared_data / "luna16"
    with gzip.open(folder / "subsets.csv.gz", "rt") as file:
        subsets = {row["seriesuid"]: int(row["subset"]) for row in csv.DictReader(file)}
    rows = gzip.decompress((folder / "lidc_patient_study_series.txt.gz").read_bytes()).decode().splitlines()[1:]
    return Official(
        subsets=subsets,
        patients={series: patient for patient, _, series in map(str.split, filter(str.strip, rows))},
        nodules=read_truths(folder / "annotations.csv.gz"),
        excluded=read_truths(folder / "annotations_excluded.csv.gz"),
    )


def test_the_fingerprints_are_those_of_the_official_lists(official: Official) -> None:
    chosen = {"all": list(official.subsets)} | {str(n): official.of(n) for n in range(10)}
    lists = {
        name: asdict(claims.describe(scans, official.nodules, official.excluded)) for name, scans in chosen.items()
    }
    raw = json.loads(claims.OFFICIAL.read_text())
    assert raw["lists"] == lists
    assert (lists["all"]["scans"], lists["all"]["nodules"], lists["all"]["excluded"]) == (888, 1186, 35192)
    assert raw["scans"].split() == sorted(claims._short(uid) for uid in official.subsets)
    assert len(set(raw["scans"].split())) == 888


def test_no_official_list_is_shipped() -> None:
    assert "1.3.6.1" not in claims.OFFICIAL.read_text()


def _named(official: Official, scans: list[str], folds: list[Fold] | None, definition: str = LUNA16_FROC) -> str:
    return luna16_name(scans, official.nodules, official.excluded, definition, folds)


def test_one_subset_by_a_model_that_saw_none_of_its_patients_has_the_name(official: Official) -> None:
    name = _named(official, official.of(3), [official.fold(3)])
    assert name == "LUNA16 (subset 3, 89 scans): LUNA16's FROC"


def test_ten_folds_over_all_scans_have_the_name_in_any_order(official: Official) -> None:
    folds = [official.fold(n) for n in reversed(range(10))]
    scans = sorted(official.subsets, reverse=True)
    assert _named(official, scans, folds) == "LUNA16 (ten folds, 888 scans): LUNA16's FROC"


@pytest.mark.parametrize("subset", [2, 6])
def test_the_patient_with_scans_in_two_subsets_costs_the_name_unless_left_out(official: Official, subset: int) -> None:
    name = _named(official, official.of(subset), [official.fold(subset, guarded=False)])
    assert name.startswith(f"on the 89 scans of LUNA16's subset {subset}, with patients in training")
    assert _named(official, official.of(subset), [official.fold(subset)]).startswith("LUNA16 ")


def _without(fold: Fold, count: int) -> Mapping[str, str]:
    return dict(list(fold.tested.items())[count:])


def test_other_splits_cost_the_name(official: Official) -> None:
    fold = official.fold(3)
    for folds in (None, [], [official.fold(4)], [fold, fold], [replace(fold, tested=_without(fold, 1))]):
        name = _named(official, official.of(3), folds)
        assert not name.startswith("LUNA16"), folds
        assert "split" in name


def test_nine_folds_are_not_ten(official: Official) -> None:
    name = _named(official, list(official.subsets), [official.fold(n) for n in range(9)])
    assert name.startswith("on LUNA16's 888 scans, with its own split")


def test_another_definition_costs_the_name(official: Official) -> None:
    name = _named(official, official.of(3), [official.fold(3)], "3D AP, IoU .10:.50:.05")
    assert not name.startswith("LUNA16")
    assert name.endswith("with a definition that is not LUNA16's: 3D AP, IoU .10:.50:.05")


def test_a_missing_excluded_list_costs_the_name(official: Official) -> None:
    none = Truths(series=np.array([], dtype=np.str_), xyz_mm=np.zeros((0, 3)), diameter_mm=np.zeros(0))
    name = luna16_name(official.of(3), official.nodules, none, LUNA16_FROC, [official.fold(3)])
    assert name.startswith("on the 89 scans of LUNA16's subset 3, with its own list of excluded findings (0;")


@pytest.mark.parametrize("moved_mm", [0.001, -0.001])
def test_a_moved_or_grown_nodule_costs_the_name(official: Official, moved_mm: float) -> None:
    n = official.nodules.series.tolist().index(next(u for u in official.of(3) if u in set(official.nodules.series)))
    xyz_mm, diameter_mm = official.nodules.xyz_mm.copy(), official.nodules.diameter_mm.copy()
    xyz_mm[n, 0] += moved_mm
    diameter_mm[n] += moved_mm
    for changed in ({"xyz_mm": xyz_mm}, {"diameter_mm": diameter_mm}):
        nodules = replace(official.nodules, **changed)
        name = luna16_name(official.of(3), nodules, official.excluded, LUNA16_FROC, [official.fold(3)])
        assert "its own list of nodules" in name
        # Rows of other scans play no part.
        other = luna16_name(official.of(4), nodules, official.excluded, LUNA16_FROC, [official.fold(4)])
        assert other.startswith("LUNA16 ")


def test_a_subset_of_the_scans_is_called_that(official: Official) -> None:
    assert _named(official, official.of(3)[1:], None).startswith("a subset of LUNA16's scans (88 of 888, own split)")


def test_scans_of_a_hospital_are_called_that(official: Official) -> None:
    assert _named(official, ["1.2.3", "1.2.4"], None).startswith("2 scans, none of LUNA16's")
    assert _named(official, ["1.2.3", official.of(1)[0]], None).startswith("2 scans, 1 of them among LUNA16's 888")


def test_composites_are_called_composites_whatever_their_scans_are_called(official: Official) -> None:
    fold = [official.fold(3)]
    name = luna16_name(official.of(3), official.nodules, official.excluded, LUNA16_FROC, fold, composites=True)
    assert name.startswith("composites (89 scans")
