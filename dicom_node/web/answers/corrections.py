"""Rows of corrections -> what radiologists made of our findings."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from dicom_node.db import Database
from dicom_node.reviews import corrections_of, newest_corrections
from dicom_node.web.answers.form import Form, moment


class Correction(Form):
    """A corrected result that came back. job_id: the revision that it was compared with, null until there is one.

    kind: seg, sr or rtstruct. text: why it is in this state. made: its content date and time, as it has them.
    recognised_by: how it was found to be about results of ours. counts: findings by verdict; verdicts: each of them.
    """

    sop_instance_uid: str
    kind: str
    state: str
    text: str | None
    source_ae: str
    recognised_by: str
    series_instance_uid: str
    job_id: str | None
    made: str
    received_at: datetime
    counts: dict[str, int]
    verdicts: list[dict[str, Any]]


def corrections(database: Database, limit: int) -> list[Correction]:
    """The newest."""
    return [_form(each) for each in newest_corrections(database, limit=limit)]


def corrections_of_job(database: Database, job_id: str) -> list[Correction]:
    """Newest first."""
    return [_form(each) for each in corrections_of(database, job_id)]


def _form(known: dict[str, Any]) -> Correction:
    return Correction(**{**known, "received_at": moment(known["received_at"])})
