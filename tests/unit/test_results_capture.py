"""Secondary Captures as a reader gets them: their pixels are the pages, their header claims no more than is true."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import MultiFrameTrueColorSecondaryCaptureImageStorage, SecondaryCaptureImageStorage

from dicom_node.config import GateConfig
from dicom_node.domain import CTSeries, Volume
from dicom_node.results import to_bytes
from dicom_node.results.capture import build_captures, build_refusal_capture
from dicom_node.results.pages import MOST_PICTURED, PAGE_PX, pages_of, refusal_pages
from dicom_node.series import read_series, to_volume
from tests.fakes.ct import make_ct_series
from tests.fakes.enhanced import make_enhanced_ct
from tests.fakes.findings import ball
from tests.fakes.readings import compared, reading_of, refusal_of, two_balls


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> CTSeries:
    return read_series(make_ct_series(tmp_path_factory.mktemp("ct")))


@pytest.fixture(scope="module")
def volume(series: CTSeries) -> Volume:
    return to_volume(series)


def read_again(ds: Dataset) -> Dataset:
    return pydicom.dcmread(BytesIO(to_bytes(ds)))


@pytest.mark.parametrize("multi_frame", [True, False])
def test_pixels_are_the_pages(series: CTSeries, volume: Volume, multi_frame: bool) -> None:
    reading = reading_of(series, volume, *two_balls(volume))

    captures = [read_again(ds) for ds in build_captures(reading, multi_frame=multi_frame)]

    shown = np.concatenate([np.atleast_3d(ds.pixel_array).reshape(-1, *PAGE_PX[::-1], 3) for ds in captures])
    np.testing.assert_array_equal(shown, np.stack([np.asarray(page.image) for page in pages_of(reading)]))
    assert {ds.SOPClassUID for ds in captures} == {
        MultiFrameTrueColorSecondaryCaptureImageStorage if multi_frame else SecondaryCaptureImageStorage
    }


def test_single_frames_make_one_series_in_reading_order(series: CTSeries, volume: Volume) -> None:
    captures = build_captures(reading_of(series, volume, *two_balls(volume)), multi_frame=False)

    assert len({ds.SeriesInstanceUID for ds in captures}) == 1
    assert len({ds.SOPInstanceUID for ds in captures}) == len(captures) == 3
    assert [ds.InstanceNumber for ds in captures] == [1, 2, 3]
    assert [ds.ImageComments for ds in captures] == ["Summary 1", "Nodule 1", "Nodule 2"]


def test_a_change_on_one_page_makes_the_whole_series_new(series: CTSeries, volume: Volume) -> None:
    first, second = two_balls(volume)
    larger = ball(volume, (30, 40, 45), 6.5, score=0.7, side="right")

    before, after = (
        build_captures(reading_of(series, volume, first, one), multi_frame=False) for one in (second, larger)
    )

    assert before[1].PixelData == after[1].PixelData
    assert not {ds.SOPInstanceUID for ds in before} & {ds.SOPInstanceUID for ds in after}
    assert before[0].SeriesInstanceUID != after[0].SeriesInstanceUID


@pytest.mark.parametrize("multi_frame", [True, False])
def test_equal_readings_give_equal_bytes(series: CTSeries, volume: Volume, multi_frame: bool) -> None:
    made = [
        [to_bytes(ds) for ds in build_captures(reading_of(series, volume, *two_balls(volume)), multi_frame=multi_frame)]
        for _ in range(2)
    ]

    assert made[0] == made[1]


def test_pages_refer_to_the_slices_that_they_show(series: CTSeries, volume: Volume) -> None:
    reading = reading_of(series, volume, *two_balls(volume))
    key = [series.images[measured.slice_index].sop_instance_uid for measured in reading.measurements]

    summary, *findings = build_captures(reading, multi_frame=False)

    def referred(ds: Dataset) -> list[str]:
        return [item.ReferencedSOPInstanceUID for item in ds.SourceImageSequence]

    assert referred(summary) == key
    assert [referred(ds) for ds in findings] == [[uid] for uid in key]


def test_pages_claim_no_place_in_the_patient(series: CTSeries, volume: Volume) -> None:
    for ds in build_captures(reading_of(series, volume, *two_balls(volume)), multi_frame=False):
        for keyword in ("PixelSpacing", "ImagePositionPatient", "FrameOfReferenceUID", "NominalScannedPixelSpacing"):
            assert keyword not in ds


def test_frames_of_a_multi_frame_source_are_named(tmp_path: Path) -> None:
    series = read_series(make_enhanced_ct(make_ct_series(tmp_path / "single"), tmp_path / "enhanced"))
    volume = to_volume(series)
    reading = reading_of(series, volume, *two_balls(volume))

    (ds,) = build_captures(reading, multi_frame=True)

    (item,) = ds.SourceImageSequence
    assert list(item.ReferencedFrameNumber) == sorted(
        series.images[measured.slice_index].frame or 0 for measured in reading.measurements
    )


def test_no_pixel_depends_on_who_the_patient_is(tmp_path: Path) -> None:
    shown = []
    for number, header in enumerate(({}, {"PatientName": "Someone^Else", "PatientID": "2", "StudyDate": "19991231"})):
        series = read_series(make_ct_series(tmp_path / str(number), header=header))
        volume = to_volume(series)
        captures = build_captures(reading_of(series, volume, *two_balls(volume)), multi_frame=True)
        shown.append(captures[0].PixelData)
        assert captures[0].BurnedInAnnotation == "NO"
    assert shown[0] == shown[1]


def test_what_was_lost_in_the_source_is_lost_in_the_pictures(tmp_path: Path) -> None:
    lossy = {"LossyImageCompression": "01", "LossyImageCompressionRatio": "10.5"}
    for header, value in (({}, "00"), (lossy, "01")):
        series = read_series(make_ct_series(tmp_path / value, header=header), GateConfig(lossy="accept"))
        (ds,) = build_captures(reading_of(series, to_volume(series)), multi_frame=True)
        assert ds.LossyImageCompression == value


def test_nothing_found_is_said_on_one_page(series: CTSeries, volume: Volume) -> None:
    for multi_frame in (True, False):
        (ds,) = build_captures(reading_of(series, volume), multi_frame=multi_frame)
        assert ds.SOPClassUID == SecondaryCaptureImageStorage
        assert ds.SeriesDescription.startswith("Nodule pictures: none found")
        assert "SourceImageSequence" not in ds


def test_not_analysed_is_said_on_one_page(series: CTSeries) -> None:
    ds = read_again(build_refusal_capture(refusal_of(series)))

    (page,) = refusal_pages(refusal_of(series))
    np.testing.assert_array_equal(ds.pixel_array, np.asarray(page.image))
    assert ds.SeriesDescription.startswith("Lung nodules: NOT ANALYSED")


def test_many_findings_keep_the_object_bounded_and_all_stand_in_the_table(series: CTSeries, volume: Volume) -> None:
    one = ball(volume, (20, 30, 30), 2.0)
    findings = [replace(one, corner=(n % 40, 5 + n % 40, 5 + n // 2), score=0.99 - n / 100) for n in range(60)]
    reading = reading_of(series, volume, *findings)

    (ds,) = build_captures(reading, multi_frame=True)

    pages = pages_of(reading)
    summaries = [page for page in pages if page.label.startswith("Summary")]
    assert len(pages) - len(summaries) == MOST_PICTURED
    assert len(ds.PixelData) <= 30 * 3 * PAGE_PX[0] * PAGE_PX[1]
    # Each row has a line below it, from margin to margin.
    line = (np.asarray([np.asarray(page.image) for page in summaries])[:, :, 24:1000] == (0x2A, 0x31, 0x3C)).all((2, 3))
    rows = line.sum() - 2 * len(summaries)  # less the line of two pixels below each title
    heads = sum(bool(one.sum() > 2) for one in line)
    assert rows - heads == 60


def test_a_comparison_adds_its_column_and_its_words(series: CTSeries, volume: Volume) -> None:
    plain, with_earlier = (
        pages_of(reading_of(series, volume, *two_balls(volume), comparison=comparison))
        for comparison in (None, compared(2))
    )

    assert plain[0].image.tobytes() != with_earlier[0].image.tobytes()
    for old, new in zip(plain[-2:], with_earlier[-2:], strict=True):
        differ = (np.asarray(old.image) != np.asarray(new.image)).any(axis=(1, 2))
        assert differ[76:94].any()  # the line below the measures
        assert not differ[:72].any()
        assert not differ[98:730].any()


@pytest.mark.parametrize("findings", [0, 2])
def test_research_use_stands_in_a_band_on_every_page(series: CTSeries, volume: Volume, findings: int) -> None:
    pages = [*pages_of(reading_of(series, volume, *two_balls(volume)[:findings])), *refusal_pages(refusal_of(series))]

    bands = [np.asarray(page.image)[-36:, :400] for page in pages]

    for band in bands:
        np.testing.assert_array_equal(band, bands[0])
        assert (band == (0xFF, 0xD1, 0x66)).all(axis=-1).mean() > 0.5
        assert (band.max(axis=-1) < 40).sum() > 500  # letters


def test_an_incomplete_series_is_called_so(series: CTSeries, volume: Volume) -> None:
    complete, partial = (
        pages_of(reading_of(series, volume, complete=complete))[0].image.tobytes() for complete in (True, False)
    )
    assert complete != partial
