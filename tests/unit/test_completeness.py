"""The ladder of evidence: which rung holds, how long to wait for the next, and in which words."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.completeness import ArchiveCount, Evidence, Facts, Patience, Wait, as_json, is_dense, judge

PATIENCE = Patience(quiet_time_s=20, proven_quiet_time_s=1, longest_wait_s=600)


def facts(**changes: object) -> Facts:
    """300 contiguous slices with dense numbers, released, two seconds ago."""
    values: dict[str, object] = {
        "instances": 300,
        "slices": 300,
        "left_out": 0,
        "dense": True,
        "released": True,
        "quiet_s": 2.0,
        "waiting_s": 10.0,
    }
    return Facts(**{**values, **changes})  # type: ignore[arg-type]


def archive(answer: int | str) -> ArchiveCount:
    if isinstance(answer, str):
        return ArchiveCount(ae_title="ORTHANC", problem=answer)
    return ArchiveCount(ae_title="ORTHANC", instances=answer)


def decided(known: Facts) -> Evidence:
    verdict = judge(known, PATIENCE)
    assert isinstance(verdict, Evidence)
    return verdict


@pytest.mark.parametrize(
    ("known", "rung", "text"),
    [
        (
            facts(archive=archive(300), released=False),
            "archive",
            "300 of 300 instances by ORTHANC, 300 axial slices contiguous",
        ),
        (
            facts(),
            "released",
            "300 instances received, 300 axial slices contiguous, Association released, no InstanceNumber missing, "
            "quiet for 2.0 s",
        ),
        (
            facts(archive=archive("does not answer"), dense=False, quiet_s=21.0),
            "quiet",
            "300 instances received, 300 axial slices contiguous, Association released, quiet for 21.0 s, "
            "ORTHANC does not answer",
        ),
        (
            facts(slices=None, released=False, quiet_s=3.0, waiting_s=600.0),
            "forced",
            "PARTIAL: 300 instances received, images still came after 600 s",
        ),
        (
            facts(archive=archive(312), quiet_s=20.0),
            "quiet",
            "PARTIAL: 300 of 312 instances by ORTHANC, 300 axial slices contiguous, Association released, "
            "no InstanceNumber missing, quiet for 20.0 s",
        ),
    ],
)
def test_each_rung_says_what_it_rests_on(known: Facts, rung: str, text: str) -> None:
    evidence = decided(known)
    assert (evidence.rung, evidence.text) == (rung, text)
    assert evidence.partial == text.startswith("PARTIAL")


@pytest.mark.parametrize(
    ("known", "more_s"),
    [
        (facts(quiet_s=0.4), 0.6),
        (facts(quiet_s=0.4, archive=archive(300), released=False), 0.6),
        (facts(released=False), 18.0),
        (facts(dense=False), 18.0),
        (facts(slices=None, archive=archive(300)), 18.0),
        (facts(archive=archive(312)), 18.0),
        (facts(released=False, waiting_s=595.0), 5.0),
    ],
    ids=["released", "by count", "open", "hole in the numbers", "hole in the geometry", "archive has more", "forced"],
)
def test_what_is_not_proven_waits_until_time_can_change_it(known: Facts, more_s: float) -> None:
    verdict = judge(known, PATIENCE)
    assert isinstance(verdict, Wait)
    assert verdict.more_s == pytest.approx(more_s)


def test_an_archive_that_has_less_refutes_no_release() -> None:
    evidence = decided(facts(archive=archive(290)))
    assert (evidence.rung, evidence.partial) == ("released", False)
    assert "300 instances received, ORTHANC has 290" in evidence.text


def test_a_source_that_is_quiet_sooner_than_the_proven_time_is_not_made_to_wait() -> None:
    quick = Patience(quiet_time_s=0.5, proven_quiet_time_s=1, longest_wait_s=600)
    assert isinstance(judge(facts(quiet_s=0.6), quick), Evidence)


def test_what_is_stored_has_the_facts_and_the_words() -> None:
    known = facts(archive=archive(300), quiet_s=1.2345)
    stored = as_json(decided(known), known)
    assert stored["archive"] == {"ae_title": "ORTHANC", "instances": 300, "problem": None}
    assert (stored["rung"], stored["partial"], stored["quiet_s"], stored["instances"]) == ("archive", False, 1.2, 300)


@given(
    quiet_s=st.floats(0, 100),
    waiting_s=st.floats(0, 1000),
    released=st.booleans(),
    dense=st.booleans(),
    slices=st.none() | st.just(300),
    counted=st.none() | st.integers(0, 400),
)
def test_nothing_is_decided_too_early_or_called_whole_against_the_archive(
    quiet_s: float, waiting_s: float, released: bool, dense: bool, slices: int | None, counted: int | None
) -> None:
    known = facts(
        quiet_s=quiet_s,
        waiting_s=waiting_s,
        released=released,
        dense=dense,
        slices=slices,
        archive=None if counted is None else archive(counted),
    )
    verdict = judge(known, PATIENCE)
    proven = slices is not None and (counted == 300 or (released and dense and (counted or 0) <= 300))
    due = quiet_s >= (1 if proven else 20) or waiting_s >= 600
    assert isinstance(verdict, Evidence) == due
    if isinstance(verdict, Wait):
        assert 0 < verdict.more_s <= 20
    else:
        assert verdict.partial == (verdict.rung == "forced" or (counted or 0) > 300)


@given(first=st.integers(-5, 1000), count=st.integers(1, 50), seed=st.integers(0, 2**32))
def test_numbers_without_a_hole_are_dense_wherever_they_start(first: int, count: int, seed: int) -> None:
    numbers = list(range(first, first + count))
    random.Random(seed).shuffle(numbers)
    assert is_dense(numbers)


@given(first=st.integers(0, 1000), count=st.integers(3, 50), data=st.data())
def test_a_hole_a_repetition_or_a_missing_number_is_not_dense(first: int, count: int, data: st.DataObject) -> None:
    numbers = list(range(first, first + count))
    inner = data.draw(st.integers(1, count - 2))
    assert not is_dense(numbers[:inner] + numbers[inner + 1 :])
    assert not is_dense([*numbers, numbers[inner]])
    assert not is_dense([*numbers[:inner], None, *numbers[inner + 1 :]])
    assert not is_dense([*numbers, None])


def test_no_numbers_prove_nothing() -> None:
    assert not is_dense([])
    assert not is_dense([None])


@pytest.mark.parametrize("both", [{}, {"instances": 3, "problem": "does not answer"}])
def test_an_archives_answer_is_a_count_or_a_problem(both: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="count or a problem"):
        ArchiveCount(ae_title="ORTHANC", **both)  # type: ignore[arg-type]
