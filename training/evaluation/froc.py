"""Marks and lists of true and excluded findings -> LUNA16's FROC, its seven sensitivities and their mean, the CPM.

The rules are those of LUNA16's own evaluation script: a mark hits where its distance to a centre is strictly less
than the radius, in LPS mm; of several hits on one nodule the best counts and the others are ignored; marks on
excluded findings are ignored; a missed nodule counts in the denominator only; a scan with more than 100 marks keeps
those strictly above its 101st score; false positives are divided by all scans of the list, with nodules or without.
"""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import RESEARCH_USE
from training.cases import UNKNOWN_DIAMETER_MM, DataProblem
from training.evaluation import claims
from training.evaluation.intervals import LEVEL, SAMPLES, Bounds, bounds, draws, pair

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
MARKS_PER_SCAN = 100
# Where a curve's band is given: eight points an octave, and the seven rates among them.
BAND_RATES = 2.0 ** (np.arange(-24, 25) / 8)

COORDINATES = ("coordX", "coordY", "coordZ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What a detector reports. series: (n,) SeriesInstanceUIDs; xyz_mm: (n, 3) LPS mm; score: (n,)."""

    series: NDArray[np.str_]
    xyz_mm: NDArray[np.float64]
    score: NDArray[np.float64]

    def __post_init__(self) -> None:
        _check("marks", self.series, self.xyz_mm, self.score)


@dataclass(frozen=True, slots=True, kw_only=True)
class Truths:
    """Listed findings. diameter_mm: (n,), negative where it is not known."""

    series: NDArray[np.str_]
    xyz_mm: NDArray[np.float64]
    diameter_mm: NDArray[np.float64]

    def __post_init__(self) -> None:
        _check("truths", self.series, self.xyz_mm, self.diameter_mm)
        if (self.diameter_mm == 0).any():
            raise ValueError("a finding of 0 mm can't be hit: -1 says that a diameter is not known")

    @property
    def radius_mm(self) -> NDArray[np.float64]:
        return np.where(self.diameter_mm < 0, UNKNOWN_DIAMETER_MM, self.diameter_mm) / 2


def _check(what: str, series: NDArray[np.str_], xyz_mm: NDArray[np.float64], last: NDArray[np.float64]) -> None:
    n = len(series)
    if series.shape != (n,) or xyz_mm.shape != (n, 3) or last.shape != (n,):
        raise ValueError(f"{what} of unlike lengths: {series.shape}, {xyz_mm.shape}, {last.shape}")
    if not (np.isfinite(xyz_mm).all() and np.isfinite(last).all()):
        raise ValueError(f"{what} with a number that is not finite")


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """What a curve is made of, best score first: each false mark, and each found nodule with its best score.

    ends: index of the last event of each score: events of one score come together.
    nodules: (scans,), how many each scan holds, found or not.
    """

    scan: NDArray[np.int64]
    score: NDArray[np.float64]
    found: NDArray[np.bool_]
    ends: NDArray[np.int64]
    nodules: NDArray[np.int64]

    def totals(self, times: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """False marks and found nodules down to each score, each scan taken `times` (scans,) times."""
        weight = times[self.scan]
        return (
            np.cumsum(np.where(self.found, 0, weight))[self.ends],
            np.cumsum(np.where(self.found, weight, 0))[self.ends],
        )

    def tally(self) -> NDArray[np.int64]:
        """(3, scans): false marks, found nodules and nodules of each scan."""
        scans = len(self.nodules)
        false, found = (np.bincount(self.scan[which], minlength=scans) for which in (~self.found, self.found))
        return np.stack([false, found, self.nodules])

    def first(self, false: float) -> Events:
        """Down to the score where so many false marks are passed."""
        passed = np.cumsum(~self.found)[self.ends] > false
        ends = self.ends[: int(passed.argmax()) + 1] if passed.any() else self.ends
        kept = int(ends[-1]) + 1 if len(ends) else 0
        return replace(self, scan=self.scan[:kept], score=self.score[:kept], found=self.found[:kept], ends=ends)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrocIntervals:
    """Over scans drawn with replacement. at: rate -> low, high. rates, mean, low, high: (k,), a curve and its band."""

    samples: int
    level: float
    cpm: Bounds
    at: dict[float, Bounds]
    rates: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Froc:
    """thresholds, fp_per_scan, sensitivity: (k,), the curve from (0, 0) at threshold inf, without points on a straight.

    counts: true_positives, false_positives, false_negatives, total_candidates, total_nodules, ignored_on_excluded,
    ignored_double_detections, as the official script counts them. at: RATES -> sensitivity. cpm: mean of `at`.
    """

    scans: int
    nodules: int
    counts: dict[str, int]
    thresholds: NDArray[np.float64]
    fp_per_scan: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    at: dict[float, float]
    cpm: float
    events: Events = field(repr=False)

    def interval(self, samples: int = SAMPLES, seed: int = 0, level: float = LEVEL) -> FrocIntervals:
        """Bootstrap over scans; the same seed gives the same numbers."""
        rates = np.concatenate([RATES, BAND_RATES])
        curves = np.empty((samples, len(rates)))
        enough = rates.max() * self.scans
        # Nothing beyond the last rate is asked for; twice as much is enough for all but the oddest draw.
        top, tally = self.events.first(2 * enough), self.events.tally()
        for row, times in zip(curves, draws(self.events.nodules, samples, seed), strict=True):
            false, found = top.totals(times)
            if not false.max(initial=0) > enough:
                false, found = self.events.totals(times)
            row[:] = _at(rates, *_rates(false, found, tally @ times, self.scans))
        low, high = bounds(curves, level)
        seven = len(RATES)
        return FrocIntervals(
            samples=samples,
            level=level,
            cpm=pair(curves[:, :seven].mean(axis=1), level),
            at={rate: (float(a), float(b)) for rate, a, b in zip(RATES, low[:seven], high[:seven], strict=True)},
            rates=BAND_RATES,
            mean=curves[:, seven:].mean(axis=0),
            low=low[seven:],
            high=high[seven:],
        )


def froc(scans: Sequence[str], marks: Marks, nodules: Truths, excluded: Truths) -> Froc:
    """Marks and findings of scans outside the list play no part. Raises DataProblem where the list repeats a scan,
    or where its scans hold no nodule."""
    if len(set(scans)) != len(scans):
        raise DataProblem("the list of scans names a scan twice: each may count once")
    judged = _judge(scans, marks, nodules, excluded)
    events = _events(judged)
    total = int(events.nodules.sum())
    if total == 0:
        raise DataProblem("the listed scans hold no nodule: are the lists of nodules and of scans of one data set?")
    thresholds, false, found = _curve(events)
    fp_per_scan, sensitivity = _rates(false, found, events.tally().sum(axis=1), len(scans))
    at = dict(zip(RATES, map(float, _at(np.array(RATES), fp_per_scan, sensitivity)), strict=True))
    return Froc(
        scans=len(scans),
        nodules=total,
        counts=_counts(judged),
        thresholds=thresholds,
        fp_per_scan=fp_per_scan,
        sensitivity=sensitivity,
        at=at,
        cpm=float(np.mean(list(at.values()))),
        events=events,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """One scan. best: score of each found nodule. false: score of each false mark."""

    best: NDArray[np.float64]
    false: NDArray[np.float64]
    marks: int
    nodules: int
    on_excluded: int
    doubles: int


def _judge(scans: Sequence[str], marks: Marks, nodules: Truths, excluded: Truths) -> list[_Judged]:
    rows = [_rows(listed.series) for listed in (marks, nodules, excluded)]
    nothing = np.zeros(0, dtype=np.int64)
    judged = []
    for uid in scans:
        of_marks, of_nodules, of_excluded = (by_scan.get(uid, nothing) for by_scan in rows)
        kept = of_marks[strongest(marks.score[of_marks])]
        xyz_mm, score = marks.xyz_mm[kept], marks.score[kept]
        inside = _inside(xyz_mm, nodules, of_nodules)
        found = inside.any(axis=0)
        spare = ~inside.any(axis=1)
        unsure = spare & _inside(xyz_mm, excluded, of_excluded).any(axis=1)
        best = np.where(inside, score[:, None], -np.inf).max(axis=0, initial=-np.inf)
        judged.append(
            _Judged(
                best=best[found],
                false=score[spare & ~unsure],
                marks=len(kept),
                nodules=len(of_nodules),
                on_excluded=int(unsure.sum()),
                doubles=int((inside.sum(axis=0) - 1)[found].sum()),
            )
        )
    return judged


def strongest(score: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which marks of one scan count: all, or of more than 100 those strictly above the 101st score."""
    if len(score) <= MARKS_PER_SCAN:
        return np.ones(len(score), dtype=bool)
    kept: NDArray[np.bool_] = score > np.sort(score)[::-1][MARKS_PER_SCAN]
    return kept


def _rows(series: NDArray[np.str_]) -> dict[str, NDArray[np.int64]]:
    """SeriesInstanceUID -> its rows."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, uid in enumerate(series.tolist()):
        rows[uid].append(row)
    return {uid: np.array(of_scan, dtype=np.int64) for uid, of_scan in rows.items()}


def _inside(xyz_mm: NDArray[np.float64], truths: Truths, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(marks, findings): strictly less than a radius from the centre. Squares, as the official script compares."""
    away = xyz_mm[:, None] - truths.xyz_mm[rows]
    squared = away[..., 0] ** 2 + away[..., 1] ** 2 + away[..., 2] ** 2
    inside: NDArray[np.bool_] = squared < truths.radius_mm[rows] ** 2
    return inside


def _events(judged: Sequence[_Judged]) -> Events:
    scores = [np.concatenate([scan.best, scan.false]) for scan in judged]
    score = np.concatenate(scores)
    found = np.concatenate([np.arange(len(scan.best) + len(scan.false)) < len(scan.best) for scan in judged])
    scan = np.repeat(np.arange(len(judged)), [len(of_scan) for of_scan in scores])
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)[: len(score)]
    return Events(
        scan=scan[order],
        score=score[order],
        found=found[order],
        ends=np.flatnonzero(last),
        nodules=np.array([scan.nodules for scan in judged], dtype=np.int64),
    )


def _curve(events: Events) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Thresholds, false marks and found nodules, from nothing at all on. A point in line with its neighbours is left
    out, as the official script leaves it out."""
    false, found = events.totals(np.ones(len(events.nodules), dtype=np.int64))
    bend = np.ones(len(false), dtype=bool)
    bend[1:-1] = (np.diff(false, 2) != 0) | (np.diff(found, 2) != 0)
    thresholds = events.score[events.ends][bend]
    return np.append(np.inf, thresholds), np.append(0, false[bend]), np.append(0, found[bend])


def _rates(
    false: NDArray[np.int64], found: NDArray[np.int64], whole: NDArray[np.int64], scans: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False marks a scan, and sensitivity, down a curve. whole: as `Events.tally` counts, of all scans together.

    Divided and multiplied back as the official script does: where the curve rises at exactly one of the seven rates
    (11 false marks in 88 scans), the last bit decides between the foot and the head of the step, 0.02 apart.
    """
    all_false, all_found, nodules = np.maximum(whole, 1).tolist()
    return false / all_false * all_false / scans, found / all_found * all_found / nodules


def _at(
    rates: NDArray[np.float64], fp_per_scan: NDArray[np.float64], sensitivity: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Linear between the points of a curve that starts at (0, 0); its last sensitivity beyond its end."""
    values: NDArray[np.float64] = np.interp(rates, np.append(0.0, fp_per_scan), np.append(0.0, sensitivity))
    return values


def _counts(judged: Sequence[_Judged]) -> dict[str, int]:
    found, nodules = sum(len(scan.best) for scan in judged), sum(scan.nodules for scan in judged)
    return {
        "true_positives": found,
        "false_positives": sum(len(scan.false) for scan in judged),
        "false_negatives": nodules - found,
        "total_candidates": sum(scan.marks for scan in judged),
        "total_nodules": nodules,
        "ignored_on_excluded": sum(scan.on_excluded for scan in judged),
        "ignored_double_detections": sum(scan.doubles for scan in judged),
    }


# -- files ---------------------------------------------------------------------------------------------


def read_marks(path: Path) -> Marks:
    """A submission: seriesuid,coordX,coordY,coordZ,probability; plain or gzipped. Raises DataProblem."""
    series, xyz_mm, score = _read_table(path, "probability")
    return Marks(series=series, xyz_mm=xyz_mm, score=score)


def read_truths(path: Path) -> Truths:
    """A list of findings: seriesuid,coordX,coordY,coordZ,diameter_mm; plain or gzipped. Raises DataProblem."""
    series, xyz_mm, diameter_mm = _read_table(path, "diameter_mm")
    if (diameter_mm == 0).any():
        raise DataProblem(f"{path}: a finding has a diameter of 0 mm: write -1 where it is not known")
    return Truths(series=series, xyz_mm=xyz_mm, diameter_mm=diameter_mm)


def read_series(path: Path) -> tuple[str, ...]:
    """A list of scans, one SeriesInstanceUID a line, with or without the header `seriesuid`. Raises DataProblem."""
    lines = [row[0].strip() for _, row in _read_rows(path) if row]
    uids = tuple(lines[1:] if lines and lines[0] == "seriesuid" else lines)
    if not uids:
        raise DataProblem(f"{path} names no scan: it should hold one SeriesInstanceUID a line")
    if len(set(uids)) != len(uids):
        twice = next(uid for n, uid in enumerate(uids) if uid in uids[:n])
        raise DataProblem(f"{path} names {twice} twice: take the second line out")
    return uids


def _read_table(path: Path, last: str) -> tuple[NDArray[np.str_], NDArray[np.float64], NDArray[np.float64]]:
    rows = _read_rows(path)
    header = [name.strip() for name in rows[0][1]] if rows else []
    wanted = ("seriesuid", *COORDINATES, last)
    if missing := [name for name in wanted if name not in header]:
        raise DataProblem(f"{path} has no column {', '.join(missing)}: its first line should be {','.join(wanted)}")
    uid_column, *number_columns = (header.index(name) for name in wanted)
    series, numbers = [], []
    for line, row in rows[1:]:
        if not row:
            continue
        if len(row) != len(header):
            raise DataProblem(f"{path}, line {line}: {len(row)} fields, the first line has {len(header)}")
        series.append(row[uid_column].strip())
        numbers.append([_number(row[column], path, line, header[column]) for column in number_columns])
    table = np.array(numbers, dtype=np.float64).reshape(-1, 4)
    return np.array(series, dtype=np.str_), table[:, :3], table[:, 3]


def _number(text: str, path: Path, line: int, column: str) -> float:
    try:
        number = float(text)
    except ValueError as err:
        raise DataProblem(f"{path}, line {line}: {column} is {text!r}, which is no number") from err
    if not math.isfinite(number):
        raise DataProblem(f"{path}, line {line}: {column} is {text!r}, it has to be finite")
    return number


def _read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Line numbers and fields. Spreadsheets put a byte order mark in front, hence utf-8-sig."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as err:
        raise DataProblem(f"{path} can't be read ({err}): give a CSV file, plain or gzipped") from err
    except UnicodeDecodeError as err:
        raise DataProblem(f"{path} is no text: give a CSV file, plain or gzipped") from err
    reader = csv.reader(text.splitlines())
    try:
        return [(reader.line_num, row) for row in reader]
    except csv.Error as err:
        raise DataProblem(f"{path}, line {reader.line_num}: {err}") from err


# -- the command ---------------------------------------------------------------------------------------


def run_froc(submission: Path, annotations: Path, excluded: Path, seriesuids: Path, bootstrap: int, json: bool) -> str:
    """`python -m training froc`: a text for people, or JSON. bootstrap: samples, 0 for none. Raises DataProblem."""
    scans, marks = read_series(seriesuids), read_marks(submission)
    nodules, unsure = read_truths(annotations), read_truths(excluded)
    result = froc(scans, marks, nodules, unsure)
    listed = set(scans)
    report = {
        "notice": RESEARCH_USE,
        "name": claims.luna16_name(scans, nodules, unsure, claims.LUNA16_FROC),
        "scans": result.scans,
        "counts": result.counts,
        "marks_outside_the_list": sum(uid not in listed for uid in marks.series.tolist()),
        "fp_per_scan": list(result.at),
        "sensitivity": list(result.at.values()),
        "cpm": result.cpm,
        "intervals": _plain(result.interval(bootstrap)) if bootstrap else None,
        # The first point's threshold is above all scores, which JSON has no number for.
        "curve": [
            {"fp_per_scan": x, "sensitivity": y, "threshold": None if math.isinf(t) else t}
            for x, y, t in zip(*(each.tolist() for each in _points(result)), strict=True)
        ],
    }
    return dumps(report, indent=1) if json else _text(report)


def _points(result: Froc) -> tuple[NDArray[np.float64], ...]:
    return result.fp_per_scan, result.sensitivity, result.thresholds


def _plain(intervals: FrocIntervals) -> dict[str, Any]:
    return {
        "samples": intervals.samples,
        "level": intervals.level,
        "cpm": intervals.cpm,
        "sensitivity": list(intervals.at.values()),
    }


def _text(report: dict[str, Any]) -> str:
    intervals = report["intervals"]
    lines = [report["name"], "", *(f"{name.replace('_', ' '):28}{n:8}" for name, n in report["counts"].items())]
    if outside := report["marks_outside_the_list"]:
        lines.append(f"{'marks outside the list':28}{outside:8}  (left out)")
    level = f"  {intervals['level']:.0%} interval of {intervals['samples']} bootstraps" if intervals else ""
    lines += ["", f"{'false positives a scan':>24}  sensitivity{level}"]
    spans = intervals["sensitivity"] if intervals else [None] * len(RATES)
    rows = zip((f"{rate:g}" for rate in RATES), report["sensitivity"], spans, strict=True)
    lines += [_row(*row) for row in (*rows, ("CPM", report["cpm"], intervals and intervals["cpm"]))]
    return "\n".join([*lines, "", report["notice"]])


def _row(name: str, value: float, span: Bounds | None) -> str:
    return f"{name:>24}  {value:11.6f}" + (f"  {span[0]:.6f} to {span[1]:.6f}" if span else "")
