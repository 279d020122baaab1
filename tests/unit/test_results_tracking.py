"""A nodule's name and UID: derived, kept from the earlier report, and never given twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dicom_node.domain import CTSeries, Volume
from dicom_node.results.build import read
from dicom_node.results.reading import Reading
from dicom_node.series import read_series, to_volume
from tests.fakes.comparisons import EARLIER, GROWN, NEW, NO_PRIOR, compared
from tests.fakes.ct import make_ct_series
from tests.fakes.findings import JOB, ball, detection_of


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> CTSeries:
    return read_series(make_ct_series(tmp_path_factory.mktemp("ct")))


@pytest.fixture(scope="module")
def volume(series: CTSeries) -> Volume:
    return to_volume(series)


def reading_of(series: CTSeries, volume: Volume, **job: Any) -> Reading:
    findings = (ball(volume, (10, 20, 20), 4.0), ball(volume, (30, 40, 45), 6.0, score=0.7))
    return read(series, volume, detection_of(*findings), **{**JOB, **job})


def test_names_follow_from_what_was_found(series: CTSeries, volume: Volume) -> None:
    first, again = reading_of(series, volume), reading_of(series, volume)
    other = reading_of(series, volume, manifest_sha256="b8" * 32)

    assert [tracking.identifier for tracking in first.tracking] == ["Nodule 1", "Nodule 2"]
    assert first.tracking == again.tracking
    assert not {t.uid for t in first.tracking} & {t.uid for t in other.tracking}


def test_a_nodule_known_from_before_keeps_its_uid(series: CTSeries, volume: Volume) -> None:
    alone = reading_of(series, volume, comparison=NO_PRIOR)

    followed = reading_of(series, volume, comparison=compared(GROWN, NEW))

    assert followed.tracking[0].uid == EARLIER.tracking_uid
    assert followed.tracking[1] == alone.tracking[1]
    assert [tracking.identifier for tracking in followed.tracking] == ["Nodule 1", "Nodule 2"]


def test_two_findings_of_one_earlier_nodule_have_two_uids(series: CTSeries, volume: Volume) -> None:
    split = reading_of(series, volume, comparison=compared(GROWN, replace(GROWN, number=2)))

    assert split.tracking[0].uid == EARLIER.tracking_uid
    assert split.tracking[1] == reading_of(series, volume).tracking[1]
