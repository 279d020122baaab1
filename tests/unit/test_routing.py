"""Rules: the first whose conditions all hold decides, and each one before it says why it did not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from dicom_node.config import Condition, GateConfig, RouteConfig
from dicom_node.routing import choose, facts_of, in_full, judge
from dicom_node.series import InstanceFile, check_series
from tests.unit.test_series import files_of, headers


def route(name: str = "r", **when: dict[str, Any]) -> RouteConfig:
    return RouteConfig.model_validate({"name": name, "model": "m", "when": when})


def failed(condition: dict[str, Any], *values: str | float) -> tuple[str, ...]:
    """What does not hold of a condition on KVP, of a series whose KVP has these values."""
    return judge(route(KVP=condition), lambda _keyword: list(values)).failed


HOLDS: list[tuple[dict[str, Any], tuple[str | float, ...]]] = [
    ({"equals": "CT"}, ("CT",)),
    ({"equals": "CT"}, (" CT ",)),
    ({"equals": 120}, ("120",)),
    ({"equals": "120"}, (120.0,)),
    ({"equals": "120.0"}, ("120",)),
    ({"equals": "nan"}, ("nan",)),
    ({"in": ["CT", "PT"]}, ("PT",)),
    ({"in": [80, 120]}, ("120",)),
    ({"regex": "^B[3-5]0"}, ("B50f",)),
    ({"regex": "(?i)lung"}, ("Thin Lung 1.0",)),
    ({"regex": "120"}, (120.0,)),
    ({"min": 100}, ("100",)),
    ({"max": 100}, (100.0,)),
    ({"min": 1, "max": 3}, ("2",)),
    ({"present": True}, ("x",)),
    ({"present": False}, ()),
]
FAILS: list[tuple[dict[str, Any], tuple[str | float, ...], str]] = [
    ({"equals": "CT"}, ("MR",), "KVP is MR, not CT"),
    ({"equals": "CT"}, ("ct",), "KVP is ct, not CT"),
    ({"equals": "CT"}, (), "KVP is absent, not CT"),
    ({"equals": 120}, ("120 kV",), "KVP is a value not shown here, not 120.0"),
    ({"in": ["CT", "PT"]}, ("MR",), "KVP is MR, none of CT, PT"),
    ({"in": ["CT"]}, (), "KVP is absent, none of CT"),
    ({"regex": "^lung"}, ("a lung",), "KVP is a value not shown here, which /^lung/ does not match"),
    ({"regex": "x"}, (), "KVP is absent, which /x/ does not match"),
    ({"min": 100}, ("99.9",), "KVP is 99.9, less than 100"),
    ({"max": 3}, (3.1,), "KVP is 3.1, more than 3"),
    ({"min": 1}, ("many",), "KVP is a value not shown here, no number"),
    ({"max": 1}, (), "KVP is absent, no number"),
    ({"max": 1}, ("nan",), "KVP is a value not shown here, more than 1"),
    ({"present": True}, (), "KVP is absent"),
    ({"present": False}, ("x",), "KVP is present"),
]


@pytest.mark.parametrize(("condition", "values"), HOLDS)
def test_a_condition_holds(condition: dict[str, Any], values: tuple[str | float, ...]) -> None:
    assert failed(condition, *values) == ()


@pytest.mark.parametrize(("condition", "values", "why"), FAILS)
def test_a_condition_that_does_not_hold_says_why(
    condition: dict[str, Any], values: tuple[str | float, ...], why: str
) -> None:
    assert failed(condition, *values) == (why,)


def test_each_operator_is_tried_both_ways() -> None:
    operators = {field.alias or name for name, field in Condition.model_fields.items()}
    assert {key for condition, _ in HOLDS for key in condition} == operators
    assert {key for condition, _, _ in FAILS for key in condition} == operators


def test_an_attribute_with_several_values_holds_when_one_of_them_does() -> None:
    image_type = ("ORIGINAL", "PRIMARY", "AXIAL")
    assert failed({"equals": "AXIAL"}, *image_type) == ()
    assert failed({"in": ["LOCALIZER", "PRIMARY"]}, *image_type) == ()
    assert failed({"regex": "^AX"}, *image_type) == ()
    assert failed({"equals": "LOCALIZER"}, *image_type) == ("KVP is ORIGINAL \\ PRIMARY \\ AXIAL, not LOCALIZER",)


def test_all_that_is_wrong_is_told() -> None:
    rule = route(Modality={"equals": "CT"}, KVP={"min": 100, "regex": "^1"})
    values = {"Modality": ["MR"], "KVP": ["80"]}
    assert judge(rule, values.__getitem__).failed == (
        "Modality is MR, not CT",
        "KVP is 80, which /^1/ does not match",
        "KVP is 80, less than 100",
    )


@given(low=st.floats(-1e6, 1e6), high=st.floats(-1e6, 1e6), value=st.floats(-1e6, 1e6))
def test_min_and_max_hold_exactly_within(low: float, high: float, value: float) -> None:
    assert (failed({"min": low, "max": high}, value) == ()) == (low <= value <= high)
    assert (failed({"min": low, "max": high}, repr(value)) == ()) == (low <= value <= high)


def test_a_rule_without_conditions_matches_all() -> None:
    assert judge(route(), lambda _keyword: []).matches


def test_what_is_not_known_cannot_be_asked() -> None:
    assert judge(route(SliceCount={"min": 50}), lambda _keyword: None).matches


RULES = (
    route("heads", BodyPartExamined={"equals": "HEAD"}),
    route("chests", Modality={"equals": "CT"}),
    route("all"),
)


def test_the_first_match_wins_and_the_ones_before_say_why_not() -> None:
    choice = choose(RULES, {"Modality": ["CT"], "BodyPartExamined": ["CHEST"]}.__getitem__)
    assert choice.route is RULES[1]
    assert choice.explain() == ["heads: BodyPartExamined is CHEST, not HEAD", "chests: matches"]


def test_no_match_explains_every_rule() -> None:
    choice = choose(RULES[:2], lambda _keyword: ["x"])
    assert choice.route is None
    assert choice.explain() == [
        "heads: BodyPartExamined is a value not shown here, not HEAD",
        "chests: Modality is a value not shown here, not CT",
    ]
    assert choose((), lambda _keyword: []).explain() == []


def test_a_terminal_is_told_the_value_that_a_rule_is_written_with_and_no_record_is() -> None:
    rules = (route("lungs", SeriesDescription={"regex": "(?i)lung"}),)
    facts: Any = {"SeriesDescription": ["Thorax 1.0\x1b[2J Br40"]}.__getitem__
    [kept] = choose(rules, facts).explain()
    assert kept == "lungs: SeriesDescription is a value not shown here, which /(?i)lung/ does not match"
    [told] = choose(rules, facts, tell=in_full).explain()
    assert told == "lungs: SeriesDescription is Thorax 1.0[2J Br40, which /(?i)lung/ does not match"
    assert in_full("SeriesDescription", []) == "absent"


def test_facts_of_a_series_that_passed() -> None:
    files = files_of(headers(50, step_mm=2.0))
    facts = facts_of(files, check_series(files, GateConfig(min_length_mm=0)), "CT1")
    assert facts("SliceCount") == [50.0]
    assert facts("SliceSpacing") == pytest.approx([2.0])
    assert facts("SourceAETitle") == ["CT1"]
    assert facts("Modality") == ["CT"]
    assert facts("PixelSpacing") == [0.7, 0.8]
    assert facts("BodyPartExamined") == []


def test_geometry_of_a_rejected_series_is_unknown_and_its_attributes_are_not() -> None:
    facts = facts_of(files_of(headers(5)), None, "CT1")
    assert facts("SliceCount") is None
    assert facts("SliceSpacing") is None
    assert facts("SourceAETitle") == ["CT1"]
    assert judge(route(SliceCount={"min": 50}, KVP={"present": True}), facts).failed == ("KVP is absent",)


def test_a_rule_sees_the_axial_images_not_the_localizer() -> None:
    made = headers(3)
    for ds in made:
        ds.SliceThickness = 1.0
    scouts = [Dataset() for _ in range(5)]
    for number, ds in enumerate(scouts):
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"1.9.{number}"
        ds.ImageType, ds.SliceThickness = ["ORIGINAL", "PRIMARY", "LOCALIZER"], 600.0
    files = [*[InstanceFile(path="", header=ds) for ds in scouts], *files_of(made)]
    assert facts_of(files, None, "CT1")("SliceThickness") == [1.0]
