"""Finding on its Volume -> a picture for people: three planes, its outline, its numbers. Lengths are true in mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw

from dicom_node.domain import RESEARCH_USE, Finding, Volume
from dicom_node.results import drawing, quantities
from dicom_node.results.drawing import BACKGROUND, FRAME, LUNG_WINDOW_HU, QUIET, TEXT, WARNING, font, to_png
from dicom_node.results.measure import Measurement

__all__ = ["render_finding", "render_montage", "to_png"]

_AIR_HU = -1024

_PANEL_PX = 336
_GAP_PX = 10
_HEAD_PX = 58
_FOOT_PX = 34


@dataclass(frozen=True, slots=True)
class _Plane:
    """How a plane lies on the screen. right, down: directions in LPS. ends: letters at left, right, top, bottom."""

    name: str
    right: tuple[float, float, float]
    down: tuple[float, float, float]
    ends: tuple[str, str, str, str]


# Radiological convention: the patient's left at the right of the image, the head up, the face to the left.
_PLANES = (
    _Plane("Axial", (1, 0, 0), (0, 1, 0), ("R", "L", "A", "P")),
    _Plane("Coronal", (1, 0, 0), (0, 0, -1), ("R", "L", "H", "F")),
    _Plane("Sagittal", (0, 1, 0), (0, 0, -1), ("A", "P", "H", "F")),
)


def render_montage(volume: Volume, findings: Sequence[Finding], measurements: Sequence[Measurement]) -> Image.Image:
    """All findings in their order, one below the other. Raises ValueError without findings."""
    if not findings:
        raise ValueError("no findings, so there is nothing to show")
    rows = [
        render_finding(volume, finding, measurement, number)
        for number, (finding, measurement) in enumerate(zip(findings, measurements, strict=True), start=1)
    ]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), BACKGROUND)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def render_finding(volume: Volume, finding: Finding, measurement: Measurement, number: int) -> Image.Image:
    """Axial, coronal and sagittal view of one finding; `number` names it as the SEG and the SR do."""
    width = len(_PLANES) * (_PANEL_PX + _GAP_PX) + _GAP_PX
    image = Image.new("RGB", (width, _HEAD_PX + _PANEL_PX + _FOOT_PX), BACKGROUND)
    draw = ImageDraw.Draw(image)
    _draw_head(draw, finding, measurement, number)
    field_mm = drawing.field_mm(volume, finding)
    centers = _centers_mm(volume, finding, measurement)
    for position, (plane, center) in enumerate(zip(_PLANES, centers, strict=True)):
        panel = _panel(volume, finding, plane, center, field_mm, number)
        image.paste(panel, (_GAP_PX + position * (_PANEL_PX + _GAP_PX), _HEAD_PX))
    _draw_foot(draw, volume, measurement, image.size)
    return image


def _centers_mm(volume: Volume, finding: Finding, measurement: Measurement) -> list[NDArray[np.float64]]:
    """Where each plane is centred: in the mask, the axial one in the slice that was measured."""
    voxels = (np.argwhere(finding.mask) + np.array(finding.corner)).astype(np.float64)
    measured = voxels[voxels[:, 0] == measurement.slice_index]
    middle = _nearest(volume.to_mm(voxels), np.array(finding.center_mm))
    axial = _nearest(volume.to_mm(measured), np.array(finding.center_mm))
    return [axial, middle, middle]


def _nearest(points: NDArray[np.float64], to: NDArray[np.float64]) -> NDArray[np.float64]:
    nearest: NDArray[np.float64] = points[int(np.linalg.norm(points - to, axis=1).argmin())]
    return nearest


def _panel(
    volume: Volume, finding: Finding, plane: _Plane, center_mm: NDArray[np.float64], field_mm: float, number: int
) -> Image.Image:
    index = volume.to_index(_grid_mm(plane, center_mm, field_mm))
    low, high = LUNG_WINDOW_HU
    grey = (_sampled(volume.hu, index, _AIR_HU) - low) / (high - low)
    rgb = np.repeat(np.clip(grey, 0.0, 1.0)[..., None], 3, axis=-1) * 255.0
    # Beyond the scan is not air: show the background there.
    outside = ((index < -0.5) | (index > np.array(volume.hu.shape) - 0.5)).any(axis=-1)
    rgb[outside] = ImageColor.getrgb(BACKGROUND)
    covered = _sampled(finding.mask.astype(np.float32), index - np.array(finding.corner), 0)
    rgb = drawing.with_line(rgb, covered, number)
    panel = Image.fromarray(np.rint(rgb).astype(np.uint8))
    _draw_labels(ImageDraw.Draw(panel), plane, field_mm)
    return panel


def _grid_mm(plane: _Plane, center_mm: NDArray[np.float64], field_mm: float) -> NDArray[np.float64]:
    """LPS mm of the panel's pixels (row, column, 3)."""
    steps = (np.arange(_PANEL_PX) + 0.5) / _PANEL_PX * field_mm - field_mm / 2
    across = steps[None, :, None] * np.array(plane.right, dtype=np.float64)
    along = steps[:, None, None] * np.array(plane.down, dtype=np.float64)
    grid: NDArray[np.float64] = center_mm + across + along
    return grid


def _sampled(
    array: NDArray[np.int16] | NDArray[np.float32], index: NDArray[np.float64], beyond: int
) -> NDArray[np.float32]:
    """Trilinear interpolation of `array` at (..., 3) fractional indices; voxels beyond its border are `beyond`."""
    flat = index.reshape(-1, 3)
    low = np.clip(np.floor(flat.min(axis=0)).astype(int) - 1, 0, array.shape)
    high = np.clip(np.ceil(flat.max(axis=0)).astype(int) + 2, 0, array.shape)
    needed = array[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    if needed.size == 0:
        return np.full(index.shape[:-1], beyond, np.float32)
    padded = np.pad(needed, 1, constant_values=beyond)
    at = np.clip(index - low + 1.0, 0.0, np.array(padded.shape) - 1.001)
    base = np.floor(at).astype(np.intp)
    part = (at - base).astype(np.float32)
    weights = np.stack([1.0 - part, part])
    total = np.zeros(index.shape[:-1], np.float32)
    for k, row, column in np.ndindex(2, 2, 2):
        weight = weights[k, ..., 0] * weights[row, ..., 1] * weights[column, ..., 2]
        total += weight * padded[base[..., 0] + k, base[..., 1] + row, base[..., 2] + column]
    return total


def _draw_head(draw: ImageDraw.ImageDraw, finding: Finding, measurement: Measurement, number: int) -> None:
    middle = _HEAD_PX / 2
    drawing.draw_chip(draw, (_GAP_PX + 22, middle), number, height_px=34)
    size = quantities.axes(measurement.long_axis_mm, measurement.short_axis_mm)
    draw.text((_GAP_PX + 60, middle), size, fill=TEXT, font=font(24), anchor="lm")
    left = _GAP_PX + 60 + draw.textlength(size, font=font(24)) + 24
    side = f"{finding.side} lung" if finding.side else "side not known"
    facts = (
        quantities.volume(measurement.volume_mm3),
        quantities.attenuation_with_sd(measurement.mean_hu, measurement.sd_hu),
        measurement.nodule_type or "type undetermined",
        side,
        f"score {quantities.score(finding.score)}",
    )
    draw.text((left, middle + 1), "    ".join(facts), fill=QUIET, font=font(18), anchor="lm")


def _draw_foot(draw: ImageDraw.ImageDraw, volume: Volume, measurement: Measurement, size: tuple[int, int]) -> None:
    middle = size[1] - _FOOT_PX / 2
    draw.text((_GAP_PX, middle), RESEARCH_USE, fill=WARNING, font=font(17), anchor="lm")
    z_mm = measurement.long_axis.ends_mm[0][2]
    place = f"slice {measurement.slice_index + 1} of {len(volume.hu)} from the feet, z {z_mm:.1f} mm"
    draw.text((size[0] - _GAP_PX, middle), place, fill=QUIET, font=font(15), anchor="rm")


def _draw_labels(draw: ImageDraw.ImageDraw, plane: _Plane, field_mm: float) -> None:
    draw.rectangle((0, 0, _PANEL_PX - 1, _PANEL_PX - 1), outline=FRAME)
    drawing.write(draw, (9, 7), plane.name, 16, "la")
    drawing.draw_ends(draw, (_PANEL_PX, _PANEL_PX), plane.ends)
    drawing.draw_scale_bar(draw, (_PANEL_PX, _PANEL_PX), field_mm)
