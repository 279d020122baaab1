"""Which nodule is which: near ones are not swapped, strangers are not paired, and doubt is said."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from dicom_node.growth.matching import ALONE, Place, _cheapest, _hungarian, match


def at(*point: float, mm3: float = 200.0, sd: float = 1.5) -> Place:
    return Place(point_mm=np.array(point), volume_mm3=mm3, sd_mm=sd)


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (4, 7), (12, 12), (25, 60)])
def test_the_assignment_is_as_cheap_as_scipys(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(shape[0])
    for _ in range(20):
        table = rng.integers(0, 12, shape).astype(float)  # small numbers: many ties
        columns = _hungarian(table)
        assert len(set(columns)) == len(columns)
        assert table[np.arange(shape[0]), columns].sum() == table[linear_sum_assignment(table)].sum()


def test_no_findings_or_no_earlier_nodules_pair_nothing() -> None:
    assert match([], [at(0, 0, 0)], 90.0).pairs == {}
    assert match([at(0, 0, 0)], [], 90.0).pairs == {}
    assert _cheapest(np.full((2, 2), np.inf)) == (2 * ALONE, {})


def test_two_near_nodules_that_moved_together_keep_their_partners() -> None:
    """9 mm apart in a row, both moved by 4 mm along it: the front one's old place is nearer to the hind one's new."""
    earlier = [at(0, 0, 0), at(9, 0, 0)]
    findings = [at(13, 0, 0), at(4, 0, 0)]

    matches = match(findings, earlier, 90.0)

    assert matches.pairs == {0: 1, 1: 0}
    assert matches.doubtful == {}


def test_two_movements_of_3_mm_are_likelier_than_one_of_1_and_one_of_7() -> None:
    """Sums of distances would be 6 and 8 mm, which is too near to tell; sums of squares are 18 and 50."""
    matches = match([at(3, 0, 0, sd=0.0), at(7, 0, 0, sd=0.0)], [at(0, 0, 0, sd=2.0), at(4, 0, 0, sd=2.0)], 90.0)

    assert matches.pairs == {0: 0, 1: 1}


def test_sizes_tell_apart_what_places_do_not() -> None:
    earlier = [at(0, 0, 0, mm3=60.0), at(5, 0, 0, mm3=900.0)]
    findings = [at(2.5, 0, 0, mm3=950.0), at(3.5, 0, 0, mm3=66.0)]

    assert match(findings, earlier, 90.0).pairs == {0: 1, 1: 0}


def test_a_finding_between_two_equal_nodules_is_neither_for_certain() -> None:
    matches = match([at(2.5, 0, 0)], [at(0, 0, 0), at(5, 0, 0)], 90.0)

    assert matches.pairs == {}
    assert matches.doubtful == {0: (0, 1)}


def test_two_findings_round_one_nodule_are_both_in_doubt() -> None:
    matches = match([at(2, 0, 0), at(-2, 0, 0)], [at(0, 0, 0)], 90.0)

    assert matches.pairs == {}
    assert matches.doubtful == {0: (0,), 1: (0,)}


def test_doubt_about_two_leaves_the_others_alone() -> None:
    earlier = [at(0, 0, 0), at(5, 0, 0), at(80, 0, 0)]
    matches = match([at(2.5, 0, 0), at(81, 0, 0)], earlier, 90.0)

    assert matches.pairs == {1: 2}
    assert matches.doubtful == {0: (0, 1)}


def test_a_nodule_out_of_reach_is_another() -> None:
    assert match([at(15, 0, 0)], [at(0, 0, 0)], 90.0).pairs == {}


def test_reach_follows_the_registration_and_the_size() -> None:
    assert match([at(12, 0, 0)], [at(0, 0, 0, sd=5.0)], 90.0).pairs == {0: 0}
    large = 4000.0
    assert match([at(12, 0, 0, mm3=large)], [at(0, 0, 0, mm3=large)], 90.0).pairs == {0: 0}


def test_no_nodule_grows_fifty_times_in_a_week_but_one_may_in_a_year() -> None:
    small, large = at(0, 0, 0, mm3=40.0), at(1, 0, 0, mm3=2000.0)

    assert match([large], [small], 7.0).pairs == {}
    assert match([large], [small], 365.0).pairs == {0: 0}


def test_a_place_nobody_knows_is_paired_with_nothing() -> None:
    assert match([at(0, 0, 0)], [at(0, 0, 0, sd=float("inf"))], 90.0).pairs == {}
