"""Colours are told apart by everybody: simulated after Machado, Oliveira and Fernandes (IEEE TVCG 2009;15:1291)."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from dicom_node.results.palette import COLOURS, colour

# Linear RGB -> linear RGB as somebody sees it who lacks one of the three cones (their table, severity 1.0).
SEEN = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]])


def lab(hexadecimal: str, seen: object = SEEN["all cones"]) -> NDArray[np.float64]:
    """CIELab (D65) of an sRGB colour."""
    rgb = np.array([int(hexadecimal[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = XYZ @ np.clip(np.asarray(seen) @ linear, 0, 1) / [0.95047, 1.0, 1.08883]
    fx, fy, fz = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


@pytest.mark.parametrize("cones", SEEN)
def test_any_two_colours_are_told_apart(cones: str) -> None:
    # A difference of 2.3 is just seen side by side; 15 is another colour at a glance.
    for one, other in combinations(COLOURS, 2):
        assert np.linalg.norm(lab(one, SEEN[cones]) - lab(other, SEEN[cones])) > 15, (one, other)


def test_all_colours_are_seen_on_lung() -> None:
    assert all(lab(each)[0] > 38 for each in COLOURS)


def test_a_number_keeps_its_colour() -> None:
    assert [colour(number) for number in (1, 2, 12, 13)] == ["#E69F00", "#56B4E9", "#E6B3B3", "#E69F00"]
