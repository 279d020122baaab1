"""Enhanced and legacy-converted CT: the same volume as the single frames, the same gate, references to frames."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import config as pydicom_config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from dicom_node.config import Config, GateConfig
from dicom_node.domain import CTSeries, Volume
from dicom_node.errors import Reason, SeriesRejected
from dicom_node.infer import explain_routes, series_in
from dicom_node.results import Results, build_results
from dicom_node.series import check_series, consensus, images_of, read_headers, read_series, to_volume
from tests.fakes.ct import make_ct_series
from tests.fakes.enhanced import SERIES_UID, make_enhanced_ct, make_legacy_ct
from tests.fakes.findings import JOB, ball, detection_of

LIMITS = GateConfig(min_slices=2, min_length_mm=0)
Change = Callable[[Dataset], None]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of single frames; each is rescaled by a number of its own, as some scanners do."""
    paths = make_ct_series(tmp_path_factory.mktemp("single"))
    for number, path in enumerate(paths):
        ds = pydicom.dcmread(path)
        ds.RescaleIntercept = str(-number)
        ds.save_as(path)
    return paths


@pytest.fixture(scope="module")
def plain(single: list[Path]) -> tuple[CTSeries, Volume]:
    series = read_series(single, LIMITS)
    return series, to_volume(series)


def compressed(paths: list[Path], folder: Path, syntax: str) -> list[Path]:
    folder.mkdir()
    for path in paths:
        ds = pydicom.dcmread(path)
        ds.compress(syntax, generate_instance_uid=False)
        ds.save_as(folder / path.name)
    return sorted(folder.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"parts": 3},
        {"syntax": JPEGLSLossless},
        {"syntax": JPEGLSLossless, "offset_table": False, "fragments": 3},
        {"syntax": JPEG2000Lossless, "offset_table": False, "fragments": 2, "parts": 2},
        {"syntax": RLELossless, "offset_table": False},
    ],
    ids=str,
)
def test_enhanced_ct_is_the_volume_of_its_single_frames(
    single: list[Path], plain: tuple[CTSeries, Volume], tmp_path: Path, options: dict[str, Any]
) -> None:
    syntax = options.pop("syntax", None) if (options := dict(options)) else None
    paths = single if syntax is None else compressed(single, tmp_path / "single", syntax)
    files = make_enhanced_ct(paths, tmp_path / "multi", **options)
    assert len(files) == options.get("parts", 1)
    series = read_series(files, LIMITS)
    volume = to_volume(series)
    assert np.array_equal(volume.hu, plain[1].hu)
    assert np.array_equal(volume.affine, plain[1].affine)
    assert sorted(series.sop_instance_uids) == [f"{SERIES_UID}.{n + 1}" for n in range(len(files))]
    # Each image knows its frame: the place in the file is not that in the body.
    for image in series.images:
        frame = pydicom.dcmread(image.path).PerFrameFunctionalGroupsSequence[image.frame - 1]
        assert tuple(frame.PlanePositionSequence[0].ImagePositionPatient) == image.position_mm
    assert [image.frame for image in series.images] != sorted(image.frame or 0 for image in series.images)


def test_legacy_converted_ct_is_the_volume_of_its_single_frames(
    single: list[Path], plain: tuple[CTSeries, Volume], tmp_path: Path
) -> None:
    series = read_series(make_legacy_ct(single, tmp_path), LIMITS)
    volume = to_volume(series)
    assert np.array_equal(volume.hu, plain[1].hu)
    assert np.array_equal(volume.affine, plain[1].affine)
    assert len(series.images) == len(single)


def test_routes_see_the_attributes_of_the_frames(single: list[Path], tmp_path: Path) -> None:
    for files in (make_enhanced_ct(single, tmp_path / "e"), make_legacy_ct(single, tmp_path / "l")):
        images = images_of(read_headers(files))
        assert consensus(images, "ConvolutionKernel") == ["B50f"]
        assert consensus(images, "KVP") == [120.0]
        assert consensus(images, "SliceThickness") == [2.5]
        assert consensus(images, "Modality") == ["CT"]
        assert len(images) == len(single)


def test_an_enhanced_ct_without_its_frames_still_has_a_route(single: list[Path], tmp_path: Path) -> None:
    files = make_enhanced_ct(single, tmp_path, change=lambda ds: ds.__delattr__("PerFrameFunctionalGroupsSequence"))
    assert consensus(images_of(read_headers(files)), "Modality") == ["CT"]


# -- refused ---------------------------------------------------------------------------------------------


def _groups(ds: Dataset) -> Any:
    return ds.PerFrameFunctionalGroupsSequence


def _shared(ds: Dataset) -> Dataset:
    shared: Dataset = ds.SharedFunctionalGroupsSequence[0]
    return shared


def _each(ds: Dataset, group: str, keyword: str, value: Any) -> None:
    for frame in _groups(ds):
        setattr(frame[group].value[0], keyword, value)


def _without_last_frames(ds: Dataset) -> None:
    ds.PerFrameFunctionalGroupsSequence = list(_groups(ds))[:-2]


def _turned(ds: Dataset) -> None:
    _shared(ds).PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 0, -1]


def _moved(ds: Dataset) -> None:
    _groups(ds)[0].PlanePositionSequence = _groups(ds)[1].PlanePositionSequence


def _tilted(ds: Dataset) -> None:
    for frame in _groups(ds):
        x, y, z = frame.PlanePositionSequence[0].ImagePositionPatient
        frame.PlanePositionSequence[0].ImagePositionPatient = [x, y + 0.3 * (z + 110.5), z]


def _two_kernels(ds: Dataset) -> None:
    other = Dataset()
    other.ConvolutionKernel = "B70f"
    _groups(ds)[0].CTReconstructionSequence = [other]


REFUSED: dict[str, tuple[Change, Reason, str]] = {
    "fewer descriptions than frames": (
        _without_last_frames,
        Reason.FRAMES_MISSING,
        "NumberOfFrames is 44, and 42 frames are described",
    ),
    "a claim of 2^31 frames": (
        lambda ds: setattr(ds, "NumberOfFrames", 2**31 - 1),
        Reason.FRAMES_MISSING,
        "NumberOfFrames is a value not shown here, and 44 frames are described",
    ),
    "no position": (
        lambda ds: _groups(ds)[3].__delattr__("PlanePositionSequence"),
        Reason.MISSING_GEOMETRY,
        "ImagePositionPatient",
    ),
    "empty groups": (
        lambda ds: setattr(_shared(ds), "PixelMeasuresSequence", []),
        Reason.MISSING_GEOMETRY,
        "PixelSpacing",
    ),
    "no shared groups": (
        lambda ds: setattr(ds, "SharedFunctionalGroupsSequence", []),
        Reason.MISSING_GEOMETRY,
        "ImageOrientationPatient",
    ),
    "coronal": (_turned, Reason.NOT_AXIAL, "90 degrees"),
    "two frames in one place": (_moved, Reason.DUPLICATE_POSITION, "1 slices lie where another does"),
    "tilted": (_tilted, Reason.GANTRY_TILT, "slices shift"),
    "two kernels": (_two_kernels, Reason.MIXED_KERNEL, "B50f, B70f"),
    "thick": (
        lambda ds: setattr(_shared(ds).PixelMeasuresSequence[0], "SliceThickness", 5),
        Reason.TOO_THICK,
        "5.00 mm thick",
    ),
    "no unit": (
        lambda ds: _each(ds, "PixelValueTransformationSequence", "RescaleType", "US"),
        Reason.NOT_HU,
        "RescaleType is 'US', not 'HU'",
    ),
    "no rescale": (
        lambda ds: [frame.__delattr__("PixelValueTransformationSequence") for frame in _groups(ds)] and None,
        Reason.NOT_HU,
        "RescaleType is ''",
    ),
    "resampled along a curve": (
        lambda ds: setattr(_shared(ds).CTImageFrameTypeSequence[0], "VolumetricProperties", "DISTORTED"),
        Reason.MULTIFRAME_UNSUPPORTED,
        "VolumetricProperties is DISTORTED",
    ),
    "localizers": (
        lambda ds: setattr(
            _shared(ds).CTImageFrameTypeSequence[0], "FrameType", ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
        ),
        Reason.NO_AXIAL_IMAGES,
        "localizer",
    ),
    "lossy": (lambda ds: setattr(ds, "LossyImageCompression", "01"), Reason.LOSSY, "44 of 44"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_gate_has_the_same_reasons_for_frames(single: list[Path], tmp_path: Path, name: str) -> None:
    change, reason, text = REFUSED[name]
    with pytest.raises(SeriesRejected) as caught:
        read_series(make_enhanced_ct(single, tmp_path, change=change), LIMITS)
    assert caught.value.reason is reason
    assert text in caught.value.text


def test_a_concatenation_without_one_of_its_parts_is_refused(single: list[Path], tmp_path: Path) -> None:
    files = make_enhanced_ct(single, tmp_path, parts=3)
    for missing in range(3):
        there = [file for number, file in enumerate(files) if number != missing]
        with pytest.raises(SeriesRejected, match="a concatenation of 3 parts has 2 here") as caught:
            read_series(there, LIMITS)
        assert caught.value.reason is Reason.FRAMES_MISSING


def test_a_concatenation_that_does_not_tell_its_length_shows_a_gap(single: list[Path], tmp_path: Path) -> None:
    # PS3.3 C.7.6.16.2.2.4: InConcatenationTotalNumber is of type 3.
    files = make_enhanced_ct(single, tmp_path, parts=3, change=lambda ds: ds.__delattr__("InConcatenationTotalNumber"))
    assert len(read_series(files, LIMITS).images) == len(single)
    with pytest.raises(SeriesRejected, match="a concatenation of 3 parts has 2 here"):
        read_series([files[0], files[2]], LIMITS)


def test_more_frames_than_a_job_may_have_are_refused(single: list[Path], tmp_path: Path) -> None:
    limits = LIMITS.model_copy(update={"max_instances": 43})
    with pytest.raises(SeriesRejected, match=r"44 images, gate\.max_instances is 43") as caught:
        read_series(make_enhanced_ct(single, tmp_path), limits)
    assert caught.value.reason is Reason.TOO_LARGE


def test_some_localizer_frames_are_left_out_and_counted(single: list[Path], tmp_path: Path) -> None:
    def change(ds: Dataset) -> None:
        kind = Dataset()
        kind.FrameType = ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
        place = min(range(44), key=lambda n: _groups(ds)[n].PlanePositionSequence[0].ImagePositionPatient[2])
        _groups(ds)[place].CTImageFrameTypeSequence = [kind]

    series = read_series(make_enhanced_ct(single, tmp_path, change=change), LIMITS)
    assert len(series.images) == 43
    [(name, why)] = series.left_out.items()
    assert name.startswith(f"{SERIES_UID}.1 frame ")
    assert why == "localizer"


def test_a_functional_group_cannot_replace_an_identifier(single: list[Path], tmp_path: Path) -> None:
    def change(ds: Dataset) -> None:
        for frame in _groups(ds):
            frame.PlanePositionSequence[0].SOPInstanceUID = "1.2.3"
            converted = Dataset()
            converted.SOPInstanceUID, converted.SeriesInstanceUID, converted.Rows = "1.2.3", "1.2.4", 1
            frame.UnassignedPerFrameConvertedAttributesSequence = [converted]

    series = read_series(make_enhanced_ct(single, tmp_path, change=change), LIMITS)
    assert series.sop_instance_uids == (f"{SERIES_UID}.1",)
    assert (series.series_uid, series.rows) == (SERIES_UID, 64)


_GROUP_KEYWORDS = {
    "PlanePositionSequence": "ImagePositionPatient",
    "PixelValueTransformationSequence": "RescaleSlope",
    "FrameContentSequence": "StackID",
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    group=st.sampled_from(sorted(_GROUP_KEYWORDS)),
    value=st.one_of(st.none(), st.text(max_size=6), st.floats(width=32), st.lists(st.floats(width=32), max_size=5)),
    items=st.integers(0, 2),
)
def test_no_content_of_a_functional_group_gets_past_the_gate_by_a_crash(
    single: list[Path], group: str, value: Any, items: int
) -> None:
    [file] = read_headers(_ENHANCED.setdefault("file", make_enhanced_ct(single, single[0].parent / "multi")))
    frame = file.header.PerFrameFunctionalGroupsSequence[7]
    item, keyword = Dataset(), _GROUP_KEYWORDS[group]
    if value is not None:
        item[keyword] = DataElement(keyword, "LO", value, validation_mode=pydicom_config.IGNORE, already_converted=True)
    setattr(frame, group, [item] * items)
    consensus(images_of([file]), keyword)
    with contextlib.suppress(SeriesRejected):
        assert np.isfinite(check_series([file], LIMITS).affine).all()


_ENHANCED: dict[str, list[Path]] = {}


# -- results ---------------------------------------------------------------------------------------------


def results_of(files: list[Path]) -> tuple[CTSeries, Results]:
    series = read_series(files, LIMITS)
    volume = to_volume(series)
    found = ball(volume, (10, 20, 20), 4.0), ball(volume, (30, 40, 45), 6.0, score=0.7, side="right")
    return series, build_results(series, volume, detection_of(*found), **JOB)


@pytest.fixture(scope="module", params=["enhanced", "concatenation", "legacy"])
def multi(
    request: pytest.FixtureRequest, single: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[CTSeries, Results]:
    folder = tmp_path_factory.mktemp("multi")
    if request.param == "legacy":
        return results_of(make_legacy_ct(single, folder))
    return results_of(make_enhanced_ct(single, folder, parts=3 if request.param == "concatenation" else 1))


def test_highdicom_reads_the_same_masks_frame_by_frame(multi: tuple[CTSeries, Results], single: list[Path]) -> None:
    series, results = multi
    plain_series, plain_results = results_of(single)
    theirs = highdicom.seg.Segmentation.from_dataset(results.seg)
    ours = highdicom.seg.Segmentation.from_dataset(plain_results.seg)
    shown = 0
    for image, plain_image in zip(series.images, plain_series.images, strict=True):
        options = {"ignore_spatial_locations": True, "assert_missing_frames_are_empty": True}
        mask = theirs.get_pixels_by_source_frame(image.sop_instance_uid, [image.frame], **options)
        plain_mask = ours.get_pixels_by_source_instance([plain_image.sop_instance_uid], **options)
        assert np.array_equal(mask, plain_mask)
        shown += int(mask.any())
    assert shown == len(
        {f.PlanePositionSequence[0].ImagePositionPatient[2] for f in results.seg.PerFrameFunctionalGroupsSequence}
    )
    numbers = [
        [(m.volume_mm3, m.long_axis_mm, m.mean_hu, m.slice_index) for m in r.measurements]
        for r in (results, plain_results)
    ]
    assert numbers[0] == numbers[1]


def test_the_segmentation_names_its_source_instances_once(multi: tuple[CTSeries, Results]) -> None:
    series, results = multi
    [reference] = results.seg.ReferencedSeriesSequence
    assert reference.SeriesInstanceUID == series.series_uid
    named = [str(item.ReferencedSOPInstanceUID) for item in reference.ReferencedInstanceSequence]
    assert len(named) == len(set(named))
    assert set(named) <= set(series.sop_instance_uids)
    assert {str(item.ReferencedSOPClassUID) for item in reference.ReferencedInstanceSequence} == {
        series.images[0].sop_class_uid
    }


def _nested(ds: Dataset) -> list[Dataset]:
    found = [ds]
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                found += _nested(item)
    return found


def test_the_report_points_at_frames(multi: tuple[CTSeries, Results]) -> None:
    series, results = multi
    place = {(image.sop_instance_uid, image.frame) for image in series.images}
    images = [item for item in _nested(results.sr) if item.get("ValueType") == "IMAGE"]
    pointed = [item.ReferencedSOPSequence[0] for item in images]
    frames = [r for r in pointed if r.ReferencedSOPClassUID == series.images[0].sop_class_uid]
    # Two in the image library, and the outline and both axes of each of the two findings.
    assert len(frames) == 8
    assert {(str(r.ReferencedSOPInstanceUID), int(r.ReferencedFrameNumber)) for r in frames} <= place
    outlined = {series.images[m.slice_index].frame for m in results.measurements}
    assert {int(r.ReferencedFrameNumber) for r in frames} == outlined
    [study] = results.sr.CurrentRequestedProcedureEvidenceSequence
    evidence = [str(item.ReferencedSOPInstanceUID) for item in study.ReferencedSeriesSequence[0].ReferencedSOPSequence]
    assert sorted(evidence) == sorted(series.sop_instance_uids)


def test_infer_and_route_take_a_multi_frame_folder(
    single: list[Path], tmp_path: Path, node_config: Callable[..., Config]
) -> None:
    make_enhanced_ct(single, tmp_path / "ct", parts=2)
    assert list(series_in(tmp_path / "ct")) == [SERIES_UID]
    when = {"ConvolutionKernel": {"equals": "B50f"}, "SliceCount": {"min": 44}}
    config = node_config(
        gate={"min_slices": 5, "min_length_mm": 0},
        models={"nodules": {"bundle": "builtin:lung_nodule_small"}},
        routes=[{"name": "b50", "model": "nodules", "when": when}],
    )
    [row] = explain_routes(tmp_path / "ct", config, "SCANNER")
    assert (row["files"], row["slices"], row["route"], row["reason"]) == (2, 44, "b50", None)


def test_a_report_says_how_lossy_images_were_compressed(single: list[Path], tmp_path: Path) -> None:
    def change(ds: Dataset) -> None:
        ds.LossyImageCompression, ds.LossyImageCompressionRatio = "01", "9.5"
        ds.LossyImageCompressionMethod = "ISO_15444_1"

    series = read_series(
        make_enhanced_ct(single, tmp_path, change=change), LIMITS.model_copy(update={"lossy": "accept"})
    )
    volume = to_volume(series)
    results = build_results(series, volume, detection_of(ball(volume, (10, 20, 20), 4.0)), **JOB)
    texts = [item.get("TextValue", "") for item in _nested(results.sr)]
    assert any(text.startswith("44 of 44 images were compressed with loss: ISO_15444_1, ratio 9.5") for text in texts)
    assert results.seg is not None
    assert (results.seg.LossyImageCompression, float(results.seg.LossyImageCompressionRatio)) == ("01", 9.5)
    assert not any("compressed with loss" in text for text in _texts_of(single))


def _texts_of(files: list[Path]) -> list[str]:
    return [item.get("TextValue", "") for item in _nested(results_of(files)[1].sr)]
