"""What is asked for in an archive -> keys of its queries, and what of its answers is meant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pydicom.dataset import Dataset

from dicom_node.errors import ConfigError, InvalidUID
from dicom_node.storage import checked_uid

# Keys of a study (PS3.4 Tables C.6-1, C.6-2 and C.6-5, and what archives match besides); all others are of a series.
_STUDY_KEYS = frozenset(
    {
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "AccessionNumber",
        "StudyID",
        "StudyInstanceUID",
        "StudyDescription",
        "ModalitiesInStudy",
        "ReferringPhysicianName",
        "InstitutionName",
    }
)
_UNITS = {"h": 1.0, "d": 24.0}
_LONGEST_H = 24 * 365.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which series. since: studies of this local time and later. match: further keys, by DICOM keyword."""

    study_uid: str = ""
    series_uid: str = ""
    patient_id: str = ""
    accession: str = ""
    since: datetime | None = None
    match: Mapping[str, str] = field(default_factory=lambda: {"Modality": "CT"})

    def __post_init__(self) -> None:
        if not (self.study_uid or self.patient_id or self.accession or self.since):
            raise ConfigError("say what to pull: --study, --patient, --accession or --since")
        if self.series_uid and not self.study_uid:
            raise ConfigError("--series needs the --study that it belongs to")
        for name, uid in (("--study", self.study_uid), ("--series", self.series_uid)):
            try:
                if uid:
                    checked_uid(uid, name)
            except InvalidUID as err:
                raise ConfigError(str(err)) from err
        for name, value in (("--patient", self.patient_id), ("--accession", self.accession)):
            if set(value) & set("*?\\"):
                raise ConfigError(f"{name} is one value, without *, ? and backslash: they would match others too")


def parse_age(text: str) -> timedelta:
    """12h or 2d. Raises ConfigError."""
    match = re.fullmatch(r"(\d{1,5})([hd])", text.strip())
    hours = int(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < hours <= _LONGEST_H:
        raise ConfigError(f"{text!r} is no time back: give hours or days, like 12h or 2d, at most 365d")
    return timedelta(hours=hours)


def study_keys(wanted: Selection) -> dict[str, str]:
    """Keys of the query for studies; an empty one is only asked for."""
    keys = {"StudyInstanceUID": "", "StudyDate": "", "StudyTime": "", "PatientID": "", "ModalitiesInStudy": ""}
    keys |= {name: value for name, value in wanted.match.items() if name in _STUDY_KEYS}
    given = {
        "StudyInstanceUID": wanted.study_uid,
        "PatientID": wanted.patient_id,
        "AccessionNumber": wanted.accession,
        # PS3.4 C.2.2.2.5: from this day on. The hour is looked at here.
        "StudyDate": "" if wanted.since is None else f"{wanted.since:%Y%m%d}-",
    }
    return keys | {name: value for name, value in given.items() if value}


def series_keys(wanted: Selection, study_uid: str, patient_id: str) -> dict[str, str]:
    """The same for the series of one study."""
    keys = {"Modality": "", "NumberOfSeriesRelatedInstances": ""}
    keys |= {name: value for name, value in wanted.match.items() if name not in _STUDY_KEYS}
    return keys | {"PatientID": patient_id, "StudyInstanceUID": study_uid, "SeriesInstanceUID": wanted.series_uid}


def is_since(study: Dataset, since: datetime | None) -> bool:
    """A study without a readable date and time is not left out: the archive's own match counts then."""
    if since is None:
        return True
    date, at = digits(study.get("StudyDate"))[:8], digits(study.get("StudyTime"))[:6]
    if len(date) != 8 or len(at) != 6:
        return len(date) != 8 or date >= f"{since:%Y%m%d}"
    return date + at >= f"{since:%Y%m%d%H%M%S}"


def may_hold(study: Dataset, modality: str) -> bool:
    """False where the archive says which modalities the study has, and none is asked for: spares a question."""
    said = study.get("ModalitiesInStudy")
    values = [said] if isinstance(said, str) else list(said or [])
    return not modality or not values or any(is_one_of(str(value), modality) for value in values)


def is_one_of(value: str, wanted: str) -> bool:
    """Wild cards in `wanted` are for the archive to match."""
    return not wanted or set(wanted) & set("*?") != set() or value.strip() in wanted.split("\\")


def digits(value: object) -> str:
    return re.sub(r"\D", "", str(value or ""))
