"""Encoded data sets and files as bytes: their identifiers are read, their first part is written, no more is decoded."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection
from dataclasses import dataclass

from dicom_node.errors import UnreadableInstance
from dicom_node.identity import IMPLEMENTATION_CLASS_UID
from dicom_node.transfer_syntaxes import DEFLATED, EXPLICIT_BIG, IMPLICIT_LITTLE

SOP_CLASS_UID = 0x00080016
SOP_INSTANCE_UID = 0x00080018
STUDY_INSTANCE_UID = 0x0020000D
SERIES_INSTANCE_UID = 0x0020000E

_IDENTIFIERS = (SOP_CLASS_UID, SOP_INSTANCE_UID, STUDY_INSTANCE_UID, SERIES_INSTANCE_UID)
_META_SOP_CLASS, _META_SOP_INSTANCE, _META_TRANSFER_SYNTAX = 0x00020002, 0x00020003, 0x00020010
_META = (_META_SOP_CLASS, _META_SOP_INSTANCE, _META_TRANSFER_SYNTAX)

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
# PS3.5 7.1.2: these have two reserved bytes and a length of 32 bits, all others a length of 16 bits.
_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT_VRS = frozenset(
    (b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
     b"ST", b"TM", b"UI", b"UL", b"US")
)  # fmt: skip
# The identifiers of a deflated data set lie well within its first megabytes; a bomb is not inflated further.
_INFLATE_LIMIT = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Identifiers:
    """The UIDs of a data set as it gives them, "" where one is absent. Nothing here is checked yet."""

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHead:
    """File Meta Information of a file, and where its data set begins."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set_at: int


def read_identifiers(data_set: bytes, transfer_syntax_uid: str) -> Identifiers:
    """The identifiers of an encoded data set; nothing behind them is read. Raises UnreadableInstance."""
    if transfer_syntax_uid == DEFLATED:
        data_set = _inflated(data_set)
    reader = _Reader(
        data_set,
        implicit=transfer_syntax_uid == IMPLICIT_LITTLE,
        order=">" if transfer_syntax_uid == EXPLICIT_BIG else "<",
    )
    found = reader.find(_IDENTIFIERS, last=SERIES_INSTANCE_UID)
    if not found:
        raise UnreadableInstance("the data set has none of the UIDs of an Instance")
    sop_class, sop_instance, study, series = (uid_text(found.get(tag, b"")) for tag in _IDENTIFIERS)
    return Identifiers(sop_class_uid=sop_class, sop_instance_uid=sop_instance, study_uid=study, series_uid=series)


def read_command(command: bytes, tags: Collection[int]) -> dict[int, bytes]:
    """Elements of a DIMSE command set (PS3.7 6.3.1: Implicit VR Little Endian). Raises UnreadableInstance."""
    return _Reader(command, implicit=True, order="<").find(tags, last=0x0000FFFF)


def read_file_head(data: bytes) -> FileHead:
    """What a file says it holds (PS3.10 7.1). Raises UnreadableInstance when it is no DICOM file."""
    if data[128:132] != b"DICM":
        raise UnreadableInstance("not a DICOM file: no DICM after the preamble")
    # PS3.10 7.1: File Meta Information is Explicit VR Little Endian, whatever follows.
    reader = _Reader(data, implicit=False, order="<", at=132)
    found = reader.find(_META, last=0x0002FFFF)
    sop_class, sop_instance, transfer_syntax = (uid_text(found.get(tag, b"")) for tag in _META)
    if not transfer_syntax:
        raise UnreadableInstance("no Transfer Syntax UID in the File Meta Information")
    return FileHead(
        sop_class_uid=sop_class,
        sop_instance_uid=sop_instance,
        transfer_syntax_uid=transfer_syntax,
        data_set_at=reader.at,
    )


def write_file_head(*, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Preamble and File Meta Information, to be followed by the data set as it came.

    Holds nothing that varies between two receptions of one instance (no source AE title, no version of ours):
    a resend gives the same bytes, so it is known as one.
    """
    elements = b"".join(
        (
            struct.pack("<HH2sHI", 0x0002, 0x0001, b"OB", 0, 2) + b"\x00\x01",
            _meta_uid(0x0002, sop_class_uid),
            _meta_uid(0x0003, sop_instance_uid),
            _meta_uid(0x0010, transfer_syntax_uid),
            _meta_uid(0x0012, IMPLEMENTATION_CLASS_UID),
        )
    )
    return bytes(128) + b"DICM" + struct.pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, len(elements)) + elements


def _meta_uid(element: int, uid: str) -> bytes:
    value = uid.encode("ascii")
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HH2sH", 0x0002, element, b"UI", len(value)) + value


def uid_text(value: bytes) -> str:
    """A UID as it was encoded, without its padding."""
    # Latin-1 maps every byte, so hostile bytes reach the check of UIDs instead of a decoder's error.
    return value.decode("latin-1").rstrip("\0 ")


def _inflated(data_set: bytes) -> bytes:
    # PS3.5 A.5: a raw deflate stream, without the header of zlib.
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data_set, _INFLATE_LIMIT)
    except zlib.error as err:
        raise UnreadableInstance("the deflated data set cannot be inflated") from err


class _Reader:
    """Walks the elements of one encoded data set. Values are skipped, also nested ones, without recursion."""

    def __init__(self, data: bytes, *, implicit: bool, order: str, at: int = 0) -> None:
        self.at = at
        self._data, self._implicit = data, implicit
        self._tag = struct.Struct(f"{order}HH")
        self._u16 = struct.Struct(f"{order}H")
        self._u32 = struct.Struct(f"{order}I")

    def find(self, tags: Collection[int], *, last: int) -> dict[int, bytes]:
        """Values of `tags`; reads up to the first element beyond `last`, where `at` then stands."""
        found: dict[int, bytes] = {}
        end = len(self._data)
        try:
            while self.at < end:
                tag = self._peek_tag()
                if tag > last:
                    break
                length, value_at = self._header(self._implicit)
                if length == _UNDEFINED:
                    self.at = value_at
                    self._skip_undefined(self._vr_is_unknown(value_at))
                    continue
                if value_at + length > end:
                    raise UnreadableInstance("an element is longer than the data set")
                if tag in tags:
                    found[tag] = self._data[value_at : value_at + length]
                self.at = value_at + length
        except struct.error as err:
            raise UnreadableInstance("the data set ends within an element") from err
        return found

    def _peek_tag(self) -> int:
        group, element = self._tag.unpack_from(self._data, self.at)
        return int(group) << 16 | int(element)

    def _header(self, implicit: bool) -> tuple[int, int]:
        """Length and place of the value of the element at `at`."""
        if implicit:
            return int(self._u32.unpack_from(self._data, self.at + 4)[0]), self.at + 8
        vr = self._data[self.at + 4 : self.at + 6]
        if vr in _SHORT_VRS:
            return int(self._u16.unpack_from(self._data, self.at + 6)[0]), self.at + 8
        if vr in _LONG_VRS:
            return int(self._u32.unpack_from(self._data, self.at + 8)[0]), self.at + 12
        raise UnreadableInstance("an element has no known value representation")

    def _vr_is_unknown(self, value_at: int) -> bool:
        return not self._implicit and self._data[value_at - 8 : value_at - 6] == b"UN"

    def _skip_undefined(self, unknown: bool) -> None:
        """From the first byte of a value of undefined length to behind its delimiter.

        `open_values` has an entry for each value that is not yet closed: whether its content is Implicit VR, which
        it is in an implicit data set, and within UN of undefined length (PS3.5 6.2.2 note 2).
        """
        open_values = [self._implicit or unknown]
        while open_values:
            tag = self._peek_tag()
            if tag == _SEQUENCE_END:
                open_values.pop()
                self.at += 8
            elif tag in (_ITEM, _ITEM_END):
                length = int(self._u32.unpack_from(self._data, self.at + 4)[0])
                self.at += 8 + (length if tag == _ITEM and length != _UNDEFINED else 0)
            else:
                implicit = open_values[-1]
                length, value_at = self._header(implicit)
                if length == _UNDEFINED:
                    vr_unknown = not implicit and self._data[value_at - 8 : value_at - 6] == b"UN"
                    open_values.append(implicit or vr_unknown)
                    self.at = value_at
                else:
                    self.at = value_at + length
