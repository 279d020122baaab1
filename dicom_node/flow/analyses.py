"""The workflow `analyse`: a job -> findings -> their objects on the disk -> one delivery a destination."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dicom_node import analysis, metrics, tracing
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.engine import Json, Run
from dicom_node.errors import DicomNodeError, JobCancelled, ResultError, SeriesRejected, StaleState, StorageError
from dicom_node.flow.job import Jobs
from dicom_node.flow.refusals import Refusals
from dicom_node.logs import describe
from dicom_node.lookback import Lookback
from dicom_node.manifest import manifest_paths
from dicom_node.reviews import Reviews
from dicom_node.shadow import Shadow
from dicom_node.storage import Storage

log = logging.getLogger(__name__)


class Stopwatch:
    """How long the analysis that runs just now has taken. In memory: rows tell of processes that are gone, too."""

    def __init__(self) -> None:
        self._started_at: float | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self._started_at = time.monotonic()
        try:
            yield
        finally:
            self._started_at = None

    def seconds(self) -> float:
        """0 while nothing runs."""
        started_at = self._started_at
        return 0.0 if started_at is None else time.monotonic() - started_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Analyses:
    """The workflow `analyse` and what it works with.

    detector: model name -> Detector; only the work role has any.
    """

    config: Config
    database: Database
    storage: Storage
    executor_id: str
    jobs: Jobs
    refusals: Refusals
    lookback: Lookback
    shadow: Shadow
    reviews: Reviews
    detector: Callable[[str], analysis.Detector]
    stopwatch: Stopwatch
    now: Callable[[], float]

    def analyse(self, run: Run, job_id: str) -> None:
        """Series -> findings -> SEG and SR on the disk -> one delivery a destination."""
        outcome = run.step("analyse", self.analyse_job, job_id)
        self.jobs.enqueue_deliveries(run, job_id, outcome)
        run.step("corrections", self.review_job, job_id)
        # Absent in what an older version kept of its step.
        if outcome.get("shadow") is not None:
            self.shadow.begin(run, job_id)

    def analyse_job(self, job_id: str) -> Json:
        """The work itself. A rejected series ends as such, results that fail their own checks are withheld;
        what nobody foresaw fails the job and the workflow."""
        try:
            self.database.start_job(job_id, self.executor_id)
        except StaleState:
            return self.jobs.outcome(job_id)  # it ended while it waited: cancelled, or done by the worker before us
        try:
            with self.stopwatch.running():
                self._analyse_or_reject(job_id)
        except (JobCancelled, StaleState):
            log.info("job is no longer ours", extra={"action": "cancelled", "job": job_id})
        except StorageError:
            raise  # no database, no space: the engine tries again
        except ResultError as err:
            self.refusals.withhold(job_id, str(err))
            metrics.series_ended("parked", "WITHHELD")
        except Exception as err:
            text = str(err) if isinstance(err, DicomNodeError) else describe(err)
            log.exception("job failed", extra={"action": "failed", "job": job_id})
            with contextlib.suppress(StaleState):  # it ended otherwise: cancelled
                self.database.fail_job(job_id, text)
                metrics.series_ended("failed", "FAILED")
            raise DicomNodeError(text) from None
        return self.jobs.outcome(job_id)

    def review_job(self, job_id: str) -> Json:
        """Corrections that came before the analysis had ended are compared with it, or told that there is none."""
        self.reviews.series_ended(self.jobs.row(job_id)["series_uid"])
        return {}

    def _analyse_or_reject(self, job_id: str) -> None:
        try:
            self._analyse(job_id)
        except SeriesRejected as err:
            log.info("series rejected", extra={"action": "rejected", "job": job_id, "reason": str(err.reason)})
            self.refusals.end(self.jobs.row(job_id), err)
            metrics.series_ended("rejected", str(err.reason))

    def _analyse(self, job_id: str) -> None:
        job = self.jobs.row(job_id)
        route = self.config.route(job["route"])
        # The one that the job was decided with; one of an older version was decided by the settings alone.
        model = job["working_model"] or route.model
        begun_at = self.now()
        metrics.stage_took("wait", begun_at - job["created_at"])
        made = analysis.analyse(
            manifest_paths(self.storage, job_id),
            self.detector(model),
            self.config.gate,
            self.jobs.origin(job, self.jobs.predecessors(job)),
            self.jobs.profiles(route),
            promoted_over=job["promoted_over"],
            prior=self.lookback.of(job_id),
            progress=lambda part: self._progress(job_id, part),
        )
        if made.comparison is not None:
            self.database.prior_compared(job_id, made.comparison.outcome, made.comparison.text)
        objects = [self.jobs.write(job_id, file) for file in made.objects]
        for name, data in made.pictures.items():
            self.storage.write_result(job_id, name, data)
        self.database.finish_job(
            job_id,
            state="complete",
            objects=objects,
            findings=made.findings,
            timings_s=made.timings_s,
            model=analysis.identity_row(made.model),
        )
        metrics.series_ended("complete")
        metrics.result_made(made.made_on, made.findings, made.timings_s)
        tracing.spent(
            "analyse",
            job["series_uid"],
            job_id=job_id,
            begun_at=begun_at,
            ended_at=self.now(),
            parts_s=made.timings_s,
            about={"route": route.name, "model": model, "findings": len(made.findings)},
        )

    def _progress(self, job_id: str, part: float) -> None:
        if not self.database.job_progress(job_id, self.executor_id, part):
            raise JobCancelled(f"job {job_id} is no longer ours")
