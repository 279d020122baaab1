"""A patient, a time and an archive -> earlier studies of that very patient, newest first, and what of ours is in them.

Asks by C-FIND or QIDO-RS; what an archive says of a patient is compared, never kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from pydicom.dataset import Dataset

from dicom_node.dimse.query import related_instances
from dicom_node.dimse.retrieve import SeriesKey
from dicom_node.patients import Patient, difference, patient_of
from dicom_node.pull import Ask
from dicom_node.results.headers import SERIES_NUMBER, Kind
from dicom_node.storage import checked_uid

# What a study is dated by, where it has no StudyDate (PS3.3 C.7.2.1: type 2, may be empty).
_DATES = (("StudyDate", "StudyTime"), ("SeriesDate", "SeriesTime"), ("AcquisitionDate", "AcquisitionTime"))
_OURS = "Lung nodules"


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """A date, YYYYMMDD, and a time, HHMMSS or "" where it is not known."""

    date: str
    time: str = ""

    def is_before(self, other: When) -> bool:
        """False in doubt: of one day, and one of the times is not known."""
        if self.date != other.date:
            return self.date < other.date
        return bool(self.time and other.time) and self.time < other.time

    @property
    def text(self) -> str:
        return f"{self.date[:4]}-{self.date[4:6]}-{self.date[6:]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Current:
    """The series that is to be compared: whose it is and when its study was made."""

    patient: Patient
    study_uid: str
    when: When
    description: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierStudy:
    """A study of the same patient that was made before."""

    study_uid: str
    when: When
    patient_id: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierSeries:
    """One series of such a study. there: how many Instances the archive has of it, None where it does not say."""

    key: SeriesKey
    modality: str
    number: str
    description: str = field(repr=False)
    there: int | None

    @property
    def may_be_our_report(self) -> bool:
        """By what an archive tells of a series; the report itself has the last word."""
        if self.modality != "SR":
            return False
        if self.number:
            return self.number == str(SERIES_NUMBER[Kind.REPORT])
        return not self.description or _OURS in self.description


def current_of(header: Dataset) -> Current | None:
    """None where the header tells no date."""
    when = _when(header, _DATES)
    if when is None:
        return None
    return Current(
        patient=patient_of(header),
        study_uid=str(header.get("StudyInstanceUID") or ""),
        when=when,
        description=str(header.get("SeriesDescription") or ""),
    )


def earlier_studies(ask: Ask, current: Current, max_age_days: float) -> tuple[list[EarlierStudy], list[str]]:
    """Studies with CT before `current`, newest first; and what told those apart that cannot be of the same patient."""
    latest = date.fromisoformat(current.when.date).toordinal()
    oldest = date.fromordinal(max(1, latest - int(max_age_days))).isoformat().replace("-", "")
    empty = ("StudyInstanceUID", "StudyTime", "PatientName", "PatientBirthDate", "PatientSex", "IssuerOfPatientID",
             "ModalitiesInStudy")  # fmt: skip
    # PS3.4 C.2.2.2.5: a range of dates.
    keys = dict.fromkeys(empty, "") | {
        "PatientID": current.patient.patient_id,
        "StudyDate": f"{oldest}-{current.when.date}",
    }
    found: list[EarlierStudy] = []
    strangers: list[str] = []
    for answer in ask("STUDY", keys).data_sets:
        uid, when = str(answer.StudyInstanceUID), _when(answer, _DATES[:1])
        if uid == current.study_uid or when is None or not oldest <= when.date or not when.is_before(current.when):
            continue
        if not _may_have(answer, "CT"):
            continue
        if unlike := difference(current.patient, patient_of(answer)):
            strangers.append(unlike)
            continue
        found.append(EarlierStudy(study_uid=uid, when=when, patient_id=current.patient.patient_id))
    return sorted(found, key=lambda study: (study.when.date, study.when.time, study.study_uid), reverse=True), strangers


def series_of(ask: Ask, study: EarlierStudy) -> list[EarlierSeries]:
    """All series of a study."""
    above = {"PatientID": study.patient_id, "StudyInstanceUID": study.study_uid}
    empty = ("SeriesInstanceUID", "Modality", "SeriesNumber", "SeriesDescription", "NumberOfSeriesRelatedInstances")
    found: list[EarlierSeries] = []
    for answer in ask("SERIES", {**above, **dict.fromkeys(empty, "")}).data_sets:
        key = SeriesKey(
            study_uid=study.study_uid, series_uid=str(answer.SeriesInstanceUID), patient_id=study.patient_id
        )
        found.append(
            EarlierSeries(
                key=key,
                modality=str(answer.get("Modality") or "").strip(),
                number=str(answer.get("SeriesNumber") or "").strip(),
                description=str(answer.get("SeriesDescription") or ""),
                there=related_instances(answer, "NumberOfSeriesRelatedInstances"),
            )
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Cited:
    """What a report of ours is about: one CT series of its study, and the segmentation, where there is one.

    segmentation: Series and SOP Instance UID.
    """

    series_uid: str
    images: frozenset[str]
    segmentation: tuple[str, str] | None


def cited_by(report: Dataset, ct_classes: Iterable[str], seg_classes: Iterable[str]) -> Cited | None:
    """From its evidence of its own study (PS3.3 C.17.2.3); None where that names no CT. Raises InvalidUID."""
    images: dict[str, set[str]] = {}
    segmentation: tuple[str, str] | None = None
    for series_uid, class_uid, instance_uid in _evidence(report):
        if class_uid in ct_classes:
            images.setdefault(series_uid, set()).add(instance_uid)
        elif class_uid in seg_classes:
            segmentation = series_uid, instance_uid
    if not images:
        return None
    series_uid = max(images, key=lambda uid: (len(images[uid]), uid))
    return Cited(series_uid=series_uid, images=frozenset(images[series_uid]), segmentation=segmentation)


def _evidence(report: Dataset) -> Sequence[tuple[str, str, str]]:
    """Series Instance UID, SOP Class UID, SOP Instance UID."""
    return [
        (
            checked_uid(series.SeriesInstanceUID, "SeriesInstanceUID"),
            str(instance.ReferencedSOPClassUID),
            checked_uid(instance.ReferencedSOPInstanceUID, "ReferencedSOPInstanceUID"),
        )
        for study in report.get("CurrentRequestedProcedureEvidenceSequence") or ()
        if study.StudyInstanceUID == report.StudyInstanceUID
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    ]


def _when(header: Dataset, keywords: Iterable[tuple[str, str]]) -> When | None:
    for date_keyword, time_keyword in keywords:
        day = re.sub(r"\D", "", str(header.get(date_keyword) or ""))
        if not _is_date(day):
            continue
        at = re.sub(r"\D.*", "", str(header.get(time_keyword) or "").replace(":", ""))
        return When(date=day, time=at[:6] if len(at) >= len("HHMMSS") else "")
    return None


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return len(text) == len("YYYYMMDD")


def _may_have(study: Dataset, modality: str) -> bool:
    """False where the archive says which modalities the study has, and this is none of them."""
    said: Any = study.get("ModalitiesInStudy")
    values = [said] if isinstance(said, str) else list(said or ())
    return not any(values) or modality in values
