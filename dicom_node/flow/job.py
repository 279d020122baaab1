"""A job's row and files -> what an analysis or a refusal needs of them; the objects that it made -> files and rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dicom_node import analysis
from dicom_node.config import Config, RouteConfig
from dicom_node.db import Database, ResultObject, Row
from dicom_node.delivery import delivery_id
from dicom_node.engine import Json, Run
from dicom_node.errors import StaleState
from dicom_node.profiles import REPORT_KINDS, ResultProfile
from dicom_node.results import Predecessor
from dicom_node.series import read_headers
from dicom_node.storage import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """What is asked of a job by its id or its row, and where what it made goes."""

    config: Config
    database: Database
    storage: Storage

    def row(self, job_id: str) -> Row:
        """Raises StaleState where it is gone: purged."""
        job = self.database.job(job_id)
        if job is None:
            raise StaleState(f"job {job_id} is not in the database")
        return job

    def origin(self, job: Row, predecessors: Mapping[str, Predecessor]) -> analysis.Origin:
        """What the job's objects tell of where they come from."""
        return analysis.Origin(
            manifest_sha256=job["manifest_sha256"],
            # Content date and time come from the job, so the same job makes the same bytes. In local time, as
            # PS3.3 C.12.1.1.8 reads times without an offset.
            made_at=datetime.fromtimestamp(int(job["created_at"]), UTC).astimezone(),
            evidence=job["evidence"]["text"],
            complete=not job["evidence"]["partial"],
            predecessors=predecessors,
        )

    def predecessors(self, job: Row) -> dict[str, Predecessor]:
        """The reports of the job before this one, by name and by kind: the series grew since."""
        for older in self.database.jobs(series_uid=job["series_uid"]):
            if older["job_id"] == job["job_id"] or older["created_at"] > job["created_at"]:
                continue
            rows = [made for made in self.database.results(older["job_id"]) if made["kind"] in REPORT_KINDS.values()]
            named = {Path(row["path"]).stem: self._predecessor(row) for row in rows}
            if named:
                # Where a destination's profile has changed, its report follows one of another form.
                return {row["kind"]: named[Path(row["path"]).stem] for row in reversed(rows)} | named
        return {}

    def _predecessor(self, made: Row) -> Predecessor:
        header = read_headers([self.storage.path(made["path"])])[0].header
        return Predecessor(
            study_uid=str(header.StudyInstanceUID),
            series_uid=str(header.SeriesInstanceUID),
            sop_instance_uid=str(header.SOPInstanceUID),
        )

    def profiles(self, route: RouteConfig) -> dict[str, ResultProfile]:
        """Of each destination; of nobody where results stay here, which are made all the same."""
        return {name: self.config.profile(name) for name in route.destinations or ("",)}

    def write(self, job_id: str, made: analysis.ResultFile) -> ResultObject:
        """An object -> its file, and what the row says of it."""
        stored = self.storage.write_result(job_id, f"{made.name}.dcm", made.data)
        return ResultObject(
            sop_instance_uid=made.sop_instance_uid,
            sop_class_uid=made.sop_class_uid,
            kind=made.kind,
            destinations=made.destinations - {""},
            path=stored.path,
            sha256=stored.sha256,
            size_bytes=stored.size_bytes,
        )

    def outcome(self, job_id: str) -> Json:
        """What a step keeps of a job that ended, for the workflow to go on with."""
        job = self.row(job_id)
        destinations = sorted({row["destination"] for row in self.database.deliveries(job_id)})
        shadow = job["shadow_model"] if job["state"] == "complete" else None
        return {
            "state": job["state"],
            "priority": job["priority"],
            "destinations": destinations,
            **({} if shadow is None else {"shadow": shadow}),
        }

    def enqueue_deliveries(self, run: Run, job_id: str, outcome: Json) -> None:
        """One delivery a destination, each on a queue of its own."""
        for destination in outcome["destinations"]:
            run.enqueue(
                "deliver",
                delivery_id(job_id, destination),
                job_id,
                destination,
                priority=outcome["priority"],
                partition=destination,
            )
