"""Figures and ScanResults -> pictures as data: URIs, for a report that is one file.

Colours are Okabe and Ito's, which colour-blind readers tell apart; line styles differ too.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Finding
from training.cases import Nodule
from training.evaluation.figures import Point
from training.evaluation.froc import RATES
from training.evaluation.marks import Picture, ScanResult

BLUE, ORANGE, GREEN, SKY, GREY = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#666666"
SHOWN = 12
COLUMNS = 4
TEXT_PT = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One picture of a montage with its outlines: truth, marks at the operating point, and weaker ones."""

    picture: Picture
    caption: str
    spacing_mm: tuple[float, float]
    truth: tuple[Nodule, ...]
    marks: tuple[Finding, ...]
    weak: tuple[Finding, ...]


def froc_plot(curve: Mapping[str, Any]) -> str:
    """Sensitivity over false positives a scan, with the seven rates and the band of the interval."""
    figure = _figure(6.4, 4.2)
    axes = figure.add_subplot()
    if "band" in curve:
        band = curve["band"]
        axes.fill_between(band["rates"], band["low"], band["high"], color=SKY, alpha=0.35, lw=0, label="95 % interval")
    # From the left edge on, and past the last mark: the curve stays where it ended.
    x = np.concatenate([[0.0], curve["fp_per_scan"], [max(RATES[-1], curve["fp_per_scan"][-1])]])
    y = np.concatenate([[0.0], curve["sensitivity"], [curve["sensitivity"][-1]]])
    axes.plot(x.clip(2**-4), y, color=BLUE, lw=1.8, label="bundle")
    rates, values = zip(*curve["at"], strict=True)
    axes.plot(rates, values, "o", color=BLUE, ms=5, label="the seven rates of the CPM")
    axes.set_xscale("log", base=2)
    axes.set_xticks(RATES, [f"1/{round(1 / rate)}" if rate < 1 else f"{rate:g}" for rate in RATES])
    axes.set(xlim=(0.09, 11), ylim=(0, 1), xlabel="false positives a scan", ylabel="sensitivity")
    return _svg(figure, axes)


def pr_plot(curves: Mapping[str, Mapping[str, Sequence[float]]], title: str) -> str:
    """Precision over recall, one line an IoU."""
    figure = _figure(4.4, 3.6)
    axes = figure.add_subplot()
    for (iou, curve), colour, style in zip(curves.items(), (BLUE, ORANGE, GREEN), ("-", "--", ":"), strict=True):
        recall = [0.0, *curve["recall"], *curve["recall"][-1:]]
        precision = [*curve["precision"][:1], *curve["precision"], 0.0] if curve["recall"] else [0.0]
        axes.plot(recall, precision, style, color=colour, lw=1.8, label=f"IoU {iou}")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=title)
    return _svg(figure, axes)


def size_plot(sizes: Sequence[Mapping[str, Any]]) -> str:
    """Sensitivity, box AP and mask AP of each size, side by side."""
    figure = _figure(6.4, 3.4)
    axes = figure.add_subplot()
    kinds = [("sensitivity", "sensitivity", BLUE, None), ("box_map", "box mAP", ORANGE, "//"),
             ("mask_map", "mask mAP", GREEN, "..")]  # fmt: skip
    here = [kind for kind in kinds if any(kind[0] in row for row in sizes)]
    place = np.arange(len(sizes))
    for n, (key, name, colour, hatch) in enumerate(here):
        values = [row.get(key, 0.0) for row in sizes]
        axes.bar(
            place + (n - (len(here) - 1) / 2) * 0.26, values, 0.24, label=name, color=colour, hatch=hatch, ec="white"
        )
    axes.set_xticks(place, [f"{row['size']}\n{row['nodules']} nodules" for row in sizes])
    axes.set(ylim=(0, 1.02), xlim=(-0.6, len(sizes) - 0.4))
    return _svg(figure, axes)


def stage_plot(seconds: Mapping[str, float]) -> str:
    """Median seconds of each stage."""
    figure = _figure(6.4, 0.7 + 0.3 * len(seconds))
    axes = figure.add_subplot()
    bars = axes.barh(list(seconds), list(seconds.values()), color=BLUE)
    axes.bar_label(bars, fmt=" %.2f s", fontsize=TEXT_PT)
    axes.invert_yaxis()
    axes.set(xlabel="seconds a scan, median", xlim=(0, 1.18 * max(*seconds.values(), 1e-3)))
    return _svg(figure, None)


def misses(results: Sequence[ScanResult], point: Point) -> list[Scene]:
    """Nodules without a mark at or above the point, the largest first."""
    scenes = []
    for number, result in enumerate(results, start=1):
        hits, scores, least = result.hits, result.scores, point.of(result)
        for picture in (p for p in result.pictures if p.shows == "nodule"):
            nodule, on = result.nodules[picture.of], np.flatnonzero(hits[:, picture.of])
            if (scores[on] >= least).any():
                continue
            best = result.marks[on[0]] if len(on) else None
            text = "no mark on it" if best is None else f"best mark {best.score:.2f}"
            caption = f"scan {number}, nodule {picture.of + 1}\n{nodule.diameter_mm:.1f} mm, {text}"
            weak = () if best is None else (best,)
            scenes.append((nodule.diameter_mm, _scene(result, picture, caption, least, weak)))
    return [scene for _, scene in sorted(scenes, key=lambda each: -each[0])[:SHOWN]]


def false_marks(results: Sequence[ScanResult], point: Point) -> list[Scene]:
    """False marks at or above the point, the surest first."""
    scenes = []
    for number, result in enumerate(results, start=1):
        for picture in (p for p in result.pictures if p.shows == "mark"):
            mark, size = result.marks[picture.of], result.mark_sizes[picture.of]
            if mark.score >= point.of(result):
                caption = f"scan {number}, mark {picture.of + 1}{_beside(result, picture.of)}\n"
                caption += f"score {mark.score:.2f}, {size.diameter_mm:.1f} mm"
                scenes.append((mark.score, _scene(result, picture, caption, point.of(result), ())))
    return [scene for _, scene in sorted(scenes, key=lambda each: -each[0])[:SHOWN]]


def _beside(result: ScanResult, mark: int) -> str:
    """Says which nodule a false mark lies on all the same."""
    touched = np.flatnonzero(result.mask_iou[mark] > 0)
    return f" (part of nodule {touched[0] + 1})" if len(touched) else ""


def montage(scenes: Sequence[Scene]) -> str:
    """Crops with the outlines of truth and marks on their slice."""
    from matplotlib.lines import Line2D

    rows = math.ceil(len(scenes) / COLUMNS)
    figure = _figure(2.3 * COLUMNS, 2.75 * rows + 0.35)
    for place, scene in enumerate(scenes, start=1):
        axes = figure.add_subplot(rows, COLUMNS, place)
        axes.imshow(
            scene.picture.pixels, cmap="gray", vmin=0, vmax=255, aspect=scene.spacing_mm[0] / scene.spacing_mm[1]
        )
        for shapes, colour, style in ((scene.truth, SKY, "-"), (scene.marks, ORANGE, "--"), (scene.weak, ORANGE, ":")):
            for shape in shapes:
                _outline(axes, scene.picture, shape, colour, style)
        axes.set_title(scene.caption, fontsize=TEXT_PT)
        axes.set_axis_off()
    lines = [("truth", SKY, "-"), ("mark", ORANGE, "--"), ("mark below the operating point", ORANGE, ":")]
    handles = [Line2D([], [], color=colour, ls=style, lw=1.6, label=name) for name, colour, style in lines]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=TEXT_PT, frameon=False)
    return _png(figure)


def _scene(result: ScanResult, picture: Picture, caption: str, point: float, weak: tuple[Finding, ...]) -> Scene:
    steps = np.linalg.norm(result.affine[:3, :3], axis=0)
    return Scene(
        picture=picture,
        caption=caption,
        spacing_mm=(float(steps[1]), float(steps[2])),
        truth=result.nodules,
        marks=tuple(mark for mark in result.marks if mark.score >= point),
        weak=weak,
    )


def _outline(axes: Any, picture: Picture, shape: Finding | Nodule, colour: str, style: str) -> None:
    """Where the picture's slice cuts the mask, if it does."""
    plane = _cut(picture, shape)
    if plane.any():
        axes.contour(plane.astype(np.float64), levels=[0.5], colors=[colour], linestyles=[style], linewidths=1.3)


def _cut(picture: Picture, shape: Finding | Nodule) -> NDArray[np.bool_]:
    """The mask on the picture's pixels."""
    plane = np.zeros(picture.pixels.shape, dtype=np.bool_)
    k = picture.corner[0] - shape.corner[0]
    if not 0 <= k < len(shape.mask):
        return plane
    start = np.subtract(shape.corner[1:], picture.corner[1:])
    low, high = start.clip(0, plane.shape), (start + shape.mask.shape[1:]).clip(0, plane.shape)
    a, b = low - start, high - start
    plane[low[0] : high[0], low[1] : high[1]] = shape.mask[k, a[0] : b[0], a[1] : b[1]]
    return plane


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # drawn without pyplot: no state, no window

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Any, legend: Any) -> str:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=TEXT_PT)
        axes.grid(color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)
    if legend is not None:
        legend.legend(fontsize=TEXT_PT, frameon=False, loc="best")
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "report", "svg.fonttype": "path"}), io.BytesIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
        return _uri("image/svg+xml", file.getvalue())


def _png(figure: Any) -> str:
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=130)
        return _uri("image/png", file.getvalue())


def _uri(kind: str, raw: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(raw).decode('ascii')}"
