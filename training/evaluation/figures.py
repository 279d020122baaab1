"""ScanResults -> figures: each number with its interval, its definition, its data and the command behind it.

Composites and real scans never share a figure. LUNA16's name comes from training/evaluation/claims.py alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import RESEARCH_USE
from dicom_node.errors import ConfigError
from dicom_node.model.bundle import BundleForm
from training.cases import DataProblem, Nodule
from training.evaluation import claims
from training.evaluation.ceiling import Ceiling, Spread
from training.evaluation.froc import Froc, FrocIntervals, Marks, Truths, froc
from training.evaluation.intervals import LEVEL, SAMPLES, Bounds, draws, pair
from training.evaluation.key_slices import slice_images
from training.evaluation.marks import ScanResult, behaviour, true_mask
from training.evaluation.overlap import (
    Overlap,
    OverlapIntervals,
    ScanOverlap,
    average_precision,
    mask_iou,
    precision_recall,
    size_bins,
)
from training.evaluation.slices2d import slice_ap

CLAIMED = {"box_map": 0.85, "box_mar": 0.92, "mask_map": 0.81, "mask_mar": 0.88}
PR_IOUS = (0.10, 0.30, 0.50)
PERCENTILES = (5, 95)
OVERLAP = "3D average precision and recall as nnDetection and MONAI count them, IoU 0.10:0.50:0.05"
FROC = (
    "free-response curve; a mark hits within a nodule's radius, the best of several counts, those on excluded findings "
    "are ignored, at most 100 a scan; linear between steps"
)
AT_POINT = "marks at or above the operating point; a mark hits within a nodule's radius"
HIT = "over the nodules found at the operating point, the best mark on each against the true mask, on the scan's voxels"
KEY_SLICES = "COCO's average precision at IoU 0.50 on each nodule's largest slice, of the merged 3D marks cut there"
SECONDS = "reading a scan and Detector.detect, wall clock, median over scans"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """An operating point, and in words how it was chosen. by_scan: UID -> score, where folds have points of their own;
    `score` is then their mean."""

    score: float
    rule: str
    by_scan: Mapping[str, float] = field(default_factory=dict)

    def of(self, result: ScanResult) -> float:
        return self.by_scan.get(result.uid, self.score)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """key: for programs. low, high: 95 % over scans drawn with replacement; None where nothing can be drawn.

    human: what one of LIDC's readers reaches against the others. claimed: by the reference model, on LUNA16.
    spread: mean, median, p5, p95 of what `value` sums up; human_spread: of what `human` does.
    """

    key: str
    name: str
    value: float
    definition: str
    data: str
    scans: int
    nodules: int
    command: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    human: float | None = None
    human_spread: dict[str, float] | None = None
    claimed: float | None = None
    spread: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """One bundle on one set of scans. left_out: scan or file -> why. ceiling: what LIDC's readers reach.

    seen: how many of the patients the bundle's run surely had in training; None where nobody says.
    """

    results: Sequence[ScanResult]
    left_out: Mapping[str, str]
    bundle: BundleForm
    bundle_sha256: str
    point: Point
    command: str
    machine: str
    folds: Sequence[claims.Fold] | None = None
    ceiling: Ceiling | None = None
    seen: int | None = None
    samples: int = SAMPLES

    def __post_init__(self) -> None:
        if not self.results:
            raise DataProblem("no scan was judged: there is nothing to make figures of")
        if len({result.composite for result in self.results}) > 1:
            raise DataProblem("composites and real scans don't share figures: evaluate them into two folders")
        for result in self.results:
            point, floor = self.point.of(result), float(result.origin["floor"])
            if point < floor:
                raise ConfigError(f"operating point {point:g}: marks were kept from {floor:g} on only")

    @property
    def composites(self) -> bool:
        return self.results[0].composite

    @cached_property
    def nodules(self) -> list[tuple[ScanResult, Nodule]]:
        return [(result, nodule) for result in self.results for nodule in result.nodules]

    @cached_property
    def lists(self) -> tuple[Truths, Truths]:
        """Nodules, and findings to be ignored, as listed."""
        rows = [(result.uid, n.center_mm, n.diameter_mm) for result, n in self.nodules]
        ignored = [(r.uid, ball.center_mm, ball.diameter_mm) for r in self.results for ball in r.ignored]
        return _truths(rows), _truths(ignored)

    @cached_property
    def human(self) -> dict[str, tuple[float, dict[str, float] | None]]:
        return {} if self.ceiling is None else _human(self.ceiling)

    def scope(self, definition: str) -> str:
        """The name that a figure of this definition may carry."""
        uids = [result.uid for result in self.results]
        name = claims.luna16_name(uids, *self.lists, definition, folds=self.folds, composites=self.composites)
        return name.removesuffix(f": {definition}")

    def figure(
        self, key: str, name: str, value: float, definition: str, interval: Bounds | None = None, **more: Any
    ) -> Figure:
        low, high = interval or (None, None)
        scope = self.scope(definition)
        lungs = len({result.patient for result in self.results})
        of = f"{lungs} patient{'s' if lungs > 1 else ''}"
        of += f", {self.seen} of them in training" if self.seen else ""
        return Figure(
            key=key,
            name=name,
            value=float(value),
            low=low,
            high=high,
            # LUNA16's name stands beside no figure that has not earned it.
            definition=FROC if definition == claims.LUNA16_FROC and not scope.startswith("LUNA16") else definition,
            data=f"{scope}; {f'lungs of {of}' if self.composites else of}",
            scans=len(self.results),
            nodules=len(self.nodules),
            command=self.command,
            human=self.human[key][0] if key in self.human else None,
            human_spread=self.human[key][1] if key in self.human else None,
            claimed=CLAIMED.get(key),
            **more,
        )

    def bootstrap(self, figure: Callable[[NDArray[np.int64]], float]) -> Bounds | None:
        """Interval of a figure of how often each scan is taken. None for one scan, or where nothing can be found."""
        truths = np.array([len(result.nodules) for result in self.results])
        if len(self.results) < 2 or not truths.any():
            return None
        return pair(np.array([figure(times) for times in draws(truths, self.samples, 0)]))


def figures(study: Study) -> dict[str, Any]:
    """All of it, as JSON takes it."""
    rows: list[Figure] = []
    curves: dict[str, Any] = {}
    masks = any(true_mask(nodule) for _, nodule in study.nodules)
    if study.nodules:
        result = froc(*_submission(study))
        interval = result.interval(study.samples) if result.scans > 1 else None
        overlaps = {"box": average_precision([_box_overlap(r) for r in study.results])}
        if masks:
            overlaps["mask"] = average_precision([_mask_overlap(r) for r in study.results])
        rows += [row for kind, overlap in overlaps.items() for row in _overlap_rows(study, kind, overlap)]
        rows += _froc_rows(study, result, interval)
        curves["froc"] = _froc_curve(result, interval)
        curves["precision_recall"] = {kind: _pr_curves(overlap) for kind, overlap in overlaps.items()}
        curves["sizes"] = _sizes(study, overlaps)
    rows += _at_point(study)
    if masks:
        rows += [*_errors(study), *_key_slices(study)]
    rows += _seconds(study)
    return {
        "notice": RESEARCH_USE,
        "composites": study.composites,
        "bundle": {
            "name": study.bundle.name,
            "version": study.bundle.version,
            "sha256": study.bundle_sha256,
            "behaviour": behaviour(study.bundle),
        },
        "machine": study.machine,
        "command": study.command,
        "scans": len(study.results),
        "nodules": len(study.nodules),
        "without_true_mask": sum(not true_mask(nodule) for _, nodule in study.nodules),
        "left_out": dict(study.left_out),
        "operating_point": {"score": study.point.score, "rule": study.point.rule, "by_scan": dict(study.point.by_scan)},
        "interval": {"level": LEVEL, "samples": study.samples, "over": "scans, drawn with replacement"},
        "figures": [asdict(row) for row in rows],
        "claims": [asdict(row) for row in rows if row.claimed is not None],
        **curves,
    }


def _truths(rows: Sequence[tuple[str, Any, float]]) -> Truths:
    return Truths(
        series=np.array([uid for uid, _, _ in rows], dtype=np.str_),
        xyz_mm=np.array([center for _, center, _ in rows], dtype=np.float64).reshape(-1, 3),
        diameter_mm=np.array([diameter for _, _, diameter in rows], dtype=np.float64),
    )


def _human(ceiling: Ceiling) -> dict[str, tuple[float, dict[str, float] | None]]:
    """By a figure's key: (value, spread). A reader gives no scores, so one share stands for AP and AR."""
    human: dict[str, tuple[float, dict[str, float] | None]] = {}
    for kind, shares in (("box", ceiling.box), ("mask", ceiling.mask)):
        human |= {f"{kind}_map": (shares.mean_10_50, None), f"{kind}_mar": (shares.mean_10_50, None)}
        human |= {f"{kind}_ap10": (shares.at_10, None), f"{kind}_ap50": (shares.at_50, None)}
    human["slice_box_ap50"] = ceiling.slice_box.at_50, None
    human["slice_segm_ap50"] = ceiling.slice_mask.at_50, None
    human["dice"] = ceiling.dice.mean, _of_reader(ceiling.dice)
    human["volume_error"] = 100 * ceiling.volume_error.median, _of_reader(ceiling.volume_error, 100)
    human["diameter_error"] = ceiling.diameter_error_mm.median, _of_reader(ceiling.diameter_error_mm)
    return human


def _of_reader(spread: Spread, factor: float = 1.0) -> dict[str, float]:
    return {name: factor * getattr(spread, name) for name in ("mean", "median", "p5", "p95")}


# -- LUNA16's curve ------------------------------------------------------------------------------------


def _submission(study: Study) -> tuple[list[str], Marks, Truths, Truths]:
    marks = [(result.uid, mark) for result in study.results for mark in result.marks]
    return (
        [result.uid for result in study.results],
        Marks(
            series=np.array([uid for uid, _ in marks], dtype=np.str_),
            xyz_mm=np.array([mark.center_mm for _, mark in marks], dtype=np.float64).reshape(-1, 3),
            score=np.array([mark.score for _, mark in marks], dtype=np.float64),
        ),
        *study.lists,
    )


def _froc_rows(study: Study, result: Froc, interval: FrocIntervals | None) -> Iterator[Figure]:
    definition = claims.LUNA16_FROC
    yield study.figure("cpm", "CPM", result.cpm, definition, interval.cpm if interval else None)
    for rate, value in result.at.items():
        name = f"sensitivity at {rate:g} FP a scan"
        bounds = interval.at[rate] if interval else None
        yield study.figure(f"sensitivity_at_{rate:g}", name, value, definition, bounds)


def _froc_curve(result: Froc, interval: FrocIntervals | None) -> dict[str, Any]:
    curve: dict[str, Any] = {
        "fp_per_scan": result.fp_per_scan.tolist(),
        "sensitivity": result.sensitivity.tolist(),
        "at": [[rate, value] for rate, value in result.at.items()],
        "counts": result.counts,
    }
    if interval is not None:
        curve["band"] = {name: getattr(interval, name).tolist() for name in ("rates", "low", "high")}
    return curve


# -- overlap -------------------------------------------------------------------------------------------


def _box_overlap(result: ScanResult) -> ScanOverlap:
    return ScanOverlap(
        iou=result.box_iou,
        score=result.scores,
        ignored=result.unsure,
        diameter_mm=np.array([nodule.diameter_mm for nodule in result.nodules]),
    )


def _mask_overlap(result: ScanResult) -> ScanOverlap:
    """Against true masks. A nodule that is only listed counts neither way, nor does a mark on it."""
    true = np.array([true_mask(nodule) for nodule in result.nodules], dtype=np.bool_)
    return ScanOverlap(
        iou=result.mask_iou[:, true],
        score=result.scores,
        ignored=result.unsure | result.hits[:, ~true].any(axis=1),
        diameter_mm=np.array([nodule.diameter_mm for nodule in result.nodules])[true],
    )


def _overlap_rows(study: Study, kind: str, overlap: Overlap) -> Iterator[Figure]:
    bounds = _bounds(overlap.interval(study.samples)) if overlap.scans > 1 else {}
    for key, name, value, more in (
        ("map", "mAP", overlap.map, ""),
        ("mar", "mAR", overlap.mar, ""),
        ("ap10", "AP10", overlap.ap[0.1], "; at 0.10 alone"),
        ("ap50", "AP50", overlap.ap[0.5], "; at 0.50 alone"),
        (
            "ar_at_1fp",
            "AR at 1 FP a scan",
            overlap.ar_at_1fp,
            "; recall where the marks down to a score are false once a scan",
        ),
    ):
        definition = f"{OVERLAP}, of {_what(kind)}{more}"
        yield study.figure(f"{kind}_{key}", f"{kind} {name}", value, definition, bounds.get(key))


def _bounds(interval: OverlapIntervals) -> dict[str, Bounds]:
    return {
        "map": interval.map,
        "mar": interval.mar,
        "ap10": interval.ap[0.1],
        "ap50": interval.ap[0.5],
        "ar_at_1fp": interval.ar_at_1fp,
    }


def _what(kind: str) -> str:
    return "boxes round the masks" if kind == "box" else "masks, voxel by voxel"


def _pr_curves(overlap: Overlap) -> dict[str, dict[str, list[float]]]:
    """Points where the recall rises: between two of them the precision only falls."""
    curves = {}
    for threshold in PR_IOUS:
        recall, precision = precision_recall(overlap.hits, threshold)
        rises = np.diff(recall, prepend=0.0) > 0
        curves[f"{threshold:.2f}"] = {"recall": recall[rises].tolist(), "precision": precision[rises].tolist()}
    return curves


def _sizes(study: Study, overlaps: Mapping[str, Overlap]) -> list[dict[str, Any]]:
    """One row a size, by the listed diameter."""
    found = np.array([mark is not None for mark in _found(study)])
    table = []
    for name, inside in size_bins(np.array([nodule.diameter_mm for _, nodule in study.nodules])).items():
        row: dict[str, Any] = {"size": name, "nodules": int(inside.sum()), "sensitivity": float(found[inside].mean())}
        for kind, overlap in overlaps.items():
            if name in overlap.sizes:
                row[f"{kind}_map"], row[f"{kind}_mar"] = overlap.sizes[name].map, overlap.sizes[name].mar
        table.append(row)
    return table


# -- at the operating point ----------------------------------------------------------------------------


def _found(study: Study) -> list[int | None]:
    """For each nodule the best mark on it, at or above the operating point."""
    best: list[int | None] = []
    for result in study.results:
        on = result.hits & (result.scores >= study.point.of(result))[:, None]
        best += [int(on[:, n].argmax()) if on[:, n].any() else None for n in range(len(result.nodules))]
    return best


def _at_point(study: Study) -> Iterator[Figure]:
    point = study.point
    yield study.figure("operating_point", "operating point", point.score, f"score; {point.rule}")
    false = np.array([int((r.false & (r.scores >= point.of(r))).sum()) for r in study.results])
    hit = np.array([int((r.hits & (r.scores >= point.of(r))[:, None]).any(axis=0).sum()) for r in study.results])
    truths = np.array([len(result.nodules) for result in study.results])

    def rate(times: NDArray[np.int64]) -> float:
        return float(times @ false / times.sum())

    def recall(times: NDArray[np.int64]) -> float:
        return float(times @ hit / max(times @ truths, 1))

    def precision(times: NDArray[np.int64]) -> float:
        return float(times @ hit / max(times @ (hit + false), 1))

    def f1(times: NDArray[np.int64]) -> float:
        return float(2 * (times @ hit) / max(times @ (hit + false + truths), 1))

    once = np.ones(len(study.results), dtype=np.int64)
    named = [("false_positives_per_scan", "false positives a scan", rate, "")]
    if study.nodules:
        named += [
            ("recall", "sensitivity", recall, "; nodules found, of all"),
            ("precision", "precision", precision, "; nodules found, of these and the false marks"),
            ("f1", "F1", f1, "; harmonic mean of sensitivity and precision"),
        ]
    for key, name, of, more in named:
        yield study.figure(key, name, of(once), AT_POINT + more, study.bootstrap(of))


def _errors(study: Study) -> Iterator[Figure]:
    """Dice, volume and diameter of what was found and has a true mask."""
    rows = []
    scan_of = {result.uid: n for n, result in enumerate(study.results)}
    counts = [range(len(result.nodules)) for result in study.results]
    for (result, nodule), place, mark in zip(
        study.nodules, [n for numbers in counts for n in numbers], _found(study), strict=True
    ):
        if mark is None or not true_mask(nodule):
            continue
        best = result.marks[mark]
        iou = mask_iou(best.mask, best.corner, nodule.mask, nodule.corner)
        seen, true = result.mark_sizes[mark], result.nodule_sizes[place]
        volume = 100 * (seen.volume_mm3 / true.volume_mm3 - 1)
        rows.append((scan_of[result.uid], 2 * iou / (1 + iou), volume, seen.diameter_mm - true.diameter_mm))
    if not rows:
        return
    table = np.array(rows)
    scan = table[:, 0].astype(np.int64)
    named: list[tuple[str, str, str, Callable[..., Any], str]] = [
        ("dice", "Dice", "", np.mean, "mean"),
        ("volume_error", "volume error", "%", np.median, "median; more than the truth is positive"),
        ("diameter_error", "diameter error", "mm", np.median, "median; of spheres of the masks' volumes"),
    ]
    for column, (key, name, unit, summed, how) in enumerate(named, start=1):
        values = table[:, column]

        def again(times: NDArray[np.int64], values: Any = values, summed: Any = summed) -> float:
            drawn = np.repeat(values, times[scan])
            return float(summed(drawn)) if len(drawn) else float(summed(values))

        yield study.figure(
            key, name, float(summed(values)), f"{HIT}: {how}", study.bootstrap(again), unit=unit, spread=_spread(values)
        )


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    low, high = np.percentile(values, PERCENTILES)
    return {"mean": float(values.mean()), "median": float(np.median(values)), "p5": float(low), "p95": float(high)}


def _seconds(study: Study) -> Iterator[Figure]:
    definition = f"{SECONDS}; {study.machine}"
    totals = np.array([sum(result.seconds.values()) for result in study.results])
    yield study.figure(
        "seconds", "seconds a scan", float(np.median(totals)), definition, unit="s", spread=_spread(totals)
    )
    for stage in study.results[0].seconds:
        values = np.array([result.seconds.get(stage, 0.0) for result in study.results])
        yield study.figure(
            f"seconds_{stage}", f"seconds a scan: {stage}", float(np.median(values)), definition, unit="s",
            spread=_spread(values),
        )  # fmt: skip


# -- key slices ----------------------------------------------------------------------------------------


def _key_slices(study: Study) -> Iterator[Figure]:
    made = slice_ap(image for result in study.results for image in slice_images(result))
    for key, name, value in (
        ("slice_box_ap50", "key-slice box AP50", made.box_ap50),
        ("slice_segm_ap50", "key-slice mask AP50", made.segm_ap50),
    ):
        yield study.figure(key, name, value, f"{KEY_SLICES}; {made.images} slices")
