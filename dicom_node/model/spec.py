"""The numbers stored beside the weights. Every form is strict: an unknown key or a wrong type is refused."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0)]


class Spec(BaseModel):
    """Base of all forms in bundle.json."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class NetworkSpec(Spec):
    """One Mask R-CNN: which trunk, which anchors, how wide the heads, how many proposals.

    levels: how many feature levels, from P2 (stride 4) up. anchors: sizes of each level in model pixels.
    roi_canonical_px: a box this wide is pooled from the coarsest level; torchvision's 224 would send
        every nodule to P2, so that no other level ever learns.
    """

    backbone: Literal["resnet18", "resnext101_32x8d"]
    levels: Annotated[int, Field(ge=2, le=4)]
    fpn_channels: Count
    box_head_width: Count
    mask_head_channels: tuple[Count, ...]
    anchors: tuple[tuple[Positive, ...], ...]
    aspect_ratios: tuple[Positive, ...] = (1.0,)
    roi_canonical_px: Positive
    classes: Annotated[int, Field(ge=2)] = 2
    rpn_pre_nms: Count
    rpn_post_nms: Count
    rpn_nms_iou: Fraction = 0.7
    rpn_foreground_iou: Fraction = 0.5
    rpn_background_iou: Fraction = 0.3
    box_nms_iou: Fraction = 0.3
    detections_per_slice: Count = 20

    @model_validator(mode="after")
    def _levels_agree(self) -> NetworkSpec:
        if len(self.anchors) != self.levels:
            raise ValueError(f"{len(self.anchors)} rows of anchors for {self.levels} levels")
        if len({len(row) for row in self.anchors}) != 1:
            raise ValueError("all levels need the same number of anchors: they share one RPN head")
        return self


class PreprocessSpec(Spec):
    """HU to network input.

    slice_offsets: which grid slices, relative to the one looked at, become the channels.
    upsampling: model pixels for one grid voxel in plane.
    air_hu: what lies outside the field of view, and the floor of padding such as -2000.
    lung_margin_mm: a candidate further than this from the lungs is not reported;
        crop_margin_mm: how far round the lungs the network looks.
    """

    spacing_mm: Positive = 1.0
    hu_window: tuple[int, int] = (-1200, 600)
    air_hu: int = -1024
    mean: float = 0.35
    std: Positive = 0.3
    slice_offsets: tuple[int, ...] = (-1, 0, 1)
    slice_step: Count = 1
    upsampling: Annotated[int, Field(ge=1, le=4)] = 2
    lung_margin_mm: Annotated[float, Field(ge=10)] = 10.0
    crop_margin_mm: Annotated[float, Field(ge=10)] = 12.0

    @model_validator(mode="after")
    def _window_is_a_range(self) -> PreprocessSpec:
        if self.hu_window[0] >= self.hu_window[1]:
            raise ValueError(f"hu_window {self.hu_window} is no range")
        if self.slice_offsets != tuple(sorted(set(self.slice_offsets))) or 0 not in self.slice_offsets:
            raise ValueError(f"slice_offsets {self.slice_offsets} must rise and hold 0")
        return self


class MergeSpec(Spec):
    """Slice detections to 3D candidates, and what a candidate's score is made of.

    link_iou, link_mm: boxes of neighbouring slices belong together at this overlap or centre distance.
    gap: how many grid slices may be missing inside a candidate.
    trim: end slices whose score is below this part of the candidate's best are cut off.
    length_part, least_slices: the score starts as the mean of the best slices, as many as this part of the
        candidate's own width holds, but at least so many; a slice that is not there counts as 0.
    elongation: (full, zero): z length over in-plane size; from `full` on the score falls, at `zero` it is 0.
    nms_iou: 3D boxes that overlap more are one candidate. mask_threshold: probability of the mask's edge.
    """

    link_iou: Fraction = 0.3
    link_mm: Annotated[float, Field(ge=0)] = 2.0
    gap: Annotated[int, Field(ge=0)] = 1
    trim: Fraction = 0.25
    length_part: Fraction = 0.75
    least_slices: Count = 2
    elongation: tuple[Positive, Positive] = (1.5, 2.5)
    nms_iou: Fraction = 0.2
    mask_threshold: Fraction = 0.5


class RefinementSpec(Spec):
    """The second look, in 3D, at each candidate. A bundle without one reports what the slices alone say.

    cube: edge of the cube cut round a candidate's middle, in grid voxels; 32 to 48 mm.
    widths: channels of the first convolution, then of each stage; a stage halves the cube.
    floor: slice score under which a candidate is dropped unseen; most: at most so many a scan, the best first.
    weight: score = slice score ** (1 - weight) * cube score ** weight.
    """

    cube: Count = 32
    widths: Annotated[tuple[Count, ...], Field(min_length=2)] = (16, 32, 64, 96)
    floor: Fraction = 0.05
    most: Count = 100
    weight: Fraction = 0.5
