"""A peer's comment is kept, but for what it quotes of the object's patient."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.dimse.comments import without_identity
from dicom_node.dimse.scu import outcome_of
from tests.fakes.ct import make_ct_series

HEADER = {
    "PatientName": "Kanarienvogel^Zybelle",
    "PatientID": "KNR(77431)",
    "PatientBirthDate": "19330917",
    "AccessionNumber": "KNRACC99182",
    "InstitutionName": "Knrhospital",
    "PatientComments": "Knrcomment",
}
WORDS = ("Kanarienvogel", "Zybelle", "KNR(77431)", "19330917", "KNRACC99182", "Knrhospital", "Knrcomment")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ct_series(tmp_path_factory.mktemp("one"), shape=(2, 16, 16), header=HEADER)[0]


def test_the_attribute_stands_where_its_value_stood(path: Path) -> None:
    said = "duplicate of KANARIENVOGEL, Zybelle (KNR(77431)), born 19330917, at line 12"
    assert without_identity(said, path) == (
        "duplicate of [PatientName], [PatientName] ([PatientID]), born [PatientBirthDate], at line 12"
    )
    assert outcome_of(path, 0xA900, "KNRACC99182 differs").message.endswith("(0xa900): [AccessionNumber] differs")


def test_a_comment_that_names_nobody_stays_as_it_is(path: Path) -> None:
    assert without_identity("out of tablespace ORA-01653", path) == "out of tablespace ORA-01653"
    assert without_identity("", path) == ""


def test_nothing_is_kept_of_a_comment_on_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_bytes(b"nothing")
    assert "Zybelle" not in without_identity("no such patient Zybelle", tmp_path / "x.dcm")


@settings(deadline=None, max_examples=60)
@given(parts=st.lists(st.sampled_from(WORDS) | st.text(max_size=8), max_size=8), glue=st.sampled_from(["", " ", "^"]))
def test_no_mixture_lets_a_value_through(path: Path, parts: list[str], glue: str) -> None:
    told = without_identity(glue.join(parts), path).lower()
    assert [word for word in WORDS if word.lower() in told] == []
