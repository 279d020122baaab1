"""A job that ends without findings: rejected, with small objects that say why; or withheld, which operators see."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass

from pydicom.dataset import Dataset

from dicom_node import analysis
from dicom_node.config import Config
from dicom_node.db import Database, ResultObject, Row
from dicom_node.engine import Json
from dicom_node.errors import Reason, ResultError, SeriesRejected, StaleState
from dicom_node.flow.job import Jobs
from dicom_node.manifest import manifest_paths
from dicom_node.series import readable_headers
from dicom_node.storage import Storage

log = logging.getLogger(__name__)

# There was no axial CT to look at: a report in the PACS would only be in the way.
_NOTHING_TO_REPORT = {Reason.NOT_CT, Reason.NO_AXIAL_IMAGES, Reason.NO_ROUTE, Reason.MISSING_UID, Reason.MIXED_SERIES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusals:
    """How a job is refused, and what that works with."""

    config: Config
    database: Database
    storage: Storage
    jobs: Jobs

    def wanted(self, job: Row, reason: str) -> bool:
        """Whether the PACS shall hear that this series was not analysed."""
        return (
            job["route"] is not None
            and reason not in _NOTHING_TO_REPORT
            and self.config.route(job["route"]).report_rejected
        )

    def report(self, job_id: str) -> Json:
        """The report of a series that the gate rejected, once."""
        job = self.jobs.row(job_id)
        if job["state"] == "rejected" and not self.database.results(job_id):
            try:
                self.end(job, SeriesRejected(Reason(job["reason"]), job["reason_text"]))
            except ResultError as err:
                self.withhold(job_id, f"report on {job['reason']}: {err}")
        return self.jobs.outcome(job_id)

    def end(self, job: Row, err: SeriesRejected) -> None:
        """The job's end, with small objects that say why: silence must not look like "nothing found"."""
        job_id = job["job_id"]
        objects: list[ResultObject] = []
        headers = self._report_headers(job_id) if self.wanted(job, err.reason) else []
        if headers:
            profiles = self.jobs.profiles(self.config.route(job["route"]))
            made = analysis.rejection(headers, err, self.jobs.origin(job, {}), profiles)
            objects = [self.jobs.write(job_id, file) for file in made]
        self.database.finish_job(
            job_id,
            state="rejected",
            objects=objects,
            reason=err.reason,
            reason_text=err.text,
        )

    def withhold(self, job_id: str, text: str) -> None:
        """Objects that failed their own checks: an operator sees why, nobody else sees anything."""
        log.error("results withheld", extra={"action": "withheld", "job": job_id, "fault": text})
        with contextlib.suppress(StaleState):  # it ended otherwise: cancelled
            self.database.withhold_job(job_id, text)

    def _report_headers(self, job_id: str) -> list[Dataset]:
        """Those that a report cites: none where no file can be read, and no more than a job may have."""
        paths = manifest_paths(self.storage, job_id)[: self.config.gate.max_instances]
        return [file.header for file in readable_headers(paths)[0]]
