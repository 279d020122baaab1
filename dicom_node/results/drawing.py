"""Slices of a Volume -> 8-bit pictures in the lung window, and the pen for what is drawn on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from dicom_node.domain import Finding, Volume
from dicom_node.results.measure import Axis, Measurement
from dicom_node.results.palette import colour

LUNG_WINDOW_HU = (-1350.0, 150.0)
LUNG_WINDOW_TEXT = "W 1500 L -600"

BACKGROUND = "#0E1116"
FRAME = "#2A313C"
TEXT = "#F2F4F7"
QUIET = "#A9B4C2"
WARNING = "#FFD166"
ON_WARNING = "#000000"

_SMALLEST_FIELD_MM = 50.0
_FIELD_PER_EXTENT = 2.6
# Pillow's own font has these and no others: what it lacks would be drawn as empty boxes.
_GLYPHS = frozenset(map(chr, range(0x20, 0x7F)))

Grey = NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Part of one slice on the screen, as the image is stored.

    index: of the slice. box: left, top, right, bottom in pixels of the slice, where pixel (r, c) covers r..r+1 and
    c..c+1; it may reach beyond the slice. size_px: width and height on the screen.
    """

    index: int
    box: tuple[float, float, float, float]
    size_px: tuple[int, int]

    @property
    def scale(self) -> tuple[float, float]:
        """Screen pixels a slice pixel, along (x, y)."""
        left, top, right, bottom = self.box
        return self.size_px[0] / (right - left), self.size_px[1] / (bottom - top)

    def to_screen(self, column_row: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 2) of (column, row) in the box's coordinates -> (..., 2) of (x, y) on the screen."""
        screen: NDArray[np.float64] = (column_row - np.array(self.box[:2])) * np.array(self.scale)
        return screen


def whole_slice(volume: Volume, index: int, within_px: int) -> View:
    """The whole slice in a square of `within_px`, its proportions those in mm."""
    _, rows, columns = volume.hu.shape
    _, row_mm, column_mm = volume.spacing_mm
    scale = within_px / max(rows * row_mm, columns * column_mm)
    size = max(1, round(columns * column_mm * scale)), max(1, round(rows * row_mm * scale))
    return View(index=index, box=(0.0, 0.0, float(columns), float(rows)), size_px=size)


def around(volume: Volume, finding: Finding, measurement: Measurement, size_px: tuple[int, int]) -> View:
    """The surroundings of a finding in the slice that was measured; `size_px` is filled."""
    k, row, column = finding.corner
    mask = finding.mask[measurement.slice_index - k]
    middle = (np.argwhere(mask) + 0.5).mean(axis=0) + np.array([row, column])
    _, row_mm, column_mm = volume.spacing_mm
    mm_per_px = field_mm(volume, finding) / min(size_px)
    half_width, half_height = size_px[0] * mm_per_px / column_mm / 2, size_px[1] * mm_per_px / row_mm / 2
    return View(
        index=measurement.slice_index,
        box=(middle[1] - half_width, middle[0] - half_height, middle[1] + half_width, middle[0] + half_height),
        size_px=size_px,
    )


def field_mm(volume: Volume, finding: Finding) -> float:
    """Width of a picture that shows a finding with what lies around it."""
    extent = np.array(finding.mask.shape) * np.array(volume.spacing_mm)
    return max(_SMALLEST_FIELD_MM, _FIELD_PER_EXTENT * float(extent.max()))


def render_slice(
    volume: Volume, index: int, findings: Sequence[Finding] = (), *, within_px: int | None = None
) -> Image.Image:
    """Slice `index` from the feet as an RGB picture, the findings in it outlined and numbered as they are listed.

    within_px: side of the square that it fills; without it, the picture has a pixel a voxel along the longer side.
    """
    view = whole_slice(volume, index, within_px or max(volume.hu.shape[1:]))
    image = render_view(volume, view)
    for number, finding in enumerate(findings, start=1):
        draw_outline(image, view, finding, number)
    draw = ImageDraw.Draw(image)
    for number, finding in enumerate(findings, start=1):
        draw_number_beside(draw, view, finding, number)
    return image


def render_view(volume: Volume, view: View) -> Image.Image:
    """The grey picture of a view, as RGB; what lies beyond the slice has the colour of the background."""
    rows, columns = volume.hu.shape[1:]
    left, top, right, bottom = view.box
    # Three pixels more than the box, for the interpolation at its border.
    low_c, high_c = max(0, int(left) - 3), min(columns, int(right) + 4)
    low_r, high_r = max(0, int(top) - 3), min(rows, int(bottom) + 4)
    image = Image.new("RGB", view.size_px, BACKGROUND)
    inner = (max(left, 0.0), max(top, 0.0), min(right, float(columns)), min(bottom, float(rows)))
    corners = view.to_screen(np.array([inner[:2], inner[2:]])).round().astype(int)
    width, height = (corners[1] - corners[0]).tolist()
    if width < 1 or height < 1:
        return image
    part = Image.fromarray(grey(volume.hu[view.index, low_r:high_r, low_c:high_c]))
    box = (inner[0] - low_c, inner[1] - low_r, inner[2] - low_c, inner[3] - low_r)
    shown = part.resize((width, height), Image.Resampling.BICUBIC, box=box)
    image.paste(shown.convert("RGB"), (int(corners[0, 0]), int(corners[0, 1])))
    return image


def grey(hu: NDArray[np.int16]) -> Grey:
    """CT numbers -> grey values of the lung window."""
    shown: Grey = _lookup_table()[np.ascontiguousarray(hu).view(np.uint16)]
    return shown


@cache
def _lookup_table() -> Grey:
    """Grey value of each int16, indexed by its bits: a table is quicker than arithmetic on each slice."""
    low, high = LUNG_WINDOW_HU
    values = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.float32)
    table: Grey = np.rint(np.clip((values - low) / (high - low), 0.0, 1.0) * 255.0).astype(np.uint8)
    return table


def draw_outline(image: Image.Image, view: View, finding: Finding, number: int, *, width_px: float = 1.8) -> None:
    """The outline of a finding in the view's slice, a smooth line half way through the mask's edge; none elsewhere."""
    k, row, column = finding.corner
    if not 0 <= view.index - k < len(finding.mask):
        return
    mask = finding.mask[view.index - k]
    # As many pixels round the mask as the line and its halo need on the screen.
    pad = int(np.ceil(4.0 / min(view.scale))) + 1
    origin = np.array([column - pad, row - pad])
    extent = np.array(mask.shape[::-1]) + 2 * pad
    screen = view.to_screen(np.stack([origin, origin + extent]).astype(np.float64))
    low = np.maximum(np.ceil(screen[0]), 0).astype(int)
    high = np.minimum(np.floor(screen[1]), view.size_px).astype(int)
    if (high <= low).any():
        return
    edges = (np.stack([low, high]) / np.array(view.scale)) + np.array(view.box[:2]) - origin
    padded = Image.fromarray(np.pad(mask, pad).astype(np.float32))
    covered = padded.resize((int(high[0] - low[0]), int(high[1] - low[1])), Image.Resampling.BILINEAR, box=_box(edges))
    place = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
    rgb = np.asarray(image.crop(place)).astype(np.float64)
    painted = with_line(rgb, np.asarray(covered), number, width_px=width_px)
    image.paste(Image.fromarray(np.rint(painted).astype(np.uint8)), place[:2])


def _box(edges: NDArray[np.float64]) -> tuple[float, float, float, float]:
    return float(edges[0, 0]), float(edges[0, 1]), float(edges[1, 0]), float(edges[1, 1])


def with_line(
    rgb: NDArray[np.float64], covered: NDArray[np.float32], number: int, *, width_px: float = 1.8
) -> NDArray[np.float64]:
    """`rgb` with a line in the finding's colour where `covered` passes one half, on a halo that sets it off."""
    if min(covered.shape) < 2:
        return rgb
    halo = ink_on(colour(number))
    rgb = _blended(rgb, ImageColor.getrgb(halo), 0.6 * _line_alpha(covered, width_px=width_px + 2.2))
    return _blended(rgb, ImageColor.getrgb(colour(number)), _line_alpha(covered, width_px=width_px))


def _line_alpha(covered: NDArray[np.float32], *, width_px: float) -> NDArray[np.float32]:
    """Opacity of a smooth line where `covered` passes one half: its distance is (covered - 0.5) / slope."""
    slope = np.hypot(_steepest(covered, 0), _steepest(covered, 1))
    distance = np.abs(covered - 0.5) / np.maximum(slope, 1e-6)
    alpha: NDArray[np.float32] = np.clip(width_px / 2 + 0.5 - distance, 0.0, 1.0)
    return alpha


def _steepest(covered: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """The larger step to a neighbour along an axis; the mean of both is too small where a mask's edge is one pixel wide."""
    step = np.abs(np.diff(covered, axis=axis))
    before = [(1, 0) if each == axis else (0, 0) for each in (0, 1)]
    after = [(0, 1) if each == axis else (0, 0) for each in (0, 1)]
    return np.maximum(np.pad(step, before), np.pad(step, after))


def _blended(rgb: NDArray[np.float64], paint: tuple[int, ...], alpha: NDArray[np.float32]) -> NDArray[np.float64]:
    return rgb * (1.0 - alpha[..., None]) + np.array(paint[:3], dtype=np.float64) * alpha[..., None]


def draw_axis(draw: ImageDraw.ImageDraw, view: View, axis: Axis, number: int) -> None:
    """A caliper in the finding's colour."""
    ends = view.to_screen(np.array([[end[2] + 0.5, end[1] + 0.5] for end in axis.ends_index]))
    line = [(float(x), float(y)) for x, y in ends]
    width = 2 if np.linalg.norm(ends[1] - ends[0]) > 60 else 1
    draw.line(line, fill=ink_on(colour(number)), width=width + 2)
    draw.line(line, fill=colour(number), width=width)


def draw_number_beside(draw: ImageDraw.ImageDraw, view: View, finding: Finding, number: int) -> None:
    """The finding's number right above its outline, where the view shows one."""
    k, row, column = finding.corner
    if not 0 <= view.index - k < len(finding.mask):
        return
    held = np.argwhere(finding.mask[view.index - k])
    if len(held) == 0:
        return
    low, high = held.min(axis=0), held.max(axis=0) + 1
    corner = view.to_screen(np.array([[column + high[1], row + low[0]], [column + low[1], row + high[0]]]))
    x, y = float(corner[0, 0]) + 14, float(corner[0, 1]) - 12
    if x > view.size_px[0] - 14:
        x = float(corner[1, 0]) - 14
    if y < 12:
        y = float(corner[1, 1]) + 12
    draw_chip(draw, (x, y), number, height_px=20)


def draw_chip(draw: ImageDraw.ImageDraw, center: tuple[float, float], number: int, *, height_px: int) -> None:
    """A finding's number on its colour: nobody needs the colour to tell which finding is meant."""
    x, y = center
    size = round(height_px * 0.72)
    half = max(height_px * 0.6, draw.textlength(str(number), font=font(size)) / 2 + height_px * 0.25)
    box = (x - half, y - height_px / 2, x + half, y + height_px / 2)
    draw.rounded_rectangle(box, radius=height_px * 0.25, fill=colour(number), outline="#000000")
    draw.text((x, y), str(number), fill=ink_on(colour(number)), font=font(size), anchor="mm")


def ink_on(paint: str) -> str:
    """Black or white, whichever stands out more from `paint`: one of the two has a contrast of 4.5 at least."""
    return "#000000" if contrast(paint, "#000000") >= contrast(paint, "#FFFFFF") else "#FFFFFF"


def contrast(a: str, b: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2, 1.4.3: text needs 4.5)."""
    darker, lighter = sorted((_luminance(a), _luminance(b)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(paint: str) -> float:
    """Relative luminance of an sRGB colour (WCAG 2)."""
    parts = [value / 255 for value in ImageColor.getrgb(paint)[:3]]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def draw_scale_bar(draw: ImageDraw.ImageDraw, size_px: tuple[int, int], width_mm: float) -> None:
    """At the lower right of a picture that is `width_mm` wide."""
    length_mm = 10 if width_mm < 100 else 20 if width_mm < 200 else 50
    length_px = length_mm / width_mm * size_px[0]
    y, x = size_px[1] - 13, size_px[0] - 13 - length_px
    draw.rectangle((x - 1, y - 2, x + length_px + 1, y + 2), fill="#000000")
    draw.rectangle((x, y - 1, x + length_px, y + 1), fill=TEXT)
    write(draw, (x + length_px / 2, y - 6), f"{length_mm} mm", 15, "md")


def draw_ends(draw: ImageDraw.ImageDraw, size_px: tuple[int, int], ends: tuple[str, str, str, str]) -> None:
    """The letters of the patient's sides at left, right, top and bottom."""
    width, height = size_px
    left, right, top, bottom = ends
    write(draw, (8, height / 2), left, 16, "lm")
    write(draw, (width - 9, height / 2), right, 16, "rm")
    write(draw, (width / 2, 7), top, 16, "ma")
    write(draw, (width / 2, height - 8), bottom, 16, "md")


def ends_of(volume: Volume) -> tuple[str, str, str, str]:
    """Letters of an axial slice as it is stored, at left, right, top and bottom (PS3.3 C.7.6.1.1.1)."""
    right = _letters(volume.affine[:3, 2])
    bottom = _letters(volume.affine[:3, 1])
    return right[1], right[0], bottom[1], bottom[0]


def _letters(direction: NDArray[np.float64]) -> tuple[str, str]:
    """The letter of where a direction leads in LPS, and of where it comes from."""
    axis = int(np.abs(direction).argmax())
    toward, away = (("L", "R"), ("P", "A"), ("H", "F"))[axis]
    return (toward, away) if direction[axis] > 0 else (away, toward)


@cache
def font(size: float) -> Font:
    return ImageFont.load_default(size)


def printable(text: str) -> str:
    """What the pictures' font can show; a question mark stands for each other character."""
    return "".join(char if char in _GLYPHS else "?" for char in text)


def write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, anchor: str) -> None:
    """Light text that stays legible on white bone and on black air."""
    draw.text(at, printable(text), fill=TEXT, font=font(size), anchor=anchor, stroke_width=2, stroke_fill="#000000")


def wrapped(text: str, size: float, width_px: float) -> list[str]:
    """Lines of at most `width_px`, broken between words; a longer word stands alone."""
    lines: list[str] = []
    for word in printable(text).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font(size).getlength(longer) <= width_px:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def to_png(image: Image.Image) -> bytes:
    """The same image gives the same bytes."""
    file = BytesIO()
    image.save(file, format="PNG", optimize=False)
    return file.getvalue()
