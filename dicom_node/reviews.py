"""A series of Segmentations, reports or Structure Sets that a peer sent -> rows that say what it makes of our results.

Recognised by, strongest first: our own UID (ours came back), our Tracking UIDs or a reference to a result of ours, a
reference to a series that we analysed, and for a Structure Set the study with the frame of reference alone. Everything
may be done twice: the row is that of the Instance.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from dicom_node.config import Config
from dicom_node.corrections import (
    KINDS,
    Compared,
    Drawn,
    Ours,
    References,
    SourceGrid,
    compare,
    read_correction,
    read_ours,
)
from dicom_node.corrections import references_of as read_references
from dicom_node.db import Database, Row
from dicom_node.errors import CorrectionUnusable, DicomNodeError, StorageError
from dicom_node.logs import describe
from dicom_node.manifest import manifest_paths
from dicom_node.series import read_headers, read_series
from dicom_node.storage import Storage

log = logging.getLogger(__name__)

# The engine waits for a decision meanwhile; a reader's own objects are a few megabytes.
MOST_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Meant:
    """Which analysis a correction is about. job_id: None until it ends. problem: why it does not count, or ""."""

    series_uid: str
    job_id: str | None
    by: str
    answers_ours: bool
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """A correction, read. whole: it answers to our result as a whole, so that what it lacks was struck out."""

    grid: SourceGrid
    ours: list[Ours]
    drawn: list[Drawn]
    verdicts: list[Compared]
    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviews:
    """What a radiologist made of our results."""

    config: Config
    database: Database
    storage: Storage

    def take(self, rows: Sequence[Row], source_ae: str) -> bool:
        """Whether the series is about results of ours, so that nothing else becomes of it; its rows are written then.

        rows: of its Instances.
        """
        mine = {row["sop_instance_uid"] for row in self.database.results_among([r["sop_instance_uid"] for r in rows])}
        if not all(row["sop_class_uid"] in KINDS or row["sop_instance_uid"] in mine for row in rows):
            return False
        taken = [self._take(row, source_ae, unchanged=row["sop_instance_uid"] in mine) for row in rows]
        return any(taken)

    def series_ended(self, series_uid: str) -> None:
        """Compare what waited for an analysis of the series, or say why there is none.

        What was refused for want of one is looked at again: more of the CT came, or somebody retried its job.
        """
        for row in self.database.corrections(of_series_uid=series_uid):
            instance = self.database.instance(row["sop_instance_uid"]) if row["job_id"] is None else None
            if instance is not None:
                self._take(instance, row["source_ae"], unchanged=False)

    def _take(self, row: Row, source_ae: str, *, unchanged: bool) -> bool:
        try:
            return self._recognised(row, source_ae, unchanged=unchanged)
        except StorageError:
            raise
        except Exception:
            # Nobody foresaw it. The series must not vanish: it is judged as if it were about nothing of ours.
            log.exception("correction not recognised", extra={"action": "failed", "series": row["series_uid"]})
            return False

    def _recognised(self, row: Row, source_ae: str, *, unchanged: bool) -> bool:
        if unchanged:
            log.info("a result of ours came back", extra={"action": "ours", "series": row["series_uid"]})
            return True
        before = self.database.correction(row["sop_instance_uid"])
        if before is not None and before["job_id"] is not None and before["changed_at"] >= row["received_at"]:
            return True
        header = self._header(row)
        if header is None:
            return False
        try:
            references = read_references(header)
            meant = self._meant(references)
        except CorrectionUnusable:
            return False  # about whatever it is: nothing says that it is about results of ours
        if meant is None and before is not None and before["job_id"] is None:
            meant = self._unanalysed(before)
        if meant is None:
            return False
        values = self._values(row, source_ae, references, meant)
        self.database.record_correction(row["sop_instance_uid"], **values)
        extra = {"action": "correction", "series": row["series_uid"], "state": values["state"], "by": meant.by}
        log.info("correction", extra=extra)
        if values["state"] == "waiting" and self._meant(references) != meant:
            # The series ended, and what waits for it was looked for, before this row was there.
            return self._recognised(row, source_ae, unchanged=False)
        return True

    def _values(self, row: Row, source_ae: str, references: References, meant: _Meant) -> dict[str, Any]:
        """Columns of the correction's row."""
        values: dict[str, Any] = {
            "series_uid": row["series_uid"],
            "study_uid": row["study_uid"],
            "kind": references.kind,
            "source_ae": source_ae,
            "recognised_by": meant.by,
            "of_series_uid": meant.series_uid,
            "job_id": meant.job_id,
            "made": references.made,
        }
        if not self.config.may_correct(source_ae):
            values |= {"state": "refused", "text": f"{source_ae} is no peer with may_correct"}
        elif row["size_bytes"] > MOST_BYTES:
            values |= {"state": "refused", "text": f"it has {row['size_bytes']} bytes, {MOST_BYTES} are read"}
        elif meant.problem:
            values |= {"state": "refused", "text": meant.problem}
        elif meant.job_id is None:
            values |= {"state": "waiting", "text": "the CT is not analysed yet"}
        else:
            values |= self._compared(row, references, meant)
        return values

    def _header(self, row: Row) -> Dataset | None:
        try:
            return read_headers([self.storage.path(row["path"])])[0].header
        except DicomNodeError:
            return None

    # -- which analysis -----------------------------------------------------------------------------

    def _meant(self, of: References) -> _Meant | None:
        meant = self._named(of)
        if meant is None or meant.problem:
            return meant
        ct = self._ct_header(meant.series_uid)
        patient_id = "" if ct is None else str(ct.get("PatientID") or "").strip()
        if of.patient_id and patient_id and of.patient_id != patient_id:
            return replace(meant, problem="its Patient ID is not that of the CT")
        return meant

    def _named(self, of: References) -> _Meant | None:
        known = self.database.analysed_series(of.study_uid)
        tracked = self._by_tracking(of, known)
        if tracked is not None:
            return tracked
        results = self.database.results_among(of.instances | of.replaced)
        for row in results:
            if row["study_uid"] == of.study_uid:
                return _by_reference(row)
        referred = of.series_uids | of.tracking_uids
        for row in known:
            if row["series_uid"] in referred:
                return self._of_series(row["series_uid"], known, "series")
        waiting = [uid for uid in sorted(of.series_uids) if self._is_ct_here(uid, of.study_uid)]
        if waiting:
            return _Meant(series_uid=waiting[0], job_id=None, by="series", answers_ours=False)
        if of.kind == "rtstruct":
            for series_uid in dict.fromkeys(row["series_uid"] for row in known):
                if self._frame_of_reference(series_uid) in of.frames_of_reference:
                    return self._of_series(series_uid, known, "frame_of_reference")
        if results:
            return _by_reference(results[0], "it is of another study than the result that it refers to")
        return None

    def _by_tracking(self, of: References, known: Sequence[Row]) -> _Meant | None:
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
        return _Meant(series_uid=row["series_uid"], job_id=row["job_id"], by="tracking", answers_ours=True)

    def _of_series(self, series_uid: str, known: Sequence[Row], by: str) -> _Meant | None:
        states = [(row["job_id"], row["state"]) for row in known if row["series_uid"] == series_uid]
        complete = [job_id for job_id, state in states if state == "complete"]
        if not complete and not any(state in ("queued", "running") for _, state in states):
            return None  # we said nothing about it, and are not going to
        return _Meant(series_uid=series_uid, job_id=complete[0] if complete else None, by=by, answers_ours=False)

    def _unanalysed(self, before: Row) -> _Meant:
        """For a correction whose series ended without an analysis."""
        jobs = self.database.jobs(series_uid=before["of_series_uid"], limit=1)
        why = f": {jobs[0]['reason_text'] or jobs[0]['state']}" if jobs else ""
        return _Meant(
            series_uid=before["of_series_uid"],
            job_id=None,
            by=before["recognised_by"],
            answers_ours=False,
            problem=f"the CT is not analysed{why}",
        )

    def _is_ct_here(self, series_uid: str, study_uid: str) -> bool:
        """A series of the study that is not decided on yet, and may become an analysis."""
        seen = self.database.series(series_uid)
        return seen is not None and seen["study_uid"] == study_uid and seen["assembled_at"] is None

    def _ct_header(self, series_uid: str) -> Dataset | None:
        rows = self.database.instances(series_uid)
        return self._header(rows[0]) if rows else None

    def _frame_of_reference(self, series_uid: str) -> str | None:
        header = self._ct_header(series_uid)
        return None if header is None else str(header.get("FrameOfReferenceUID") or "") or None

    # -- what it says ---------------------------------------------------------------------------------

    def _compared(self, row: Row, references: References, meant: _Meant) -> dict[str, Any]:
        try:
            seen = self._examined(row, references, meant)
        except (DicomNodeError, OSError) as err:
            return {"state": "refused", "text": str(err) if isinstance(err, DicomNodeError) else describe(err)}
        except Exception as err:  # parsers meet whatever a peer sent, and raise whatever they like
            log.exception("correction not read", extra={"action": "correction", "series": row["series_uid"]})
            return {"state": "refused", "text": f"it can't be read: {describe(err)}"}
        if references.equipment_is_ours and all(_untouched(each) for each in seen.verdicts):
            return {"state": "ours", "text": "a result of ours under another UID"}
        if not seen.drawn and not (seen.whole and seen.ours):
            return {"state": "refused", "text": "it marks no nodule"}
        return {"state": "compared", "text": None, "verdicts": [each.as_json() for each in seen.verdicts]}

    def _examined(self, row: Row, references: References, meant: _Meant) -> Examined:
        assert meant.job_id is not None  # noqa: S101  # the caller looked
        grid, ours = self.analysed(meant.job_id)
        ds = pydicom.dcmread(self.storage.path(row["path"]))
        drawn = read_correction(ds, references.kind, grid, self._segmentation)
        whole = meant.answers_ours and (references.kind != "sr" or bool(references.replaced))
        verdicts = compare(ours, drawn, grid, answers_ours=whole)
        return Examined(grid=grid, ours=ours, drawn=drawn, verdicts=verdicts, whole=whole)

    def examined(self, correction: Row) -> Examined:
        """What a compared correction draws, read again. Raises DicomNodeError where a purge took what it needs."""
        instance = self.database.instance(correction["sop_instance_uid"])
        header = None if instance is None else self._header(instance)
        if instance is None or header is None:
            raise CorrectionUnusable("its file is not here any more")
        references = read_references(header)
        meant = self._meant(references)
        if meant is None or meant.job_id is None:
            raise CorrectionUnusable("the analysis that it is about is not here any more")
        if meant.problem:
            raise CorrectionUnusable(meant.problem)
        try:
            return self._examined(instance, references, meant)
        except OSError as err:
            raise CorrectionUnusable(f"a file of the CT is not here any more ({describe(err)})") from err

    def analysed(self, job_id: str) -> tuple[SourceGrid, list[Ours]]:
        """Where the voxels of a job's series are, and its findings on them. Raises DicomNodeError, OSError."""
        grid = SourceGrid.of(read_series(self.manifest(job_id), self.config.gate))
        segs = [r for r in self.database.results(job_id) if r["kind"] == "seg" and r["sop_class_uid"] in KINDS]
        files = [self.storage.path(row["path"]) for row in segs]
        ds = next((pydicom.dcmread(file) for file in files if file.exists()), None)
        return grid, read_ours(self.database.findings(job_id), ds, grid)

    def manifest(self, job_id: str) -> list[Path]:
        """The files of the series that a job analysed."""
        return manifest_paths(self.storage, job_id)

    def _segmentation(self, sop_instance_uid: str) -> Dataset | None:
        """One that a report refers to: of ours, or received."""
        for table in (self.database.result_of, self.database.instance):
            row = table(sop_instance_uid)
            if row is not None and KINDS.get(row["sop_class_uid"]) == "seg":
                path = self.storage.path(row["path"])
                return pydicom.dcmread(path) if path.exists() else None
        return None


def _by_reference(result: Row, problem: str = "") -> _Meant:
    return _Meant(
        series_uid=result["series_uid"], job_id=result["job_id"], by="reference", answers_ours=True, problem=problem
    )


def _untouched(verdict: Compared) -> bool:
    return verdict.verdict == "confirmed" or (verdict.verdict == "unreviewed" and verdict.number is not None)


def shown(row: Row) -> dict[str, Any]:
    """A correction as `--json`, the API and the template have it."""
    verdicts = list(row["verdicts"])
    counts = {name: sum(v["verdict"] == name for v in verdicts) for name in _VERDICTS}
    return {
        "sop_instance_uid": row["sop_instance_uid"],
        "kind": row["kind"],
        "state": row["state"],
        "text": row["text"],
        "source_ae": row["source_ae"],
        "recognised_by": row["recognised_by"],
        "series_instance_uid": row["of_series_uid"],
        "job_id": row["job_id"],
        "made": row["made"].strip(),
        "received_at": row["received_at"],
        "counts": counts,
        "verdicts": verdicts,
    }


_VERDICTS = ("confirmed", "changed", "removed", "added", "unreviewed")


def corrections_of(database: Database, job_id: str) -> list[dict[str, Any]]:
    """What came back on a job's results, newest first: for `jobs show` and the page of a job."""
    return [shown(row) for row in database.corrections(job_id=job_id)]
