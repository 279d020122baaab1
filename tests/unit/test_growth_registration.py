"""Lungs laid on each other: the same for the same voxels, however they are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dicom_node.config import GateConfig
from dicom_node.domain import Volume
from dicom_node.growth.alignment import Alignment, _refitted
from dicom_node.growth.landmarks import Landmarks, find_landmarks
from dicom_node.growth.quality import fault, figures
from dicom_node.growth.registration import Affine, register
from dicom_node.lungs import Lungs, find_lungs
from dicom_node.series import read_series, to_volume

TINY = Path(__file__).parent.parent / "data" / "tiny_chest_64"
SHIFT = np.array([30.0, -25.0, 120.0])


def elsewhere(volume: Volume) -> Volume:
    """On another table position."""
    affine = volume.affine.copy()
    affine[:3, 3] += SHIFT
    return Volume(hu=volume.hu, affine=affine)


@pytest.fixture(scope="module")
def chest() -> Volume:
    return to_volume(
        read_series(sorted(TINY.glob("*.dcm")), GateConfig(max_slice_spacing_mm=5.0, max_slice_thickness_mm=5.0))
    )


@pytest.fixture(scope="module")
def lungs(chest: Volume) -> Lungs:
    return find_lungs(chest)


@pytest.fixture(scope="module")
def found(chest: Volume, lungs: Lungs) -> Affine:
    return register(lungs, find_lungs(elsewhere(chest)))


def test_another_table_position_is_found_from_far_away(lungs: Lungs, found: Affine) -> None:
    points = lungs.grid.to_mm(np.argwhere(lungs.mask)[::500].astype(np.float64))

    assert np.abs(found(points) - (points + SHIFT)).max() < 0.5
    assert found.inverse()(found(points)) == pytest.approx(points)


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1, 2)])
def test_slices_stored_from_head_to_feet_or_turned_make_no_difference(
    chest: Volume, lungs: Lungs, axes: tuple[int, ...]
) -> None:
    affine = chest.affine.copy()
    for axis in axes:
        affine[:3, 3] += affine[:3, axis] * (chest.hu.shape[axis] - 1)
        affine[:3, axis] *= -1
    turned = find_lungs(Volume(hu=np.flip(chest.hu, axes).copy(), affine=affine))

    assert np.allclose(turned.grid.affine, lungs.grid.affine)
    assert np.abs(turned.grid.hu.astype(int) - lungs.grid.hu).max() <= 1
    assert (turned.mask != lungs.mask).mean() < 1e-4


def test_a_map_that_stuck_is_refitted_to_the_landmarks() -> None:
    rng = np.random.default_rng(2)
    points = rng.uniform(-100, 100, (200, 3))
    true = Affine(matrix=np.diag([1.02, 0.98, 1.1]), shift_mm=np.array([5.0, -4.0, 20.0]))
    stuck = Affine(matrix=np.eye(3), shift_mm=np.zeros(3))
    away = true(points) - points + rng.normal(0, 0.3, points.shape)
    away[:20] += rng.uniform(-40, 40, (20, 3))  # found in the wrong place

    refitted = _refitted(stuck, Landmarks(points_mm=points, away_mm=away, looked_for=300))

    assert np.abs(refitted(points) - true(points)).max() < 1.5


def test_each_gate_says_what_is_wrong(chest: Volume, lungs: Lungs, found: Affine) -> None:
    other = find_lungs(elsewhere(chest))
    landmarks = find_landmarks(lungs, other, found)
    good = figures(lungs, other, Alignment(affine=found, landmarks=landmarks))
    assert fault(good) is None
    assert good["lung overlap, Dice"] > 0.97
    assert good["lung correlation"] > 0.97
    assert good["lung surfaces apart, median [mm]"] < 0.5

    aside = Affine(matrix=np.eye(3), shift_mm=SHIFT + np.array([40.0, 0.0, 0.0]))
    assert "overlap" in (fault(figures(lungs, other, Alignment(affine=aside, landmarks=landmarks))) or "")
    for name, value, word in (
        ("lung in common [L]", 0.1, "in common"),
        ("lung correlation", 0.2, "correlation"),
        ("landmarks found [%]", 3.0, "landmarks were found"),
        ("landmarks disagree, median [mm]", 5.0, "disagree"),
        ("largest scale", 1.6, "larger"),
        ("turn [degrees]", 90.0, "turned"),
    ):
        assert word in (fault(good | {name: value}) or "")
