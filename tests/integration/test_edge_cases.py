"""Real images that other software stumbled over: each is analysed right or refused with its reason, never a crash."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dicom_node.config import GateConfig
from dicom_node.domain import CTImage, CTSeries
from dicom_node.errors import Reason, SeriesRejected
from dicom_node.infer import dicom_files, series_in
from dicom_node.series import check_series, read_headers, read_series, to_volume

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
    """One file alone as Hounsfield units, past the gate that wants a series. Raises SeriesRejected."""
    [file] = read_headers([path])
    image = CTImage(
        path=file.path, sop_instance_uid="1.2", header=file.header, position_mm=(0, 0, 0), projection_mm=0.0
    )
    rows, columns = int(file.header.Rows), int(file.header.Columns)
    volume = to_volume(CTSeries(images=(image,), affine=np.eye(4), rows=rows, columns=columns, left_out={}))
    plane: NDArray[np.int16] = volume.hu[0]
    return plane


def undecodable(path: Path) -> str:
    with pytest.raises(SeriesRejected) as caught:
        hu_of(path)
    assert caught.value.reason is Reason.PIXELS_UNDECODABLE
    return caught.value.text


def _syntax(folder: Path, uid: str) -> Path:
    [path] = (folder / "ct_transfer_syntaxes").glob(f"*Syntax_{uid}.dcm")
    return path


PLAIN = "1.2.840.10008.1.2.1"
LOSSLESS = [
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.90",
]
LOSSY = {
    "1.2.840.10008.1.2.4.50": 40.0,  # eight bits over 4096 HU
    "1.2.840.10008.1.2.4.81": 3.0,
    "1.2.840.10008.1.2.4.91": 3.0,
}
# The retired ones no decoder reads; twelve bits of the .51 only a decoder under the GPL does.
NO_DECODER = ["1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55"]


@pytest.mark.parametrize("uid", LOSSLESS)
def test_every_lossless_transfer_syntax_gives_the_same_hu(edge_cases: Path, uid: str) -> None:
    plain = hu_of(_syntax(edge_cases, PLAIN))
    assert (plain.shape, int(plain.min()), int(plain.max())) == ((512, 512), -3024, 1378)
    assert np.array_equal(hu_of(_syntax(edge_cases, uid)), plain)
    # It is one slice of five millimetres: that is all that is wrong with it.
    assert refused([_syntax(edge_cases, uid)]) is Reason.TOO_FEW_SLICES


@pytest.mark.parametrize("uid", LOSSY)
def test_lossy_images_are_refused_unless_the_settings_accept_them(edge_cases: Path, uid: str) -> None:
    path = _syntax(edge_cases, uid)
    assert refused([path]) is Reason.LOSSY
    assert refused([path], GateConfig(lossy="accept")) is Reason.TOO_FEW_SLICES
    plain, lossy = hu_of(_syntax(edge_cases, PLAIN)), hu_of(path)
    inside = plain > -1024
    assert float(np.abs(lossy[inside].astype(float) - plain[inside]).mean()) < LOSSY[uid]


@pytest.mark.parametrize("uid", NO_DECODER)
def test_what_no_decoder_reads_is_refused_cleanly(edge_cases: Path, uid: str) -> None:
    path = _syntax(edge_cases, uid)
    assert refused([path]) is Reason.LOSSY
    assert "can't be decoded" in undecodable(path)


def test_all_files_of_the_folder_are_tried(edge_cases: Path) -> None:
    names = {path.stem.rsplit("_", 1)[1] for path in (edge_cases / "ct_transfer_syntaxes").glob("*.dcm")}
    assert names == {PLAIN, *LOSSLESS, *LOSSY, *NO_DECODER}


def test_a_wrong_tile_length_is_an_error_of_its_slice(edge_cases: Path) -> None:
    paths = sorted((edge_cases / "j2k_wrong_tile_length").glob("*.dcm"))
    assert len(paths) == 4
    for path in paths:
        assert "JPEG 2000" in undecodable(path)


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


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("philips_localizer.dcm", Reason.NO_AXIAL_IMAGES),
        ("siemens_topogram_tcga_d1_a0zp.dcm", Reason.NO_AXIAL_IMAGES),
        ("philips_exam_summary_I10.dcm", Reason.NOT_CT),
    ],
)
def test_localizers_and_summary_screens_are_no_volume(edge_cases: Path, name: str, reason: Reason) -> None:
    assert refused([edge_cases / "localizers_and_summary_screens" / name]) is reason


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


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("A046441_coronal", Reason.NOT_AXIAL),
        ("A046441_sagittal", Reason.NOT_AXIAL),
        ("A046441_axial", Reason.TOO_FEW_SLICES),
    ],
)
def test_reformats_are_refused(edge_cases: Path, folder: str, reason: Reason) -> None:
    assert refused(dicom_files(edge_cases / "non_axial_reformats" / folder)) is reason


@pytest.mark.parametrize(
    "name",
    [
        "eCT_Supplemental.dcm",
        "CT0012.fragmented_no_bot_jpeg_baseline.51.dcm",
        "dcmqi_24x38x3/multiframe/mf.dcm",
    ],
)
def test_multi_frame_ct_is_refused_clearly(edge_cases: Path, name: str) -> None:
    assert refused([edge_cases / "enhanced_and_legacy_multiframe" / name]) is Reason.MULTIFRAME_UNSUPPORTED


def test_the_single_frames_of_a_multi_frame_ct_are_read(edge_cases: Path) -> None:
    folder = edge_cases / "enhanced_and_legacy_multiframe" / "dcmqi_24x38x3"
    volume = to_volume(read_series(dicom_files(folder / "image"), ANY_SIZE))
    assert volume.hu.shape == (3, 38, 24)
    assert refused([folder / "seg" / "label.seg"]) is Reason.NOT_CT


def test_a_chest_without_modality_is_refused(edge_cases: Path) -> None:
    path = edge_cases / "missing_attributes_chest" / "0.dcm"
    assert refused([path]) is Reason.NOT_CT
    assert hu_of(path).shape == (512, 512)


def test_images_without_uids_are_refused(edge_cases: Path) -> None:
    paths = dicom_files(edge_cases / "empty_uids_j2k_abdomen")
    assert len(paths) == 10
    assert refused(paths) is Reason.MISSING_UID


@pytest.mark.parametrize(
    ("name", "reason"),
    [("bad_sequence.dcm", Reason.MISSING_GEOMETRY), ("explicit_VR-UN.dcm", Reason.TOO_FEW_SLICES)],
)
def test_malformed_files_are_parsed_or_refused_without_a_crash(edge_cases: Path, name: str, reason: Reason) -> None:
    path = edge_cases / "malformed" / name
    assert refused([path]) is reason
    assert hu_of(path).shape == (512, 512)


def test_a_whole_folder_of_trouble_is_sorted_into_its_series(edge_cases: Path) -> None:
    found = series_in(edge_cases)
    assert len(found) > 10
    for files in found.values():
        with pytest.raises(SeriesRejected):
            check_series(files, GateConfig())
