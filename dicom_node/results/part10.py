"""A finished data set -> its UIDs, its File Meta Information, its bytes."""

from __future__ import annotations

import hashlib
from io import BytesIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_node.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.results.headers import Kind, Origin

PLACEHOLDER = "2.25.0"


def seal(ds: Dataset, origin: Origin, kind: Kind) -> Dataset:
    """Give `ds` the UIDs that follow from its source and from every other byte of it.

    Equal bytes have equal UIDs and the other way round; a changed result is a new Instance in a new series.
    """
    _put_identity(ds, series_uid=PLACEHOLDER, instance_uid=PLACEHOLDER)
    content = hashlib.sha256(to_bytes(ds)).hexdigest()
    _put_identity(
        ds,
        series_uid=origin.uid(kind, "series", content),
        instance_uid=origin.uid(kind, "instance", content),
    )
    return ds


def _put_identity(ds: Dataset, *, series_uid: str, instance_uid: str) -> None:
    ds.SeriesInstanceUID = series_uid
    ds.SOPInstanceUID = instance_uid
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = UID(instance_uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    ds.file_meta = meta


def to_bytes(ds: Dataset) -> bytes:
    """The DICOM file (PS3.10): preamble, File Meta Information of ours, data set."""
    file = BytesIO()
    dcmwrite(file, ds, enforce_file_format=True)
    return file.getvalue()
