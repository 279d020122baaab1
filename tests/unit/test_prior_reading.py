"""A Reading with the earlier CT's files: whatever is wrong with these, the findings stand and the report says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_node.comparison import NoPrior, PriorFiles
from dicom_node.config import GateConfig
from dicom_node.prior_reading import compared
from dicom_node.profiles import BUILT_IN_PROFILES
from dicom_node.results.objects import objects_for
from dicom_node.results.part10 import to_bytes
from dicom_node.results.reading import Reading
from tests.fakes.ct import make_ct_series
from tests.golden import made_of
from tests.golden.cases import Case, cases

LIMITS = GateConfig(min_slices=5, min_length_mm=0)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return next(case for case in cases(tmp_path_factory.mktemp("ct")) if case.name == "findings")


def reading(case: Case) -> Reading:
    assert case.reading is not None
    return case.reading


def earlier(folder: Path, case: Case, **header: str) -> PriorFiles:
    """The same CT and our results on it, as if of an earlier day."""
    images = make_ct_series(folder / "ct", hu=reading(case).volume.hu, header={"StudyDate": "20250101", **header})
    for each in made_of(case, BUILT_IN_PROFILES["ohif"]):
        (folder / f"{each.made.name}.dcm").write_bytes(to_bytes(each.made.ds))
    return PriorFiles(images=tuple(images), report=folder / "sr.dcm", segmentation=folder / "seg.dcm")


def said(made: Reading) -> str:
    """The text report, checked as all objects are."""
    [*_, text] = objects_for(made, {"old": BUILT_IN_PROFILES["legacy"]})
    return str(text.made.ds.to_json())


def test_that_there_is_no_earlier_ct_stands_in_the_report(case: Case) -> None:
    made = compared(reading(case), NoPrior(outcome="no_prior", text="No earlier CT was found."), LIMITS)
    assert "No earlier CT was found." in said(made)
    assert made.tracking == reading(case).tracking


def test_an_earlier_ct_that_cannot_be_used_is_told_and_loses_no_finding(case: Case, tmp_path: Path) -> None:
    files = earlier(tmp_path, case)
    files.report.write_bytes(b"no DICOM")
    made = compared(reading(case), files, LIMITS)
    assert made.comparison is not None
    assert made.comparison.outcome == "not_available"
    assert made.findings == reading(case).findings
    assert "failed" in said(made)


def test_an_earlier_ct_that_the_gate_refuses_is_told(case: Case, tmp_path: Path) -> None:
    files = earlier(tmp_path, case)
    made = compared(reading(case), PriorFiles(images=files.images[::3], report=files.report, segmentation=None), LIMITS)
    assert made.comparison is not None
    assert "cannot be compared with: TOO_THICK" in made.comparison.text


def test_a_ct_without_a_date_is_compared_with_nothing(case: Case, tmp_path: Path) -> None:
    undated = next(
        each for each in cases(tmp_path / "now", {"StudyDate": "", "StudyTime": ""}) if each.name == "findings"
    )
    made = compared(reading(undated), earlier(tmp_path, case), LIMITS)
    assert made.comparison is not None
    assert "does not say when it was acquired" in made.comparison.text


def test_the_same_files_make_the_same_reading(case: Case, tmp_path: Path) -> None:
    files = earlier(tmp_path, case, StudyInstanceUID="1.2.3.1", SeriesInstanceUID="1.2.3.2")
    one, other = (said(compared(reading(case), files, LIMITS)) for _ in range(2))
    assert one == other
