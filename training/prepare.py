"""Shared data -> cache: the nodule crops, and the background scans on the 1 mm grid with their ignore lists."""

from __future__ import annotations

import csv
import gzip
import logging
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Volume
from dicom_node.model.spec import PreprocessSpec
from training.compose import Background, background_from, make_background
from training.ct import read_ct
from training.voi import Voi, load_vois

log = logging.getLogger(__name__)

SCANS = {
    "LIDC-IDRI-0001": "chest_ct/lidc_idri_0001/LIDC-IDRI-0001.tar.xz",
    "LIDC-IDRI-0002": "chest_ct/lidc_idri_0002/LIDC-IDRI-0002.tar.xz",
    "C3N-00247": "chest_ct/cptac_lscc_c3n_00247/C3N-00247.tar.xz",
}
# LIDC-IDRI-0001 is the held-out real scan: never a background.
BACKGROUNDS = ("LIDC-IDRI-0002", "C3N-00247")
SERIES = {
    "LIDC-IDRI-0001": "1.3.6.1.4.1.14519.5.2.1.6279.6001.179049373636438705059720603192",
    "LIDC-IDRI-0002": "1.3.6.1.4.1.14519.5.2.1.6279.6001.619372068417051974713149104919",
}
# Seen by eye: the spiculated lesion of the right lung.
KNOWN_LESIONS = {"C3N-00247": [(-79.0, -195.0, -194.0, 20.0)]}


def read_scan(data: Path, name: str) -> Volume:
    """One of the whole scans, straight from its archive of DICOM files."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(data / SCANS[name], "r:xz") as archive:
            archive.extractall(folder, filter="data")
        return read_ct(Path(folder))


def ignored(data: Path, name: str) -> NDArray[np.float64]:
    """(n, 4) x, y, z, radius in LPS mm: excluded findings (no diameter: 10 mm) and lesions known otherwise."""
    spheres = list(KNOWN_LESIONS.get(name, []))
    with gzip.open(data / "luna16" / "annotations_excluded.csv.gz", "rt", newline="") as table:
        for row in csv.DictReader(table):
            if row["seriesuid"] == SERIES.get(name):
                diameter = float(row["diameter_mm"])
                radius = max(diameter if diameter > 0 else 10.0, 6.0) / 2 + 1.0
                spheres.append((float(row["coordX"]), float(row["coordY"]), float(row["coordZ"]), radius))
    return np.array(spheres, dtype=np.float64).reshape(-1, 4)


def prepare(data: Path, cache: Path, prep: PreprocessSpec) -> tuple[list[Background], list[Voi]]:
    """All that training reads. Later calls, and machines without SimpleITK, only need the cache."""
    vois = prepare_vois(data, cache)
    return [_background(data, cache / f"{name}.npz", name, prep) for name in BACKGROUNDS], vois


def prepare_vois(data: Path, cache: Path) -> list[Voi]:
    cache.mkdir(parents=True, exist_ok=True)
    return load_vois(data, cache / "vois.npz")


def _background(data: Path, path: Path, name: str, prep: PreprocessSpec) -> Background:
    if not path.exists():
        log.info("preparing background", extra={"action": "prepare", "scan": name})
        made = make_background(read_scan(data, name), ignored(data, name), prep)
        np.savez(
            path, hu=made.grid.hu, affine=made.grid.affine, distance=made.distance_mm, ignore=made.ignore
        )  # fmt: skip
    with np.load(path, allow_pickle=False) as stored:
        grid = Volume(hu=stored["hu"], affine=stored["affine"])
        return background_from(grid, stored["distance"], stored["ignore"])
