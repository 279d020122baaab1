"""What each profile makes of a fixed source is what tests/golden says, read from the objects' bytes."""

from __future__ import annotations

import difflib

import pytest

from dicom_node.profiles import BUILT_IN_PROFILES
from tests.golden import FOLDER, as_text, golden
from tests.golden.cases import Case, cases


def test_each_profile_has_its_golden_file_and_no_other_is_there() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(BUILT_IN_PROFILES)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return list(cases(tmp_path_factory.mktemp("ct")))


@pytest.mark.parametrize("name", BUILT_IN_PROFILES)
def test_a_profile_makes_what_its_golden_file_says(name: str, source: list[Case]) -> None:
    expected = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    made = as_text(golden(BUILT_IN_PROFILES[name], source))
    lines = difflib.unified_diff(expected.splitlines(), made.splitlines(), "golden", "made", lineterm="", n=2)
    assert made == expected, "if this is meant: python -m tests.golden\n" + "\n".join(lines)
