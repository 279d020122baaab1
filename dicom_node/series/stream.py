"""Path -> header, and the stream that stands at PixelData. A deflated data set is inflated only as far as needed."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from dicom_node.errors import UnreadableInstance

# PS3.5 A.5: what is deflated is the whole data set. No header of a CT is longer; a bomb is not inflated further.
LONGEST_HEADER_BYTES = 64 * 1024 * 1024
_PIXELS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
_CHUNK = 256 * 1024
# PS3.10 7.1: preamble, DICM, then the length of the File Meta Information, the first element of it.
_META_AT, _META_LENGTH = 144, slice(132, 144)


class Inflated(io.RawIOBase):
    """A raw deflate stream read like a file; reading beyond `limit` bytes raises UnreadableInstance."""

    def __init__(self, source: BinaryIO, limit: int) -> None:
        self._source = source
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._done = bytearray()
        self._at = 0
        self.limit = limit

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end of a deflated stream is not known")
        self._at = offset + (self._at if whence == io.SEEK_CUR else 0)
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self.limit + 1 if size < 0 else self._at + size
        while len(self._done) < end and self._more(min(end, self.limit + 1)):
            pass
        if min(end, len(self._done)) > self.limit:
            raise UnreadableInstance(f"the deflated data set holds more than {self.limit} bytes: send it uncompressed")
        found = bytes(self._done[self._at : end])
        self._at += len(found)
        return found

    def _more(self, wanted: int) -> bool:
        """Inflate a chunk; False at the end of the stream."""
        if self._inflate.eof or len(self._done) >= wanted:
            return False
        deflated = self._inflate.unconsumed_tail or self._source.read(_CHUNK)
        if not deflated:
            return False
        self._done += self._inflate.decompress(deflated, wanted - len(self._done))
        return True


@contextmanager
def opened(path: str | Path) -> Iterator[tuple[Dataset, BinaryIO]]:
    """The header, its sequences still unparsed, and the stream where PixelData begins.

    Raises what pydicom raises, OSError, or UnreadableInstance.
    """
    with Path(path).open("rb") as file:
        if _is_deflated(path, file):
            header, stream = _deflated(path, file)
            yield header, stream
        else:
            file.seek(0)
            yield pydicom.dcmread(file, stop_before_pixels=True), file


def _is_deflated(path: str | Path, file: BinaryIO) -> bool:
    """Whether the data set is deflated: asked before pydicom reads it, which would inflate it whole."""
    head = file.read(4096)
    if DeflatedExplicitVRLittleEndian.encode() not in head:
        return False
    return bool(read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian)


def _deflated(path: str | Path, file: BinaryIO) -> tuple[Dataset, BinaryIO]:
    meta = read_file_meta_info(path)
    file.seek(0)
    tag, vr, _, length = struct.unpack("<I2sHI", file.read(_META_AT)[_META_LENGTH])
    if (tag, vr) != (0x00000002, b"UL"):
        raise UnreadableInstance("the File Meta Information does not begin with its length")
    file.seek(_META_AT + length)
    stream = cast(BinaryIO, Inflated(file, LONGEST_HEADER_BYTES))
    header = read_dataset(stream, is_implicit_VR=False, is_little_endian=True, stop_when=_at_pixels)
    header.file_meta = meta
    return header, stream


def _at_pixels(tag: int, _vr: str | None, _length: int) -> bool:
    return tag in _PIXELS
