"""Two data sets' patient attributes -> whether they may be of one patient, or which attribute speaks against it.

For a comparison a wrong patient's images are worse than none. Nothing here is ever printed.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """Who a data set is of, "" for what it does not say. names: a person name's component groups, each as it came."""

    patient_id: str = field(repr=False)
    issuer: str = field(default="", repr=False)
    birth_date: str = field(default="", repr=False)
    sex: str = field(default="", repr=False)
    names: tuple[str, ...] = field(default=(), repr=False)


def patient_of(header: Dataset) -> Patient:
    """The patient of a header or of a query's answer."""
    name = header.get("PatientName")
    groups = name if isinstance(name, PersonName) else PersonName(str(name or ""))
    return Patient(
        patient_id=_text(header.get("PatientID")),
        issuer=_text(header.get("IssuerOfPatientID")),
        birth_date=re.sub(r"\D", "", _text(header.get("PatientBirthDate"))),
        sex=_text(header.get("PatientSex")).upper(),
        names=(groups.alphabetic, groups.ideographic, groups.phonetic),
    )


def difference(mine: Patient, other: Patient) -> str:
    """What tells the two apart, in words without a value; empty where nothing does.

    The Patient ID must be there and the same. What only one of them says speaks neither for nor against.
    """
    if not mine.patient_id or mine.patient_id != other.patient_id:
        return "Patient ID"
    if mine.issuer and other.issuer and mine.issuer != other.issuer:
        return "issuer of the Patient ID"
    if mine.birth_date and other.birth_date and mine.birth_date != other.birth_date:
        return "birth date"
    # PS3.3 C.7.1.1: O is "other", which a registration may well have said of anybody.
    if {mine.sex, other.sex} == {"M", "F"}:
        return "sex"
    return "" if _one_name(mine.names, other.names) else "name"


def _text(value: object) -> str:
    return ("\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value or "")).strip()


def _one_name(mine: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """By the first component group that both have: the given names, since a family name may change by marriage.

    Without a given name in both, one word must be common. Case, accents and punctuation say nothing.
    """
    for first, second in zip(mine, other, strict=False):
        if _words(first) and _words(second):
            given = [_words((*group.split("^"), "")[1])[:1] for group in (first, second)]
            if all(given):
                return given[0] == given[1]
            return bool(set(_words(first)) & set(_words(second)))
    return True


def _words(text: str) -> list[str]:
    """Lower case, without accents."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return re.findall(r"\w+", plain.casefold())
