"""The geometry gate and the way to Hounsfield units: what is not a plain axial CT never becomes a volume."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom import config as pydicom_config
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    JPEG2000,
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSNearLossless,
    SecondaryCaptureImageStorage,
)

from dicom_node.config import GateConfig
from dicom_node.domain import CTSeries
from dicom_node.errors import Reason, SeriesRejected, UnreadableInstance
from dicom_node.series import InstanceFile, check_series, consensus, images_of, read_headers, read_series, to_volume
from dicom_node.series.decode import to_hu
from tests.fakes.ct import make_ct_series

SUPINE = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
Headers = list[Dataset]
LIMITS = GateConfig(min_slices=2, min_length_mm=0)


def headers(
    count: int = 50,
    *,
    orientation: Sequence[Sequence[float]] = SUPINE,
    origin: Sequence[float] = (-10.0, 20.0, -300.0),
    step_mm: float = 2.5,
    step: Sequence[float] | None = None,
) -> Headers:
    """Headers of a series that passes; `step` replaces the way from slice to slice along the normal."""
    row, column = np.array(orientation[0]), np.array(orientation[1])
    way = np.cross(row, column) * step_mm if step is None else np.array(step)
    return [_header(number, np.array(origin) + number * way, [*row, *column]) for number in range(count)]


def _header(number: int, position: Any, orientation: Sequence[float]) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"1.2.3.{number + 1}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.1", "1.2.2", "1.2.4"
    ds.Modality, ds.ImageType, ds.ConvolutionKernel = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], "B50f"
    ds.Rows, ds.Columns, ds.PixelSpacing, ds.SliceThickness = 512, 400, [0.7, 0.8], 2.5
    ds.BitsAllocated, ds.PixelRepresentation, ds.SamplesPerPixel = 16, 1, 1
    ds.RescaleSlope, ds.RescaleIntercept = "1", "-1024"
    ds.ImagePositionPatient = [f"{value:.6f}" for value in position]
    ds.ImageOrientationPatient = [f"{value:.8f}" for value in orientation]
    return ds


def files_of(made: Sequence[Dataset]) -> list[InstanceFile]:
    return [InstanceFile(path=f"{number}.dcm", header=header) for number, header in enumerate(made)]


def checked(made: Sequence[Dataset], **limits: Any) -> CTSeries:
    return check_series(files_of(made), GateConfig(**limits))


def refused(made: Sequence[Dataset], **limits: Any) -> tuple[Reason, str]:
    with pytest.raises(SeriesRejected) as caught:
        checked(made, **limits)
    return caught.value.reason, caught.value.text


def put(ds: Dataset, keyword: str, value: Any) -> None:
    """Set any value, as a received file may have it; None takes the attribute out."""
    if value is None:
        del ds[keyword]
    else:
        ds.add(DataElement(keyword, dictionary_VR(keyword), value, validation_mode=pydicom_config.IGNORE))


# -- what passes ---------------------------------------------------------------------------------------

_SIGNS = st.sampled_from([1.0, -1.0])


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(50)), data=st.data())
def test_any_order_of_files_gives_the_same_series(order: list[int], data: st.DataObject) -> None:
    step = data.draw(st.floats(2.1, 3.0))
    made = headers(step_mm=step)
    series, plain = checked([made[n] for n in order]), checked(made)
    assert series.sop_instance_uids == plain.sop_instance_uids
    assert np.array_equal(series.affine, plain.affine)


@settings(max_examples=60, deadline=None)
@given(
    x=_SIGNS,
    y=_SIGNS,
    origin=st.tuples(*[st.floats(-2000, 2000, allow_subnormal=False)] * 3),
    step_mm=st.floats(0.3, 3.0),
    backwards=st.booleans(),
)
def test_any_flip_of_axial_slices_passes_and_the_affine_maps_voxels_to_positions(
    x: float, y: float, origin: tuple[float, float, float], step_mm: float, backwards: bool
) -> None:
    orientation = ((x, 0.0, 0.0), (0.0, y, 0.0))
    made = headers(40, orientation=orientation, origin=origin, step_mm=-step_mm if backwards else step_mm)
    series = checked(made, min_length_mm=0)
    assert [image.projection_mm for image in series.images] == sorted(image.position_mm[2] for image in series.images)
    for index in (0, 7, 39):
        corner = series.affine @ [index, 0, 0, 1]
        assert corner[:3] == pytest.approx(series.images[index].position_mm, abs=0.01)
    # PS3.3 C.7.6.2.1.1: one column on is one step along the row's direction, by the second PixelSpacing.
    assert series.affine[:3, 2] == pytest.approx([0.8 * x, 0, 0])
    assert series.affine[:3, 1] == pytest.approx([0, 0.7 * y, 0])
    assert series.affine[2, 0] == pytest.approx(step_mm, abs=1e-4)
    assert series.spacing_mm == pytest.approx((step_mm, 0.7, 0.8), abs=1e-4)


def test_positions_that_are_rounded_pass() -> None:
    made = headers(100, step_mm=1.3333)
    for ds in made:
        ds.ImagePositionPatient = [f"{float(value):.2f}" for value in ds.ImagePositionPatient]
    assert len(checked(made).images) == 100


def test_orientations_that_differ_by_rounding_pass() -> None:
    made = headers()
    made[3].ImageOrientationPatient = ["1", "0.00002", "0", "-0.00001", "1", "0.0001"]
    assert len(checked(made).images) == 50


def test_a_localizer_beside_axial_images_is_left_out_with_its_reason() -> None:
    localizer = headers(51)[50]
    localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    localizer.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    series = checked([localizer, *headers()])
    assert len(series.images) == 50
    assert series.left_out == {"1.2.3.51": "localizer"}


def test_a_dose_screen_and_other_classes_beside_axial_images_are_left_out() -> None:
    screen, capture, no_geometry = headers(53)[50:]
    screen.SOPClassUID = SecondaryCaptureImageStorage
    capture.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.88.67")
    no_geometry.ImageType = ["DERIVED", "SECONDARY"]
    del no_geometry.ImagePositionPatient
    series = checked([*headers(), screen, capture, no_geometry])
    assert len(series.images) == 50
    assert series.left_out == {
        "1.2.3.51": "Secondary Capture Image Storage is no CT image",
        "1.2.3.52": "X-Ray Radiation Dose SR Storage is no CT image",
        "1.2.3.53": "secondary image without geometry",
    }


# -- what is refused, reason by reason -----------------------------------------------------------------


def _without(*numbers: int) -> Headers:
    return [ds for n, ds in enumerate(headers()) if n not in numbers]


def _all(keyword: str, value: Any) -> Headers:
    made = headers()
    for ds in made:
        put(ds, keyword, deepcopy(value))
    return made


def _one(keyword: str, value: Any, at: int = 20) -> Headers:
    made = headers()
    put(made[at], keyword, value)
    return made


def _moved(at: int, by_mm: Sequence[float]) -> Headers:
    made = headers()
    position = [float(value) for value in made[at].ImagePositionPatient]
    made[at].ImagePositionPatient = [p + by for p, by in zip(position, by_mm, strict=True)]
    return made


def _turned(degrees: float, axis: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    c, s = float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))
    if axis == "x":
        return (1.0, 0.0, 0.0), (0.0, c, s)
    return ((c, 0.0, s), (0.0, 1.0, 0.0)) if axis == "y" else ((c, s, 0.0), (-s, c, 0.0))


def _tilted() -> Headers:
    made = headers(orientation=_turned(15, "x"), step=(0.0, 0.0, 2.5))
    for ds in made:
        ds.GantryDetectorTilt = "15"
    return made


def _transfer_syntax(uid: UID, **attributes: Any) -> Headers:
    made = headers()
    for ds in made:
        ds.file_meta.TransferSyntaxUID = uid
        for keyword, value in attributes.items():
            put(ds, keyword, value)
    return made


def _doubled() -> Headers:
    made = headers()
    again = deepcopy(made[7])
    again.SOPInstanceUID = "1.2.3.999"
    return [*made, again]


def _uneven() -> Headers:
    made = headers()
    for number, ds in enumerate(made):
        ds.ImagePositionPatient = [-10, 20, -300 + 2.5 * number + 0.6 * (number % 2)]
    return made


def _projections() -> Headers:
    [ds] = headers(1)
    frame = Dataset()
    frame.FrameType, frame.VolumeBasedCalculationTechnique = ["DERIVED", "PRIMARY", "VOLUME", "MAXIMUM"], "MAX_IP"
    groups = Dataset()
    groups.CTImageFrameTypeSequence = [frame]
    ds.SOPClassUID, ds.NumberOfFrames, ds.PerFrameFunctionalGroupsSequence = EnhancedCTImageStorage, 1, [groups]
    return [ds]


REFUSED: dict[str, tuple[Callable[[], Headers], Reason, str]] = {
    "no files": (list, Reason.TOO_FEW_SLICES, "no files"),
    "missing slice": (lambda: _without(20), Reason.SLICE_GAP, "gap of 5.00 mm after slice 20 of 49"),
    "two missing slices": (lambda: _without(20, 21), Reason.SLICE_GAP, "gap of 7.50 mm after slice 20"),
    "every fifth slice missing": (
        lambda: _without(*range(0, 50, 5)),
        Reason.UNEVEN_SPACING,
        "gap of 5.00 mm",
    ),
    "duplicated slice": (_doubled, Reason.DUPLICATE_POSITION, "1 slices lie where another does, first at -282.5 mm"),
    "two reconstructions in one": (
        lambda: [*headers(), *_renamed(headers())],
        Reason.DUPLICATE_POSITION,
        "50 slices lie where another does",
    ),
    "same file twice": (
        lambda: [*headers(), headers()[3]],
        Reason.DUPLICATE_POSITION,
        "same SOP Instance UID",
    ),
    "uneven": (_uneven, Reason.UNEVEN_SPACING, "spacing varies from 1.90 to 3.10 mm"),
    "tilted gantry": (_tilted, Reason.GANTRY_TILT, "15.0 degrees"),
    "tilt, straightened in the header": (
        lambda: headers(step=(0.0, 0.6, 2.5)),
        Reason.GANTRY_TILT,
        "slices shift by 29.4 mm within their plane",
    ),
    "one slice shifted": (lambda: _moved(9, (0.0, 0.3, 0.0)), Reason.GANTRY_TILT, "slices shift by 0.3 mm"),
    "oblique": (lambda: headers(orientation=_turned(10, "y")), Reason.NOT_AXIAL, "oblique: 10.0 degrees"),
    "turned in plane": (lambda: headers(orientation=_turned(5, "z")), Reason.NOT_AXIAL, "turned in their plane"),
    "coronal": (
        lambda: headers(orientation=((1.0, 0.0, 0.0), (0.0, 0.0, -1.0))),
        Reason.NOT_AXIAL,
        "90 degrees off",
    ),
    "sagittal": (
        lambda: headers(orientation=((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))),
        Reason.NOT_AXIAL,
        "90 degrees off",
    ),
    "mixed orientation": (
        lambda: _one("ImageOrientationPatient", [-1, 0, 0, 0, 1, 0]),
        Reason.ORIENTATION_MIXED,
        "more than one",
    ),
    "axial and coronal": (
        lambda: [*headers(), *_renamed(headers(orientation=((1.0, 0.0, 0.0), (0.0, 0.0, -1.0))))],
        Reason.ORIENTATION_MIXED,
        "more than one",
    ),
    "orientation that is none": (
        lambda: _all("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]),
        Reason.MISSING_GEOMETRY,
        "not orthonormal",
    ),
    "mixed kernel": (lambda: _one("ConvolutionKernel", "B70f"), Reason.MIXED_KERNEL, "B50f, B70f"),
    "mixed matrix": (lambda: _one("Columns", 512), Reason.MIXED_MATRIX, "2 values of Columns: 400, 512"),
    "mixed pixel spacing": (lambda: _one("PixelSpacing", [0.7, 0.9]), Reason.MIXED_MATRIX, "PixelSpacing"),
    "mixed frame of reference": (
        lambda: _one("FrameOfReferenceUID", "1.2.5"),
        Reason.MIXED_FRAME_OF_REFERENCE,
        "2 values",
    ),
    "mixed series": (lambda: _one("SeriesInstanceUID", "1.2.99"), Reason.MIXED_SERIES, "more than one Series"),
    "mixed study": (lambda: _one("StudyInstanceUID", "1.2.99"), Reason.MIXED_SERIES, "more than one Study"),
    "few": (lambda: headers(19), Reason.TOO_FEW_SLICES, "19 axial slices, gate.min_slices is 20"),
    "short": (lambda: headers(39), Reason.TOO_SHORT, "98 mm of the body, gate.min_length_mm is 100"),
    "far apart": (lambda: headers(step_mm=5), Reason.TOO_THICK, "5.00 mm apart, gate.max_slice_spacing_mm is 3.0"),
    "thick": (lambda: _all("SliceThickness", 5), Reason.TOO_THICK, "5.00 mm thick"),
    "one thick slice": (lambda: _one("SliceThickness", 5), Reason.TOO_THICK, "5.00 mm thick"),
    "too many": (lambda: headers(5001), Reason.TOO_LARGE, "5001 instances, gate.max_instances is 5000"),
    "a matrix that no scanner has": (
        lambda: [_sized(ds, 65535) for ds in headers()],
        Reason.TOO_LARGE,
        "a matrix of 65535 x 65535",
    ),
    "more voxels than fit": (
        lambda: [_sized(ds, 4096) for ds in headers(200)],
        Reason.TOO_LARGE,
        "voxels",
    ),
    "lossy by syntax": (
        lambda: _transfer_syntax(JPEGBaseline8Bit),
        Reason.LOSSY,
        "50 of 50 images were compressed with loss: ISO_10918_1, ratio not told; gate.lossy is refuse",
    ),
    "near-lossless by syntax": (lambda: _transfer_syntax(JPEGLSNearLossless), Reason.LOSSY, "ISO_14495_1"),
    "lossy by declaration": (
        lambda: _transfer_syntax(ExplicitVRLittleEndian, LossyImageCompression="01"),
        Reason.LOSSY,
        "50 of 50",
    ),
    "lossy JPEG 2000": (
        lambda: _transfer_syntax(JPEG2000, LossyImageCompressionRatio=[10]),
        Reason.LOSSY,
        "50 of 50 images were compressed with loss: ISO_15444_1, ratio 10",
    ),
    "JPEG 2000 that says nothing and has no codestream": (
        lambda: _transfer_syntax(JPEG2000),
        Reason.LOSSY,
        "50 of 50",
    ),
    "no study UID": (lambda: _all("StudyInstanceUID", None), Reason.MISSING_UID, "StudyInstanceUID is missing in 50"),
    "one empty SOP Instance UID": (lambda: _one("SOPInstanceUID", ""), Reason.MISSING_UID, "in 1 of 50"),
    "no SOP class": (lambda: _all("SOPClassUID", None), Reason.MISSING_UID, "SOPClassUID is missing in 50"),
    "two series UIDs in one element": (
        lambda: _all("SeriesInstanceUID", ["1.2", "1.3"]),
        Reason.MISSING_UID,
        "SeriesInstanceUID",
    ),
    "no Modality": (lambda: _all("Modality", None), Reason.NOT_CT, "Modality is '', not 'CT'"),
    "another Modality": (lambda: _one("Modality", "PT"), Reason.NOT_CT, "Modality is 'PT'"),
    "colour": (lambda: _all("SamplesPerPixel", 3), Reason.NOT_CT, "coloured"),
    "frames": (lambda: _all("NumberOfFrames", 2), Reason.NOT_CT, "several frames"),
    "localizers only": (
        lambda: _all("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        Reason.NO_AXIAL_IMAGES,
        "localizer",
    ),
    "secondary captures only": (
        lambda: _all("SOPClassUID", SecondaryCaptureImageStorage),
        Reason.NOT_CT,
        "no CT Image Storage",
    ),
    "multi-frame without frames": (
        lambda: _all("SOPClassUID", EnhancedCTImageStorage),
        Reason.FRAMES_MISSING,
        "NumberOfFrames is absent, and 0 frames are described",
    ),
    "multi-frame maximum intensity": (
        _projections,
        Reason.MULTIFRAME_UNSUPPORTED,
        "VolumeBasedCalculationTechnique is MAX_IP: send the plain frames",
    ),
    "iodine map": (lambda: _all("RescaleType", "MGML"), Reason.NOT_HU, "RescaleType is 'MGML'"),
    "no slope": (lambda: _all("RescaleSlope", None), Reason.NOT_HU, "RescaleSlope absent"),
    "one image without intercept": (lambda: _one("RescaleIntercept", ""), Reason.NOT_HU, "RescaleIntercept absent"),
    "Modality LUT": (lambda: _all("ModalityLUTSequence", [Dataset()]), Reason.NOT_HU, "a Modality LUT is given"),
    "one image of another unit": (lambda: _one("RescaleType", "Z_EFF"), Reason.NOT_HU, "'Z_EFF'"),
    "zero spacing": (lambda: _all("PixelSpacing", [0, 0.7]), Reason.MISSING_GEOMETRY, "values that cannot be"),
    "negative spacing": (lambda: _all("PixelSpacing", [0.7, -0.7]), Reason.MISSING_GEOMETRY, "values that cannot be"),
    "spacing NaN": (lambda: _all("PixelSpacing", ["NaN", "0.7"]), Reason.MISSING_GEOMETRY, "values that cannot be"),
    "spacing infinite": (lambda: _all("PixelSpacing", ["inf", "1"]), Reason.MISSING_GEOMETRY, "values that cannot be"),
    "position NaN": (
        lambda: _one("ImagePositionPatient", ["0", "NaN", "0"]),
        Reason.MISSING_GEOMETRY,
        "values that cannot be",
    ),
    "position beyond all bodies": (
        lambda: _one("ImagePositionPatient", ["0", "1e300", "0"]),
        Reason.MISSING_GEOMETRY,
        "values that cannot be",
    ),
    "thickness NaN": (lambda: _one("SliceThickness", "NaN"), Reason.MISSING_GEOMETRY, "SliceThickness"),
    "no position": (
        lambda: _one("ImagePositionPatient", None),
        Reason.MISSING_GEOMETRY,
        "ImagePositionPatient is missing or incomplete",
    ),
    "empty orientation": (
        lambda: _all("ImageOrientationPatient", ""),
        Reason.MISSING_GEOMETRY,
        "ImageOrientationPatient is missing",
    ),
    "two coordinates": (
        lambda: _all("ImagePositionPatient", [1, 2]),
        Reason.MISSING_GEOMETRY,
        "incomplete",
    ),
    "no rows": (lambda: _all("Rows", 0), Reason.MISSING_GEOMETRY, "Rows or Columns is zero"),
    "no frame of reference": (
        lambda: _all("FrameOfReferenceUID", None),
        Reason.MISSING_GEOMETRY,
        "FrameOfReferenceUID",
    ),
}


def _renamed(made: Headers) -> Headers:
    for ds in made:
        ds.SOPInstanceUID = f"{ds.SOPInstanceUID}.9"
    return made


def _sized(ds: Dataset, size: int) -> Dataset:
    ds.Rows = ds.Columns = size
    return ds


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_model_may_see_is_refused_with_its_reason(name: str) -> None:
    make, reason, text = REFUSED[name]
    got, said = refused(make())
    assert got is reason
    assert text in said


def test_each_reason_of_the_gate_is_tried_here() -> None:
    # Four belong to others: no lung is the model's word, no route and unreadable the flow's, undecodable the pixels'.
    others = {Reason.NO_LUNG, Reason.NO_ROUTE, Reason.UNREADABLE, Reason.PIXELS_UNDECODABLE}
    assert {reason for _, reason, _ in REFUSED.values()} == set(Reason) - others


@pytest.mark.parametrize(
    ("make", "limits"),
    [
        (lambda: headers(19), {"min_slices": 10, "min_length_mm": 10}),
        (lambda: headers(step_mm=5), {"max_slice_spacing_mm": 5}),
        (lambda: _all("SliceThickness", 5), {"max_slice_thickness_mm": 5}),
        (lambda: _transfer_syntax(JPEGBaseline8Bit), {"lossy": "accept"}),
    ],
)
def test_a_limit_that_is_widened_lets_the_series_pass(make: Callable[[], Headers], limits: dict[str, Any]) -> None:
    refused(make())
    assert checked(make(), **limits).images


@pytest.mark.parametrize("syntax", [JPEG2000, JPEG2000Lossless])
def test_lossless_jpeg_2000_is_not_lossy(syntax: UID) -> None:
    assert checked(_transfer_syntax(syntax, LossyImageCompression="00")).images


_VALUES = st.one_of(
    st.none(),
    st.text(max_size=8),
    st.integers(-(2**31), 2**31 - 1),
    st.floats(width=32),
    st.lists(st.one_of(st.text(max_size=4), st.floats(width=32)), max_size=7),
)


@settings(max_examples=200, deadline=None)
@example(keyword="Columns", value=[1.0], vr="LO", everywhere=True)
@given(
    keyword=st.sampled_from([*sorted(headers(1)[0].dir()), "NumberOfFrames", "GantryDetectorTilt"]),
    value=_VALUES,
    vr=st.sampled_from(["LO", "DS"]),
    everywhere=st.booleans(),
)
def test_no_header_value_of_any_kind_gets_past_the_gate_by_a_crash(
    keyword: str, value: Any, vr: str, everywhere: bool
) -> None:
    made = headers(20, step_mm=3)
    for ds in made if everywhere else made[5:6]:
        if value is None:
            ds.pop(keyword, None)
        elif vr == "LO" or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            ds[keyword] = DataElement(keyword, vr, value, validation_mode=pydicom_config.IGNORE, already_converted=True)
    consensus(images_of(files_of(made)), keyword)
    with contextlib.suppress(SeriesRejected):
        series = checked(made, min_length_mm=0)
        assert np.isfinite(series.affine).all()
        assert abs(np.linalg.det(series.affine[:3, :3])) > 0


# -- reading -------------------------------------------------------------------------------------------


def test_headers_come_in_the_order_of_their_paths_and_without_pixels(tmp_path: Path) -> None:
    paths = make_ct_series(tmp_path, shape=(3, 8, 8))
    files = read_headers(paths[::-1])
    assert [file.path for file in files] == [str(path) for path in paths[::-1]]
    assert all("PixelData" not in file.header for file in files)


@pytest.mark.parametrize("content", [b"", b"no DICOM", b"\0" * 128 + b"DICN" + b"\xff" * 64])
def test_a_file_that_is_no_dicom_is_named_without_its_folder(tmp_path: Path, content: bytes) -> None:
    paths = make_ct_series(tmp_path / "Secret^Patient", shape=(2, 8, 8))
    paths[1].write_bytes(content)
    with pytest.raises(UnreadableInstance, match=r"file 2 of 2 \(0001\.dcm\) is no readable DICOM") as caught:
        read_headers(paths)
    assert "Secret" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_file_that_is_noise_after_its_magic_word_is_refused(tmp_path: Path) -> None:
    paths = make_ct_series(tmp_path, shape=(2, 8, 8))
    paths[1].write_bytes(b"\0" * 128 + b"DICM" + b"\x08\0\x05\0XX\0\0" + b"\xff" * 64)
    with pytest.raises(SeriesRejected, match="StudyInstanceUID is missing in 1 of 2"):
        read_series(paths, LIMITS)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnreadableInstance, match="file 1 of 1"):
        read_headers([tmp_path / "none.dcm"])


def test_pixels_come_out_in_the_order_of_the_slices(tmp_path: Path) -> None:
    hu = np.arange(4 * 6 * 5, dtype=np.int16).reshape(4, 6, 5) - 1000
    paths = make_ct_series(tmp_path, hu=hu)
    volume = to_volume(read_series([paths[n] for n in (2, 0, 3, 1)], LIMITS))
    assert np.array_equal(volume.hu, hu)
    assert volume.to_mm((1, 2, 3)) == pytest.approx([-22.4 + 3 * 0.7, -20.1 + 2 * 0.7, -110.5 + 2.5])


def _rewritten(paths: Sequence[Path], change: Callable[[Dataset], None]) -> list[Path]:
    for path in paths:
        ds = pydicom.dcmread(path)
        change(ds)
        ds.save_as(path)
    return list(paths)


def _undecodable(paths: Sequence[Path]) -> str:
    series = read_series(paths, LIMITS)
    with pytest.raises(SeriesRejected) as caught:
        to_volume(series)
    assert caught.value.reason is Reason.PIXELS_UNDECODABLE
    return caught.value.text


def test_truncated_pixels_are_refused(tmp_path: Path) -> None:
    paths = make_ct_series(tmp_path, shape=(3, 8, 8))
    _rewritten(paths[1:2], lambda ds: setattr(ds, "PixelData", ds.PixelData[:60]))
    assert _undecodable(paths) == (
        "slice 2 (Explicit VR Little Endian) can't be decoded: PixelData has 60 bytes, and its frames need 128"
    )


def test_a_file_cut_off_in_its_pixels_is_refused(tmp_path: Path) -> None:
    paths = make_ct_series(tmp_path, shape=(3, 8, 8))
    paths[2].write_bytes(paths[2].read_bytes()[:-70])
    assert _undecodable(paths).startswith("slice 3")


def test_headers_that_ask_for_far_more_than_the_file_has_are_refused(tmp_path: Path) -> None:
    paths = _rewritten(make_ct_series(tmp_path, shape=(3, 8, 8)), lambda ds: _sized(ds, 4_000) and None)
    assert "PixelData has 128 bytes, and its frames need 32000000" in _undecodable(paths)


def test_a_file_without_pixels_is_refused(tmp_path: Path) -> None:
    paths = make_ct_series(tmp_path, shape=(3, 8, 8))
    _rewritten(paths[:1], lambda ds: ds.__delitem__("PixelData"))
    assert _undecodable(paths).startswith("slice 1")


def test_a_file_that_changed_after_the_gate_is_refused(tmp_path: Path) -> None:
    paths = make_ct_series(tmp_path, shape=(3, 8, 8))
    series = read_series(paths, LIMITS)
    make_ct_series(tmp_path, shape=(3, 9, 8))
    with pytest.raises(SeriesRejected, match=r"decodes to \(9, 8\), not \(8, 8\)"):
        to_volume(series)


# -- Hounsfield units ----------------------------------------------------------------------------------


def hu_of(stored: Any, dtype: str, slope: Any = "1", intercept: Any = "0") -> list[int]:
    ds = Dataset()
    for keyword, value in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
        if value is not None:
            put(ds, keyword, value)
    return [int(value) for value in to_hu(np.array(stored, dtype), ds)]


def test_signed_and_unsigned_values_become_the_same_hu() -> None:
    assert hu_of([0, 1024, 4095], "u2", "1", "-1024") == [-1024, 0, 3071]
    assert hu_of([-1024, 0, 3071], "i2") == [-1024, 0, 3071]


def test_a_slope_that_is_no_integer_is_rounded_to_the_nearest() -> None:
    assert hu_of([0, 1, 100, 4095], "u2", "2.0002", "-1024.5") == [-1024, -1022, -824, 7166]


def test_what_int16_cannot_hold_is_clipped_not_wrapped() -> None:
    assert hu_of([0, 65535], "u2", "1", "0") == [0, 32767]
    assert hu_of([-32768, 32767], "i2", "1", "-1024") == [-32768, 31743]
    assert hu_of([-32768, 32767], "i2", "3", "0") == [-32768, 32767]
    assert hu_of([0, 2**32 - 1], "u4", "1", "-1024") == [-1024, 32767]


def test_padding_outside_the_field_of_view_stays_what_it_is() -> None:
    assert hu_of([-2000, 40], "i2", "1", "-1024") == [-3024, -984]


@pytest.mark.parametrize(
    ("slope", "intercept"),
    [("0", "0"), ("NaN", "0"), ("1", "inf"), ("1", "1e12"), ("1e300", "0"), (["1", "2"], "0")],
)
def test_a_rescale_that_gives_no_hu_is_refused(slope: Any, intercept: Any) -> None:
    with pytest.raises(SeriesRejected) as caught:
        hu_of([1], "i2", slope, intercept)
    assert caught.value.reason is Reason.PIXELS_UNDECODABLE


@settings(max_examples=100, deadline=None)
@given(
    stored=st.lists(st.integers(-32768, 32767), min_size=1, max_size=8),
    slope=st.sampled_from(["1", "1.0", "0.5", "2.0002", "-1", "32.12"]),
    intercept=st.floats(-4096, 4096).map(lambda value: f"{value:.4f}"),
)
def test_hu_is_slope_times_value_plus_intercept(stored: list[int], slope: str, intercept: str) -> None:
    got = hu_of(stored, "i2", slope, intercept)
    for value, hu in zip(stored, got, strict=True):
        exact = max(-32768.0, min(32767.0, value * float(slope) + float(intercept)))
        assert abs(hu - exact) <= 0.5 + 1e-6


def test_each_slice_is_rescaled_by_its_own_header(tmp_path: Path) -> None:
    paths = make_ct_series(tmp_path, hu=np.full((3, 4, 4), 100, np.int16))
    _rewritten(paths[1:2], lambda ds: setattr(ds, "RescaleIntercept", "-50"))
    volume = to_volume(read_series(paths, LIMITS))
    assert [int(plane[0, 0]) for plane in volume.hu] == [100, 50, 100]


# -- consensus -----------------------------------------------------------------------------------------


def test_the_value_of_most_axial_images_counts() -> None:
    made = headers(5)
    for ds, kvp in zip(made, ("120", "120", "100", "120", "80"), strict=True):
        ds.KVP = kvp
    made[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    files = files_of(made)
    assert consensus(images_of(files), "KVP") == [120.0]
    assert consensus(images_of(files), "ImageType") == ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert consensus(images_of(files), "BodyPartExamined") == []


def test_without_any_axial_image_all_files_are_asked() -> None:
    assert consensus(images_of(files_of(_all("Modality", "SR")[:2])), "Modality") == ["SR"]
    assert consensus(images_of(files_of(_all("SOPClassUID", SecondaryCaptureImageStorage))), "Modality") == ["CT"]
    assert consensus([], "Modality") == []
