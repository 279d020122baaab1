"""How long 1,000 bootstraps of an FROC over 888 scans take, beside evaluating each draw anew, on this machine.

Anew means what one would write first: for each draw the marks and nodules of its scans are put together and matched,
sorted and counted from the start. It runs on a few draws only and is reckoned up; within a round the two take turns
in random order, so that other load on the machine meets both alike. The ratio is the median of same-round ratios.
Both give the same sensitivities, which is checked. The data are made up: as many scans, nodules and marks as asked for.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np

from training.evaluation.froc import RATES, Marks, Truths, froc
from training.evaluation.intervals import draws

ANEW_DRAWS = 5
SEED = 0


def main() -> None:
    arguments = _parser().parse_args()
    scans = [f"1.2.{n}" for n in range(arguments.scans)]
    marks, nodules = made_up(scans, arguments.marks, arguments.nodules)
    check_alike(scans, marks, nodules)
    rounds = []
    for number in range(arguments.rounds):
        rounds.append(one_round(scans, marks, nodules, arguments.bootstrap))
        if not arguments.json:
            print(f"round {number + 1}/{arguments.rounds}: {_one_line(rounds[-1])}", file=sys.stderr)
    report = {
        "scans": arguments.scans,
        "marks": len(marks.series),
        "nodules": len(nodules.series),
        "bootstraps": arguments.bootstrap,
        "machine": f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}",
        "ours_s": statistics.median(one["ours"] for one in rounds),
        "anew_s": statistics.median(one["anew"] for one in rounds),
        "ratio": statistics.median(one["anew"] / one["ours"] for one in rounds),
    }
    print(json.dumps(report, indent=1) if arguments.json else table(report))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/froc", description=__doc__)
    parser.add_argument("--scans", type=int, default=888, help="default 888")
    parser.add_argument("--marks", type=int, default=100, help="a scan (default 100, the most that count)")
    parser.add_argument("--nodules", type=int, default=1186, help="in all (default 1186)")
    parser.add_argument("--bootstrap", type=int, default=1000, help="draws (default 1000)")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def made_up(scans: Sequence[str], per_scan: int, nodules: int) -> tuple[Marks, Truths]:
    """Nodules at random; each scan's first marks lie near its nodules, the others anywhere, with lower scores."""
    rng = np.random.default_rng(SEED)
    names = np.array(scans)
    where = np.sort(rng.integers(len(scans), size=nodules))
    centers = rng.uniform(-150, 150, (nodules, 3))
    truths = Truths(series=names[where], xyz_mm=centers, diameter_mm=rng.uniform(3.3, 32, nodules))
    series = np.repeat(np.arange(len(scans)), per_scan)
    xyz_mm, score = rng.uniform(-150, 150, (len(series), 3)), rng.beta(1, 4, len(series))
    nth = np.arange(nodules) - np.searchsorted(where, where)  # a nodule's place within its scan
    near = np.flatnonzero(nth < per_scan)
    rows = where[near] * per_scan + nth[near]
    xyz_mm[rows] = centers[near] + rng.normal(0, 1.5, (len(near), 3))
    score[rows] = rng.beta(3, 2, len(near))
    return Marks(series=names[series], xyz_mm=xyz_mm, score=score), truths


def one_round(scans: Sequence[str], marks: Marks, nodules: Truths, bootstrap: int) -> dict[str, float]:
    """Seconds of all draws, reading the files apart."""
    seconds = {}
    for name in random.sample(["ours", "anew"], 2):
        start = time.perf_counter()
        if name == "ours":
            froc(scans, marks, nodules, _none()).interval(bootstrap, SEED)
            seconds[name] = time.perf_counter() - start
        else:
            anew(scans, marks, nodules, ANEW_DRAWS)
            seconds[name] = (time.perf_counter() - start) / ANEW_DRAWS * bootstrap
    return seconds


def anew(scans: Sequence[str], marks: Marks, nodules: Truths, count: int) -> list[list[float]]:
    """Sensitivities at the seven rates, a row a draw."""
    of_marks, of_nodules = _rows(scans, marks.series), _rows(scans, nodules.series)
    per_scan = np.array([len(rows) for rows in of_nodules])
    return [_drawn(np.repeat(np.arange(len(scans)), times), marks, nodules, of_marks, of_nodules)
            for times in draws(per_scan, count, SEED)]  # fmt: skip


def _rows(scans: Sequence[str], series: np.ndarray) -> list[np.ndarray]:
    rows: dict[str, list[int]] = {uid: [] for uid in scans}
    for row, uid in enumerate(series.tolist()):
        rows[uid].append(row)
    return [np.array(rows[uid], dtype=np.int64) for uid in scans]


def _drawn(
    drawn: np.ndarray, marks: Marks, nodules: Truths, of_marks: list[np.ndarray], of_nodules: list[np.ndarray]
) -> list[float]:
    """drawn: numbers of scans, some of them more than once: each gets a name of its own."""
    names = [f"{scan}#{place}" for place, scan in enumerate(drawn)]
    marked, found = [of_marks[scan] for scan in drawn], [of_nodules[scan] for scan in drawn]
    rows, truth_rows = np.concatenate(marked), np.concatenate(found)
    series = np.repeat(names, [len(part) for part in marked])
    truth_series = np.repeat(names, [len(part) for part in found])
    result = froc(
        names,
        Marks(series=series, xyz_mm=marks.xyz_mm[rows], score=marks.score[rows]),
        Truths(series=truth_series, xyz_mm=nodules.xyz_mm[truth_rows], diameter_mm=nodules.diameter_mm[truth_rows]),
        _none(),
    )
    return list(result.at.values())


def _none() -> Truths:
    return Truths(series=np.array([], dtype=np.str_), xyz_mm=np.zeros((0, 3)), diameter_mm=np.zeros(0))


def check_alike(scans: Sequence[str], marks: Marks, nodules: Truths) -> None:
    lowest = froc(scans, marks, nodules, _none()).interval(1, SEED).at
    plain = anew(scans, marks, nodules, 1)[0]
    if not np.allclose([lowest[rate][0] for rate in RATES], plain, rtol=0, atol=1e-12):
        sys.exit(f"bench/froc: the two disagree: {lowest} and {plain}")


def _one_line(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f} s" for name, value in sorted(seconds.items()))


def table(report: dict[str, float | str]) -> str:
    return "\n".join(
        [
            f"{report['scans']} scans, {report['nodules']} nodules, {report['marks']} marks; {report['machine']}",
            f"{report['bootstraps']} bootstraps       seconds",
            f"ours                {report['ours_s']:10.2f}",
            f"each draw anew      {report['anew_s']:10.2f}   (from {ANEW_DRAWS} draws a round)",
            f"ratio               {report['ratio']:10.1f}",
        ]
    )


if __name__ == "__main__":
    main()
