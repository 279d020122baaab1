"""The workflows, read top-down: assemble a series, analyse it; lookback.py has what may come between, delivery.py the
last.

Each step may run twice (a worker died after the work and before the checkpoint), so each does the same
thing again: same files, same bytes, same UIDs, rows that are there already.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from pydicom.dataset import Dataset

from dicom_node import analysis, logs, metrics, routing, tracing
from dicom_node.audit import Audit, NoAudit
from dicom_node.completeness import ArchiveCount, Facts, Patience, Wait, as_json, is_dense, judge
from dicom_node.config import Config, RouteConfig
from dicom_node.db import Database, ResultObject, Row
from dicom_node.delivery import Delivery, Sender, delivery_id
from dicom_node.domain import CTSeries
from dicom_node.engine import Json, Run, Workflow
from dicom_node.errors import (
    DicomNodeError,
    JobCancelled,
    Reason,
    ResultError,
    SeriesRejected,
    StaleState,
    StorageError,
)
from dicom_node.logs import describe
from dicom_node.lookback import FindPrior, Lookback
from dicom_node.peers import PeerConfig
from dicom_node.profiles import REPORT_KINDS, ResultProfile
from dicom_node.promotion import pair_of
from dicom_node.results import Predecessor
from dicom_node.reviews import Reviews
from dicom_node.series import InstanceFile, check_series, read_headers, readable_headers
from dicom_node.shadow import Shadow
from dicom_node.storage import Storage

log = logging.getLogger(__name__)

# How long a look may hold its place in the queue to see the last moment of a short quiet time.
_LONGEST_PAUSE_S = 1.0
# There was no axial CT to look at: a report in the PACS would only be in the way.
_NOTHING_TO_REPORT = {Reason.NOT_CT, Reason.NO_AXIAL_IMAGES, Reason.NO_ROUTE, Reason.MISSING_UID, Reason.MIXED_SERIES}


class Count(Protocol):
    """Asks a peer how many instances of a series it has; what it can't tell is a problem of the answer, no error."""

    def __call__(self, peer: PeerConfig, calling_ae: str, *, study_uid: str, series_uid: str) -> ArchiveCount: ...


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
class _Judged:
    """What gate and routes say of the instances that are there.

    slices, left_out, dense: as in completeness.Facts. values: columns of the job row. lossy: as in CTSeries.
    """

    state: Literal["queued", "rejected", "failed"]
    values: Mapping[str, Any]
    slices: int | None = None
    left_out: int = 0
    dense: bool = False
    count_from: str | None = None
    lossy: str | None = None


_UNSEEN = _Judged(state="failed", values={})


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
            "assemble": self.assemble,
            "priors": self.lookback.look,
            "overdue": self.lookback.give_up,
            "analyse": self.analyse,
            "shadow": self.shadow.look,
            "deliver": self.delivery.deliver,
        }
        return {name: _about_its_series(workflow) for name, workflow in workflows.items()}

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
            files=self._manifest_paths,
            origin=lambda job: self._origin(job, {}),
            watched=self.stopwatch.running,
            now=self.now,
        )

    @property
    def reviews(self) -> Reviews:
        return Reviews(config=self.config, database=self.database, storage=self.storage)

    # -- assemble ----------------------------------------------------------------------------------

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
            outcome = run.step("report", self.report_rejected, decision["job_id"])
            self._enqueue_deliveries(run, decision["job_id"], outcome)

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
            self._write_manifest(job_id, rows)
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

    def _decided(self, job_id: str, seen: Row, judged: _Judged) -> None:
        if judged.state != "queued":
            metrics.series_ended(judged.state, str(judged.values.get("reason", "")))
        if tracing.is_on() and len(self.database.jobs(series_uid=seen["series_uid"])) == 1:
            times = {"begun_at": seen["first_at"], "ended_at": self.now()}
            tracing.series_decided(seen["series_uid"], job_id, **times, state=judged.state)

    def _look(self, seen: Row, rows: Sequence[Row]) -> _Judged | Wait:
        """What to do with the series and, in its values, why it counts as complete; or that it does not yet."""
        patience = self._patience(seen["source_ae"])
        unproven = judge(self._facts(seen, rows, _UNSEEN), patience)
        if isinstance(unproven, Wait) and not (seen["released"] or any(r.count_from for r in self.config.routes)):
            return unproven
        judged = self._judged(rows, seen["source_ae"])
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
        self, seen: Row, rows: Sequence[Row], judged: _Judged, archive: ArchiveCount | None, patience: Patience
    ) -> _Judged | Wait:
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

    def _facts(self, seen: Row, rows: Sequence[Row], judged: _Judged, archive: ArchiveCount | None = None) -> Facts:
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

    def _judged(self, rows: Sequence[Row], source_ae: str) -> _Judged:
        try:
            return self._judge(rows, source_ae)
        except StorageError:
            raise
        except Exception as err:
            # Nobody foresaw it. The series must not vanish: an operator sees it, and can have it decided on again.
            log.exception("series not decided on", extra={"action": "failed", "series": rows[0]["series_uid"]})
            return _Judged(state="failed", values={"reason": "FAILED", "reason_text": describe(err)})

    def _judge(self, rows: Sequence[Row], source_ae: str) -> _Judged:
        paths = [self.storage.path(row["path"]) for row in rows]
        too_large = len(paths) > self.config.gate.max_instances
        # Of too many the first is enough to find the route that says whether to report it.
        files, unreadable = readable_headers(paths[:1] if too_large else paths)
        series, rejected = self._gate(files)
        if too_large:
            text = f"{len(paths)} instances, gate.max_instances is {self.config.gate.max_instances}"
            series, rejected = None, SeriesRejected(Reason.TOO_LARGE, text)
        elif unreadable:
            text = f"the headers of {unreadable} of {len(paths)} instances can't be parsed"
            series, rejected = None, SeriesRejected(Reason.UNREADABLE, text)
        choice = self._choose(rows[0]["series_uid"], routing.facts_of(files, series, source_ae))
        if choice.route is None and rejected is None:
            rejected = SeriesRejected(Reason.NO_ROUTE, "no route matches: dicom-node route DIR explains")
        values: dict[str, Any] = {"explanation": choice.explain()}
        if choice.route is not None:
            values |= {"route": choice.route.name, "priority": choice.route.priority, **self._models(choice.route)}
        if rejected is not None:
            values |= {"reason": rejected.reason, "reason_text": rejected.text}
        return _Judged(
            state="queued" if rejected is None else "rejected",
            values=values,
            slices=None if series is None else len(series.images),
            left_out=0 if series is None else len(series.left_out),
            dense=series is not None and _dense(files, series.left_out),
            count_from=None if choice.route is None else choice.route.count_from,
            lossy=None if series is None else series.lossy,
        )

    def _models(self, route: RouteConfig) -> dict[str, str | None]:
        """Which model works for a job that is decided now, whatever is promoted later, and which in its shadow."""
        pair = pair_of(self.config, route, self.database.promotions())
        return {"working_model": pair.model, "shadow_model": pair.shadow, "promoted_over": pair.promoted_over}

    def _choose(self, series_uid: str, facts: routing.Facts) -> routing.Choice:
        """The route that a pull named for this series, else the first that matches."""
        pull = self.database.pulled_route(series_uid)
        if pull is None:
            return routing.choose(self.config.routes, facts)
        return routing.named(self.config.route(pull["route"]), f"named by a pull from {pull['peer']}")

    def _gate(self, files: Sequence[InstanceFile]) -> tuple[CTSeries | None, SeriesRejected | None]:
        try:
            return check_series(files, self.config.gate), None
        except SeriesRejected as err:
            return None, err

    def _write_manifest(self, job_id: str, rows: Sequence[Row]) -> None:
        files = {row["sop_instance_uid"]: row["path"] for row in rows}
        self.storage.write_result(job_id, "manifest.json", json.dumps(files, indent=0).encode())

    def _verdict(self, job_id: str) -> Json:
        job = self._job(job_id)
        if job["state"] == "queued":
            archive = next((r.compare_with for r in self.config.routes if r.name == job["route"]), None)
            if archive is not None:
                self.database.prior_wanted(job_id, archive)
            verdict = "analyse" if archive is None else "look back"
            return {"verdict": verdict, "job_id": job_id, "priority": job["priority"]}
        if job["state"] == "rejected" and self._reported(job, job["reason"]):
            return {"verdict": "report", "job_id": job_id}
        return {"verdict": "nothing"}

    def _reported(self, job: Row, reason: str) -> bool:
        """Whether the PACS shall hear that this series was not analysed."""
        return (
            job["route"] is not None
            and reason not in _NOTHING_TO_REPORT
            and self.config.route(job["route"]).report_rejected
        )

    # -- analyse -----------------------------------------------------------------------------------

    def analyse(self, run: Run, job_id: str) -> None:
        """Series -> findings -> SEG and SR on the disk -> one delivery a destination."""
        outcome = run.step("analyse", self.analyse_job, job_id)
        self._enqueue_deliveries(run, job_id, outcome)
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
            return self._outcome(job_id)  # it ended while it waited: cancelled, or done by the worker before us
        try:
            with self.stopwatch.running():
                self._analyse_or_reject(job_id)
        except (JobCancelled, StaleState):
            log.info("job is no longer ours", extra={"action": "cancelled", "job": job_id})
        except StorageError:
            raise  # no database, no space: the engine tries again
        except ResultError as err:
            self._withhold(job_id, str(err))
            metrics.series_ended("parked", "WITHHELD")
        except Exception as err:
            text = str(err) if isinstance(err, DicomNodeError) else describe(err)
            log.exception("job failed", extra={"action": "failed", "job": job_id})
            with contextlib.suppress(StaleState):  # it ended otherwise: cancelled
                self.database.fail_job(job_id, text)
                metrics.series_ended("failed", "FAILED")
            raise DicomNodeError(text) from None
        return self._outcome(job_id)

    def review_job(self, job_id: str) -> Json:
        """Corrections that came before the analysis had ended are compared with it, or told that there is none."""
        self.reviews.series_ended(self._job(job_id)["series_uid"])
        return {}

    def _analyse_or_reject(self, job_id: str) -> None:
        try:
            self._analyse(job_id)
        except SeriesRejected as err:
            log.info("series rejected", extra={"action": "rejected", "job": job_id, "reason": str(err.reason)})
            self._end_rejected(self._job(job_id), err)
            metrics.series_ended("rejected", str(err.reason))

    def _analyse(self, job_id: str) -> None:
        job = self._job(job_id)
        route = self.config.route(job["route"])
        # The one that the job was decided with; one of an older version was decided by the settings alone.
        model = job["working_model"] or route.model
        begun_at = self.now()
        metrics.stage_took("wait", begun_at - job["created_at"])
        made = analysis.analyse(
            self._manifest_paths(job_id),
            self.detector(model),
            self.config.gate,
            self._origin(job, self._predecessors(job)),
            self._profiles(route),
            promoted_over=job["promoted_over"],
            prior=self.lookback.of(job_id),
            progress=lambda part: self._progress(job_id, part),
        )
        if made.comparison is not None:
            self.database.prior_compared(job_id, made.comparison.outcome, made.comparison.text)
        objects = [self._write(job_id, file) for file in made.objects]
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

    def report_rejected(self, job_id: str) -> Json:
        """The report of a series that the gate rejected, once."""
        job = self._job(job_id)
        if job["state"] == "rejected" and not self.database.results(job_id):
            try:
                self._end_rejected(job, SeriesRejected(Reason(job["reason"]), job["reason_text"]))
            except ResultError as err:
                self._withhold(job_id, f"report on {job['reason']}: {err}")
        return self._outcome(job_id)

    def _withhold(self, job_id: str, text: str) -> None:
        """Objects that failed their own checks: an operator sees why, nobody else sees anything."""
        log.error("results withheld", extra={"action": "withheld", "job": job_id, "fault": text})
        with contextlib.suppress(StaleState):  # it ended otherwise: cancelled
            self.database.withhold_job(job_id, text)

    def _end_rejected(self, job: Row, err: SeriesRejected) -> None:
        """The job's end, with small objects that say why: silence must not look like "nothing found"."""
        job_id = job["job_id"]
        objects: list[ResultObject] = []
        headers = self._report_headers(job_id) if self._reported(job, err.reason) else []
        if headers:
            profiles = self._profiles(self.config.route(job["route"]))
            made = analysis.rejection(headers, err, self._origin(job, {}), profiles)
            objects = [self._write(job_id, file) for file in made]
        self.database.finish_job(
            job_id,
            state="rejected",
            objects=objects,
            reason=err.reason,
            reason_text=err.text,
        )

    def _report_headers(self, job_id: str) -> list[Dataset]:
        """Those that a report cites: none where no file can be read, and no more than a job may have."""
        paths = self._manifest_paths(job_id)[: self.config.gate.max_instances]
        return [file.header for file in readable_headers(paths)[0]]

    def _profiles(self, route: RouteConfig) -> dict[str, ResultProfile]:
        """Of each destination; of nobody where results stay here, which are made all the same."""
        return {name: self.config.profile(name) for name in route.destinations or ("",)}

    def _write(self, job_id: str, made: analysis.ResultFile) -> ResultObject:
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

    def _origin(self, job: Row, predecessors: Mapping[str, Predecessor]) -> analysis.Origin:
        return analysis.Origin(
            manifest_sha256=job["manifest_sha256"],
            # Content date and time come from the job, so the same job makes the same bytes. In local time, as
            # PS3.3 C.12.1.1.8 reads times without an offset.
            made_at=datetime.fromtimestamp(int(job["created_at"]), UTC).astimezone(),
            evidence=job["evidence"]["text"],
            complete=not job["evidence"]["partial"],
            predecessors=predecessors,
        )

    def _manifest_paths(self, job_id: str) -> list[Path]:
        """The files of the very set of instances that the job was made for; later ones make a job of their own."""
        text = self.storage.path(f"results/{job_id}/manifest.json").read_text()
        return [self.storage.path(path) for path in json.loads(text).values()]

    def _predecessors(self, job: Row) -> dict[str, Predecessor]:
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

    def _outcome(self, job_id: str) -> Json:
        job = self._job(job_id)
        destinations = sorted({row["destination"] for row in self.database.deliveries(job_id)})
        shadow = job["shadow_model"] if job["state"] == "complete" else None
        return {
            "state": job["state"],
            "priority": job["priority"],
            "destinations": destinations,
            **({} if shadow is None else {"shadow": shadow}),
        }

    def _enqueue_deliveries(self, run: Run, job_id: str, outcome: Json) -> None:
        for destination in outcome["destinations"]:
            run.enqueue(
                "deliver",
                delivery_id(job_id, destination),
                job_id,
                destination,
                priority=outcome["priority"],
                partition=destination,
            )

    def _job(self, job_id: str) -> Row:
        job = self.database.job(job_id)
        if job is None:
            raise StaleState(f"job {job_id} is not in the database")
        return job


def manifest_sha256(sop_instance_uids: Any) -> str:
    """Hash of a set of SOP Instance UIDs: order and repetition do not matter."""
    return hashlib.sha256("\n".join(sorted(set(sop_instance_uids))).encode()).hexdigest()


def _dense(files: Sequence[InstanceFile], left_out: Collection[str]) -> bool:
    """A localizer may have its number among those of the slices, or one of its own."""
    numbers = {str(file.header.SOPInstanceUID): _instance_number(file) for file in files}
    return is_dense(numbers.values()) or is_dense(n for uid, n in numbers.items() if uid not in left_out)


def _instance_number(file: InstanceFile) -> int | None:
    try:
        return int(file.header.get("InstanceNumber"))
    except (TypeError, ValueError):
        return None
