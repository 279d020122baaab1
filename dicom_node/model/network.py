"""NetworkSpec -> Mask R-CNN. Slices in, boxes with 28 x 28 mask probabilities out; nothing is resized or pasted.

torchvision's parts, minus what its defaults would do behind our back: resizing to 800 px, anchors rounded
to even sizes, a P6 level without anchors, masks pasted full size on every slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from dicom_node.model.spec import NetworkSpec, PreprocessSpec

MASK_SIZE = 28

SMALL = NetworkSpec(
    backbone="resnet18",
    levels=3,
    fpn_channels=128,
    box_head_width=512,
    mask_head_channels=(128, 128),
    anchors=((5.0, 7.0, 10.0, 14.0), (16.0, 20.0, 25.0, 30.0), (36.0, 45.0, 56.0, 70.0)),
    roi_canonical_px=40.0,
    rpn_pre_nms=200,
    rpn_post_nms=100,
)
REFERENCE = NetworkSpec(
    backbone="resnext101_32x8d",
    levels=4,
    fpn_channels=256,
    box_head_width=1024,
    mask_head_channels=(256, 256, 256, 256),
    anchors=((5.0, 8.0, 12.0), (16.0, 20.0, 25.0), (30.0, 37.0, 45.0), (54.0, 64.0, 80.0)),
    roi_canonical_px=56.0,
    rpn_pre_nms=1000,
    rpn_post_nms=300,
)

Norm = Callable[..., nn.Module]


class ExactAnchors(AnchorGenerator):  # type: ignore[misc]  # torchvision ships no types
    """Anchors of the very sizes asked for: torchvision rounds, so that 3, 4 and 5 px become one 4 px anchor."""

    def generate_anchors(
        self,
        scales: list[float],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Tensor:
        sizes = torch.as_tensor(scales, dtype=dtype, device=device)
        tall = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        w, h = (sizes[None] / tall[:, None]).reshape(-1), (sizes[None] * tall[:, None]).reshape(-1)
        return torch.stack([-w, -h, w, h], dim=1) / 2


class TrueSize(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision ships no types
    """Normalizes and pads, never resizes, and leaves masks as 28 x 28 probabilities in their boxes."""

    def __init__(self, mean: float, std: float, channels: int, stride: int) -> None:
        super().__init__(0, 0, [mean] * channels, [std] * channels, size_divisible=stride)

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        return result


class NoExtraLevel(ExtraFPNBlock):  # type: ignore[misc]  # torchvision ships no types
    """Without it BackboneWithFPN adds a max-pooled level that no anchors belong to."""

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        return results, names


def build_network(
    spec: NetworkSpec,
    prep: PreprocessSpec,
    *,
    score_threshold: float = 0.02,
    norm: Norm = FrozenBatchNorm2d,
    rpn_type: type[nn.Module] = RegionProposalNetwork,
    roi_type: type[nn.Module] = RoIHeads,
) -> nn.Module:
    """A Mask R-CNN with random weights. `norm`, `rpn_type` and `roi_type` are for the trainer.

    In: list of (channels, H, W) float tensors, the HU window mapped to 0..1.
    Out, in eval: a dict a slice with boxes (n, 4) as x1, y1, x2, y2 in model pixels, scores (n,),
    labels (n,), masks (n, 1, 28, 28) probabilities in their boxes.
    """
    backbone = _backbone(spec, len(prep.slice_offsets), norm)
    anchors = ExactAnchors(spec.anchors, (spec.aspect_ratios,) * spec.levels)
    rpn = rpn_type(
        anchors,
        RPNHead(spec.fpn_channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=spec.rpn_foreground_iou,
        bg_iou_thresh=spec.rpn_background_iou,
        batch_size_per_image=128,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 2 * spec.rpn_pre_nms, "testing": spec.rpn_pre_nms},
        post_nms_top_n={"training": 2 * spec.rpn_post_nms, "testing": spec.rpn_post_nms},
        nms_thresh=spec.rpn_nms_iou,
    )
    heads = _roi_heads(spec, score_threshold, roi_type)
    transform = TrueSize(prep.mean, prep.std, len(prep.slice_offsets), stride=4 * 2 ** (spec.levels - 1))
    return cast(nn.Module, GeneralizedRCNN(backbone, rpn, heads, transform))


def _backbone(spec: NetworkSpec, channels: int, norm: Norm) -> nn.Module:
    trunk = getattr(resnet, spec.backbone)(weights=None, norm_layer=norm)
    if channels != 3:
        trunk.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    widths = [trunk.inplanes // 8 * 2**level for level in range(spec.levels)]
    layers = {f"layer{level + 1}": str(level) for level in range(spec.levels)}
    return cast(nn.Module, BackboneWithFPN(trunk, layers, widths, spec.fpn_channels, NoExtraLevel()))


def _roi_heads(spec: NetworkSpec, score_threshold: float, roi_type: type[nn.Module]) -> nn.Module:
    width = spec.fpn_channels
    return roi_type(
        _pooler(spec, 7),
        TwoMLPHead(width * 7 * 7, spec.box_head_width),
        FastRCNNPredictor(spec.box_head_width, spec.classes),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=64,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=score_threshold,
        nms_thresh=spec.box_nms_iou,
        detections_per_img=spec.detections_per_slice,
        mask_roi_pool=_pooler(spec, MASK_SIZE // 2),
        mask_head=MaskRCNNHeads(width, list(spec.mask_head_channels), dilation=1),
        mask_predictor=MaskRCNNPredictor(spec.mask_head_channels[-1], width, spec.classes),
    )


def _pooler(spec: NetworkSpec, size: int) -> MultiScaleRoIAlign:
    names = [str(level) for level in range(spec.levels)]
    return MultiScaleRoIAlign(
        names, size, sampling_ratio=2, canonical_scale=spec.roi_canonical_px, canonical_level=spec.levels + 1
    )


def best_anchor_iou(spec: NetworkSpec, boxes: Tensor) -> Tensor:
    """(n, 4) boxes in model pixels -> (n,) the best IoU any anchor of the network reaches with each."""
    best = torch.zeros(len(boxes))
    for level, sizes in enumerate(spec.anchors):
        stride = 4 * 2**level
        for size in sizes:
            for ratio in spec.aspect_ratios:
                best = torch.maximum(best, _grid_iou(boxes, size, ratio, stride))
    return best


def _grid_iou(boxes: Tensor, size: float, ratio: float, stride: int) -> Tensor:
    w, h = size / math.sqrt(ratio), size * math.sqrt(ratio)
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    at = (center / stride).round() * stride
    anchor = torch.stack([at[:, 0] - w / 2, at[:, 1] - h / 2, at[:, 0] + w / 2, at[:, 1] + h / 2], dim=1)
    overlap = (torch.minimum(boxes[:, 2:], anchor[:, 2:]) - torch.maximum(boxes[:, :2], anchor[:, :2])).clamp(0)
    shared = overlap.prod(dim=1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    return shared / (area + w * h - shared)
