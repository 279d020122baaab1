"""Claims about folds: each subset is tested once, and no patient is ever on two sides."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.cases import DataProblem
from training.folds import Fold, fold
from training.prepared import LAYOUT, PreparedForm, PreparedScan


def scan(number: int, subset: int | None, patient: str) -> PreparedScan:
    form = PreparedForm(
        layout=LAYOUT,
        key=f"k{number}",
        uid=f"1.2.{number}",
        patient=patient,
        subset=subset,
        composite=False,
        whole_chest=True,
        preprocessing={},
        origin_mm=(0.0, 0.0, 0.0),
        spacing_mm=1.0,
        shape=(1, 1, 1),
        nodules=(),
        ignored=(),
    )
    return PreparedScan(folder=Path(form.key), form=form)


ALL_TEN = [scan(n, n % 10, f"P{n}") for n in range(30)]
SCANS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 15)), max_size=40).map(
    lambda rows: ALL_TEN + [scan(100 + n, subset, f"P{patient}") for n, (subset, patient) in enumerate(rows)]
)


def uids(part: list[PreparedScan]) -> set[str]:
    return {s.form.uid for s in part}


@settings(deadline=None)
@given(SCANS, st.integers(0, 9))
def test_no_patient_is_on_two_sides_and_no_scan_is_lost(scans: list[PreparedScan], k: int):
    try:
        parts = fold(scans, k)
    except DataProblem:  # patients of the two subsets may hold all the others
        return
    sides = [parts.train, parts.validation, parts.test]
    patients = [{s.form.patient for s in side} for side in sides]
    assert not patients[0] & patients[1]
    assert not patients[0] & patients[2]
    assert not patients[1] & patients[2]
    assert sum(len(side) for side in (*sides, parts.guarded)) == len(scans)
    assert uids(parts.test) == {s.form.uid for s in scans if s.form.subset == k}
    assert {s.form.subset for s in parts.validation} <= {(k + 9) % 10}
    kept_out = patients[1] | patients[2]
    assert all(s.form.patient in kept_out for s in parts.guarded)


@settings(deadline=None)
@given(SCANS)
def test_every_scan_is_tested_once_in_ten_folds(scans: list[PreparedScan]):
    tested = []
    for k in range(10):
        try:
            tested += [s.form.uid for s in fold(scans, k).test]
        except DataProblem:
            return
    assert sorted(tested) == sorted(s.form.uid for s in scans)


def test_the_subset_before_validates():
    parts = fold(ALL_TEN, 0)
    assert {s.form.subset for s in parts.test} == {0}
    assert {s.form.subset for s in parts.validation} == {9}
    assert {s.form.subset for s in parts.train} == set(range(1, 9))


def test_the_one_patient_with_two_scans_is_kept_together():
    parts = fold([*ALL_TEN, scan(99, 4, "P0")], 0)
    assert "1.2.99" not in uids(parts.train)
    assert uids(parts.guarded) == {"1.2.99"}


@pytest.mark.parametrize("k", [-1, 10])
def test_there_are_ten_folds(k: int):
    with pytest.raises(DataProblem, match=f"no fold {k}"):
        fold(ALL_TEN, k)


def test_missing_subsets_matter_only_where_all_are_needed():
    some = [s for s in ALL_TEN if s.form.subset in (1, 2, 7)]
    assert uids(fold(some, 2).train) == uids([s for s in some if s.form.subset == 7])
    with pytest.raises(DataProblem, match="subset 0, 3, 4, 5, 6, 8, 9"):
        fold(some, 2, complete=True)
    with pytest.raises(DataProblem, match="nothing to train on"):
        fold([s for s in some if s.form.subset != 7], 2)


def test_scans_without_subset_have_no_folds():
    with pytest.raises(DataProblem, match="1 of 31 scans are in no subset"):
        fold([*ALL_TEN, scan(77, None, "P77")], 0)


def test_a_fold_that_mixes_a_patient_can_not_be_built():
    with pytest.raises(ValueError, match="two parts"):
        Fold(train=[scan(1, 1, "P1")], validation=[], test=[scan(2, 2, "P1")], guarded=[])
