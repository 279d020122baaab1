"""How far two models agree: what belongs together, and figures that favour neither."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.agreement import Agreement, Compared, Nodule, Spread, agreement, compare, nodule, over_time, spread


def made(x: float = 0.0, *, radius_mm: float = 4.0, score: float = 0.5, diameter_mm: float | None = None) -> Nodule:
    return Nodule(
        center_mm=(x, 0.0, 0.0),
        diameter_mm=2 * radius_mm if diameter_mm is None else diameter_mm,
        volume_mm3=4 / 3 * math.pi * radius_mm**3,
        score=score,
    )


coordinates = st.one_of(st.integers(-6, 6).map(float), st.floats(-20, 20))
nodules = st.lists(
    st.builds(
        Nodule,
        center_mm=st.tuples(coordinates, coordinates, coordinates),
        diameter_mm=st.floats(1, 40),
        volume_mm3=st.floats(1, 3000),
        score=st.floats(0, 1),
    ),
    max_size=6,
)


@given(nodules, nodules)
def test_the_two_models_may_change_places(first: list[Nodule], second: list[Nodule]) -> None:
    one, other = compare(first, second), compare(second, first)
    assert sorted(map(repr, one.pairs)) == sorted(repr((b, a)) for a, b in other.pairs)
    assert sorted(map(repr, one.first_only)) == sorted(map(repr, other.second_only))
    assert sorted(map(repr, one.second_only)) == sorted(map(repr, other.first_only))


@given(st.lists(st.tuples(nodules, nodules), max_size=3))
def test_figures_turn_round_when_the_models_change_places(series: list[tuple[list[Nodule], list[Nodule]]]) -> None:
    one = agreement([compare(a, b) for a, b in series])
    other = agreement([compare(b, a) for a, b in series])
    assert (one.series, one.series_alike, one.both) == (other.series, other.series_alike, other.both)
    assert (one.first_only, one.second_only) == (other.second_only, other.first_only)
    assert one.agreement == other.agreement
    for name in ("diameter_mm", "volume_mm3", "volume_percent", "score"):
        there, back = getattr(one, name), getattr(other, name)
        assert there.pairs == back.pairs == one.both
        for key, opposite in (("bias", "bias"), ("low", "high"), ("high", "low")):
            value, turned = getattr(there, key), getattr(back, opposite)
            assert (value is None) == (turned is None)
            assert value is None or value == pytest.approx(-turned, abs=1e-9)


@given(nodules)
def test_a_model_agrees_with_itself_in_everything(found: list[Nodule]) -> None:
    same = agreement([compare(found, found)])
    assert (same.agreement, same.series_alike, same.both) == (1.0, 1, len(found))
    for each in (same.diameter_mm, same.volume_mm3, same.volume_percent, same.score):
        if found:
            assert each.bias == 0.0
        if len(found) > 1:
            assert (each.low, each.high) == (0.0, 0.0)


@given(nodules, nodules)
def test_each_finding_is_counted_once(first: list[Nodule], second: list[Nodule]) -> None:
    compared = compare(first, second)
    assert len(compared.pairs) + len(compared.first_only) == len(first)
    assert len(compared.pairs) + len(compared.second_only) == len(second)
    assert 0.0 <= agreement([compared]).agreement <= 1.0


@given(nodules, nodules, st.randoms())
def test_the_order_of_findings_does_not_matter(first: list[Nodule], second: list[Nodule], random: object) -> None:
    shuffled = list(first), list(second)
    for each in shuffled:
        random.shuffle(each)  # type: ignore[attr-defined]
    assert sorted(map(repr, compare(*shuffled).pairs)) == sorted(map(repr, compare(first, second).pairs))


def test_two_findings_are_one_when_a_centre_lies_strictly_within_the_larger() -> None:
    large, small = made(radius_mm=4.0), made(3.999, radius_mm=1.0)
    assert compare([large], [small]).pairs == ((large, small),)
    at_the_edge = made(large.radius_mm, radius_mm=1.0)
    assert compare([large], [at_the_edge]).pairs == ()


def test_the_nearest_partner_wins_and_each_finding_has_one() -> None:
    first = [made(0.0), made(3.0)]
    near, far = made(2.5), made(-3.5)
    compared = compare(first, [near, far])
    assert compared.pairs == ((first[0], far), (first[1], near))


def test_counts_and_the_part_that_agrees_are_those_of_a_hand_count() -> None:
    series = [
        compare([made(0), made(50)], [made(1)]),  # one of both, one of the first only
        compare([], [made(0)]),  # one of the second only
        compare([], []),
    ]
    total = agreement(series)
    assert (total.series, total.series_alike) == (3, 1)
    assert (total.both, total.first_only, total.second_only) == (1, 1, 1)
    assert total.agreement == 0.5


def test_limits_of_agreement_are_those_of_bland_and_altman() -> None:
    # Bias 2, SD 1 (n - 1), so 2 -+ 1.96.
    assert spread([1.0, 2.0, 3.0]) == Spread(pairs=3, bias=2.0, low=pytest.approx(0.04), high=pytest.approx(3.96))
    assert spread([1.5]) == Spread(pairs=1, bias=1.5, low=None, high=None)
    assert spread([]) == Spread(pairs=0, bias=None, low=None, high=None)


def test_differences_are_second_minus_first_and_volume_also_in_percent_of_the_mean() -> None:
    first, second = made(score=0.4, diameter_mm=8.0), made(score=0.9, diameter_mm=10.0)
    second = replace(second, volume_mm3=first.volume_mm3 * 3)
    figures = agreement([compare([first], [second])])
    assert (figures.diameter_mm.bias, figures.score.bias) == (2.0, pytest.approx(0.5))
    assert figures.volume_mm3.bias == pytest.approx(2 * first.volume_mm3)
    assert figures.volume_percent.bias == pytest.approx(100.0)


def test_periods_rise_leave_out_empty_ones_and_hold_every_series() -> None:
    day = 86400.0
    alike, unlike = compare([made()], [made()]), compare([made()], [])
    shown = over_time([(15 * day, unlike), (0.0, alike), (6.9 * day, unlike)], 7 * day)
    assert [begin / day for begin, _ in shown] == [0.0, 14.0]
    assert [each.series for _, each in shown] == [2, 1]
    assert [each.agreement for _, each in shown] == [pytest.approx(2 / 3), 0.0]


@given(st.lists(st.tuples(st.floats(0, 1e9), nodules, nodules), max_size=5))
def test_all_periods_together_are_the_whole(series: list[tuple[float, list[Nodule], list[Nodule]]]) -> None:
    compared = [(at, compare(a, b)) for at, a, b in series]
    parts: list[Agreement] = [each for _, each in over_time(compared)]
    whole = agreement([one for _, one in compared])
    counts: tuple[Callable[[Agreement], int], ...] = (
        lambda a: a.series, lambda a: a.both, lambda a: a.first_only, lambda a: a.second_only,
    )  # fmt: skip
    for count in counts:
        assert sum(map(count, parts)) == count(whole)


def test_no_series_at_all_is_no_disagreement() -> None:
    assert agreement([]).agreement == 1.0
    assert agreement([Compared(pairs=(), first_only=(), second_only=())]).series_alike == 1


def test_a_row_of_a_finding_is_read_as_it_is_written() -> None:
    row = {"center_mm": [1, 2, 3], "long_axis_mm": 7.5, "volume_mm3": 100.0, "score": 0.25, "side": None}
    assert nodule(row) == Nodule(center_mm=(1.0, 2.0, 3.0), diameter_mm=7.5, volume_mm3=100.0, score=0.25)


@pytest.mark.parametrize("wrong", [{"volume_mm3": 0.0}, {"center_mm": (math.nan, 0.0, 0.0)}, {"diameter_mm": -1.0}])
def test_what_has_no_place_or_size_is_no_nodule(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        replace(made(), **wrong)
