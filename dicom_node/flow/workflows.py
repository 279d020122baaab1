"""The table of the workflows by name, each made of what all of them work with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dicom_node import analysis, logs
from dicom_node.audit import Audit, NoAudit
from dicom_node.config import Config
from dicom_node.db import Database
from dicom_node.delivery import Delivery, Sender
from dicom_node.engine import Run, Workflow
from dicom_node.flow.analyses import Analyses, Stopwatch
from dicom_node.flow.assembly import Assembly, Count
from dicom_node.flow.job import Jobs
from dicom_node.flow.judgement import Judge
from dicom_node.flow.refusals import Refusals
from dicom_node.lookback import FindPrior, Lookback
from dicom_node.manifest import manifest_paths
from dicom_node.reviews import Reviews
from dicom_node.shadow import Shadow
from dicom_node.storage import Storage


def _about_its_series(workflow: Workflow) -> Workflow:
    """Each line of its log names the series; the first argument is a series' UID or a job's id."""

    def run(run: Run, name: str, *args: Any) -> None:
        with logs.about(name):
            workflow(run, name, *args)

    return run


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """The workflows and what they work with.

    detector: model name -> Detector; only the work role has any.
    """

    config: Config
    database: Database
    storage: Storage
    executor_id: str
    detector: Callable[[str], analysis.Detector]
    send: Sender
    count: Count
    find_prior: FindPrior
    audit: Audit = field(default_factory=NoAudit)
    now: Callable[[], float] = time.time
    pause: Callable[[float], None] = time.sleep
    stopwatch: Stopwatch = field(default_factory=lambda: Stopwatch())

    def workflows(self) -> Mapping[str, Workflow]:
        workflows: dict[str, Workflow] = {
            "assemble": self.assembly.assemble,
            "priors": self.lookback.look,
            "overdue": self.lookback.give_up,
            "analyse": self.analyses.analyse,
            "shadow": self.shadow.look,
            "deliver": self.delivery.deliver,
        }
        return {name: _about_its_series(workflow) for name, workflow in workflows.items()}

    @property
    def jobs(self) -> Jobs:
        return Jobs(config=self.config, database=self.database, storage=self.storage)

    @property
    def refusals(self) -> Refusals:
        return Refusals(config=self.config, database=self.database, storage=self.storage, jobs=self.jobs)

    @property
    def assembly(self) -> Assembly:
        return Assembly(
            config=self.config,
            database=self.database,
            storage=self.storage,
            jobs=self.jobs,
            judge=Judge(config=self.config, database=self.database, storage=self.storage),
            refusals=self.refusals,
            lookback=self.lookback,
            reviews=self.reviews,
            count=self.count,
            now=self.now,
            pause=self.pause,
        )

    @property
    def analyses(self) -> Analyses:
        return Analyses(
            config=self.config,
            database=self.database,
            storage=self.storage,
            executor_id=self.executor_id,
            jobs=self.jobs,
            refusals=self.refusals,
            lookback=self.lookback,
            shadow=self.shadow,
            reviews=self.reviews,
            detector=self.detector,
            stopwatch=self.stopwatch,
            now=self.now,
        )

    @property
    def delivery(self) -> Delivery:
        return Delivery(
            config=self.config,
            database=self.database,
            storage=self.storage,
            send=self.send,
            now=self.now,
            audit=self.audit,
        )

    @property
    def lookback(self) -> Lookback:
        return Lookback(
            config=self.config, database=self.database, storage=self.storage, find=self.find_prior, now=self.now
        )

    @property
    def shadow(self) -> Shadow:
        return Shadow(
            config=self.config,
            database=self.database,
            storage=self.storage,
            executor_id=self.executor_id,
            detector=self.detector,
            files=lambda job_id: manifest_paths(self.storage, job_id),
            origin=lambda job: self.jobs.origin(job, {}),
            watched=self.stopwatch.running,
            now=self.now,
        )

    @property
    def reviews(self) -> Reviews:
        return Reviews(config=self.config, database=self.database, storage=self.storage)
