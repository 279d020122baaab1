"""Files of a series -> whose they are and what of a study they are, for the audit trail alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import sqlalchemy as sa

from dicom_node.audit import Patient, Study
from dicom_node.audit.message import Instances
from dicom_node.db import Database
from dicom_node.errors import DicomNodeError
from dicom_node.logs import describe
from dicom_node.storage import Storage

log = logging.getLogger(__name__)


def patient_of(path: Path) -> Patient:
    """As the file's header has it; empty where it can't be read."""
    from pydicom import dcmread

    try:
        header = dcmread(
            path, stop_before_pixels=True, specific_tags=["SpecificCharacterSet", "PatientID", "PatientName"]
        )
        return Patient(id=str(header.get("PatientID") or ""), name=str(header.get("PatientName") or ""))
    except Exception as err:  # noqa: BLE001  the parser meets whatever a peer sent, and raises whatever it likes
        log.warning("no patient for the audit trail", extra={"action": "audit", "error": describe(err)})
        return Patient()


def study_of(
    database: Database, storage: Storage, series_uid: str, counts: Mapping[str, int] | None = None
) -> Study | None:
    """The study of a received series. counts: Instances by SOP Class; None: all that are here.

    None where the rows can't be read.
    """
    try:
        rows = database.instances(series_uid)
    except (sa.exc.SQLAlchemyError, DicomNodeError) as err:
        log.error("no series for the audit trail", extra={"action": "audit", "error": describe(err)})
        return None
    if not rows:
        return None
    if counts is None:
        classes = [row["sop_class_uid"] for row in rows]
        counts = {uid: classes.count(uid) for uid in sorted(set(classes))}
    return Study(
        uid=rows[0]["study_uid"],
        patient=patient_of(storage.path(rows[0]["path"])),
        instances=tuple(Instances(sop_class_uid=uid, count=count) for uid, count in sorted(counts.items())),
        series_uids=(series_uid,),
    )
