"""The shared nodule crops (NIfTI + metadata.csv) -> Voi objects, and which of them may be learned from."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_node.domain import Volume
from dicom_node.grids import simple_itk, to_image
from training.cases import DataProblem
from training.ct import read_image, read_labels

# Whole scans of these patients test the model: none of their nodules is ever learned from.
TEST_PATIENTS = frozenset({"LIDC-IDRI-0001", "LIDC-IDRI-0002"})
FORBIDDEN_SUBSET = 9
HELD_OUT_SUBSET = 8
FULL_MM, NONE_MM = 1.0, 3.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Voi:
    """A real nodule in its own surroundings.

    mask: bool, the readers' nodule. blend: uint8, 255 up to 1 mm round the nodule, falling to 0 at 3.5 mm.
    """

    name: str
    patient: str
    subset: int
    diameter_mm: float
    volume: Volume
    mask: NDArray[np.bool_]
    blend: NDArray[np.uint8]

    @property
    def center_mm(self) -> NDArray[np.float64]:
        return self.volume.to_mm(np.argwhere(self.mask).mean(axis=0))


def load_vois(data: Path) -> list[Voi]:
    """All crops below `data`/nodule_voi. Raises DataProblem."""
    path = data / "nodule_voi" / "metadata.csv"
    try:
        with path.open(newline="") as table:
            return [read_voi(data, row) for row in csv.DictReader(table)]
    except FileNotFoundError as err:
        raise DataProblem(f"{path} is missing: give the folder that holds chest_ct, nodule_voi and luna16") from err


def split(vois: Iterable[Voi]) -> tuple[list[Voi], list[Voi]]:
    """(to learn from, held out). Test patients are in neither. Raises DataProblem where subset 9 is among them."""
    vois = list(vois)
    if any(v.subset == FORBIDDEN_SUBSET for v in vois):
        raise DataProblem(
            f"there are nodules of subset {FORBIDDEN_SUBSET}, which is nobody's training data: remove them"
        )
    usable = [v for v in vois if v.patient not in TEST_PATIENTS]
    held_out = [v for v in usable if v.subset == HELD_OUT_SUBSET]
    held_out_patients = {v.patient for v in held_out}
    return [v for v in usable if v.patient not in held_out_patients], held_out


def read_voi(data: Path, row: dict[str, str]) -> Voi:
    """The crop that a row of metadata.csv describes. Raises DataProblem."""
    sitk = simple_itk()
    folder, file = data / "nodule_voi", f"{row['voi']}.nii.gz"
    volume = read_image(folder / "image" / file)
    mask = read_labels(folder / "nodule_mask" / file, volume) > 0
    image = to_image(mask.astype(np.uint8), volume.affine)
    distance = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    weight = ((NONE_MM - sitk.GetArrayFromImage(distance)) / (NONE_MM - FULL_MM)).clip(0, 1)
    return Voi(
        name=row["voi"],
        patient=row["patient_id"],
        subset=int(row["luna16_subset"]),
        diameter_mm=float(row["diameter_mm"]),
        volume=volume,
        mask=mask,
        blend=(255 * weight).astype(np.uint8),
    )
