"""Objects for several destinations: each made once, under a name of its own, with who gets it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage

from dicom_node.domain import CTSeries, Volume
from dicom_node.profiles import BUILT_IN_PROFILES, Captures, Frames, ResultProfile, Segmentation
from dicom_node.results.build import read
from dicom_node.results.objects import Addressed, objects_for, refusals_for
from dicom_node.results.part10 import to_bytes
from dicom_node.results.reading import Predecessor, Reading
from dicom_node.series import read_series, to_volume
from tests.fakes.ct import make_ct_series
from tests.fakes.findings import JOB, ball, detection_of
from tests.golden.cases import cases

OHIF, LEGACY = BUILT_IN_PROFILES["ohif"], BUILT_IN_PROFILES["legacy"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[CTSeries, Volume]:
    series = read_series(make_ct_series(tmp_path_factory.mktemp("ct")))
    return series, to_volume(series)


@pytest.fixture(scope="module")
def reading(source: tuple[CTSeries, Volume]) -> Reading:
    series, volume = source
    found = ball(volume, (20, 30, 26), 6.0), ball(volume, (30, 22, 42), 4.0, score=0.6)
    return read(series, volume, detection_of(*found), **JOB)


def who_gets(objects: tuple[Addressed, ...]) -> dict[str, set[str]]:
    return {each.made.name: set(each.destinations) for each in objects}


def test_objects_that_two_destinations_share_are_one_object(reading: Reading) -> None:
    objects = objects_for(reading, {"viewer": OHIF, "archive": BUILT_IN_PROFILES["air"], "old": LEGACY})
    got = who_gets(objects)
    assert got["seg"] == {"viewer", "archive"}
    assert got["sr"] == {"viewer"}
    assert got["sr_plain"] == {"archive"}
    assert got["sr_text"] == {"old"}


def test_an_object_is_the_same_whoever_else_gets_something(reading: Reading) -> None:
    [alone, *_] = objects_for(reading, {"viewer": OHIF})
    among = objects_for(reading, BUILT_IN_PROFILES)
    assert to_bytes(alone.made.ds) in [to_bytes(each.made.ds) for each in among]


def every_profile() -> Iterator[ResultProfile]:
    reports = ("tid1500", "text", "chest_cad")
    forms = itertools.product(get_args(Segmentation), get_args(Frames), (True, False))
    # Captures take turns, since nothing but key objects refers to them.
    for (segmentation, frames, switch), captures in zip(forms, itertools.cycle(get_args(Captures)), strict=False):
        yield ResultProfile(
            segmentation=segmentation, segmentation_frames=frames, reports=reports, narrative=switch,
            captures=captures, key_objects=switch, presentation_states=switch, pdf=switch,
        )  # fmt: skip


@pytest.fixture(scope="module")
def all_forms(reading: Reading) -> tuple[Addressed, ...]:
    return objects_for(reading, {str(number): profile for number, profile in enumerate(every_profile())})


def test_no_two_objects_of_any_profiles_share_a_name_or_a_uid(all_forms: tuple[Addressed, ...]) -> None:
    names = [each.made.name for each in all_forms]
    uids = [str(each.made.ds.SOPInstanceUID) for each in all_forms]
    assert len(set(names)) == len(names)
    assert len(set(uids)) == len(uids)
    assert all(len(each.made.kind) <= 16 for each in all_forms), "the ledger's column"


def test_a_destination_gets_all_that_its_objects_refer_to(all_forms: tuple[Addressed, ...]) -> None:
    ours = {str(each.made.ds.SOPInstanceUID) for each in all_forms}
    for destination in set().union(*(each.destinations for each in all_forms)):
        earlier: set[str] = set()
        for each in all_forms:
            if destination in each.destinations:
                assert referenced(each.made.ds) & ours <= earlier, "sent before what it refers to"
                earlier.add(str(each.made.ds.SOPInstanceUID))


def referenced(ds: Dataset) -> set[str]:
    found = {str(ds.ReferencedSOPInstanceUID)} if "ReferencedSOPInstanceUID" in ds else set()
    for element in ds:
        if element.VR == "SQ":
            found |= {uid for item in element.value for uid in referenced(item)}
    return found


def test_a_label_map_of_findings_that_overlap_is_the_binary_object(source: tuple[CTSeries, Volume]) -> None:
    series, volume = source
    found = ball(volume, (20, 30, 26), 6.0), ball(volume, (20, 30, 30), 6.0, score=0.6)
    overlapping = read(series, volume, detection_of(*found), **JOB)
    profiles = {"one": OHIF, "other": ResultProfile(segmentation="labelmap")}
    assert who_gets(objects_for(overlapping, profiles)) == {"seg": {"one", "other"}, "sr": {"one", "other"}}


def test_each_report_follows_the_earlier_one_of_its_form(source: tuple[CTSeries, Volume]) -> None:
    series, volume = source
    old = {
        name: Predecessor(study_uid=series.study_uid, series_uid=f"1.2.{n}", sop_instance_uid=f"1.2.{n}.1")
        for n, name in enumerate(("sr", "sr_plain", "sr_text"))
    }
    again = read(series, volume, detection_of(), **JOB, predecessors=old)
    for each in objects_for(again, {"a": OHIF, "b": BUILT_IN_PROFILES["slicer"], "c": LEGACY}):
        if each.made.kind in ("sr", "sr_text"):
            [study] = each.made.ds.PredecessorDocumentsSequence
            [item] = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
            assert item.ReferencedSOPInstanceUID == old[each.made.name].sop_instance_uid


def test_a_refusal_is_said_in_each_form_that_a_destination_reads(tmp_path: Path) -> None:
    [case] = [case for case in cases(tmp_path) if case.refusal is not None]
    assert case.refusal is not None
    got = who_gets(refusals_for(case.refusal, {"viewer": OHIF, "old": LEGACY}))
    assert got["sr"] == {"viewer"}
    assert got["sr_text"] == {"old"}


def test_the_air_profile_keeps_the_rules_of_ihe_ai_results(reading: Reading) -> None:
    objects = objects_for(reading, {"air": BUILT_IN_PROFILES["air"]})
    seg, sr, key_objects = (each.made.ds for each in objects)
    assert [ds.Modality for ds in (seg, sr, key_objects)] == ["SEG", "SR", "KO"]
    # The algorithm in each object, with a Device UID of its own version.
    devices = {str(ds.ContributingEquipmentSequence[0].DeviceUID) for ds in (seg, sr, key_objects)}
    assert len(devices) == 1
    for ds in (seg, sr, key_objects):
        [equipment] = ds.ContributingEquipmentSequence
        assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert equipment.Manufacturer
        assert equipment.ManufacturerModelName
        assert equipment.SoftwareVersions
    # TID 1500 is the root result: it refers to the segmentation, whose segments are tracked as its groups are.
    assert sr.SOPClassUID == Comprehensive3DSRStorage
    assert sr.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert str(seg.SOPInstanceUID) in referenced(sr)
    assert [(s.TrackingID, s.TrackingUID) for s in seg.SegmentSequence] == [
        (track.identifier, track.uid) for track in reading.tracking
    ]
    # Key images are marked, and each is an image of the source.
    images = {image.sop_instance_uid for image in reading.series.images}
    assert referenced(key_objects) == {image for image in referenced(key_objects) if image in images} != set()
