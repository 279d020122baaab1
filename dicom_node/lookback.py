"""A queued job -> the earlier CT that it is compared with, or why there is none -> its analysis. Nothing fails a job.

The network is waited for here, on a queue of the deliver role, so that no GPU does. What was found is settled once, in
a row: whatever runs twice after that reads the same files and makes the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from pydicom.dataset import Dataset

from dicom_node.comparison import NoPrior, PriorFiles
from dicom_node.config import Config
from dicom_node.db import Database, Row
from dicom_node.engine import Json, Run
from dicom_node.errors import StorageError
from dicom_node.logs import describe
from dicom_node.manifest import manifest_paths
from dicom_node.series import readable_headers
from dicom_node.storage import Storage

log = logging.getLogger(__name__)

# Beyond priors.longest_wait_s: what a look needs to end by itself.
_GRACE_S = 10.0
_FAILED = "The look for earlier CTs failed."
_NOT_LOOKED = "The archive was not looked in."


# Of an earlier CT's files, in its folder.
REPORT, SEGMENTATION, IMAGES = "report.dcm", "segmentation.dcm", "images"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An earlier CT whose files lie in `folder`, relative to the storage root. size_bytes: what they take there."""

    folder: str
    study_uid: str
    series_uid: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Missed:
    """None to compare with. why: for the operator; no value of a patient's."""

    said: NoPrior
    why: str = ""


def not_available(text: str, why: str = "") -> Missed:
    return Missed(said=NoPrior(outcome="not_available", text=text), why=why)


class FindPrior(Protocol):
    """Looks in the archive, until a time; `settle` is told what was found. Raises StorageError alone."""

    def __call__(
        self, job_id: str, archive: str, header: Dataset, until: float, settle: Callable[[Found], None]
    ) -> Missed | None: ...


def lookback_id(job_id: str) -> str:
    """The workflow that looks for a job's earlier CT."""
    return f"{job_id}:priors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookback:
    """The workflows `priors` and `overdue`, and what they work with."""

    config: Config
    database: Database
    storage: Storage
    find: FindPrior
    now: Callable[[], float]

    def begin(self, run: Run, job_id: str, priority: str) -> None:
        """Look, and analyse when that is over; or when it takes too long, whoever is down."""
        run.enqueue("priors", lookback_id(job_id), job_id, priority=priority)
        delay_s = self.config.priors.longest_wait_s + _GRACE_S
        run.enqueue("overdue", f"{job_id}:overdue", job_id, priority=priority, delay_s=delay_s)

    def look(self, run: Run, job_id: str) -> None:
        self._go_on(run, job_id, run.step("look", self.look_for, job_id))

    def give_up(self, run: Run, job_id: str) -> None:
        """The time is over: the job is analysed without a comparison, unless it has what it waited for."""
        self._go_on(run, job_id, run.step("give up", self.give_up_on, job_id))

    def _go_on(self, run: Run, job_id: str, outcome: Json) -> None:
        # Both workflows may come here: the same id twice is once.
        if outcome["state"] == "queued":
            run.enqueue("analyse", job_id, job_id, priority=outcome["priority"])

    def look_for(self, job_id: str) -> Json:
        """Settle what the job is compared with, unless it is settled, or the job is over."""
        job, prior = self.database.job(job_id), self.database.prior(job_id)
        if job is not None and prior is not None and job["state"] == "queued" and prior["outcome"] is None:
            self._look(job, prior)
            self._tidy(job_id)
        return self._outcome(job_id)

    def _look(self, job: Row, prior: Row) -> None:
        job_id = job["job_id"]
        until = prior["wanted_at"] + self.config.priors.longest_wait_s
        try:
            missed = self._find(job_id, prior["archive"], until)
        except StorageError:
            raise  # no database, no disk: the engine tries again
        except Exception as err:
            # Nobody foresaw it. The job goes on all the same.
            log.exception("no earlier CT looked for", extra={"action": "prior", "job": job_id})
            self.database.prior_settled(job_id, "not_available", _FAILED, why=describe(err))
            return
        if missed is not None:
            self.database.prior_settled(job_id, missed.said.outcome, missed.said.text, why=missed.why)

    def _find(self, job_id: str, archive: str, until: float) -> Missed | None:
        if archive not in self.config.peers:
            return not_available("The archive is not in the settings any more.")
        for path in manifest_paths(self.storage, job_id):
            files, _ = readable_headers([path])
            if files:
                return self.find(job_id, archive, files[0].header, until, lambda found: self._settle(job_id, found))
        return not_available("No image of the series can be read.")

    def _settle(self, job_id: str, found: Found) -> None:
        self.database.prior_settled(
            job_id,
            "found",
            "An earlier CT was found.",
            folder=PurePosixPath(found.folder).name,
            study_uid=found.study_uid,
            series_uid=found.series_uid,
            size_bytes=found.size_bytes,
        )

    def give_up_on(self, job_id: str) -> Json:
        job = self.database.job(job_id)
        if job is not None and job["state"] == "queued":
            longest_s = self.config.priors.longest_wait_s
            text = f"The look for earlier CTs took longer than {longest_s:g} seconds."
            self.database.prior_settled(job_id, "not_available", text)
        return self._outcome(job_id)

    def of(self, job_id: str) -> PriorFiles | NoPrior | None:
        """What the job is compared with, settled now at the latest; None where its route wants no comparison."""
        prior = self.database.prior(job_id)
        if prior is not None and prior["outcome"] is None:
            self.database.prior_settled(job_id, "not_available", _NOT_LOOKED)
            prior = self.database.prior(job_id)
        if prior is None:
            return None
        if prior["folder"] is None:
            return NoPrior(outcome=prior["outcome"], text=prior["text"])
        folder = self._folder(job_id) / prior["folder"]
        segmentation = folder / SEGMENTATION
        return PriorFiles(
            images=tuple(sorted((folder / IMAGES).glob("*.dcm"))),
            report=folder / REPORT,
            segmentation=segmentation if segmentation.exists() else None,
        )

    def _tidy(self, job_id: str) -> None:
        """What a look that was killed, or came too late, left behind."""
        prior = self.database.prior(job_id)
        kept = None if prior is None else prior["folder"]
        for folder in self._folder(job_id).glob("prior_*"):
            if folder.name != kept:
                self.storage.discard(f"results/{job_id}/{folder.name}")

    def _folder(self, job_id: str) -> Path:
        return self.storage.path(f"results/{job_id}")

    def _outcome(self, job_id: str) -> Json:
        job = self.database.job(job_id)
        return {"state": "gone", "priority": "routine"} if job is None else {k: job[k] for k in ("state", "priority")}
