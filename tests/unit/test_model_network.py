"""Claims about the Mask R-CNN: no hidden resize, true anchors, every level used."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dicom_node.model.network import MASK_SIZE, REFERENCE, SMALL, ExactAnchors, best_anchor_iou, build_network
from dicom_node.model.spec import NetworkSpec, PreprocessSpec

PREP = PreprocessSpec()


def test_anchors_are_not_rounded():
    anchors = ExactAnchors(((3.0, 4.0, 5.0),), ((1.0,),))
    widths = anchors.cell_anchors[0][:, 2] - anchors.cell_anchors[0][:, 0]
    assert widths.tolist() == [3.0, 4.0, 5.0]


def test_the_network_sees_the_true_size_in_training_and_in_evaluation():
    model = build_network(SMALL, PREP)
    for mode in (True, False):
        images, _ = model.train(mode).transform([torch.zeros(3, 96, 112)], None)
        assert images.tensors.shape[-2:] == (96, 112)
        assert images.image_sizes == [(96, 112)]


def test_input_is_normalized_with_the_models_own_numbers():
    images, _ = build_network(SMALL, PREP).transform([torch.full((3, 32, 32), PREP.mean + PREP.std)], None)
    assert torch.allclose(images.tensors, torch.ones(1, 3, 32, 32))


@pytest.mark.parametrize("spec", [SMALL, REFERENCE], ids=["small", "reference"])
def test_levels_are_those_with_anchors_and_all_match(spec: NetworkSpec):
    with torch.device("meta"):
        model = build_network(spec, PREP).eval()
        maps = list(model.backbone(torch.zeros(1, 3, 128, 192)).values())
        scores, _ = model.rpn.head(maps)
    strides = [(128 // m.shape[-2], 192 // m.shape[-1]) for m in maps]
    assert strides == [(4 * 2**level,) * 2 for level in range(spec.levels)]
    assert {s.shape[1] for s in scores} == {len(spec.anchors[0])}


@pytest.mark.parametrize("spec", [SMALL, REFERENCE], ids=["small", "reference"])
def test_small_and_large_nodules_are_pooled_from_different_levels(spec: NetworkSpec):
    with torch.device("meta"):
        pool = build_network(spec, PREP).roi_heads.box_roi_pool
    maps = [torch.zeros(1, 1, 256 // stride, 256 // stride) for stride in (4, 8, 16, 32)[: spec.levels]]
    names = {str(i): m for i, m in enumerate(maps)}
    sizes = [6.0, 12.0, 24.0, 48.0, 64.0]
    boxes = torch.tensor([[100.0, 100.0, 100 + s, 100 + s] for s in sizes])
    pool(names, [boxes], [(256, 256)])
    levels = pool.map_levels([boxes]).tolist()
    assert levels == sorted(levels)
    assert len(set(levels)) >= 3


def test_masks_stay_28_by_28_in_their_boxes():
    torch.manual_seed(0)
    model = build_network(SMALL, PREP, score_threshold=0.0).eval()
    with torch.inference_mode():
        (answer,) = model([torch.rand(3, 64, 80)])
    count = len(answer["boxes"])
    assert 0 < count <= SMALL.detections_per_slice
    assert answer["masks"].shape == (count, 1, MASK_SIZE, MASK_SIZE)


def test_forms_refuse_anchors_that_do_not_fit_the_levels():
    with pytest.raises(ValueError, match="rows of anchors"):
        NetworkSpec.model_validate(SMALL.model_dump() | {"levels": 2})
    with pytest.raises(ValueError, match="same number of anchors"):
        NetworkSpec.model_validate(SMALL.model_dump() | {"anchors": ((4.0, 5.0), (8.0, 9.0), (16.0,))})


@pytest.fixture(scope="module")
def real_boxes(shared_data: Path) -> Tensor:
    """Boxes of the real nodules' slices in model pixels at 1 mm x 2, from 3 mm wide (smaller: ignore label)."""
    sitk = pytest.importorskip("SimpleITK")
    rng, boxes = np.random.default_rng(0), []
    for path in sorted((shared_data / "nodule_voi" / "nodule_mask").glob("*.nii.gz")):
        image = sitk.ReadImage(str(path))
        spacing = np.array(image.GetSpacing()[1::-1])
        for plane in sitk.GetArrayViewFromImage(image):
            where = np.argwhere(plane)
            if len(where):
                size = (where.max(axis=0) + 1 - where.min(axis=0)) * spacing
                low = 100 + rng.uniform(0, 32, 2)
                if size.min() >= 3:
                    boxes.append([low[1], low[0], low[1] + 2 * size[1], low[0] + 2 * size[0]])
    return torch.tensor(boxes, dtype=torch.float32)


def test_anchors_reach_the_real_nodules(real_boxes: Tensor):
    assert len(real_boxes) > 3000
    for spec in (SMALL, REFERENCE):
        reached = best_anchor_iou(spec, real_boxes)
        assert float((reached >= 0.5).float().mean()) >= 0.90
        assert float((reached < 0.3).float().mean()) <= 0.03


def test_torchvisions_own_anchors_would_not_reach_them(real_boxes: Tensor):
    usual = REFERENCE.model_copy(update={"anchors": tuple((float(s),) for s in (32, 64, 128, 256))})
    assert float((best_anchor_iou(usual, real_boxes) < 0.3).float().mean()) > 0.3
