"""File -> the encoded bytes of each of its frames, one at a time. What the header claims is held against the bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.dataset import Dataset

from dicom_node.series import codestream, values
from dicom_node.series.stream import Inflated, opened
from dicom_node.transfer_syntaxes import BY_UID, EXPLICIT_BIG, Coding, TransferSyntax

_PIXEL_DATA = 0x7FE00010
_ITEM, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
# No lossless coding makes a frame longer than this many times its pixels, and none needs that many fragments.
_LONGEST_FRAME, _MOST_FRAGMENTS = 2, 256
_SPARE_BYTES = 64 * 1024
_END_OF_IMAGE = b"\xff\xd9"


class UnusableFrames(Exception):
    """The frames of a file can't be read; the text says why and quotes no element that may name a patient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the pixels of each frame are stored (PS3.3 C.7.6.3)."""

    syntax: TransferSyntax
    rows: int
    columns: int
    frames: int
    bits_allocated: int
    bits_stored: int
    signed: bool

    @property
    def frame_bytes(self) -> int:
        return self.rows * self.columns * (self.bits_allocated // 8)

    @property
    def big_endian(self) -> bool:
        return self.syntax.uid == EXPLICIT_BIG


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """The frames of an open file. parts: for each frame the places (offset, length) that its bytes lie at."""

    layout: Layout
    stream: BinaryIO
    parts: Sequence[Sequence[tuple[int, int]]]

    def read(self, number: int) -> bytes:
        """The encoded bytes of a frame, counted from 1. Raises UnusableFrames."""
        if not 1 <= number <= len(self.parts):
            raise UnusableFrames(f"there is no frame {number} among {len(self.parts)}")
        data = b"".join(_read(self.stream, offset, length) for offset, length in self.parts[number - 1])
        if self.layout.syntax.coding is not Coding.NATIVE:
            _check_codestream(data, self.layout)
        return data


@contextmanager
def open_frames(path: str) -> Iterator[Frames]:
    """Raises UnusableFrames, and what pydicom raises on a header that can't be parsed."""
    with opened(path) as (header, stream):
        layout = _layout(header)
        if layout.syntax.coding is Coding.NATIVE:
            parts = _native_parts(stream, layout)
        else:
            parts = _encapsulated_parts(stream, layout)
        yield Frames(layout=layout, stream=stream, parts=parts)


def _layout(header: Dataset) -> Layout:
    uid = values.transfer_syntax(header)
    if uid not in BY_UID:
        raise UnusableFrames("its transfer syntax is not one that this node decodes")
    rows, columns = (values.integer(header, keyword, 0) for keyword in ("Rows", "Columns"))
    allocated = values.integer(header, "BitsAllocated", 16)
    layout = Layout(
        syntax=BY_UID[uid],
        rows=rows,
        columns=columns,
        frames=values.integer(header, "NumberOfFrames", 1),
        bits_allocated=allocated,
        bits_stored=values.integer(header, "BitsStored", allocated),
        signed=values.integer(header, "PixelRepresentation", 0) == 1,
    )
    if allocated not in (8, 16, 32) or not 1 <= layout.bits_stored <= allocated:
        raise UnusableFrames(f"BitsAllocated {allocated} with BitsStored {layout.bits_stored} is no CT")
    high_bit = values.integer(header, "HighBit", layout.bits_stored - 1)
    if high_bit != layout.bits_stored - 1 and layout.syntax.coding in (Coding.NATIVE, Coding.RLE):
        # PS3.3 C.7.6.3 has no other; old images have, and which bits count would be a guess.
        raise UnusableFrames(f"HighBit {high_bit} with BitsStored {layout.bits_stored} is no CT")
    if min(rows, columns, layout.frames) < 1 or values.integer(header, "SamplesPerPixel", 1) != 1:
        raise UnusableFrames("Rows, Columns, NumberOfFrames or SamplesPerPixel cannot be")
    return layout


def _native_parts(stream: BinaryIO, layout: Layout) -> list[list[tuple[int, int]]]:
    length, at = _pixel_element(stream, layout)
    wanted = layout.frame_bytes * layout.frames
    # PS3.5 8.1.1: of even length, so one byte of padding may follow.
    if length != _UNDEFINED and not wanted <= length <= wanted + _SPARE_BYTES:
        raise UnusableFrames(f"PixelData has {length} bytes, and its frames need {wanted}")
    _check_there(stream, at + wanted)
    return [[(at + n * layout.frame_bytes, layout.frame_bytes)] for n in range(layout.frames)]


def _check_there(stream: BinaryIO, end: int) -> None:
    """That a file goes on to `end`; what a deflated one holds shows when it is inflated, no further than that."""
    if isinstance(stream, Inflated):
        stream.limit = end
        return
    here = stream.tell()
    size = stream.seek(0, 2)
    stream.seek(here)
    if size < end:
        raise UnusableFrames(f"the file ends {end - size} bytes before its last frame does")


def _pixel_element(stream: BinaryIO, layout: Layout) -> tuple[int, int]:
    """Length and place of the value of PixelData, at whose tag the stream stands."""
    order = ">" if layout.big_endian else "<"
    head = stream.read(12)
    if len(head) < 8:
        raise UnusableFrames("there is no PixelData")
    group, element = struct.unpack_from(f"{order}HH", head)
    if (group << 16) + element != _PIXEL_DATA:
        raise UnusableFrames("there is no PixelData of whole numbers")
    # PS3.5 7.1.2: two letters of a VR, two reserved bytes, then the length; implicit VR has the length at once.
    if head[4:6] in (b"OB", b"OW", b"UN"):
        if len(head) < 12:
            raise UnusableFrames("there is no PixelData")
        return int(struct.unpack_from(f"{order}I", head, 8)[0]), stream.tell()
    return int(struct.unpack_from(f"{order}I", head, 4)[0]), stream.tell() - len(head) + 8


def _encapsulated_parts(stream: BinaryIO, layout: Layout) -> list[list[tuple[int, int]]]:
    _pixel_element(stream, layout)
    fragments = list(_fragments(stream, layout))
    if not fragments:
        raise UnusableFrames("PixelData holds no frame")
    parts: list[list[tuple[int, int]]] = []
    if layout.frames == 1:
        parts = [fragments]
    elif len(fragments) == layout.frames:
        parts = [[fragment] for fragment in fragments]
    else:
        for offset, length in fragments:
            if not parts or codestream.begins_frame(_read(stream, offset, min(length, 16)), layout.syntax.coding):
                parts.append([])
            parts[-1].append((offset, length))
    if len(parts) != layout.frames:
        raise UnusableFrames(f"PixelData holds {len(parts)} frames, and NumberOfFrames is {layout.frames}")
    longest = _LONGEST_FRAME * layout.frame_bytes + _SPARE_BYTES
    if max(sum(length for _, length in part) for part in parts) > longest:
        raise UnusableFrames("a compressed frame is much longer than its pixels")
    return parts


def _fragments(stream: BinaryIO, layout: Layout) -> Iterator[tuple[int, int]]:
    """Place and length of each item behind the Basic Offset Table (PS3.5 A.4), whose numbers are not needed."""
    size_at_most = _MOST_FRAGMENTS * layout.frames
    count = -1  # the first item is the table
    while True:
        head = stream.read(8)
        if len(head) < 8:
            raise UnusableFrames("the file ends within its PixelData")
        group, element, length = struct.unpack("<HHI", head)
        tag = (group << 16) + element
        if tag == _SEQUENCE_END:
            return
        if tag != _ITEM or length == _UNDEFINED:
            raise UnusableFrames("PixelData is not made of items")
        at = stream.tell()
        stream.seek(at + length)
        count += 1
        if count > size_at_most:
            raise UnusableFrames(f"PixelData holds more than {size_at_most} fragments")
        if count:
            yield at, length


def _check_codestream(data: bytes, layout: Layout) -> None:
    """A decoder makes room for what the codestream claims, so that is asked first."""
    if layout.syntax.coding is Coding.RLE:
        if not codestream.rle_is_sound(data, layout.bits_allocated // 8):
            raise UnusableFrames("the RLE header is not that of such a frame")
        return
    size = codestream.frame_size(data, layout.syntax.coding)
    if size is None:
        raise UnusableFrames(f"its bytes are no {layout.syntax.coding} codestream")
    if (size.rows, size.columns, size.samples) != (layout.rows, layout.columns, 1):
        raise UnusableFrames(
            f"its codestream is {size.samples} x {size.rows} x {size.columns}, its header 1 x {layout.rows} x "
            f"{layout.columns}"
        )
    # Without its end marker CharLS reads on for seconds before it gives up.
    if layout.syntax.coding is Coding.JPEG_LS and _END_OF_IMAGE not in data[-64:]:
        raise UnusableFrames("its codestream has no end")
    if size.bits > layout.bits_allocated:
        raise UnusableFrames(f"its codestream has {size.bits} bits a pixel, its header {layout.bits_allocated}")


def _read(stream: BinaryIO, offset: int, length: int) -> bytes:
    stream.seek(offset)
    data = stream.read(length)
    if len(data) < length:
        raise UnusableFrames(f"the file ends {length - len(data)} bytes before its frame does")
    return data
