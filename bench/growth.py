"""How well the lungs of two CTs are laid on each other, where the truth is known; and what keeps two patients apart.

Three real scans are moved by known maps (tests/fakes/moved.py), each compared with its moved self and with the others.
Prints Markdown tables for docs/growth.md. Errors are distances at 300 places in the lungs, in the present exam.
"""

from __future__ import annotations

import argparse
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dicom_node.config import GateConfig
from dicom_node.domain import Volume
from dicom_node.grids import simple_itk
from dicom_node.growth.alignment import align
from dicom_node.growth.quality import fault, figures
from dicom_node.lungs import Lungs, find_lungs
from dicom_node.series import read_series, to_volume
from tests.fakes.moved import motion, moved

SCANS = ("lidc_idri_0001/LIDC-IDRI-0001", "lidc_idri_0002/LIDC-IDRI-0002", "cptac_lscc_c3n_00247/C3N-00247")
TURNED = motion(degrees=(3.0, 2.0, -5.0), shift_mm=(5.0, 10.0, -10.0))
CASES: dict[str, dict[str, Any]] = {
    "turned by 20 degrees, stretched by 15 %, 60 mm off": {
        "matrix": motion(degrees=(12.0, -8.0, 15.0), scale=(1.0, 1.0, 1.15), shift_mm=(20.0, -30.0, 50.0)),
        "noise_hu": 30.0,
    },
    "affine, denser by 20 HU": {
        "matrix": motion(degrees=(3.0, 2.0, -5.0), scale=(1.03, 0.97, 1.08), shift_mm=(-25.0, 10.0, -40.0)),
        "noise_hu": 30.0,
        "shift_hu": 20.0,
    },
    "the lower 55 %": {"matrix": TURNED, "noise_hu": 20.0, "z_mm": (0.0, 0.55)},
    "the upper 50 %": {"matrix": TURNED, "noise_hu": 20.0, "z_mm": (0.5, 1.0)},
    "breath of 25 mm": {"matrix": TURNED, "noise_hu": 20.0, "breath_mm": 25.0},
    "breath of 40 mm, denser by 40 HU, noise of 50 HU": {
        "matrix": TURNED,
        "noise_hu": 50.0,
        "breath_mm": 40.0,
        "shift_hu": 40.0,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="bench/growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds chest_ct")
    data = parser.parse_args().data
    simple_itk().ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    scans = dict(_scans(data))
    lungs = {name: find_lungs(volume) for name, volume in scans.items()}
    print("| moved | affine map: median, 95 % | corrected: median, 95 %, largest | landmarks | correlation | CPU s |")
    print("|---|---|---|---|---|---|")
    for case, how in CASES.items():
        print(_moved_row(case, how, scans, lungs), flush=True)
    print("\n| two patients | Dice | correlation | landmarks | verdict |\n|---|---|---|---|---|")
    for here in scans:
        for there in scans:
            if here != there:
                print(_strangers_row(here, there, lungs), flush=True)


def _scans(data: Path) -> Iterator[tuple[str, Volume]]:
    for path in SCANS:
        with tempfile.TemporaryDirectory() as folder, tarfile.open(data / "chest_ct" / f"{path}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
            series = read_series(sorted(Path(folder).rglob("*.dcm")), GateConfig())
            yield path.split("/")[1], to_volume(series)


def _moved_row(case: str, how: dict[str, Any], scans: dict[str, Volume], lungs: dict[str, Lungs]) -> str:
    """All three scans together; figures of quality: the worst of the three; time: the longest, lungs found included."""
    plain, corrected, found, alike, seconds = [], [], [], [], []
    for name, volume in scans.items():
        here = lungs[name]
        other = moved(volume, spacing_mm=(2.0, 0.8, 0.8), lungs=here, **how)
        start = time.process_time()
        there = find_lungs(other.volume)
        alignment = align(here, there)
        seconds.append(time.process_time() - start)
        quality = figures(here, there, alignment)
        assert fault(quality) is None, fault(quality)
        found.append(quality["landmarks found [%]"])
        alike.append(quality["lung correlation"])
        inside = np.argwhere(here.distance_mm < -4)
        chosen = np.random.default_rng(1).choice(len(inside), 300, replace=False)
        points = here.grid.to_mm(inside[chosen].astype(np.float64))
        places = other.place_of(points)
        index = other.volume.to_index(places)
        shown = ((index > 0) & (index < np.array(other.volume.hu.shape) - 1)).all(axis=1)
        back = np.array([alignment.to_current(place)[0] for place in places[shown]])
        plain.append(np.linalg.norm(alignment.affine.inverse()(places[shown]) - points[shown], axis=1))
        corrected.append(np.linalg.norm(back - points[shown], axis=1))
    before, after = np.concatenate(plain), np.concatenate(corrected)
    return (
        f"| {case} | {np.median(before):.1f}, {np.percentile(before, 95):.1f} mm "
        f"| {np.median(after):.1f}, {np.percentile(after, 95):.1f}, {after.max():.1f} mm "
        f"| {min(found):.0f} % | {min(alike):.2f} | {max(seconds):.1f} |"
    )


def _strangers_row(here: str, there: str, lungs: dict[str, Lungs]) -> str:
    quality = figures(lungs[here], lungs[there], align(lungs[here], lungs[there]))
    return (
        f"| {here} and {there} | {quality['lung overlap, Dice']:.2f} | {quality['lung correlation']:.2f} "
        f"| {quality['landmarks found [%]']:.0f} % | {fault(quality) or 'TAKEN FOR ONE'} |"
    )


if __name__ == "__main__":
    main()
