"""Growth by its sums: what counts as a change, and how fast it is within which bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.growth.change import change_percent, doubling_time, judged, log_ratio_sd

volumes = st.floats(min_value=10.0, max_value=20_000.0)
errors = st.floats(min_value=0.0, max_value=0.5)


@pytest.mark.parametrize(
    ("now", "then", "sd", "expected"),
    [
        (124.9, 100.0, 0.01, "stable"),  # below a quarter, however exact
        (125.0, 100.0, 0.05, "grown"),
        (125.0, 100.0, 0.15, "stable"),  # a quarter, and not beyond the uncertainty
        (200.0, 100.0, 0.15, "grown"),
        (76.0, 100.0, 0.01, "stable"),
        (75.0, 100.0, 0.05, "shrunk"),
        (75.0, 100.0, 0.16, "stable"),
        (100.0, 100.0, 0.0, "stable"),
    ],
)
def test_a_change_counts_from_a_quarter_on_and_beyond_its_uncertainty(
    now: float, then: float, sd: float, expected: str
) -> None:
    assert judged(now, then, sd) == expected


def test_a_volume_that_doubled_in_90_days_has_that_doubling_time() -> None:
    time = doubling_time(200.0, 100.0, 0.1, 90.0)

    assert time is not None
    assert time.days == pytest.approx(90.0)
    # The rate is ln 2 +- 1.96 * 0.1 over 90 days.
    assert time.low == pytest.approx(90.0 * math.log(2) / (math.log(2) + 0.196), rel=1e-4)
    assert time.high == pytest.approx(90.0 * math.log(2) / (math.log(2) - 0.196), rel=1e-4)


def test_a_nodule_that_may_be_at_rest_has_no_upper_bound() -> None:
    time = doubling_time(110.0, 100.0, 0.1, 90.0)

    assert time is not None
    assert time.high is None
    assert time.low is not None
    assert 0 < time.low < time.days


def test_a_shrinking_nodule_halves_in_negative_days() -> None:
    sure, unsure = doubling_time(50.0, 100.0, 0.1, 90.0), doubling_time(90.0, 100.0, 0.1, 90.0)

    assert sure is not None
    assert unsure is not None
    assert sure.days == pytest.approx(-90.0)
    assert sure.low is not None
    assert sure.high is not None
    assert sure.low < sure.days < sure.high < 0
    assert unsure.low is None
    assert unsure.high is not None
    assert unsure.days < unsure.high < 0


def test_equal_volumes_have_no_doubling_time() -> None:
    assert doubling_time(100.0, 100.0, 0.1, 90.0) is None


@given(now=volumes, then=volumes, sd=errors, days=st.floats(min_value=1.0, max_value=4000.0))
def test_bounds_enclose_the_doubling_time_and_have_its_sign(now: float, then: float, sd: float, days: float) -> None:
    time = doubling_time(now, then, sd, days)

    if time is None:
        assert now == then
        return
    assert time.days * math.log(now / then) > 0
    low = -math.inf if time.low is None else time.low
    high = math.inf if time.high is None else time.high
    assert low <= time.days * (1 + 1e-9 * np.sign(time.days))
    assert time.days <= high + 1e-9 * abs(time.days)
    assert all(bound is None or bound * time.days > 0 for bound in (time.low, time.high))


def test_19_of_20_intervals_hold_the_true_doubling_time() -> None:
    """Volumes measured with 12 % and 8 % error, of a nodule that doubles in 120 days, 100 days apart."""
    rng = np.random.default_rng(4)
    then, now = 200.0, 200.0 * 2 ** (100 / 120)
    held = 0
    for _ in range(4000):
        seen_then, seen_now = rng.normal(then, 0.12 * then), rng.normal(now, 0.08 * now)
        sd = log_ratio_sd(seen_now, 0.08 * now, seen_then, 0.12 * then)
        time = doubling_time(seen_now, seen_then, sd, 100.0)
        assert time is not None
        # A shrinking one's bound beyond infinity is that of a growing one.
        rate = math.log(seen_now / seen_then) / 100.0
        held += abs(rate - math.log(2) / 120.0) <= 1.959964 * sd / 100.0
        if time.days > 0 and time.low is not None:
            inside = time.low <= 120.0 <= (math.inf if time.high is None else time.high)
            assert inside == (abs(rate - math.log(2) / 120.0) <= 1.959964 * sd / 100.0)
    assert held / 4000 == pytest.approx(0.95, abs=0.012)


def test_percent_is_of_the_earlier_volume() -> None:
    assert change_percent(150.0, 100.0) == pytest.approx(50.0)
    assert change_percent(50.0, 100.0) == pytest.approx(-50.0)
