"""Claims about the second network: its cubes are the grid's own voxels, it is small, and its say is a weight."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.model.preprocess import windowed
from dicom_node.model.refine import Refiner, cut_cubes, fused
from dicom_node.model.spec import PreprocessSpec, RefinementSpec

PREP = PreprocessSpec()
GRID = np.random.default_rng(0).integers(-1000, 400, (12, 15, 18)).astype(np.int16)
RAMP = np.stack(np.meshgrid(*(np.arange(100),) * 3, indexing="ij")).astype(np.int16)
COORDINATE = st.floats(-30, 40)


@settings(deadline=None)
@given(center=st.tuples(COORDINATE, COORDINATE, COORDINATE), edge=st.integers(4, 12))
def test_a_cube_is_the_grids_own_voxels_and_air_beyond_them(center: tuple[float, float, float], edge: int):
    cube = cut_cubes(GRID, np.array([center]), edge, PREP)[0, 0].numpy()
    first = np.floor(np.array(center) - (edge - 1) / 2 + 0.5).astype(int)
    for offset in np.ndindex(edge, edge, edge):
        at = first + offset
        inside = (at >= 0).all() and (at < GRID.shape).all()
        assert cube[offset] == (GRID[tuple(at)] if inside else PREP.air_hu)


@settings(deadline=None)
@given(center=st.tuples(COORDINATE, COORDINATE, COORDINATE), edge=st.integers(4, 12))
def test_no_other_cube_of_whole_voxels_has_its_middle_nearer(center: tuple[float, float, float], edge: int):
    shifted = np.array([center]) + 45
    middle = [float(cut_cubes(axis, shifted, edge, PREP).double().mean()) for axis in RAMP]
    assert np.abs(np.array(middle) - shifted[0]).max() <= 0.5 + 1e-9


def test_cubes_come_in_the_order_of_their_centers():
    centers = np.array([[3.0, 4.0, 5.0], [8.0, 9.0, 10.0]])
    both = cut_cubes(GRID, centers, 4, PREP)
    assert both.shape == (2, 1, 4, 4, 4)
    assert all(torch.equal(both[i], cut_cubes(GRID, centers[i : i + 1], 4, PREP)[0]) for i in range(2))


def test_no_candidates_give_no_cubes():
    assert cut_cubes(GRID, np.zeros((0, 3)), 8, PREP).shape == (0, 1, 8, 8, 8)


def test_the_window_runs_from_0_to_1():
    assert windowed(torch.tensor([-3000, -1200, -300, 600, 3000]), PREP).tolist() == [0, 0, 0.5, 1, 1]


@settings(deadline=None)
@given(score=st.floats(0, 1), logit=st.floats(-1e6, 1e6), weight=st.floats(0, 1))
def test_a_fused_score_lies_between_the_two(score: float, logit: float, weight: float):
    cube = fused(1.0, logit, 1.0)
    assert min(score, cube) - 1e-12 <= fused(score, logit, weight) <= max(score, cube) + 1e-12


def test_the_weight_says_who_is_believed():
    assert fused(0.3, 2.0, 0.0) == pytest.approx(0.3)
    assert fused(0.3, 2.0, 1.0) == pytest.approx(1 / (1 + np.exp(-2.0)))
    assert fused(0.3, 2.0, 0.5) > fused(0.3, 1.0, 0.5) > fused(0.2, 1.0, 0.5)


@pytest.mark.parametrize("cube", [32, 33, 40, 48])
def test_it_takes_cubes_of_any_allowed_edge(cube: int):
    spec = RefinementSpec(cube=cube, widths=(2, 4, 4))
    assert Refiner(spec).eval()(torch.zeros(3, 1, cube, cube, cube)).shape == (3,)


def test_it_is_small_and_quick_on_one_core():
    model = Refiner(RefinementSpec()).eval().to(memory_format=torch.channels_last_3d)
    assert 0.3e6 < sum(p.numel() for p in model.parameters()) < 0.8e6
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            model(torch.rand(4, 1, 32, 32, 32))
            started = time.process_time()
            model(torch.rand(60, 1, 32, 32, 32))
            assert time.process_time() - started < 3.0
    finally:
        torch.set_num_threads(before)


def test_where_a_thing_lies_in_the_cube_counts():
    torch.manual_seed(0)
    model = Refiner(RefinementSpec(widths=(4, 8, 8, 8))).eval()
    middle, aside = torch.zeros(2, 1, 1, 32, 32, 32)
    middle[..., 12:20, 12:20, 12:20] = 1.0
    aside[..., 4:12, 4:12, 4:12] = 1.0
    assert not torch.isclose(model(middle), model(aside), rtol=1e-3)
