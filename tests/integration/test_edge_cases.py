"""Real images that other software stumbled over: each is analysed right or refused with its reason, never a crash."""

from __future__ import annotations

import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from dicom_node.config import GateConfig
from dicom_node.domain import CTImage, CTSeries
from dicom_node.errors import Reason, SeriesRejected
from dicom_node.infer import dicom_files, series_in
from dicom_node.series import check_series, images_of, read_headers, read_series, to_volume
from dicom_node.series.decode import decode_frame
from dicom_node.series.frames import open_frames

TINY_CHEST = Path(__file__).parents[1] / "data" / "tiny_chest_64"
# All that is about the amount of slices let go; what is about each image still asked.
ANY_SIZE = GateConfig(min_slices=2, min_length_mm=0, max_slice_spacing_mm=20, max_slice_thickness_mm=20)


@pytest.fixture
def edge_cases(shared_data: Path) -> Path:
    return shared_data / "dicom_edge_cases"


def refused(paths: list[Path], limits: GateConfig = ANY_SIZE) -> Reason:
    with pytest.raises(SeriesRejected) as caught:
        read_series(paths, limits)
    return caught.value.reason


def hu_of(path: Path) -> NDArray[np.int16]:
    """The first image of a file as Hounsfield units, past the gate that wants a series. Raises SeriesRejected."""
    [first, *_] = images_of(read_headers([path]))
    image = CTImage(
        path=first.path,
        sop_instance_uid="1.2",
        frame=first.frame,
        header=first.header,
        position_mm=(0, 0, 0),
        projection_mm=0.0,
    )
    rows, columns = int(first.header.Rows), int(first.header.Columns)
    volume = to_volume(CTSeries(images=(image,), affine=np.eye(4), rows=rows, columns=columns, left_out={}))
    plane: NDArray[np.int16] = volume.hu[0]
    return plane


PLAIN = "ct_transfer_syntaxes/CTImage.dcm_LittleEndianExplicitTransferSyntax_1.2.840.10008.1.2.1.dcm"
_SHOULDERS = ((512, 512), -3024, 1378)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What becomes of one file alone. hu: shape, least and greatest value; None where it is not decoded.

    reason: the gate's word, with lossy images refused. same_as: the file whose HU it has, voxel for voxel, or where
    it is lossy, with a mean error of up to `error_hu` within the body. text: what the refusal to decode says.
    """

    reason: Reason
    hu: tuple[tuple[int, int], int, int] | None = None
    same_as: str | None = None
    error_hu: float = 0.0
    text: str = ""


def _lossless() -> Expected:
    return Expected(reason=Reason.TOO_FEW_SLICES, hu=_SHOULDERS, same_as=PLAIN)


def _lossy(least: int, greatest: int, error_hu: float) -> Expected:
    return Expected(reason=Reason.LOSSY, hu=((512, 512), least, greatest), same_as=PLAIN, error_hu=error_hu)


def _slice(reason: Reason, least: int, greatest: int, shape: tuple[int, int] = (512, 512)) -> Expected:
    return Expected(reason=reason, hu=(shape, least, greatest))


_RETIRED = Expected(reason=Reason.LOSSY, text="its transfer syntax is not one that this node decodes")
_BAD_TILE = Expected(reason=Reason.TOO_FEW_SLICES, text="(JPEG 2000 Image Compression) can't be decoded")

# Every DICOM file that is not within an archive.
FILES: dict[str, Expected] = {
    PLAIN: _lossless(),
    **{
        f"ct_transfer_syntaxes/CTImage.dcm_{name}TransferSyntax_1.2.840.10008.1.2{uid}.dcm": expected
        for name, uid, expected in (
            ("LittleEndianImplicit", "", _lossless()),
            ("BigEndianExplicit", ".2", _lossless()),
            ("DeflatedExplicitVRLittleEndian", ".1.99", _lossless()),
            ("RLELossless", ".5", _lossless()),
            ("JPEGProcess14", ".4.57", _lossless()),
            ("JPEGProcess14SV1", ".4.70", _lossless()),
            ("JPEGLSLossless", ".4.80", _lossless()),
            ("JPEG2000LosslessOnly", ".4.90", _lossless()),
            ("JPEGProcess1", ".4.50", _lossy(-3083, 1349, 40.0)),  # eight bits over 4096 HU
            ("JPEGProcess2_4", ".4.51", _lossy(-3053, 1370, 6.0)),  # twelve bits, two HU each
            ("JPEGLSLossy", ".4.81", _lossy(-3025, 1377, 3.0)),
            ("JPEG2000", ".4.91", _lossy(-3027, 1377, 3.0)),
            # Retired from the standard in 2001: not negotiated, and named where a file has them all the same.
            ("JPEGProcess6_8", ".4.53", _RETIRED),
            ("JPEGProcess10_12", ".4.55", _RETIRED),
        )
    },
    **{
        f"empty_uids_j2k_abdomen/CT.1.3.12.2.1107.5.1.4.60064.300000221208081134280000165{number}": _slice(
            Reason.MISSING_UID, -1024, greatest
        )
        for number, greatest in enumerate((1436, 1430, 1443, 1733, 1839, 1472, 1472, 1449, 1450, 1445), start=73)
    },
    # Perfusion maps in colour, with US for their unit: not one slice of the body in HU.
    "enhanced_and_legacy_multiframe/eCT_Supplemental.dcm": _slice(Reason.MULTIFRAME_UNSUPPORTED, -1024, 172),
    "enhanced_and_legacy_multiframe/CT0012.fragmented_no_bot_jpeg_baseline.51.dcm": _slice(
        Reason.MULTIFRAME_UNSUPPORTED, -13, 1199
    ),
    "enhanced_and_legacy_multiframe/dcmqi_24x38x3/image/IMG0001.dcm": _slice(Reason.TOO_FEW_SLICES, 0, 0, (38, 24)),
    "enhanced_and_legacy_multiframe/dcmqi_24x38x3/image/IMG0002.dcm": _slice(Reason.TOO_FEW_SLICES, 0, 1, (38, 24)),
    "enhanced_and_legacy_multiframe/dcmqi_24x38x3/image/IMG0003.dcm": _slice(Reason.TOO_FEW_SLICES, 0, 0, (38, 24)),
    # Three frames, which ANY_SIZE would let pass: the shipped limits see three slices.
    "enhanced_and_legacy_multiframe/dcmqi_24x38x3/multiframe/mf.dcm": _slice(Reason.TOO_FEW_SLICES, 0, 0, (38, 24)),
    "enhanced_and_legacy_multiframe/dcmqi_24x38x3/seg/label.seg": Expected(
        reason=Reason.NOT_CT, text="BitsAllocated 1 with BitsStored 1 is no CT"
    ),
    **{f"j2k_wrong_tile_length/00030{number}.dcm": _BAD_TILE for number in range(4)},
    "localizers_and_summary_screens/philips_exam_summary_I10.dcm": _slice(Reason.NOT_CT, -1024, 533, (256, 512)),
    "localizers_and_summary_screens/philips_localizer.dcm": _slice(Reason.NO_AXIAL_IMAGES, -1024, 533, (256, 512)),
    "localizers_and_summary_screens/siemens_topogram_tcga_d1_a0zp.dcm": _slice(Reason.NO_AXIAL_IMAGES, -1024, 493),
    "malformed/bad_sequence.dcm": _slice(Reason.MISSING_GEOMETRY, -1011, 1243),
    "malformed/explicit_VR-UN.dcm": _slice(Reason.TOO_FEW_SLICES, -1024, 1186),
    "missing_attributes_chest/0.dcm": _slice(Reason.NOT_CT, -2048, 1502),
    "non_axial_reformats/A046441_axial/19001111-045.dcm": _slice(Reason.TOO_FEW_SLICES, -3024, 1475),
    "non_axial_reformats/A046441_coronal/19001111-056.dcm": _slice(Reason.NOT_AXIAL, -1024, 1537),
    "non_axial_reformats/A046441_sagittal/19001111-059.dcm": _slice(Reason.NOT_AXIAL, -1024, 1585),
}
# Archives, each with a test of its own below; and what is no DICOM.
ARCHIVES = {
    "gantry_tilt_variable_spacing/GE_head_tilt18.5.tar.xz",
    "thick_slice_5mm_with_boxes/Lung_Dx-A0001_slab.tar.xz",
}
_PICTURES = {".png", ".jpg", ".nrrd"}


def test_every_file_has_an_expectation(edge_cases: Path) -> None:
    there = {str(p.relative_to(edge_cases)) for p in edge_cases.rglob("*") if p.is_file() and p.suffix not in _PICTURES}
    assert there == FILES.keys() | ARCHIVES


@pytest.mark.parametrize("name", FILES)
def test_a_file_alone_is_refused_with_its_reason(edge_cases: Path, name: str) -> None:
    limits = GateConfig(max_slice_thickness_mm=20)
    assert refused([edge_cases / name], limits) is FILES[name].reason
    if FILES[name].reason is Reason.LOSSY:
        # Nothing else is wrong with it than that it is one slice.
        assert refused([edge_cases / name], limits.model_copy(update={"lossy": "accept"})) is Reason.TOO_FEW_SLICES


@pytest.mark.parametrize("name", FILES)
def test_a_file_alone_is_decoded_to_its_hu_or_refused_by_name(edge_cases: Path, name: str) -> None:
    expected = FILES[name]
    if expected.hu is None:
        with pytest.raises(SeriesRejected) as caught:
            hu_of(edge_cases / name)
        assert caught.value.reason is Reason.PIXELS_UNDECODABLE
        assert expected.text in caught.value.text
        return
    plane = hu_of(edge_cases / name)
    assert (plane.shape, int(plane.min()), int(plane.max())) == expected.hu
    if expected.same_as is not None:
        plain = hu_of(edge_cases / expected.same_as)
        body = plain > (-1024 if expected.error_hu else -32768)
        assert float(np.abs(plane[body].astype(float) - plain[body]).mean()) <= expected.error_hu


@pytest.mark.peers
@pytest.mark.skipif(not Path("/usr/bin/dcmdjpeg").exists(), reason="no DCMTK here: tests/peers.sh installs it")
@pytest.mark.parametrize("name", [name for name in FILES if "4.51" in name or "baseline.51" in name])
def test_twelve_bit_jpeg_has_the_values_that_dcmtk_gives(edge_cases: Path, name: str, tmp_path: Path) -> None:
    subprocess.run(["/usr/bin/dcmdjpeg", edge_cases / name, tmp_path / "plain.dcm"], check=True)
    theirs = pydicom.dcmread(tmp_path / "plain.dcm").pixel_array.reshape(-1, 512, 512)
    with open_frames(str(edge_cases / name)) as frames:
        ours = [decode_frame(frames.read(number), frames.layout) for number in range(1, frames.layout.frames + 1)]
    assert np.array_equal(np.stack(ours), theirs)


def _unpacked(archive: Path, folder: Path) -> list[Path]:
    with tarfile.open(archive, "r:xz") as tar:
        tar.extractall(folder, filter="data")
    return dicom_files(folder)


def test_a_tilted_gantry_is_refused(edge_cases: Path, tmp_path: Path) -> None:
    paths = _unpacked(edge_cases / "gantry_tilt_variable_spacing" / "GE_head_tilt18.5.tar.xz", tmp_path)
    assert len(paths) == 28
    with pytest.raises(SeriesRejected, match=r"18\.5 degrees") as caught:
        read_series(paths)
    assert caught.value.reason is Reason.GANTRY_TILT


def test_thick_slices_are_refused(edge_cases: Path, tmp_path: Path) -> None:
    paths = _unpacked(edge_cases / "thick_slice_5mm_with_boxes" / "Lung_Dx-A0001_slab.tar.xz", tmp_path)
    assert len(paths) == 15
    few = GateConfig(min_slices=10, min_length_mm=0)
    assert refused(paths, few) is Reason.TOO_THICK
    # They are a sound volume else.
    volume = to_volume(read_series(paths, ANY_SIZE))
    assert volume.hu.shape == (15, 512, 512)
    assert volume.spacing_mm[0] == pytest.approx(5.0)


def test_localizers_and_summary_screens_are_left_out_beside_axial_images(edge_cases: Path) -> None:
    files = read_headers(sorted((edge_cases / "localizers_and_summary_screens").glob("*.dcm")))
    axial = read_headers(dicom_files(TINY_CHEST))
    for file in files:
        # As if the scanner had put them into the series of its images.
        file.header.StudyInstanceUID = axial[0].header.StudyInstanceUID
        file.header.SeriesInstanceUID = axial[0].header.SeriesInstanceUID
    series = check_series([*files, *axial], ANY_SIZE)
    assert len(series.images) == len(axial) == 79
    assert sorted(series.left_out.values()) == [
        "Secondary Capture Image Storage is no CT image",
        "localizer",
        "localizer",
    ]


def test_a_legacy_converted_ct_is_the_volume_of_its_single_frames(edge_cases: Path) -> None:
    folder = edge_cases / "enhanced_and_legacy_multiframe" / "dcmqi_24x38x3"
    single = to_volume(read_series(dicom_files(folder / "image"), ANY_SIZE))
    multi = to_volume(read_series([folder / "multiframe" / "mf.dcm"], ANY_SIZE))
    assert single.hu.shape == (3, 38, 24)
    assert single.hu.any()
    assert np.array_equal(multi.hu, single.hu)
    assert np.allclose(multi.affine, single.affine)


def test_a_whole_folder_of_trouble_is_sorted_into_its_series(edge_cases: Path) -> None:
    found = series_in(edge_cases)
    assert len(found) > 10
    for files in found.values():
        with pytest.raises(SeriesRejected):
            check_series(files, GateConfig())
