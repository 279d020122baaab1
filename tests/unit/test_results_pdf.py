"""The Encapsulated PDF, opened by another library: its text can be searched, and names no patient."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pydicom
import pypdf
import pytest
from pydicom.dataset import Dataset

from dicom_node.domain import RESEARCH_USE, CTSeries, Volume
from dicom_node.results import to_bytes
from dicom_node.results.pages import MOST_PICTURED
from dicom_node.results.pdf import build_pdf, build_refusal_pdf
from dicom_node.series import read_series, to_volume
from tests.fakes.ct import make_ct_series
from tests.fakes.findings import ball
from tests.fakes.readings import compared, reading_of, refusal_of, two_balls


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> CTSeries:
    return read_series(make_ct_series(tmp_path_factory.mktemp("ct")))


@pytest.fixture(scope="module")
def volume(series: CTSeries) -> Volume:
    return to_volume(series)


def opened(ds: Dataset) -> pypdf.PdfReader:
    """Written, read again, and the padding taken off."""
    again = pydicom.dcmread(BytesIO(to_bytes(ds)))
    return pypdf.PdfReader(BytesIO(again.EncapsulatedDocument[: again.EncapsulatedDocumentLength]), strict=True)


def words(ds: Dataset) -> str:
    return " ".join(" ".join(page.extract_text() for page in opened(ds).pages).split())


def test_what_was_found_can_be_searched_for(series: CTSeries, volume: Volume) -> None:
    reading = reading_of(series, volume, *two_balls(volume))

    text = words(build_pdf(reading))

    for measured in reading.measurements:
        assert f"{measured.long_axis_mm:.1f} x {measured.short_axis_mm:.1f} mm" in text
        assert f"{measured.volume_mm3:.0f} mm3" in text
    for said in ("Lung nodules: 2 found", "44 of 44 instances, contiguous", "nodules 1.2.3", series.series_uid):
        assert said in text


def test_each_page_says_what_it_must_not_be_used_for(series: CTSeries, volume: Volume) -> None:
    one = ball(volume, (20, 30, 30), 2.0)
    findings = [replace(one, corner=(n % 40, 5 + n % 40, 5 + n // 2), score=0.99 - n / 100) for n in range(60)]

    pages = opened(build_pdf(reading_of(series, volume, *findings))).pages

    assert len(pages) > 3
    for number, page in enumerate(pages, start=1):
        assert RESEARCH_USE in page.extract_text()
        assert f"page {number} of {len(pages)}" in page.extract_text()
    assert sum(len(page.images) for page in pages) == MOST_PICTURED


def test_no_page_names_the_patient_or_the_date_of_the_images(tmp_path: Path) -> None:
    header = {"PatientName": "Verysecret^Name", "PatientID": "ID-4711", "AccessionNumber": "ACC-99"}
    series = read_series(make_ct_series(tmp_path, header=header))
    reading = reading_of(series, to_volume(series))

    ds = build_pdf(reading)

    text = words(ds)
    for secret in ("Verysecret", "ID-4711", "ACC-99", "1970", "20260102", "2026-01-02"):
        assert secret not in text
    assert ds.BurnedInAnnotation == "NO"
    assert ds.PatientName == "Verysecret^Name"


def test_fonts_are_inside(series: CTSeries, volume: Volume) -> None:
    for page in opened(build_pdf(reading_of(series, volume, *two_balls(volume)))).pages:
        fonts = page["/Resources"]["/Font"]  # type: ignore[index]
        for font in fonts.values():
            assert "/FontFile2" in font.get_object()["/FontDescriptor"].get_object()


def test_changes_since_the_earlier_ct_are_told_in_words(series: CTSeries, volume: Volume) -> None:
    text = words(build_pdf(reading_of(series, volume, *two_balls(volume), comparison=compared(2))))

    for said in ("grown +164 %", "volume doubling time 182 days (95 % interval 150 to 240 days)", "is gone"):
        assert said in text


def test_nothing_found_and_not_analysed_are_said(series: CTSeries, volume: Volume) -> None:
    assert "no lung nodule candidate was found" in words(build_pdf(reading_of(series, volume)))
    refused = words(build_refusal_pdf(refusal_of(series)))
    assert "NOT ANALYSED" in refused
    assert "a gap of 5.0 mm after slice 12" in refused


def test_it_names_its_sources(series: CTSeries, volume: Volume) -> None:
    for ds in (build_pdf(reading_of(series, volume)), build_refusal_pdf(refusal_of(series))):
        sources = [item.ReferencedSOPInstanceUID for item in ds.SourceInstanceSequence]
        assert sources == list(series.sop_instance_uids)


def test_equal_readings_give_equal_bytes_whatever_the_clock_says(series: CTSeries, volume: Volume) -> None:
    first, second = (to_bytes(build_pdf(reading_of(series, volume, *two_balls(volume)))) for _ in range(2))

    assert first == second
