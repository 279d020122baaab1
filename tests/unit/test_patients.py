"""Who is who: a wrong patient is never taken for the right one, and a new family name makes nobody another."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.valuerep import PersonName

from dicom_node.patients import difference, patient_of

WHO = {"PatientID": "4711", "PatientName": "Doe^Jane", "PatientBirthDate": "19700102", "PatientSex": "F"}


def header(**over: Any) -> Dataset:
    made = Dataset()
    for keyword, value in {**WHO, **over}.items():
        if value is not None:
            setattr(made, keyword, value)
    return made


def told(mine: dict[str, Any], other: dict[str, Any]) -> str:
    """Both ways round: none of the two is the better known."""
    first, second = patient_of(header(**mine)), patient_of(header(**other))
    assert difference(first, second) == difference(second, first)
    return difference(first, second)


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"PatientID": " 4711 "},
        {"PatientName": "DOE^JANE"},
        {"PatientName": "Doe^Jane^Mary^^Dr"},
        {"PatientName": "Smith^Jane"},
        {"PatientName": "Jane Doe"},
        {"PatientName": "Doe^J."},
        {"PatientName": "DOE"},
        {"PatientName": ""},
        {"PatientName": None, "PatientBirthDate": None, "PatientSex": None},
        {"PatientSex": "O"},
        {"PatientBirthDate": "1970.01.02"},
        {"IssuerOfPatientID": "HERE"},
    ],
)
def test_the_same_patient_as_another_system_writes_it(other: dict[str, Any]) -> None:
    assert told({}, other) == ""


@pytest.mark.parametrize(
    ("mine", "other", "what"),
    [
        ({}, {"PatientID": "4712"}, "Patient ID"),
        ({}, {"PatientID": "04711"}, "Patient ID"),
        ({"PatientID": ""}, {"PatientID": ""}, "Patient ID"),
        ({"PatientID": None}, {"PatientID": None}, "Patient ID"),
        ({"IssuerOfPatientID": "HERE"}, {"IssuerOfPatientID": "THERE"}, "issuer of the Patient ID"),
        ({}, {"PatientBirthDate": "19700201"}, "birth date"),
        ({}, {"PatientSex": "M"}, "sex"),
        ({}, {"PatientName": "Doe^Joan"}, "name"),
        ({}, {"PatientName": "Doe^K"}, "name"),
        ({}, {"PatientName": "Smith"}, "name"),
    ],
)
def test_what_speaks_against_a_patient_is_named(mine: dict[str, Any], other: dict[str, Any], what: str) -> None:
    assert told(mine, other) == what


@pytest.mark.parametrize(
    ("mine", "other", "what"),
    [
        # PS3.5 H.3 and I.2: alphabetic, ideographic and phonetic groups; a system may keep some of them alone.
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "=山田^太郎", ""),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada^Tarou", ""),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "=山田^次郎", "name"),
        ("Hong^Gildong=洪^吉洞=홍^길동", "HONG^GILDONG", ""),
        ("Müller^Jürgen", "Mueller^Jurgen", ""),
        ("=山田^太郎", "Yamada^Tarou", ""),
    ],
)
def test_names_in_any_script_are_compared_by_the_group_that_both_have(mine: str, other: str, what: str) -> None:
    assert told({"PatientName": PersonName(mine)}, {"PatientName": PersonName(other)}) == what


def test_a_patient_is_never_printed() -> None:
    shown = repr(patient_of(header()))
    assert not any(str(value) in shown for value in WHO.values())
