"""Pixels as a hostile or broken peer sends them: refused by name, in bounded time and memory, before any decoder."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from dicom_node.config import GateConfig
from dicom_node.demo import SHIPPED_SCAN
from dicom_node.errors import Reason, SeriesRejected, UnreadableInstance
from dicom_node.series import read_headers, read_series, stream, to_volume
from dicom_node.series.codestream import wavelet
from dicom_node.series.stream import LONGEST_HEADER_BYTES
from dicom_node.transfer_syntaxes import ACCEPTED, BY_UID, Coding
from tests.fakes.ct import make_ct_series
from tests.fakes.enhanced import make_enhanced_ct

LIMITS = GateConfig(min_slices=2, min_length_mm=0)
HTJ2K_FOLDER = Path(__file__).parents[1] / "data" / "htj2k"


def compressed_series(folder: Path, syntax: UID) -> list[Path]:
    paths = make_ct_series(folder, shape=(3, 64, 64))
    for path in paths:
        ds = pydicom.dcmread(path)
        ds.compress(syntax, generate_instance_uid=False)
        ds.save_as(path)
    return paths


def with_frames(paths: list[Path], syntax: UID, change: Callable[[bytes], bytes]) -> list[Path]:
    """Each file with its one frame changed and in another transfer syntax."""
    for path in paths:
        ds = pydicom.dcmread(path)
        frame = next(generate_frames(ds.PixelData, number_of_frames=1))
        ds.PixelData = encapsulate([change(frame)])
        ds.file_meta.TransferSyntaxUID = syntax
        ds.save_as(path)
    return paths


def undecodable(paths: list[Path]) -> str:
    """What the refusal says; it takes no time and no memory to speak of."""
    series = read_series(paths, LIMITS.model_copy(update={"lossy": "accept"}))
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(SeriesRejected) as caught:
            to_volume(series)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert caught.value.reason is Reason.PIXELS_UNDECODABLE
    assert time.monotonic() - start < 5
    # The array for the volume itself, which is only filled as frames come, and little more.
    assert peak < series.rows * series.columns * len(series.images) * 2 + 8_000_000
    return caught.value.text


def _claims(size: int) -> dict[UID, Callable[[bytes], bytes]]:
    """Transfer syntax -> what makes a frame of it claim `size` rows and columns."""

    def j2k(frame: bytes) -> bytes:
        at = frame.index(b"\xff\x51") + 6
        return frame[:at] + struct.pack(">II", size, size) + frame[at + 8 :]

    def jpeg_ls(frame: bytes) -> bytes:
        at = frame.index(b"\xff\xf7") + 5
        return frame[:at] + struct.pack(">HH", size, size) + frame[at + 4 :]

    return {JPEG2000Lossless: j2k, JPEGLSLossless: jpeg_ls}


@pytest.mark.parametrize("syntax", _claims(1))
def test_a_codestream_that_claims_a_gigantic_image_never_reaches_its_decoder(tmp_path: Path, syntax: UID) -> None:
    paths = with_frames(compressed_series(tmp_path, syntax), syntax, _claims(65535)[syntax])
    assert "its codestream is 1 x 65535 x 65535, its header 1 x 64 x 64" in undecodable(paths)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.70"])
def test_a_jpeg_that_claims_a_gigantic_image_never_reaches_its_decoder(tmp_path: Path, syntax: str) -> None:
    header = b"\xff\xd8" + b"\xff\xe0\x00\x04ab" + b"\xff\xc1\x00\x0b\x0c" + struct.pack(">HHB", 65535, 65535, 1)
    frame = header + b"\x01\x11\x00" + b"\xff\xd9\0"
    paths = with_frames(compressed_series(tmp_path, RLELossless), UID(syntax), lambda _: frame)
    assert "its codestream is 1 x 65535 x 65535" in undecodable(paths)


def test_a_header_that_claims_a_gigantic_image_is_refused_by_the_gate(tmp_path: Path) -> None:
    for path in (paths := compressed_series(tmp_path, RLELossless)):
        ds = pydicom.dcmread(path)
        ds.Rows = ds.Columns = 65535
        ds.save_as(path)
    with pytest.raises(SeriesRejected, match="a matrix of 65535 x 65535") as caught:
        read_series(paths, LIMITS)
    assert caught.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (struct.pack("<16I", 2, 64, 66, *[0] * 13) + b"\x81\0" * 2, "can't be decoded"),
        (struct.pack("<16I", 15, *range(64, 79)) + b"\x81\0" * 20, "the RLE header is not that of such a frame"),
        (struct.pack("<16I", 2, 64, 2**31, *[0] * 13) + b"\x81\0" * 20, "the RLE header"),
        (b"\x81\0", "the RLE header"),
        (struct.pack("<16I", 2, 64, 100_064, *[0] * 13) + b"\x81\0" * 100_000, "much longer than its pixels"),
    ],
)
def test_rle_frames_that_do_not_fit_are_refused(tmp_path: Path, frame: bytes, text: str) -> None:
    paths = with_frames(compressed_series(tmp_path, RLELossless), RLELossless, lambda _: frame)
    assert text in undecodable(paths)


@pytest.mark.parametrize("syntax", [s for s in ACCEPTED if s.coding is not Coding.NATIVE], ids=lambda s: s.name)
@pytest.mark.parametrize("frame", [b"\0\0", b"\xff\xd8", b"\xff\x4f\xff\x51", b"noise" * 50], ids=len)
def test_frames_that_are_no_codestream_are_refused(tmp_path: Path, syntax, frame: bytes) -> None:  # type: ignore[no-untyped-def]
    paths = with_frames(compressed_series(tmp_path, RLELossless), UID(syntax.uid), lambda _: frame)
    assert "can't be decoded: " in undecodable(paths)


@pytest.mark.parametrize("cut", [0.3, 0.9])
@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_a_codestream_cut_off_is_refused_or_decoded_without_a_crash(tmp_path: Path, syntax: UID, cut: float) -> None:
    paths = with_frames(compressed_series(tmp_path, syntax), syntax, lambda f: f[: int(len(f) * cut) // 2 * 2])
    start = time.monotonic()
    with contextlib.suppress(SeriesRejected):
        assert to_volume(read_series(paths, LIMITS)).hu.shape == (3, 64, 64)
    assert time.monotonic() - start < 4, "a decoder read on"


def test_a_jpeg_ls_codestream_without_its_end_marker_never_reaches_its_decoder(tmp_path: Path) -> None:
    # CharLS read on for 4 s a slice.
    paths = with_frames(compressed_series(tmp_path, JPEGLSLossless), JPEGLSLossless, lambda f: f[: len(f) // 4 * 2])
    assert "its codestream has no end" in undecodable(paths)


# -- fragments ---------------------------------------------------------------------------------------------


def _rewritten(path: Path, change: Callable[[Dataset], None]) -> list[Path]:
    ds = pydicom.dcmread(path)
    change(ds)
    ds.save_as(path)
    return [path]


def test_more_frames_than_items_are_refused(tmp_path: Path) -> None:
    paths = compressed_series(tmp_path / "single", JPEGLSLossless)
    [file] = make_enhanced_ct(paths, tmp_path / "multi")
    frame = next(generate_frames(pydicom.dcmread(paths[0]).PixelData, number_of_frames=1))
    _rewritten(file, lambda ds: setattr(ds, "PixelData", encapsulate([frame, frame])))
    assert "PixelData holds 2 frames, and NumberOfFrames is 3" in undecodable([file])


def test_millions_of_empty_fragments_are_not_listed(tmp_path: Path) -> None:
    [file] = make_enhanced_ct(compressed_series(tmp_path / "single", JPEGLSLossless), tmp_path / "multi")
    items = b"\xfe\xff\x00\xe0\0\0\0\0" * 2_000_000 + b"\xfe\xff\xdd\xe0\0\0\0\0"
    raw = file.read_bytes()
    at = raw.index(b"\xe0\x7f\x10\x00OB\0\0") + 12
    file.write_bytes(raw[:at] + items)
    assert "PixelData holds more than 768 fragments" in undecodable([file])


def _of_twelve_bits(folder: Path, syntax: UID, *, signed: bool, unused: int) -> tuple[list[Path], np.ndarray]:
    """Files whose pixels have twelve bits, with `unused` in the four above them; their stored values."""
    values = np.random.default_rng(1).integers(-2048 if signed else 0, 2048 if signed else 4096, (3, 64, 64))
    paths = make_ct_series(folder, shape=(3, 64, 64))
    for path, plane in zip(paths, values, strict=True):
        ds = pydicom.dcmread(path)
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, int(signed)
        ds.RescaleSlope, ds.RescaleIntercept = 1, 0
        ds.PixelData = ((plane & 0x0FFF) | unused).astype("<u2").tobytes()
        if syntax == RLELossless:
            ds.compress(syntax, generate_instance_uid=False)
        elif syntax == ExplicitVRBigEndian:
            ds.PixelData = ((plane & 0x0FFF) | unused).astype(">u2").tobytes()
            ds.file_meta.TransferSyntaxUID = syntax
            pydicom.dcmwrite(path, ds, little_endian=False, implicit_vr=False)
            continue
        ds.save_as(path)
    return paths, values


@pytest.mark.parametrize("unused", [0x0000, 0xA000])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless], ids=lambda uid: uid.name)
def test_bits_above_the_stored_ones_mean_nothing(tmp_path: Path, syntax: UID, signed: bool, unused: int) -> None:
    """PS3.5 8.1.1. A negative value need not be extended to sixteen bits; overlays were once kept there."""
    paths, values = _of_twelve_bits(tmp_path, syntax, signed=signed, unused=unused)
    series = read_series(paths, LIMITS)
    hu = {image.path: plane for image, plane in zip(series.images, to_volume(series).hu, strict=True)}
    for path, plane in zip(paths, values, strict=True):
        np.testing.assert_array_equal(hu[str(path)], plane)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless], ids=lambda uid: uid.name)
def test_stored_bits_elsewhere_than_at_the_low_end_are_refused(tmp_path: Path, syntax: UID) -> None:
    paths, _ = _of_twelve_bits(tmp_path, syntax, signed=False, unused=0)
    for path in paths:
        _rewritten(path, lambda ds: setattr(ds, "HighBit", 15))
    assert "HighBit 15 with BitsStored 12 is no CT" in undecodable(paths)


def test_native_frames_beyond_the_end_of_the_file_are_refused(tmp_path: Path) -> None:
    [file] = make_enhanced_ct(make_ct_series(tmp_path / "single", shape=(3, 64, 64)), tmp_path / "multi")
    file.write_bytes(file.read_bytes()[:-100])
    assert "the file ends 100 bytes before its last frame does" in undecodable([file])


# -- deflated ----------------------------------------------------------------------------------------------


def deflated(path: Path, *, zeros: int = 0, before_pixels: bool = True) -> Path:
    """The file with a deflated data set; `zeros` bytes of nothing stand in it, in a private element."""
    ds = pydicom.dcmread(path)
    plain = path.read_bytes()
    start = 144 + int(ds.file_meta.FileMetaInformationGroupLength)
    data_set = plain[start:]
    filler = struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, zeros) if zeros else b""
    at = data_set.index(b"\x10\x00\x10\x00") if before_pixels else len(data_set)
    squeeze = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = squeeze.compress(data_set[:at] + filler)
    for _ in range(zeros // 2**20):
        body += squeeze.compress(bytes(2**20))
    body += squeeze.compress(data_set[at:]) + squeeze.flush()
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    meta = DicomBytesIO()
    write_file_meta_info(meta, ds.file_meta)
    path.write_bytes(bytes(128) + b"DICM" + meta.getvalue() + body)
    return path


def test_a_deflated_series_has_the_hu_of_the_plain_one(tmp_path: Path) -> None:
    paths = make_ct_series(tmp_path, shape=(3, 64, 64))
    plain = to_volume(read_series(paths, LIMITS))
    for path in paths:
        deflated(path)
    assert np.array_equal(to_volume(read_series(paths, LIMITS)).hu, plain.hu)
    assert str(read_headers(paths)[0].header.PatientName) == "Phantom^Chest"


def test_a_deflated_multi_frame_file_has_the_hu_of_the_plain_one(tmp_path: Path) -> None:
    [file] = make_enhanced_ct(make_ct_series(tmp_path / "single", shape=(9, 64, 64)), tmp_path / "multi")
    plain = to_volume(read_series([file], LIMITS))
    assert np.array_equal(to_volume(read_series([deflated(file)], LIMITS)).hu, plain.hu)


def test_deflated_pixels_may_be_larger_than_any_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [file] = make_enhanced_ct(make_ct_series(tmp_path / "single", shape=(9, 64, 64)), tmp_path / "multi")
    plain = to_volume(read_series([file], LIMITS))
    monkeypatch.setattr(stream, "LONGEST_HEADER_BYTES", 16_000)
    assert np.array_equal(to_volume(read_series([deflated(file)], LIMITS)).hu, plain.hu)


BOMB = """
import sys
from pathlib import Path
from dicom_node.errors import UnreadableInstance
from dicom_node.series import read_headers
try:
    read_headers([sys.argv[1]])
except UnreadableInstance as err:
    print(err)
# Not ru_maxrss, which begins with that of the process that started this one.
[line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(line.split()[1]) // 1024)
"""


def test_a_deflate_bomb_is_inflated_to_the_limit_and_no_further(tmp_path: Path) -> None:
    path = deflated(make_ct_series(tmp_path, shape=(1, 64, 64))[0], zeros=2**29)
    assert path.stat().st_size < 4_000_000
    said, megabytes = subprocess.run(
        [sys.executable, "-c", BOMB, str(path)], capture_output=True, text=True, check=True, timeout=60
    ).stdout.splitlines()
    assert f"holds more than {LONGEST_HEADER_BYTES} bytes: send it uncompressed" in said
    # pydicom's own reading would take 512 MB for the data set, and as much again for its element.
    assert int(megabytes) < 350, megabytes


def test_what_follows_deflated_pixels_is_not_inflated(tmp_path: Path) -> None:
    paths = make_ct_series(tmp_path, shape=(3, 64, 64))
    plain = to_volume(read_series(paths, LIMITS))
    for path in paths:
        deflated(path, zeros=2**27, before_pixels=False)
    assert np.array_equal(to_volume(read_series(paths, LIMITS)).hu, plain.hu)


@pytest.mark.parametrize("rest", [b"", b"\x00", b"no deflate stream at all"])
def test_a_deflated_file_that_is_broken_is_unreadable_or_empty(tmp_path: Path, rest: bytes) -> None:
    path = deflated(make_ct_series(tmp_path, shape=(1, 64, 64))[0])
    start = 144 + int(pydicom.dcmread(path, specific_tags=[]).file_meta.FileMetaInformationGroupLength)
    path.write_bytes(path.read_bytes()[:start] + rest)
    with pytest.raises((UnreadableInstance, SeriesRejected)):
        read_series([path], LIMITS)


# -- JPEG 2000: lossy or not -------------------------------------------------------------------------------


def htj2k_series(folder: Path, syntax: UID, name: str) -> list[Path]:
    """Three files of one slice of the shipped scan, 128 x 128 of it, as OpenJPH encoded it."""
    paths = make_ct_series(folder, shape=(3, 128, 128))
    frame = (HTJ2K_FOLDER / f"{name}.j2k").read_bytes()
    for path in paths:
        ds = pydicom.dcmread(path)
        ds.PixelData = encapsulate([frame])
        ds["PixelData"].VR = "OB"
        ds.file_meta.TransferSyntaxUID = syntax
        ds.save_as(path)
    return paths


@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K], ids=lambda uid: uid.name)
def test_htj2k_gives_the_values_that_were_encoded(tmp_path: Path, syntax: UID) -> None:
    source = pydicom.dcmread(sorted(SHIPPED_SCAN.glob("*.dcm"))[66]).pixel_array[192:320, 96:224]
    volume = to_volume(read_series(htj2k_series(tmp_path, syntax, "reversible"), LIMITS))
    for plane in volume.hu:
        assert np.array_equal(plane, source)


@pytest.mark.parametrize("syntax", [HTJ2K, JPEG2000], ids=lambda uid: uid.name)
def test_an_irreversible_wavelet_is_lossy_though_the_header_says_nothing(tmp_path: Path, syntax: UID) -> None:
    paths = htj2k_series(tmp_path, syntax, "irreversible")
    assert {file.wavelet for file in read_headers(paths)} == {"9-7"}
    with pytest.raises(SeriesRejected, match="3 of 3 images were compressed with loss") as caught:
        read_series(paths, LIMITS)
    assert caught.value.reason is Reason.LOSSY
    series = read_series(paths, LIMITS.model_copy(update={"lossy": "accept"}))
    assert series.lossy == f"3 of 3 images were compressed with loss: {BY_UID[syntax].method}, ratio not told"


def test_a_declaration_of_no_loss_does_not_outweigh_the_wavelet(tmp_path: Path) -> None:
    for path in (paths := htj2k_series(tmp_path, JPEG2000, "irreversible")):
        _rewritten(path, lambda ds: setattr(ds, "LossyImageCompression", "00"))
    with pytest.raises(SeriesRejected, match="compressed with loss"):
        read_series(paths, LIMITS)


def test_a_reversible_wavelet_passes_where_nothing_is_declared(tmp_path: Path) -> None:
    paths = with_frames(compressed_series(tmp_path, JPEG2000Lossless), JPEG2000, lambda frame: frame)
    series = read_series(paths, LIMITS)
    assert series.lossy is None
    assert np.array_equal(
        to_volume(series).hu, to_volume(read_series(make_ct_series(tmp_path / "p", shape=(3, 64, 64)), LIMITS)).hu
    )


@pytest.mark.parametrize(
    "data", [b"", b"\xff\x4f\xff\x51", b"\xff\x4f\xff\x51\x00\x00" * 9, b"\xff\x4f\xff\x51\x00\x04ab\xff\x90\0\0"]
)
def test_bytes_without_a_main_header_have_no_wavelet(data: bytes) -> None:
    assert wavelet(data) is None
