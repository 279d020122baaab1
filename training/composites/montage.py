"""A folder of composites -> one picture for people: what was put where, with its true outline.

A row a site, and two rows for what is no nodule. Each example twice, the second time with the outlines of the
masks. Axial, 50 mm wide, lung window.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dicom_node.domain import RESEARCH_USE, Volume
from dicom_node.grids import trilinear
from training.composites.write import read_form
from training.ct import read_image, read_labels

WINDOW_HU = (-1350.0, 150.0)
FIELD_MM, TILE_PX, GAP_PX, HEAD_PX, ROW_HEAD_PX = 50.0, 116, 4, 26, 16
COLUMNS = 6
INK, PAPER, OUTLINE = (235, 235, 235), (14, 17, 22), (255, 209, 102)
TITLE = f"Composites: real nodules blended into real lungs. {RESEARCH_USE}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A line of sources.csv."""

    uid: str
    what: str
    site: str
    center_mm: NDArray[np.float64]
    diameter_mm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A scan of the folder with its labels."""

    volume: Volume
    labels: NDArray[Any]


# What the row shows, "what" and "site" in sources.csv; the background's own findings have no site and aren't shown.
ROWS = {
    "In the parenchyma": ("nodule", "parenchyma"),
    "At the wall": ("nodule", "wall"),
    "At a vessel": ("nodule", "vessel"),
    "Listed as excluded: shrunken to 2 to 3 mm": ("excluded", "shrunken"),
    "In no list: pieces of vessel": ("unlisted", "vessel"),
    "In no list: other lung, blended as nodules are": ("unlisted", "lung"),
}


def write_montage(folder: Path, png: Path, scans: int = 4) -> None:
    """Of the folder's first scans. Raises DataProblem where the folder is not a complete set of composites."""
    png.parent.mkdir(parents=True, exist_ok=True)
    # Few greys are enough, and the picture travels with the documentation.
    colours = [PAPER, OUTLINE, *((int(v),) * 3 for v in np.linspace(0, 255, 40))]
    palette = Image.new("P", (1, 1))
    palette.putpalette([v for colour in colours for v in colour])
    render(folder, scans).quantize(palette=palette, dither=Image.Dither.NONE).save(png, optimize=True)


def render(folder: Path, scans: int = 4) -> Image.Image:
    form = read_form(folder)
    examples = _examples(folder)
    uids = list(dict.fromkeys(e.uid for e in examples))[:scans]
    shown = {uid: _open(folder, uid, form["scans"][uid]) for uid in uids}
    width = COLUMNS * (2 * TILE_PX + GAP_PX) - GAP_PX
    sheet = Image.new("RGB", (width, HEAD_PX + len(ROWS) * (ROW_HEAD_PX + TILE_PX)), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    pen.text((4, 5), TITLE, fill=OUTLINE, font=font)
    for row, (name, kind) in enumerate(ROWS.items()):
        top = HEAD_PX + row * (ROW_HEAD_PX + TILE_PX)
        pen.text((4, top), name, fill=INK, font=font)
        for column, example in enumerate(_spread([e for e in examples if e.uid in shown and (e.what, e.site) == kind])):
            tile = Image.fromarray(_tile(shown[example.uid], example))
            left = column * (2 * TILE_PX + GAP_PX)
            sheet.paste(tile, (left, top + ROW_HEAD_PX))
            if example.what != "unlisted":
                size = f"{example.diameter_mm:.1f} mm"
                pen.text((left + 3, top + ROW_HEAD_PX + 1), size, INK, font, stroke_width=2, stroke_fill=PAPER)
    return sheet


def _examples(folder: Path) -> list[Example]:
    with (folder / "sources.csv").open(newline="") as table:
        return [
            Example(
                uid=row["seriesuid"],
                what=row["what"],
                site=row["site"],
                center_mm=np.array([float(row[f"coord{axis}"]) for axis in "XYZ"]),
                diameter_mm=float(row["diameter_mm"]),
            )
            for row in csv.DictReader(table)
        ]


def _open(folder: Path, uid: str, form: dict[str, Any]) -> Shown:
    volume = read_image(folder / f"subset{form['subset']}" / f"{uid}.mhd")
    return Shown(volume=volume, labels=read_labels(folder / form["masks"], volume))


def _spread(examples: list[Example]) -> list[Example]:
    """As many as there are columns, from the largest to the smallest."""
    examples = sorted(examples, key=lambda e: -e.diameter_mm)
    chosen = np.linspace(0, len(examples) - 1, min(COLUMNS, len(examples))).round().astype(int)
    return [examples[i] for i in chosen]


def _tile(shown: Shown, example: Example) -> NDArray[np.uint8]:
    """(TILE_PX, 2 TILE_PX, 3): the axial plane through the centre, plain and with outlines."""
    steps = (np.arange(TILE_PX) + 0.5) / TILE_PX * FIELD_MM - FIELD_MM / 2
    y, x = np.meshgrid(steps, steps, indexing="ij")
    index = shown.volume.to_index(np.stack([x, y, np.zeros_like(x)], axis=-1) + example.center_mm)
    low, high = WINDOW_HU
    grey = ((trilinear(shown.volume.hu, index, -1024) - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)
    plain = np.stack([grey] * 3, axis=-1)
    k, r, c = np.moveaxis(index.round().astype(int), -1, 0).clip(0, np.array(shown.labels.shape)[:, None, None] - 1)
    label = shown.labels[k, r, c]
    outlined = plain.copy()
    outlined[:-1][label[1:] != label[:-1]] = OUTLINE
    outlined[:, :-1][label[:, 1:] != label[:, :-1]] = OUTLINE
    return np.concatenate([plain, outlined], axis=1)
