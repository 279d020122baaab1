"""The Segmentation as a reader sees it: voxels, geometry, segments, identity."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.domain import CTSeries, Finding, Volume
from dicom_node.errors import ResultError
from dicom_node.profiles import ResultProfile
from dicom_node.results import build_results, to_bytes
from dicom_node.results.build import read
from dicom_node.results.seg import build_seg
from dicom_node.series import read_series, to_volume
from tests.fakes.ct import PRONE, SUPINE, make_ct_series
from tests.fakes.enhanced import make_enhanced_ct
from tests.fakes.findings import JOB, MODEL, ball, ball_mask, detection_of, finding_of


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> CTSeries:
    return read_series(make_ct_series(tmp_path_factory.mktemp("ct")))


@pytest.fixture(scope="module")
def volume(series: CTSeries) -> Volume:
    return to_volume(series)


def seg_of(series: CTSeries, volume: Volume, *findings: Finding, **job: Any) -> hd.seg.Segmentation:
    """Built, written and read again."""
    built = build_results(series, volume, detection_of(*findings), **{**JOB, **job}).seg
    assert built is not None
    return reread(built)


def reread(built: Dataset) -> hd.seg.Segmentation:
    return hd.seg.Segmentation.from_dataset(pydicom.dcmread(BytesIO(to_bytes(built))))


def masks_of(seg: hd.seg.Segmentation, series: CTSeries) -> NDArray[np.bool_]:
    """(slice, row, column, segment), read by way of the source images that the frames refer to."""
    pixels = seg.get_pixels_by_source_instance(
        list(series.sop_instance_uids), ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    return np.asarray(pixels).astype(np.bool_)


def painted(volume: Volume, finding: Finding) -> NDArray[np.bool_]:
    mask = np.zeros(volume.hu.shape, np.bool_)
    mask[finding.slices] |= finding.mask
    return mask


def pair_of_distant_balls(volume: Volume) -> list[Finding]:
    return [ball(volume, (10, 20, 20), 4.0), ball(volume, (30, 40, 45), 6.0, score=0.7, side="right")]


def overlapping(volume: Volume) -> list[Finding]:
    return [ball(volume, (20, 30, 30), 6.0), ball(volume, (21, 33, 33), 6.0, score=0.6)]


def in_two_pieces(volume: Volume) -> list[Finding]:
    mask = ball_mask(volume, (12, 20, 20), 4.0) | ball_mask(volume, (18, 40, 40), 3.0)
    return [finding_of(volume, mask)]


def single_voxel(volume: Volume) -> list[Finding]:
    return [single(volume, (5, 6, 7))]


def at_every_border(volume: Volume) -> list[Finding]:
    corners = [(0, 0, 0), (volume.hu.shape[0] - 1, volume.hu.shape[1] - 1, volume.hu.shape[2] - 1)]
    return [ball(volume, corner, 6.0) for corner in corners]


SHAPES = [pair_of_distant_balls, overlapping, in_two_pieces, single_voxel, at_every_border]


@pytest.mark.parametrize("make", SHAPES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("frames", ["sparse", "full"])
@pytest.mark.parametrize("form", ["binary", "fractional", "labelmap"])
def test_every_voxel_comes_back_in_its_segment(
    series: CTSeries, volume: Volume, make: Any, frames: str, form: str
) -> None:
    findings = make(volume)

    profile = ResultProfile(segmentation=form, segmentation_frames=frames)
    masks = masks_of(seg_of(series, volume, *findings, profile=profile), series)

    for number, finding in enumerate(findings):
        np.testing.assert_array_equal(masks[..., number], painted(volume, finding))


@pytest.mark.parametrize("form", ["binary", "fractional", "labelmap"])
def test_every_voxel_on_frames_of_one_instance_comes_back(tmp_path: Path, form: str) -> None:
    ct = make_enhanced_ct(make_ct_series(tmp_path / "ct"), tmp_path / "enhanced")
    series = read_series(ct)
    volume = to_volume(series)
    findings = pair_of_distant_balls(volume)

    seg = seg_of(series, volume, *findings, profile=ResultProfile(segmentation=form))
    frames = [image.frame for image in series.images]
    masks = np.asarray(
        seg.get_pixels_by_source_frame(
            series.sop_instance_uids[0], frames, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
        )
    )

    for number, finding in enumerate(findings):
        np.testing.assert_array_equal(masks[..., number] > 0, painted(volume, finding))


def test_fractional_says_how_much_of_a_voxel_is_occupied(series: CTSeries, volume: Volume) -> None:
    seg = seg_of(series, volume, *overlapping(volume), profile=ResultProfile(segmentation="fractional"))

    assert (seg.SegmentationFractionalType, seg.MaximumFractionalValue) == ("OCCUPANCY", 255)
    assert set(np.frombuffer(seg.PixelData, np.uint8)) == {0, 255}
    read = seg.get_volume(rescale_fractional=True)
    assert set(np.unique(read.array)) == {0.0, 1.0}
    assert seg.SegmentsOverlap == "YES"


def test_label_map_has_one_frame_a_slice_and_the_number_of_each_segment_in_it(series: CTSeries, volume: Volume) -> None:
    near, far = pair_of_distant_balls(volume)

    seg = seg_of(series, volume, near, far, profile=ResultProfile(segmentation="labelmap"))

    assert seg.SOPClassUID == seg.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    assert seg.NumberOfFrames == len(near.mask) + len(far.mask)
    assert (seg.SegmentationType, seg.SegmentsOverlap, seg.PixelPaddingValue) == ("LABELMAP", "NO", 0)
    # PS3.3 C.8.20.2: colours of segments, which readers know, are only for pixels that are no colours themselves.
    assert seg.PhotometricInterpretation == "MONOCHROME2"
    assert [s.SegmentNumber for s in seg.SegmentSequence] == [0, 1, 2]
    assert all("RecommendedDisplayCIELabValue" in s for s in seg.SegmentSequence)
    pixels = np.frombuffer(seg.PixelData, np.uint8)
    assert [int((pixels == n).sum()) for n in (1, 2)] == [int(near.mask.sum()), int(far.mask.sum())]
    positions = [
        float(f.PlanePositionSequence[0].ImagePositionPatient[2]) for f in seg.PerFrameFunctionalGroupsSequence
    ]
    assert positions == sorted(positions)


def test_overlapping_findings_are_never_pressed_into_a_label_map(series: CTSeries, volume: Volume) -> None:
    seg = seg_of(series, volume, *overlapping(volume), profile=ResultProfile(segmentation="labelmap"))

    assert (seg.SegmentationType, seg.SegmentsOverlap) == ("BINARY", "YES")


@pytest.mark.parametrize("form", ["binary", "labelmap"])
def test_more_findings_than_a_byte_can_count_stay_apart(tmp_path: Path, form: Any) -> None:
    series = read_series(make_ct_series(tmp_path, shape=(44, 24, 24)))
    volume = to_volume(series)
    places = [(k, r, c) for k in range(2, 41, 3) for r in range(2, 22, 4) for c in range(2, 22, 4)][:300]
    findings = [single(volume, place) for place in places]

    seg = reread(build_seg(read(series, volume, detection_of(*findings), **JOB), form=form))
    # All numbers at once: one by one, highdicom 0.28 counts them in a byte.
    numbers = seg.get_pixels_by_source_instance(
        list(series.sop_instance_uids),
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
        combine_segments=True,
    )

    assert [int(numbers[place]) for place in places] == list(range(1, 301))
    assert np.count_nonzero(numbers) == 300


def single(volume: Volume, place: tuple[int, int, int]) -> Finding:
    mask = np.zeros(volume.hu.shape, np.bool_)
    mask[place] = True
    return finding_of(volume, mask)


def test_frames_that_no_machine_could_hold_are_refused_with_the_way_out(
    series: CTSeries, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.results.seg.MOST_PIXEL_BYTES", 64 * 64 * 30)
    findings = pair_of_distant_balls(volume)

    assert seg_of(series, volume, *findings).NumberOfFrames > 0
    with pytest.raises(ResultError, match="set segmentation_frames to sparse"):
        seg_of(series, volume, *findings, profile=ResultProfile(segmentation="fractional", segmentation_frames="full"))


@pytest.mark.parametrize(
    "orientation",
    [SUPINE, PRONE, (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)],
    ids=["supine", "prone", "seen from the head"],
)
def test_voxels_lie_where_they_lay_in_the_patient(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    series = read_series(make_ct_series(tmp_path, orientation=orientation, spacing_mm=(2.5, 0.6, 0.8)))
    volume = to_volume(series)
    finding = ball(volume, (20, 18, 41), 5.0)

    read = seg_of(series, volume, finding).get_volume(combine_segments=True)

    index = np.argwhere(np.asarray(read.array) > 0)
    seen_mm = read.map_indices_to_reference(index)
    meant_mm = volume.to_mm((np.argwhere(finding.mask) + np.array(finding.corner)).astype(np.float64))
    np.testing.assert_allclose(seen_mm[np.lexsort(seen_mm.T)], meant_mm[np.lexsort(meant_mm.T)], atol=1e-3)


def test_positions_have_the_digits_of_the_source_and_ascend(series: CTSeries, volume: Volume) -> None:
    seg = seg_of(series, volume, *pair_of_distant_balls(volume))
    header_of = {image.sop_instance_uid: image.header for image in series.images}

    shared = seg.SharedFunctionalGroupsSequence[0]
    assert texts(shared.PlaneOrientationSequence[0].ImageOrientationPatient) == texts(
        series.header.ImageOrientationPatient
    )
    assert texts(shared.PixelMeasuresSequence[0].PixelSpacing) == texts(series.header.PixelSpacing)
    assert shared.PixelMeasuresSequence[0].SpacingBetweenSlices == 2.5
    z: dict[int, list[float]] = {1: [], 2: []}
    for frame in seg.PerFrameFunctionalGroupsSequence:
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert texts(position) == texts(header_of[source].ImagePositionPatient)
        z[frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber].append(float(position[2]))
    assert all(values == sorted(values) and values for values in z.values())


def texts(values: Any) -> list[str]:
    return [str(value) for value in values]


def test_only_frames_with_voxels_are_stored_unless_a_destination_needs_all(series: CTSeries, volume: Volume) -> None:
    findings = pair_of_distant_balls(volume)
    occupied = sum(len(finding.mask) for finding in findings)

    assert seg_of(series, volume, *findings).NumberOfFrames == occupied
    assert seg_of(
        series, volume, *findings, profile=ResultProfile(segmentation_frames="full")
    ).NumberOfFrames == 2 * len(series.images)


def test_segment_says_what_it_is_and_who_made_it(series: CTSeries, volume: Volume) -> None:
    results = build_results(series, volume, detection_of(*pair_of_distant_balls(volume)), **JOB)
    assert results.seg is not None

    for number, segment in enumerate(results.seg.SegmentSequence, start=1):
        assert segment.SegmentNumber == number
        assert segment.SegmentLabel == segment.TrackingID == f"Nodule {number}"
        assert segment.TrackingUID == results.tracking_uids[number - 1]
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "27925004"
        assert segment.AnatomicRegionSequence[0].CodeValue == "39607008"
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("nodules", "1.2.3")
        assert "5e" * 32 in algorithm.AlgorithmParameters
    sides = [s.AnatomicRegionSequence[0].AnatomicRegionModifierSequence[0] for s in results.seg.SegmentSequence]
    assert [side.CodeMeaning for side in sides] == ["Left", "Right"]
    colours = {tuple(s.RecommendedDisplayCIELabValue) for s in results.seg.SegmentSequence}
    assert len(colours) == 2


def test_unknown_side_is_not_guessed(series: CTSeries, volume: Volume) -> None:
    seg = seg_of(series, volume, ball(volume, (20, 30, 30), 4.0, side=None))

    assert "AnatomicRegionModifierSequence" not in seg.SegmentSequence[0].AnatomicRegionSequence[0]


def test_source_series_is_named(series: CTSeries, volume: Volume) -> None:
    seg = seg_of(series, volume, *pair_of_distant_balls(volume))

    (referenced,) = seg.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == series.series_uid
    assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} <= set(
        series.sop_instance_uids
    )
    assert seg.FrameOfReferenceUID == series.header.FrameOfReferenceUID


def test_frames_are_packed_without_gaps(tmp_path: Path) -> None:
    # 15 x 17 pixels are no whole number of bytes: each frame begins within the last byte of the one before.
    series = read_series(make_ct_series(tmp_path, shape=(44, 15, 17)))
    volume = to_volume(series)
    findings = [ball(volume, (10, 5, 6), 2.6), ball(volume, (30, 9, 10), 3.1), ball(volume, (32, 9, 10), 3.1)]

    masks = masks_of(seg_of(series, volume, *findings), series)

    for number, finding in enumerate(findings):
        np.testing.assert_array_equal(masks[..., number], painted(volume, finding))


def test_no_findings_make_no_segmentation(series: CTSeries, volume: Volume) -> None:
    with pytest.raises(ValueError, match="no findings"):
        build_seg(build_results(series, volume, detection_of(), **JOB).reading)
    assert build_results(series, volume, detection_of(), **JOB).seg is None


def identity(ds: Dataset | None) -> tuple[str, str]:
    assert ds is not None
    return str(ds.SOPInstanceUID), str(ds.SeriesInstanceUID)


def test_same_input_gives_the_same_bytes(series: CTSeries, volume: Volume) -> None:
    detection = detection_of(*pair_of_distant_balls(volume))

    one, other = (build_results(series, volume, detection, **JOB) for _ in range(2))

    assert [to_bytes(made.ds) for made in one.objects] == [to_bytes(made.ds) for made in other.objects]


def test_changed_content_is_a_new_instance_in_a_new_series(series: CTSeries, volume: Volume) -> None:
    near, far = pair_of_distant_balls(volume)
    moved = replace(near, corner=(near.corner[0], near.corner[1], near.corner[2] + 1))
    variants = [
        build_results(series, volume, detection_of(near, far), **JOB),
        build_results(series, volume, detection_of(moved, far), **JOB),
        build_results(series, volume, detection_of(near), **JOB),
        build_results(series, volume, detection_of(near, far), **{**JOB, "manifest_sha256": "b8" * 32}),
        build_results(
            series, volume, replace(detection_of(near, far), model=replace(MODEL, bundle_sha256="0" * 64)), **JOB
        ),
    ]

    for of in ("seg", "sr"):
        identities = [identity(getattr(results, of)) for results in variants]
        assert len({uid for pair in identities for uid in pair}) == 2 * len(variants)


def test_two_findings_with_one_mask_stay_two(series: CTSeries, volume: Volume) -> None:
    twin = ball(volume, (20, 30, 30), 4.0)

    results = build_results(series, volume, detection_of(twin, twin), **JOB)

    assert len(set(results.tracking_uids)) == 2
