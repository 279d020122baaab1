"""A finished data set -> its UIDs, its File Meta Information, its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
    return seal_series([ds], origin, kind)[0]


def seal_series(instances: Sequence[Dataset], origin: Origin, kind: Kind) -> tuple[Dataset, ...]:
    """The same for Instances that make up one series: a change in one of them makes all of them new.

    They are numbered in their order, from 1.
    """
    digests = []
    for number, ds in enumerate(instances, start=1):
        ds.InstanceNumber = number
        _put_identity(ds, series_uid=PLACEHOLDER, instance_uid=PLACEHOLDER)
        digests.append(hashlib.sha256(to_bytes(ds)).hexdigest())
    for number, ds in enumerate(instances):
        # No two digests are equal: each Instance has a number of its own.
        _put_identity(
            ds,
            series_uid=origin.uid(kind, "series", *digests),
            instance_uid=origin.uid(kind, "instance", digests[number], *(digests[:number] + digests[number + 1 :])),
        )
    return tuple(instances)


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
