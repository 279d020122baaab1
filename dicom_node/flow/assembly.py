"""The workflow `assemble`: a series that pauses -> a job, or a wait for more of it, and why it counts as complete."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from dicom_node import metrics, tracing
from dicom_node.completeness import ArchiveCount, Facts, Patience, Wait, as_json, judge
from dicom_node.config import Config
from dicom_node.db import Database, Row
from dicom_node.engine import Json, Run
from dicom_node.flow.job import Jobs
from dicom_node.flow.judgement import Judge, Judged
from dicom_node.flow.refusals import Refusals
from dicom_node.lookback import Lookback
from dicom_node.manifest import manifest_sha256, write_manifest
from dicom_node.peers import PeerConfig
from dicom_node.reviews import Reviews
from dicom_node.storage import Storage

log = logging.getLogger(__name__)

# How long a look may hold its place in the queue to see the last moment of a short quiet time.
_LONGEST_PAUSE_S = 1.0
_UNSEEN = Judged(state="failed", values={})


class Count(Protocol):
    """Asks a peer how many instances of a series it has; what it can't tell is a problem of the answer, no error."""

    def __call__(self, peer: PeerConfig, calling_ae: str, *, study_uid: str, series_uid: str) -> ArchiveCount: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """The workflow `assemble` and what it works with."""

    config: Config
    database: Database
    storage: Storage
    jobs: Jobs
    judge: Judge
    refusals: Refusals
    lookback: Lookback
    reviews: Reviews
    count: Count
    now: Callable[[], float]
    pause: Callable[[float], None]

    def assemble(self, run: Run, series_uid: str) -> None:
        """The series paused: decide what becomes of it, or wait for more of it."""
        decision = run.step("decide", self.decide, series_uid)
        if decision["verdict"] == "wait":
            longest_s = self.config.assemble.longest_wait_s
            run.bounce("assemble", series_uid, decision["more_s"], series_uid, longest_s=longest_s)
        elif decision["verdict"] == "analyse":
            run.enqueue("analyse", decision["job_id"], decision["job_id"], priority=decision["priority"])
        elif decision["verdict"] == "look back":
            self.lookback.begin(run, decision["job_id"], decision["priority"])
        elif decision["verdict"] == "report":
            outcome = run.step("report", self.refusals.report, decision["job_id"])
            self.jobs.enqueue_deliveries(run, decision["job_id"], outcome)

    def decide(self, series_uid: str) -> Json:
        """What becomes of the series. Where that is no analysis, corrections wait for none."""
        decision = self._decide(series_uid)
        if decision["verdict"] in ("nothing", "report"):
            self.reviews.series_ended(series_uid)
        return decision

    def _decide(self, series_uid: str) -> Json:
        """Manifest, gate, route, completeness -> a job row, unless this very set of instances has one."""
        seen = self.database.series(series_uid)
        if seen is None:
            return {"verdict": "nothing"}
        rows = self.database.instances(series_uid)
        manifest = manifest_sha256(row["sop_instance_uid"] for row in rows)
        if self.database.is_expected(series_uid):
            log.info("series came for a comparison alone", extra={"action": "prior", "series": series_uid})
            self.database.series_assembled(series_uid, manifest, seen["last_at"])
            return {"verdict": "nothing"}
        job_id = f"{series_uid}-{manifest[:16]}"
        known = self.database.job(job_id) is not None
        if not known and self.reviews.take(rows, seen["source_ae"]):
            self.database.series_assembled(series_uid, manifest, seen["last_at"])
            return {"verdict": "nothing"}
        if not known:
            judged = self._look(seen, rows)
            if isinstance(judged, Wait):
                return {"verdict": "wait", "more_s": round(judged.more_s, 2)}
            write_manifest(self.storage, job_id, {row["sop_instance_uid"]: row["path"] for row in rows})
            self.database.create_job(
                job_id,
                state=judged.state,
                **{
                    "series_uid": series_uid,
                    "study_uid": seen["study_uid"],
                    "manifest_sha256": manifest,
                    "instance_count": len(rows),
                    "source_ae": seen["source_ae"],
                    "explanation": [],
                    "priority": "routine",
                    **judged.values,
                },
            )
            self._decided(job_id, seen, judged)
        self.database.series_assembled(series_uid, manifest, seen["last_at"])
        return self._verdict(job_id)

    def _decided(self, job_id: str, seen: Row, judged: Judged) -> None:
        if judged.state != "queued":
            metrics.series_ended(judged.state, str(judged.values.get("reason", "")))
        if tracing.is_on() and len(self.database.jobs(series_uid=seen["series_uid"])) == 1:
            times = {"begun_at": seen["first_at"], "ended_at": self.now()}
            tracing.series_decided(seen["series_uid"], job_id, **times, state=judged.state)

    def _look(self, seen: Row, rows: Sequence[Row]) -> Judged | Wait:
        """What to do with the series and, in its values, why it counts as complete; or that it does not yet."""
        patience = self._patience(seen["source_ae"])
        unproven = judge(self._facts(seen, rows, _UNSEEN), patience)
        if isinstance(unproven, Wait) and not (seen["released"] or any(r.count_from for r in self.config.routes)):
            return unproven
        judged = self.judge.judged(rows, seen["source_ae"])
        provable = judged.slices is not None and (judged.count_from or (seen["released"] and judged.dense))
        if isinstance(unproven, Wait):
            if not provable:
                return unproven
            still_s = patience.proven_quiet_time_s - (self.now() - seen["last_at"])
            if still_s > _LONGEST_PAUSE_S:
                return Wait(more_s=min(still_s, unproven.more_s))
            self.pause(max(0.0, still_s))
        archive = self._ask(judged.count_from, seen)
        return self._settled(seen, rows, judged, archive, patience)

    def _settled(
        self, seen: Row, rows: Sequence[Row], judged: Judged, archive: ArchiveCount | None, patience: Patience
    ) -> Judged | Wait:
        """The verdict on what did not change while we looked."""
        now = self.database.series(seen["series_uid"]) or seen
        facts = self._facts(now, rows, judged, archive)
        if now["last_at"] != seen["last_at"]:
            # Something came meanwhile, of which gate and archive know nothing; only the longest wait ends now.
            facts = replace(facts, slices=None, archive=None)
        verdict = judge(facts, patience)
        if isinstance(verdict, Wait):
            return verdict
        evidence = as_json(verdict, facts) | ({} if judged.lossy is None else {"lossy": judged.lossy})
        return replace(judged, values={**judged.values, "evidence": evidence})

    def _facts(self, seen: Row, rows: Sequence[Row], judged: Judged, archive: ArchiveCount | None = None) -> Facts:
        now, decided_until = self.now(), seen["assembled_at"] or 0.0
        undecided = [row["received_at"] for row in rows if row["received_at"] > decided_until]
        return Facts(
            instances=len(rows),
            slices=judged.slices,
            left_out=judged.left_out,
            dense=judged.dense,
            released=bool(seen["released"]),
            quiet_s=now - seen["last_at"],
            waiting_s=now - min(undecided, default=seen["last_at"]),
            archive=archive,
        )

    def _patience(self, source_ae: str) -> Patience:
        return Patience(
            quiet_time_s=self.config.quiet_time_s(source_ae),
            proven_quiet_time_s=self.config.assemble.proven_quiet_time_s,
            longest_wait_s=self.config.assemble.longest_wait_s,
        )

    def _ask(self, count_from: str | None, seen: Row) -> ArchiveCount | None:
        if count_from is None:
            return None
        peer, calling_ae = self.config.peers[count_from], self.config.receive.ae_title
        try:
            answer = self.count(peer, calling_ae, study_uid=seen["study_uid"], series_uid=seen["series_uid"])
        except Exception:
            # Nobody foresaw it. An archive is asked for evidence only: without it the other rungs decide.
            log.exception("archive not asked", extra={"action": "count", "series": seen["series_uid"]})
            answer = ArchiveCount(ae_title=peer.ae_title, problem="can't be asked for a count")
        extra = {"action": "count", "series": seen["series_uid"], "peer": count_from}
        log.info("archive asked", extra={**extra, "instances": answer.instances, "problem": answer.problem})
        return answer

    def _verdict(self, job_id: str) -> Json:
        job = self.jobs.row(job_id)
        if job["state"] == "queued":
            archive = next((r.compare_with for r in self.config.routes if r.name == job["route"]), None)
            if archive is not None:
                self.database.prior_wanted(job_id, archive)
            verdict = "analyse" if archive is None else "look back"
            return {"verdict": verdict, "job_id": job_id, "priority": job["priority"]}
        if job["state"] == "rejected" and self.refusals.wanted(job, job["reason"]):
            return {"verdict": "report", "job_id": job_id}
        return {"verdict": "nothing"}
