"""What each profile makes of one fixed source, as text that can be compared: NAME.json beside this file.

After a change that is meant: python -m tests.golden, then read the difference before it is committed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dicom_node.profiles import ResultProfile
from dicom_node.results.objects import Addressed, objects_for, refusals_for
from tests.golden.cases import Case
from tests.golden.describe import described

FOLDER = Path(__file__).parent


def golden(profile: ResultProfile, cases: Iterable[Case]) -> dict[str, Any]:
    """Case -> the objects that the profile makes of it, described."""
    return {case.name: described(made_of(case, profile), case) for case in cases}


def made_of(case: Case, profile: ResultProfile) -> tuple[Addressed, ...]:
    profiles = {"destination": profile}
    return objects_for(case.reading, profiles) if case.reading else refusals_for(case.refusal, profiles)


def as_text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
