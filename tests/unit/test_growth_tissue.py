"""A place is covered or not, dense or not, whatever anybody marked."""

from __future__ import annotations

import numpy as np
import pytest

from dicom_node.domain import Volume
from dicom_node.growth.tissue import covers, shows_the_like

AFFINE = np.array([[0, 0, 0.8, -40.0], [0, 0.8, 0, -40.0], [2.0, 0, 0, -100.0], [0, 0, 0, 1.0]])
MIDDLE = np.array([0.0, 0.0, -60.0])


def lung(*balls: tuple[tuple[float, float, float], float, float]) -> Volume:
    """Noisy lung with balls of (centre mm, radius mm, HU)."""
    hu = np.random.default_rng(3).normal(-860.0, 30.0, (40, 100, 100))
    volume = Volume(hu=hu.astype(np.int16), affine=AFFINE)
    points = volume.to_mm(np.moveaxis(np.indices(hu.shape), 0, -1).astype(np.float64))
    for center, radius, value in balls:
        hu[np.linalg.norm(points - center, axis=-1) <= radius] = value
    return Volume(hu=hu.astype(np.int16), affine=AFFINE)


def like(volume: Volume, point: np.ndarray, model: Volume, radius: float = 3.0, sd: float = 1.5) -> bool:
    return shows_the_like(volume, point, sd, model=model, center_mm=MIDDLE, radius_mm=radius)


@pytest.mark.parametrize("hu", [40.0, -600.0])
def test_a_nodule_is_seen_where_it_is_and_not_in_empty_lung(hu: float) -> None:
    model = lung((tuple(MIDDLE), 3.0, hu))

    assert like(model, MIDDLE, model)
    assert not like(lung(), MIDDLE, model)


def test_a_place_that_is_off_by_the_registrations_error_is_found() -> None:
    model = lung((tuple(MIDDLE), 3.0, 40.0))

    assert like(model, MIDDLE + np.array([1.5, -1.0, 1.0]), model)
    assert not like(model, MIDDLE + np.array([12.0, 0.0, 0.0]), model)


def test_a_thin_vessel_is_not_a_nodules_like() -> None:
    model = lung((tuple(MIDDLE), 4.0, 40.0))
    vessel = lung(*(((x, 0.0, -60.0), 1.0, 40.0) for x in range(-20, 21)))

    assert not like(vessel, MIDDLE, model, radius=4.0)


def test_the_volumes_end_and_its_padding_cover_nothing() -> None:
    volume = lung()
    padded = Volume(hu=volume.hu.copy(), affine=AFFINE)
    padded.hu[:, :, :30] = -1024

    assert covers(volume, MIDDLE, 5.0)
    assert not covers(volume, np.array([0.0, 0.0, -97.0]), 5.0)
    assert covers(volume, np.array([0.0, 0.0, -97.0]), 1.0)
    assert not covers(volume, np.array([0.0, 0.0, -200.0]), 1.0)
    assert not covers(padded, np.array([-30.0, 0.0, -60.0]), 5.0)
    assert covers(padded, MIDDLE, 5.0)
    assert covers(lung((tuple(MIDDLE), 6.0, 40.0)), MIDDLE, 5.0)
