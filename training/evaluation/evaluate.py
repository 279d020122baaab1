"""A bundle over scans with their truth, through the node's own Detector -> a ScanResult a scan, then the figures.

    <out>/scans/<uid>.json      each scan's ScanResult; a stopped run goes on where it was
    <out>/judged.json           which of them the last evaluation is of: others may lie there from before
    <out>/figures.json          all figures, each with its definition and its data
    <out>/report.html           the same for people, with curves and pictures

The operating point plays no part in judging: all marks from a low floor on are kept. Nor do a bundle's name and
figures: a bundle that is exported again with its figures need not be judged again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch

from dicom_node.errors import ConfigError, SeriesRejected
from dicom_node.model.bundle import Bundle, load_bundle
from dicom_node.model.detector import Detector
from training.cases import DataProblem, Scan
from training.evaluation.ceiling import human_ceiling
from training.evaluation.claims import Fold
from training.evaluation.figures import Point, Study, figures
from training.evaluation.marks import LAYOUT, ScanResult, behaviour, read_result, result_of, write_result
from training.evaluation.report import FIGURES, read_figures, write_report
from training.prepare import write_whole
from training.provenance import machine
from training.readers import Listing, OnProblem, Problems

FLOOR = 0.02
SCANS, JUDGED = "scans", "judged.json"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """results: sorted by uid. left_out: scan uid or file -> why it was not judged."""

    results: tuple[ScanResult, ...]
    left_out: dict[str, str]


def run_evaluate(
    bundle_dir: Path,
    listing: Listing,
    out: Path,
    *,
    command: str,
    device: str = "cpu",
    workers: int = 1,
    on_problem: OnProblem = "refuse",
    point_from: Path | None = None,
    false_positives_per_scan: float | None = None,
    folds: Sequence[Fold] | None = None,
    seen: int | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Judges the listed scans, writes figures.json and report.html, returns the figures.

    The operating point is the bundle's own; with false_positives_per_scan it is chosen: on `point_from`, the folder
    of an earlier evaluation of this bundle on other scans, or, without one, on these very scans, which the figures
    then say. command: what made the figures. folds: who was trained on whom, for LUNA16's name. seen: how many of the
    patients were in training, as far as is known; None where nobody says.
    Raises DataProblem, BundleError, ConfigError.
    """
    if point_from is not None and false_positives_per_scan is None:
        raise ConfigError("an operating point is chosen by its false positives a scan: say how many")
    bundle = load_bundle(bundle_dir)
    judged = judge(bundle, listing.scans, out, device=device, workers=workers, on_problem=on_problem, say=say)
    study = Study(
        results=judged.results,
        left_out={**listing.left_out, **judged.left_out},
        bundle=bundle.form,
        bundle_sha256=bundle.sha256,
        point=_point(bundle, judged.results, point_from, false_positives_per_scan),
        command=command,
        machine=machine(device),
        folds=folds,
        ceiling=human_ceiling(),
        seen=seen,
    )
    made = figures(study)
    say(str(write_report(made, judged.results, out)))
    return made


def run_pooled(
    bundle_dir: Path,
    folders: Sequence[Path],
    out: Path,
    *,
    command: str,
    folds: Sequence[Fold] | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """The evaluations of several folds, each of its own bundle, as one: figures.json and report.html in `out`.

    bundle_dir: one of the bundles, for their name. Each scan keeps its own fold's operating point.
    Raises DataProblem, BundleError.
    """
    bundle = load_bundle(bundle_dir)
    parts = [read_figures(folder / FIGURES) for folder in folders]
    results: list[ScanResult] = []
    points: dict[str, float] = {}
    for folder, part in zip(folders, parts, strict=True):
        of_part = stored_results(folder, part["bundle"]["behaviour"])
        results += of_part
        points |= {result.uid: float(part["operating_point"]["score"]) for result in of_part}
    scores = [float(part["operating_point"]["score"]) for part in parts]
    results.sort(key=lambda result: result.uid)
    study = Study(
        results=tuple(results),
        left_out={name: why for part in parts for name, why in part["left_out"].items()},
        bundle=bundle.form,
        bundle_sha256=" ".join(part["bundle"]["sha256"] for part in parts),
        point=Point(
            score=float(np.mean(scores)),
            rule=f"mean of {len(parts)} folds, each at its own: {parts[0]['operating_point']['rule']}",
            by_scan=points,
        ),
        command=command,
        machine="; ".join(dict.fromkeys(part["machine"] for part in parts)),
        folds=folds,
        ceiling=human_ceiling(),
    )
    made = figures(study)
    say(str(write_report(made, study.results, out)))
    return made


def judge(
    bundle: Bundle,
    scans: Sequence[Scan],
    out: Path,
    *,
    device: str = "cpu",
    workers: int = 1,
    floor: float = FLOOR,
    on_problem: OnProblem = "refuse",
    say: Say = print,
) -> Judged:
    """One file a scan below `out`; a scan whose file tells of this bundle and these data is not looked at again.

    Until all are done, `out` counts as no evaluation: nothing is to be chosen on a part of its scans.

    floor: marks with less score are not kept. workers: processes, each with its own detector and its share of the
    cores. Raises DataProblem where problems are refused: files written until then stay.
    """
    folder = out / SCANS
    folder.mkdir(parents=True, exist_ok=True)
    (out / JUDGED).unlink(missing_ok=True)
    problems = Problems(on_problem=on_problem)
    results = []
    ordered = sorted(scans, key=lambda scan: scan.uid)
    todo = [scan for scan in ordered if _stored(folder, scan, bundle, floor) is None]
    if len(todo) < len(ordered):
        say(f"{len(ordered) - len(todo)} of {len(ordered)} scans were judged before")
    for number, (scan, problem) in enumerate(_each(todo, bundle, folder, device, workers, floor), start=1):
        if problem is not None:
            problems.note(scan.uid, problem)
        say(f"{number}/{len(todo)}  {scan.uid}  {problem or _told(read_result(_path(folder, scan)))}")
    for scan in ordered:
        if scan.uid not in problems.left_out:
            results.append(read_result(_path(folder, scan)))
    write_whole(out / JUDGED, json.dumps([_path(folder, result).name for result in results], indent=1) + "\n")
    return Judged(results=tuple(results), left_out=problems.left_out)


def _each(
    scans: Sequence[Scan], bundle: Bundle, folder: Path, device: str, workers: int, floor: float
) -> Iterator[tuple[Scan, str | None]]:
    """Scans as they get done, each with what went wrong or None; in this process where one worker is asked for."""
    if workers <= 1 or len(scans) <= 1:
        if scans:
            detector = Detector(lowered(bundle, floor), device)
        for scan in scans:
            yield scan, _judge(scan, detector, folder, _origin(scan, bundle, floor))
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    judge_one = partial(_judge_there, bundle.folder, bundle.sha256, device, threads, floor, folder)
    # Not forked: SimpleITK's and torch's threads do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(judge_one, scan, _origin(scan, bundle, floor)): scan for scan in scans}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _judge_there(
    bundle_dir: Path, sha256: str, device: str, threads: int, floor: float, folder: Path, scan: Scan,
    origin: dict[str, Any],
) -> str | None:  # fmt: skip
    """In a process of its own, which keeps its detector from scan to scan."""
    return _judge(scan, _detector(bundle_dir, sha256, device, threads, floor), folder, origin)


@cache
def _detector(bundle_dir: Path, sha256: str, device: str, threads: int, floor: float) -> Detector:
    torch.set_num_threads(threads)
    bundle = load_bundle(bundle_dir)
    if bundle.sha256 != sha256:
        raise DataProblem(f"{bundle_dir} has changed while it was judged: evaluate again")
    return Detector(lowered(bundle, floor), device)


def _judge(scan: Scan, detector: Detector, folder: Path, origin: dict[str, Any]) -> str | None:
    """Writes the scan's file. What went wrong, or None."""
    started = time.perf_counter()
    try:
        case = scan.read()
        read_s = time.perf_counter() - started
        detection = detector.detect(case.volume)
    except DataProblem as err:
        return str(err)
    except SeriesRejected as err:
        return f"{err.reason}: {err.text}"
    seconds = {"read": read_s, **detection.timings_s}
    write_result(_path(folder, scan), result_of(scan, case, detection, origin, seconds))
    return None


def lowered(bundle: Bundle, floor: float) -> Bundle:
    """The bundle with another operating point. Its identity stays that of the files."""
    thresholds = bundle.form.thresholds.model_copy(update={"operating_point": floor})
    return replace(bundle, form=bundle.form.model_copy(update={"thresholds": thresholds}))


def choose_point(results: Sequence[ScanResult], false_positives_per_scan: float) -> float:
    """The lowest score, in hundredths, that leaves at most so many false marks a scan. Raises DataProblem."""
    if not results:
        raise DataProblem("no scan to choose an operating point on")
    false = np.concatenate([result.scores[result.false] for result in results])
    for hundredth in range(1, 100):
        if (false >= hundredth / 100).sum() <= false_positives_per_scan * len(results):
            return max(hundredth / 100, max(float(result.origin["floor"]) for result in results))
    return 1.0


def stored_results(folder: Path, of: str) -> tuple[ScanResult, ...]:
    """The results of an earlier evaluation that ran to its end. of: the bundle's `behaviour`. Raises DataProblem: none
    there, or some of another bundle."""
    try:
        names = [str(name) for name in json.loads((folder / JUDGED).read_text())]
    except (OSError, ValueError, TypeError) as err:
        raise DataProblem(
            f"{folder} holds no evaluation that ran to its end: run `python -m training evaluate` with it as --out"
        ) from err
    results = tuple(read_result(folder / SCANS / Path(name).name) for name in names)
    if any(result.origin["behaviour"] != of for result in results):
        raise DataProblem(f"{folder} was evaluated with another bundle: evaluate this one on its scans first")
    return results


def _point(
    bundle: Bundle, results: Sequence[ScanResult], point_from: Path | None, rate: float | None
) -> Point:  # fmt: skip
    if rate is None:
        return Point(score=bundle.form.thresholds.operating_point, rule="the bundle's own, chosen before")
    rule = f"the lowest score in hundredths with at most {rate:g} false positives a scan"
    if point_from is None:
        rule += " on the very scans reported here: figures at this point flatter the bundle"
        return Point(score=choose_point(results, rate), rule=rule)
    chosen_on = stored_results(point_from, behaviour(bundle.form))
    shared = {result.patient for result in chosen_on} & {result.patient for result in results}
    what = "composites" if any(result.composite for result in chosen_on) else "scans"
    rule += f" on {len(chosen_on)} other {what if len(chosen_on) > 1 else what[:-1]}"
    rule += f", {len(shared)} of their patients among these" if shared else ", no patient of which is among these"
    return Point(score=choose_point(chosen_on, rate), rule=rule)


def _stored(folder: Path, scan: Scan, bundle: Bundle, floor: float) -> ScanResult | None:
    path = _path(folder, scan)
    if not path.exists():
        return None
    try:
        result = read_result(path)
    except DataProblem:  # of another version, or no file of ours: it is written anew
        return None
    return result if result.origin == _origin(scan, bundle, floor) else None


def _origin(scan: Scan, bundle: Bundle, floor: float) -> dict[str, Any]:
    """What a result depends on. Files count by name, size and time: reading all voxels again would take as long as
    judging does on a GPU."""
    files = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in scan.files if path.exists()]
    return {
        "layout": LAYOUT,
        "behaviour": behaviour(bundle.form),
        "floor": floor,
        "truth": scan.truth,
        "composite": scan.composite,
        "files": files,
    }


def _path(folder: Path, scan: Scan | ScanResult) -> Path:
    """A scan's name may be anything: it never leads out of the folder."""
    return folder / f"{quote(scan.uid, safe='')}.json"


def _told(result: ScanResult) -> str:
    found, seconds = int(result.hits.any(axis=0).sum()), sum(result.seconds.values())
    return f"{len(result.marks)} marks, on {found} of {len(result.nodules)} nodules, {seconds:.1f} s"
