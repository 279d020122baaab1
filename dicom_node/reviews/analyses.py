"""What a correction refers to -> the analysis of ours that it is about, and why it does not count.

Strongest first: our Tracking UIDs, a reference to a result of ours, a reference to a series that we analysed, and for a
Structure Set the study with the frame of reference alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydicom.dataset import Dataset

from dicom_node.corrections import References
from dicom_node.db import Database, Row
from dicom_node.errors import DicomNodeError, Reason
from dicom_node.series import read_headers
from dicom_node.storage import Storage

# Jobs that end by themselves, and jobs that say nothing of their CT until somebody retries them.
_UNDER_WAY = ("queued", "running")
STOPPED = ("failed", "parked", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Meant:
    """Which analysis a correction is about.

    job_id: None until it ends. answers_ours: whoever made it had our result. problem: why it does not count, or "".
    """

    series_uid: str
    job_id: str | None
    by: str
    answers_ours: bool
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Analyses:
    """What the node has analysed, or is about to."""

    database: Database
    storage: Storage

    def meant(self, of: References) -> Meant | None:
        """None where nothing says that it is about a result or a CT of ours."""
        meant = self._named(of)
        if meant is None or meant.problem:
            return meant
        ct = self._ct_header(meant.series_uid)
        patient_id = "" if ct is None else str(ct.get("PatientID") or "").strip()
        if of.patient_id and patient_id and of.patient_id != patient_id:
            return replace(meant, problem="its Patient ID is not that of the CT")
        return meant

    def header(self, row: Row) -> Dataset | None:
        """Of an Instance; None where its file is gone or no DICOM."""
        try:
            return read_headers([self.storage.path(row["path"])])[0].header
        except DicomNodeError:
            return None

    def _named(self, of: References) -> Meant | None:
        known = self.database.analysed_series(of.study_uid)
        tracked = self._by_tracking(of, known)
        if tracked is not None:
            return tracked
        results = self.database.results_among(of.instances | of.replaced)
        for row in results:
            if row["study_uid"] == of.study_uid:
                return _by_reference(row)
        referred = of.series_uids | of.tracking_uids
        series_uids = dict.fromkeys(row["series_uid"] for row in known if row["reason"] != Reason.NOT_CT)
        named = [self._of_series(uid, known, "series") for uid in series_uids if uid in referred]
        if named:
            return min(named, key=lambda meant: (meant.job_id is None, bool(meant.problem)))
        waiting = [uid for uid in sorted(of.series_uids) if self._is_ct_here(uid, of.study_uid)]
        if waiting:
            return Meant(series_uid=waiting[0], job_id=None, by="series", answers_ours=False)
        if of.kind == "rtstruct":
            for series_uid in series_uids:
                if self._frame_of_reference(series_uid) in of.frames_of_reference:
                    return self._of_series(series_uid, known, "frame_of_reference")
        if results:
            return _by_reference(results[0], "it is of another study than the result that it refers to")
        return self._purged(of)

    def _by_tracking(self, of: References, known: Sequence[Row]) -> Meant | None:
        """The revision with the most of the Tracking UIDs; of several the newest."""
        best: tuple[int, Row] | None = None
        for row in known if of.tracking_uids else ():
            uids = {found["tracking_uid"] for found in self.database.findings(row["job_id"])}
            shared = len(uids & of.tracking_uids)
            if shared and (best is None or shared > best[0]):
                best = shared, row
        if best is None:
            return None
        row = best[1]
        return Meant(series_uid=row["series_uid"], job_id=row["job_id"], by="tracking", answers_ours=True)

    def _of_series(self, series_uid: str, known: Sequence[Row], by: str) -> Meant:
        """The newest revision that ended with a result; else what is under way, or may be retried, is waited for.

        An analysis that failed said nothing of the CT. To compare with nothing would call each nodule one that the
        model missed, which it never looked for.
        """
        jobs = [row for row in known if row["series_uid"] == series_uid]
        complete = [row["job_id"] for row in jobs if row["state"] == "complete"]
        job_id = complete[0] if complete else None
        stays = job_id is None and not any(row["state"] in (*_UNDER_WAY, *STOPPED) for row in jobs)
        problem = self.not_analysed(series_uid) if stays else ""
        return Meant(series_uid=series_uid, job_id=job_id, by=by, answers_ours=False, problem=problem)

    def not_analysed(self, series_uid: str) -> str:
        """In words, for a series that ended without an analysis."""
        jobs = self.database.jobs(series_uid=series_uid, limit=1)
        return "the CT is not analysed" + (f": {jobs[0]['reason_text'] or jobs[0]['state']}" if jobs else "")

    def _purged(self, of: References) -> Meant | None:
        for series_uid in sorted(of.series_uids):
            if self.database.was_purged(series_uid):
                problem = "the CT was deleted here: send it again, and it is analysed and compared"
                return Meant(series_uid=series_uid, job_id=None, by="series", answers_ours=False, problem=problem)
        return None

    def _is_ct_here(self, series_uid: str, study_uid: str) -> bool:
        """A series of the study that is not decided on yet, and may become an analysis."""
        seen = self.database.series(series_uid)
        return seen is not None and seen["study_uid"] == study_uid and seen["assembled_at"] is None

    def _ct_header(self, series_uid: str) -> Dataset | None:
        rows = self.database.instances(series_uid)
        return self.header(rows[0]) if rows else None

    def _frame_of_reference(self, series_uid: str) -> str | None:
        header = self._ct_header(series_uid)
        return None if header is None else str(header.get("FrameOfReferenceUID") or "") or None


def _by_reference(result: Row, problem: str = "") -> Meant:
    return Meant(
        series_uid=result["series_uid"], job_id=result["job_id"], by="reference", answers_ours=True, problem=problem
    )
