"""Mask R-CNN's two samplers, taught a third label: neither nodule nor background (findings readers disagree on)."""

from __future__ import annotations

from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

COVERED = 0.5


class IgnoringRPN(RegionProposalNetwork):  # type: ignore[misc]  # torchvision ships no types
    """Targets carry `ignore` boxes: background anchors mostly inside one are not sampled."""

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        for label, anchor, target in zip(labels, anchors, targets, strict=True):
            label[(label == 0) & covered(anchor, target["ignore"])] = -1
        return labels, boxes


class IgnoringRoIHeads(RoIHeads):  # type: ignore[misc]  # torchvision ships no types
    """The same for proposals."""

    def select_training_samples(
        self, proposals: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        self.ignored = [target["ignore"] for target in targets]
        chosen: tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]
        chosen = super().select_training_samples(proposals, targets)
        return chosen

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        matched, labels = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        for label, boxes, ignored in zip(labels, proposals, self.ignored, strict=True):
            label[(label == 0) & covered(boxes, ignored)] = -1
        return matched, labels


def covered(boxes: Tensor, by: Tensor) -> Tensor:
    """(n, 4), (m, 4) -> (n,) bool: at least half of the box lies within one of `by`."""
    if not len(by):
        return boxes.new_zeros(len(boxes)).bool()
    low = boxes[:, None, :2].maximum(by[None, :, :2])
    high = boxes[:, None, 2:].minimum(by[None, :, 2:])
    shared = (high - low).clamp(0).prod(dim=2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    return (shared.amax(dim=1) >= COVERED * area).bool()
