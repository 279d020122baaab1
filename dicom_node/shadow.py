"""The workflow `shadow`: a second model looks at the input of a job that is complete. Nothing of it leaves the node.

Its findings are rows and its masks and pictures files of their own; none of them is a DICOM object, and neither
`result` nor the ledger hears of it. It runs on the queue of the analyses, behind all of them, and gives way to a job
that comes meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from dicom_node import analysis, metrics
from dicom_node.config import Config
from dicom_node.db import Database, Row
from dicom_node.engine import Json, Run
from dicom_node.errors import DatabaseUnavailable, DicomNodeError, StaleState
from dicom_node.logs import describe
from dicom_node.shadows import SHADOW_PRIORITY, shadow_id
from dicom_node.storage import Storage

log = logging.getLogger(__name__)

# A worker that is free takes up a job within half a second: only one that waits for longer needs ours.
_PATIENCE_S = 2.0
_LOOK_S = 1.0
# On a node that is never idle the second model would else never come to its end.
_MOST_TURNS = 5
# Verdict of a look -> as it is counted.
_OUTCOMES = {"done": "complete", "failed": "failed", "gave way": "gave_way"}


class _GaveWay(Exception):
    """A job waits for this worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """The workflow `shadow` and what it works with.

    files: a job's, by its id. origin: of a job's row, as the first analysis has it. watched: runs while a model works.
    """

    config: Config
    database: Database
    storage: Storage
    executor_id: str
    detector: Callable[[str], analysis.Detector]
    files: Callable[[str], list[Path]]
    origin: Callable[[Row], analysis.Origin]
    watched: Callable[[], AbstractContextManager[None]]
    now: Callable[[], float]

    def begin(self, run: Run, job_id: str) -> None:
        """After the first result is stored and its deliveries are on their way."""
        if run.step("want shadow", self.want, job_id)["wanted"]:
            run.enqueue("shadow", shadow_id(job_id), job_id, 0, priority=SHADOW_PRIORITY)

    def want(self, job_id: str) -> Json:
        return {"wanted": self.database.shadow_wanted(job_id)}

    def look(self, run: Run, job_id: str, turn: int) -> None:
        outcome = run.step("shadow", self.look_at_job, job_id, turn)
        if outcome["verdict"] == "gave way":
            run.enqueue("shadow", f"{shadow_id(job_id)}:{turn + 1}", job_id, turn + 1, priority=SHADOW_PRIORITY)

    def look_at_job(self, job_id: str, turn: int) -> Json:
        """Whatever goes wrong ends in this row and nowhere else: the job is complete, and stays so."""
        try:
            row = self.database.start_shadow(job_id, self.executor_id)
        except StaleState:
            return {"verdict": "over"}  # purged meanwhile, or done by the worker before us
        verdict = self._verdict(row, turn)
        if verdict != "over":
            metrics.shadow_looked(row["model_name"], _OUTCOMES[verdict])
        return {"verdict": verdict}

    def _verdict(self, row: Row, turn: int) -> str:
        job_id = row["job_id"]
        try:
            with self.watched():
                self._look(row, turn)
        except _GaveWay:
            with contextlib.suppress(StaleState):
                self.database.shadow_gave_way(job_id)
            return "gave way"
        except StaleState:
            return "over"
        except DatabaseUnavailable:
            raise  # the engine tries again; no job could run meanwhile
        except Exception as err:
            # No space among them: waiting for it here would hold up jobs, which may still write.
            log.exception("shadow failed", extra={"action": "shadow failed", "job": job_id})
            self._fail(job_id, str(err) if isinstance(err, DicomNodeError) else describe(err))
            return "failed"
        return "done"

    def _fail(self, job_id: str, problem: str) -> None:
        with contextlib.suppress(StaleState):
            self.database.fail_shadow(job_id, problem)

    def _look(self, row: Row, turn: int) -> None:
        job_id = row["job_id"]
        job = self.database.job(job_id)
        if job is None:
            raise StaleState(f"job {job_id} is gone")
        seen = analysis.second_look(
            self.files(job_id),
            self.detector(row["model_name"]),
            self.config.gate,
            self.origin(job),
            progress=self._yielding(turn),
        )
        for name, data in {**seen.pictures, "masks.npz": seen.masks}.items():
            self.storage.write_shadow(job_id, name, data)
        self.database.finish_shadow(
            job_id,
            self.executor_id,
            findings=seen.findings,
            model=analysis.identity_row(seen.model),
            timings_s=seen.timings_s,
        )
        log.info("shadow complete", extra={"action": "shadow", "job": job_id, "findings": len(seen.findings)})

    def _yielding(self, turn: int) -> Callable[[float], None]:
        """Looks once a second whether a job waits for us; the last turn goes through."""
        last = self.now()

        def progress(_part: float) -> None:
            nonlocal last
            now = self.now()
            if turn < _MOST_TURNS and now - last >= _LOOK_S:
                last = now
                if self.database.job_waits(now - _PATIENCE_S):
                    raise _GaveWay

        return progress
