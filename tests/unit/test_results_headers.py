"""What results copy from their source: patients, studies and texts in every character set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.valuerep import PersonName

from dicom_node.domain import CTSeries
from dicom_node.errors import Reason, ResultError, SeriesRejected
from dicom_node.results import build_rejection, build_results, to_bytes
from dicom_node.results.build import refuse
from dicom_node.results.reading import Refusal
from dicom_node.results.sr import build_not_analysed
from dicom_node.results.sr_cad import build_cad_not_analysed, build_cad_report
from dicom_node.results.sr_text import build_text_not_analysed, build_text_report
from dicom_node.results.uids import derive_uid
from dicom_node.series import read_series, to_volume
from tests.fakes.ct import make_ct_series
from tests.fakes.findings import JOB, MODEL, ball, detection_of

# PS3.5 annexes H to K: the names that the standard itself gives as examples.
JAPANESE = "Yamada^Tarou=山田^太郎=やまだ^たろう"
KATAKANA = "ﾔﾏﾀﾞ^ﾀﾛｳ"
KOREAN = "Hong^Gildong=洪^吉洞=홍^길동"
CHINESE_GB18030 = "Wang^XiaoDong=王^小东"
CHINESE_UTF_8 = "Wang^XiaoDong=王^小東"
# PS3.5 K.2, as bytes: pydicom 3.0 writes them without the escape sequences.
GB2312 = b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab"

SeriesMaker = Callable[..., CTSeries]


@pytest.fixture
def make_series(tmp_path: Path) -> SeriesMaker:
    def make(**header: Any) -> CTSeries:
        return read_series(make_ct_series(tmp_path / "ct", shape=(44, 16, 16), header=header))

    return make


def reread(ds: Dataset) -> Dataset:
    """As a receiver sees it."""
    return pydicom.dcmread(BytesIO(to_bytes(ds)))


def all_results(series: CTSeries, **job: Any) -> list[Dataset]:
    """SEG and, in all three kinds, reports of findings, of none and of no analysis, re-read from their bytes."""
    volume = to_volume(series)
    job = {**JOB, **job}
    found = build_results(series, volume, detection_of(ball(volume, (20, 8, 8), 3.0)), **job)
    none = build_results(series, volume, detection_of(), **job)
    refusal = refusal_of(series, **job)
    made = (
        *(made.ds for made in (*found.objects, *none.objects)),
        *(build_text_report(each.reading) for each in (found, none)),
        *(build_cad_report(each.reading) for each in (found, none)),
        build_not_analysed(refusal),
        build_text_not_analysed(refusal),
        build_cad_not_analysed(refusal),
    )
    return [reread(ds) for ds in made]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    """All results of a plain series."""
    return all_results(read_series(make_ct_series(tmp_path_factory.mktemp("ct"), shape=(44, 16, 16))))


def refusal_of(series: CTSeries, **job: Any) -> Refusal:
    instances = [(str(image.header.SOPClassUID), image.sop_instance_uid) for image in series.images]
    rejected = SeriesRejected(Reason.SLICE_GAP, "gap of 5.00 mm after slice 12 of 44, elsewhere 2.50 mm")
    return refuse(series.header, instances, rejected, **{**JOB, **job})


def rejection(series: CTSeries, **job: Any) -> Dataset:
    return build_not_analysed(refusal_of(series, **job))


@pytest.mark.parametrize(
    ("charset", "name", "expected"),
    [
        (["", "ISO 2022 IR 87"], JAPANESE, "ISO_IR 192"),
        (["ISO 2022 IR 13", "ISO 2022 IR 87"], f"{KATAKANA}=山田^太郎=やまだ^たろう", "ISO_IR 192"),
        ("ISO_IR 13", KATAKANA, "ISO_IR 13"),
        ("GBK", CHINESE_GB18030, "GBK"),
        ("ISO_IR 166", "นามสกุล^ชื่อ", "ISO_IR 166"),
        (["ISO 2022 IR 6", "ISO 2022 IR 166"], "Somchai^Thai=นามสกุล^ชื่อ", "ISO_IR 192"),
        (["", "ISO 2022 IR 149"], KOREAN, "ISO_IR 192"),
        ("GB18030", CHINESE_GB18030, "GB18030"),
        ("ISO_IR 192", CHINESE_UTF_8, "ISO_IR 192"),
        ("ISO_IR 100", "Äneas^Rüdiger", "ISO_IR 100"),
        (["", "ISO 2022 IR 100"], "Äneas^Rüdiger", "ISO_IR 192"),
        ("ISO_IR 101", "Wałęsa^Łukasz", "ISO_IR 101"),
        ("ISO_IR 109", "Ċensu^Ħaż", "ISO_IR 109"),
        ("ISO_IR 110", "Bērziņš^Jānis", "ISO_IR 110"),
        ("ISO_IR 144", "Люкceмбypг", "ISO_IR 144"),  # noqa: RUF001
        ("ISO_IR 127", "قباني^لنزار", "ISO_IR 127"),
        ("ISO_IR 126", "Διονυσιος", "ISO_IR 126"),
        ("ISO_IR 138", "שרון^דבורה", "ISO_IR 138"),
        ("ISO_IR 148", "Çavuşoğlu", "ISO_IR 148"),
        (["ISO 2022 IR 100", "ISO 2022 IR 144", "ISO 2022 IR 126"], "Dionysios=Люкceмбypг=Διονυσιος", "ISO_IR 192"),  # noqa: RUF001
        (None, "Buc^Jerome", None),
    ],
)
def test_names_survive_in_every_character_set(
    make_series: SeriesMaker, charset: Any, name: str, expected: str | None
) -> None:
    series = make_series(SpecificCharacterSet=charset, PatientName=name)

    for ds in all_results(series):
        assert ds.PatientName == name
        assert ds.get("SpecificCharacterSet") == expected


def test_escape_sequences_of_gb2312_are_no_part_of_a_name(make_series: SeriesMaker) -> None:
    name = PersonName(GB2312, ["iso8859", "iso_ir_58"])
    series = make_series(SpecificCharacterSet=["", "ISO 2022 IR 58"], PatientName=name)
    assert series.header.PatientName.original_string.rstrip(b" ") == GB2312

    for ds in all_results(series):
        assert ds.PatientName == "Zhang^XiaoDong=张^小东"
        assert ds.SpecificCharacterSet == "ISO_IR 192"


def test_name_keeps_its_bytes_where_the_character_set_is_kept(make_series: SeriesMaker) -> None:
    series = make_series(SpecificCharacterSet="GB18030", PatientName=CHINESE_GB18030)

    for ds in all_results(series):
        assert ds.PatientName.original_string.rstrip(b" ") == CHINESE_GB18030.encode("gb18030")


def test_text_within_sequences_survives_a_change_of_character_set(make_series: SeriesMaker) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99X", "胸部"
    other = Dataset()
    other.PatientID, other.TypeOfPatientID = "2", "TEXT"
    other.IssuerOfPatientID = "病院"
    series = make_series(
        SpecificCharacterSet=["", "ISO 2022 IR 87"],
        StudyDescription="胸部 CT",
        ProcedureCodeSequence=[code],
        OtherPatientIDsSequence=[other],
    )

    for ds in all_results(series):
        assert ds.StudyDescription == "胸部 CT"
        assert ds.ProcedureCodeSequence[0].CodeMeaning == "胸部"
        assert ds.OtherPatientIDsSequence[0].IssuerOfPatientID == "病院"


def test_patient_and_study_are_copied_and_the_series_is_not(make_series: SeriesMaker) -> None:
    series = make_series(
        IssuerOfPatientID="Hospital", PatientAge="056Y", PatientComments="none", BodyPartExamined="CHEST"
    )

    for ds in all_results(series):
        for keyword in (
            "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "IssuerOfPatientID", "PatientAge",
            "PatientComments", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
            "StudyDescription", "ReferringPhysicianName",
        ):  # fmt: skip
            assert ds[keyword].value == series.header[keyword].value, keyword
        for keyword in ("SeriesInstanceUID", "SeriesNumber", "Modality", "Manufacturer", "SeriesDescription"):
            assert ds[keyword].value != series.header[keyword].value, keyword


@pytest.mark.parametrize("present", ["", None])
def test_missing_and_empty_attributes_are_present_and_empty(make_series: SeriesMaker, present: str | None) -> None:
    keywords = (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
        "AccessionNumber", "ReferringPhysicianName",
    )  # fmt: skip
    series = make_series(**dict.fromkeys(keywords, present))

    for ds in all_results(series):
        assert [keyword for keyword in keywords if ds[keyword].value] == []


def test_odd_values_are_copied_as_they_are(make_series: SeriesMaker) -> None:
    series = make_series(PatientSex="X", PatientName="NoCaret")

    for ds in all_results(series):
        assert (ds.PatientSex, ds.PatientName) == ("X", "NoCaret")


def test_time_of_the_job_is_the_only_time(make_series: SeriesMaker) -> None:
    for ds in all_results(make_series(), made_at=datetime(2026, 3, 4, 5, 6, 7, 89)):
        for of in ("Content", "InstanceCreation", "Series"):
            assert (ds[f"{of}Date"].value, ds[f"{of}Time"].value) == ("20260304", "050607.000089")


def test_time_is_told_on_the_clock_of_the_source(make_series: SeriesMaker) -> None:
    series = make_series(TimezoneOffsetFromUTC="-0330")

    for ds in all_results(series, made_at=datetime(2026, 3, 4, 1, 0, tzinfo=UTC)):
        assert ds.TimezoneOffsetFromUTC == "-0330"
        assert (ds.ContentDate, ds.ContentTime) == ("20260303", "213000.000000")


def test_model_is_named_as_processing_equipment(results: list[Dataset]) -> None:
    rejected = [ds for ds in results if "NOT ANALYSED" in ds.SeriesDescription]
    analysed = [ds for ds in results if "NOT ANALYSED" not in ds.SeriesDescription]

    assert (len(analysed), len(rejected)) == (7, 3)
    for ds in analysed:
        (equipment,) = ds.ContributingEquipmentSequence
        assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert equipment.ManufacturerModelName == "nodules"
        assert list(equipment.SoftwareVersions) == ["1.2.3", "5e" * 32]
        assert equipment.DeviceUID == derive_uid("model", "5e" * 32)
    assert not any("ContributingEquipmentSequence" in ds for ds in rejected)


def test_every_result_says_what_it_is_for(results: list[Dataset]) -> None:
    for ds in results:
        assert "Research use, not for diagnosis" in ds.SeriesDescription
        assert len(ds.SeriesDescription) <= 64


def test_results_stand_in_fixed_places_of_the_study(results: list[Dataset]) -> None:
    numbers = [(ds.Modality, ds.SeriesNumber) for ds in results]

    assert numbers == [
        ("SEG", 9100), ("SR", 9200), ("SR", 9200),
        ("SR", 9210), ("SR", 9210), ("SR", 9220), ("SR", 9220),
        ("SR", 9300), ("SR", 9210), ("SR", 9220),
    ]  # fmt: skip


def test_file_says_who_wrote_it(results: list[Dataset]) -> None:
    for ds in results:
        assert ds.file_meta.ImplementationVersionName.startswith("DICOM_NODE_")
        assert ds.file_meta.ImplementationClassUID.startswith("2.25.")
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID


def test_model_with_a_foreign_name_makes_the_result_utf_8(make_series: SeriesMaker) -> None:
    series = make_series(SpecificCharacterSet="ISO_IR 100", PatientName="Äneas^Rüdiger")
    volume = to_volume(series)
    detection = replace(detection_of(), model=replace(MODEL, name="結節"))

    ds = reread(build_results(series, volume, detection, **JOB).sr)

    assert ds.SpecificCharacterSet == "ISO_IR 192"
    assert ds.PatientName == "Äneas^Rüdiger"
    assert ds.ContributingEquipmentSequence[0].ManufacturerModelName == "結節"


def test_reason_in_foreign_letters_makes_the_report_utf_8(make_series: SeriesMaker) -> None:
    series = make_series(SpecificCharacterSet="ISO_IR 100", PatientName="Äneas^Rüdiger")

    instances = [("1.2.840.10008.5.1.4.1.1.7", "1.2.5")]
    ds = reread(build_rejection(series.header, instances, SeriesRejected(Reason.NOT_CT, "Modality is '断層'"), **JOB))

    assert (ds.SpecificCharacterSet, ds.PatientName) == ("ISO_IR 192", "Äneas^Rüdiger")
    said = ds.ContentSequence[-1].ContentSequence
    assert any(item.get("TextValue", "").endswith("NOT_CT: Modality is '断層'") for item in said)


# Offsets go from -1200 to +1400 (PS3.3 C.12.1.1.8); Python refuses those of a day or more.
@pytest.mark.parametrize("offset", ["EST", "+2400", "-9959", "+0260", "+1500", "100"])
def test_impossible_time_zone_of_the_source_is_not_used(make_series: SeriesMaker, offset: str) -> None:
    series = make_series(TimezoneOffsetFromUTC=offset)

    report = rejection(series, made_at=datetime(2026, 3, 4, 1, 0, tzinfo=UTC))

    assert (report.ContentDate, report.ContentTime) == ("20260304", "010000.000000")
    assert "TimezoneOffsetFromUTC" not in report


@pytest.mark.parametrize("missing", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_source_without_uids_gets_no_report(make_series: SeriesMaker, missing: str) -> None:
    series = make_series()
    del series.header[missing]

    with pytest.raises(ResultError, match=missing):
        build_rejection(series.header, [], SeriesRejected(Reason.MISSING_UID, "no UID"), **JOB)
