"""Processor seconds to make, check and write the objects of each profile: 300 slices of 512 x 512, 10 findings.

The process holds itself to one core, and counts its own time there, so that other work on the machine does not matter
much. `read` measures and names the findings, `write` is the files' bytes. Medians of the rounds, after one that warms
up. The whole must stay under 3 s for each built-in profile.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from bench.pipeline import three_hundred_slices
from dicom_node import logs
from dicom_node.domain import CTSeries, Detection, Finding, ModelIdentity, Volume
from dicom_node.infer import dicom_files
from dicom_node.profiles import BUILT_IN_PROFILES, ResultProfile
from dicom_node.results import objects, to_bytes
from dicom_node.results.build import build_objects, read
from dicom_node.series import read_series, to_volume

LIMIT_S = 3.0
STAGES = {
    "build_seg": "SEG",
    "build_report": "TID 1500",
    "build_text_report": "text SR",
    "build_cad_report": "CAD SR",
    "build_captures": "captures",
    "build_presentation_states": "states",
    "build_key_objects": "key objects",
    "build_pdf": "PDF",
    "check_objects": "check",
}
PROFILES = {
    **BUILT_IN_PROFILES,
    "ohif, full frames": ResultProfile(segmentation_frames="full"),
    "everything": ResultProfile(
        reports=("tid1500", "text", "chest_cad"),
        captures="single_frame",
        key_objects=True,
        presentation_states=True,
        pdf=True,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="bench/results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--findings", type=int, default=10, help="default 10")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    logs.quiet_pydicom()
    with tempfile.TemporaryDirectory() as name:
        series = read_series(dicom_files(three_hundred_slices(Path(name) / "ct")))
        volume = to_volume(series)
        report = measured(series, volume, findings_in(volume, arguments.findings), arguments.rounds)
    print(json.dumps(report, indent=2) if arguments.json else _table(report))


def findings_in(volume: Volume, count: int) -> list[Finding]:
    """Ellipsoids of 6 to 24 mm with a rough border, spread over the middle of the scan."""
    random = np.random.default_rng(0)
    spacing = np.array(volume.spacing_mm)
    return [
        _ellipsoid(volume, (np.array([0.2, 0.3, 0.2]) + 0.6 * random.random(3)) * volume.hu.shape, radius_mm, spacing)
        for radius_mm in np.linspace(3.0, 12.0, count)
    ]


def _ellipsoid(volume: Volume, center: Any, radius_mm: float, spacing: Any) -> Finding:
    size = np.ceil(radius_mm * 1.3 / spacing).astype(int)
    corner = np.clip(np.rint(center).astype(int) - size, 0, np.array(volume.hu.shape) - 2 * size - 1)
    offset = (np.moveaxis(np.indices(2 * size + 1), 0, -1) - size) * spacing / (radius_mm * np.array([0.8, 1.0, 1.2]))
    distance = np.linalg.norm(offset, axis=-1)
    mask = distance + 0.1 * np.random.default_rng(1).random(distance.shape) <= 1.0
    voxels = np.argwhere(mask)
    low, high = voxels.min(axis=0), voxels.max(axis=0) + 1
    x, y, z = volume.to_mm(voxels.mean(axis=0) + corner).tolist()
    k, row, column = (corner + low).tolist()
    return Finding(
        mask=mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].copy(),
        corner=(k, row, column),
        center_mm=(x, y, z),
        score=0.9,
        side="left" if x > 0 else "right",
    )


def measured(series: CTSeries, volume: Volume, findings: Sequence[Finding], rounds: int) -> dict[str, Any]:
    model = ModelIdentity(
        name="bench", version="1", bundle_sha256="5e" * 32, operating_point=0.5, parameters={"min_diameter_mm": 3.0}
    )
    detection = Detection(findings=tuple(findings), analysed=(0, len(volume.hu)), model=model, timings_s={})
    profiles = {name: _profile(series, volume, detection, profile, rounds) for name, profile in PROFILES.items()}
    return {
        "machine": f"{platform.machine()}, one core, Python {platform.python_version()}",
        "load": round(os.getloadavg()[0], 1),
        "slices": len(volume.hu),
        "findings": len(findings),
        "rounds": rounds,
        "limit_s": LIMIT_S,
        "profiles": profiles,
    }


def _profile(
    series: CTSeries, volume: Volume, detection: Detection, profile: ResultProfile, rounds: int
) -> dict[str, Any]:
    laps: list[dict[str, float]] = []
    count = size = 0
    for _ in range(1 + rounds):
        spent: dict[str, float] = {}
        with _timed_builders(spent):
            start = time.process_time()
            reading = read(
                series, volume, detection,
                evidence="300 of 300 instances, contiguous", manifest_sha256="0" * 64, made_at=datetime(2026, 1, 2),
            )  # fmt: skip
            spent["read"] = time.process_time() - start
            made = build_objects(reading, profile)
        before = time.process_time()
        files = [to_bytes(each.ds) for each in made]
        spent["write"] = time.process_time() - before
        spent["total"] = time.process_time() - start
        count, size = len(files), sum(map(len, files))
        laps.append(spent)
    median = {name: round(statistics.median(lap[name] for lap in laps[1:]), 3) for name in laps[0]}
    total = median.pop("total")
    return {"stages_s": median, "total_s": total, "objects": count, "bytes": size}


@contextmanager
def _timed_builders(spent: dict[str, float]) -> Iterator[None]:
    """Each builder that `objects` calls adds its seconds to `spent`."""
    real = {name: getattr(objects, name) for name in STAGES}
    for name, function in real.items():
        setattr(objects, name, _timed(function, STAGES[name], spent))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(objects, name, function)


def _timed(function: Callable[..., Any], stage: str, spent: dict[str, float]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[stage] = spent.get(stage, 0.0) + time.process_time() - start

    return call


def _table(report: dict[str, Any]) -> str:
    stages = ["read", *STAGES.values(), "write"]
    lines = [
        f"{report['slices']} slices, {report['findings']} findings, {report['rounds']} rounds, "
        f"{report['machine']}, load {report['load']}; limit {report['limit_s']:g} s",
        "",
        f"| profile | objects | MB | {' | '.join(stages)} | total, s |",
        "|---" * (len(stages) + 4) + "|",
    ]
    for name, profile in report["profiles"].items():
        cells = [f"{profile['stages_s'][stage]:.2f}" if stage in profile["stages_s"] else "" for stage in stages]
        over = "" if profile["total_s"] < report["limit_s"] else " (over)"
        lines.append(
            f"| {name} | {profile['objects']} | {profile['bytes'] / 1e6:.1f} | {' | '.join(cells)}"
            f" | {profile['total_s']:.2f}{over} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
