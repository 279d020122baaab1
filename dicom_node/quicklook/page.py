"""Scene -> one HTML file that needs nothing beside itself: pictures as data URIs, outlines as SVG, its own script.

Pictures hold 8 bits of a wide window; the page cuts lung and soft tissue windows out of it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from io import BytesIO
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dicom_node.domain import RESEARCH_USE, Volume
from dicom_node.quicklook.report import LONG_AXIS, MEAN, SCORE, SHORT_AXIS, VOLUME
from dicom_node.quicklook.scene import Points, Scene, Shown
from dicom_node.results.drawing import LUNG_WINDOW_HU, ends_of

STORED_HU = (-1400.0, 400.0)
WINDOWS_HU = {"Lung": LUNG_WINDOW_HU, "Soft tissue": (-160.0, 240.0)}
# All pictures of a page together: 300 slices at 512 pixels take 6 MB or so, thin noisy ones twice that.
MOST_PICTURE_BYTES = 15_000_000
_EDGES_PX = (512, 384, 256)
_QUALITY = 80
_SAMPLE = 16

_FIRST = (LONG_AXIS, SHORT_AXIS, VOLUME, MEAN, SCORE)


def write_page(scene: Scene) -> str:
    """The whole document. No patient's name or identifier is in it."""
    style, script = part("page.css"), part("page.js")
    marks = {
        "policy": f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'",
        "style": style,
        "notice": escape(RESEARCH_USE),
        "conclusion": escape(_conclusion(scene)),
        "viewer": part("viewer.html") if scene.volume is not None else "",
        "findings": _findings(scene),
        "statements": _statements(scene),
        "scene": as_json(scene_data(scene, [] if scene.volume is None else _pictures(scene.volume))),
        "script": script,
    }
    page = part("page.html")
    for name, text in marks.items():
        page = page.replace(f"<!--{name}-->", text, 1) if name != "policy" else page.replace("{policy}", text, 1)
    return page


def part(name: str) -> str:
    """A file beside this module: page.css, page.html, page.js, viewer.html."""
    return resources.files("dicom_node.quicklook").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a Content Security Policy names the one style or script that it lets in."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def as_json(value: Any) -> str:
    """JSON that can stand in a script element whatever texts it holds."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _conclusion(scene: Scene) -> str:
    if scene.report is not None and scene.report.conclusion:
        return scene.report.conclusion
    count = len(scene.shown)
    return f"{count} segment{'' if count == 1 else 's'} without a report." if count else "No result objects."


# -- the stack -------------------------------------------------------------------------------------


def scene_data(scene: Scene, images: Sequence[str]) -> dict[str, Any]:
    """What the script works with. images: a URL of each slice, feet to head; of the volume the shape and place alone
    are read."""
    low, high = STORED_HU
    windows = [
        {"name": name, "slope": (high - low) / (top - bottom), "intercept": (low - bottom) / (top - bottom)}
        for name, (bottom, top) in WINDOWS_HU.items()
    ]
    data: dict[str, Any] = {"windows": windows, "findings": [_outlines(each) for each in scene.shown]}
    volume = scene.volume
    if volume is None:
        return data
    slices, rows, columns = volume.hu.shape
    _, row_mm, column_mm = volume.spacing_mm
    return data | {
        "rows": rows,
        "columns": columns,
        "aspect": columns * column_mm / (rows * row_mm),
        "sides": ends_of(volume),
        "z_mm": [round(float(volume.to_mm((float(k), 0.0, 0.0))[2]), 1) for k in range(slices)],
        "images": list(images),
    }


def _outlines(shown: Shown) -> dict[str, Any]:
    return {
        "number": shown.number,
        "label": shown.label,
        "colour": shown.colour,
        "key": shown.key_slice,
        "slices": {str(index): [_path(line) for line in lines] for index, lines in shown.outlines.items()},
        "middle": None if shown.key_slice is None else _middle(shown.outlines[shown.key_slice]),
    }


def _path(points: Points) -> str:
    """An SVG path in units of pixels; like DICOM's, SVG's coordinates begin at the corner of the first pixel."""
    return "M" + "L".join(f"{column:g} {row:g}" for column, row in points[:-1]) + "Z"


def _middle(lines: Sequence[Points]) -> list[float]:
    points = np.concatenate(list(lines))
    return [round(float(value), 1) for value in (points.min(axis=0) + points.max(axis=0)) / 2]


def _pictures(volume: Volume) -> list[str]:
    """Data URIs, feet to head: as large as MOST_PICTURE_BYTES lets them be, judged by some of them."""
    for edge_px in _EDGES_PX:
        some = [len(_picture(plane, edge_px)) for plane in volume.hu[::_SAMPLE]]
        if sum(some) / len(some) * len(volume.hu) <= MOST_PICTURE_BYTES:
            break
    return [_picture(plane, edge_px) for plane in volume.hu]


def _picture(plane: NDArray[np.int16], edge_px: int) -> str:
    return "data:image/webp;base64," + base64.b64encode(webp(plane, edge_px)).decode()


def webp(plane: NDArray[np.int16], edge_px: int) -> bytes:
    """A slice in STORED_HU, no edge longer than `edge_px`."""
    low, high = STORED_HU
    grey = np.clip((plane.astype(np.float32) - low) * (255.0 / (high - low)), 0, 255).round().astype(np.uint8)
    image = Image.fromarray(grey)
    image.thumbnail((edge_px, edge_px), Image.Resampling.LANCZOS)
    file = BytesIO()
    image.save(file, format="WEBP", quality=_QUALITY, method=4)
    return file.getvalue()


# -- the table -------------------------------------------------------------------------------------


def _findings(scene: Scene) -> str:
    if not scene.shown:
        return ""
    rows = "".join(_row(each, scene) for each in scene.shown)
    names = ("No.", "Where", "Axes", "Volume", "Attenuation", "Score", "Slice")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        '<div class="scroll" tabindex="0" role="group" aria-label="Findings, scrolls sideways"><table>'
        f"<caption>Findings</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        + "".join(map(_details, scene.shown))
    )


def _row(shown: Shown, scene: Scene) -> str:
    values = shown.reported.values if shown.reported else {}
    long_axis, short_axis = values.get(LONG_AXIS), values.get(SHORT_AXIS)
    axes = f"{long_axis.removesuffix(' mm')} x {short_axis}" if long_axis and short_axis else "-"
    cells = (
        shown.reported.site if shown.reported and shown.reported.site else "-",
        axes,
        *(values.get(name, "-") for name in (VOLUME, MEAN, SCORE)),
        _place(shown, scene),
    )
    square = f'<rect width="10" height="10" fill="{shown.colour}"/>'
    chip = f'<svg class="chip" viewBox="0 0 10 10" aria-hidden="true">{square}</svg>'
    goto = "" if shown.key_slice is None or scene.volume is None else f' data-finding="{shown.number}"'
    name = f"{chip}{shown.number}"
    label = escape(f"Show {shown.label}, number {shown.number}")
    first = f'<button type="button"{goto} aria-label="{label}">{name}</button>' if goto else name
    return f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _place(shown: Shown, scene: Scene) -> str:
    """Counted from the feet."""
    return "-" if shown.key_slice is None or scene.volume is None else str(shown.key_slice + 1)


def _details(shown: Shown) -> str:
    """What the report says beyond the table's columns."""
    values = shown.reported.values if shown.reported else {}
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in values.items() if name not in _FIRST
    )
    return f"<details><summary>{escape(shown.label)}: all values</summary><dl>{rows}</dl></details>" if rows else ""


def _statements(scene: Scene) -> str:
    said = () if scene.report is None else scene.report.statements
    rows = "".join(
        f"<dt>{escape(name)}</dt>" + "".join(f"<dd>{escape(text)}</dd>" for _, text in texts)
        for name, texts in groupby(said, key=itemgetter(0))
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in scene.notes)
    return f"{notes}<dl>{rows}<dt>Series</dt><dd class='uid'>{escape(scene.series_uid)}</dd></dl>"
