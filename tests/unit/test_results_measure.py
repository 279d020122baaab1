"""Measures of analytic bodies, and outlines of arbitrary masks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from dicom_node.domain import Volume
from dicom_node.results.measure import Measurement, measure
from dicom_node.results.outline import convex_hull, pieces
from tests.fakes.findings import finding_of

EIGHT = np.ones((3, 3))
shifts = st.floats(-0.5, 0.5)
angles = st.floats(0.0, math.pi)
masks = arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def body(
    semi_axes_mm: tuple[float, float, float],
    spacing_mm: tuple[float, float, float],
    *,
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
    angle: float = 0.0,
) -> tuple[Volume, NDArray[np.bool_]]:
    """Ellipsoid with semi-axes along (slice, row, column), turned in the plane of the slices by `angle`.

    Its centre lies `shift` voxels beside the centre of a voxel.
    """
    spacing = np.array(spacing_mm)
    half = np.ceil(np.array([semi_axes_mm[0], *[max(semi_axes_mm[1:])] * 2]) / spacing).astype(int) + 2
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, spacing_mm[2]], [0, spacing_mm[1], 0], [spacing_mm[0], 0, 0]]
    volume = Volume(hu=np.zeros(2 * half + 1, np.int16), affine=affine)
    grid = np.moveaxis(np.indices(volume.hu.shape), 0, -1)
    slice_mm, row_mm, column_mm = np.moveaxis((grid - half - np.array(shift)) * spacing, -1, 0)
    along = row_mm * math.cos(angle) + column_mm * math.sin(angle)
    across = column_mm * math.cos(angle) - row_mm * math.sin(angle)
    a, b, c = semi_axes_mm
    return volume, (slice_mm / a) ** 2 + (along / b) ** 2 + (across / c) ** 2 <= 1.0


def largest_section(semi_axis_mm: float, slice_mm: float, shift: float) -> float:
    """How much of its width an ellipsoid has in the slice nearest to its centre."""
    return math.sqrt(1.0 - (abs(shift) * slice_mm / semi_axis_mm) ** 2)


@dataclass(frozen=True)
class Ellipsoid:
    """A nodule of 3 mm or more on a grid as chest CTs have it, turned in the slice; the grid's axes flipped at will."""

    semi_axes_mm: tuple[float, float, float]
    spacing_mm: tuple[float, float, float]
    shift: tuple[float, float, float]
    angle: float
    signs: tuple[int, int, int]

    def measured(self) -> tuple[Measurement, Volume]:
        volume, mask = body(self.semi_axes_mm, self.spacing_mm, shift=self.shift, angle=self.angle)
        affine = volume.affine.copy()
        affine[:3, :3] *= np.array(self.signs)[:, None]
        volume = Volume(hu=volume.hu, affine=affine)
        return measure(finding_of(volume, mask), volume), volume

    @property
    def pixel_mm(self) -> float:
        return max(self.spacing_mm[1:])

    @property
    def volume_mm3(self) -> float:
        return 4 / 3 * math.pi * math.prod(self.semi_axes_mm)

    @property
    def axial_mm(self) -> tuple[float, float]:
        """Long and short axis in the slice that is nearest to the centre."""
        a, b, c = self.semi_axes_mm
        width = largest_section(a, self.spacing_mm[0], self.shift[0])
        return 2 * b * width, 2 * c * width


@st.composite
def ellipsoids(draw: st.DrawFn) -> Ellipsoid:
    long = draw(st.floats(1.5, 12.0))
    short = draw(st.floats(max(1.5, long / 2), long))
    along_z = draw(st.floats(max(1.5, long / 2), 1.5 * long))
    slice_mm, pixel_mm = draw(st.floats(0.45, min(2.5, 1.8 * along_z))), draw(st.floats(0.46, 0.98))
    square = draw(st.booleans())
    return Ellipsoid(
        semi_axes_mm=(along_z, long, short),
        spacing_mm=(slice_mm, pixel_mm, pixel_mm if square else pixel_mm * draw(st.floats(0.8, 1.25))),
        shift=(draw(shifts), draw(shifts), draw(shifts)),
        angle=draw(angles),
        signs=draw(st.tuples(*[st.sampled_from((1, -1))] * 3)),
    )


def random_ellipsoids(count: int) -> Iterator[Ellipsoid]:
    """Evenly drawn, where hypothesis looks for corners."""
    random = np.random.default_rng(7)
    for _ in range(count):
        long, pixel_mm = random.uniform(1.5, 12.0), random.uniform(0.46, 0.98)
        along_z = random.uniform(max(1.5, long / 2), 1.5 * long)
        k, row, column = random.uniform(-0.5, 0.5, 3).tolist()
        yield Ellipsoid(
            semi_axes_mm=(along_z, long, random.uniform(max(1.5, long / 2), long)),
            spacing_mm=(random.uniform(0.45, min(2.5, 1.8 * along_z)), pixel_mm, pixel_mm),
            shift=(k, row, column),
            angle=random.uniform(0.0, math.pi),
            signs=(1, 1, 1),
        )


Sample = list[tuple[Ellipsoid, Measurement]]


@pytest.fixture(scope="module")
def sample() -> Sample:
    return [(body, body.measured()[0]) for body in random_ellipsoids(240)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(ellipsoids())
def test_axes_are_within_two_percent_or_half_a_voxel_at_each_end(body: Ellipsoid) -> None:
    measured, _ = body.measured()

    # At either end the border lies anywhere between the last centre inside and the first one outside, which may be
    # beside it or across a corner.
    long, short = body.axial_mm
    diagonal_mm = math.hypot(*body.spacing_mm[1:])
    assert measured.long_axis_mm == pytest.approx(long, rel=0.02, abs=diagonal_mm)
    assert measured.short_axis_mm == pytest.approx(short, rel=0.02, abs=diagonal_mm)
    assert measured.short_axis_mm <= measured.long_axis_mm + 1e-9


def test_nine_axes_of_ten_are_within_two_percent_or_half_a_voxel_in_all(sample: Sample) -> None:
    """The spread and the bias of what the test before only bounds."""
    within, errors = [], []
    for body, measured in sample:
        for length, true in zip((measured.long_axis_mm, measured.short_axis_mm), body.axial_mm, strict=True):
            within.append(length == pytest.approx(true, rel=0.02, abs=body.pixel_mm / 2))
            errors.append((length - true) / body.pixel_mm)

    assert np.mean(within) >= 0.93
    assert abs(np.mean(errors)) <= 0.15
    assert np.std(errors) <= 0.3


@settings(max_examples=100, deadline=None, derandomize=True)
@given(ellipsoids())
def test_volume_and_its_sphere_are_within_two_percent_or_half_a_voxel(body: Ellipsoid) -> None:
    measured, _ = body.measured()

    diameter = (6 * body.volume_mm3 / math.pi) ** (1 / 3)
    # Half a voxel by its longest side: where slices are as thick as the nodule, a pole adds one or not.
    assert measured.equivalent_diameter_mm == pytest.approx(diameter, rel=0.02, abs=max(body.spacing_mm) / 2)
    assert measured.volume_mm3 == pytest.approx(measured.voxels * math.prod(body.spacing_mm), rel=1e-9)


def test_volume_is_right_on_average_and_within_its_error(sample: Sample) -> None:
    ratios, inside, close = [], [], []
    for body, measured in sample:
        diameter = (6 * body.volume_mm3 / math.pi) ** (1 / 3)
        half_a_voxel = math.prod(body.spacing_mm) ** (1 / 3) / 2
        close.append(measured.equivalent_diameter_mm == pytest.approx(diameter, rel=0.02, abs=half_a_voxel))
        ratios.append(measured.volume_mm3 / body.volume_mm3)
        inside.append(abs(measured.volume_mm3 - body.volume_mm3) <= 1.96 * measured.volume_error_mm3)

    assert np.mean(ratios) == pytest.approx(1.0, abs=0.01)
    assert np.mean(inside) >= 0.95
    assert np.mean(close) >= 0.98


@settings(max_examples=100, deadline=None, derandomize=True)
@given(ellipsoids())
def test_box_is_the_bodys_own_up_to_half_a_voxel(body: Ellipsoid) -> None:
    measured, volume = body.measured()

    a, b, c = body.semi_axes_mm
    half_mm = np.array([
        math.hypot(b * math.sin(body.angle), c * math.cos(body.angle)),
        math.hypot(b * math.cos(body.angle), c * math.sin(body.angle)),
        a,
    ])  # fmt: skip
    center = volume.to_mm((np.array(volume.hu.shape) - 1) / 2 + body.shift)
    voxel_mm = np.array(body.spacing_mm[::-1])
    low, high = (np.array(corner) for corner in measured.box_mm)
    # It can be smaller by more: a tip too thin to hold a voxel's centre is not in the mask.
    for beyond in (high - (center + half_mm), (center - half_mm) - low):
        assert (beyond <= voxel_mm / 2 + 1e-6).all()
    assert ((low < center) & (center < high)).all()


@pytest.mark.parametrize(("long", "short", "mean"), [(6.0, 4.98, 5), (6.0, 5.0, 6), (7.0, 6.0, 7), (5.5, 5.4, 5)])
def test_mean_diameter_is_rounded_to_whole_millimetres_halves_up(long: float, short: float, mean: int) -> None:
    volume, mask = body((4.0, 4.0, 4.0), (1.0, 1.0, 1.0))
    measured = measure(finding_of(volume, mask), volume)

    measured = replace(
        measured,
        long_axis=replace(measured.long_axis, length_mm=long),
        short_axis=replace(measured.short_axis, length_mm=short),
    )

    assert measured.mean_diameter_mm == mean


def test_error_of_the_volume_is_that_of_a_border_a_tenth_of_a_voxel_off() -> None:
    radius = 8.0
    volume, mask = body((radius, radius, radius), (0.7, 0.7, 0.7))

    measured = measure(finding_of(volume, mask), volume)

    assert measured.volume_error_mm3 == pytest.approx(4 * math.pi * radius**2 * 0.07, rel=0.03)


@settings(max_examples=20, deadline=None)
@given(angles, angles)
def test_lengths_do_not_depend_on_how_the_patient_lies(tilt: float, turn: float) -> None:
    volume, mask = body((5.0, 4.0, 8.0), (1.5, 0.7, 0.8), angle=0.4)
    about_x = np.array([[1, 0, 0], [0, math.cos(tilt), -math.sin(tilt)], [0, math.sin(tilt), math.cos(tilt)]])
    about_z = np.array([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    affine = volume.affine.copy()
    affine[:3, :3] = about_z @ about_x @ affine[:3, :3]
    turned = Volume(hu=volume.hu, affine=affine)

    before, after = (measure(finding_of(v, mask), v) for v in (volume, turned))

    assert after.long_axis_mm == pytest.approx(before.long_axis_mm)
    assert after.short_axis_mm == pytest.approx(before.short_axis_mm)
    assert after.volume_mm3 == pytest.approx(before.volume_mm3)


def test_axes_end_where_they_say_and_cross_at_right_angles() -> None:
    volume, mask = body((4.0, 5.0, 9.0), (2.0, 0.6, 0.9), shift=(0.2, 0.3, -0.1), angle=0.7)

    measured = measure(finding_of(volume, mask), volume)

    long, short = (np.array(axis.ends_mm) for axis in (measured.long_axis, measured.short_axis))
    assert np.linalg.norm(long[1] - long[0]) == pytest.approx(measured.long_axis_mm)
    assert np.linalg.norm(short[1] - short[0]) == pytest.approx(measured.short_axis_mm)
    assert (long[1] - long[0]) @ (short[1] - short[0]) == pytest.approx(0.0, abs=1e-9)
    for axis in (measured.long_axis, measured.short_axis):
        np.testing.assert_allclose(volume.to_mm(np.array(axis.ends_index)), axis.ends_mm)
        assert [end[0] for end in axis.ends_index] == [measured.slice_index, measured.slice_index]


def test_axes_lie_over_the_pixels_that_they_measure() -> None:
    volume, _ = body((6.0, 6.0, 6.0), (1.0, 0.5, 0.5))
    mask = np.zeros(volume.hu.shape, np.bool_)
    mask[3, 4:7, 2:13] = True

    measured = measure(finding_of(volume, mask), volume)

    for axis in (measured.long_axis, measured.short_axis):
        ends = np.array(axis.ends_index)
        assert ((ends >= (3, 3.5, 1.5)) & (ends <= (3, 6.5, 12.5))).all()
    np.testing.assert_allclose(np.mean(measured.long_axis.ends_index, axis=0), [3, 5, 7])


def test_largest_slice_is_the_one_through_the_middle() -> None:
    volume, mask = body((6.0, 6.0, 6.0), (1.5, 0.7, 0.7))

    assert measure(finding_of(volume, mask), volume).slice_index == volume.hu.shape[0] // 2


@settings(max_examples=60, deadline=None, derandomize=True)
@given(arrays(np.bool_, (4, 6, 6)).filter(np.any))
def test_no_slice_holds_a_longer_axis(mask: NDArray[np.bool_]) -> None:
    volume = Volume(hu=np.zeros(mask.shape, np.int16), affine=np.diag([1.0, 0.7, 0.7, 1.0]))

    alone = [
        measure(finding_of(volume, mask & (np.arange(4) == k)[:, None, None]), volume).long_axis_mm
        for k in range(4)
        if mask[k].any()
    ]

    assert measure(finding_of(volume, mask), volume).long_axis_mm == pytest.approx(max(alone), abs=1e-5)


def test_ct_number_is_that_of_the_mask_alone() -> None:
    volume, mask = body((4.0, 4.0, 4.0), (1.0, 1.0, 1.0))
    hu = np.where(mask, 30, -900).astype(np.int16)
    hu[tuple(np.argwhere(mask)[0])] = -70
    filled = Volume(hu=hu, affine=volume.affine)

    measured = measure(finding_of(filled, mask), filled)

    assert measured.mean_hu == pytest.approx(hu[mask].mean())
    assert measured.sd_hu == pytest.approx(hu[mask].std())


def test_a_single_voxel_has_an_outline_and_a_length() -> None:
    volume, _ = body((4.0, 4.0, 4.0), (1.0, 0.5, 0.5))
    mask = np.zeros(volume.hu.shape, np.bool_)
    mask[1, 2, 3] = True

    measured = measure(finding_of(volume, mask), volume)

    assert 0.0 < measured.short_axis_mm <= measured.long_axis_mm <= 0.5
    # PS3.3 C.18.6.1.2: the centre of the pixel in row 2 and column 3 is (3.5, 2.5).
    np.testing.assert_allclose(measured.contours[0][:-1].mean(axis=0), [3.5, 2.5])


def test_pieces_that_do_not_touch_are_measured_one_by_one() -> None:
    volume, _ = body((20.0, 20.0, 20.0), (1.0, 1.0, 1.0))
    mask = np.zeros(volume.hu.shape, np.bool_)
    mask[5, 5:8, 5:16] = True
    mask[5, 30:33, 30:33] = True

    measured = measure(finding_of(volume, mask), volume)

    assert measured.long_axis_mm < 12.0
    assert len(measured.contours) == 2
    assert measured.contours[0][:, 0].max() == 16.0


def inside(outline: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Pixels whose centre lies within a closed polygon of (column, row), by counting crossings."""
    rows, columns = np.indices(shape) + 0.5
    odd = np.zeros(shape, np.bool_)
    for (x0, y0), (x1, y1) in pairwise(outline):
        if y0 != y1:
            spans = (rows >= min(y0, y1)) & (rows < max(y0, y1))
            odd ^= spans & (columns < x0 + (rows - y0) / (y1 - y0) * (x1 - x0))
    return odd


@settings(deadline=None)
@given(masks)
def test_outlines_hold_the_pixels_of_the_mask_and_no_other(mask: NDArray[np.bool_]) -> None:
    found = pieces(mask)

    covered = np.zeros(mask.shape, np.bool_)
    for piece in found:
        np.testing.assert_array_equal(piece.outline[0], piece.outline[-1])
        assert len(piece.outline) >= 5
        covered |= inside(piece.outline, mask.shape)
    np.testing.assert_array_equal(covered, ndimage.binary_fill_holes(mask))


@settings(deadline=None)
@given(masks)
def test_pixels_that_touch_by_a_corner_are_one_piece(mask: NDArray[np.bool_]) -> None:
    _, count = ndimage.label(mask, EIGHT)

    assert len(pieces(mask)) == count
    areas = [piece.area for piece in pieces(mask)]
    assert areas == sorted(areas, reverse=True)


@given(arrays(np.float64, st.tuples(st.integers(3, 30), st.just(2)), elements=st.integers(0, 6).map(float)))
def test_hull_holds_all_points_and_turns_one_way(points: NDArray[np.float64]) -> None:
    hull = convex_hull(points)

    if len(hull) >= 3:
        edges = np.roll(hull, -1, axis=0) - hull
        offsets = points[:, None] - hull[None]
        assert (edges[:, 0] * offsets[..., 1] - edges[:, 1] * offsets[..., 0] >= -1e-9).all()
    assert {tuple(p) for p in hull.tolist()} <= {tuple(p) for p in points.tolist()}
