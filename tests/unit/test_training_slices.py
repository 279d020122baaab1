"""Draws -> slices and targets: geometry before slicing, the node's own input, honest ignore regions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.model.preprocess import network_input, slice_stacks
from dicom_node.model.spec import PreprocessSpec
from tests.fakes.prepared import write_prepared
from training.augment import exact_frame, random_frame, vary_intensity
from training.cases import DataProblem
from training.prepared import PreparedScan
from training.recipe import Augmentation, Sampling
from training.sampling import Draw, Sampler, ball_on_plane
from training.slices import cut, sample

PREP = PreprocessSpec(slice_offsets=(-2, 0, 2))
CPU = torch.device("cpu")
SAMPLING = Sampling(crop_mm=32)
NODULE = (20.0, 40.0, 120.0, 6.0)


@pytest.fixture
def scan(tmp_path: Path) -> PreparedScan:
    return write_prepared(tmp_path, "a", nodules=(NODULE,), ignored=((40.0, 45.0, 120.0, 5.0),))


def draw(scan: PreparedScan, center: tuple[float, float, float], frame: np.ndarray | None = None) -> Draw:
    return Draw(scan=scan, center_mm=np.array(center), frame=np.eye(3) if frame is None else frame, number=1)


def one(scan: PreparedScan, where: Draw, sampling: Sampling = SAMPLING) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    images, targets = sample([cut(where, PREP, sampling.crop_mm)], PREP, sampling, None, CPU, 0)
    return images[0], targets[0]


def test_an_unturned_crop_is_bit_for_bit_what_the_node_shows_its_network(scan: PreparedScan) -> None:
    grid = torch.from_numpy(np.array(scan.hu()))
    wanted = network_input(slice_stacks(grid, [20], PREP), PREP)[0]
    image, _ = one(scan, draw(scan, (20.0, 45.0, 120.0)))
    row, column = 45 - 5 - 16, 20 + 10 - 16
    stacks = slice_stacks(grid, [20], PREP)[:, :, row : row + 32, column : column + 32]
    torch.testing.assert_close(image, network_input(stacks, PREP)[0], atol=2e-6, rtol=0)
    assert wanted.shape[1:] == (160, 160)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_quarter_turns_and_flips_show_voxels_and_nothing_between_them(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    scan = write_prepared(tmp_path_factory.mktemp("scan"), "a", seed=seed)
    frame = exact_frame(np.random.default_rng(seed))
    block = cut(draw(scan, (20.0, 45.0, 120.0), frame), PREP, 32)
    planes, _ = sample([block], PREP.model_copy(update={"upsampling": 1}), SAMPLING, None, CPU, 0)
    low, high = PREP.hu_window
    values = (planes[0] * (high - low) + low).numpy()
    np.testing.assert_allclose(values, values.round(), atol=0.01)


@pytest.mark.parametrize("seed", [0, 20260131, 2**32 - 1])
def test_any_seed_that_a_recipe_takes_varies_the_intensity(scan: PreparedScan, seed: int) -> None:
    block = cut(draw(scan, (20.0, 45.0, 120.0)), PREP, 32)
    (first,), (again,) = (sample([block], PREP, SAMPLING, Augmentation(), CPU, seed)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, sample([block], PREP, SAMPLING, None, CPU, seed)[0][0])


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_a_turned_crop_shows_the_nodule_where_its_box_says(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    scan = write_prepared(tmp_path_factory.mktemp("scan"), "a", nodules=(NODULE,))
    rng = np.random.default_rng(seed)
    frame = random_frame(rng, 10, 180, (0.85, 1.2))
    image, target = one(scan, draw(scan, (20 + rng.uniform(-4, 4), 40 + rng.uniform(-4, 4), 120.0), frame))
    (box,), (mask,) = target["boxes"].tolist(), target["masks"]
    x1, y1, x2, y2 = (int(v) for v in box)
    outside = mask.clone()
    outside[y1:y2, x1:x2] = 0
    assert outside.sum() == 0
    assert mask[y1:y2, x1].any()
    assert mask[y1:y2, x2 - 1].any()
    bright = image[1] > 0.5
    agree = 2 * (bright & mask.bool()).sum() / (bright.sum() + mask.sum())
    assert agree > 0.9


def test_a_nodule_cut_by_the_crops_edge_is_ignored_not_background(scan: PreparedScan) -> None:
    _, target = one(scan, draw(scan, (20.0 + 16, 40.0, 120.0)))
    assert len(target["boxes"]) == 0
    assert target["ignore"][-1][0] == 0


def test_a_thin_cut_through_a_nodule_is_ignored(scan: PreparedScan) -> None:
    _, middle = one(scan, draw(scan, (20.0, 40.0, 120.0)))
    _, top = one(scan, draw(scan, (20.0, 40.0, 126.0)))
    assert len(middle["boxes"]) == 1
    assert len(top["boxes"]) == 0
    assert len(top["ignore"]) == 1


def test_an_excluded_finding_is_ignored_where_the_plane_cuts_it(scan: PreparedScan) -> None:
    _, target = one(scan, draw(scan, (40.0, 45.0, 120.0)))
    np.testing.assert_allclose(target["ignore"][0].numpy(), [(16.5 - 5) * 2, 23, (16.5 + 5) * 2, 43])
    assert ball_on_plane(np.array([40.0, 45.0, 120.0]), 5.0, draw(scan, (40.0, 45.0, 125.1))) is None


def test_a_crop_beyond_the_scan_shows_air(scan: PreparedScan) -> None:
    image, target = one(scan, draw(scan, (500.0, 500.0, 500.0)))
    low, high = PREP.hu_window
    torch.testing.assert_close(image, torch.full_like(image, (PREP.air_hu - low) / (high - low)))
    assert len(target["boxes"]) == len(target["ignore"]) == 0


def test_draws_do_not_depend_on_what_was_drawn_before(scan: PreparedScan) -> None:
    first = Sampler([scan], SAMPLING, Augmentation(), {}, seed=3)
    again = Sampler([scan], SAMPLING, Augmentation(), {}, seed=3)
    for number in range(9):
        again.draw(number)
    a, b = first.draw(9), again.draw(9)
    np.testing.assert_array_equal(a.center_mm, b.center_mm)
    np.testing.assert_array_equal(a.frame, b.frame)
    assert (first.draw(10).center_mm != a.center_mm).any()


def test_shares_decide_where_crops_are_taken(scan: PreparedScan) -> None:
    hard = {"a": np.array([[50.0, 70.0, 110.0]])}
    plan = Augmentation(exact_share=1.0)

    def near(sampling: Sampling, place: tuple[float, float, float]) -> float:
        sampler = Sampler([scan], sampling, plan, hard, seed=1)
        off = [np.abs(sampler.draw(n).center_mm - place).max() for n in range(100)]
        return float(np.mean(np.array(off) < 12))

    assert near(Sampling(crop_mm=32, positive_share=1.0), NODULE[:3]) > 0.95
    either = [near(Sampling(crop_mm=32, positive_share=0.0, hard_share=1.0), p) for p in ((50, 70, 110), (40, 45, 120))]
    assert sum(either) > 0.95
    assert near(Sampling(crop_mm=32, positive_share=0.0, hard_share=0.0), (50, 70, 110)) < 0.3


def test_nothing_to_train_on_is_said(scan: PreparedScan, tmp_path: Path) -> None:
    with pytest.raises(DataProblem, match="no scan to train on"):
        Sampler([], SAMPLING, Augmentation(), {}, seed=1)
    empty = write_prepared(tmp_path / "empty", "b")
    with pytest.raises(DataProblem, match="no nodule in any scan"):
        Sampler([empty], SAMPLING, Augmentation(), {}, seed=1)


def test_intensity_varies_as_asked_and_never_by_itself() -> None:
    planes = torch.full((3, 16, 16), 100.0)
    still = Augmentation(offset_hu=0, noise_share=0, soften_share=0, contrast_share=0)
    torch.testing.assert_close(vary_intensity(planes, still, 1), planes)
    torch.testing.assert_close(vary_intensity(planes, Augmentation(), 5), vary_intensity(planes, Augmentation(), 5))
    noisy = Augmentation(offset_hu=0, noise_share=1, noise_hu=20, soften_share=0, contrast_share=0)
    spread = [vary_intensity(planes, noisy, n).std().item() for n in range(50)]
    assert 5 < float(np.mean(spread)) < 15
    contrast = Augmentation(offset_hu=0, noise_share=0, soften_share=0, contrast_share=1)
    assert {vary_intensity(planes, contrast, n).mean().item() for n in range(5)} != {100.0}
    soft = Augmentation(offset_hu=0, noise_share=0, soften_share=1, contrast_share=0)
    point = torch.zeros(1, 9, 9)
    point[0, 4, 4] = 16
    assert vary_intensity(point, soft, 0)[0, 3:6, 3:6].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
