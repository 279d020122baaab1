"""Times each stage of one full-size series: read, volume, lung, resample, network, link, SEG and SR, pictures, send.

python -m bench.pipeline [--data DIR] [--rounds 3] [--device cpu] [--json]

Everything but the network is this project's own cost; the sum of it should stay under 10 s for 300 slices of
512 x 512 on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom

from dicom_node import analysis, logs
from dicom_node.config import GateConfig, bundle_folder
from dicom_node.demo import SHIPPED_SCAN
from dicom_node.dimse.archive import Archive
from dicom_node.dimse.scu import send
from dicom_node.infer import dicom_files
from dicom_node.model.detector import Detector
from dicom_node.peers import PeerConfig
from dicom_node.profiles import BUILT_IN_PROFILES, DEFAULT_PROFILE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of one CT series; default: the shipped scan, to 300 slices")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logs.quiet_pydicom()
    with tempfile.TemporaryDirectory() as name:
        folder = options.data or three_hundred_slices(Path(name) / "ct")
        report = measure(folder, Path(name) / "out", options.rounds, options.device)
    print(json.dumps(report, indent=2) if options.json else _table(report))


def three_hundred_slices(folder: Path) -> Path:
    """The shipped scan resampled in z to 300 uncompressed slices of 512 x 512: real anatomy at full size."""
    folder.mkdir()
    datasets = [pydicom.dcmread(path) for path in sorted(SHIPPED_SCAN.glob("*.dcm"))]
    stack = np.stack([ds.pixel_array for ds in datasets]).astype(np.float32)
    z = np.linspace(0, len(stack) - 1, 300)
    spacing_mm = 2.5 * (len(stack) - 1) / 299
    for index, at in enumerate(z):
        low = min(int(at), len(stack) - 2)
        pixels = stack[low] * (1 - (at - low)) + stack[low + 1] * (at - low)
        ds = datasets[round(at)]
        ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"2.25.{10**20 + index}"
        x, y = (float(v) for v in datasets[0].ImagePositionPatient[:2])
        ds.ImagePositionPatient = [x, y, round(-340.0 + index * spacing_mm, 4)]
        ds.SliceThickness = round(spacing_mm, 4)
        ds.PixelData = np.rint(pixels).astype(np.int16).tobytes()
        ds["PixelData"].VR = "OW"
        ds.save_as(folder / f"{index:04}.dcm", enforce_file_format=True)
    return folder


def measure(folder: Path, out: Path, rounds: int, device: str) -> dict[str, object]:
    """Medians over `rounds`, in seconds a stage."""
    files = dicom_files(folder)
    detector = Detector.load(bundle_folder("builtin:lung_nodule_small"), device)
    origin = analysis.Origin(manifest_sha256="0" * 64, made_at=datetime.now(UTC), evidence="benchmark", complete=True)
    laps: list[dict[str, float]] = []
    findings = 0
    for _ in range(rounds):
        made = analysis.analyse(files, detector, GateConfig(), origin, {"": BUILT_IN_PROFILES[DEFAULT_PROFILE]})
        findings = len(made.findings)
        laps.append({**made.timings_s, "send": _send(made, out)})
    stages = {name: statistics.median(lap[name] for lap in laps) for name in laps[0]}
    total = sum(stages.values())
    return {
        "files": len(files),
        "findings": findings,
        "rounds": rounds,
        "device": device,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "stages_s": {name: round(seconds, 2) for name, seconds in stages.items()},
        "total_s": round(total, 2),
        "all_but_network_s": round(total - stages["network"], 2),
        "network_part": round(stages["network"] / total, 3),
    }


def _send(made: analysis.Analysis, out: Path) -> float:
    """Seconds to send the objects to a small archive on loopback."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for made_file in made.objects:
        path = out / f"{made_file.name}.dcm"
        path.write_bytes(made_file.data)
        paths.append(path)
    archive = Archive(out / "archive", "BENCH")
    port = archive.start()
    try:
        start = time.perf_counter()
        outcomes = list(send(paths, PeerConfig(ae_title="BENCH", host="127.0.0.1", port=port), "DICOMNODE"))
        seconds = time.perf_counter() - start
    finally:
        archive.stop()
    if any(outcome.kind != "stored" for outcome in outcomes):
        raise SystemExit("the archive did not store the results")
    return seconds


def _table(report: dict[str, object]) -> str:
    stages = report["stages_s"]
    assert isinstance(stages, dict)
    lines = [f"{report['files']} slices, {report['findings']} findings, {report['device']}, {report['machine']}"]
    lines += [f"{name:>10} {seconds:8.2f} s" for name, seconds in stages.items()]
    lines += [f"{'total':>10} {report['total_s']:8.2f} s", f"all but the network {report['all_but_network_s']} s"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
