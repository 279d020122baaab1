"""How far two models agree: what belongs together, and figures that favour neither."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.agreement import Agreement, Compared, Nodule, Spread, agreement, compare, nodule, over_time, spread
from dicom_node.agreement_plot import HEIGHT, WIDTH, bland_altman_svg
from dicom_node.agreements import agreement_of
from dicom_node.domain import RESEARCH_USE
from dicom_node.shadows import ShadowRun
from dicom_node.web.templating import render


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


# -- shown ---------------------------------------------------------------------------------------------


def svg(points: list[tuple[float, float]]) -> ElementTree.Element:
    return ElementTree.fromstring(bland_altman_svg(points, asdict(spread(y for _, y in points))))


@given(st.lists(st.tuples(st.floats(0.5, 60), st.floats(-40, 40)), min_size=1, max_size=8))
def test_the_plot_holds_every_point_and_line_within_its_frame(points: list[tuple[float, float]]) -> None:
    drawn = svg(points)
    circles = [each for each in drawn if each.tag == "circle"]
    assert len(circles) == len(points)
    for each in circles:
        assert 0 <= float(each.attrib["cx"]) <= WIDTH
        assert 0 <= float(each.attrib["cy"]) <= HEIGHT
    for each in (each for each in drawn if each.tag == "line"):
        assert 0 <= float(each.attrib["y1"]) <= HEIGHT


def test_in_the_plot_up_is_where_the_second_saw_more() -> None:
    heights = [float(each.attrib["cy"]) for each in svg([(5.0, -1.0), (5.0, 1.0)]) if each.tag == "circle"]
    assert heights[0] > heights[1]
    assert bland_altman_svg([], asdict(spread([]))) == ""


def test_the_page_shows_both_bundles_and_their_figures_and_escapes_names() -> None:
    run = ShadowRun(
        row={  # type: ignore[arg-type]
            "first": {"name": "small", "version": "1.0.0", "bundle_sha256": "a" * 64}, "first_name": "<b>steady",
            "model": {"name": "small", "version": "1.1.0", "bundle_sha256": "b" * 64}, "model_name": "daring",
            "route": "chest", "finished_at": 0.0,
        },
        first=({"center_mm": [0, 0, 0], "long_axis_mm": 8.0, "volume_mm3": 200.0, "score": 0.5},),
        second=({"center_mm": [1, 0, 0], "long_axis_mm": 9.0, "volume_mm3": 240.0, "score": 0.7},),
    )  # fmt: skip

    class Rows:
        def shadow_runs(self, **_: object) -> list[ShadowRun]:
            return [run]

        def shadow_counts(self) -> list[dict[str, object]]:
            return [{"model_name": "daring", "route": "chest", "state": "given up", "number": 2}]

    shown = render("_agreement.html", agreement=agreement_of(Rows()), agreement_over="all", plot=bland_altman_svg)  # type: ignore[arg-type]
    for words in ("small 1.0.0", "small 1.1.0", "a" * 12, "100 %", "+1.0 (one pair)", "2 given up", "LUNA16", "<svg"):
        assert words in shown
    assert "<b>steady" not in shown
    empty = {"pairs": [], "states": [], "rule": "", "notice": RESEARCH_USE, "period_days": 7.0}
    assert "No series was seen" in render(
        "_agreement.html", agreement=empty, agreement_over="all", plot=bland_altman_svg
    )
