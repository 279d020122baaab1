"""The first bytes of a compressed frame -> the size it claims, and whether its wavelet can be undone exactly."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from dicom_node.transfer_syntaxes import Coding

# ISO/IEC 15444-1 A.6.1: 9-7 irreversible, 5-3 reversible.
Wavelet = Literal["9-7", "5-3"]

_SOI = b"\xff\xd8"
_J2K_START = b"\xff\x4f\xff\x51"
_COD = 0xFF52
_FIRST_TILE = 0xFF90
# ISO/IEC 10918-1 table B.1: the start-of-frame markers; C4, C8 and CC are others. F7 is JPEG-LS (14495-1 C.2.2).
_SOF = {*range(0xFFC0, 0xFFD0), 0xFFF7} - {0xFFC4, 0xFFC8, 0xFFCC}
# Markers that no length follows, and the start of the scan, before which the frame must have been described.
_NO_SEGMENT = {0xFF01, *range(0xFFD0, 0xFFDB)}
_RLE_HEADER_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameSize:
    """What the codestream says of itself. bits: of a sample."""

    rows: int
    columns: int
    samples: int
    bits: int


def begins_frame(data: bytes, coding: Coding) -> bool:
    """Whether a fragment is the first of a frame (PS3.5 A.4: a frame may be cut into several)."""
    if coding is Coding.JPEG_2000:
        return data.startswith(_J2K_START) or data[4:8] == b"jP  "
    return coding is Coding.RLE or data.startswith(_SOI)


def frame_size(data: bytes, coding: Coding) -> FrameSize | None:
    """None where the codestream has no readable header, and for RLE, which has none."""
    try:
        if coding is Coding.JPEG_2000:
            return _j2k_size(data)
        return _jpeg_size(data) if coding in (Coding.JPEG, Coding.JPEG_LS) else None
    except (struct.error, IndexError):
        return None


def wavelet(data: bytes) -> Wavelet | None:
    """The wavelet of the first JPEG 2000 codestream in `data`; None where there is none."""
    start = data.find(_J2K_START)
    try:
        at = start + 2
        while start >= 0:
            marker, length = struct.unpack_from(">HH", data, at)
            if marker == _COD:
                return "9-7" if data[at + 13] == 0 else "5-3"
            if marker == _FIRST_TILE or length < 2:
                return None
            at += 2 + length
    except (struct.error, IndexError):
        pass
    return None


def rle_is_sound(data: bytes, segments: int) -> bool:
    """PS3.5 G.5: a header of 16 numbers, their count first, then growing offsets within the frame."""
    if len(data) < _RLE_HEADER_BYTES:
        return False
    count, *offsets = struct.unpack_from("<16I", data)
    used = offsets[:count]
    return (
        count == segments
        and used[0] == _RLE_HEADER_BYTES
        and all(a < b for a, b in zip(used, [*used[1:], len(data)], strict=True))
    )


def _j2k_size(data: bytes) -> FrameSize | None:
    start = data.find(_J2K_START, 0, 4096)
    if start < 0:
        return None
    _, _, _, width, height, left, top = struct.unpack_from(">HHHIIII", data, start + 2)
    (samples,) = struct.unpack_from(">H", data, start + 2 + 38)
    bits = (data[start + 2 + 40] & 0x7F) + 1
    return FrameSize(rows=height - top, columns=width - left, samples=samples, bits=bits)


def _jpeg_size(data: bytes) -> FrameSize | None:
    if not data.startswith(_SOI):
        return None
    at = 2
    while True:
        (marker,) = struct.unpack_from(">H", data, at)
        if marker == 0xFFFF:  # fill byte
            at += 1
            continue
        length, bits, rows, columns, samples = struct.unpack_from(">HBHHB", data, at + 2)
        if marker in _SOF:
            return FrameSize(rows=rows, columns=columns, samples=samples, bits=bits)
        if marker <= 0xFF00 or marker in _NO_SEGMENT or length < 2:
            return None
        at += 2 + length
