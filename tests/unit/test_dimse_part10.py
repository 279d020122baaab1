"""Identifiers are read from bytes of any origin; what cannot be read is refused, never a crash."""

from __future__ import annotations

import contextlib
import io
import os
import struct
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom.dsutils import encode

from dicom_node.dimse.part10 import Identifiers, read_file_head, read_identifiers, write_file_head
from dicom_node.errors import UnreadableInstance
from dicom_node.identity import IMPLEMENTATION_CLASS_UID
from tests.fakes.instances import SERIES, STUDY, fake_instance

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
def test_identifiers_are_read_in_every_encoding(syntax: UID) -> None:
    fake = fake_instance(transfer_syntax=syntax)
    assert read_identifiers(fake.data_set, syntax) == Identifiers(
        sop_class_uid=fake.sop_class_uid, sop_instance_uid=fake.sop_instance_uid, study_uid=STUDY, series_uid=SERIES
    )


@pytest.mark.parametrize("syntax", SYNTAXES[:3], ids=lambda uid: uid.name)
@pytest.mark.parametrize("undefined", [True, False])
def test_nested_sequences_before_the_identifiers_are_skipped(syntax: UID, undefined: bool) -> None:
    inner = Dataset()
    inner.StudyInstanceUID = "9.9"  # of another study: must not be taken for ours
    middle = Dataset()
    middle.ReferencedSeriesSequence = Sequence([inner, inner])
    outer = Dataset()
    outer.SOPInstanceUID = "1.2.3"
    outer.ReferencedStudySequence = Sequence([middle, Dataset()])
    outer.StudyInstanceUID, outer.SeriesInstanceUID = "1.2", "1.3"
    for sequence in (outer["ReferencedStudySequence"], middle["ReferencedSeriesSequence"]):
        sequence.is_undefined_length = undefined
        for item in sequence.value:
            item.is_undefined_length_sequence_item = undefined
    encoded = encode(outer, syntax.is_implicit_VR, syntax.is_little_endian)
    assert encoded is not None
    found = read_identifiers(encoded, syntax)
    assert (found.sop_instance_uid, found.study_uid, found.series_uid) == ("1.2.3", "1.2", "1.3")


def test_unknown_vr_of_undefined_length_holds_implicit_items() -> None:
    inner = struct.pack("<HHI", 0x0008, 0x0018, 4) + b"9.9\0"
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + inner + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    unknown = struct.pack("<HH2sHI", 0x0009, 0x1001, b"UN", 0, 0xFFFFFFFF) + item
    unknown += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    series = struct.pack("<HH2sH", 0x0020, 0x000E, b"UI", 4) + b"1.3\0"
    assert read_identifiers(unknown + series, ExplicitVRLittleEndian).series_uid == "1.3"


def test_absent_identifiers_are_empty() -> None:
    fake = fake_instance(StudyInstanceUID=None, SeriesInstanceUID="")
    found = read_identifiers(fake.data_set, fake.transfer_syntax_uid)
    assert (found.study_uid, found.series_uid) == ("", "")


def test_a_data_set_deeper_than_any_stack_is_read() -> None:
    opened = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    closed = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    series = struct.pack("<HH2sH", 0x0020, 0x000E, b"UI", 4) + b"1.3\0"
    deep = opened * 50_000 + closed * 50_000
    assert read_identifiers(deep + series, ExplicitVRLittleEndian).series_uid == "1.3"


@pytest.mark.parametrize("syntax", SYNTAXES[:3], ids=lambda uid: uid.name)
def test_a_data_set_cut_within_its_header_is_unreadable(syntax: UID) -> None:
    data_set = fake_instance(transfer_syntax=syntax).data_set
    with pytest.raises(UnreadableInstance):
        read_identifiers(data_set[:77], syntax)


def test_a_stream_that_is_not_deflated_is_unreadable() -> None:
    with pytest.raises(UnreadableInstance, match="inflated"):
        read_identifiers(b"\xff" * 100, DeflatedExplicitVRLittleEndian)


@given(data=st.binary(max_size=400), syntax=st.sampled_from(SYNTAXES))
def test_any_bytes_are_read_or_refused(data: bytes, syntax: UID) -> None:
    with contextlib.suppress(UnreadableInstance):
        read_identifiers(data, syntax)


@given(at=st.integers(0, 300), value=st.integers(0, 255), syntax=st.sampled_from(SYNTAXES))
def test_a_flipped_byte_is_read_or_refused(at: int, value: int, syntax: UID) -> None:
    data = bytearray(fake_instance(transfer_syntax=syntax).data_set)
    data[at % len(data)] = value
    with contextlib.suppress(UnreadableInstance):
        read_identifiers(bytes(data), syntax)


def test_a_written_file_is_what_pydicom_reads() -> None:
    fake = fake_instance()
    head = write_file_head(
        sop_class_uid=fake.sop_class_uid,
        sop_instance_uid=fake.sop_instance_uid,
        transfer_syntax_uid=fake.transfer_syntax_uid,
    )
    ds = pydicom.dcmread(io.BytesIO(head + fake.data_set))
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID == fake.sop_instance_uid
    assert ds.file_meta.MediaStorageSOPClassUID == ds.SOPClassUID
    assert ds.file_meta.TransferSyntaxUID == fake.transfer_syntax_uid
    assert ds.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert len(head) == 132 + 12 + ds.file_meta.FileMetaInformationGroupLength
    assert read_file_head(head + fake.data_set).data_set_at == len(head)


@pytest.mark.parametrize("data", [b"", b"DICM", bytes(128) + b"DICM", bytes(200), b"GIF89a" * 40])
def test_other_files_are_no_dicom_files(data: bytes) -> None:
    with pytest.raises(UnreadableInstance):
        read_file_head(data)


def test_real_files_give_what_pydicom_gives(shared_data: Path) -> None:
    read = 0
    for folder, _, names in os.walk(shared_data / "dicom_edge_cases"):
        for path in (Path(folder) / name for name in names):
            data = path.read_bytes()
            if data[128:132] != b"DICM":
                continue
            head = read_file_head(data)
            found = read_identifiers(data[head.data_set_at :], head.transfer_syntax_uid)
            ds = pydicom.dcmread(path, stop_before_pixels=True)
            keywords = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
            expected = [str(ds.get(keyword, "")) for keyword in keywords]
            assert [found.sop_class_uid, found.sop_instance_uid, found.study_uid, found.series_uid] == expected, path
            read += 1
    assert read >= 40
