"""Decodes 300 slices of 512 x 512 in each transfer syntax: our plugin against pydicom's default order of plugins.

python -m bench.decode [--slices 300] [--rounds 3] [--syntax 1.2.840.10008.1.2.4.80 ...] [--json]

`images_per_s` is the whole way from files to Hounsfield units (`to_volume`); `ratio_pydicom` is that rate over the
rate of `dcmread(path).pixel_array`, which tries plugins in pydicom's own order, in the same round. "enhanced" is the
series as one Enhanced CT file, `headers_s` the time to read and judge its headers. Without DCMTK there is no JPEG,
without imagecodecs (no requirement of ours) no HTJ2K: nothing else encodes them.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pydicom
from pydicom.encaps import encapsulate

from bench.pipeline import _three_hundred_slices
from dicom_node import logs
from dicom_node.config import GateConfig
from dicom_node.series import read_series, to_volume
from dicom_node.transfer_syntaxes import ACCEPTED, EXPLICIT_LITTLE, TransferSyntax
from tests.fakes.enhanced import make_enhanced_ct

LIMITS = GateConfig(lossy="accept", min_length_mm=0)
_DCMCJPEG = {"4.70": "+e1", "4.57": "+el", "4.50": "+eb", "4.51": "+ee"}
_DCMCONV = {"1.2": "+ti", "1.2.2": "+tb", "1.2.1.99": "+td"}
_BY_PYDICOM = ("4.80", "4.81", "4.90", "4.91", "5")
_PREFIX = "1.2.840.10008."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--syntax", nargs="*", help="UIDs; default: all that can be encoded here")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logs.quiet_pydicom()
    with tempfile.TemporaryDirectory() as name:
        plain = sorted(_three_hundred_slices(Path(name) / "plain").iterdir())[: options.slices]
        rows = [
            row
            for syntax in ACCEPTED
            if not options.syntax or syntax.uid in options.syntax
            for row in _rows(syntax, plain, Path(name), options.rounds)
        ]
    report = {
        "slices": options.slices,
        "rounds": options.rounds,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "syntaxes": rows,
    }
    print(json.dumps(report, indent=2) if options.json else _table(report))


def _rows(syntax: TransferSyntax, plain: Sequence[Path], folder: Path, rounds: int) -> list[dict[str, object]]:
    """The series in one syntax, and where it is plain or JPEG-LS, as one Enhanced CT file too."""
    files = _encoded(syntax, plain, folder / syntax.uid)
    if files is None:
        return []
    rows = [_measured(syntax.name, syntax, files, rounds)]
    if syntax.uid in (EXPLICIT_LITTLE, f"{_PREFIX}1.2.4.80"):
        enhanced = make_enhanced_ct(files, folder / "enhanced")
        rows.append(_measured(f"enhanced, {syntax.name}", syntax, enhanced, rounds))
        enhanced[0].unlink()
    if syntax.uid != EXPLICIT_LITTLE:
        for file in files:
            file.unlink()
    return rows


def _encoded(syntax: TransferSyntax, plain: Sequence[Path], folder: Path) -> list[Path] | None:
    """The files in this syntax; None where nothing here can encode it."""
    short = syntax.uid.removeprefix(f"{_PREFIX}1.2.")
    encode = _encoder(syntax, short)
    if syntax.uid == EXPLICIT_LITTLE:
        return list(plain)
    if encode is None:
        return None
    folder.mkdir()
    for path in plain:
        encode(path, folder / path.name)
    return sorted(folder.iterdir())


def _encoder(syntax: TransferSyntax, short: str) -> Callable[[Path, Path], None] | None:
    if short in _BY_PYDICOM:
        return lambda source, to: _by_pydicom(source, to, syntax.uid)
    if short in _DCMCJPEG and Path("/usr/bin/dcmcjpeg").exists():
        return lambda source, to: _run("/usr/bin/dcmcjpeg", _DCMCJPEG[short], source, to)
    option = _DCMCONV.get(syntax.uid.removeprefix(_PREFIX))
    if option is not None and Path("/usr/bin/dcmconv").exists():
        return lambda source, to: _run("/usr/bin/dcmconv", option, source, to)
    if short in ("4.201", "4.202", "4.203") and importlib.util.find_spec("imagecodecs") is not None:
        return lambda source, to: _by_imagecodecs(source, to, syntax.uid)
    return None


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


def _by_pydicom(source: Path, to: Path, uid: str) -> None:
    ds = pydicom.dcmread(source)
    options = {"jls_error": 2} if uid.endswith(".81") else {"j2k_cr": [5]} if uid.endswith(".91") else {}
    ds.compress(uid, generate_instance_uid=False, **options)
    ds.save_as(to)


def _by_imagecodecs(source: Path, to: Path, uid: str) -> None:
    codecs = importlib.import_module("imagecodecs")
    ds = pydicom.dcmread(source)
    ds.PixelData = encapsulate([codecs.htj2k_encode(ds.pixel_array, reversible=not uid.endswith(".203"))])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = uid
    ds.save_as(to)


def _measured(name: str, syntax: TransferSyntax, files: Sequence[Path], rounds: int) -> dict[str, object]:
    ours: list[float] = []
    ratios: list[float] = []
    headers: list[float] = []
    images = 0
    for _ in range(rounds):
        start = time.perf_counter()
        series = read_series(files, LIMITS)
        headers.append(time.perf_counter() - start)
        images = len(series.images)
        start = time.perf_counter()
        to_volume(series)
        ours.append(images / (time.perf_counter() - start))
        theirs = _by_default(files, images)
        if theirs is not None:
            ratios.append(ours[-1] / theirs)
    return {
        "name": name,
        "uid": syntax.uid,
        "plugin": syntax.plugin or "none",
        "images": images,
        "megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 1),
        "headers_s": round(statistics.median(headers), 2),
        "images_per_s": round(statistics.median(ours), 1),
        "ratio_pydicom": round(statistics.median(ratios), 2) if ratios else None,
    }


def _by_default(files: Sequence[Path], images: int) -> float | None:
    """Images a second of pydicom as it comes; None where none of its plugins decodes the syntax."""
    start = time.perf_counter()
    try:
        for file in files:
            _ = pydicom.dcmread(file).pixel_array
    except (RuntimeError, NotImplementedError):
        return None
    return images / (time.perf_counter() - start)


def _table(report: dict[str, object]) -> str:
    rows = report["syntaxes"]
    assert isinstance(rows, list)
    lines = [f"{report['slices']} slices of 512 x 512, {report['machine']}, medians of {report['rounds']}"]
    lines.append(f"{'':44} {'plugin':>10} {'MB':>7} {'headers s':>9} {'images/s':>9} {'x pydicom':>9}")
    for row in rows:
        ratio = "-" if row["ratio_pydicom"] is None else f"{row['ratio_pydicom']:.2f}"
        lines.append(
            f"{row['name'][:44]:44} {row['plugin']:>10} {row['megabytes']:7.1f} {row['headers_s']:9.2f} "
            f"{row['images_per_s']:9.1f} {ratio:>9}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
