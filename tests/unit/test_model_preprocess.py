"""Claims about the network's input: right place, right values, whatever way the scan was stored."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.domain import Volume
from dicom_node.grids import resample, trilinear
from dicom_node.model.preprocess import network_input, slice_stacks
from dicom_node.model.spec import PreprocessSpec

signs = st.sampled_from([-1.0, 1.0])
spacings = st.floats(0.5, 3.0)


def ramp(affine: np.ndarray, shape: tuple[int, int, int], slope: tuple[float, float, float]) -> Volume:
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    blank = Volume(hu=np.zeros(shape, dtype=np.int16), affine=affine)
    return Volume(hu=(blank.to_mm(index) @ slope).round().astype(np.int16), affine=affine)


def axial(spacing: tuple[float, float, float], flips: tuple[float, float, float]) -> np.ndarray:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = np.multiply(spacing, flips)
    affine[:, 3] = 12.5, -40.25, 7.0, 1.0
    return affine


@settings(max_examples=25, deadline=None)
@given(st.tuples(spacings, spacings, spacings), st.tuples(signs, signs, signs))
def test_every_point_keeps_its_place_whatever_the_spacing_and_the_directions(spacing, flips):
    slope = (7.0, -5.0, 3.0)
    source = ramp(axial(spacing, flips), (6, 9, 8), slope)
    grid = resample(source, 1.0, -1024)
    assert np.array_equal(grid.affine[:3, :3], [[0, 0, 1], [0, 1, 0], [1, 0, 0]])
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.hu.shape), indexing="ij"), axis=-1)
    expected = grid.to_mm(index) @ slope
    assert np.abs(grid.hu - expected).max() < 1.5 + 1e-6  # rounded once, cut to an integer once


def test_outside_the_scan_and_below_its_floor_is_air():
    affine = axial((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    source = Volume(hu=np.full((4, 4, 4), -2000, dtype=np.int16), affine=affine)
    low = affine[:3, 3] - 3
    grid = resample(source, 1.0, -1024, np.stack([low, low + 12]))
    assert grid.hu.shape == (13, 13, 13)
    assert (grid.hu == -1024).all()


def test_the_same_volume_gives_the_same_bits():
    source = ramp(axial((2.5, 0.7, 0.7), (1.0, -1.0, 1.0)), (9, 20, 20), (3.0, 2.0, 5.0))
    assert resample(source, 1.0, -1024).hu.tobytes() == resample(source, 1.0, -1024).hu.tobytes()


def test_the_window_becomes_zero_to_one_and_clamps_beyond():
    spec = PreprocessSpec(hu_window=(-1200, 600), upsampling=1)
    hu = torch.tensor([-3000, -1200, -300, 600, 3000], dtype=torch.int16).reshape(1, 1, 1, 5)
    assert network_input(hu, spec).flatten().tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_a_voxel_centre_lands_on_the_model_pixel_that_boxes_count_with():
    planes = torch.full((1, 1, 9, 11), -1200, dtype=torch.int16)
    planes[0, 0, 3, 6] = 600
    x = network_input(planes, PreprocessSpec(upsampling=2))[0, 0]
    rows, columns = (torch.arange(n) + 0.5 for n in x.shape)
    assert torch.isclose((x.sum(dim=1) * rows).sum() / x.sum(), torch.tensor(2 * 3.5))
    assert torch.isclose((x.sum(dim=0) * columns).sum() / x.sum(), torch.tensor(2 * 6.5))


def test_a_stack_holds_the_named_neighbours_and_air_beyond_the_ends():
    grid = torch.arange(5, dtype=torch.int16).reshape(5, 1, 1)
    stacks = slice_stacks(grid, [0, 2, 4], PreprocessSpec(slice_offsets=(-2, 0, 2), air_hu=-1024))
    assert stacks[:, :, 0, 0].tolist() == [[-1024, 0, 2], [0, 2, 4], [2, 4, -1024]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*(st.floats(0, 3.999),) * 3), min_size=1, max_size=20))
def test_trilinear_reproduces_what_is_linear(points):
    k, r, c = np.meshgrid(*(np.arange(5.0),) * 3, indexing="ij")
    index = np.array(points)
    assert np.allclose(trilinear(2 * k - 3 * r + c, index, 0.0), index @ [2, -3, 1], atol=1e-4)


def test_trilinear_gives_the_outside_value_beyond_half_a_voxel():
    values = trilinear(np.ones((2, 2, 2)), np.array([[-0.4, 0, 0], [-0.6, 0, 0], [0, 0, 1.6]]), -7.0)
    assert values.tolist() == [1.0, -7.0, -7.0]
