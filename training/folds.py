"""Prepared scans -> training, validation and test, by LUNA16's subsets and never through a patient.

Fold k tests on subset k and validates on the one before it, (k + 9) % 10, so that each subset does both once in ten.
A patient with a scan in the test subset is in no other part, one with a scan in the validation subset not in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.cases import DataProblem
from training.prepared import PreparedScan

SUBSETS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """The three parts, and the scans that are in none because their patient is in another part."""

    train: list[PreparedScan]
    validation: list[PreparedScan]
    test: list[PreparedScan]
    guarded: list[PreparedScan]

    def __post_init__(self) -> None:
        patients = [{scan.form.patient for scan in part} for part in (self.train, self.validation, self.test)]
        if any(a & b for i, a in enumerate(patients) for b in patients[:i]):
            raise ValueError("a patient is in two parts of a fold")


def fold(scans: Sequence[PreparedScan], k: int, *, complete: bool = False) -> Fold:
    """Fold k of ten. complete: each of the ten subsets must hold scans, as for a figure on LUNA16.

    Raises DataProblem: no such fold, scans without subset, nothing to train on, subsets missing where all are needed.
    """
    if not 0 <= k < SUBSETS:
        raise DataProblem(f"there is no fold {k}: folds are 0 to {SUBSETS - 1}")
    unplaced = sum(scan.form.subset is None for scan in scans)
    if unplaced:
        raise DataProblem(f"{unplaced} of {len(scans)} scans are in no subset: only LUNA16 and composites have folds")
    missing = sorted(set(range(SUBSETS)) - {scan.form.subset for scan in scans})
    if complete and missing:
        raise DataProblem(f"no prepared scan is of subset {', '.join(map(str, missing))}: prepare all ten")
    before = (k + SUBSETS - 1) % SUBSETS
    tested = {scan.form.patient for scan in scans if scan.form.subset == k}
    validated = {scan.form.patient for scan in scans if scan.form.subset == before} - tested
    parts = Fold(
        test=[s for s in scans if s.form.subset == k],
        validation=[s for s in scans if s.form.subset == before and s.form.patient not in tested],
        train=[s for s in scans if s.form.subset not in (k, before) and s.form.patient not in tested | validated],
        guarded=[s for s in scans if s.form.subset != k and s.form.patient in tested]
        + [s for s in scans if s.form.subset not in (k, before) and s.form.patient in validated],
    )
    if not parts.train:
        raise DataProblem(f"fold {k} leaves nothing to train on: subsets other than {before} and {k} are needed")
    return parts
