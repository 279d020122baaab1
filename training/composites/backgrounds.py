"""A whole chest CT -> a Background: its voxels cropped round the lungs, its findings, and where nodules may go."""

from __future__ import annotations

import csv
import gzip
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Volume
from dicom_node.grids import simple_itk
from dicom_node.lungs import Lungs, find_lungs
from training.cases import DataProblem, Ignored
from training.composites.blend import LungTexture, texture_of
from training.composites.sites import TISSUE_HU, Sites, find_sites, lung_distance_mm
from training.ct import from_image

MARGIN_MM = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A whole scan of the shared data. uid: its series in LUNA16's lists. lesions: known otherwise, seen by eye."""

    archive: str
    uid: str | None = None
    lesions: tuple[Ignored, ...] = ()


SOURCES = {
    "LIDC-IDRI-0001": Source(
        archive="chest_ct/lidc_idri_0001/LIDC-IDRI-0001.tar.xz",
        uid="1.3.6.1.4.1.14519.5.2.1.6279.6001.179049373636438705059720603192",
    ),
    "LIDC-IDRI-0002": Source(
        archive="chest_ct/lidc_idri_0002/LIDC-IDRI-0002.tar.xz",
        uid="1.3.6.1.4.1.14519.5.2.1.6279.6001.619372068417051974713149104919",
    ),
    "C3N-00247": Source(
        archive="chest_ct/cptac_lscc_c3n_00247/C3N-00247.tar.xz",
        lesions=(Ignored(center_mm=(-79.0, -195.0, -194.0), diameter_mm=40.0),),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """A lung to put nodules into.

    volume: the scan's own grid, cropped; world coordinates are the scan's.
    excluded: its own findings, true nodules too: nothing is put there and they count neither way.
    """

    name: str
    volume: Volume
    lungs: Lungs
    sites: Sites
    excluded: tuple[Ignored, ...]
    texture: LungTexture


def read_background(data: Path, name: str) -> Background:
    """One of SOURCES from the shared data. Raises DataProblem where it is missing."""
    source = SOURCES[name]
    archive_file = data / source.archive
    if not archive_file.is_file():
        raise DataProblem(f"{archive_file} is missing: give the folder that holds chest_ct, nodule_voi and luna16")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(archive_file, "r:xz") as archive:
            archive.extractall(folder, filter="data")
        volume = _read_series(Path(folder))
    listed = _listed(data / "luna16", source.uid) if source.uid else ()
    return make_background(name, volume, (*source.lesions, *listed))


def _read_series(folder: Path) -> Volume:
    """The largest series below a folder, slices sorted along the normal by GDCM."""
    sitk = simple_itk()
    series = [
        names
        for sub in sorted({file.parent for file in folder.rglob("*.dcm")})
        for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(sub))
        if (names := sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(sub), uid))
    ]
    return from_image(sitk.ReadImage(max(series, key=len), sitk.sitkInt16))


def make_background(name: str, volume: Volume, excluded: tuple[Ignored, ...]) -> Background:
    """Raises SeriesRejected(NO_LUNG) where nothing looks like a lung."""
    lungs = find_lungs(volume)
    cropped = crop(volume, lungs.box_mm(MARGIN_MM))
    return Background(
        name=name,
        volume=cropped,
        lungs=lungs,
        sites=find_sites(volume, lungs),
        excluded=excluded,
        texture=texture_of(cropped.hu, (cropped.hu < TISSUE_HU) & (lung_distance_mm(lungs, cropped) < -2)),
    )


def crop(volume: Volume, box_mm: NDArray[np.float64]) -> Volume:
    """What lies in the box (2, 3: lowest and highest x, y, z), on the very same grid."""
    corners = np.array(np.meshgrid(*box_mm.T), dtype=np.float64).reshape(3, -1).T
    index = volume.to_index(corners)
    low = np.floor(index.min(axis=0)).clip(0).astype(int)
    high = np.ceil(index.max(axis=0)).clip(max=np.array(volume.hu.shape) - 1).astype(int) + 1
    affine = volume.affine.copy()
    affine[:3, 3] = volume.to_mm(low.astype(np.float64))
    window = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return Volume(hu=np.ascontiguousarray(volume.hu[window]), affine=affine)


def _listed(lists: Path, uid: str) -> tuple[Ignored, ...]:
    """Both of LUNA16's lists: the scan's own nodules are here as little to be learned as its excluded findings."""
    found = []
    for name in ("annotations.csv.gz", "annotations_excluded.csv.gz"):
        try:
            with gzip.open(lists / name, "rt", newline="") as table:
                rows = [row for row in csv.DictReader(table) if row["seriesuid"] == uid]
        except FileNotFoundError as err:
            raise DataProblem(f"{lists / name} is missing: it says what a background holds already") from err
        found += [
            Ignored(
                center_mm=(float(row["coordX"]), float(row["coordY"]), float(row["coordZ"])),
                diameter_mm=float(row["diameter_mm"]),
            )
            for row in rows
        ]
    return tuple(found)
