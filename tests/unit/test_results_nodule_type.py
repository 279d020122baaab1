"""Solid, part-solid, ground glass, and what is too small to tell."""

from __future__ import annotations

import numpy as np
import pytest

from dicom_node.results.nodule_type import NoduleType, classify, inside

SHAPE = (3, 14, 14)
MASK = np.zeros(SHAPE, np.bool_)
MASK[:, 2:12, 2:12] = True  # 64 voxels of each slice have all four neighbours


def filled(solid: int, background: int = -600) -> np.ndarray:
    """`solid` of the inner voxels of each slice are soft tissue."""
    hu = np.full(SHAPE, background, np.int16)
    for k in range(SHAPE[0]):
        rows, columns = np.nonzero(inside(MASK)[k])
        hu[k, rows[:solid], columns[:solid]] = 40
    return hu


@pytest.mark.parametrize(
    ("solid", "kind"),
    [
        (64, NoduleType.SOLID),
        (16, NoduleType.SOLID),
        (15, NoduleType.PART_SOLID),
        (4, NoduleType.PART_SOLID),
        (3, NoduleType.GROUND_GLASS),
        (0, NoduleType.GROUND_GLASS),
    ],
)
def test_share_of_what_the_mediastinal_window_shows_decides(solid: int, kind: NoduleType) -> None:
    assert classify(filled(solid), MASK, 9.0) == kind


def test_the_rim_which_is_half_lung_does_not_count() -> None:
    hu = np.full(SHAPE, -700, np.int16)
    hu[inside(MASK)] = 40

    assert classify(hu, MASK, 9.0) == NoduleType.SOLID
    assert classify(np.where(inside(MASK), -700, 40).astype(np.int16), MASK, 9.0) == NoduleType.GROUND_GLASS


def test_a_small_dark_nodule_is_undetermined_and_a_small_bright_one_solid() -> None:
    assert classify(filled(8), MASK, 5.9) is None
    assert classify(filled(0), MASK, 5.9) is None
    assert classify(filled(40), MASK, 5.9) == NoduleType.SOLID


def test_a_mask_without_an_inside_is_judged_as_a_whole() -> None:
    mask = np.zeros(SHAPE, np.bool_)
    mask[1, 5, 2:9] = True

    np.testing.assert_array_equal(inside(mask), mask)
    assert classify(np.where(mask, 60, -800).astype(np.int16), mask, 3.0) == NoduleType.SOLID
