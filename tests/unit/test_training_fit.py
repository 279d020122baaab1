"""Claims about the trainer: what is ignored teaches nothing, and a broken run goes on as if unbroken."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dicom_node.model.network import build_network
from tests.unit.test_model_bundle import TINY
from tests.unit.test_training_data import PREP, background, ball
from training.compose import Background, Sample, SliceComposer
from training.ignore import IgnoringRoIHeads, IgnoringRPN, covered
from training.train import FitSettings, batch_of, learning_rate, resume, save, target_of, train_step

__all__ = ["background"]


def sample(*masks: tuple[slice, slice], ignore: tuple[tuple[float, ...], ...] = ()) -> Sample:
    drawn = np.zeros((len(masks), 32, 32), dtype=np.float32)
    for plane, (rows, columns) in zip(drawn, masks, strict=True):
        plane[rows, columns] = 1.0
    return Sample(
        planes_hu=np.full((3, 32, 32), -850, dtype=np.float32),
        masks=drawn,
        ignore=np.array(ignore, dtype=np.float64).reshape(-1, 4),
    )


def test_a_box_is_the_masks_own_extent_in_model_pixels():
    target = target_of(sample((slice(4, 9), slice(10, 20))), upsampling=2)
    assert target["boxes"].tolist() == [[20.0, 8.0, 40.0, 18.0]]
    assert target["masks"].shape == (1, 64, 64)
    assert int(target["masks"].sum()) == 20 * 10


def test_a_cut_under_3_mm_is_ignored_not_learned():
    target = target_of(sample((slice(4, 6), slice(10, 20)), ignore=((1, 1, 5, 5),)), upsampling=2)
    assert len(target["boxes"]) == 0
    assert target["ignore"].tolist() == [[2.0, 2.0, 10.0, 10.0], [20.0, 8.0, 40.0, 12.0]]


def test_covered_means_half_of_the_box():
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [8.0, 0.0, 12.0, 4.0]])
    assert covered(boxes, torch.tensor([[0.0, 0.0, 2.0, 4.0]])).tolist() == [True, False]
    assert covered(boxes, torch.zeros(0, 4)).tolist() == [False, False]


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_network(TINY, PREP, norm=nn.BatchNorm2d, rpn_type=IgnoringRPN, roi_type=IgnoringRoIHeads).train()


def test_anchors_in_an_ignored_region_are_neither_nodule_nor_background():
    rpn = network().rpn
    anchors = torch.tensor([[10.0, 10.0, 20.0, 20.0], [40.0, 40.0, 50.0, 50.0], [0.0, 0.0, 6.0, 6.0]])
    target = {"boxes": torch.tensor([[40.0, 40.0, 50.0, 50.0]]), "ignore": torch.tensor([[8.0, 8.0, 22.0, 22.0]])}
    (labels,), _ = rpn.assign_targets_to_anchors([anchors], [target])
    assert labels.tolist() == [-1.0, 1.0, 0.0]


def test_proposals_in_an_ignored_region_are_not_sampled():
    heads = network().roi_heads
    target = {
        "boxes": torch.tensor([[40.0, 40.0, 50.0, 50.0]]),
        "labels": torch.ones(1, dtype=torch.int64),
        "masks": torch.zeros(1, 64, 64, dtype=torch.uint8),
        "ignore": torch.tensor([[8.0, 8.0, 22.0, 22.0]]),
    }
    proposals = [torch.tensor([[10.0, 10.0, 20.0, 20.0], [0.0, 50.0, 6.0, 56.0]])]
    chosen, _, labels, _ = heads.select_training_samples(proposals, [target])
    assert [10.0, 10.0, 20.0, 20.0] not in chosen[0].tolist()
    assert sorted(labels[0].tolist()) == [0, 1]


def test_the_learning_rate_warms_up_and_ends_near_zero():
    settings = FitSettings(warmup_steps=10, learning_rate=0.1)
    rates = [learning_rate(settings, step, step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.01, rel=0.1)
    assert max(rates) == pytest.approx(0.1, rel=0.05)
    assert rates[-1] == pytest.approx(0.001)
    assert rates[20:] == sorted(rates[20:], reverse=True)


def run(folder: Path, background: Background, stop_at: list[int]) -> dict[str, torch.Tensor]:
    """Four steps, with a new process' worth of objects at each stop."""
    settings = FitSettings(batch=1, size=32, save_every=1)
    for end in stop_at:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        step, _ = resume(folder, model, optimizer)
        composer = SliceComposer([background], [ball(4.0)], PREP, settings.size)
        while step < end:
            torch.manual_seed(step)  # the samplers inside the network draw from torch's own numbers
            train_step(model, optimizer, batch_of(composer, settings, step, PREP), 5.0)
            step += 1
        save(folder, model, optimizer, settings, step, 0.0)
    return model.state_dict()


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path, background: Background):
    whole = run(tmp_path / "whole", background, [4])
    broken = run(tmp_path / "broken", background, [2, 4])
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_steps_lower_the_loss_on_one_batch(background: Background):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    settings = FitSettings(batch=2, size=32)
    batch = batch_of(SliceComposer([background], [ball(4.0)], PREP, 32), settings, 1, PREP)
    losses = [train_step(model, optimizer, batch, 5.0)["total"] for _ in range(25)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_a_checkpoint_holds_no_code(tmp_path: Path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    save(tmp_path, model, optimizer, FitSettings(), 3, 1.5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.json", "last.safetensors"]
    assert resume(tmp_path, network(), optimizer) == (3, 1.5)
