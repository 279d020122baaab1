"""The sentences that reports, pictures and the PDF share, read as a person reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicom_node.comparison import DoublingTime, NoduleChange
from dicom_node.domain import CTSeries, Volume
from dicom_node.errors import Reason, SeriesRejected
from dicom_node.results.build import read
from dicom_node.results.narrative import CAUTION, change_text, doubling_text, finding_text, narrative, refusal_text
from dicom_node.results.reading import Predecessor, Reading, Refusal
from dicom_node.results.references import references_of
from dicom_node.series import read_series, to_volume
from tests.fakes.comparisons import EARLIER, GONE, GROWN, NEW, NO_PRIOR, compared
from tests.fakes.ct import make_ct_series
from tests.fakes.findings import JOB, ball, detection_of


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> CTSeries:
    return read_series(make_ct_series(tmp_path_factory.mktemp("ct"), hu=np.full((44, 64, 64), -600, np.int16)))


@pytest.fixture(scope="module")
def volume(series: CTSeries) -> Volume:
    return to_volume(series)


def reading_of(series: CTSeries, volume: Volume, count: int = 2, **job: Any) -> Reading:
    findings = (ball(volume, (10, 20, 20), 4.0), ball(volume, (30, 40, 45), 6.0, score=0.7, side="right"))
    return read(series, volume, detection_of(*findings[:count]), **{**JOB, **job})


def test_a_report_of_two_findings_reads_like_this(series: CTSeries, volume: Volume) -> None:
    reading = reading_of(series, volume)
    first, second = reading.measurements

    said = narrative(reading)

    assert said[0] == "2 lung nodule candidates marked (score at or above 0.5)."
    assert said[1] == (
        f"Nodule 1: left lung, ground glass, {first.long_axis_mm:.1f} x {first.short_axis_mm:.1f} mm on image 11 "
        f"(z -85.5 mm). Mean diameter {first.mean_diameter_mm} mm, volume {first.volume_mm3:.0f} mm3 "
        f"(SD {first.volume_error_mm3:.0f} mm3), mean attenuation -600 HU (SD 0 HU), score 0.90."
    )
    assert said[2].startswith("Nodule 2: right lung, ground glass, ")
    assert f"volume {second.volume_mm3:.0f} mm3" in said[2]
    assert said[3] == (
        "Slices analysed: 40 of 44, slices 3 to 42 counted from the feet, z -105.5 to -8.0 mm. "
        "Not analysed: 2 below and 2 above, outside the lungs and their margin."
    )
    assert said[4] == "Series completeness: 44 of 44 instances, contiguous; quiet time 10 s."
    assert said[-1] == "Research use, not for diagnosis. Made by software, verified by nobody."


def test_one_finding_is_no_plural(series: CTSeries, volume: Volume) -> None:
    assert narrative(reading_of(series, volume, 1))[0].startswith("1 lung nodule candidate marked")


def test_none_found_says_that_it_was_looked_for(series: CTSeries, volume: Volume) -> None:
    said = narrative(reading_of(series, volume, 0))

    assert said[0] == ("The series was analysed and no lung nodule candidate was found (no score at or above 0.5).")
    assert said[-1] == CAUTION
    assert not any("axis" in sentence for sentence in said)


def test_the_whole_series_needs_no_word_on_what_is_missing(series: CTSeries, volume: Volume) -> None:
    reading = read(series, volume, detection_of(analysed=(0, 44)), **JOB)

    assert "Not analysed" not in " ".join(narrative(reading))


def test_side_and_type_that_are_not_known_are_not_told(series: CTSeries, volume: Volume) -> None:
    tiny = ball(volume, (10, 20, 20), 2.0, side=None)

    said = finding_text(read(series, volume, detection_of(tiny), **JOB), 1)

    assert said.startswith("Nodule 1: side not told apart, type undetermined, ")


def test_images_are_named_as_viewers_name_them(tmp_path: Path) -> None:
    nameless = read_series(make_ct_series(tmp_path / "ct"))
    for image in nameless.images:
        del image.header.InstanceNumber
    volume = to_volume(nameless)

    said = finding_text(read(nameless, volume, detection_of(ball(volume, (10, 20, 20), 4.0)), **JOB), 1)

    assert "on slice 11 of 44 from the feet (z -85.5 mm)" in said


def test_growth_is_told_with_each_finding_and_what_is_gone_after_them(series: CTSeries, volume: Volume) -> None:
    outside = replace(GONE, tracking_identifier="Nodule 4")
    unmarked = replace(GONE, tracking_identifier="Nodule 5")
    comparison = compared(GROWN, NEW, gone=(GONE,), not_covered=(outside,), unmarked=(unmarked,))

    said = narrative(reading_of(series, volume, comparison=comparison))

    assert said[1] == "Compared with the CT of 2025-01-02, 365 days before."
    assert said[2].endswith(
        "Grown: 6.2 x 5.1 mm, 150 mm3 at the earlier CT, volume +82 %, "
        "volume doubling time 421 days (95 % interval 350 to 601 days)."
    )
    assert said[3].endswith("New since the earlier CT.")
    assert said[4:7] == (
        'Earlier nodule "Nodule 3" (6.2 x 5.1 mm, 150 mm3 then) is gone: lung is seen at its place.',
        'Earlier nodule "Nodule 5" (6.2 x 5.1 mm, 150 mm3 then) is not marked now, though tissue is still seen at its '
        "place.",
        'Earlier nodule "Nodule 4" (6.2 x 5.1 mm, 150 mm3 then) lies outside of what this CT shows.',
    )
    assert any(sentence.startswith("Grown or shrunk: ") for sentence in said)


def test_no_prior_is_stated(series: CTSeries, volume: Volume) -> None:
    said = narrative(reading_of(series, volume, comparison=NO_PRIOR))

    assert said[1] == "No earlier CT of the chest was found."
    assert not any("earlier CT," in sentence or "Grown" in sentence for sentence in said)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            NoduleChange(number=1, change="stable", prior=EARLIER, volume_change_percent=-3.2,
                         doubling_time=DoublingTime(days=-7800.0, low=None, high=-1500.0)),
            "Stable: 6.2 x 5.1 mm, 150 mm3 at the earlier CT, volume -3 %.",
        ),
        (
            NoduleChange(number=1, change="shrunk", prior=EARLIER, volume_change_percent=-40.0,
                         doubling_time=DoublingTime(days=-495.0, low=-900.0, high=-300.0)),
            "Shrunk: 6.2 x 5.1 mm, 150 mm3 at the earlier CT, volume -40 %, "
            "volume halving time 495 days (95 % interval 300 to 900 days).",
        ),
        (
            NoduleChange(number=1, change="not_judged", prior=None, volume_change_percent=None, doubling_time=None,
                         note="the earlier CT does not show the place"),
            "Change not judged: the earlier CT does not show the place.",
        ),
    ],
)  # fmt: skip
def test_every_change_has_its_words(change: NoduleChange, expected: str) -> None:
    assert change_text(change) == expected


@pytest.mark.parametrize(
    ("days", "low", "high", "expected"),
    [
        (400.0, 300.0, 600.0, "volume doubling time 400 days (95 % interval 300 to 600 days)"),
        (400.0, 300.0, None, "volume doubling time 400 days (95 % interval: 300 days or more)"),
        (400.0, 300.0, -900.0, "volume doubling time 400 days (95 % interval: 300 days or more)"),
        (400.0, None, None, "volume doubling time 400 days (95 % interval without a bound)"),
        (-400.0, None, -300.0, "volume halving time 400 days (95 % interval: 300 days or more)"),
        (-400.0, -600.0, -300.0, "volume halving time 400 days (95 % interval 300 to 600 days)"),
    ],
)
def test_doubling_time_has_its_interval_as_far_as_it_goes(
    days: float, low: float | None, high: float | None, expected: str
) -> None:
    assert doubling_text(DoublingTime(days=days, low=low, high=high)) == expected


def test_a_refusal_says_why_and_no_more(series: CTSeries, volume: Volume) -> None:
    reading = reading_of(series, volume, 0)
    old = Predecessor(study_uid="1.2.7", series_uid="1.2.8", sop_instance_uid="1.2.9")
    refusal = Refusal(
        rejected=SeriesRejected(Reason.SLICE_GAP, "gap of 5.00 mm after slice 12 of 44"),
        instances=tuple(references_of(series)),
        origin=reading.origin,
        grounds=replace(reading.grounds, predecessor=old),
    )

    assert refusal_text(refusal) == (
        "NOT ANALYSED. No statement about lung nodules is made.",
        "Reason: SLICE_GAP: gap of 5.00 mm after slice 12 of 44.",
        "Series completeness: 44 of 44 instances, contiguous; quiet time 10 s.",
        "This report replaces an earlier one of the same series (1.2.9).",
        CAUTION,
    )


def test_no_sentence_holds_what_is_the_patients(tmp_path: Path) -> None:
    secret = {"PatientName": "Secret^Name", "PatientID": "SECRET-1", "AccessionNumber": "SECRET-2"}
    series = read_series(make_ct_series(tmp_path / "ct", header=secret))
    volume = to_volume(series)
    reading = reading_of(series, volume, comparison=compared(GROWN, NEW, gone=(GONE,)))

    assert "secret" not in " ".join(narrative(reading)).lower()


def test_sentences_are_ascii_and_their_own_characters_survive_anywhere(series: CTSeries, volume: Volume) -> None:
    reading = reading_of(series, volume, comparison=compared(GROWN, NEW, gone=(GONE,)))

    assert all(sentence.isascii() and sentence.endswith(".") for sentence in narrative(reading))
