"""Small encoded CT Instances, right or wrong on purpose, as they travel in a C-STORE request."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import config
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.dsutils import encode

from dicom_node.dimse.intake import StoreRequest
from dicom_node.dimse.part10 import write_file_head

ROOT = "1.2.826.0.1.3680043.8.498"
STUDY = f"{ROOT}.1"
SERIES = f"{ROOT}.2"


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeInstance:
    """What the command says, and the bytes of the data set."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set: bytes

    def request(self, **changes: Any) -> StoreRequest:
        """The C-STORE request that carries it, from the AE "SCANNER"."""
        values = {
            "sop_class_uid": self.sop_class_uid,
            "sop_instance_uid": self.sop_instance_uid,
            "abstract_syntax": self.sop_class_uid,
            "transfer_syntax_uid": self.transfer_syntax_uid,
            "data_set": self.data_set,
            "source_ae": "SCANNER",
            "source_ip": "192.0.2.7",
        }
        return StoreRequest(**{**values, **changes})

    def write(self, folder: Path) -> Path:
        """A Part 10 file of it."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.sop_instance_uid}.dcm"
        head = write_file_head(
            sop_class_uid=self.sop_class_uid,
            sop_instance_uid=self.sop_instance_uid,
            transfer_syntax_uid=self.transfer_syntax_uid,
        )
        path.write_bytes(head + self.data_set)
        return path


def fake_instance(
    number: int = 1,
    *,
    series: str = SERIES,
    transfer_syntax: str = ExplicitVRLittleEndian,
    sop_class: str = CTImageStorage,
    pixels: bytes = bytes(range(128)),
    **attributes: Any,
) -> FakeInstance:
    """A CT Instance of 8 x 8 pixels. `attributes` replace those of the data set; None leaves one out."""
    uid = f"{series}.{number}"
    ds = Dataset()
    values = {
        "SOPClassUID": sop_class,
        "SOPInstanceUID": uid,
        "Modality": "CT",
        "PatientName": "Secret^Patient",
        "PatientID": "SECRET-1",
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": series,
        "InstanceNumber": number,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": 8,
        "Columns": 8,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        **attributes,
    }
    for keyword, value in values.items():
        if value is not None:
            # Hostile values are meant.
            ds.add(DataElement(keyword, dictionary_VR(keyword), value, validation_mode=config.IGNORE))
    ds.add_new(0x7FE00010, "OW", pixels)
    syntax = UID(transfer_syntax)
    encoded = encode(ds, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
    assert encoded is not None
    return FakeInstance(
        sop_class_uid=str(sop_class), sop_instance_uid=uid, transfer_syntax_uid=str(transfer_syntax), data_set=encoded
    )
