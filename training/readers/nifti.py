"""Pairs of NIfTI files, a CT and its labels under one name -> Scans. Whole chests, or crops taken as they are."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

from training.cases import Case, DataProblem, Scan
from training.ct import read_image, read_labels
from training.readers import Listing, OnProblem, Problems
from training.readers.masks import Labelling, nodules_of

FOLDERS = (("image", "nodule_mask"), ("images", "labels"))
PATIENTS = "patients.csv"
ENDINGS = (".nii.gz", ".nii")


def list_nifti(
    folder: Path,
    *,
    folders: tuple[str, str] | None = None,
    labelling: Labelling = "components",
    whole_chest: bool = True,
    on_problem: OnProblem = "refuse",
) -> Listing:
    """`folder`/<images>/<name>.nii.gz with `folder`/<labels>/<name>.nii.gz; an empty label image says: no nodule.
    Either may be a plain .nii.

    folders: names of the two; default: image and nodule_mask, or images and labels.
    patients.csv (name, patient) in `folder` tells scans of one patient; without it each scan is a patient.
    Raises DataProblem.
    """
    images, labels = _folders(folder, folders)
    patients = _patients(folder / PATIENTS)
    problems = Problems(on_problem=on_problem)
    scans = []
    volumes, masks = _by_name(images), _by_name(labels)
    for name, path in sorted(volumes.items()):
        mask = masks.get(name)
        if mask is None:
            problems.note(
                name, f"{labels / name}{ENDINGS[0]} is missing: add it, all zero where the scan has no nodule"
            )
        elif patients is not None and not patients.get(name):
            problems.note(name, f"{folder / PATIENTS} does not name it: add its patient, or splits could part them")
        else:
            scans.append(
                Scan(
                    uid=name,
                    patient=name if patients is None else patients[name],
                    subset=None,
                    composite=False,
                    files=(path, mask),
                    truth=f"nifti 1 {labelling}",
                    read=partial(read_case, path, mask, name, labelling),
                    whole_chest=whole_chest,
                )
            )
    for name in sorted(masks.keys() - volumes.keys()):
        problems.note(name, f"{images / name}{ENDINGS[0]} is missing: add it, or remove {masks[name]}")
    if not scans and not problems.left_out:
        raise DataProblem(f"{images} holds no {' or '.join(ENDINGS)} files")
    patients_here = len({scan.patient for scan in scans})
    return Listing(scans=scans, left_out=problems.left_out, summary=[f"{len(scans)} scans of {patients_here} patients"])


def read_case(image: Path, mask: Path, name: str, labelling: Labelling) -> Case:
    """Raises DataProblem."""
    volume = read_image(image)
    return Case(volume=volume, nodules=nodules_of(read_labels(mask, volume), volume, name, labelling), ignored=())


def _by_name(folder: Path) -> dict[str, Path]:
    """The folder's NIfTI files by what they are called before their ending. Raises DataProblem for two of one name."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), None)
        if ending is None:
            continue
        name = path.name.removesuffix(ending)
        if name in found:
            raise DataProblem(f"{found[name]} and {path.name} have one name: remove one of them")
        found[name] = path
    return found


def _folders(folder: Path, named: tuple[str, str] | None) -> tuple[Path, Path]:
    for images, labels in FOLDERS if named is None else (named,):
        if (folder / images).is_dir() and (folder / labels).is_dir():
            return folder / images, folder / labels
    wanted = " or ".join(f"{images}/ and {labels}/" for images, labels in ((named,) if named else FOLDERS))
    raise DataProblem(f"{folder} holds no {wanted}")


def _patients(path: Path) -> dict[str, str] | None:
    if not path.exists():
        return None
    try:
        with path.open(newline="") as file:
            return {row["name"]: row["patient"] for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError) as err:
        raise DataProblem(f"{path} needs the columns name and patient ({err!r})") from err
