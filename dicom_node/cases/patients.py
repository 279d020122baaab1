"""Patient IDs of a set of studies -> one pseudonym and one part a patient, the same in each export.

A patient has several IDs where a study names others (Other Patient IDs, PS3.3 C.2.2). What was once said is kept beside
the salt, a line an ID, by keyed hashes alone: a link that only a later study tells of can't move anybody.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicom_node.cases.pseudonyms import Part, Pseudonyms
from dicom_node.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a patient's cases go. apart: the same patient is in another part under another ID, so they go nowhere."""

    patient: str
    part: Part
    apart: bool = False


def identities_of(header: Dataset) -> tuple[str, ...]:
    """Each ID of the patient with its issuer, the study's own first; the study's UID where it has none."""
    issuer, own = _text(header.get("IssuerOfPatientID")), _text(header.get("PatientID"))
    if not own:
        return (f"study {header.StudyInstanceUID}",)
    others = header.get("OtherPatientIDs") or ()
    found = [(issuer, own), *((issuer, _text(each)) for each in ([others] if isinstance(others, str) else others))]
    for item in header.get("OtherPatientIDsSequence") or ():
        found.append((_text(item.get("IssuerOfPatientID")) or issuer, _text(item.get("PatientID"))))
    return tuple(dict.fromkeys(f"{whose}\\{text}" for whose, text in found if text))


def settle(studies: Sequence[Sequence[str]], names: Pseudonyms, path: Path) -> dict[str, Place]:
    """The place of each identity. studies: as `identities_of` has each. path: of what was said before.

    IDs that are new follow the oldest that they are linked with. Two that were in different parts before they were
    linked stay as they are said: the older one in its part, the other nowhere. Raises ConfigError.
    """
    try:
        with path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            known = _read(file, path)
            said: dict[str, Place] = {}
            for identities in _linked(studies):
                said |= _place({names.patient(each): each for each in identities}, known | said, names)
            for key, place in said.items():
                if known.get(key) != place:
                    file.write(json.dumps([key, place.patient, place.part, place.apart]) + "\n")
    except OSError as err:
        raise ConfigError(f"{path}: the patients of exports can't be kept: {err.strerror}") from err
    return {each: said[names.patient(each)] for identities in studies for each in identities}


def _place(identities: Mapping[str, str], known: Mapping[str, Place], names: Pseudonyms) -> dict[str, Place]:
    """identities: of one patient, by their keyed hash. known: in the order in which they were said first."""
    before = [place for key, place in known.items() if key in identities and not place.apart]
    root = min(identities)
    oldest = before[0] if before else Place(patient=root, part=names.part(identities[root]))
    places = {}
    for key in identities:
        place = known.get(key, oldest)
        apart = place.apart or place.part != oldest.part
        places[key] = Place(patient=place.patient, part=place.part, apart=apart)
    return places


def _linked(studies: Sequence[Sequence[str]]) -> Iterator[set[str]]:
    """The IDs of each patient: studies that share one are one patient's."""
    patients: list[set[str]] = []
    for identities in studies:
        together = set(identities)
        others = []
        for patient in patients:
            if patient & together:
                together |= patient
            else:
                others.append(patient)
        patients = [*others, together]
    yield from patients


def _read(file: IO[str], path: Path) -> dict[str, Place]:
    file.seek(0)
    known: dict[str, Place] = {}
    for line in file.read().splitlines():
        try:
            key, patient, part, apart = json.loads(line)
            known[key] = Place(patient=patient, part=part, apart=apart)
        except ValueError as err:
            raise ConfigError(f"{path} holds a line that is none of ours: put it back from a backup") from err
    return known


def _text(value: Any) -> str:
    return ("\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value or "")).strip()
